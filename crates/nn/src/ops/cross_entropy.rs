//! Cross-entropy over many classes without ever holding all their scores.

use std::sync::Arc;

use burn::tensor::Tensor;
use keyfold_kernels::{self as kernels, Matrix};
use rayon::prelude::*;

use super::operator::{Array, Operator, apply, threads};

/// Classes whose scores are in memory at once.
const CHUNK: usize = 4096;

/// The mean over rows of `-log softmax(x Cᵀ)[target]`, `[1]`: `x` is `[rows, width]`,
/// `classes` `[classes, width]`, one target for each row.
///
/// Scores are computed for a chunk of classes at a time, and again in the backward pass:
/// memory is `rows · 4096` beside the inputs. A `classes` that requires no gradient costs
/// none.
///
/// # Panics
/// When the shapes do not fit, a target is no class, or there is no row.
pub fn cross_entropy(x: Tensor<2>, classes: Tensor<2>, targets: &[u32]) -> Tensor<1> {
    let (rows, count) = (x.dims()[0], classes.dims()[0]);
    assert!(rows > 0 && rows == targets.len(), "a target for each row");
    assert!(
        targets.iter().all(|&t| (t as usize) < count),
        "targets are classes"
    );
    apply(CrossEntropy(targets.into()), [x.into(), classes.into()])
}

#[derive(Clone, Debug)]
struct CrossEntropy(Arc<[u32]>);

#[derive(Clone, Debug)]
struct Saved {
    x: Array,
    classes: Array,
    /// Of each row the logarithm of the sum of `exp(score)`.
    totals: Vec<f32>,
}

/// Scores of the chunk of classes that begins with `first`, `[rows, chunk]`.
fn scores(x: &Array, classes: &Array, first: usize, out: &mut Vec<f32>) -> usize {
    let [rows, width] = x.sizes();
    let chunk = CHUNK.min(classes.sizes()[0] - first);
    out.resize(rows * chunk, 0.0);
    let classes = &classes.numbers()[first * width..(first + chunk) * width];
    kernels::matmul_nt(out, x.numbers(), classes, rows, chunk, width, threads());
    chunk
}

impl Operator<2> for CrossEntropy {
    type Saved = Saved;

    fn forward(&self, [x, classes]: [Array; 2]) -> (Array, Saved) {
        let [rows, _] = x.sizes();
        // Of each row the greatest score so far, the sum of exp(score - greatest), and the
        // score of the target.
        let mut states = vec![(f32::NEG_INFINITY, 0.0f64, 0.0f32); rows];
        let mut buffer = Vec::new();
        for first in (0..classes.sizes()[0]).step_by(CHUNK) {
            let chunk = scores(&x, &classes, first, &mut buffer);
            let rows = buffer.par_chunks_exact_mut(chunk).zip(&mut states);
            rows.zip(self.0.par_iter())
                .for_each(|((scores, state), &target)| {
                    if let Some(score) = (target as usize)
                        .checked_sub(first)
                        .and_then(|t| scores.get(t))
                    {
                        state.2 = *score;
                    }
                    let most = scores.iter().copied().fold(state.0, f32::max);
                    scores.iter_mut().for_each(|s| *s -= most);
                    let sum = f64::from(kernels::learn::sum_of_exp(scores));
                    let before = f64::from(state.0 - most).exp();
                    state.1 = sum + if state.1 > 0.0 { state.1 * before } else { 0.0 };
                    state.0 = most;
                });
        }
        let totals: Vec<f32> = states
            .iter()
            .map(|&(most, sum, _)| (f64::from(most) + sum.ln()) as f32)
            .collect();
        let losses = totals.iter().zip(&states).map(|(t, s)| f64::from(t - s.2));
        let loss = losses.sum::<f64>() / rows as f64;
        let saved = Saved { x, classes, totals };
        (Array::new(vec![loss as f32], [1]), saved)
    }

    fn backward(&self, saved: Saved, g: Array, wanted: [bool; 2]) -> [Option<Array>; 2] {
        let Saved { x, classes, totals } = saved;
        let ([rows, width], [count, _]) = (x.sizes(), classes.sizes());
        let factor = g.numbers()[0] / rows as f32;
        let mut d_x = wanted[0].then(|| vec![0.0; rows * width]);
        let mut d_classes = wanted[1].then(|| vec![0.0; count * width]);
        let mut buffer = Vec::new();
        for first in (0..count).step_by(CHUNK) {
            let chunk = scores(&x, &classes, first, &mut buffer);
            let all = buffer.par_chunks_exact_mut(chunk).zip(&totals);
            all.zip(self.0.par_iter())
                .for_each(|((scores, total), &target)| {
                    scores.iter_mut().for_each(|s| *s -= total);
                    kernels::learn::sum_of_exp(scores);
                    if let Some(p) = (target as usize)
                        .checked_sub(first)
                        .and_then(|t| scores.get_mut(t))
                    {
                        *p -= 1.0;
                    }
                });
            let p = Matrix::strided(&buffer, rows, chunk, chunk);
            let part = &classes.numbers()[first * width..(first + chunk) * width];
            if let Some(d_x) = &mut d_x {
                kernels::product(
                    d_x,
                    width,
                    p,
                    Matrix::new(part, width),
                    factor,
                    true,
                    threads(),
                );
            }
            if let Some(d_classes) = &mut d_classes {
                let out = &mut d_classes[first * width..(first + chunk) * width];
                let x = Matrix::strided(x.numbers(), rows, width, width);
                kernels::product(out, width, p.t(), x, factor, false, threads());
            }
        }
        [
            d_x.map(|d| Array::new(d, [rows, width])),
            d_classes.map(|d| Array::new(d, [count, width])),
        ]
    }
}
