//! A step of a ReLU autoencoder while many codes are in use, as at the start: five dense
//! products, and no lists of what is in use.

use keyfold_kernels::{self as kernels, Matrix};
use rayon::prelude::*;

use super::gradients::{Gradients, squares, variance};
use super::{Losses, Training};

/// Rows that one piece of work takes; fixed, so that sums do not depend on the threads.
const ROWS: usize = 64;

/// Of each code, over some rows.
struct Sums {
    /// Of its values.
    values: Vec<f64>,
    /// Of the slopes by its product.
    slopes: Vec<f32>,
    used: Vec<bool>,
    count: usize,
}

impl Sums {
    fn zeros(codes: usize) -> Self {
        Self {
            values: vec![0.0; codes],
            slopes: vec![0.0; codes],
            used: vec![false; codes],
            count: 0,
        }
    }

    fn add(mut self, other: Self) -> Self {
        self.values
            .iter_mut()
            .zip(&other.values)
            .for_each(|(a, b)| *a += b);
        kernels::add_assign(&mut self.slopes, &other.slopes);
        self.used
            .iter_mut()
            .zip(&other.used)
            .for_each(|(a, b)| *a |= b);
        self.count += other.count;
        self
    }
}

impl Training {
    /// What [`gradients`](Self::gradients) gives, for a ReLU; `x` are the rows as they were
    /// coded and `values` the encoder's products, whose negative ones become 0.
    pub(in crate::sae) fn dense_relu(
        &mut self,
        rows: &[f32],
        targets: &[f32],
        x: &[f32],
        mut values: Vec<f32>,
        norms: &[f32],
    ) -> (Gradients, Losses) {
        let sae = &self.sae;
        let (d_in, d_sae, d_out) = (sae.d_in, sae.d_sae, sae.d_out);
        let n = rows.len() / d_in;
        let threads = rayon::current_num_threads();
        values.par_chunks_mut(ROWS * d_sae).for_each(kernels::relu);
        let (f, w_dec) = (Matrix::new(&values, d_sae), Matrix::new(&sae.w_dec, d_out));

        let mut error = vec![0.0; targets.len()];
        kernels::product(&mut error, d_out, f, w_dec, 1.0, false, threads);
        kernels::add_bias(&mut error, &sae.b_dec);
        sae.add_skip(&mut error, rows);
        error.iter_mut().zip(targets).for_each(|(e, t)| *e -= t);
        let mse = squares(&error) / n as f64;

        let mut gradients = Gradients::zeros(sae);
        let scale = 2.0 / n as f32;
        let g: Vec<f32> = error.iter().map(|e| e * scale).collect();
        let by_target = Matrix::new(&g, d_out);
        let out = &mut gradients.w_dec;
        kernels::product(out, d_out, f.t(), by_target, 1.0, false, threads);
        for row in g.chunks_exact(d_out) {
            kernels::add_assign(&mut gradients.b_dec, row);
        }
        if !gradients.w_skip.is_empty() {
            let out = &mut gradients.w_skip;
            let rows = Matrix::new(rows, d_in);
            kernels::product(out, d_in, by_target.t(), rows, 1.0, false, threads);
        }

        let mut slopes = vec![0.0; n * d_sae];
        kernels::product(
            &mut slopes,
            d_sae,
            by_target,
            w_dec.t(),
            1.0,
            false,
            threads,
        );
        let weight = self.sparsity() / n as f32;
        let sums = close_gates(&mut slopes, &values, norms, weight);
        let slopes = Matrix::new(&slopes, d_sae);
        let out = &mut gradients.w_enc;
        kernels::product(
            out,
            d_in,
            slopes.t(),
            Matrix::new(x, d_in),
            1.0,
            false,
            threads,
        );
        kernels::add_assign(&mut gradients.b_enc, &sums.slopes);
        if sae.apply_b_dec_to_input {
            for (sum, w) in sums.slopes.iter().zip(sae.w_enc.chunks_exact(d_in)) {
                kernels::axpy(&mut gradients.b_dec, -sum, w);
            }
        }

        let mut other = 0.0;
        let atoms = gradients.w_dec.chunks_exact_mut(d_out);
        let codes = sums.values.iter().zip(norms);
        for ((out, w), (sum, norm)) in atoms.zip(sae.w_dec.chunks_exact(d_out)).zip(codes) {
            other += f64::from(weight) * sum * f64::from(*norm);
            if *sum != 0.0 && *norm > 0.0 {
                kernels::axpy(out, weight * *sum as f32 / norm, w);
            }
        }
        for (unused, used) in self.unused.iter_mut().zip(&sums.used) {
            *unused = if *used { 0.0 } else { *unused + 1.0 };
        }
        let losses = Losses {
            mse,
            unexplained: mse / variance(targets, d_out).max(1e-30),
            l0: sums.count as f64 / n as f64,
            other,
            dead: self.dead_codes().len(),
        };
        (gradients, losses)
    }
}

/// Adds to every slope what sparsity asks for, and sets those of codes that are 0 to 0.
fn close_gates(slopes: &mut [f32], values: &[f32], norms: &[f32], weight: f32) -> Sums {
    let d_sae = norms.len();
    let parts: Vec<Sums> = slopes
        .par_chunks_mut(ROWS * d_sae)
        .zip(values.par_chunks(ROWS * d_sae))
        .map(|(slopes, values)| {
            let mut sums = Sums::zeros(d_sae);
            let rows = slopes
                .chunks_exact_mut(d_sae)
                .zip(values.chunks_exact(d_sae));
            for (slopes, values) in rows {
                for j in 0..d_sae {
                    let open = values[j] > 0.0;
                    let slope = if open {
                        slopes[j] + weight * norms[j]
                    } else {
                        0.0
                    };
                    slopes[j] = slope;
                    sums.slopes[j] += slope;
                    sums.values[j] += f64::from(values[j]);
                    sums.used[j] |= open;
                    sums.count += usize::from(open);
                }
            }
            sums
        })
        .collect();
    parts.into_iter().fold(Sums::zeros(d_sae), Sums::add)
}
