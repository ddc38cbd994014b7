//! Orthogonal matching pursuit with the Gram matrix.
//!
//! The atoms in use are made orthonormal one after the other. Of each such direction `q`
//! the products with all atoms are kept, `r = q Dᵀ`; then the rest loses its part along
//! `q` by one subtraction, `c ← c - (q·x) r`, and no vector of the data is touched.

use keyfold_kernels as kernels;

use super::work::Work;
use crate::Codes;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) most: usize,
    pub(super) tol: Option<f32>,
}

/// Codes a row with the products `c` and the squared length `energy`.
pub(super) fn encode(
    work: &mut Work,
    gram: &[f32],
    c: &mut [f32],
    energy: f32,
    limit: Limit,
    codes: &mut Codes,
) {
    let n = c.len();
    work.reset();
    if work.table.len() < limit.most * n {
        work.table.resize(limit.most * n, 0.0);
    }
    let (mut along, mut rest) = (Vec::with_capacity(limit.most), energy);
    for step in 0..limit.most {
        if limit.tol.is_some_and(|tol| rest <= tol) {
            break;
        }
        let best = kernels::place_of_largest(c, true);
        // Nothing goes with the rest any more, or only by rounding.
        if work.used[best] || c[best] * c[best] <= 1e-12 * energy {
            break;
        }
        let atom = &gram[best * n..][..n];
        let (before, new) = work.table.split_at_mut(step * n);
        let new = &mut new[..n];
        new.copy_from_slice(atom);
        work.factors.clear();
        work.factors
            .extend(before.chunks_exact(n).map(|r| -r[best]));
        let own = atom[best] - work.factors.iter().map(|f| f * f).sum::<f32>();
        if own <= 1e-6 * atom[best] {
            break;
        }
        let places: &[u32] = &PLACES[..step.min(PLACES.len())];
        if places.len() == step {
            kernels::gather_add(new, before, places, &work.factors);
        } else {
            for (r, f) in before.chunks_exact(n).zip(&work.factors) {
                kernels::axpy(new, *f, r);
            }
        }
        let scale = 1.0 / own.sqrt();
        new.iter_mut().for_each(|x| *x *= scale);
        let part = c[best] * scale;
        kernels::axpy(c, -part, new);
        // By rounding it may not be 0, and would be chosen again.
        rest -= part * part;
        along.push(part);
        work.used[best] = true;
        work.active.push(best as u32);
    }
    // Back from the orthonormal directions: R γ = along, R[i, j] = q_i · d_j.
    let values = &mut work.values;
    values.resize(along.len(), 0.0);
    for i in (0..along.len()).rev() {
        let r = &work.table[i * n..][..n];
        let later = work.active[i + 1..].iter().zip(&values[i + 1..]);
        let sum: f32 = later.map(|(a, v)| r[*a as usize] * v).sum();
        values[i] = (along[i] - sum) / r[work.active[i] as usize];
    }
    super::descent::push_sorted(&work.active, &work.values, codes);
}

/// Numbers of rows in order, for the kernel that gathers.
const PLACES: [u32; 64] = {
    let mut places = [0; 64];
    let mut i = 0;
    while i < 64 {
        places[i] = i as u32;
        i += 1;
    }
    places
};
