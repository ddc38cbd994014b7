//! The Porter stemmer (Porter 1980: An algorithm for suffix stripping) with the
//! changes that NLTK makes to it, since ColBERTer's stemmed words are NLTK's:
//! a table of irregular words, words of one or two letters as they are, and a few
//! rules of its own (`dies` -> `die`, `y` -> `i` after a consonant only, `fulli`,
//! `logi`).
//!
//! Works on lower-case words. A letter that is not of the English alphabet counts
//! as a consonant.

/// Words that the rules would spoil.
const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// The first suffix that fits is replaced if the stem before it is long enough;
/// no further one is tried.
type Rules = &'static [(&'static str, &'static str)];

const STEP_1A: Rules = &[("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")];
const STEP_2: Rules = &[
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
];
const STEP_3: Rules = &[
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
];
const STEP_4: [&str; 19] = [
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou",
    "ism", "ate", "iti", "ous", "ive", "ize",
];

/// The stem of a lower-case word.
pub(crate) fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(w, _)| *w == word) {
        return (*stem).to_owned();
    }
    if word.chars().nth(2).is_none() {
        return word.to_owned();
    }
    let mut word = Word(word.chars().collect());
    word.step_1a();
    word.step_1b();
    word.step_1c();
    word.step_2();
    word.apply(STEP_3, |stem| measure(stem) > 0);
    word.step_4();
    word.step_5();
    word.0.into_iter().collect()
}

/// The letters of a word.
struct Word(Vec<char>);

impl Word {
    /// The letters before a suffix; none if the word ends otherwise.
    fn before(&self, suffix: &str) -> Option<usize> {
        let mut letters = self.0.iter().rev();
        let fits = suffix.chars().rev().all(|c| letters.next() == Some(&c));
        fits.then_some(letters.len())
    }

    fn replace(&mut self, keep: usize, ending: &str) {
        self.0.truncate(keep);
        self.0.extend(ending.chars());
    }

    fn apply(&mut self, rules: Rules, if_stem: impl Fn(&[char]) -> bool) {
        for (suffix, ending) in rules {
            if let Some(stem) = self.before(suffix) {
                if if_stem(&self.0[..stem]) {
                    self.replace(stem, ending);
                }
                return;
            }
        }
    }

    fn step_1a(&mut self) {
        if self.0.len() == 4 && self.before("ies").is_some() {
            self.replace(1, "ie");
        } else {
            self.apply(STEP_1A, |_| true);
        }
    }

    fn step_1b(&mut self) {
        if let Some(stem) = self.before("ied") {
            self.replace(stem, if stem == 1 { "ie" } else { "i" });
            return;
        }
        if let Some(stem) = self.before("eed") {
            if measure(&self.0[..stem]) > 0 {
                self.replace(stem, "ee");
            }
            return;
        }
        let stem = ["ed", "ing"].iter().find_map(|s| self.before(s));
        let Some(stem) = stem.filter(|&s| consonants(&self.0[..s]).contains(&false)) else {
            return;
        };
        self.0.truncate(stem);
        if ["at", "bl", "iz"].iter().any(|s| self.before(s).is_some()) {
            self.0.push('e');
        } else if let [.., a, b] = self.0[..]
            && a == b
            && consonants(&self.0).last() == Some(&true)
        {
            if !['l', 's', 'z'].contains(&b) {
                self.0.pop();
            }
        } else if measure(&self.0) == 1 && ends_short(&self.0) {
            self.0.push('e');
        }
    }

    fn step_1c(&mut self) {
        if let Some(stem) = self.before("y")
            && stem > 1
            && consonants(&self.0[..stem]).last() == Some(&true)
        {
            self.replace(stem, "i");
        }
    }

    fn step_2(&mut self) {
        if let Some(stem) = self.before("alli")
            && measure(&self.0[..stem]) > 0
        {
            self.replace(stem, "al");
        }
        let known = STEP_2.iter().any(|(s, _)| self.before(s).is_some());
        if known {
            self.apply(STEP_2, |stem| measure(stem) > 0);
        } else if let Some(stem) = self.before("logi")
            // The `l` counts with the stem, so that `geo` is long enough.
            && measure(&self.0[..stem + 1]) > 0
        {
            self.replace(stem, "log");
        }
    }

    fn step_4(&mut self) {
        for suffix in STEP_4 {
            if let Some(stem) = self.before(suffix) {
                let before = &self.0[..stem];
                let ends = suffix != "ion" || matches!(before.last(), Some('s' | 't'));
                if ends && measure(before) > 1 {
                    self.0.truncate(stem);
                }
                return;
            }
        }
    }

    fn step_5(&mut self) {
        if let Some(stem) = self.before("e") {
            let before = &self.0[..stem];
            let m = measure(before);
            if m > 1 || (m == 1 && !ends_short(before)) {
                self.0.truncate(stem);
            }
        }
        if let Some(stem) = self.before("ll")
            && measure(&self.0[..stem + 1]) > 1
        {
            self.0.pop();
        }
    }
}

/// For each letter whether it is a consonant: neither one of a, e, i, o, u nor a y
/// after a consonant.
fn consonants(word: &[char]) -> Vec<bool> {
    let mut all: Vec<bool> = Vec::with_capacity(word.len());
    for c in word {
        let is = match c {
            'a' | 'e' | 'i' | 'o' | 'u' => false,
            'y' => all.last().is_none_or(|before| !before),
            _ => true,
        };
        all.push(is);
    }
    all
}

/// How often a vowel is followed by a consonant.
fn measure(stem: &[char]) -> usize {
    let pairs = consonants(stem);
    pairs.windows(2).filter(|p| !p[0] && p[1]).count()
}

/// Whether a word ends with consonant, vowel, consonant (the last not w, x or y), or
/// is a vowel and a consonant.
fn ends_short(word: &[char]) -> bool {
    let kinds = consonants(word);
    match kinds[..] {
        [false, true] => true,
        [.., true, false, true] => !matches!(word.last(), Some('w' | 'x' | 'y')),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What NLTK's `PorterStemmer().stem` gives.
    #[test]
    fn words_have_the_stems_of_nltk() {
        let known = [
            ("caresses", "caress"),
            ("flies", "fli"),
            ("dies", "die"),
            ("mules", "mule"),
            ("denied", "deni"),
            ("died", "die"),
            ("agreed", "agre"),
            ("feed", "feed"),
            ("owned", "own"),
            ("humbled", "humbl"),
            ("sized", "size"),
            ("meeting", "meet"),
            ("hopping", "hop"),
            ("falling", "fall"),
            ("filing", "file"),
            ("siezing", "siez"),
            ("itemization", "item"),
            ("traditional", "tradit"),
            ("reference", "refer"),
            ("colonizer", "colon"),
            ("plotted", "plot"),
            ("enjoy", "enjoy"),
            ("happy", "happi"),
            ("geology", "geolog"),
            ("hopefully", "hope"),
            ("radically", "radic"),
            ("adoption", "adopt"),
            ("controll", "control"),
            ("skies", "sky"),
            ("succeed", "succeed"),
            ("as", "as"),
            ("yyy", "yyy"),
            ("s", "s"),
            ("naïveté", "naïveté"),
        ];
        for (word, expected) in known {
            assert_eq!(stem(word), expected, "{word}");
        }
    }
}
