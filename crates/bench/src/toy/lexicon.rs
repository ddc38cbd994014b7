//! Frozen features of words, from the company that they keep.
//!
//! With `n_ij` how often word `j` stands within five words of word `i`, the matrix
//! `max(0, ln(n_ij N / (n_i n_j)))` (PPMI; Church and Hanks 1990) is near
//! `U S U'`; a word has the features `u_i √S` (Levy and Goldberg 2014), scaled to
//! length one. A token has those of its word plus the mean of those of the two
//! tokens on either side.

use std::collections::HashMap;

use keyfold_kernels as kernels;

use crate::subspace;

/// Features of a token.
pub(crate) const FEATURES: usize = 128;
/// How far apart two words are neighbours.
const WINDOW: usize = 5;
/// How many tokens on either side belong to a token's features.
const AROUND: usize = 2;

/// Words with their features.
pub(crate) struct Lexicon {
    words: HashMap<String, u32>,
    /// `[words, FEATURES]`.
    vectors: Vec<f32>,
}

/// A text of known words.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Text {
    /// The number of each token's word.
    pub(crate) words: Vec<u32>,
    /// `[tokens, FEATURES]`.
    pub(crate) features: Vec<f32>,
}

impl Lexicon {
    /// Learns from `texts`; words across two texts are no neighbours.
    pub(crate) fn learn(texts: &[&str], seed: u64) -> Self {
        let mut words = HashMap::new();
        let tokens: Vec<Vec<u32>> = texts
            .iter()
            .map(|text| {
                let number = |word| {
                    let next = words.len() as u32;
                    *words.entry(word).or_insert(next)
                };
                split(text).map(number).collect()
            })
            .collect();
        let ppmi = Ppmi::new(&tokens, words.len());
        Self {
            vectors: ppmi.vectors(seed),
            words,
        }
    }

    /// How many words it knows.
    pub(crate) fn len(&self) -> usize {
        self.words.len()
    }

    /// The known words of `text` with their features.
    pub(crate) fn read(&self, text: &str) -> Text {
        let known = |word: String| self.words.get(&word).copied();
        let words: Vec<u32> = split(text).filter_map(known).collect();
        let vector = |word: u32| &self.vectors[word as usize * FEATURES..][..FEATURES];
        let mut features = Vec::with_capacity(words.len() * FEATURES);
        for (i, &word) in words.iter().enumerate() {
            let start = features.len();
            features.extend_from_slice(vector(word));
            let near = i.saturating_sub(AROUND)..(i + AROUND + 1).min(words.len());
            let share = 1.0 / (near.len() - 1).max(1) as f32;
            for j in near.filter(|&j| j != i) {
                let own = &mut features[start..];
                own.iter_mut()
                    .zip(vector(words[j]))
                    .for_each(|(x, v)| *x += share * v);
            }
        }
        Text { words, features }
    }
}

/// Words in lower case.
fn split(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|w| !w.is_empty())
        .map(str::to_lowercase)
}

/// The sparse symmetric matrix, row after row.
struct Ppmi {
    rows: Vec<Vec<(u32, f32)>>,
}

impl Ppmi {
    fn new(texts: &[Vec<u32>], words: usize) -> Self {
        let mut counts: HashMap<(u32, u32), f64> = HashMap::new();
        for text in texts {
            for (i, &word) in text.iter().enumerate() {
                for &other in &text[i + 1..(i + 1 + WINDOW).min(text.len())] {
                    *counts.entry((word, other)).or_default() += 1.0;
                    *counts.entry((other, word)).or_default() += 1.0;
                }
            }
        }
        let mut of_word = vec![0.0; words];
        for (&(word, _), n) in &counts {
            of_word[word as usize] += n;
        }
        let all: f64 = of_word.iter().sum();
        let mut rows = vec![Vec::new(); words];
        for ((word, other), n) in counts {
            let expected = of_word[word as usize] * of_word[other as usize] / all;
            let value = (n / expected).ln() as f32;
            if value > 0.0 {
                rows[word as usize].push((other, value));
            }
        }
        // Sums of floats shall not depend on the order of a hash map.
        rows.iter_mut().for_each(|row| row.sort_by_key(|&(j, _)| j));
        Self { rows }
    }

    /// Times one row.
    fn times(&self, out: &mut [f32], x: &[f32]) {
        for (out, row) in out.iter_mut().zip(&self.rows) {
            *out = row.iter().map(|&(j, value)| value * x[j as usize]).sum();
        }
    }

    /// `[words, FEATURES]`, zeros where there are fewer words than features.
    fn vectors(&self, seed: u64) -> Vec<f32> {
        let n = self.rows.len();
        let directions = subspace::leading(n, FEATURES, seed, |out, x| {
            let pairs = out.chunks_exact_mut(n).zip(x.chunks_exact(n));
            pairs.for_each(|(out, x)| self.times(out, x));
        });
        let mut vectors = vec![0.0; n * FEATURES];
        let mut product = vec![0.0; n];
        for (d, u) in directions.chunks_exact(n.max(1)).enumerate() {
            self.times(&mut product, u);
            // The singular value is the length of the product with its direction.
            let scale = kernels::norm(&product).sqrt();
            for (vector, u) in vectors.chunks_exact_mut(FEATURES).zip(u) {
                vector[d] = u * scale;
            }
        }
        kernels::normalize_rows(&mut vectors, FEATURES);
        vectors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_same_company_have_like_features() {
        let texts: Vec<String> = (0..30)
            .map(|i| {
                let (animal, food) = (["cat", "dog"][i % 2], ["bread", "cake"][i / 2 % 2]);
                format!("the {animal} sleeps on the mat. bake {food} in an oven now")
            })
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let lexicon = Lexicon::learn(&texts, 1);
        assert_eq!(lexicon.len(), 13);
        let alone = |word: &str| lexicon.read(word).features;
        let like = kernels::dot(&alone("cat"), &alone("DOG"));
        let unlike = kernels::dot(&alone("cat"), &alone("oven"));
        assert!(like > 0.8 && unlike < 0.4, "{like} {unlike}");
    }

    #[test]
    fn a_token_has_its_neighbours_in_its_features() {
        let lexicon = Lexicon::learn(&["a b c d e f g"], 1);
        let alone = |word: &str| lexicon.read(word).features;
        let text = lexicon.read("a b unknown c d");
        assert_eq!(text.words.len(), 4);
        // Of "b": a, c and d stand around it.
        let (a, b, c, d) = (alone("a"), alone("b"), alone("c"), alone("d"));
        for i in 0..FEATURES {
            let want = b[i] + (a[i] + c[i] + d[i]) / 3.0;
            assert!((text.features[FEATURES + i] - want).abs() < 1e-6);
        }
        assert!(lexicon.read("unknown").words.is_empty());
    }
}
