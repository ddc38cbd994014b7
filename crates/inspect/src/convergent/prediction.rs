//! Units of one network as sums of few units of the other.
//!
//! Both are standardised on the samples that are learned from; each unit `y` of `b` is then
//! `min_w ‖y - X w‖² / (2 n) + α ‖w‖₁`, the lasso, by the coder of the dictionaries with the
//! units of `a` as atoms. Errors are of samples that were held out, as a part of the unit's
//! variance; 1 is what the mean alone gives.

use keyfold_dictionary::{Coder, SparseCoder};
use serde::Serialize;

use super::{Activations, same_samples};
use crate::InspectError;

/// How well units of `b` follow from those of `a` at one weight of the lasso.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Weight of the lasso; none for the best single unit.
    pub alpha: Option<f64>,
    /// Mean over units of the squared error as a part of the variance, held out.
    pub error: f64,
    /// Units of `a` that one of `b` is made of, in the mean.
    pub weights: f64,
    /// For each unit of `b` that changes: its place, its error and the units of `a` with
    /// their weights, the greatest first.
    pub units: Vec<Predicted>,
}

/// One unit of `b`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Predicted {
    /// The unit of `b`.
    pub unit: usize,
    /// Squared error as a part of the variance, held out.
    pub error: f64,
    /// Units of `a` and their weights (of standardised units), the greatest first.
    pub from: Vec<(usize, f32)>,
}

/// Columns of standardised samples, one after the other.
struct Standard {
    /// The units that change.
    units: Vec<usize>,
    learn: Vec<f32>,
    held: Vec<f32>,
}

fn standard(x: &Activations, split: usize) -> Standard {
    let mut out = Standard {
        units: Vec::new(),
        learn: Vec::new(),
        held: Vec::new(),
    };
    for unit in 0..x.width() {
        let column: Vec<f64> = x.column(unit).map(f64::from).collect();
        let learn = &column[..split];
        let mean = learn.iter().sum::<f64>() / split as f64;
        let variance = learn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / split as f64;
        if variance <= 1e-12 * (variance + mean * mean) || variance == 0.0 {
            continue;
        }
        let scaled = column.iter().map(|x| ((x - mean) / variance.sqrt()) as f32);
        let scaled: Vec<f32> = scaled.collect();
        out.units.push(unit);
        out.learn.extend_from_slice(&scaled[..split]);
        out.held.extend_from_slice(&scaled[split..]);
    }
    out
}

/// Predicts the units of `b` from those of `a`: the best single unit, and the lasso for each of
/// `alphas`. Learns from the first `split` samples and measures on the others.
///
/// # Errors
/// When the networks saw different numbers of samples, one side of the split has fewer
/// than 2, no unit changes, or a weight is negative.
pub fn sparse_prediction(
    a: &Activations,
    b: &Activations,
    split: usize,
    alphas: &[f64],
) -> Result<Vec<Prediction>, InspectError> {
    same_samples(a, b)?;
    if split < 2 || split + 2 > a.samples() {
        return Err(InspectError::settings(format!(
            "{split} of {} samples to learn from leave too few on one side; give at least 2 to each",
            a.samples()
        )));
    }
    let (x, y) = (standard(a, split), standard(b, split));
    if x.units.is_empty() || y.units.is_empty() {
        return Err(InspectError::settings(
            "no unit of one of the networks changes within the samples to learn from",
        ));
    }
    let held = a.samples() - split;
    let mut out = vec![best_single(&x, &y, split, held)];
    for &alpha in alphas {
        let coder = Coder::LassoCd {
            alpha: (alpha * split as f64) as f32,
            positive: false,
        };
        let codes = SparseCoder::new(&x.learn, split, coder)?.encode(&y.learn)?;
        let found = codes.iter().map(|(atoms, weights)| {
            let pairs = atoms.iter().zip(weights);
            pairs.map(|(j, w)| (*j as usize, *w)).collect()
        });
        out.push(measured(&x, &y, held, Some(alpha), found.collect()));
    }
    Ok(out)
}

/// The one unit that goes with each best, up or down, by its regression.
fn best_single(x: &Standard, y: &Standard, split: usize, held: usize) -> Prediction {
    let best = |y: &[f32]| {
        let products = x
            .learn
            .chunks_exact(split)
            .map(|x| keyfold_kernels::dot(x, y));
        let of = products.enumerate();
        let best = of.max_by(|p, q| p.1.abs().total_cmp(&q.1.abs()));
        let weight = |(j, product): (usize, f32)| (j, product / split as f32);
        best.map(weight).into_iter().collect()
    };
    let found = y.learn.chunks_exact(split).map(best).collect();
    measured(x, y, held, None, found)
}

fn measured(
    x: &Standard,
    y: &Standard,
    held: usize,
    alpha: Option<f64>,
    found: Vec<Vec<(usize, f32)>>,
) -> Prediction {
    let mut units = Vec::new();
    for (at, mut from) in found.into_iter().enumerate() {
        let truth = &y.held[at * held..][..held];
        let mut rest = truth.to_vec();
        for (j, w) in &from {
            keyfold_kernels::axpy(&mut rest, -w, &x.held[j * held..][..held]);
        }
        from.sort_by(|p, q| q.1.abs().total_cmp(&p.1.abs()));
        from.iter_mut().for_each(|(j, _)| *j = x.units[*j]);
        let mean = truth.iter().map(|x| f64::from(*x)).sum::<f64>() / held as f64;
        let spread = truth.iter().map(|x| (f64::from(*x) - mean).powi(2));
        let spread: f64 = spread.sum();
        let error: f64 = rest.iter().map(|x| f64::from(*x).powi(2)).sum();
        units.push(Predicted {
            unit: y.units[at],
            // A unit that stands still in what is held out is told by its error alone.
            error: error / if spread > 0.0 { spread } else { held as f64 },
            from,
        });
    }
    let count = units.len() as f64;
    Prediction {
        alpha,
        error: units.iter().map(|u| u.error).sum::<f64>() / count,
        weights: units.iter().map(|u| u.from.len()).sum::<usize>() as f64 / count,
        units,
    }
}
