//! The lasso by coordinate descent on the Gram matrix.
//!
//! `c` holds the products of the rest with all atoms. A coordinate moves to the minimum
//! along itself, `v ← S(c_j + g_jj v, α) / g_jj` with the soft threshold `S`, and `c` loses
//! its move times a row of the Gram matrix. Coordinates enter one at a time, the one that
//! violates the conditions of a minimum most, and those that entered are gone through
//! again, on a Gram matrix of their own; so few rows of the whole one are touched. When none enters any more, the minimum for
//! the signs that are there is solved for at once (`G_SS δ = c_S - α s`; Lee, Battle, Raina and
//! Ng 2007), since coordinates creep where atoms are alike.

use keyfold_kernels as kernels;

use super::work::Work;
use crate::Codes;

/// Moves that are smaller than this part of the largest number end the sweeps, where the
/// equations cannot be solved.
const TOLERANCE: f32 = 1e-5;

/// What a product may be above `alpha` by rounding, as a part of the largest product.
const SLACK: f32 = 2e-6;

/// How often the products are made anew, at most.
const ROUNDS: usize = 4;

/// Sweeps over the coordinates in use, at most, as scikit-learn's `max_iter`.
const SWEEPS: usize = 1000;

/// Times that coordinates in use are gone through before another may enter, at most, and the part
/// of the largest number below which moves end that.
const ROUNDS_IN_USE: usize = 3;
const NEAR: f32 = 0.02;

/// Coordinates for which equations are solved, at most.
const SOLVED: usize = 200;

pub(super) fn encode(
    work: &mut Work,
    gram: &[f32],
    c: &mut [f32],
    alpha: f32,
    positive: bool,
    codes: &mut Codes,
) {
    work.begin(c);
    let top = c[kernels::place_of_largest(c, !positive)].abs();
    settle(work, gram, c, alpha, positive, top);
    push_sorted(&work.active, &work.values, codes);
}

/// Goes on from the numbers that are there to the minimum. `top` is the largest product at the
/// start. Long moves between atoms that are alike leave rounding in `c`, so `c` is made anew
/// from what is in use until it says the same.
pub(super) fn settle(
    work: &mut Work,
    gram: &[f32],
    c: &mut [f32],
    alpha: f32,
    positive: bool,
    top: f32,
) {
    for _ in 0..ROUNDS {
        if !work.active.is_empty() {
            work.factors.clear();
            work.factors.extend(work.values.iter().map(|v| -v));
            c.copy_from_slice(&work.given);
            kernels::gather_add(c, gram, &work.active, &work.factors);
            if is_minimum(c, work, gram, alpha, positive, top) {
                break;
            }
        }
        descend(work, gram, c, alpha, positive, top);
        if work.active.is_empty() {
            break;
        }
    }
}

/// Whether the products are those of a minimum, but for rounding.
fn is_minimum(c: &[f32], work: &Work, gram: &[f32], alpha: f32, positive: bool, top: f32) -> bool {
    let slack = SLACK * top;
    let in_use = work.active.iter().zip(&work.values);
    let at_minimum = |(j, value): (&u32, &f32)| {
        *value == 0.0 || (c[*j as usize] - alpha.copysign(*value)).abs() <= 10.0 * slack
    };
    in_use.into_iter().all(at_minimum)
        && worst(c, work, gram, alpha + 10.0 * slack, positive).is_none()
}

fn descend(work: &mut Work, gram: &[f32], c: &mut [f32], alpha: f32, positive: bool, top: f32) {
    let bound = alpha + SLACK * top;
    let mut settled = false;
    for _ in 0..SWEEPS {
        let next = worst(c, work, gram, bound, positive);
        match next {
            None if settled || work.active.is_empty() => break,
            Some(next) if !work.used[next] => {
                work.used[next] = true;
                work.active.push(next as u32);
                work.values.push(0.0);
            }
            _ => {}
        }
        let still = sweep(work, gram, c, alpha, positive);
        settled = next.is_none() && (solve(work, gram, c, alpha) || still);
    }
}

/// Goes through the coordinates in use, with their products alone, until they hardly move, and
/// then takes what they moved from the products with all atoms. True when nothing moves any more.
fn sweep(work: &mut Work, gram: &[f32], c: &mut [f32], alpha: f32, positive: bool) -> bool {
    work.block.grow(gram, c.len(), &work.active);
    let (gram_in_use, stride) = work.block.rows();
    work.near.clear();
    work.near.extend(work.active.iter().map(|j| c[*j as usize]));
    work.factors.clear();
    work.factors.extend_from_slice(&work.values);
    let mut still = false;
    for round in 0..ROUNDS_IN_USE {
        let (moved, size) = kernels::lasso_sweep(
            &mut work.values,
            &mut work.near,
            gram_in_use,
            stride,
            alpha,
            positive,
        );
        still = round == 0 && moved <= TOLERANCE * size;
        if moved <= NEAR * size {
            break;
        }
    }
    // By how much each number became less.
    for (before, value) in work.factors.iter_mut().zip(&work.values) {
        *before -= value;
    }
    kernels::gather_add(c, gram, &work.active, &work.factors);
    still
}

/// The coordinate at 0 whose product is most above `bound`.
fn worst(c: &[f32], work: &Work, gram: &[f32], bound: f32, positive: bool) -> Option<usize> {
    let n = c.len();
    let size = |j: usize| if positive { c[j] } else { c[j].abs() };
    let first = kernels::place_of_largest(c, !positive);
    if size(first) <= bound {
        return None;
    }
    let at_zero = |j: usize| match work.used[j] {
        false => gram[j * n + j] > 0.0,
        true => {
            let place = work.active.iter().position(|a| *a as usize == j);
            place.is_some_and(|place| work.values[place] == 0.0)
        }
    };
    if at_zero(first) {
        return Some(first);
    }
    // One in use hides it, at the same product but for rounding.
    let others = (0..n).filter(|j| size(*j) > bound && at_zero(*j));
    others.max_by(|a, b| size(*a).total_cmp(&size(*b)))
}

/// Goes to the minimum for the signs that are there, or to where the first number on the way
/// reaches 0. True when it got there.
fn solve(work: &mut Work, gram: &[f32], c: &mut [f32], alpha: f32) -> bool {
    let n = c.len();
    let places: Vec<usize> = (0..work.values.len())
        .filter(|p| work.values[*p] != 0.0)
        .collect();
    if places.len() > SOLVED {
        return false;
    }
    let atoms: Vec<u32> = places.iter().map(|p| work.active[*p]).collect();
    work.triangle.clear();
    let mut way = Vec::new();
    for (i, atom) in atoms.iter().enumerate() {
        let row = &gram[*atom as usize * n..][..n];
        let products = || atoms[..=i].iter().map(|j| f64::from(row[*j as usize]));
        if !work.triangle.push(products()) {
            // It is a sum of those before: along that sum nothing changes but the numbers.
            way.extend(products().take(i).collect::<Vec<f64>>());
            work.triangle.solve(&mut way);
            way.iter_mut().for_each(|x| *x = -*x);
            way.push(1.0);
            break;
        }
    }
    let dependent = !way.is_empty();
    let sign = |place: usize| f64::from(work.values[place].signum());
    if dependent {
        let longer: f64 = places.iter().zip(&way).map(|(p, x)| sign(*p) * x).sum();
        if longer > 0.0 {
            way.iter_mut().for_each(|x| *x = -*x);
        }
    } else {
        let rest = |p: &usize| f64::from(c[work.active[*p] as usize]) - f64::from(alpha) * sign(*p);
        way.extend(places.iter().map(rest));
        work.triangle.solve(&mut way);
    }
    let mut part = if dependent { f64::INFINITY } else { 1.0 };
    let mut first = None;
    for (place, by) in places.iter().zip(&way) {
        let at = -f64::from(work.values[*place]) / by;
        if at > 0.0 && at < part {
            (part, first) = (at, Some(*place));
        }
    }
    if !part.is_finite() {
        return false;
    }
    work.factors.clear();
    work.factors
        .extend(way.iter().map(|by| -(part * by) as f32));
    for (place, by) in places.iter().zip(&work.factors) {
        work.values[*place] -= by;
    }
    kernels::gather_add(c, gram, &atoms[..work.factors.len()], &work.factors);
    if let Some(place) = first {
        // What is left there by rounding is taken back from the products as well.
        let left = std::mem::take(&mut work.values[place]);
        let row = &gram[work.active[place] as usize * n..][..n];
        kernels::axpy(c, left, row);
    }
    first.is_none()
}

/// Appends a row by the numbers of the atoms.
pub(super) fn push_sorted(active: &[u32], values: &[f32], codes: &mut Codes) {
    let mut pairs: Vec<(u32, f32)> = active.iter().copied().zip(values.iter().copied()).collect();
    pairs.sort_unstable_by_key(|(atom, _)| *atom);
    codes.push(pairs);
}
