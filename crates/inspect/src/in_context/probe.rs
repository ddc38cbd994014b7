//! What hidden states hold: linear probes.
//!
//! A probe is a ridge regression from hidden states to what they may hold (the least squares
//! weights, `Xᵀ y`), learned on some sequences and scored on others by the share of variance
//! that it explains. The same for targets of other sequences tells what chance gives.

use faer::Mat;

use crate::{InspectError, algebra};

/// Share of the variance of `targets` (`[n, width]`) that follows linearly from states
/// (`[n, hidden]`), on the last fifth of the rows; at most 1, below 0 where the probe is worse
/// than the mean.
///
/// # Errors
/// When rows do not fit together or are fewer than 10.
pub fn probe(
    states: &[f32],
    hidden: usize,
    targets: &[f64],
    width: usize,
) -> Result<f64, InspectError> {
    let n = crate::error::check_rows("hidden states", states, hidden)?;
    if n < 10 || targets.len() != n * width || width == 0 {
        return Err(InspectError::settings(format!(
            "a probe needs at least 10 states and a target for each; there are {n} states and {} \
             numbers of targets of {width}",
            targets.len()
        )));
    }
    let learn = n - n / 5;
    let mean = |column: &dyn Fn(usize) -> f64| (0..learn).map(column).sum::<f64>() / learn as f64;
    let x_mean: Vec<f64> = (0..hidden)
        .map(|j| mean(&|i| f64::from(states[i * hidden + j])))
        .collect();
    let y_mean: Vec<f64> = (0..width)
        .map(|j| mean(&|i| targets[i * width + j]))
        .collect();
    let x = Mat::from_fn(n, hidden, |i, j| {
        f64::from(states[i * hidden + j]) - x_mean[j]
    });
    let y = Mat::from_fn(n, width, |i, j| targets[i * width + j] - y_mean[j]);
    let (x_learn, y_learn) = (x.subrows(0, learn), y.subrows(0, learn));
    let gram = x_learn.transpose() * x_learn;
    let right = x_learn.transpose() * y_learn;
    let trace: f64 = (0..hidden).map(|i| gram[(i, i)]).sum();
    let ridge = 1e-4 * trace / hidden as f64;
    let map = algebra::solve_symmetric(gram.as_ref(), right.as_ref(), ridge)?;
    let (x_held, y_held) = (x.subrows(learn, n - learn), y.subrows(learn, n - learn));
    let rest = x_held * map - y_held;
    Ok(1.0 - rest.squared_norm_l2() / y_held.squared_norm_l2().max(1e-300))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::random::normal;

    #[test]
    fn a_probe_finds_what_is_there_and_nothing_else() {
        let mut rng = StdRng::seed_from_u64(1);
        let states: Vec<f32> = (0..500 * 6).map(|_| normal(&mut rng) as f32).collect();
        let sums = states
            .chunks_exact(6)
            .flat_map(|s| [f64::from(s[0] - 2.0 * s[3]) + 5.0, f64::from(s[1])]);
        let held: Vec<f64> = sums.collect();
        assert!(probe(&states, 6, &held, 2).unwrap() > 0.999);
        let other: Vec<f64> = (0..1000).map(|_| normal(&mut rng)).collect();
        assert!(probe(&states, 6, &other, 2).unwrap() < 0.1);
    }
}
