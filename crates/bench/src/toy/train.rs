//! Training a tower on pairs of texts.
//!
//! With `s_qd` the mean over the rows of query `q` of the greatest product with a
//! row of document `d`, the loss of a batch is
//! `-Σ_q ln(exp(s_qq / τ) / Σ_d exp(s_qd / τ)) / batch`: the other documents of
//! the batch are the negatives. The mean instead of the sum keeps `τ` fit for
//! queries of few rows and of many; the order of documents is the same.

use keyfold_core::{Progress, Role};
use keyfold_kernels as kernels;

use super::parts::Adam;
use super::{Text, Tower, in_parallel};
use crate::BenchError;

/// How to train.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrainOptions {
    /// Batches.
    pub(crate) steps: usize,
    /// Rate of Adam.
    pub(crate) rate: f32,
    /// What scores are divided by before the softmax.
    pub(crate) temperature: f32,
    /// Threads; the result does not depend on them.
    pub(crate) threads: usize,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            steps: 2000,
            rate: 1e-3,
            temperature: 0.05,
            threads: 1,
        }
    }
}

/// A query and its document.
pub(crate) type Pair<'a> = (std::borrow::Cow<'a, Text>, &'a Text);

/// Trains on `options.steps` batches that `batch` gives; gives the loss of each.
pub(crate) fn train<'t, T: Tower>(
    tower: &mut T,
    mut batch: impl FnMut() -> Vec<Pair<'t>>,
    options: &TrainOptions,
    progress: &dyn Progress,
) -> Result<Vec<f32>, BenchError> {
    let mut adam = Adam::new(options.rate, tower.parameters().len());
    let mut losses = Vec::with_capacity(options.steps);
    for _ in 0..options.steps {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let (loss, gradient) = loss(tower, &batch(), options);
        adam.step(tower.parameters(), &gradient);
        losses.push(loss);
        progress.advance(1);
    }
    Ok(losses)
}

/// The rows of texts.
pub(crate) fn encode<T: Tower>(
    tower: &T,
    texts: &[Text],
    role: Role,
    threads: usize,
) -> Vec<Vec<f32>> {
    in_parallel(texts, threads, |text| tower.forward(text, role).0)
}

/// The loss of a batch and its gradient by the parameters.
fn loss<T: Tower>(tower: &T, batch: &[Pair<'_>], options: &TrainOptions) -> (f32, Vec<f32>) {
    let (dim, threads) = (tower.dim(), options.threads);
    let queries = in_parallel(batch, threads, |(q, _)| tower.forward(q, Role::Query));
    let documents = in_parallel(batch, threads, |(_, d)| tower.forward(d, Role::Document));
    let met = Met::new(&queries, &documents, dim, threads);
    let (loss, slopes) = cross_entropy(&met.scores, batch.len(), options.temperature);

    let numbers: Vec<usize> = (0..batch.len()).collect();
    let parts = in_parallel(&numbers, threads, |&i| {
        let (query, document) = &batch[i];
        let grad = met.by_query(i, &slopes, &documents, dim);
        let of_query = tower.backward(query, &queries[i].1, grad);
        let grad = met.by_document(i, &slopes, &queries, &documents[i].0, dim);
        let of_document = tower.backward(document, &documents[i].1, grad);
        (of_query, of_document)
    });
    let mut gradient = vec![0.0; parts.first().map_or(0, |p| p.0.len())];
    for (of_query, of_document) in parts {
        kernels::add_assign(&mut gradient, &of_query);
        kernels::add_assign(&mut gradient, &of_document);
    }
    (loss, gradient)
}

/// Rows and what the backward pass needs.
type Encoded<T> = (Vec<f32>, T);

/// Which rows of which documents all query rows met.
struct Met {
    /// Rows of all queries before each.
    starts: Vec<usize>,
    /// For each document with rows, the row that each query row met.
    rows: Vec<Vec<u32>>,
    /// `[queries, documents]`: mean product.
    scores: Vec<f32>,
}

impl Met {
    fn new<T: Sync>(
        queries: &[Encoded<T>],
        documents: &[Encoded<T>],
        dim: usize,
        threads: usize,
    ) -> Self {
        let mut starts = vec![0];
        let mut all = Vec::new();
        for (rows, _) in queries {
            all.extend_from_slice(rows);
            starts.push(all.len() / dim);
        }
        let rows = in_parallel(documents, threads, |(document, _)| {
            if document.is_empty() {
                return Vec::new();
            }
            kernels::kmeans::nearest(&all, document, dim, 1)
        });
        let n = documents.len();
        let mut scores = vec![0.0; queries.len() * n];
        for (q, scores) in scores.chunks_exact_mut(n.max(1)).enumerate() {
            let of_query = starts[q]..starts[q + 1];
            for ((score, met), (document, _)) in scores.iter_mut().zip(&rows).zip(documents) {
                let met = met.get(of_query.clone()).unwrap_or_default();
                let products = met.iter().zip(queries[q].0.chunks_exact(dim));
                *score = products
                    .map(|(&j, row)| kernels::dot(row, &document[j as usize * dim..][..dim]))
                    .sum::<f32>()
                    / of_query.len().max(1) as f32;
            }
        }
        Self {
            starts,
            rows,
            scores,
        }
    }

    /// Gradient by the rows of query `q`.
    fn by_query<T>(
        &self,
        q: usize,
        slopes: &[f32],
        documents: &[Encoded<T>],
        dim: usize,
    ) -> Vec<f32> {
        let rows = self.starts[q]..self.starts[q + 1];
        let mut grad = vec![0.0; rows.len() * dim];
        for (d, (document, _)) in documents.iter().enumerate() {
            let slope = slopes[q * documents.len() + d] / rows.len().max(1) as f32;
            let met = self.rows[d].get(rows.clone()).unwrap_or_default();
            for (grad, &j) in grad.chunks_exact_mut(dim).zip(met) {
                add_scaled(grad, slope, &document[j as usize * dim..][..dim]);
            }
        }
        grad
    }

    /// Gradient by the rows of document `d`.
    fn by_document<T>(
        &self,
        d: usize,
        slopes: &[f32],
        queries: &[Encoded<T>],
        document: &[f32],
        dim: usize,
    ) -> Vec<f32> {
        let mut grad = vec![0.0; document.len()];
        for (q, (query, _)) in queries.iter().enumerate() {
            let rows = self.starts[q]..self.starts[q + 1];
            let slope = slopes[q * self.rows.len() + d] / rows.len().max(1) as f32;
            let met = self.rows[d].get(rows).unwrap_or_default();
            for (query, &j) in query.chunks_exact(dim).zip(met) {
                add_scaled(&mut grad[j as usize * dim..][..dim], slope, query);
            }
        }
        grad
    }
}

fn add_scaled(out: &mut [f32], scale: f32, row: &[f32]) {
    out.iter_mut().zip(row).for_each(|(o, x)| *o += scale * x);
}

/// Mean cross-entropy of the diagonal of `scores` (`[n, n]`) and its slope by each.
fn cross_entropy(scores: &[f32], n: usize, temperature: f32) -> (f32, Vec<f32>) {
    let mut slopes: Vec<f32> = scores.iter().map(|s| s / temperature).collect();
    kernels::softmax_rows(&mut slopes, n);
    let mut loss = 0.0;
    for (i, row) in slopes.chunks_exact_mut(n.max(1)).enumerate() {
        loss -= row[i].max(f32::MIN_POSITIVE).ln() / n as f32;
        row[i] -= 1.0;
        row.iter_mut().for_each(|p| *p /= n as f32 * temperature);
    }
    (loss, slopes)
}

#[cfg(test)]
mod tests {
    use super::super::{FEATURES, Groups, Reduce, TokenTower};
    use super::*;
    use keyfold_core::NoProgress;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use std::borrow::Cow;

    fn texts(count: usize, seed: u64) -> Vec<Text> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..count)
            .map(|i| Text {
                words: vec![0; 3 + i],
                features: (0..(3 + i) * FEATURES)
                    .map(|_| rng.random_range(-1.0..1.0))
                    .collect(),
            })
            .collect()
    }

    fn pairs<'a>(queries: &'a [Text], documents: &'a [Text]) -> Vec<Pair<'a>> {
        let pairs = queries.iter().zip(documents);
        pairs.map(|(q, d)| (Cow::Borrowed(q), d)).collect()
    }

    /// The gradient against differences of the loss, in the directions of a few weights.
    fn check(reduce: Option<&Reduce>) {
        let (queries, documents) = (texts(3, 1), texts(3, 2));
        let batch = pairs(&queries, &documents);
        let mut tower = TokenTower::new(8, 3).with(reduce);
        let options = TrainOptions {
            temperature: 0.5,
            threads: 2,
            ..TrainOptions::default()
        };
        let (_, gradient) = loss(&tower, &batch, &options);
        assert_eq!(gradient.len(), FEATURES * 8);
        let largest = gradient.iter().fold(0f32, |a, g| a.max(g.abs()));
        assert!(largest > 1e-3);
        let step = 2e-3;
        for i in (0..gradient.len()).step_by(37) {
            let mut at = |shift: f32| {
                tower.parameters()[i] += shift;
                let value = loss(&tower, &batch, &options).0;
                tower.parameters()[i] -= shift;
                value
            };
            let slope = (at(step) - at(-step)) / (2.0 * step);
            let error = (slope - gradient[i]).abs();
            assert!(error < 0.03 * largest, "{i}: {slope} {}", gradient[i]);
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        check(None);
        // Fixed groups, one row dropped.
        check(Some(&|rows: &[f32], dim: usize, _| {
            let n = rows.len() / dim;
            Groups(vec![vec![0, n - 1], vec![1]])
        }));
    }

    #[test]
    fn training_finds_what_queries_and_documents_share() {
        // A document is its query's first half of features beside noise.
        let queries = texts(8, 5);
        let mut documents = texts(8, 6);
        for (d, q) in documents.iter_mut().zip(&queries) {
            let rows = d.features.chunks_exact_mut(FEATURES);
            for (d, q) in rows.zip(q.features.chunks_exact(FEATURES)) {
                d[..FEATURES / 2].copy_from_slice(&q[..FEATURES / 2]);
            }
        }
        let options = TrainOptions {
            steps: 60,
            rate: 1e-2,
            ..TrainOptions::default()
        };
        let run = |threads| {
            let mut tower = TokenTower::new(8, 1);
            let options = TrainOptions { threads, ..options };
            let batch = || pairs(&queries, &documents);
            train(&mut tower, batch, &options, &NoProgress).unwrap()
        };
        let losses = run(1);
        assert!(losses[59] < 0.5 * losses[0], "{losses:?}");
        assert_eq!(losses, run(3), "threads change nothing");
    }

    #[test]
    fn texts_without_known_words_do_no_harm() {
        let empty = Text {
            words: Vec::new(),
            features: Vec::new(),
        };
        let some = texts(2, 1);
        let batch = [
            (Cow::Borrowed(&empty), &some[0]),
            (Cow::Borrowed(&some[0]), &empty),
            (Cow::Borrowed(&some[1]), &some[1]),
        ];
        let tower = TokenTower::new(8, 3);
        let (loss, gradient) = loss(&tower, &batch, &TrainOptions::default());
        assert!(loss.is_finite() && gradient.iter().all(|g| g.is_finite()));
    }
}
