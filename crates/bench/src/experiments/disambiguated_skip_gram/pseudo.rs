//! Pseudo-words (Gale, Church and Yarowsky 1992): two or three unrelated words of a text
//! become one, so that it is known which of them each occurrence was.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::{BenchError, BenchOptions, Scale};

/// A word that stands for several.
pub(super) struct PseudoWord {
    pub(super) name: String,
    pub(super) parts: Vec<String>,
    /// Sentences with it, and which of its parts each of its places in them was.
    pub(super) places: Vec<(usize, Vec<usize>)>,
}

impl PseudoWord {
    /// How often it occurs.
    pub(super) fn count(&self) -> usize {
        self.places.iter().map(|(_, parts)| parts.len()).sum()
    }
}

/// A text with pseudo-words.
pub(super) struct Merged {
    pub(super) sentences: Vec<String>,
    pub(super) words: Vec<PseudoWord>,
}

/// How words are chosen to be merged.
pub(super) struct Choice {
    /// Least and most occurrences of a part.
    pub(super) counts: (usize, usize),
    /// Least letters of a part: short words mean little.
    pub(super) letters: usize,
    /// How many words of two parts, and as many of three.
    pub(super) words: usize,
}

impl Merged {
    /// Merges words of sentences; parts of one word occur about as often.
    pub(super) fn new(sentences: Vec<String>, choice: &Choice, seed: u64) -> Self {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for word in sentences
            .iter()
            .flat_map(|s| tokens(s))
            .filter(|t| is_word(t))
        {
            *counts.entry(word.to_lowercase()).or_default() += 1;
        }
        let (least, most) = choice.counts;
        let fits = |(word, count): &(String, usize)| {
            (least..=most).contains(count) && word.len() >= choice.letters
        };
        let mut all: Vec<(String, usize)> = counts.into_iter().filter(fits).collect();
        all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        // Neighbours in a list by frequency, a dozen at a time in random order.
        let mut rng = StdRng::seed_from_u64(seed ^ 0x95e0);
        all.chunks_mut(12).for_each(|some| some.shuffle(&mut rng));
        let mut groups: Vec<Vec<String>> = Vec::new();
        let mut rest = all.into_iter().map(|(word, _)| word);
        while groups.len() < 2 * choice.words {
            let parts: Vec<String> = rest.by_ref().take(2 + groups.len() % 2).collect();
            if parts.len() < 2 + groups.len() % 2 {
                break;
            }
            groups.push(parts);
        }
        Self::of(sentences, groups)
    }

    fn of(mut sentences: Vec<String>, groups: Vec<Vec<String>>) -> Self {
        let mut words: Vec<PseudoWord> = groups
            .into_iter()
            .map(|parts| PseudoWord {
                name: parts.concat(),
                parts,
                places: Vec::new(),
            })
            .collect();
        let mut part_of: HashMap<String, (usize, usize)> = HashMap::new();
        for (w, word) in words.iter().enumerate() {
            let parts = word.parts.iter().enumerate();
            part_of.extend(parts.map(|(p, part)| (part.clone(), (w, p))));
        }
        for (number, sentence) in sentences.iter_mut().enumerate() {
            let mut out = String::with_capacity(sentence.len());
            let mut seen: Vec<(usize, usize)> = Vec::new();
            for token in tokens(sentence) {
                match part_of.get(&token.to_lowercase()) {
                    Some(&(word, part)) => {
                        out.push_str(&words[word].name);
                        seen.push((word, part));
                    }
                    None => out.push_str(token),
                }
            }
            *sentence = out;
            let here: HashSet<usize> = seen.iter().map(|(word, _)| *word).collect();
            for word in here {
                let parts = seen.iter().filter(|(w, _)| *w == word).map(|(_, p)| *p);
                words[word].places.push((number, parts.collect()));
            }
        }
        Self { sentences, words }
    }
}

/// A sentence in runs of letters and digits, and of what is between.
fn tokens(sentence: &str) -> impl Iterator<Item = &str> {
    let mut rest = sentence;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let same = |c: char| c.is_alphanumeric() == first.is_alphanumeric();
        let end = rest.find(|c: char| !same(c)).unwrap_or(rest.len());
        let (token, more) = rest.split_at(end);
        rest = more;
        Some(token)
    })
}

fn is_word(token: &str) -> bool {
    token.chars().all(|c| c.is_ascii_alphabetic())
}

/// The sentences of the user's text, or of a made-up one.
pub(super) fn sentences(options: &BenchOptions) -> Result<Vec<String>, BenchError> {
    match &options.data {
        Some(path) => read(path),
        None => {
            let (topics, many) = match options.scale {
                Scale::Smoke => (6, 1200),
                _ => (12, 12_000),
            };
            Ok(made_up(topics, many, options.seed))
        }
    }
}

/// A text file, or all those with `.txt` in a folder: a sentence ends with `.`, `!` or
/// `?` before a space, or with its line.
fn read(path: &Path) -> Result<Vec<String>, BenchError> {
    let failed = |e: std::io::Error| BenchError::data(path, e.to_string());
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(failed)?;
        let found = entries.filter_map(|e| Some(e.ok()?.path()));
        files = found
            .filter(|p| p.extension().is_some_and(|e| e == "txt"))
            .collect();
        files.sort();
    }
    let mut all = Vec::new();
    for file in files {
        let text =
            std::fs::read_to_string(&file).map_err(|e| BenchError::data(&file, e.to_string()))?;
        for line in text.lines() {
            let ends = [". ", "! ", "? "];
            let mut rest = line.trim();
            while let Some(at) = ends.iter().filter_map(|end| rest.find(end)).min() {
                let (sentence, more) = rest.split_at(at + 1);
                all.push(sentence.to_owned());
                rest = more.trim_start();
            }
            all.push(rest.to_owned());
        }
    }
    all.retain(|s| !s.is_empty());
    if all.is_empty() {
        return Err(BenchError::data(
            path,
            "no text: give a text file, or a folder with .txt files",
        ));
    }
    Ok(all)
}

/// Sentences of ten words, eight of them of one topic.
fn made_up(topics: usize, many: usize, seed: u64) -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5e75);
    let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
    let name = |topic: usize, word: usize| -> String {
        let letters = [topic, 25, word / 26, word, topic + 7];
        letters.map(letter).iter().collect()
    };
    let mut sentence = |_| {
        let topic = rng.random_range(0..topics);
        let mut word = |i: usize| {
            let topic = match i % 5 {
                0 => rng.random_range(0..topics),
                _ => topic,
            };
            name(topic, rng.random_range(0..40))
        };
        let words: Vec<String> = (0..10).map(&mut word).collect();
        words.join(" ") + "."
    };
    (0..many).map(&mut sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_one_word_and_are_remembered() {
        let sentences = ["A Boat, bread's BREAD and boats", "no such", "bread"];
        let sentences = sentences.map(str::to_owned).to_vec();
        let groups = vec![vec!["boat".to_owned(), "bread".to_owned()]];
        let merged = Merged::of(sentences, groups);
        assert_eq!(
            merged.sentences,
            [
                "A boatbread, boatbread's boatbread and boats",
                "no such",
                "boatbread"
            ]
        );
        let word = &merged.words[0];
        assert_eq!(word.places, [(0, vec![0, 1, 1]), (2, vec![1])]);
        assert_eq!(word.count(), 4);
    }

    #[test]
    fn words_are_chosen_by_how_often_they_occur() {
        let choice = Choice {
            counts: (200, 2000),
            letters: 5,
            words: 3,
        };
        let merged = Merged::new(made_up(6, 1200, 1), &choice, 1);
        assert_eq!(merged.words.len(), 0, "each word occurs some 50 times");
        let choice = Choice {
            counts: (10, 2000),
            ..choice
        };
        let merged = Merged::new(made_up(6, 1200, 1), &choice, 1);
        let parts: Vec<usize> = merged.words.iter().map(|w| w.parts.len()).collect();
        assert_eq!(parts, [2, 3, 2, 3, 2, 3]);
        assert!(merged.words.iter().all(|w| w.count() > 60));
    }
}
