//! Latent semantic analysis (Deerwester et al. 1990): single vectors for texts
//! without a trained model, so that experiments need no download.
//!
//! With `A` the matrix of texts by words, `a = (1 + ln tf) ln(N / df)`, rows of
//! length one, `A ≈ U S V'`: a text with the words `a` gets `a V`, scaled to
//! length one. `U` comes from subspace iteration on `A A'`, so it is for a few
//! thousand texts.

use std::collections::HashMap;
use std::ops::Range;

use keyfold_core::{EncodeError, Encoder, EncoderIdentity, Role, Vectors, VectorsError};
use keyfold_kernels as kernels;

use crate::subspace;

/// Most texts, since every pair of them is compared.
pub(crate) const MOST_TEXTS: usize = 6000;

/// The words of a text by number, with their weights.
type Row = Vec<(usize, f32)>;

/// Gives a text the place of its words in the space of some other texts.
pub(crate) struct Lsa {
    identity: EncoderIdentity,
    /// Number of a word and its `ln(N / df)`.
    words: HashMap<String, (usize, f32)>,
    /// `[words, dim]`.
    v: Vec<f32>,
}

impl Lsa {
    /// Learns from `texts`, no more than [`MOST_TEXTS`].
    pub(crate) fn learn(texts: &[String], dim: usize, seed: u64, threads: usize) -> Self {
        let n = texts.len();
        let words = vocabulary(texts);
        let rows: Vec<Row> = texts.iter().map(|text| row(&words, text)).collect();
        let dim = dim.min(n.saturating_sub(1)).max(1);
        let u = directions(&rows, words.len(), dim, seed, threads);
        let mut v = vec![0.0; words.len() * dim];
        for (text, row) in rows.iter().enumerate() {
            for &(word, weight) in row {
                let v = &mut v[word * dim..(word + 1) * dim];
                for (v, u) in v.iter_mut().zip(u.chunks_exact(n)) {
                    *v += weight * u[text];
                }
            }
        }
        // A'U is V S: every column gets length one.
        for d in 0..dim {
            let norm = v
                .iter()
                .skip(d)
                .step_by(dim)
                .map(|x| x * x)
                .sum::<f32>()
                .sqrt();
            let scale = if norm > 1e-6 { 1.0 / norm } else { 0.0 };
            v.iter_mut().skip(d).step_by(dim).for_each(|x| *x *= scale);
        }
        Self {
            identity: EncoderIdentity {
                name: format!("LSA {dim}"),
                hash: format!("lsa {dim} {n} {seed}"),
                dim,
            },
            words,
            v,
        }
    }
}

/// Cosines of TF-IDF of every query with every text, `[queries][texts]`.
pub(crate) fn tf_idf(texts: &[String], queries: &[&str]) -> Vec<Vec<f32>> {
    let words = vocabulary(texts);
    let rows: Vec<Row> = texts.iter().map(|text| row(&words, text)).collect();
    let mut dense = vec![0.0; words.len()];
    let mut scores = |query: &&str| {
        dense.fill(0.0);
        row(&words, query)
            .into_iter()
            .for_each(|(word, w)| dense[word] = w);
        let product = |row: &Row| row.iter().map(|&(word, w)| w * dense[word]).sum();
        rows.iter().map(product).collect()
    };
    queries.iter().map(&mut scores).collect()
}

/// The words of texts, each with its number and `ln(N / df)`.
fn vocabulary(texts: &[String]) -> HashMap<String, (usize, f32)> {
    let n = texts.len() as f32;
    let mut frequency: HashMap<String, usize> = HashMap::new();
    for text in texts {
        for word in counts(text).into_keys() {
            *frequency.entry(word).or_default() += 1;
        }
    }
    let mut names: Vec<(String, usize)> = frequency.into_iter().collect();
    names.sort();
    let number = |(i, (word, df)): (usize, (String, usize))| (word, (i, (n / df as f32).ln()));
    names.into_iter().enumerate().map(number).collect()
}

impl Encoder for Lsa {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn encode(&self, texts: &[&str], _: Role) -> Result<Vec<Vectors>, EncodeError> {
        let dim = self.identity.dim;
        let one = |text: &&str| {
            let mut place = vec![0.0; dim];
            for (word, weight) in row(&self.words, text) {
                let v = &self.v[word * dim..(word + 1) * dim];
                place.iter_mut().zip(v).for_each(|(p, v)| *p += weight * v);
            }
            // A text without a known word has no place.
            if place.iter().all(|x| *x == 0.0) {
                place.clear();
            }
            Vectors::new(dim, place).map(Vectors::normalized)
        };
        let bad = |source: VectorsError| EncodeError::BadOutput {
            model: self.identity.name.clone(),
            source,
        };
        texts.iter().map(|text| one(text).map_err(bad)).collect()
    }

    fn spans(&self, text: &str, role: Role) -> Result<Vec<Option<Range<usize>>>, EncodeError> {
        let rows = self.encode(&[text], role)?.first().map_or(0, Vectors::rows);
        Ok(vec![None; rows])
    }
}

/// How often a text has each word, in lower case without a common ending.
fn counts(text: &str) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    let lower = text.to_lowercase();
    for word in lower
        .split(|c: char| !c.is_alphanumeric())
        .filter(|w| !w.is_empty())
    {
        let endings = ["ingly", "edly", "ing", "ed", "es", "s", "ly"];
        let stem = endings.iter().find_map(|e| word.strip_suffix(e));
        let stem = stem.filter(|s| s.chars().count() >= 3).unwrap_or(word);
        *counts.entry(stem.to_owned()).or_default() += 1;
    }
    counts
}

/// The known words of a text, of length one together.
fn row(words: &HashMap<String, (usize, f32)>, text: &str) -> Row {
    let mut row: Row = counts(text)
        .into_iter()
        .filter_map(|(word, tf)| {
            let &(number, idf) = words.get(&word)?;
            Some((number, (1.0 + (tf as f32).ln()) * idf))
        })
        .collect();
    row.sort_by_key(|&(number, _)| number);
    let norm = row.iter().map(|(_, w)| w * w).sum::<f32>().sqrt();
    if norm > 0.0 {
        row.iter_mut().for_each(|(_, w)| *w /= norm);
    }
    row
}

/// The `dim` leading left singular vectors, `[dim, texts]`.
fn directions(rows: &[Row], words: usize, dim: usize, seed: u64, threads: usize) -> Vec<f32> {
    let n = rows.len();
    let gram = gram(rows, words);
    subspace::leading(n, dim, seed, |out, x| {
        // The product of all texts with each other is symmetric.
        kernels::matmul_nt(out, x, &gram, x.len() / n.max(1), n, n, threads);
    })
}

/// `A A'`, `[texts, texts]`.
fn gram(rows: &[Row], words: usize) -> Vec<f32> {
    let n = rows.len();
    let mut gram = vec![0.0; n * n];
    let mut dense = vec![0.0; words];
    for (i, row) in rows.iter().enumerate() {
        row.iter().for_each(|&(word, w)| dense[word] = w);
        for (j, other) in rows.iter().enumerate() {
            gram[i * n + j] = other.iter().map(|&(word, w)| w * dense[word]).sum();
        }
        row.iter().for_each(|&(word, _)| dense[word] = 0.0);
    }
    gram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_keep_the_same_company_come_together() {
        let topics = [
            ["boat", "sail", "harbour", "mast"],
            ["bread", "oven", "flour", "yeast"],
        ];
        let mut texts = Vec::new();
        for topic in topics {
            for i in 0..4 {
                for j in 0..i {
                    texts.push(format!("{} {}", topic[i], topic[j]));
                }
            }
        }
        let lsa = Lsa::learn(&texts, 2, 1, 1);
        let place = |text: &str| lsa.encode(&[text], Role::Query).unwrap().remove(0);
        let cosine = |a: &str, b: &str| {
            let (a, b) = (place(a), place(b));
            kernels::dot(a.row(0), b.row(0))
        };
        // No text has both words of the pair alone.
        assert!(
            cosine("boat", "masts") > 0.99,
            "{}",
            cosine("boat", "masts")
        );
        assert!(
            cosine("boat", "yeast").abs() < 0.1,
            "{}",
            cosine("boat", "yeast")
        );
        assert!(place("unknown").is_empty());
    }
}
