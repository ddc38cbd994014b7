//! Keeping some rows as they are and dropping the others: the baselines of CRISP.

use super::DROPPED;

/// Groups of the last `keep` of `n` rows, each for itself.
pub(super) fn tail(n: usize, keep: usize) -> Vec<u32> {
    kept(n, |i| i + keep >= n)
}

/// Groups of every `step`-th of `n` rows from the first, each for itself.
pub(super) fn spaced(n: usize, step: usize) -> Vec<u32> {
    kept(n, |i| i.is_multiple_of(step))
}

fn kept(n: usize, keep: impl Fn(usize) -> bool) -> Vec<u32> {
    let group = |i| if keep(i) { i as u32 } else { DROPPED };
    (0..n).map(group).collect()
}
