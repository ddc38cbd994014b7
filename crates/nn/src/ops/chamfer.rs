//! The chamfer similarity of late interaction (Khattab and Zaharia: ColBERT, 2020, there
//! called MaxSim), of every query with every document.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::Tensor;
use keyfold_kernels::{self as kernels, Matrix, learn};
use rayon::prelude::*;

use super::operator::{Array, Operator, apply, cut};

/// Document rows whose scores are in memory at once, for each document in work.
const CHUNK: usize = 32;

/// Ids of query rows, and of document rows.
type Ids = (Arc<[u32]>, Arc<[u32]>);

/// No document row is the best.
const NONE: u32 = u32::MAX;

/// The rows of several texts, one text after the other.
#[derive(Debug, Clone)]
pub struct Side<'a> {
    /// `[rows of all texts, width]`.
    pub rows: Tensor<2>,
    /// The first row of each text, and at the end the number of rows.
    pub starts: &'a [usize],
}

/// `[queries, documents]`: `Σᵢ maxⱼ qᵢ · dⱼ` over the rows `i` of a query and `j` of a
/// document; 0 for a document without rows. The gradient goes to the best row alone, the
/// first of equals.
///
/// # Panics
/// When the widths differ, or `starts` does not fit the rows.
pub fn chamfer(queries: Side, documents: Side) -> Tensor<2> {
    run(queries, documents, None)
}

/// [`chamfer`] where the product of rows with different ids is 0: a query row without its id
/// among a document's adds 0, and so does one whose product there is below 0 when the
/// document has other rows (ColBERTer's exact match of words, Hofstätter et al. 2022).
///
/// # Panics
/// As [`chamfer`], or when there is not an id for each row.
pub fn chamfer_equal(
    queries: Side,
    query_ids: &[u32],
    documents: Side,
    document_ids: &[u32],
) -> Tensor<2> {
    assert_eq!(
        query_ids.len(),
        queries.rows.dims()[0],
        "an id for each row"
    );
    assert_eq!(
        document_ids.len(),
        documents.rows.dims()[0],
        "an id for each row"
    );
    let ids = (Arc::from(query_ids), Arc::from(document_ids));
    run(queries, documents, Some(ids))
}

fn run(queries: Side, documents: Side, ids: Option<Ids>) -> Tensor<2> {
    let chamfer = Chamfer {
        q_starts: queries.starts.into(),
        d_starts: documents.starts.into(),
        ids,
    };
    apply(chamfer, [queries.rows.into(), documents.rows.into()])
}

#[derive(Clone, Debug)]
struct Chamfer {
    q_starts: Arc<[usize]>,
    d_starts: Arc<[usize]>,
    ids: Option<Ids>,
}

#[derive(Clone, Debug)]
struct Saved {
    q: Array,
    d: Array,
    /// For each document and query row the best document row (of all rows), or [`NONE`].
    best: Arc<[u32]>,
}

impl Chamfer {
    fn texts(starts: &[usize]) -> usize {
        starts.len().saturating_sub(1)
    }

    /// Of every query row the best row of document `document`, and their product.
    fn best(&self, q: &Array, d: &Array, document: usize) -> (Vec<u32>, Vec<f32>) {
        let [rows, width] = q.sizes();
        let range = self.d_starts[document]..self.d_starts[document + 1];
        let range_len = range.len();
        let (mut at, mut most) = (vec![NONE; rows], vec![f32::NEG_INFINITY; rows]);
        if let Some((q_ids, d_ids)) = &self.ids {
            let mut places: HashMap<u32, Vec<usize>> = HashMap::new();
            for j in range {
                places.entry(d_ids[j]).or_default().push(j);
            }
            let row = |x: &Array, i: usize| x.numbers()[i * width..][..width].to_vec();
            for i in 0..rows {
                for &j in places.get(&q_ids[i]).into_iter().flatten() {
                    let score = [kernels::dot(&row(q, i), &row(d, j))];
                    learn::keep_best(&mut most[i..=i], &mut at[i..=i], &score, j as u32);
                }
            }
        } else {
            let mut scores = vec![0.0; CHUNK.min(range.len()) * rows];
            for first in range.clone().step_by(CHUNK) {
                let chunk = CHUNK.min(range.end - first);
                let part = &d.numbers()[first * width..(first + chunk) * width];
                let part = Matrix::strided(part, chunk, width, width);
                let q = Matrix::strided(q.numbers(), rows, width, width);
                kernels::product(&mut scores, rows, part, q.t(), 1.0, false, 1);
                for (j, scores) in (first..first + chunk).zip(scores.chunks_exact(rows.max(1))) {
                    learn::keep_best(&mut most, &mut at, scores, j as u32);
                }
            }
        }
        let others = self.ids.is_some() && range_len > 1;
        for (most, at) in most.iter_mut().zip(&mut at) {
            if *at == NONE || (others && *most < 0.0) {
                *most = 0.0;
                *at = NONE;
            }
        }
        (at, most)
    }
}

impl Operator<2> for Chamfer {
    type Saved = Saved;

    fn forward(&self, [q, d]: [Array; 2]) -> (Array, Saved) {
        let [queries, documents] = [&self.q_starts, &self.d_starts].map(|s| Self::texts(s));
        let found: Vec<(Vec<u32>, Vec<f32>)> = (0..documents)
            .into_par_iter()
            .map(|document| self.best(&q, &d, document))
            .collect();
        let mut out = vec![0.0; queries * documents];
        for (document, (_, most)) in found.iter().enumerate() {
            for (query, rows) in self.q_starts.windows(2).enumerate() {
                out[query * documents + document] = most[rows[0]..rows[1]].iter().sum();
            }
        }
        let best = found.into_iter().flat_map(|(at, _)| at).collect();
        (Array::new(out, [queries, documents]), Saved { q, d, best })
    }

    fn backward(&self, saved: Saved, g: Array, wanted: [bool; 2]) -> [Option<Array>; 2] {
        let Saved { q, d, best } = saved;
        let ([q_rows, width], [d_rows, _]) = (q.sizes(), d.sizes());
        let documents = Self::texts(&self.d_starts);
        let (g, q, d) = (g.numbers(), q.numbers(), d.numbers());
        // Each query row's part of each score, by query or by document.
        let add = |out: &mut [f32], factor: f32, row: &[f32]| {
            let pairs = out.iter_mut().zip(row);
            pairs.for_each(|(out, x)| *out += factor * x);
        };
        let d_q = wanted[0].then(|| {
            let mut out = vec![0.0; q_rows * width];
            let lengths = self.q_starts.windows(2).map(|t| (t[1] - t[0]) * width);
            let texts = cut(&mut out, lengths).into_par_iter().enumerate();
            texts.for_each(|(query, out)| {
                let rows = out.chunks_exact_mut(width.max(1)).enumerate();
                for (i, out) in rows {
                    for document in 0..documents {
                        let row = best[document * q_rows + self.q_starts[query] + i];
                        if row != NONE {
                            let other = &d[row as usize * width..][..width];
                            add(out, g[query * documents + document], other);
                        }
                    }
                }
            });
            Array::new(out, [q_rows, width])
        });
        let d_d = wanted[1].then(|| {
            let mut out = vec![0.0; d_rows * width];
            let lengths = self.d_starts.windows(2).map(|t| (t[1] - t[0]) * width);
            let texts = cut(&mut out, lengths).into_par_iter().enumerate();
            texts.for_each(|(document, out)| {
                for (query, rows) in self.q_starts.windows(2).enumerate() {
                    let factor = g[query * documents + document];
                    for i in rows[0]..rows[1] {
                        let row = best[document * q_rows + i];
                        if row != NONE {
                            let at = (row as usize - self.d_starts[document]) * width;
                            add(&mut out[at..at + width], factor, &q[i * width..][..width]);
                        }
                    }
                }
            });
            Array::new(out, [d_rows, width])
        });
        [d_q, d_d]
    }
}
