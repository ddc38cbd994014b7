//! Fixtures, and rows that are drawn.

// Every test file uses its own part of this.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::PathBuf;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// Shapes and numbers by name.
pub(crate) fn tensors(name: &str) -> HashMap<String, (Vec<usize>, Vec<f64>)> {
    let bytes = std::fs::read(fixture(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |t: &safetensors::tensor::TensorView<'_>| -> Vec<f64> {
        match t.dtype() {
            Dtype::F32 => {
                let parts = t.data().as_chunks().0.iter();
                parts.map(|b| f64::from(f32::from_le_bytes(*b))).collect()
            }
            _ => {
                let parts = t.data().as_chunks().0.iter();
                parts.map(|b| f64::from_le_bytes(*b)).collect()
            }
        }
    };
    let all = file.tensors().into_iter();
    all.map(|(name, t)| (name, (t.shape().to_vec(), numbers(&t))))
        .collect()
}

pub(crate) fn single(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().map(|x| *x as f32).collect()
}

/// The largest difference.
pub(crate) fn apart(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b);
    pairs
        .map(|(a, b)| (f64::from(*a) - b).abs())
        .fold(0.0, f64::max)
}

pub(crate) fn normal(rng: &mut StdRng) -> f32 {
    keyfold_core::normal(|| rng.random()) as f32
}

/// Random directions, `[rows, width]`.
pub(crate) fn directions(rows: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut all: Vec<f32> = (0..rows * width).map(|_| normal(&mut rng)).collect();
    keyfold_kernels::normalize_rows(&mut all, width);
    all
}

/// Rows that are sums of few of the `atoms`.
pub(crate) fn sparse_rows(
    atoms: &[f32],
    width: usize,
    rows: usize,
    active: f64,
    seed: u64,
) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut all = vec![0.0; rows * width];
    for row in all.chunks_exact_mut(width) {
        for atom in atoms.chunks_exact(width) {
            if rng.random_bool(active) {
                keyfold_kernels::axpy(row, normal(&mut rng), atom);
            }
        }
    }
    all
}
