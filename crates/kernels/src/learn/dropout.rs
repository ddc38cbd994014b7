//! Dropout whose choice follows from a seed and the place alone, so that the backward pass
//! draws it again instead of keeping it.

/// Which numbers are set to 0, and how the others grow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// A number is kept when its random 32 bits are at least this.
    least: u32,
    scale: f32,
    seed: u64,
}

impl Dropout {
    /// Sets to 0 with probability `rate` (at least 0, below 1); others grow by
    /// `1 / (1 - rate)`.
    pub fn new(rate: f64, seed: u64) -> Self {
        Self {
            least: (rate * 4_294_967_296.0) as u32,
            scale: (1.0 / (1.0 - rate)) as f32,
            seed,
        }
    }

    /// Drops numbers of row `row`.
    pub fn apply(&self, row: u64, x: &mut [f32]) {
        if self.least > 0 {
            apply(x, seed_of_row(self.seed, row), self.least, self.scale);
        }
    }
}

/// 32 random bits for a row, by SplitMix64's finish (Steele, Lea, Flood 2014).
pub fn seed_of_row(seed: u64, row: u64) -> u32 {
    let mut x = seed ^ row.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x >> 32) as u32
}

crate::vector::simd! {
    fn apply(x: &mut [f32], seed: u32, least: u32, scale: f32) = body;
}

/// Plain code: the compiler makes vectors of it.
#[inline(always)]
// `simd!` names the vector, which plain code has no use for.
#[allow(clippy::extra_unused_type_parameters)]
fn body<V>(x: &mut [f32], seed: u32, least: u32, scale: f32) {
    for (i, x) in (0u32..).zip(x) {
        let factor = if hash(i, seed) >= least { scale } else { 0.0 };
        *x *= factor;
    }
}

/// Wellons' hash of 32 bits with low bias (hash-prospector, 2018) of a Weyl sequence.
#[inline(always)]
fn hash(i: u32, seed: u32) -> u32 {
    let mut x = i.wrapping_mul(0x9e37_79b9) ^ seed;
    x = (x ^ (x >> 16)).wrapping_mul(0x21f0_aaad);
    x = (x ^ (x >> 15)).wrapping_mul(0x735a_2d97);
    x ^ (x >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;

    #[test]
    fn the_share_that_is_dropped_is_the_rate_in_rows_and_columns() {
        let dropout = Dropout::new(0.1, 5);
        let (rows, columns) = (400, 300);
        let mut dropped = vec![0; columns];
        let mut both = 0;
        for row in 0..rows {
            let mut x = vec![1.0f32; columns];
            dropout.apply(row, &mut x);
            let zeros = x.iter().filter(|&&x| x == 0.0).count();
            assert!((8..60).contains(&zeros), "row {row}: {zeros}");
            assert!(x.iter().all(|&x| x == 0.0 || (x - 1.0 / 0.9).abs() < 1e-6));
            for (count, x) in dropped.iter_mut().zip(&x) {
                *count += usize::from(*x == 0.0);
            }
            both += x.windows(2).filter(|w| w[0] == 0.0 && w[1] == 0.0).count();
        }
        assert!(dropped.iter().all(|n| (10..80).contains(n)), "{dropped:?}");
        let all = dropped.iter().sum::<usize>() as f64 / (rows as usize * columns) as f64;
        assert!((all - 0.1).abs() < 0.004, "{all}");
        // Neighbours are independent.
        let both = both as f64 / (rows as usize * (columns - 1)) as f64;
        assert!((both - 0.01).abs() < 0.0015, "{both}");
    }

    #[test]
    fn the_choice_follows_from_seed_and_row_and_the_twin_makes_the_same() {
        for len in [0, 1, 7, 8, 100] {
            let drop = |seed, row| {
                let mut x = vec![1.0; len];
                Dropout::new(0.5, seed).apply(row, &mut x);
                x
            };
            assert_eq!(drop(1, 2), drop(1, 2));
            if len == 100 {
                assert_ne!(drop(1, 2), drop(1, 3));
                assert_ne!(drop(1, 2), drop(2, 2));
            }
            let mut twin = vec![1.0; len];
            body::<Portable>(&mut twin, seed_of_row(1, 2), 1 << 31, 2.0);
            assert_eq!(drop(1, 2), twin);
        }
        let mut x = [1.0, 2.0];
        Dropout::new(0.0, 9).apply(0, &mut x);
        assert_eq!(x, [1.0, 2.0]);
    }
}
