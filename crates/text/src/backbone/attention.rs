//! Self-attention within each text of a pack:
//! `softmax(q kᵀ + bias) v`, one head at a time.
//!
//! Queries come in blocks, so that the scores of a long text need little memory.
//! The factor `1/√d` is part of the query weights.

use keyfold_kernels as kernels;

use super::Packed;
use super::layers::resize;

/// Rows of queries whose scores are held at once.
const BLOCK: usize = 128;

/// Shape of the attention of one layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads<'a> {
    pub(super) count: usize,
    pub(super) size: usize,
    /// A key more than this far from the query is not seen.
    pub(super) window: Option<usize>,
    /// What is added to the scores by distance.
    pub(super) bias: Option<&'a DistanceBias>,
}

/// Attention scores that depend on the distance between query and key.
#[derive(Debug)]
pub(super) struct DistanceBias {
    /// `[heads, 2 * reach + 1]`, by key place minus query place plus reach.
    table: Vec<f32>,
    reach: usize,
}

impl DistanceBias {
    /// `bucket` is the bucket table `[buckets, heads]` of the checkpoint; the
    /// buckets are T5's (Raffel et al. 2020), symmetric form: half of them for
    /// keys after the query, each half exact for small distances and then
    /// logarithmic up to `farthest`.
    pub(super) fn new(table: &[f32], buckets: usize, heads: usize, farthest: usize) -> Self {
        let reach = farthest;
        let mut by_head = Vec::with_capacity(heads * (2 * reach + 1));
        for head in 0..heads {
            for place in 0..=2 * reach {
                let bucket = bucket(place, reach, buckets, farthest);
                by_head.push(table[bucket * heads + head]);
            }
        }
        Self {
            table: by_head,
            reach,
        }
    }

    /// Adds to the scores of the query at `query` for the keys from `first_key` on.
    fn add(&self, head: usize, query: usize, first_key: usize, scores: &mut [f32]) {
        let width = 2 * self.reach + 1;
        let of_head = &self.table[head * width..(head + 1) * width];
        for (i, score) in scores.iter_mut().enumerate() {
            let place = (first_key + i + self.reach).saturating_sub(query);
            *score += of_head[place.min(2 * self.reach)];
        }
    }
}

/// Bucket of the distance `place - reach` (key minus query).
fn bucket(place: usize, reach: usize, buckets: usize, farthest: usize) -> usize {
    let half = buckets / 2;
    let after = if place > reach { half } else { 0 };
    let distance = place.abs_diff(reach);
    let exact = half / 2;
    if distance < exact {
        return after + distance;
    }
    // In f32 and in this order, as the reference computes it: some distances
    // lie on the border of two buckets.
    let scale = (farthest as f64 / exact as f64).ln() as f32;
    let log = (distance as f32 / exact as f32).ln() / scale * (half - exact) as f32;
    after + (exact + log as usize).min(half - 1)
}

/// Attends within each text. `qkv` is `[tokens, 3 * count * size]` with queries,
/// keys and values side by side; `out` becomes `[tokens, count * size]`.
pub(super) fn attend(
    batch: &Packed,
    heads: Heads,
    qkv: &[f32],
    out: &mut Vec<f32>,
    scores: &mut Vec<f32>,
) {
    let width = heads.count * heads.size;
    resize(out, batch.ids.len() * width);
    for text in &batch.sequences {
        let rows = &qkv[text.start * 3 * width..(text.start + text.len) * 3 * width];
        let out = &mut out[text.start * width..(text.start + text.len) * width];
        for from in (0..text.len).step_by(BLOCK) {
            let to = (from + BLOCK).min(text.len);
            for head in 0..heads.count {
                attend_block(heads, head, rows, text.visible, from..to, out, scores);
            }
        }
    }
}

/// One head for the queries `block` of a text.
fn attend_block(
    heads: Heads,
    head: usize,
    rows: &[f32],
    visible: usize,
    block: std::ops::Range<usize>,
    out: &mut [f32],
    scores: &mut Vec<f32>,
) {
    let width = heads.count * heads.size;
    let stride = 3 * width;
    let (mut first, mut last) = (0, visible);
    if let Some(window) = heads.window {
        first = block.start.saturating_sub(window).min(visible);
        last = (block.end + window).min(visible);
    }
    let (queries, keys) = (block.len(), last - first);
    let column = head * heads.size;
    resize(scores, queries * keys);
    if keys > 0 {
        kernels::matmul_nt_strided(
            scores,
            keys,
            &rows[block.start * stride + column..],
            stride,
            &rows[first * stride + width + column..],
            stride,
            queries,
            keys,
            heads.size,
        );
        for (query, scores) in block.clone().zip(scores.chunks_exact_mut(keys)) {
            if let Some(bias) = heads.bias {
                bias.add(head, query, first, scores);
            }
            if let Some(window) = heads.window {
                for (i, score) in scores.iter_mut().enumerate() {
                    if query.abs_diff(first + i) > window {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
        }
        kernels::softmax_rows(scores, keys);
    }
    let values = if keys > 0 {
        &rows[first * stride + 2 * width + column..]
    } else {
        &[]
    };
    kernels::matmul_nn_strided(
        &mut out[block.start * width + column..],
        width,
        scores,
        keys,
        values,
        stride,
        queries,
        heads.size,
        keys,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_buckets_are_exact_near_and_logarithmic_far() {
        // 32 buckets, farthest 128: known values of the reference.
        let of = |distance: isize| bucket((128 + distance) as usize, 128, 32, 128);
        let known = [
            (0, 0),
            (-7, 7),
            (-8, 8),
            (-16, 10),
            (-32, 12),
            (-64, 14),
            (-100, 15),
            (-128, 15),
            (1, 17),
            (7, 23),
            (8, 24),
            (128, 31),
        ];
        for (distance, expected) in known {
            assert_eq!(of(distance), expected, "distance {distance}");
        }
    }
}
