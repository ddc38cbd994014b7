//! Near-linear attention by a polynomial in place of `exp`.
//!
//! With `p(s) = Σ_t c_t s^t` and the monomials `x^α` of degree up to `g`:
//!
//! ```text
//! p(s_ijk) = Σ_α U0[i,α] U1[j,α] U2[k,α]        U0 = c_|α| (|α|!/α!) (scale Q_i)^α
//!                                               U1 = K1_j^α      U2 = K2_k^α
//! O_i      = U0 ((U1ᵀ V1) ⊙ (U2ᵀ V2)) / U0 (columns(U1) ⊙ columns(U2))
//! ```
//!
//! There are `C(g + d, g)` monomials. Pairs up to a position are a product set, so that
//! causal attention is a running sum.
//!
//! Taylor's polynomial is best where most scores are near 0, as they are for random input; the
//! minimax polynomial has the smallest error at the worst score. Taylor's of even degree is
//! above 0 everywhere; others may not be, and then weights cancel: [`Certificate`] says so.

mod gradients;

use super::Attention;
use super::exact::{add, dot};
use crate::SequenceError;

/// Monomials at most.
const MOST: usize = 20_000;

/// Scores beyond this need a degree that takes longer than all pairs.
const LARGEST_SCORE: f64 = 4.0;

/// How the polynomial is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// The Taylor series at 0.
    Taylor,
    /// The least relative error at the worst score of the bound.
    Minimax,
}

/// What a polynomial attention is worth: computed from the input, without the exact one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Certificate {
    /// No score is larger than this, or smaller than its negative.
    pub score_bound: f64,
    /// The largest `|p(s) / exp(s) - 1|` within the bound.
    pub relative_error: f64,
    /// No number of the output is further from the exact one; infinite where the
    /// polynomial may be 0 or below.
    pub output_error: f64,
    /// Monomials.
    pub features: usize,
}

/// Attention by a polynomial of a degree.
#[derive(Debug, Clone)]
pub struct Polynomial {
    coefficients: Vec<f64>,
    features: Features,
    bound: f64,
}

impl Polynomial {
    /// For an attention. With `force` scores may be larger than is sensible.
    ///
    /// # Errors
    /// When there would be too many monomials or scores may be too large.
    pub fn new(
        attention: &Attention,
        degree: usize,
        fit: Fit,
        force: bool,
    ) -> Result<Self, SequenceError> {
        let count = feature_count(attention.dim, degree);
        if count.is_none_or(|count| count > MOST) {
            return Err(SequenceError::Refused(format!(
                "degree {degree} in {} dimensions has more than {MOST} monomials; lower one of them",
                attention.dim
            )));
        }
        let bound = attention.score_bound();
        if bound > LARGEST_SCORE && !force {
            return Err(SequenceError::Refused(format!(
                "scores may be as large as {bound:.3}; beyond {LARGEST_SCORE} a polynomial is no stand-in for exp: \
                 scale the input down, or force it"
            )));
        }
        let taylor = (0..=degree).map(|t| 1.0 / factorial(t)).collect();
        let coefficients = match fit {
            Fit::Taylor => taylor,
            Fit::Minimax if bound == 0.0 => taylor,
            Fit::Minimax => minimax(degree, bound),
        };
        Ok(Self {
            coefficients,
            features: Features::new(attention.dim, degree),
            bound,
        })
    }

    /// Coefficients, the constant first.
    pub fn coefficients(&self) -> &[f64] {
        &self.coefficients
    }

    /// How wrong it can be.
    pub fn certificate(&self, attention: &Attention) -> Certificate {
        let steps = 4_000;
        let error = |i: usize| {
            let s = self.bound * (2.0 * i as f64 / f64::from(steps) - 1.0);
            (value(&self.coefficients, s) * (-s).exp() - 1.0).abs()
        };
        let relative_error = (0..=steps as usize).map(error).fold(0.0, f64::max);
        // Weights are within 1 ± e of the exact ones, so their normalised sum within this.
        let output_error = if relative_error < 1.0 {
            2.0 * relative_error / (1.0 - relative_error) * attention.value_bound()
        } else {
            f64::INFINITY
        };
        Certificate {
            score_bound: self.bound,
            relative_error,
            output_error,
            features: self.features.len(),
        }
    }

    /// The output `[n, values_dim]` of the attention that it was made for.
    pub fn apply(&self, attention: &Attention) -> Vec<f64> {
        let mut sums = Sums::new(attention, self.features.len());
        let (width, n) = (attention.values_dim, attention.len());
        if !attention.causal {
            (0..n).for_each(|row| sums.add(attention, &self.features, row));
            sums.join();
        }
        let mut out = vec![0.0; n * width];
        let mut query = vec![0.0; self.features.len()];
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            if attention.causal {
                sums.add(attention, &self.features, i);
                sums.join();
            }
            self.query(attention, i, &mut query);
            for (u, values) in query.iter().zip(sums.values.chunks_exact(width)) {
                add(out, *u, values);
            }
            let sum = dot(&query, &sums.weights);
            out.iter_mut().for_each(|x| *x /= sum);
        }
        out
    }

    /// Features of a query, with their coefficients.
    fn query(&self, attention: &Attention, row: usize, out: &mut [f64]) {
        let q = &attention.queries[row * attention.dim..][..attention.dim];
        let scaled: Vec<f64> = q.iter().map(|q| attention.scale * q).collect();
        self.features.fill(&scaled, out);
        for (out, monomial) in out.iter_mut().zip(&self.features.all) {
            *out *= self.coefficients[monomial.degree] * monomial.count;
        }
    }
}

/// Sums over the rows of keys.
#[derive(Clone)]
struct Sums {
    /// Of each key, `[r]` and `[r, values_dim]`.
    own: Vec<(Vec<f64>, Vec<f64>)>,
    /// Of all keys, multiplied.
    weights: Vec<f64>,
    values: Vec<f64>,
    row: Vec<f64>,
}

impl Sums {
    fn new(attention: &Attention, r: usize) -> Self {
        let of_key = (vec![0.0; r], vec![0.0; r * attention.values_dim]);
        Self {
            own: vec![of_key; attention.keys.len()],
            weights: vec![0.0; r],
            values: vec![0.0; r * attention.values_dim],
            row: vec![0.0; r],
        }
    }

    /// Adds a row of every key.
    fn add(&mut self, attention: &Attention, features: &Features, row: usize) {
        let (d, width) = (attention.dim, attention.values_dim);
        for (place, (weights, values)) in self.own.iter_mut().enumerate() {
            features.fill(&attention.keys[place][row * d..][..d], &mut self.row);
            let value = &attention.values[place][row * width..][..width];
            for (a, u) in self.row.iter().enumerate() {
                weights[a] += u;
                add(&mut values[a * width..][..width], *u, value);
            }
        }
    }

    /// Multiplies the sums of all keys.
    fn join(&mut self) {
        self.weights.fill(1.0);
        self.values.fill(1.0);
        for (weights, values) in &self.own {
            multiply(&mut self.weights, weights);
            multiply(&mut self.values, values);
        }
    }
}

fn multiply(x: &mut [f64], by: &[f64]) {
    x.iter_mut().zip(by).for_each(|(x, by)| *x *= by);
}

/// All monomials up to a degree; each is an earlier one times a coordinate.
#[derive(Debug, Clone)]
struct Features {
    all: Vec<Monomial>,
}

#[derive(Debug, Clone)]
struct Monomial {
    degree: usize,
    /// Itself for the constant.
    parent: usize,
    coordinate: usize,
    /// `|α|! / α!`.
    count: f64,
    /// The power of the last coordinate.
    power: usize,
}

impl Features {
    fn new(dim: usize, degree: usize) -> Self {
        let one = Monomial {
            degree: 0,
            parent: 0,
            coordinate: 0,
            count: 1.0,
            power: 0,
        };
        let mut all = vec![one];
        let mut level = 0..1;
        for degree in 1..=degree {
            let first = all.len();
            for parent in level {
                let from: Monomial = all[parent].clone();
                for coordinate in from.coordinate..dim {
                    let same = coordinate == from.coordinate && from.degree > 0;
                    let power = if same { from.power + 1 } else { 1 };
                    let count = from.count * degree as f64 / power as f64;
                    all.push(Monomial {
                        degree,
                        parent,
                        coordinate,
                        count,
                        power,
                    });
                }
            }
            level = first..all.len();
        }
        Self { all }
    }

    fn len(&self) -> usize {
        self.all.len()
    }

    /// Values of all monomials at `x`.
    fn fill(&self, x: &[f64], out: &mut [f64]) {
        out[0] = 1.0;
        for (a, m) in self.all.iter().enumerate().skip(1) {
            out[a] = out[m.parent] * x[m.coordinate];
        }
    }

    /// Adds the gradient of `x` from those of the monomials, which are used up.
    fn back(&self, x: &[f64], values: &[f64], slopes: &mut [f64], dx: &mut [f64]) {
        for (a, m) in self.all.iter().enumerate().skip(1).rev() {
            slopes[m.parent] += slopes[a] * x[m.coordinate];
            dx[m.coordinate] += slopes[a] * values[m.parent];
        }
    }
}

/// `C(g + d, g)`, if it is no astronomical number.
fn feature_count(dim: usize, degree: usize) -> Option<usize> {
    let mut count = 1usize;
    for t in 1..=degree {
        count = count.checked_mul(dim + t)? / t;
        if count > MOST {
            return None;
        }
    }
    Some(count)
}

fn factorial(t: usize) -> f64 {
    (1..=t).map(|x| x as f64).product()
}

fn value(coefficients: &[f64], s: f64) -> f64 {
    coefficients.iter().rev().fold(0.0, |sum, c| sum * s + c)
}

/// The polynomial with the least `max |p(s) exp(-s) - 1|` on `[-bound, bound]`, by Remez'
/// exchange of the points where the error is largest.
fn minimax(degree: usize, bound: f64) -> Vec<f64> {
    let points = degree + 2;
    let node = |i: usize| -(std::f64::consts::PI * i as f64 / (points - 1) as f64).cos() * bound;
    let mut places: Vec<f64> = (0..points).map(node).collect();
    let mut best = vec![0.0; degree + 1];
    for _ in 0..20 {
        let solved = level(&places, degree);
        best.copy_from_slice(&solved[..=degree]);
        let error = |s: f64| value(&best, s) * (-s).exp() - 1.0;
        let next = extremes(&error, bound, points);
        if next.len() != points {
            break;
        }
        let moved = next.iter().zip(&places).map(|(a, b)| (a - b).abs());
        let far = moved.fold(0.0, f64::max);
        places = next;
        if far < 1e-9 * bound {
            break;
        }
    }
    best
}

/// Coefficients, and the error that is the same at all places with changing sign.
fn level(places: &[f64], degree: usize) -> Vec<f64> {
    let size = degree + 2;
    let mut rows: Vec<Vec<f64>> = places
        .iter()
        .enumerate()
        .map(|(i, &s)| {
            let weight = (-s).exp();
            let mut row: Vec<f64> = (0..=degree).map(|t| s.powi(t as i32) * weight).collect();
            row.push(if i % 2 == 0 { 1.0 } else { -1.0 });
            row.push(1.0);
            row
        })
        .collect();
    // Elimination with the largest pivot.
    for column in 0..size {
        let pivot =
            (column..size).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()));
        rows.swap(column, pivot.unwrap_or(column));
        let pivot = rows[column].clone();
        for (i, row) in rows.iter_mut().enumerate() {
            if i != column && pivot[column] != 0.0 {
                let factor = -row[column] / pivot[column];
                add(row, factor, &pivot);
            }
        }
    }
    (0..size).map(|i| rows[i][size] / rows[i][i]).collect()
}

/// Places of the largest errors between changes of sign.
fn extremes(error: &dyn Fn(f64) -> f64, bound: f64, most: usize) -> Vec<f64> {
    let steps = 2_000 * most;
    let mut found: Vec<(f64, f64)> = Vec::new();
    for i in 0..=steps {
        let s = bound * (2.0 * i as f64 / steps as f64 - 1.0);
        let e = error(s);
        match found.last_mut() {
            Some(last) if last.1.signum() == e.signum() => {
                if e.abs() > last.1.abs() {
                    *last = (s, e);
                }
            }
            _ => found.push((s, e)),
        }
    }
    found.into_iter().map(|(s, _)| s).collect()
}
