//! Binary codes: one bit for every number of a row, which holds `±1 / √dim` alone.
//!
//! The product of two such rows is `1 - 2 d / dim`, with `d` bits in which they
//! differ, so that the best row is the one of least Hamming distance.

/// Appends the codes of rows (`[n, width]`, the width a multiple of 8): a bit is 1 where
/// a number is above 0, the first number in the highest bit of the first byte.
pub(super) fn encode(rows: &[f32], out: &mut Vec<u8>) {
    let byte = |eight: &[f32; 8]| {
        let bits = eight.iter().map(|x| u8::from(*x > 0.0));
        bits.fold(0, |byte, bit| byte << 1 | bit)
    };
    out.extend(rows.as_chunks().0.iter().map(byte));
}

/// Appends the rows of `dim` numbers that codes stand for, as long as their codes.
pub(super) fn decode(packed: &[u8], dim: usize, out: &mut Vec<f32>) {
    let side = 1.0 / (dim as f32).sqrt();
    let number = |byte: u8, bit: u8| if byte >> bit & 1 == 1 { side } else { -side };
    let bits = |&byte: &u8| (0..8).rev().map(move |bit| number(byte, bit));
    out.extend(packed.iter().flat_map(bits));
}

/// A query of binary codes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HammingQuery {
    /// `[rows, bytes]`.
    codes: Vec<u8>,
    bytes: usize,
    dim: usize,
}

impl HammingQuery {
    /// Of rows `[n, width]` with `dim` numbers that matter; none where one of these is
    /// not `±1 / √dim`, as in a query that feedback moved.
    pub(crate) fn new(rows: &[f32], width: usize, dim: usize) -> Option<Self> {
        let side = 1.0 / (dim as f32).sqrt();
        let mut numbers = rows.chunks_exact(width).flat_map(|row| &row[..dim]);
        if !numbers.all(|x| (x.abs() - side).abs() < 1e-3 * side) {
            return None;
        }
        let mut codes = Vec::new();
        encode(rows, &mut codes);
        Some(Self {
            codes,
            bytes: width / 8,
            dim,
        })
    }

    /// MaxSim with the coded rows of a passage; 0 if there are none.
    pub(crate) fn score(&self, packed: &[u8]) -> f32 {
        let best = |query: &[u8]| {
            let rows = packed.chunks_exact(self.bytes);
            let least = rows.map(|row| distance(query, row)).min();
            least.map_or(0.0, |d| 1.0 - 2.0 * d as f32 / self.dim as f32)
        };
        self.codes.chunks_exact(self.bytes).map(best).sum()
    }
}

/// In how many bits two codes differ.
fn distance(a: &[u8], b: &[u8]) -> u32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks(), b.as_chunks());
    let words = a.iter().zip(b);
    let words = words.map(|(a, b)| (u64::from_ne_bytes(*a) ^ u64::from_ne_bytes(*b)).count_ones());
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| (a ^ b).count_ones());
    words.sum::<u32>() + rest.sum::<u32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyfold_kernels::dot;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn codes_come_back_and_their_products_follow_from_their_distance(
            a in prop::collection::vec(any::<u8>(), 1..33),
            seed in any::<u64>(),
        ) {
            let b: Vec<u8> = a.iter().zip(0..).map(|(x, i)| x ^ (seed >> (i % 57)) as u8).collect();
            let dim = 8 * a.len();
            let (mut rows, mut codes) = (Vec::new(), Vec::new());
            decode(&[&a[..], &b[..]].concat(), dim, &mut rows);
            encode(&rows, &mut codes);
            prop_assert_eq!(&codes[..a.len()], &a[..]);
            prop_assert_eq!(&codes[a.len()..], &b[..]);
            let query = HammingQuery::new(&rows[..dim], dim, dim).unwrap();
            let want = dot(&rows[..dim], &rows[dim..]);
            prop_assert!((query.score(&b) - want).abs() < 1e-5);
            // Of several rows the best counts, and it is exact.
            prop_assert_eq!(query.score(&codes[..]), 1.0);
        }
    }

    #[test]
    fn rows_that_are_no_codes_are_told() {
        assert!(HammingQuery::new(&[0.5, -0.5, 0.5, 0.4], 4, 4).is_none());
        assert!(HammingQuery::new(&[0.0; 8], 8, 8).is_none());
    }
}
