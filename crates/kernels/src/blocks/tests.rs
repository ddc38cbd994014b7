use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::Team;

pub(super) fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

pub(super) fn packed(kind: BlockType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; kind.row_bytes(values.len()).unwrap()];
    quantize(kind, values, &mut bytes);
    bytes
}

fn unpacked(kind: BlockType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / kind.block_bytes() * kind.block_len()];
    dequantize(kind, bytes, &mut values);
    values
}

/// Bytes of blocks with any codes and any scales from a thousandth to a half.
pub(super) fn any_blocks(kind: BlockType, blocks: usize, seed: u64) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut bytes = vec![0u8; blocks * kind.block_bytes()];
    rng.fill(&mut bytes[..]);
    let halves: &[usize] = match kind {
        BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => &[0],
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
        BlockType::Q6K => &[208],
        _ => &[],
    };
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        for &at in halves {
            let x: f32 = rng.random_range(0.001..0.5);
            let x = if rng.random() { x } else { -x };
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(x).to_le_bytes());
        }
        if halves.is_empty() {
            let x: f32 = rng.random_range(-1.0..1.0);
            quantize(kind, &[x], block);
        }
    }
    bytes
}

/// `x · wᵀ` in f64, and for each the sum of the absolute products.
fn definition(w: &[f32], x: &[f32], cols: usize) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    for x in x.chunks_exact(cols) {
        for w in w.chunks_exact(cols) {
            let terms = || w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
            out.push((terms().sum(), terms().map(f64::abs).sum()));
        }
    }
    out
}

/// The inputs as a packed product sees them.
fn rounded(x: &mut Activations) -> Vec<f32> {
    x.round();
    (0..x.rows())
        .flat_map(|row| {
            let row = x.packed(row);
            let number = |(i, &q): (usize, &i8)| f32::from(q) * row.scales[i / 32];
            row.codes.iter().enumerate().map(number).collect::<Vec<_>>()
        })
        .collect()
}

fn kinds() -> impl Strategy<Value = BlockType> {
    prop::sample::select(BlockType::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn products_are_those_of_the_unpacked_weights(
        kind in kinds(),
        rows in 0usize..23,
        blocks in 1usize..4,
        n in 1usize..10,
        threads in 1usize..4,
        seed: u64,
    ) {
        let blocks = if kind.block_len() == 1 { blocks * 19 } else { blocks };
        let cols = blocks * kind.block_len();
        let bytes = any_blocks(kind, rows * blocks, seed);
        let weights = BlockMatrix::new(kind, rows, cols, &bytes).unwrap();
        let w = unpacked(kind, &bytes);
        let mut x = Activations::new();
        x.set(&numbers(n * cols, !seed), cols);
        let seen = if kind.is_packed() { rounded(&mut x) } else { x.values().to_vec() };
        let team = Team::new(threads);

        let mut out = vec![9.0; n * rows];
        matvec(&mut out, &weights, &mut x, &team);
        let want = definition(&w, &seen, cols);
        for (got, (want, size)) in out.iter().zip(&want) {
            prop_assert!((f64::from(*got) - want).abs() < 2e-6 * size + 1e-6, "{got} {want}");
        }
        // To the bit, whatever the team.
        let mut alone = vec![9.0; n * rows];
        matvec(&mut alone, &weights, &mut x, &Team::new(1));
        prop_assert_eq!(&alone, &out);

        // The twin for any machine.
        let mut twin = vec![9.0; n * rows];
        let whole = dot::Output::new(&mut twin, n, rows);
        // SAFETY: all columns, once.
        dot::any_machine(&weights, &x, &mut unsafe { whole.columns(0..rows) });
        for (got, (want, size)) in twin.iter().zip(&want) {
            prop_assert!((f64::from(*got) - want).abs() < 2e-6 * size + 1e-6, "{got} {want}");
        }

        #[cfg(target_arch = "x86_64")]
        {
            let mut twin = vec![9.0; n * rows];
            let whole = dot::Output::new(&mut twin, n, rows);
            // SAFETY: all columns, once.
            if dot::with_avx2_alone(&weights, &x, &mut unsafe { whole.columns(0..rows) }) {
                for (got, (want, size)) in twin.iter().zip(&want) {
                    prop_assert!((f64::from(*got) - want).abs() < 2e-6 * size + 1e-6, "{got} {want}");
                }
            }
        }

        let mut product = vec![9.0; n * rows];
        product::unpacked(&mut product, &weights, x.values(), &team);
        for (got, (want, size)) in product.iter().zip(definition(&w, x.values(), cols)) {
            prop_assert!((f64::from(*got) - want).abs() < 2e-6 * size + 1e-6, "{got} {want}");
        }
        // In integers with rounded inputs where the machine is made for it.
        matmul(&mut product, &weights, &mut x, &team);
        let seen = match lanes::available(kind) {
            true => seen,
            false => x.values().to_vec(),
        };
        for (got, (want, size)) in product.iter().zip(definition(&w, &seen, cols)) {
            // Codes without sign are larger than the weights that they stand for.
            prop_assert!((f64::from(*got) - want).abs() < 1e-5 * size + 1e-5, "{got} {want}");
        }
        let mut alone = vec![9.0; n * rows];
        matmul(&mut alone, &weights, &mut x, &Team::new(1));
        prop_assert_eq!(alone, product);
    }

    #[test]
    fn any_bytes_unpack_alike_everywhere(kind in kinds(), blocks in 0usize..5, seed: u64) {
        let mut bytes = vec![0u8; blocks * kind.block_bytes()];
        SmallRng::seed_from_u64(seed).fill(&mut bytes[..]);
        let here = unpacked(kind, &bytes);
        let mut twin = vec![0.0; here.len()];
        decode::decode_body::<crate::vector::Portable>(kind, &bytes, &mut twin);
        for (x, y) in here.iter().zip(&twin) {
            prop_assert!(x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()));
        }
    }

    #[test]
    fn numbers_come_back_as_closely_as_the_kind_allows(kind in kinds(), seed: u64, scale in -3i32..4) {
        let scale = 10f32.powi(scale);
        let x: Vec<f32> = numbers(512, seed).iter().map(|x| scale * x).collect();
        let back = unpacked(kind, &packed(kind, &x));
        let error: f32 = x.iter().zip(&back).map(|(a, b)| (a - b).powi(2)).sum();
        let size: f32 = x.iter().map(|a| a * a).sum();
        // Half a step of the range [-1, 1] has the share step² / 12 of 1/3, and scales are
        // rounded too.
        let bound = match kind {
            BlockType::F32 => 0.0,
            BlockType::F16 => 3e-4,
            BlockType::Bf16 => 3e-3,
            BlockType::Q8_0 => 6e-3,
            BlockType::Q6K => 2e-2,
            BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q5K => 5e-2,
            BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q4K => 1e-1,
        };
        prop_assert!((error / size).sqrt() <= bound, "{} {}", kind.name(), (error / size).sqrt());
    }
}

#[test]
fn several_matrices_are_multiplied_as_one_by_one() {
    let team = Team::new(2);
    let kinds = [BlockType::Q4_1, BlockType::F16, BlockType::Q8_0];
    let bytes = kinds.map(|kind| any_blocks(kind, 7 * 64 / kind.block_len(), 3));
    let matrix = |i: usize| BlockMatrix::new(kinds[i], 7, 64, &bytes[i]).unwrap();
    let mut x = Activations::new();
    x.set(&numbers(2 * 64, 4), 64);
    let mut together = [[0.0; 14]; 3];
    let mut products: Vec<Product> = together
        .iter_mut()
        .enumerate()
        .map(|(i, out)| Product::new(matrix(i), out))
        .collect();
    matvec_several(&mut products, &mut x, &team);
    for (i, together) in together.iter().enumerate() {
        let mut alone = [0.0; 14];
        matvec(&mut alone, &matrix(i), &mut x, &team);
        assert_eq!(&alone, together);
    }
}

#[test]
fn nothing_and_zeros_and_what_is_no_number() {
    for kind in BlockType::ALL {
        let cols = 256;
        let zeros = packed(kind, &[0.0; 512]);
        assert_eq!(unpacked(kind, &zeros), [0.0; 512], "{}", kind.name());
        let weights = BlockMatrix::new(kind, 2, cols, &zeros).unwrap();
        let mut x = Activations::new();
        x.set(&[1.0; 256], cols);
        let mut out = [9.0; 2];
        matvec(&mut out, &weights, &mut x, &Team::new(1));
        assert_eq!(out, [0.0; 2], "{}", kind.name());
        x.set(&[], cols);
        matvec(&mut [], &weights, &mut x, &Team::new(1));
        matmul(&mut [], &weights, &mut x, &Team::new(1));
        // Damaged files and overflows end in numbers that are none, not in a panic.
        let ones = vec![255; zeros.len()];
        let weights = BlockMatrix::new(kind, 2, cols, &ones).unwrap();
        let mut wild = numbers(cols, 1);
        (wild[3], wild[100], wild[200]) = (f32::NAN, f32::INFINITY, f32::MAX);
        x.set(&wild, cols);
        matvec(&mut out, &weights, &mut x, &Team::new(1));
        matmul(&mut out, &weights, &mut x, &Team::new(1));
        packed(kind, &wild);
    }
}

#[test]
fn a_matrix_has_the_bytes_of_its_shape() {
    let kind = BlockType::Q4_0;
    assert!(BlockMatrix::new(kind, 2, 64, &[0; 72]).is_ok());
    let error = BlockMatrix::new(kind, 2, 64, &[0; 71]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "2 rows of 64 numbers as Q4_0 are not 71 bytes"
    );
    let error = BlockMatrix::new(kind, 2, 65, &[0; 72]).unwrap_err();
    assert!(error.to_string().contains("no whole blocks"), "{error}");
    assert!(BlockMatrix::new(kind, usize::MAX, 64, &[]).is_err());
    assert_eq!(BlockType::Q6K.row_bytes(512), Some(420));
}
