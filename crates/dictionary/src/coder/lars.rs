//! The lasso along its path, by least-angle regression.
//!
//! From the α at which all is 0 downwards the solution moves on straight lines. All atoms
//! in use have the same absolute product λ with the rest; the direction `w` solves
//! `G_AA w = s` with their signs `s`. A line ends where another atom reaches λ (it enters),
//! a number reaches 0 (it leaves), or λ reaches α.

use keyfold_kernels as kernels;

use super::descent;
use super::work::Work;
use crate::Codes;

pub(super) fn encode(
    work: &mut Work,
    gram: &[f32],
    c: &mut [f32],
    alpha: f32,
    positive: bool,
    codes: &mut Codes,
) {
    work.begin(c);
    let n = c.len();
    let first = kernels::place_of_largest(c, !positive);
    let mut lambda = if positive { c[first] } else { c[first].abs() };
    let start = lambda;
    // Below this nothing but rounding is left.
    let alpha = alpha.max(1e-6 * start);
    if lambda > alpha {
        enter(work, gram, n, first);
    }
    // A path has about as many lines as atoms enter and leave; this ends one that turns
    // in a circle by rounding.
    let mut lines = 0;
    let mut moves = vec![0.0; n];
    let mut direction: Vec<f64> = Vec::new();
    let mut excluded: Vec<usize> = Vec::new();
    while !work.active.is_empty() && lambda > alpha && lines < 8 * n + 16 {
        lines += 1;
        direction.clear();
        direction.extend(
            work.active
                .iter()
                .map(|j| f64::from(c[*j as usize].signum())),
        );
        work.triangle.solve(&mut direction);
        work.factors.clear();
        work.factors.extend(direction.iter().map(|x| *x as f32));
        moves.fill(0.0);
        kernels::gather_add(&mut moves, gram, &work.active, &work.factors);

        let (step, next) = entering(
            c,
            &moves,
            lambda,
            lambda - alpha,
            &work.used,
            &excluded,
            positive,
        );
        let leaving = leaving(&work.values, &work.factors, step);
        let step = leaving.map_or(step, |(step, _)| step);
        for (value, by) in work.values.iter_mut().zip(&work.factors) {
            *value += step * by;
        }
        kernels::axpy(c, -step, &moves);
        lambda -= step;
        if let Some((_, place)) = leaving {
            // It is still at λ, and by rounding might enter at once.
            excluded.push(work.active[place] as usize);
            leave(work, gram, n, place);
        } else if let Some(next) = next {
            match enter(work, gram, n, next) {
                true => excluded.clear(),
                // It depends on those in use: the path goes on without it.
                false => excluded.push(next),
            }
        }
    }
    // Where an atom depends on those in use, the path went on without it.
    descent::settle(work, gram, c, alpha, positive, start.abs());
    descent::push_sorted(&work.active, &work.values, codes);
}

/// Takes an atom into use; false where it depends on those that are.
fn enter(work: &mut Work, gram: &[f32], n: usize, atom: usize) -> bool {
    let row = &gram[atom * n..][..n];
    let own = std::iter::once(atom as u32);
    let products = work
        .active
        .iter()
        .copied()
        .chain(own)
        .map(|j| f64::from(row[j as usize]));
    if !work.triangle.push(products) {
        return false;
    }
    work.used[atom] = true;
    work.active.push(atom as u32);
    work.values.push(0.0);
    true
}

/// Takes an atom out of use, and makes the factor of those that stay.
fn leave(work: &mut Work, gram: &[f32], n: usize, place: usize) {
    let atom = work.active.remove(place) as usize;
    work.values.remove(place);
    work.used[atom] = false;
    work.triangle.clear();
    for i in 0..work.active.len() {
        let row = &gram[work.active[i] as usize * n..][..n];
        let products = work.active[..=i]
            .iter()
            .map(|j| f64::from(row[*j as usize]));
        if !work.triangle.push(products) {
            // By rounding only, since it was possible with one more.
            let gone = work.active.split_off(i);
            work.values.truncate(i);
            gone.iter().for_each(|a| work.used[*a as usize] = false);
            return;
        }
    }
}

/// How far until an atom enters, at most `most`, and which.
fn entering(
    c: &[f32],
    moves: &[f32],
    lambda: f32,
    most: f32,
    used: &[bool],
    excluded: &[usize],
    positive: bool,
) -> (f32, Option<usize>) {
    let (mut step, mut next) = (most, None);
    for (j, ((&c, &m), &used)) in c.iter().zip(moves).zip(used).enumerate() {
        if used {
            continue;
        }
        // λ - step = ± (c - step m)
        let up = if m < 1.0 {
            (lambda - c) / (1.0 - m)
        } else {
            f32::INFINITY
        };
        let down = if m > -1.0 && !positive {
            (lambda + c) / (1.0 + m)
        } else {
            f32::INFINITY
        };
        let at = up.min(down).max(0.0);
        if at < step && !excluded.contains(&j) {
            (step, next) = (at, Some(j));
        }
    }
    (step, next)
}

/// The first number that reaches 0 before `most`, and where.
fn leaving(values: &[f32], by: &[f32], most: f32) -> Option<(f32, usize)> {
    let (mut step, mut place) = (most, None);
    for (i, (value, by)) in values.iter().zip(by).enumerate() {
        let at = -value / by;
        if at > 0.0 && at < step {
            (step, place) = (at, Some(i));
        }
    }
    place.map(|place| (step, place))
}
