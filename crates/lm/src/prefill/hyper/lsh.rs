//! Buckets of vectors by the signs of random projections, in an order in which neighbours
//! are alike.

use keyfold_kernels::dot;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// How the number of a bucket is made of its bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gray {
    /// The Gray code of the number, as the authors' table has it. Neighbouring buckets may
    /// differ in more than one bit.
    #[default]
    Code,
    /// The place of the number in the Gray sequence: neighbouring buckets differ in one bit.
    /// It made no difference that could be measured.
    Rank,
}

/// Random directions and the order of their buckets.
#[derive(Debug, Clone)]
pub struct AngularLsh {
    dim: usize,
    /// `[directions, dim]`.
    directions: Vec<f32>,
    gray: Gray,
}

impl AngularLsh {
    /// Directions of normally distributed numbers.
    pub fn new(dim: usize, directions: usize, gray: Gray, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut normal = || keyfold_core::normal(|| rng.random()) as f32;
        let directions = (0..directions * dim).map(|_| normal()).collect();
        Self::with_directions(directions, dim, gray)
    }

    /// These directions, `[directions, dim]`.
    pub fn with_directions(directions: Vec<f32>, dim: usize, gray: Gray) -> Self {
        Self {
            dim,
            directions,
            gray,
        }
    }

    /// The bucket of a row.
    pub fn bucket(&self, row: &[f32]) -> u32 {
        let directions = self.directions.chunks_exact(self.dim).enumerate();
        let bits = directions.fold(0u32, |bits, (i, direction)| {
            bits | (u32::from(dot(row, direction) > 0.0) << i)
        });
        match self.gray {
            Gray::Code => bits ^ (bits >> 1),
            Gray::Rank => (1..5).fold(bits, |rank, i| rank ^ (rank >> (1 << (i - 1)))),
        }
    }

    /// The numbers of `rows` by their buckets; those of one bucket stay in order.
    pub fn order(&self, rows: &[f32]) -> Vec<u32> {
        let buckets: Vec<u32> = rows
            .chunks_exact(self.dim)
            .map(|row| self.bucket(row))
            .collect();
        let count = 1usize << (self.directions.len() / self.dim);
        let mut starts = vec![0u32; count + 1];
        for &bucket in &buckets {
            starts[bucket as usize + 1] += 1;
        }
        for bucket in 0..count {
            starts[bucket + 1] += starts[bucket];
        }
        let mut order = vec![0; buckets.len()];
        for (row, &bucket) in buckets.iter().enumerate() {
            let place = &mut starts[bucket as usize];
            order[*place as usize] = row as u32;
            *place += 1;
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Buckets of all eight sign patterns of three numbers, by the number of the pattern.
    fn buckets(gray: Gray) -> Vec<u32> {
        let unit = vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        let lsh = AngularLsh::with_directions(unit, 3, gray);
        let sign = |number: u32, bit: u32| if number >> bit & 1 == 1 { 1.0 } else { -1.0 };
        (0..8)
            .map(|n| lsh.bucket(&[sign(n, 0), sign(n, 1), sign(n, 2)]))
            .collect()
    }

    #[test]
    fn the_authors_table_is_the_gray_code_and_the_rank_its_inverse() {
        assert_eq!(buckets(Gray::Code), [0, 1, 3, 2, 6, 7, 5, 4]);
        let ranks = buckets(Gray::Rank);
        let codes = buckets(Gray::Code);
        for (number, &code) in codes.iter().enumerate() {
            assert_eq!(ranks[code as usize], number as u32);
        }
    }

    #[test]
    fn rows_are_ordered_by_bucket_and_stay_in_order_within_it() {
        let lsh = AngularLsh::new(8, 5, Gray::Code, 1);
        let mut rng = StdRng::seed_from_u64(2);
        let rows: Vec<f32> = (0..400 * 8).map(|_| rng.random_range(-1.0..1.0)).collect();
        let bucket = |row: &u32| lsh.bucket(&rows[*row as usize * 8..][..8]);
        let mut expected: Vec<u32> = (0..400).collect();
        expected.sort_by_key(bucket);
        assert_eq!(lsh.order(&rows), expected);
    }
}
