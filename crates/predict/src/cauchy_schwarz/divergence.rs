//! Kernel estimates of Cauchy-Schwarz divergences, with their gradients.
//!
//! `G(a, b) = exp(-|a - b|² / 2σ²)`; all logarithms have base 2. Of `N` rows, the divergence
//! of two conditional densities is, with `K` of the rows, `L` of the targets and
//! `w_j = Σ_i K_{ji}²`:
//!
//! `-2 log Σ_j (Σ_i K L_{ŷy})_{ji} / w_j + log Σ_j (Σ_i K L_{yy})_{ji} / w_j + log Σ_j (Σ_i K L_{ŷŷ})_{ji} / w_j`
//!
//! and the quadratic mutual information of rows and codes
//!
//! `-2 log (1ᵀ K_x K_t 1 / N³) + log (tr K_x K_t / N²) + log (Σ K_x · Σ K_t / N⁴)`.

use std::f64::consts::LN_2;

use keyfold_kernels::double::{exp, exp_of};

use crate::algebra::{multiply, product, view};
use crate::{PredictError, Table};

/// Width of the kernels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sigma {
    /// As given; rows are taken to be standardised.
    Fixed(f64),
    /// Ten times the median of squared distances, as the authors' helper has it.
    Median,
}

impl From<Option<f64>> for Sigma {
    fn from(sigma: Option<f64>) -> Self {
        sigma.map_or(Self::Median, Self::Fixed)
    }
}

impl Sigma {
    fn check(self) -> Result<(), PredictError> {
        match self {
            Self::Fixed(sigma) if !sigma.is_finite() || sigma <= 0.0 => {
                Err(PredictError::Setting {
                    setting: "sigma",
                    what: "must be above 0".to_owned(),
                })
            }
            _ => Ok(()),
        }
    }

    /// The number for rows with these squared distances.
    fn of(self, distances: &[f64], n: usize) -> f64 {
        match self {
            Self::Fixed(sigma) => sigma,
            Self::Median => 10.0 * median(distances, n),
        }
    }
}

/// The median of the squared distances between the rows and the same rows once more, which
/// is what the authors take: each pair four times, and a zero for each row.
fn median(distances: &[f64], n: usize) -> f64 {
    let pairs = (0..n).flat_map(|i| (0..i).map(move |j| distances[i * n + j].abs()));
    let mut all: Vec<f64> = pairs.flat_map(|d| [d; 4]).collect();
    all.extend(std::iter::repeat_n(0.0, n));
    all.sort_by(f64::total_cmp);
    let middle = 0.5 * (all[(all.len() - 1) / 2] + all[all.len() / 2]);
    let found = match middle > 0.0 {
        true => middle,
        false => all.iter().sum::<f64>() / all.len() as f64,
    };
    found.max(1e-2)
}

/// Squared distances between all rows of two lists, `[a, b]`.
fn distances(a: &[f64], b: &[f64], dim: usize) -> Vec<f64> {
    let squares = |x: &[f64]| -> Vec<f64> {
        x.chunks_exact(dim)
            .map(|r| crate::algebra::dot(r, r))
            .collect()
    };
    let (a_squares, b_squares) = (squares(a), squares(b));
    let mut out = vec![0.0; a_squares.len() * b_squares.len()];
    multiply(
        &mut out,
        view(a, dim),
        view(b, dim).transpose(),
        -2.0,
        false,
    );
    for (row, a) in out.chunks_exact_mut(b_squares.len()).zip(&a_squares) {
        row.iter_mut()
            .zip(&b_squares)
            .for_each(|(d, b)| *d = (*d + a + b).max(0.0));
    }
    out
}

/// The kernel of rows with themselves, its width, and its diagonal exactly 1.
fn kernel(rows: &[f64], dim: usize, sigma: Sigma) -> (Vec<f64>, f64) {
    let n = rows.len() / dim;
    let mut all = distances(rows, rows, dim);
    let sigma = sigma.of(&all, n);
    let by = -0.5 / (sigma * sigma);
    all.iter_mut().for_each(|d| *d *= by);
    exp(&mut all);
    (0..n).for_each(|i| all[i * n + i] = 1.0);
    (all, sigma)
}

fn same_rows(x: &Table, n: usize) -> Result<(), PredictError> {
    match x.rows() == n {
        true => Ok(()),
        false => Err(PredictError::LabelCount {
            labels: n,
            rows: x.rows(),
        }),
    }
}

/// The divergence between two sets of rows, 0 where they are the same: for whether new data
/// still look like old.
pub fn cs_divergence(a: &Table, b: &Table, sigma: Sigma) -> Result<f64, PredictError> {
    sigma.check()?;
    b.expect_columns(a.columns())?;
    let dim = a.columns();
    let both = [a.numbers(), b.numbers()].concat();
    let sigma = match sigma {
        Sigma::Fixed(sigma) => sigma,
        Sigma::Median => {
            let n = a.rows() + b.rows();
            Sigma::Median.of(&distances(&both, &both, dim), n)
        }
    };
    let by = -0.5 / (sigma * sigma);
    // Logarithm of the mean of a kernel, which may be too small for a number.
    let log_mean = |a: &[f64], b: &[f64]| {
        let all = distances(a, b, dim);
        let least = all.iter().copied().fold(f64::INFINITY, f64::min);
        let sum: f64 = all.iter().map(|d| exp_of((d - least) * by)).sum();
        least * by + (sum / all.len() as f64).ln()
    };
    let (x, y) = (a.numbers(), b.numbers());
    Ok((log_mean(x, x) + log_mean(y, y) - 2.0 * log_mean(x, y)) / LN_2)
}

/// The divergence between the density of the targets and that of what is told, given the
/// rows.
pub fn cs_conditional(
    x: &Table,
    y: &[f64],
    told: &[f64],
    sigma: Sigma,
) -> Result<f64, PredictError> {
    cs_conditional_gradient(x, y, told, sigma).map(|(value, _)| value)
}

/// [`cs_conditional`], with its gradient along what is told.
pub fn cs_conditional_gradient(
    x: &Table,
    y: &[f64],
    told: &[f64],
    sigma: Sigma,
) -> Result<(f64, Vec<f64>), PredictError> {
    sigma.check()?;
    same_rows(x, y.len())?;
    same_rows(x, told.len())?;
    let n = y.len();
    let (k, _) = kernel(x.numbers(), x.columns(), sigma);
    let sigma_y = sigma.of(&distances(y, y, 1), n);
    let bend = 1.0 / (sigma_y * sigma_y);
    let weights: Vec<f64> = (k.chunks_exact(n))
        .map(|row| 1.0 / row.iter().map(|k| k * k).sum::<f64>())
        .collect();
    let power = |a: f64, b: f64| -0.5 * bend * (a - b) * (a - b);

    // The term across is summed from its greatest part, since all of it may be too small
    // for a number where what is told is far off.
    let greatest = (told.iter().zip(y))
        .map(|(a, b)| power(*a, *b))
        .fold(f64::NEG_INFINITY, f64::max);
    let (mut self_y, mut self_told, mut across) = (0.0, 0.0, 0.0);
    let (mut pull_self, mut pull_across) = (vec![0.0; n], vec![0.0; n]);
    // Of a row: targets with targets, told with told, told with targets.
    let mut gauss = vec![[0.0; 3]; n];
    for j in 0..n {
        for (i, gauss) in gauss.iter_mut().enumerate() {
            *gauss = [
                power(y[j], y[i]),
                power(told[j], told[i]),
                power(told[j], y[i]) - greatest,
            ];
        }
        exp(gauss.as_flattened_mut());
        for (i, [of_y, of_told, of_both]) in gauss.iter().enumerate() {
            let k = k[j * n + i];
            self_y += k * of_y * weights[j];
            let l = k * of_told;
            self_told += l * weights[j];
            pull_self[j] -= l * (weights[j] + weights[i]) * (told[j] - told[i]) * bend;
            let l = k * of_both * weights[j];
            across += l;
            pull_across[j] -= l * (told[j] - y[i]) * bend;
        }
    }
    let value = -2.0 * (across.ln() + greatest) + self_y.ln() + self_told.ln();
    let gradient = (pull_self.iter().zip(&pull_across))
        .map(|(s, a)| (s / self_told - 2.0 * a / across) / LN_2);
    Ok((value / LN_2, gradient.collect()))
}

/// The quadratic mutual information of rows and codes, in bits.
pub fn cs_qmi(x: &Table, t: &Table, sigma: Sigma) -> Result<f64, PredictError> {
    sigma.check()?;
    same_rows(x, t.rows())?;
    let n = x.rows();
    let (kx, _) = kernel(x.numbers(), x.columns(), sigma);
    let (kt, _) = kernel(t.numbers(), t.columns(), sigma);
    Ok(Information::new(&kx, &kt, n).value)
}

/// [`cs_qmi`] over the root of what rows and codes say of themselves: at most about 1.
pub fn cs_qmi_normalised(x: &Table, t: &Table, sigma: Sigma) -> Result<f64, PredictError> {
    cs_qmi_normalised_gradient(x, t, sigma).map(|(value, _)| value)
}

/// [`cs_qmi_normalised`], with its gradient along the codes, `[rows, code]`.
pub fn cs_qmi_normalised_gradient(
    x: &Table,
    t: &Table,
    sigma: Sigma,
) -> Result<(f64, Vec<f64>), PredictError> {
    sigma.check()?;
    same_rows(x, t.rows())?;
    let n = x.rows();
    let (kx, _) = kernel(x.numbers(), x.columns(), sigma);
    let (kt, width) = kernel(t.numbers(), t.columns(), sigma);
    let both = Information::new(&kx, &kt, n);
    let (own_x, own_t) = (Information::new(&kx, &kx, n), Information::new(&kt, &kt, n));
    // A code that is the same for all rows says nothing, of itself or of them.
    if own_t.value <= 1e-12 {
        return Ok((0.0, vec![0.0; t.numbers().len()]));
    }
    let (root_x, root_t) = (own_x.value.max(0.0).sqrt(), own_t.value.max(0.0).sqrt());
    let below = root_x * root_t + 1e-12;
    let value = both.value / below;

    // Along the kernel of the codes, made symmetric, times the kernel itself.
    let by_own = value * root_x / (2.0 * root_t + 1e-12) / below;
    let mut pull = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..n {
            let at = i * n + j;
            let one = both.along(&kx, at, i) / below - by_own * 2.0 * own_t.along(&kt, at, i);
            let back = j * n + i;
            let other = both.along(&kx, back, j) / below - by_own * 2.0 * own_t.along(&kt, back, j);
            pull[at] = (one + other) * kt[at];
        }
    }
    let dim = t.columns();
    let mut gradient = product(view(&pull, n), view(t.numbers(), dim));
    let bend = 1.0 / (width * width);
    for (i, row) in gradient.chunks_exact_mut(dim).enumerate() {
        let sum: f64 = pull[i * n..(i + 1) * n].iter().sum();
        let codes = t.row(i).iter();
        row.iter_mut()
            .zip(codes)
            .for_each(|(g, z)| *g = bend * (*g - sum * z));
    }
    Ok((value, gradient))
}

/// The quadratic mutual information of two kernels, and what its gradient needs.
struct Information {
    value: f64,
    /// `1ᵀ A B 1`.
    cross: f64,
    /// `tr A B`.
    trace: f64,
    /// Sum of `B`.
    sum: f64,
    /// Sums of the rows of `A`.
    rows: Vec<f64>,
}

impl Information {
    fn new(a: &[f64], b: &[f64], n: usize) -> Self {
        let sums = |m: &[f64]| -> Vec<f64> { m.chunks_exact(n).map(|r| r.iter().sum()).collect() };
        let (rows, others) = (sums(a), sums(b));
        let cross = crate::algebra::dot(&rows, &others);
        let trace = crate::algebra::dot(a, b);
        let (sum_a, sum): (f64, f64) = (rows.iter().sum(), others.iter().sum());
        let m = n as f64;
        let value = -2.0 * (cross / m.powi(3)).log2()
            + (trace / m.powi(2)).log2()
            + (sum_a * sum / m.powi(4)).log2();
        Self {
            value,
            cross,
            trace,
            sum,
            rows,
        }
    }

    /// The derivative along entry `at`, in row `i`, of `B`; `a` is the other kernel.
    fn along(&self, a: &[f64], at: usize, i: usize) -> f64 {
        (-2.0 * self.rows[i] / self.cross + a[at] / self.trace + 1.0 / self.sum) / LN_2
    }
}
