//! Exact attention of written tokens over the rows that are to be read.
//!
//! ```text
//! out = softmax(q K^T / sqrt(d)) V
//! ```
//!
//! Every thread takes a run of the rows of all KV heads; the parts are merged by
//! their log-sum-exp (flash decoding), in the order of the threads, so a result depends on
//! their number and on nothing else. A key or value row is loaded once for the query heads
//! that share it.

use crate::roles::{Dims, KvStore, Reads, RowSet, Rows};
use keyfold_kernels::Team;
use keyfold_kernels::attention::Partial;

/// The rows that a query at `position` may see under a sliding window.
pub fn visible(positions: &[u32], position: u32, window: Option<usize>) -> (usize, usize) {
    let to = positions.partition_point(|&p| p <= position);
    let from = match window {
        Some(w) => {
            let oldest = (i64::from(position) + 1 - w as i64).max(0) as u32;
            positions.partition_point(|&p| p < oldest)
        }
        None => 0,
    };
    (from.min(to), to)
}

/// What one thread has found.
#[derive(Debug, Default)]
struct Part {
    partials: Vec<Partial>,
    out: Vec<f32>,
    scores: Vec<f32>,
}

/// Keys and values of tokens that are not in the store: one row for each of `count` queries
/// of a head, `[count, kv_heads, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct OwnRows<'a> {
    /// Keys, after rotary embedding.
    pub keys: &'a [f32],
    /// Values.
    pub values: &'a [f32],
}

/// Attention while decoding; keeps its buffers.
#[derive(Debug, Default)]
pub struct DecodeAttention {
    parts: Vec<Part>,
}

impl DecodeAttention {
    /// Attention of `queries` `[heads, tokens, head_dim]` (of a KV head: `q` rows, its query
    /// heads one after the other, with the tokens of each) to `rows` of `layer`, no further back than
    /// `window`; writes `out` in the same shape. With `own`, the token of a query also reads
    /// its own row. Returns how many key rows were read, over all KV heads.
    #[allow(clippy::too_many_arguments)]
    pub fn attend(
        &mut self,
        layer: usize,
        dims: &Dims,
        queries: &[f32],
        position: u32,
        window: Option<usize>,
        store: &dyn KvStore,
        rows: &Rows,
        own: Option<OwnRows>,
        team: &Team,
        out: &mut [f32],
    ) -> u64 {
        let (d, kv_heads) = (dims.head_dim, dims.kv_heads);
        let q = queries.len() / (kv_heads * d);
        let scale = 1.0 / (d as f32).sqrt();
        let threads = team.threads();
        self.parts.resize_with(threads, Part::default);
        team.split(&mut self.parts, 1, |thread, part| {
            let part = &mut part[0];
            part.partials.clear();
            part.partials.resize(kv_heads * q, Partial::EMPTY);
            part.out.clear();
            part.out.resize(queries.len(), 0.0);
            for kv_head in 0..kv_heads {
                let span = visible(store.positions(layer, kv_head), position, window);
                // Query rows that share a list, and how many lists the head has.
                let (together, lists) = match rows.reads {
                    Reads::All | Reads::PerKvHead => (q, 1),
                    Reads::PerHead => (q / dims.group(), dims.group()),
                };
                for list in 0..lists {
                    let set = match rows.reads {
                        Reads::All => RowSet::Range(span.0, span.1),
                        Reads::PerKvHead => inside(&rows.lists[kv_head], span),
                        Reads::PerHead => inside(&rows.lists[kv_head * lists + list], span),
                    };
                    let set = share(set, thread, threads);
                    if set.is_empty() {
                        continue;
                    }
                    let first = kv_head * q + list * together;
                    let at = first * d..(first + together) * d;
                    part.scores.clear();
                    part.scores.resize(together * set.len(), 0.0);
                    store.dot(layer, kv_head, &queries[at.clone()], set, &mut part.scores);
                    add_bias(
                        store.bias(layer, kv_head),
                        set,
                        1.0 / scale,
                        &mut part.scores,
                    );
                    let scores = part.scores.chunks_exact_mut(set.len());
                    for (partial, scores) in part.partials[first..].iter_mut().zip(scores) {
                        *partial = Partial::of(scores, scale);
                    }
                    store.mix(layer, kv_head, &part.scores, set, &mut part.out[at]);
                }
            }
        });
        self.merge(dims, queries, own, scale, out);
        rows_read(layer, dims, position, window, store, rows)
    }

    /// Joins what the threads found, and each query's own row.
    fn merge(
        &mut self,
        dims: &Dims,
        queries: &[f32],
        own: Option<OwnRows>,
        scale: f32,
        out: &mut [f32],
    ) {
        let d = dims.head_dim;
        let q = queries.len() / (dims.kv_heads * d);
        let Some((first, others)) = self.parts.split_first_mut() else {
            return;
        };
        for (i, (query, to)) in queries
            .chunks_exact(d)
            .zip(out.chunks_exact_mut(d))
            .enumerate()
        {
            let at = i * d..(i + 1) * d;
            let mut partial = first.partials[i];
            let sum = &mut first.out[at.clone()];
            for other in &*others {
                partial.merge(sum, other.partials[i], &other.out[at.clone()]);
            }
            if let Some(own) = own {
                let (kv_head, token) = (i / q, i % q % (q / dims.group()));
                let row = (token * dims.kv_heads + kv_head) * d
                    ..(token * dims.kv_heads + kv_head + 1) * d;
                let max = keyfold_kernels::dot(query, &own.keys[row.clone()]) * scale;
                partial.merge(sum, Partial { max, sum: 1.0 }, &own.values[row]);
            }
            partial.finish(sum);
            to.copy_from_slice(sum);
        }
    }
}

/// Adds `factor` times the bias of rows to the scores `[any, rows]` of them.
pub(crate) fn add_bias(bias: &[f32], rows: RowSet, factor: f32, scores: &mut [f32]) {
    if bias.is_empty() {
        return;
    }
    for scores in scores.chunks_exact_mut(rows.len().max(1)) {
        let add = |(score, row): (&mut f32, usize)| {
            *score += factor * bias.get(row).copied().unwrap_or(0.0);
        };
        let scores = scores.iter_mut();
        match rows {
            RowSet::Range(from, to) => scores.zip(from..to).for_each(add),
            RowSet::List(list) => scores.zip(list.iter().map(|&r| r as usize)).for_each(add),
        }
    }
}

/// The part of an ascending list that lies in a run of rows.
fn inside(list: &[u32], (from, to): (usize, usize)) -> RowSet<'_> {
    let from = list.partition_point(|&r| (r as usize) < from);
    let to = list.partition_point(|&r| (r as usize) < to);
    RowSet::List(&list[from..to])
}

/// The run of rows that one of `threads` takes.
pub(crate) fn share(rows: RowSet<'_>, thread: usize, threads: usize) -> RowSet<'_> {
    let n = rows.len();
    let (from, to) = (n * thread / threads, n * (thread + 1) / threads);
    match rows {
        RowSet::Range(first, _) => RowSet::Range(first + from, first + to),
        RowSet::List(list) => RowSet::List(&list[from..to]),
    }
}

/// How many rows a token reads, over all KV heads.
fn rows_read(
    layer: usize,
    dims: &Dims,
    position: u32,
    window: Option<usize>,
    store: &dyn KvStore,
    rows: &Rows,
) -> u64 {
    let read = |kv_head: usize| {
        let span = visible(store.positions(layer, kv_head), position, window);
        match rows.reads {
            Reads::All => span.1 - span.0,
            Reads::PerKvHead => inside(&rows.lists[kv_head], span).len(),
            Reads::PerHead => {
                let heads = kv_head * dims.group()..(kv_head + 1) * dims.group();
                heads.map(|h| inside(&rows.lists[h], span).len()).sum()
            }
        }
    };
    (0..dims.kv_heads).map(read).sum::<usize>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{CacheType, DenseStore};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const DIMS: Dims = Dims {
        layers: 1,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        hidden: 32,
        vocab: 10,
    };

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-2.0..2.0)).collect()
    }

    fn store(rows: usize) -> (DenseStore, Vec<f32>, Vec<f32>) {
        let mut store = DenseStore::new(DIMS, CacheType::F32, rows).unwrap();
        let (keys, values) = (numbers(rows * 16, 1), numbers(rows * 16, 2));
        let positions: Vec<u32> = (0..rows as u32).collect();
        store.append(0, &positions, &keys, &values);
        (store, keys, values)
    }

    /// The literal formula: attention of one query head to some rows.
    fn literal(
        query: &[f32],
        kv_head: usize,
        rows: &[usize],
        keys: &[f32],
        values: &[f32],
    ) -> Vec<f32> {
        let at = |row: usize| (row * 2 + kv_head) * 8..(row * 2 + kv_head + 1) * 8;
        let score = |&row: &usize| -> f64 {
            let dot: f64 = query
                .iter()
                .zip(&keys[at(row)])
                .map(|(q, k)| f64::from(q * k))
                .sum();
            (dot / 8f64.sqrt()).exp()
        };
        let weights: Vec<f64> = rows.iter().map(score).collect();
        let total: f64 = weights.iter().sum();
        let mut out = vec![0.0; 8];
        for (w, &row) in weights.iter().zip(rows) {
            for (o, v) in out.iter_mut().zip(&values[at(row)]) {
                *o += (w / total * f64::from(*v)) as f32;
            }
        }
        out
    }

    fn assert_near(a: &[f32], b: &[f32]) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }

    #[test]
    fn decoding_reads_the_rows_it_is_told_whatever_the_team() {
        let (store, keys, values) = store(37);
        let queries = numbers(4 * 8, 3);
        let all: Vec<usize> = (0..37).collect();
        let few: [Vec<u32>; 2] = [vec![0, 5, 36], vec![2, 3, 4, 30]];
        let each: Vec<Vec<u32>> = (0..4).map(|h| vec![h, 10 + h, 36]).collect();
        for threads in [1, 2, 3] {
            let team = Team::new(threads);
            let mut attention = DecodeAttention::default();
            let mut run = |reads, lists: &[Vec<u32>], window| {
                let rows = Rows {
                    reads,
                    lists: lists.to_vec(),
                };
                let mut out = vec![0.0; 32];
                let read = attention.attend(
                    0, &DIMS, &queries, 36, window, &store, &rows, None, &team, &mut out,
                );
                (out, read)
            };
            let expect = |rows: &dyn Fn(usize) -> Vec<usize>| -> Vec<f32> {
                (0..4)
                    .flat_map(|h| literal(&queries[h * 8..][..8], h / 2, &rows(h), &keys, &values))
                    .collect()
            };
            let (out, read) = run(Reads::All, &[], None);
            assert_near(&out, &expect(&|_| all.clone()));
            assert_eq!(read, 74);
            let (out, read) = run(Reads::PerKvHead, &few, None);
            assert_near(
                &out,
                &expect(&|h| few[h / 2].iter().map(|&r| r as usize).collect()),
            );
            assert_eq!(read, 7);
            let (out, _) = run(Reads::PerHead, &each, None);
            assert_near(
                &out,
                &expect(&|h| each[h].iter().map(|&r| r as usize).collect()),
            );
            let (out, read) = run(Reads::All, &[], Some(5));
            assert_near(&out, &expect(&|_| (32..37).collect()));
            assert_eq!(read, 10);
        }
    }

    #[test]
    fn own_rows_are_as_good_as_stored_ones() {
        let (full, keys, values) = store(20);
        let mut short = full.clone();
        short.truncate(19);
        // Two candidates for the same place: the stored row, and another one.
        let own_keys = [&keys[19 * 16..], &numbers(16, 7)].concat();
        let own_values = [&values[19 * 16..], &numbers(16, 8)].concat();
        let query = numbers(32, 3);
        // [heads, 2 tokens, d], both tokens with the same queries.
        let heads = query.chunks_exact(8);
        let both: Vec<f32> = heads.flat_map(|head| [head, head].concat()).collect();
        let team = Team::new(2);
        let mut attention = DecodeAttention::default();
        let mut run = |queries: &[f32], store: &DenseStore, rows: &Rows, own: Option<OwnRows>| {
            let mut out = vec![0.0; queries.len()];
            let out_slice = &mut out;
            attention.attend(
                0, &DIMS, queries, 19, None, store, rows, own, &team, out_slice,
            );
            out
        };
        let own = OwnRows {
            keys: &own_keys,
            values: &own_values,
        };
        let expected = run(&query, &full, &Rows::default(), None);
        let each = Rows {
            reads: Reads::PerHead,
            lists: vec![(0..19).collect(); 4],
        };
        for rows in [Rows::default(), each] {
            let out = run(&both, &short, &rows, Some(own));
            let of = |token: usize| -> Vec<f32> {
                let heads = out.chunks_exact(8).skip(token).step_by(2);
                heads.flatten().copied().collect()
            };
            assert_near(&of(0), &expected);
            let far = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-3;
            assert!(of(1).iter().zip(&expected).any(far));
        }
    }
}
