//! Rows of signed bytes.

use half::f16;

use super::BLOCK;
use crate::dot::assert_rows;
use crate::maxsim::MaxSim;
use crate::vector::{Eight, simd};

/// Rows of signed bytes: per row an `f16` scale `s = max|x| / 127` (little
/// endian), then `round(x / s)` for every dimension. NaN is stored as 0, numbers
/// beyond `127 * 65504` as that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int8Codec {
    /// Length of a row.
    pub dim: usize,
}

impl Int8Codec {
    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        2 + self.dim
    }

    /// Appends the codes of `rows` (`[n, dim]`) to `out`.
    ///
    /// # Panics
    /// When `rows` is no whole number of rows.
    pub fn encode(&self, rows: &[f32], out: &mut Vec<u8>) {
        assert_rows(rows.len(), self.dim, "Int8Codec::encode");
        for row in rows.chunks_exact(self.dim.max(1)) {
            let max = row.iter().fold(0f32, |m, x| m.max(x.abs()));
            let scale = f16::from_f32((max / 127.0).min(f16::MAX.to_f32()));
            out.extend_from_slice(&scale.to_le_bytes());
            let scale = scale.to_f32();
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            let code = |x: &f32| (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
            out.extend(row.iter().map(code));
        }
    }

    /// Writes the rows in `packed` to `out`.
    ///
    /// # Panics
    /// When the two do not hold the same whole number of rows.
    pub fn decode_into(&self, packed: &[u8], out: &mut [f32]) {
        let rows = assert_rows(packed.len(), self.row_bytes(), "Int8Codec::decode_into");
        assert_eq!(
            out.len(),
            rows * self.dim,
            "Int8Codec::decode_into: length of out"
        );
        let packed = packed.chunks_exact(self.row_bytes());
        for (out, packed) in out.chunks_exact_mut(self.dim.max(1)).zip(packed) {
            let (scale, bytes) = scale_and_bytes(packed);
            widen(bytes, out);
            out.iter_mut().for_each(|x| *x *= scale);
        }
    }

    /// MaxSim of a query with the packed rows of one document.
    ///
    /// # Panics
    /// When the query has another dimension or `packed` is no whole number of rows.
    pub fn maxsim(&self, query: &mut MaxSim, packed: &[u8]) -> f32 {
        assert_eq!(
            query.dim(),
            self.dim,
            "Int8Codec::maxsim: dimension of the query"
        );
        assert_rows(packed.len(), self.row_bytes(), "Int8Codec::maxsim");
        query.start();
        let mut dense = std::mem::take(&mut query.decoded);
        let mut scales = std::mem::take(&mut query.scales);
        dense.resize(BLOCK * self.dim, 0.0);
        for packed in packed.chunks(BLOCK * self.row_bytes()) {
            let rows = packed.chunks_exact(self.row_bytes());
            let dense = &mut dense[..rows.len() * self.dim];
            scales.clear();
            for (row, out) in rows.zip(dense.chunks_exact_mut(self.dim.max(1))) {
                let (scale, bytes) = scale_and_bytes(row);
                widen(bytes, out);
                scales.push(scale);
            }
            query.meet(dense, Some(&scales), false);
        }
        query.decoded = dense;
        query.scales = scales;
        query.sum()
    }
}

/// The parts of a packed row.
fn scale_and_bytes(row: &[u8]) -> (f32, &[u8]) {
    let scale = f16::from_le_bytes([row[0], row[1]]).to_f32();
    (scale, &row[2..])
}

simd! {
    /// Signed bytes as numbers.
    fn widen(bytes: &[u8], out: &mut [f32]) = widen_body;
}

#[inline(always)]
fn widen_body<V: Eight>(bytes: &[u8], out: &mut [f32]) {
    // The compiler makes vector code of such a loop.
    for (x, &byte) in out.iter_mut().zip(bytes) {
        *x = f32::from(byte.cast_signed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maxsim;
    use crate::vector::Portable;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_row_comes_back_within_half_a_step(
            row in prop::collection::vec(-3f32..3.0, 1..90),
        ) {
            let codec = Int8Codec { dim: row.len() };
            let mut packed = Vec::new();
            codec.encode(&row, &mut packed);
            prop_assert_eq!(packed.len(), codec.row_bytes());
            let mut back = vec![0.0; row.len()];
            codec.decode_into(&packed, &mut back);
            let max = row.iter().fold(0f32, |m, x| m.max(x.abs()));
            for (x, y) in row.iter().zip(&back) {
                // Half a step, and the rounding of the scale to f16.
                prop_assert!((x - y).abs() <= max * (0.51 / 127.0 + 5e-4), "{x} {y}");
            }
        }

        #[test]
        fn packed_maxsim_is_that_of_the_decoded_rows(
            dim in 1usize..20,
            nq in 0usize..12,
            nd in 0usize..60,
            numbers in prop::collection::vec(-1f32..1.0, 20 * 72),
        ) {
            let codec = Int8Codec { dim };
            let (query, rest) = numbers.split_at(nq * dim);
            let mut packed = Vec::new();
            codec.encode(&rest[..nd * dim], &mut packed);
            let mut dense = vec![0.0; nd * dim];
            codec.decode_into(&packed, &mut dense);
            let got = codec.maxsim(&mut MaxSim::new(query, dim), &packed);
            let want = maxsim(query, &dense, dim);
            prop_assert!((got - want).abs() < 1e-4, "{got} {want}");
        }

        #[test]
        fn any_bytes_decode_alike_everywhere(bytes in prop::collection::vec(any::<u8>(), 0..70)) {
            let (mut here, mut portable) = (vec![0.0; bytes.len()], vec![0.0; bytes.len()]);
            widen(&bytes, &mut here);
            widen_body::<Portable>(&bytes, &mut portable);
            prop_assert_eq!(&here, &portable);
            for (x, byte) in here.iter().zip(bytes) {
                prop_assert_eq!(*x, f32::from(byte as i8));
            }
        }
    }

    #[test]
    fn odd_rows() {
        let codec = Int8Codec { dim: 3 };
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let rows = [nan, 1.0, -1.0, inf, -inf, 5.0, 0.0, 0.0, 0.0, nan, nan, nan];
        let mut packed = Vec::new();
        codec.encode(&rows, &mut packed);
        let mut back = [1.0; 12];
        codec.decode_into(&packed, &mut back);
        assert_eq!(back[0], 0.0);
        assert!((back[1] - 1.0).abs() < 1e-3 && (back[2] + 1.0).abs() < 1e-3);
        assert!(back[3] > 8e6 && back[4] < -8e6 && back[5] == 0.0);
        assert_eq!(back[6..], [0.0; 6]);
        // A scale of NaN, as a damaged file may hold, reaches no score.
        let damaged = [0xff, 0xff, 1, 2, 3];
        assert_eq!(codec.maxsim(&mut MaxSim::new(&[1.0; 3], 3), &damaged), 0.0);
    }
}
