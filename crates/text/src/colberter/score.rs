//! A text as the model sees it, and the score of two of them.

use std::ops::Range;

use keyfold_core::Vectors;
use keyfold_kernels::dot;

use super::ColberterEncoder;
use super::words::Word;

/// What a word of a document that is not there has, in the authors' scorer.
const ABSENT: f32 = -1000.0;

/// A word of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct WholeWord {
    /// Lower-cased or stemmed.
    pub text: String,
    /// Hash of the text.
    pub id: u32,
    /// Where it stands first, in bytes; empty for tokens that stand for no text.
    pub span: Range<usize>,
    /// What its vector was multiplied with; none in queries and in models without
    /// gates.
    pub gate: Option<f32>,
    /// Its vector.
    pub vector: Vec<f32>,
}

impl WholeWord {
    /// Whether the model removes it from its document.
    pub fn is_removed(&self) -> bool {
        self.gate.is_some_and(|gate| gate <= 0.0)
    }
}

/// A text: its own vector and its words in the order in which they come.
#[derive(Debug, Clone, PartialEq)]
pub struct BagOfWords {
    /// The vector of the whole text.
    pub whole: Vec<f32>,
    /// Its words.
    pub words: Vec<WholeWord>,
}

impl BagOfWords {
    pub(super) fn new(
        whole: Vec<f32>,
        words: &[Word],
        rows: &Vectors,
        gates: Option<&[f32]>,
    ) -> Self {
        let words = words.iter().zip(rows.iter()).enumerate();
        Self {
            whole,
            words: words
                .map(|(i, (word, row))| WholeWord {
                    text: word.text.clone(),
                    id: word.id,
                    span: word.span.clone(),
                    gate: gates.map(|gates| gates[i]),
                    vector: row.to_vec(),
                })
                .collect(),
        }
    }

    /// Without the words that the model removes, as a document is indexed.
    pub fn without_removed(mut self) -> Self {
        self.words.retain(|word| !word.is_removed());
        self
    }
}

/// How well a document answers a query, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct PairScore {
    /// `s whole + (1 - s) words`.
    pub total: f32,
    /// The product of the vectors of the whole texts.
    pub whole: f32,
    /// The sum over the query's words of the best product with a word of the document.
    pub words: f32,
    /// All products, `[query words, document words]`.
    pub products: Vec<f32>,
}

impl ColberterEncoder {
    /// The score of a pair over all words that are given, as the authors' scorer
    /// computes it: words that the model removes count unless they were left out
    /// ([`BagOfWords::without_removed`]). With `exact`, words meet only the same word;
    /// others give 0. A document without any word gives -1000 for each of the query's.
    pub fn score(&self, query: &BagOfWords, document: &BagOfWords, exact: bool) -> PairScore {
        let whole = dot(&query.whole, &document.whole);
        let mut products = Vec::with_capacity(query.words.len() * document.words.len());
        let mut words = 0.0;
        for q in &query.words {
            let met = document.words.iter().map(|d| match exact && q.id != d.id {
                true => 0.0,
                false => dot(&q.vector, &d.vector),
            });
            let first = products.len();
            products.extend(met);
            words += products[first..]
                .iter()
                .copied()
                .reduce(f32::max)
                .unwrap_or(ABSENT);
        }
        PairScore {
            total: self.merger * whole + (1.0 - self.merger) * words,
            whole,
            words,
            products,
        }
    }
}
