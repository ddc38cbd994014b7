//! Documents as numbers of words.

use std::collections::HashMap;

use rand::Rng;
use rand::rngs::SmallRng;

use super::config::Config;
use crate::sampled::Vocabulary;

/// Stands between words that are not neighbours, since one between them is unknown.
pub(super) const GAP: u32 = u32::MAX;

/// The words of a text, in lower case; what is neither letter nor digit parts them.
pub(super) fn words(text: &str) -> impl Iterator<Item = String> {
    let parts = text.split(|c: char| !c.is_alphanumeric());
    parts.filter(|w| !w.is_empty()).map(str::to_lowercase)
}

/// Words, and pairs of words, that can be predicted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Known {
    /// Words, then pairs of words as `first second`.
    pub(super) outputs: Vocabulary,
    /// How many are words.
    pub(super) words: usize,
    pairs: HashMap<(u32, u32), u32>,
    /// Probability with which an occurrence is kept.
    keep: Vec<f32>,
}

impl Known {
    /// Takes words and pairs that occur often enough; none is an error that says so.
    pub(super) fn learn<'a>(
        texts: impl Iterator<Item = &'a str> + Clone,
        config: &Config,
    ) -> Result<Self, String> {
        let mut counts: HashMap<String, u64> = HashMap::new();
        for word in texts.clone().flat_map(words) {
            *counts.entry(word).or_default() += 1;
        }
        let (seen, most) = (counts.len(), counts.values().copied().max().unwrap_or(0));
        counts.retain(|_, count| *count >= config.min_count);
        if counts.is_empty() {
            return Err(format!(
                "no word occurs {} times: the texts have {seen} different words, the most \
                 frequent {most} times; give more text or a lower min_count",
                config.min_count
            ));
        }
        let words = Vocabulary::new(counts);
        let mut pairs: HashMap<(u32, u32), u64> = HashMap::new();
        if config.pairs() {
            for text in texts {
                let numbers = numbers(&words, text);
                for pair in numbers.windows(2) {
                    if pair[0] != GAP && pair[1] != GAP {
                        *pairs.entry((pair[0], pair[1])).or_default() += 1;
                    }
                }
            }
            pairs.retain(|_, count| *count >= config.bigram_min_count.max(1));
        }
        let name = |&(a, b): &(u32, u32)| format!("{} {}", words.word(a), words.word(b));
        let mut entries: Vec<(String, u64)> = (0..words.len())
            .map(|i| (words.word(i as u32).to_owned(), words.counts()[i]))
            .collect();
        let mut more: Vec<(String, u64)> = pairs.iter().map(|(p, c)| (name(p), *c)).collect();
        more.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        entries.append(&mut more);
        Ok(Self::of(Vocabulary::in_order(entries), config))
    }

    /// From what is predicted: words, then pairs.
    pub(super) fn of(outputs: Vocabulary, config: &Config) -> Self {
        let is_word = |&i: &u32| !outputs.word(i).contains(' ');
        let words = (0..outputs.len() as u32).take_while(is_word).count();
        let mut pairs = HashMap::new();
        for number in words as u32..outputs.len() as u32 {
            let parts = outputs.word(number).split_once(' ');
            let of = |w: &str| outputs.number(w);
            if let Some((Some(a), Some(b))) = parts.map(|(a, b)| (of(a), of(b))) {
                pairs.insert((a, b), number);
            }
        }
        let total: u64 = outputs.counts()[..words].iter().sum();
        let keep = |&count: &u64| {
            if config.subsample == 0.0 {
                return 1.0;
            }
            let share = count as f64 / total.max(1) as f64 / config.subsample;
            // Of the program of word2vec: sqrt(t / f) + t / f.
            (1.0 / share.sqrt() + 1.0 / share).min(1.0) as f32
        };
        let keep = outputs.counts().iter().map(keep).collect();
        Self {
            outputs,
            words,
            pairs,
            keep,
        }
    }

    /// The known words of a text, with [`GAP`] for each run of unknown ones.
    pub(super) fn numbers(&self, text: &str) -> Vec<u32> {
        numbers(&self.outputs, text)
    }

    /// What is to be predicted at a place: the word, and the pair that it begins.
    pub(super) fn at(&self, numbers: &[u32], place: usize) -> impl Iterator<Item = u32> {
        let word = numbers[place];
        let pair = match numbers.get(place + 1) {
            Some(&next) if !self.pairs.is_empty() => self.pairs.get(&(word, next)).copied(),
            _ => None,
        };
        [(word != GAP).then_some(word), pair].into_iter().flatten()
    }

    /// The logarithm of each output's share of what is predicted.
    pub(super) fn log_shares(&self) -> Vec<f32> {
        let kept = self.outputs.counts().iter().zip(&self.keep);
        let kept: Vec<f64> = kept.map(|(&n, &keep)| n as f64 * f64::from(keep)).collect();
        let total: f64 = kept.iter().sum();
        kept.iter().map(|n| (n / total).ln() as f32).collect()
    }

    /// Whether an occurrence is kept this time.
    pub(super) fn keeps(&self, output: u32, rng: &mut SmallRng) -> bool {
        let keep = self.keep[output as usize];
        keep >= 1.0 || rng.random::<f32>() < keep
    }
}

fn numbers(words: &Vocabulary, text: &str) -> Vec<u32> {
    let mut numbers = Vec::new();
    for word in self::words(text) {
        match words.number(&word) {
            Some(number) => numbers.push(number),
            None if numbers.last().is_some_and(|last| *last != GAP) => numbers.push(GAP),
            None => {}
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(min_count: u64) -> Config {
        Config {
            min_count,
            bigram_min_count: 2,
            ..Config::default()
        }
    }

    #[test]
    fn frequent_words_and_pairs_are_known_and_unknown_words_part_pairs() {
        let texts = ["Red boats, red boats!", "a red boat; boats red"];
        let known = Known::learn(texts.iter().copied(), &config(2)).unwrap();
        assert_eq!(known.words, 2);
        // The comma and the semicolon part no words.
        assert_eq!(known.outputs.word(2), "boats red");
        assert_eq!(known.outputs.number("red boat"), None, "it occurs once");
        assert_eq!(known.outputs.number("red boats"), Some(3));
        assert_eq!(known.outputs.len(), 4);
        let numbers = known.numbers("red boats huge red x y");
        assert_eq!(numbers, [0, 1, GAP, 0, GAP]);
        let at = |place| known.at(&numbers, place).collect::<Vec<u32>>();
        assert_eq!(at(0), [0, 3]);
        assert_eq!(at(1), [1]);
        assert_eq!(at(2), [0; 0]);
        assert_eq!(Known::of(known.outputs.clone(), &config(2)), known);
    }

    #[test]
    fn too_little_text_is_told_with_numbers() {
        let error = Known::learn(["one two two"].into_iter(), &config(3)).unwrap_err();
        assert!(error.contains("2 different words") && error.contains("min_count"));
    }

    #[test]
    fn shares_are_of_what_is_kept() {
        let text = format!("{}{}", "the ".repeat(900), "boat ".repeat(100));
        let settings = Config {
            subsample: 0.0,
            bigrams: false,
            ..config(1)
        };
        let known = Known::learn([&text[..]].into_iter(), &settings).unwrap();
        let shares: Vec<f32> = known.log_shares().iter().map(|x| x.exp()).collect();
        assert!((shares[0] - 0.9).abs() < 1e-6 && (shares[1] - 0.1).abs() < 1e-6);
        let fewer = Config {
            subsample: 0.1,
            ..settings
        };
        let fewer = Known::of(known.outputs, &fewer).log_shares();
        assert!(fewer[0].exp() < 0.9 && fewer[1].exp() > 0.1, "{fewer:?}");
    }

    #[test]
    fn frequent_words_are_passed_over_more_often() {
        let text = format!("{}{}", "the ".repeat(900), "boat ".repeat(100));
        let settings = Config {
            subsample: 0.1,
            ..config(1)
        };
        let known = Known::learn([&text[..]].into_iter(), &settings).unwrap();
        let share = 0.1f32 / 0.9;
        assert!((known.keep[0] - (share.sqrt() + share)).abs() < 1e-6);
        assert_eq!(known.keep[1], 1.0);
        let never = Config {
            subsample: 0.0,
            ..config(1)
        };
        let known = Known::of(known.outputs, &never);
        assert!(known.keep.iter().all(|k| *k >= 1.0), "0 turns it off");
    }
}
