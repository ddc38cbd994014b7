//! Late interaction: `maxsim(Q, D) = Σ_i max_j <q_i, d_j>`.

use crate::dot::{assert_rows, dot};
use crate::lanes::{self, Best, Lanes, Rows};
use crate::vector::{Eight, simd};

/// A query, prepared to be compared with many documents.
///
/// Holds scratch memory, so one per thread.
#[derive(Debug, Clone)]
pub struct MaxSim {
    dim: usize,
    query: Lanes,
    best: Vec<f32>,
    /// Room for the rows that packed codes stand for.
    pub(crate) decoded: Vec<f32>,
    /// And for what these are multiplied with.
    pub(crate) scales: Vec<f32>,
}

impl MaxSim {
    /// Prepares `query` (`[nq, dim]`).
    ///
    /// # Panics
    /// When `query` is no whole number of rows.
    pub fn new(query: &[f32], dim: usize) -> Self {
        let nq = assert_rows(query.len(), dim, "MaxSim::new");
        let query = Lanes::new(query, dim, nq, dim, dim);
        Self {
            dim,
            best: vec![0.0; query.width()],
            query,
            decoded: Vec::new(),
            scales: Vec::new(),
        }
    }

    /// Length of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Sum over the query rows of the greatest dot product with any row of
    /// `doc_rows` (`[nd, dim]`). A query row adds nothing where there is no
    /// product, or none that is a number above `-inf`.
    ///
    /// # Panics
    /// When `doc_rows` is no whole number of rows.
    pub fn score(&mut self, doc_rows: &[f32]) -> f32 {
        self.start();
        self.meet(doc_rows, None, true);
        self.sum()
    }

    /// Forgets the document before.
    pub(crate) fn start(&mut self) {
        self.best.fill(f32::NEG_INFINITY);
    }

    /// Compares the query with some rows of a document, each multiplied with its
    /// scale; `far` as in [`Rows`].
    pub(crate) fn meet(&mut self, rows: &[f32], scales: Option<&[f32]>, far: bool) {
        let rows = Rows {
            rows,
            stride: self.dim,
            count: assert_rows(rows.len(), self.dim, "MaxSim: document"),
            places: None,
            far,
        };
        let best = Best {
            best: &mut self.best,
            scales,
        };
        keep_best(&self.query, rows, best);
    }

    /// Score of all rows that were met since the start.
    pub(crate) fn sum(&self) -> f32 {
        let best = self.query.results(&self.best);
        best.filter(|&best| best > f32::NEG_INFINITY).sum()
    }
}

simd! {
    fn keep_best(query: &Lanes, rows: Rows, best: Best) = keep_best_body;
}

#[inline(always)]
fn keep_best_body<V: Eight>(query: &Lanes, rows: Rows, mut best: Best) {
    lanes::product::<V, _>(rows, query, &mut best);
}

/// [`MaxSim::score`] of one query (`[nq, dim]`) and one document (`[nd, dim]`).
///
/// # Panics
/// When a slice is no whole number of rows.
pub fn maxsim(query: &[f32], doc: &[f32], dim: usize) -> f32 {
    MaxSim::new(query, dim).score(doc)
}

/// For every row of `query` (`[nq, dim]`), which row of `doc` (`[nd, dim]`) it
/// meets best (the first of equals), and their dot product. Empty when `doc`
/// is; `(0, 0.0)` where no product is a number above `-inf`.
///
/// # Panics
/// When a slice is no whole number of rows.
pub fn maxsim_alignment(query: &[f32], doc: &[f32], dim: usize) -> Vec<(usize, f32)> {
    assert_rows(query.len(), dim, "maxsim_alignment: query");
    assert_rows(doc.len(), dim, "maxsim_alignment: doc");
    if doc.is_empty() {
        return Vec::new();
    }
    let best = |q: &[f32]| {
        let mut best = (0, f32::NEG_INFINITY);
        for (j, d) in doc.chunks_exact(dim).enumerate() {
            let score = dot(q, d);
            if score > best.1 {
                best = (j, score);
            }
        }
        if best.1 == f32::NEG_INFINITY {
            (0, 0.0)
        } else {
            best
        }
    };
    query.chunks_exact(dim.max(1)).map(best).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;

    /// The definition, in f64.
    fn definition(query: &[f32], doc: &[f32], dim: usize) -> f64 {
        let product = |q: &[f32], d: &[f32]| -> f64 {
            q.iter()
                .zip(d)
                .map(|(&x, &y)| f64::from(x) * f64::from(y))
                .sum()
        };
        let best = |q: &[f32]| doc.chunks(dim).map(|d| product(q, d)).reduce(f64::max);
        query.chunks(dim).filter_map(best).sum()
    }

    fn numbers(n: usize) -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-1f32..1.0, n)
    }

    prop_compose! {
        fn query_and_document()(nq in 0usize..70, nd in 0usize..30, dim in 1usize..40)
            (query in numbers(nq * dim), doc in numbers(nd * dim), dim in Just(dim))
            -> (Vec<f32>, Vec<f32>, usize) {
            (query, doc, dim)
        }
    }

    proptest! {
        #[test]
        fn the_score_is_the_sum_of_the_best_products((query, doc, dim) in query_and_document()) {
            let want = definition(&query, &doc, dim);
            let mut prepared = MaxSim::new(&query, dim);
            let got = f64::from(prepared.score(&doc));
            prop_assert!((got - want).abs() < 1e-4, "{got} {want}");

            prepared.start();
            let rows = Rows { rows: &doc, stride: dim, count: doc.len() / dim, places: None, far: false };
            let best = Best { best: &mut prepared.best, scales: None };
            keep_best_body::<Portable>(&prepared.query, rows, best);
            let portable = f64::from(prepared.sum());
            prop_assert!((portable - want).abs() < 1e-4, "{portable} {want}");

            let aligned = maxsim_alignment(&query, &doc, dim);
            let sum: f64 = aligned.iter().map(|a| f64::from(a.1)).sum();
            prop_assert!((sum - want).abs() < 1e-4, "{sum} {want}");
            for (q, (row, score)) in query.chunks(dim).zip(aligned) {
                prop_assert_eq!(dot(q, &doc[row * dim..(row + 1) * dim]), score);
            }
        }

        #[test]
        fn a_document_does_not_leave_traces_for_the_next((query, doc, dim) in query_and_document()) {
            let mut prepared = MaxSim::new(&query, dim);
            let first = prepared.score(&doc);
            prepared.score(&vec![5.0; 3 * dim]);
            prop_assert_eq!(prepared.score(&doc), first);
        }

        #[test]
        fn nan_and_infinity_do_not_reach_the_score(
            (query, mut doc, dim) in query_and_document(),
            bad in prop_oneof![Just(f32::NAN), Just(f32::NEG_INFINITY), Just(f32::INFINITY)],
        ) {
            // A row of NaN, or of infinities that meet numbers of both signs.
            let want = maxsim(&query, &doc, dim);
            doc.extend(vec![bad; dim]);
            let got = maxsim(&query, &doc, dim);
            prop_assert!(!got.is_nan());
            if bad.is_nan() {
                prop_assert_eq!(got, want);
            }
        }
    }

    #[test]
    fn known_answers() {
        let query = [1.0, 0.0, 0.0, 1.0];
        let doc = [0.6, 0.8, -1.0, 0.0, 0.0, 0.5];
        assert!((maxsim(&query, &doc, 2) - 1.4).abs() < 1e-6);
        assert_eq!(maxsim_alignment(&query, &doc, 2), [(0, 0.6), (0, 0.8)]);
        // The best of negative products is negative.
        assert_eq!(maxsim(&[1.0, 0.0], &[-0.5, 0.0], 2), -0.5);
        assert_eq!(maxsim(&query, &[], 2), 0.0);
        assert_eq!(maxsim(&[], &doc, 2), 0.0);
        assert_eq!(maxsim(&[], &[], 0), 0.0);
        assert_eq!(maxsim_alignment(&query, &[], 2), []);
        assert_eq!(maxsim_alignment(&[1.0], &[f32::NAN], 1), [(0, 0.0)]);
    }

    #[test]
    #[should_panic(expected = "no whole number of rows")]
    fn a_torn_document_is_refused() {
        maxsim(&[1.0, 2.0], &[1.0, 2.0, 3.0], 2);
    }
}
