//! Attention to the keys that were chosen.

use super::Selected;
use crate::SequenceError;
use crate::matrix_mixers::shape;
use keyfold_kernels::{axpy, dot};

/// `Σ_j softmax_j(q_t · k_j) v_j` over the chosen keys of each position: `q` and `k` are
/// `[T, dim]`, `v` and the result `[T, width]`.
///
/// # Errors
/// When a shape does not fit.
pub fn attend(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    dim: usize,
    selected: &Selected,
) -> Result<Vec<f32>, SequenceError> {
    let width = check(q, k, v, dim, selected)?;
    let mut out = vec![0.0; v.len()];
    let share = 1.0 / selected.len() as f32;
    let mut mean = vec![0.0; width];
    if selected.mean_of_all {
        v.chunks_exact(width)
            .for_each(|v| axpy(&mut mean, share, v));
    }
    let mut weights = Vec::new();
    for (t, (q, out)) in q
        .chunks_exact(dim)
        .zip(out.chunks_exact_mut(width))
        .enumerate()
    {
        let keys = selected.of(t);
        if keys.is_empty() && selected.mean_of_all {
            out.copy_from_slice(&mean);
        }
        softmax(q, k, keys, &mut weights);
        for (&key, &weight) in keys.iter().zip(&weights) {
            axpy(out, weight, &v[key as usize * width..][..width]);
        }
    }
    Ok(out)
}

/// Gradients of queries, keys and values from that of the result, `[T, width]`.
///
/// # Errors
/// When a shape does not fit.
pub fn attend_backward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    dim: usize,
    selected: &Selected,
    g: &[f32],
) -> Result<[Vec<f32>; 3], SequenceError> {
    let width = check(q, k, v, dim, selected)?;
    shape("the gradient", g, selected.len(), width)?;
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| vec![0.0; x.len()]);
    let share = 1.0 / selected.len() as f32;
    // Of the mean of all values.
    let mut of_mean = vec![0.0; width];
    let (mut weights, mut slopes) = (Vec::new(), Vec::new());
    for (t, (query, g)) in q.chunks_exact(dim).zip(g.chunks_exact(width)).enumerate() {
        let keys = selected.of(t);
        if keys.is_empty() && selected.mean_of_all {
            keyfold_kernels::add_assign(&mut of_mean, g);
        }
        softmax(query, k, keys, &mut weights);
        slopes.clear();
        let of = |key: &u32| dot(g, &v[*key as usize * width..][..width]);
        slopes.extend(keys.iter().map(of));
        let mean = dot(&slopes, &weights);
        for ((&key, &weight), &slope) in keys.iter().zip(&weights).zip(&slopes) {
            let at = key as usize;
            axpy(&mut dv[at * width..][..width], weight, g);
            let by_score = weight * (slope - mean);
            axpy(&mut dq[t * dim..][..dim], by_score, &k[at * dim..][..dim]);
            axpy(&mut dk[at * dim..][..dim], by_score, query);
        }
    }
    if selected.mean_of_all {
        dv.chunks_exact_mut(width)
            .for_each(|dv| axpy(dv, share, &of_mean));
    }
    Ok([dq, dk, dv])
}

/// What each position gives to each of its keys, in the order of the keys: shares of 1.
///
/// # Errors
/// When a shape does not fit.
pub fn shares(
    q: &[f32],
    k: &[f32],
    dim: usize,
    selected: &Selected,
) -> Result<Vec<Vec<f32>>, SequenceError> {
    if selected.is_empty() {
        return Ok(Vec::new());
    }
    shape("the queries", q, selected.len(), dim)?;
    shape("the keys", k, selected.len(), dim)?;
    let each = q.chunks_exact(dim).enumerate().map(|(t, query)| {
        let mut weights = Vec::new();
        softmax(query, k, selected.of(t), &mut weights);
        weights
    });
    Ok(each.collect())
}

fn softmax(query: &[f32], k: &[f32], keys: &[u32], weights: &mut Vec<f32>) {
    let dim = query.len();
    weights.clear();
    let score = |key: &u32| dot(query, &k[*key as usize * dim..][..dim]);
    weights.extend(keys.iter().map(score));
    if !weights.is_empty() {
        keyfold_kernels::softmax_rows(weights, keys.len());
    }
}

/// The width of the values.
fn check(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    dim: usize,
    selected: &Selected,
) -> Result<usize, SequenceError> {
    let t = selected.len();
    shape("the queries", q, t, dim)?;
    shape("the keys", k, t, dim)?;
    let width = v.len() / t.max(1);
    shape("the values", v, t, width)?;
    Ok(width)
}
