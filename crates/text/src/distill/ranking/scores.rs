//! Scores of queries and documents by the student's keys, and their gradients.
//!
//! ```text
//! S(q, d) = Σᵢ wᵢ maxⱼ <qᵢ, C(d)ⱼ> / Σᵢ wᵢ
//! ∂S/∂qᵢ = wᵢ C(d)ⱼ / Σ w     ∂S/∂C(d)ⱼ += wᵢ qᵢ / Σ w     ∂S/∂wᵢ = (<qᵢ, C(d)ⱼ> - S) / Σ w
//! ```
//!
//! with `j` the key that `i` found. A folded key is the sum of its members at length one.

use std::collections::BTreeMap;

use keyfold_kernels as kernels;
use keyfold_kernels::fold::{Fold, Groups};

use super::super::gradient::{self, Pass};
use super::super::{Shard, Student};

/// Keys of texts one after the other.
pub(super) struct Keys {
    dim: usize,
    /// `[keys, dim]`, of length one.
    rows: Vec<f32>,
    /// First key of every text, and the end.
    starts: Vec<usize>,
    /// The token of each key; nothing for folded ones.
    ids: Vec<u32>,
}

impl Keys {
    fn row(&self, number: usize) -> &[f32] {
        &self.rows[number * self.dim..(number + 1) * self.dim]
    }

    fn texts(&self) -> usize {
        self.starts.len() - 1
    }
}

/// Texts that went through the student, and their keys.
pub(super) struct Read {
    parts: Vec<Part>,
    pub(super) keys: Keys,
}

/// Texts that one thread read.
struct Part {
    ids: Vec<u32>,
    starts: Vec<usize>,
    pass: Pass,
    /// The key of each token, where it has one.
    key: Vec<Option<usize>>,
}

impl Read {
    pub(super) fn new(
        student: &Student,
        texts: &[&[u32]],
        is_key: &[bool],
        threads: usize,
    ) -> Self {
        let (h, o) = (
            student.mixer.config.hidden_size,
            student.mixer.config.output_size,
        );
        let read = |texts: &[&[u32]]| {
            let ids: Vec<u32> = texts.iter().flat_map(|t| t.iter().copied()).collect();
            let mut starts = vec![0];
            for text in texts {
                starts.push(starts[starts.len() - 1] + text.len());
            }
            let rows = ids.iter().map(|&id| id as usize * h);
            let x: Vec<f32> = rows
                .flat_map(|at| student.table[at..at + h].iter().copied())
                .collect();
            let pass = gradient::forward(&student.mixer, x, &starts);
            Part {
                key: vec![None; ids.len()],
                ids,
                starts,
                pass,
            }
        };
        let mut parts = shared(texts, threads, read);
        let mut keys = Keys {
            dim: o,
            rows: Vec::new(),
            starts: vec![0],
            ids: Vec::new(),
        };
        for part in &mut parts {
            for text in part.starts.windows(2) {
                for token in text[0]..text[1] {
                    if is_key[part.ids[token] as usize] {
                        part.key[token] = Some(keys.ids.len());
                        keys.ids.push(part.ids[token]);
                        keys.rows
                            .extend_from_slice(&part.pass.y[token * o..(token + 1) * o]);
                    }
                }
                keys.starts.push(keys.ids.len());
            }
        }
        kernels::normalize_rows(&mut keys.rows, o);
        Self { parts, keys }
    }

    /// Gradients of weights and token vectors from those of the keys.
    pub(super) fn backward(&self, student: &Student, slopes: &[f32], threads: usize) -> Vec<Shard> {
        let o = self.keys.dim;
        let back = |parts: &[Part]| -> Vec<Shard> {
            let part = |part: &Part| {
                let mut dy = vec![0.0; part.pass.y.len()];
                for (token, key) in part.key.iter().enumerate() {
                    let Some(key) = *key else { continue };
                    let range = token * o..(token + 1) * o;
                    let slope = &slopes[key * o..(key + 1) * o];
                    let norm = kernels::norm(&part.pass.y[range.clone()]);
                    unit_backward(&mut dy[range], slope, self.keys.row(key), norm);
                }
                let (mixer, tokens) =
                    gradient::backward(&student.mixer, &part.pass.tape, &part.starts, &dy);
                Shard {
                    ids: part.ids.clone(),
                    mixer,
                    tokens,
                    loss: 0.0,
                    count: 0,
                }
            };
            parts.iter().map(part).collect()
        };
        shared(&self.parts, threads, back)
            .into_iter()
            .flatten()
            .collect()
    }
}

/// Gradient by `y` of a loss whose gradient by `unit = y / |y|` is `slope`.
fn unit_backward(out: &mut [f32], slope: &[f32], unit: &[f32], norm: f32) {
    let along = kernels::dot(slope, unit);
    let scale = 1.0 / norm.max(1e-6);
    for ((out, g), u) in out.iter_mut().zip(slope).zip(unit) {
        *out = (g - along * u) * scale;
    }
}

/// `work` on a share of `all` in each thread, in order.
fn shared<T: Sync, R: Send>(all: &[T], threads: usize, work: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    let share = all.len().div_ceil(crate::run::thread_count(threads)).max(1);
    std::thread::scope(|scope| {
        let handles: Vec<_> = all
            .chunks(share)
            .map(|some| scope.spawn(|| work(some)))
            .collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, R>| {
            handle
                .join()
                .unwrap_or_else(|e| std::panic::resume_unwind(e))
        };
        handles.into_iter().map(join).collect()
    })
}

/// Keys of documents as a folded store has them.
pub(super) struct Folded {
    pub(super) keys: Keys,
    /// The folded key of each key, and the length of the mean that it is of times its members.
    of: Vec<(usize, f32)>,
}

impl Folded {
    pub(super) fn new(keys: &Keys, fold: Option<Fold>, seed: u64) -> Self {
        let dim = keys.dim;
        let mut folded = Keys {
            dim,
            rows: Vec::new(),
            starts: vec![0],
            ids: Vec::new(),
        };
        let mut of = Vec::with_capacity(keys.ids.len());
        for (number, text) in keys.starts.windows(2).enumerate() {
            let rows = &keys.rows[text[0] * dim..text[1] * dim];
            let groups = match fold {
                Some(fold) => fold.groups(rows, dim, false, seed ^ number as u64),
                None => Groups::new((0..(text[1] - text[0]) as u32).collect()),
            };
            let first = folded.rows.len() / dim;
            let mut sums = groups.sums(rows, dim);
            // A row that is dropped has no part in any group, nor a gradient.
            of.extend(groups.of_rows().map(|group| match group {
                Some(group) => (
                    first + group,
                    kernels::norm(&sums[group * dim..(group + 1) * dim]),
                ),
                None => (usize::MAX, 0.0),
            }));
            kernels::normalize_rows(&mut sums, dim);
            folded.rows.extend(sums);
            folded.starts.push(folded.rows.len() / dim);
        }
        Self { keys: folded, of }
    }

    /// Gradient by the keys from that by the folded keys.
    pub(super) fn backward(&self, keys: &Keys, slopes: &[f32]) -> Vec<f32> {
        let dim = keys.dim;
        let mut out = vec![0.0; keys.rows.len()];
        for (&(group, norm), out) in self.of.iter().zip(out.chunks_exact_mut(dim)) {
            if group != usize::MAX {
                let slope = &slopes[group * dim..(group + 1) * dim];
                unit_backward(out, slope, self.keys.row(group), norm);
            }
        }
        out
    }
}

/// Scores of queries and documents, and which key of a document each query key found.
pub(super) struct Scores {
    /// `[queries, documents]`
    pub(super) values: Vec<f32>,
    /// `[query keys, documents]`: the key found and its product.
    found: Vec<(u32, f32)>,
    /// Sum of the lengths of each query's keys.
    lengths: Vec<f32>,
}

/// Gradients of scores.
pub(super) struct ByKeys {
    /// By the queries' keys, `[keys, dim]`.
    pub(super) queries: Vec<f32>,
    /// By the documents' keys, `[keys, dim]`.
    pub(super) documents: Vec<f32>,
    /// By the lengths of query keys, for each token.
    pub(super) lengths: BTreeMap<u32, f32>,
}

impl Scores {
    pub(super) fn new(student: &Student, queries: &Keys, documents: &Keys, threads: usize) -> Self {
        let (texts, dim) = (documents.texts(), documents.dim);
        let keys = documents.rows.len() / dim;
        let numbers: Vec<usize> = (0..queries.ids.len()).collect();
        let find = |numbers: &[usize]| {
            let rows = &queries.rows[numbers[0] * dim..(numbers[0] + numbers.len()) * dim];
            let mut products = vec![0.0; numbers.len() * keys];
            let n = numbers.len();
            kernels::matmul_nt(&mut products, rows, &documents.rows, n, keys, dim, 1);
            let mut found = Vec::with_capacity(n * texts);
            for number in 0..n {
                let row = &products[number * keys..(number + 1) * keys];
                for text in documents.starts.windows(2) {
                    let best = (text[0]..text[1]).max_by(|&a, &b| row[a].total_cmp(&row[b]));
                    // A document without keys is found by nothing.
                    found.push(best.map_or((u32::MAX, 0.0), |b| (b as u32, row[b])));
                }
            }
            found
        };
        let found: Vec<(u32, f32)> = shared(&numbers, threads, find).concat();
        let mut values = vec![0.0; queries.texts() * texts];
        let mut lengths = vec![0.0; queries.texts()];
        for (query, text) in queries.starts.windows(2).enumerate() {
            let values = &mut values[query * texts..(query + 1) * texts];
            for key in text[0]..text[1] {
                let length = student.query_weight[queries.ids[key] as usize];
                lengths[query] += length;
                let found = &found[key * texts..(key + 1) * texts];
                for (value, (_, product)) in values.iter_mut().zip(found) {
                    *value += length * product;
                }
            }
            let scale = 1.0 / lengths[query].max(f32::MIN_POSITIVE);
            values.iter_mut().for_each(|x| *x *= scale);
        }
        Self {
            values,
            found,
            lengths,
        }
    }

    /// From the gradient by the scores.
    #[allow(
        clippy::type_complexity,
        reason = "three gradients, taken apart at once"
    )]
    pub(super) fn backward(
        &self,
        student: &Student,
        queries: &Keys,
        documents: &Keys,
        slopes: &[f32],
    ) -> ByKeys {
        let (texts, dim) = (documents.texts(), documents.dim);
        let mut dq = vec![0.0; queries.rows.len()];
        let mut dd = vec![0.0; documents.rows.len()];
        let mut lengths = BTreeMap::new();
        for (query, text) in queries.starts.windows(2).enumerate() {
            let scale = 1.0 / self.lengths[query].max(f32::MIN_POSITIVE);
            for key in text[0]..text[1] {
                let id = queries.ids[key];
                let share = scale * student.query_weight[id as usize];
                let mut by_length = 0.0;
                for document in 0..texts {
                    let (best, product) = self.found[key * texts + document];
                    let slope = slopes[query * texts + document];
                    by_length += slope * scale * (product - self.values[query * texts + document]);
                    if best == u32::MAX {
                        continue;
                    }
                    let at = best as usize * dim;
                    let out = &mut dq[key * dim..(key + 1) * dim];
                    kernels::axpy(out, slope * share, &documents.rows[at..at + dim]);
                    kernels::axpy(&mut dd[at..at + dim], slope * share, queries.row(key));
                }
                *lengths.entry(id).or_insert(0.0) += by_length;
            }
        }
        ByKeys {
            queries: dq,
            documents: dd,
            lengths,
        }
    }
}
