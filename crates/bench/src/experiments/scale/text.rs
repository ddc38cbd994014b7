//! Passages made of real sentences put together anew: most of a passage comes
//! from one place of one text, the rest from anywhere, so that words keep their
//! neighbours and topics. A query is some words of one sentence.

use std::path::{Path, PathBuf};

use keyfold_core::Progress;
use keyfold_data::{ReadOptions, WalkOptions, estimate_tokens, read, walk};
use rand::Rng;
use rand::rngs::StdRng;

use crate::store::Text;
use crate::{BenchError, BenchOptions};

/// Bytes of text that are taken from the user's folder, at most.
const MOST_TEXT: usize = 64 << 20;

/// The sentences of every text, in order.
pub(in crate::experiments) type Sources = Vec<Vec<String>>;

/// Sentences of the user's data, or of the project's own.
pub(in crate::experiments) fn sources(
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Sources, BenchError> {
    match &options.data {
        Some(folder) => sentences_below(folder, progress),
        None => Ok(fixture()),
    }
}

/// Sentences of the texts below a folder; passages of one file stay together.
fn sentences_below(folder: &Path, progress: &dyn Progress) -> Result<Sources, BenchError> {
    let roots: Vec<PathBuf> = vec![folder.to_owned()];
    let files = walk(&roots, &WalkOptions::default())
        .map_err(|e| BenchError::data(folder, e.to_string()))?;
    let mut sources = Sources::new();
    let mut size = 0;
    progress.start("read text", "files", None);
    for entry in files.flatten() {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        progress.advance(1);
        let Ok(document) = read(&entry, &ReadOptions::default()) else {
            continue;
        };
        let texts = document.passages.iter().map(|p| p.text.as_str());
        let sentences: Vec<String> = texts.flat_map(sentences).collect();
        size += sentences.iter().map(String::len).sum::<usize>();
        if !sentences.is_empty() {
            sources.push(sentences);
        }
        if size > MOST_TEXT {
            break;
        }
    }
    progress.finish();
    if sources.is_empty() {
        return Err(BenchError::data(
            folder,
            "no text below it; name a folder with prose",
        ));
    }
    Ok(sources)
}

/// Sentences long enough to say something.
fn sentences(text: &str) -> impl Iterator<Item = String> + '_ {
    let sentence = |s: &str| s.split_whitespace().collect::<Vec<_>>().join(" ");
    text.split_inclusive(['.', '?', '!', '\n'])
        .map(sentence)
        .filter(|s| s.split(' ').count() >= 4)
}

fn fixture() -> Sources {
    let documents = include_str!("../../../fixtures/mini/documents.jsonl");
    documents
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .filter_map(|d| d["text"].as_str().map(|t| sentences(t).collect::<Vec<_>>()))
        .filter(|s| !s.is_empty())
        .collect()
}

fn any<'a>(sources: &'a Sources, rng: &mut StdRng) -> &'a [String] {
    // The callers have checked that there are sources, and none of them is empty.
    &sources[rng.random_range(0..sources.len())]
}

/// About so many tokens of sentences from one place, and now and then one from anywhere.
pub(in crate::experiments) fn passage(sources: &Sources, tokens: usize, rng: &mut StdRng) -> Text {
    let source = any(sources, rng);
    let mut at = rng.random_range(0..source.len());
    let mut body = String::new();
    while estimate_tokens(&body) < tokens {
        let sentence = if rng.random_bool(0.3) {
            let other = any(sources, rng);
            &other[rng.random_range(0..other.len())]
        } else {
            at = (at + 1) % source.len();
            &source[at]
        };
        body.push_str(sentence);
        body.push(' ');
        if body.len() > 4 * 8 * tokens {
            break;
        }
    }
    Text {
        heading: String::new(),
        body,
    }
}

/// Four to ten neighbouring words of a sentence.
pub(in crate::experiments) fn query(sources: &Sources, rng: &mut StdRng) -> String {
    let source = any(sources, rng);
    let sentence = &source[rng.random_range(0..source.len())];
    let words: Vec<&str> = sentence.split(' ').collect();
    let count = rng.random_range(4..=10).min(words.len());
    let from = rng.random_range(0..=words.len() - count);
    words[from..from + count].join(" ")
}
