use super::*;
use crate::vector::Portable;
use crate::{maxsim, norm, normalize_rows};
use proptest::prelude::*;

fn codec(bits: u32) -> ResidualCodec {
    // Uneven steps, so that every weight is told from its neighbours.
    let weight = |i: i32| (i as f32 - 0.4 * (1 << bits) as f32) * 0.1 + 0.003 * (i * i) as f32;
    let weights: Vec<f32> = (0..1 << bits).map(weight).collect();
    let cutoffs = weights.windows(2).map(|w| (w[0] + w[1]) / 2.0).collect();
    ResidualCodec::new(bits, cutoffs, weights).unwrap()
}

/// Bucket and value of a number by the definition.
fn value_of(codec: &ResidualCodec, x: f32) -> f32 {
    codec.weights()[codec.cutoffs().iter().filter(|&&c| c < x).count()]
}

fn bits() -> impl Strategy<Value = u32> {
    prop_oneof![Just(1u32), Just(2), Just(4)]
}

/// Bits, a dimension that fits, centroids `[k, dim]`, codes, and packed rows.
fn packed_rows() -> impl Strategy<Value = (u32, usize, Vec<f32>, Vec<u16>, Vec<u8>)> {
    (bits(), 1usize..12, 1usize..6, 0usize..60).prop_flat_map(|(bits, steps, k, n)| {
        let dim = steps * 8 / bits as usize;
        (
            Just(bits),
            Just(dim),
            prop::collection::vec(-1f32..1.0, k * dim),
            prop::collection::vec(0..k as u16, n),
            prop::collection::vec(any::<u8>(), n * steps),
        )
    })
}

proptest! {
    #[test]
    fn what_is_decoded_is_the_weight_of_the_bucket(
        bits in bits(),
        mut numbers in prop::collection::vec(-3f32..3.0, 0..200),
    ) {
        let codec = codec(bits);
        numbers.truncate(numbers.len() / 8 * 8 + if bits == 4 { 2 } else { 0 });
        numbers.truncate(numbers.len() / (8 / bits as usize) * (8 / bits as usize));
        let mut packed = vec![7];
        codec.encode(&numbers, &mut packed);
        let packed = &packed[1..];
        prop_assert_eq!(packed.len(), numbers.len() * bits as usize / 8);
        let mut decoded = vec![0.0; numbers.len()];
        codec.decode_into(packed, &mut decoded);
        for (x, y) in numbers.iter().zip(&decoded) {
            prop_assert_eq!(value_of(&codec, *x), *y);
        }

        let whole = numbers.len() / 8 * 8;
        let mut portable = Vec::new();
        encode_eights_body::<Portable>(&codec, &numbers[..whole], &mut portable);
        prop_assert_eq!(&portable, &packed[..portable.len()]);
        let mut values = vec![0.0; numbers.len()];
        match bits {
            1 => values_1_body::<Portable>(&codec, packed, &mut values),
            2 => values_2_body::<Portable>(&codec, packed, &mut values),
            _ => values_4_body::<Portable>(&codec, packed, &mut values),
        }
        prop_assert_eq!(&values, &decoded);

        let row: Vec<f32> = (0..numbers.len()).map(|i| (i as f32 * 0.7).sin()).collect();
        let product = codec.dot(packed, &row);
        let portable = match bits {
            1 => dot_1_body::<Portable>(&codec, packed, &row),
            2 => dot_2_body::<Portable>(&codec, packed, &row),
            _ => dot_4_body::<Portable>(&codec, packed, &row),
        };
        let want = crate::dot(&decoded, &row);
        let size: f32 = 1e-6 + decoded.iter().map(|x| x.abs()).sum::<f32>();
        prop_assert!((product - want).abs() < 1e-5 * size, "{product} {want}");
        prop_assert!((portable - want).abs() < 1e-5 * size, "{portable} {want}");
    }

    #[test]
    fn rows_come_back_as_centroid_plus_values_of_length_one(
        (bits, dim, centroids, codes, packed) in packed_rows(),
    ) {
        let codec = codec(bits);
        let mut want = vec![0.0; codes.len() * dim];
        codec.decode_into(&packed, &mut want);
        for (row, &code) in want.chunks_mut(dim).zip(&codes) {
            crate::add_assign(row, &centroids[usize::from(code) * dim..][..dim]);
        }
        normalize_rows(&mut want, dim);
        let mut got = vec![9.0];
        reconstruct(&centroids, &codes, &packed, &codec, dim, &mut got);
        prop_assert_eq!(got.len(), 1 + want.len());
        for (x, y) in got[1..].iter().zip(&want) {
            prop_assert!((x - y).abs() < 1e-5, "{x} {y}");
        }

        let rows = Packed::new(&centroids, &codes, &packed, &codec, dim);
        let some = 0..codes.len().min(BLOCK);
        let want = &want[..some.len() * dim];
        let (mut here, mut portable) = (vec![0.0; want.len()], vec![0.0; want.len()]);
        let (mut scales, mut portable_scales) = (vec![0.0; some.len()], vec![0.0; some.len()]);
        rows.decode(some.clone(), &mut here, &mut scales);
        let body = [decode_1_body::<Portable>, decode_2_body::<Portable>, decode_4_body::<Portable>];
        body[bits as usize / 2](&rows, some, &mut portable, &mut portable_scales);
        prop_assert_eq!(here, portable);
        for (x, y) in scales.iter().zip(&portable_scales) {
            prop_assert!((x / y - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn packed_maxsim_is_that_of_the_reconstructed_rows(
        (bits, dim, centroids, codes, packed) in packed_rows(),
        nq in 0usize..20,
        seed in prop::collection::vec(-1f32..1.0, 64),
    ) {
        let codec = codec(bits);
        let query: Vec<f32> = (0..nq * dim).map(|i| seed[(i * 37 + i / 64) % 64]).collect();
        let mut rows = Vec::new();
        reconstruct(&centroids, &codes, &packed, &codec, dim, &mut rows);
        let want = maxsim(&query, &rows, dim);
        let mut prepared = MaxSim::new(&query, dim);
        for _ in 0..2 {
            let got = maxsim_packed(&mut prepared, &centroids, &codes, &packed, &codec);
            prop_assert!((got - want).abs() < 1e-4, "{got} {want}");
        }
    }

    #[test]
    fn trained_tables_have_no_more_error_than_quantiles_and_each_number_its_nearest_weight(
        bits in bits(),
        numbers in prop::collection::vec(-10_000i32..10_000, 64..400),
    ) {
        let mut numbers: Vec<f32> = numbers.into_iter().map(|x| (x as f32 / 5000.0).powi(3)).collect();
        numbers.sort_unstable_by(f32::total_cmp);
        let codec = ResidualCodec::train(&numbers, bits).unwrap();
        let (cutoffs, weights) = quantiles(&numbers, 1 << bits);
        let plaid = ResidualCodec::new(bits, cutoffs, weights).unwrap();
        let error = |codec: &ResidualCodec| -> f64 {
            numbers.iter().map(|&x| f64::from(x - value_of(codec, x)).powi(2)).sum()
        };
        prop_assert!(error(&codec) <= error(&plaid) * 1.0001 + 1e-9);
        prop_assert!(codec.weights().is_sorted());
        for &x in &numbers {
            let nearest = codec.weights().iter().map(|w| (x - w).abs()).fold(f32::MAX, f32::min);
            prop_assert!((x - value_of(&codec, x)).abs() <= nearest + 1e-4);
        }
    }
}

#[test]
fn quantiles_are_those_of_torch() {
    // torch.quantile(torch.arange(5.), torch.tensor([...])), linear.
    let (cutoffs, weights) = quantiles(&[0.0, 1.0, 2.0, 3.0, 4.0], 4);
    assert_eq!(cutoffs, [1.0, 2.0, 3.0]);
    assert_eq!(weights, [0.5, 1.5, 2.5, 3.5]);
}

#[test]
fn bits_lie_as_documented() {
    let two = ResidualCodec::new(2, vec![0.5, 1.5, 2.5], vec![0.0, 1.0, 2.0, 3.0]).unwrap();
    let mut packed = Vec::new();
    two.encode(&[1.0, 0.0, 3.0, 2.0], &mut packed);
    assert_eq!(packed, [0b10_11_00_01]);
    // A number at a cutoff is in the bucket below it.
    packed.clear();
    two.encode(&[0.5, 1.5, 2.5, f32::NAN], &mut packed);
    assert_eq!(packed, [0b00_10_01_00]);
}

#[test]
fn odd_training_data_gives_a_usable_codec() {
    let inf = f32::INFINITY;
    for numbers in [
        &[][..],
        &[f32::NAN, inf, -inf],
        &[f32::MAX, f32::MIN, f32::NAN],
    ] {
        for bits in [1, 2, 4] {
            let codec = ResidualCodec::train(numbers, bits).unwrap();
            assert!(codec.weights().iter().all(|w| w.is_finite()));
        }
    }
    assert_eq!(ResidualCodec::train(&[1.0], 3), Err(CodecError::Bits(3)));
}

#[test]
fn damaged_tables_and_codes_are_noticed_or_harmless() {
    let inf = f32::INFINITY;
    for (cutoffs, weights) in [
        (vec![], vec![0.0, 1.0]),
        (vec![0.0], vec![0.0]),
        (vec![inf], vec![0.0, 1.0]),
        (vec![0.0], vec![0.0, f32::NAN]),
    ] {
        let made = ResidualCodec::new(1, cutoffs, weights);
        assert!(matches!(made, Err(CodecError::Tables(_))));
    }
    let descending = ResidualCodec::new(2, vec![1.0, 0.0, 2.0], vec![0.0; 4]);
    assert!(matches!(descending, Err(CodecError::Tables(_))));
    let codec = codec(1);
    assert_eq!(codec.row_bytes(16), Ok(2));
    assert_eq!(
        codec.row_bytes(12),
        Err(CodecError::Dimension { dim: 12, bits: 1 })
    );
    assert!(codec.row_bytes(usize::MAX).is_err());
    // A code without a centroid reads the last one.
    let centroids = [vec![1.0; 8], vec![-1.0; 8]].concat();
    let mut rows = Vec::new();
    reconstruct(&centroids, &[1, 999], &[0, 0], &codec, 8, &mut rows);
    assert_eq!(rows[..8], rows[8..]);
    assert!((norm(&rows[..8]) - 1.0).abs() < 1e-6);
}
