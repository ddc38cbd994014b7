//! Gradients of polynomial attention.
//!
//! With `W_p = Σ_j U_p[j]` and `X_p = U_pᵀ V_p` for each key `p`, a query's output is a quotient
//! of `Σ_α U0 Π_p X_p` and `Σ_α U0 Π_p W_p`. Gradients flow to the sums, and from a sum to every
//! row in it. Where attention is causal each query has its own sums, those up to its position: a
//! row's gradient is then the sum over the queries from its position on, which are gone through
//! from the last to the first. Sums are kept at `√n` positions and made anew between them: taking
//! rows off again would leave their rounding behind. Both take `n r d` steps.

use super::super::exact::{add, dot};
use super::super::{Attention, Gradients};
use super::{Polynomial, Sums};
use crate::SequenceError;

/// Gradients of sums over rows: by monomial, and by monomial and number of a value.
#[derive(Clone)]
struct OfSums {
    weights: Vec<f64>,
    values: Vec<f64>,
}

impl OfSums {
    fn new(monomials: usize, width: usize) -> Self {
        Self {
            weights: vec![0.0; monomials],
            values: vec![0.0; monomials * width],
        }
    }

    fn clear(&mut self) {
        self.weights.fill(0.0);
        self.values.fill(0.0);
    }

    fn add(&mut self, other: &Self) {
        add(&mut self.weights, 1.0, &other.weights);
        add(&mut self.values, 1.0, &other.values);
    }
}

impl Polynomial {
    /// Gradients from `dout` `[n, values_dim]`.
    ///
    /// # Errors
    /// When `dout` has another shape.
    pub fn backward(
        &self,
        attention: &Attention,
        dout: &[f64],
    ) -> Result<Gradients, SequenceError> {
        attention.check_dout(dout)?;
        let (n, width) = (attention.len(), attention.values_dim);
        let keys = attention.keys.len();
        let mut out = Gradients {
            queries: vec![0.0; n * attention.dim],
            keys: vec![vec![0.0; n * attention.dim]; keys],
            values: vec![vec![0.0; n * width]; keys],
        };
        if attention.causal {
            self.back_causal(attention, dout, &mut out);
        } else {
            self.back_full(attention, dout, &mut out);
        }
        Ok(out)
    }

    fn back_full(&self, attention: &Attention, dout: &[f64], out: &mut Gradients) {
        let (n, width) = (attention.len(), attention.values_dim);
        let mut sums = Sums::new(attention, self.features.len());
        (0..n).for_each(|row| sums.add(attention, &self.features, row));
        sums.join();
        let mut joined = OfSums::new(self.features.len(), width);
        for (i, dout) in dout.chunks_exact(width).enumerate() {
            self.back_query(attention, &sums, i, dout, &mut joined, out);
        }
        for place in 0..attention.keys.len() {
            let of_key = sums.others(place, &joined);
            for row in 0..n {
                self.back_row(attention, place, row, &of_key, out);
            }
        }
    }

    fn back_causal(&self, attention: &Attention, dout: &[f64], out: &mut Gradients) {
        let (n, width) = (attention.len(), attention.values_dim);
        let monomials = self.features.len();
        let block = (n as f64).sqrt().ceil() as usize;
        let mut before = Vec::new();
        let mut sums = Sums::new(attention, monomials);
        for row in 0..n {
            if row.is_multiple_of(block) {
                before.push(sums.clone());
            }
            sums.add(attention, &self.features, row);
        }
        let mut joined = OfSums::new(monomials, width);
        let mut later = vec![joined.clone(); attention.keys.len()];
        for (first, mut sums) in (0..n).step_by(block).zip(before).rev() {
            let last = (first + block).min(n);
            let each = (first..last).map(|row| {
                sums.add(attention, &self.features, row);
                sums.clone()
            });
            let each: Vec<Sums> = each.collect();
            for (row, mut sums) in (first..last).zip(each).rev() {
                sums.join();
                joined.clear();
                let dout = &dout[row * width..][..width];
                self.back_query(attention, &sums, row, dout, &mut joined, out);
                for (place, later) in later.iter_mut().enumerate() {
                    later.add(&sums.others(place, &joined));
                    self.back_row(attention, place, row, later, out);
                }
            }
        }
    }

    /// Adds the gradients of a query and of the joined sums that it reads.
    fn back_query(
        &self,
        attention: &Attention,
        sums: &Sums,
        row: usize,
        dout: &[f64],
        joined: &mut OfSums,
        out: &mut Gradients,
    ) {
        let (d, width) = (attention.dim, attention.values_dim);
        let mut query = vec![0.0; self.features.len()];
        self.query(attention, row, &mut query);
        let mut mixed = vec![0.0; width];
        for (u, values) in query.iter().zip(sums.values.chunks_exact(width)) {
            add(&mut mixed, *u, values);
        }
        let sum = dot(&query, &sums.weights);
        let dmixed: Vec<f64> = dout.iter().map(|x| x / sum).collect();
        let dsum = -dot(&dmixed, &mixed) / sum;
        add(&mut joined.weights, dsum, &query);
        for (u, values) in query.iter().zip(joined.values.chunks_exact_mut(width)) {
            add(values, *u, &dmixed);
        }
        let values = sums.values.chunks_exact(width);
        let slopes = self.features.all.iter().zip(values).zip(&sums.weights);
        let mut dquery: Vec<f64> = slopes
            .map(|((monomial, values), weight)| {
                let slope = dot(&dmixed, values) + dsum * weight;
                slope * self.coefficients[monomial.degree] * monomial.count
            })
            .collect();
        let q = &attention.queries[row * d..][..d];
        let scaled: Vec<f64> = q.iter().map(|q| attention.scale * q).collect();
        let mut plain = query;
        self.features.fill(&scaled, &mut plain);
        let mut dscaled = vec![0.0; d];
        self.features
            .back(&scaled, &plain, &mut dquery, &mut dscaled);
        add(&mut out.queries[row * d..][..d], attention.scale, &dscaled);
    }

    /// Adds the gradients of a row of a key and its values, from those of the sums it is in.
    fn back_row(
        &self,
        attention: &Attention,
        place: usize,
        row: usize,
        of_sums: &OfSums,
        out: &mut Gradients,
    ) {
        let (d, width) = (attention.dim, attention.values_dim);
        let key = &attention.keys[place][row * d..][..d];
        let value = &attention.values[place][row * width..][..width];
        let mut plain = vec![0.0; self.features.len()];
        self.features.fill(key, &mut plain);
        let dvalue = &mut out.values[place][row * width..][..width];
        let slopes = of_sums.values.chunks_exact(width).zip(&of_sums.weights);
        let mut dplain: Vec<f64> = slopes
            .zip(&plain)
            .map(|((values, weight), u)| {
                add(dvalue, *u, values);
                dot(values, value) + weight
            })
            .collect();
        let dkey = &mut out.keys[place][row * d..][..d];
        self.features.back(key, &plain, &mut dplain, dkey);
    }
}

impl Sums {
    /// Gradients of the sums of one key from those of the joined sums.
    fn others(&self, place: usize, joined: &OfSums) -> OfSums {
        let mut found = joined.clone();
        for (other, (weights, values)) in self.own.iter().enumerate() {
            if other != place {
                super::multiply(&mut found.weights, weights);
                super::multiply(&mut found.values, values);
            }
        }
        found
    }
}
