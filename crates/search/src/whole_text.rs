//! Comparing texts by a vector of each whole text and by their words (ColBERTer:
//! Hofstätter, Khattab, Althammer, Sertkan, Hanbury 2022).
//!
//! The first rows of a query and of a passage are the parts of one vector:
//! `score = sum over them of <q_i, d_i> + sum over the other query rows i of max over
//! the other passage rows j of <q_i, d_j>`. The query's rows carry the factors of both
//! parts. Where words must match exactly, the product of rows with different ids is
//! 0: then a query row adds the product with the row of its own id if that is
//! positive, and else 0 (or the product, where the passage has no other row).

use std::ops::Range;

use keyfold_core::Vectors;
use keyfold_kernels::{MaxSim, dot};

use crate::candidates::{Candidate, best_of, ranges, share};
use crate::codebook::Codebook;
use crate::error::SearchError;
use crate::filter::Allowed;
use crate::store::Segment;

/// Passages whose whole texts are compared together.
const RANGE: u32 = 1 << 12;

/// A query of such a model.
#[derive(Debug, Clone)]
pub(crate) struct WholeTextQuery {
    /// Rows of the whole text, on both sides.
    heads: usize,
    /// The ids of the query's other rows, where words must match exactly.
    ids: Option<Vec<u32>>,
    /// All rows, `[rows, dim]`.
    rows: Vectors,
}

/// What a thread needs to score passages.
pub(crate) struct Scorer {
    /// Compares word rows.
    words: MaxSim,
    scratch: Vec<f32>,
}

impl WholeTextQuery {
    /// None for the query of a model that has only MaxSim.
    pub(crate) fn new(segments: &[Segment], rows: &Vectors, exact_match: bool) -> Option<Self> {
        let heads = segments.first()?.whole_text_rows();
        if heads == 0 {
            return None;
        }
        let heads = heads.min(rows.rows());
        let ids = rows.ids().filter(|_| exact_match);
        Some(Self {
            heads,
            ids: ids.map(|ids| ids[heads..].to_vec()),
            rows: rows.clone(),
        })
    }

    /// Prepares the query for the rows of a codebook.
    pub(crate) fn scorer(&self, codebook: &Codebook) -> Scorer {
        let dim = self.rows.dim();
        let words = codebook.widen(&self.rows.as_slice()[self.heads * dim..]);
        Scorer {
            words: MaxSim::new(&words, codebook.width()),
            scratch: Vec::new(),
        }
    }

    /// The score of the passage with these rows, at least one, and their coded bytes.
    pub(crate) fn score(
        &self,
        scorer: &mut Scorer,
        segment: &Segment,
        rows: Range<usize>,
        packed: &[u8],
    ) -> Result<f32, SearchError> {
        let size = segment.codebook().bytes_per_row();
        let words = (rows.start + self.heads).min(rows.end)..rows.end;
        let (whole, packed) = packed.split_at((words.start - rows.start) * size);
        let whole = self.whole(segment.codebook(), whole, &mut scorer.scratch);
        Ok(whole
            + match &self.ids {
                None => {
                    let codes = segment.codes(words)?;
                    segment.codebook().maxsim(&mut scorer.words, codes, packed)
                }
                Some(ids) => {
                    let theirs = segment.row_ids(words)?;
                    self.exact(ids, segment.codebook(), theirs, packed, &mut scorer.scratch)
                }
            })
    }

    /// The part of the score that is of the whole texts, whose coded bytes these are.
    fn whole(&self, codebook: &Codebook, packed: &[u8], scratch: &mut Vec<f32>) -> f32 {
        let packed = packed.chunks_exact(codebook.bytes_per_row());
        let products = self.rows.iter().zip(packed);
        products
            .map(|(q, d)| product(codebook, q, d, scratch))
            .sum()
    }

    /// The part that is of the words, with their ids and coded bytes.
    fn exact(
        &self,
        ids: &[u32],
        codebook: &Codebook,
        theirs: &[u32],
        packed: &[u8],
        scratch: &mut Vec<f32>,
    ) -> f32 {
        let size = codebook.bytes_per_row();
        let mut sum = 0.0;
        for (i, id) in ids.iter().enumerate() {
            if let Some(j) = theirs.iter().position(|t| t == id) {
                let bytes = &packed[j * size..(j + 1) * size];
                let q = self.rows.row(self.heads + i);
                let product = product(codebook, q, bytes, scratch);
                sum += best_exact(product, theirs.len());
            }
        }
        sum
    }

    /// The `keep` passages whose whole texts are nearest to the query's, in any order.
    pub(crate) fn nearest(
        &self,
        segments: &[Segment],
        allowed: Option<&Allowed>,
        keep: usize,
        threads: usize,
    ) -> Result<Vec<Candidate>, SearchError> {
        let mut all = Vec::new();
        for (number, segment) in segments.iter().enumerate() {
            let mut ranges = ranges(segment, RANGE);
            let found = share(&mut ranges, threads, Vec::new, |scratch, range| {
                let mut scores = Vec::with_capacity(range.len());
                for local in range.clone() {
                    let rows = segment.rows(local)?;
                    if !rows.is_empty() {
                        let heads = rows.start..(rows.start + self.heads).min(rows.end);
                        let packed = segment.packed(heads)?;
                        scores.push((local, self.whole(segment.codebook(), packed, scratch)));
                    }
                }
                Ok(best_of(segment, number, scores.into_iter(), allowed, keep))
            })?;
            all.extend(found.into_iter().flatten());
        }
        Ok(all)
    }

    /// What the whole texts add, and for each of the query's word rows the row of a
    /// passage that it meets best, if any, counted after the passage's first rows, and
    /// what it adds. `passage` is `[rows, dim]`, with the ids of its rows.
    pub(crate) fn explain(&self, passage: &[f32], ids: &[u32]) -> (f32, Vec<(Option<usize>, f32)>) {
        let dim = self.rows.dim();
        let (whole, words) = passage.split_at((self.heads * dim).min(passage.len()));
        let pairs = self.rows.iter().zip(whole.chunks_exact(dim));
        let whole = pairs.map(|(q, d)| dot(q, d)).sum();
        let ids = ids.get(self.heads..).unwrap_or(&[]);
        let query = self.rows.iter().skip(self.heads).enumerate();
        let met = query.map(|(i, q)| match &self.ids {
            None => {
                let products = words.chunks_exact(dim).map(|d| dot(q, d)).enumerate();
                let best = products.max_by(|a, b| a.1.total_cmp(&b.1));
                best.map_or((None, 0.0), |(j, product)| (Some(j), product))
            }
            Some(wanted) => match ids.iter().position(|id| *id == wanted[i]) {
                Some(j) => {
                    let product = dot(q, &words[j * dim..(j + 1) * dim]);
                    (Some(j), best_exact(product, ids.len()))
                }
                None => (None, 0.0),
            },
        });
        (whole, met.collect())
    }

    /// Rows of the whole text.
    pub(crate) fn heads(&self) -> usize {
        self.heads
    }
}

/// What a query word adds whose product with the same word of a passage is this: the
/// products with all other words of the passage are 0.
fn best_exact(product: f32, words: usize) -> f32 {
    if words > 1 { product.max(0.0) } else { product }
}

fn product(codebook: &Codebook, query: &[f32], packed: &[u8], scratch: &mut Vec<f32>) -> f32 {
    // Rows of eight bits do not need their centroid.
    codebook.product(query, 0.0, packed, scratch)
}
