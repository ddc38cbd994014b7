//! Rotary position embedding (Su et al. 2021): pairs of a head's dimensions are turned by
//! angles that grow with the position.

use crate::dot::assert_rows;
use crate::vector::{Eight, simd};

/// Which dimensions make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// `i` and `i + rotated / 2` (checkpoints in Hugging Face's layout).
    Half,
    /// `2 i` and `2 i + 1` (Meta's layout, and GGUF files of the `llama` kind).
    Interleaved,
}

/// Turns every head of `x` (`[heads, head_dim]`): `(a, b)` becomes
/// `(a cos - b sin, b cos + a sin)`. `cos` and `sin` hold one number for each pair;
/// dimensions beyond twice their length stay.
///
/// # Panics
/// When `x` is no whole number of heads, or the tables differ or are too long.
pub fn rotate(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], rotation: Rotation) {
    assert_rows(x.len(), head_dim, "rotate");
    assert!(
        cos.len() == sin.len() && 2 * cos.len() <= head_dim,
        "rotate: tables do not fit heads of {head_dim}"
    );
    match rotation {
        Rotation::Half => halves(x, head_dim, cos, sin),
        Rotation::Interleaved => neighbours(x, head_dim, cos, sin),
    }
}

simd! {
    fn halves(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) = halves_body;
}

#[inline(always)]
pub(super) fn halves_body<V: Eight>(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let pairs = cos.len();
    for head in x.chunks_exact_mut(head_dim.max(1)) {
        // The compiler makes vector code of it.
        let (first, second) = head[..2 * pairs].split_at_mut(pairs);
        for i in 0..pairs {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cos[i] - b * sin[i];
            second[i] = b * cos[i] + a * sin[i];
        }
    }
}

simd! {
    fn neighbours(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) = neighbours_body;
}

#[inline(always)]
pub(super) fn neighbours_body<V: Eight>(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    for head in x.chunks_exact_mut(head_dim.max(1)) {
        let pairs = head.as_chunks_mut::<2>().0;
        for (pair, (cos, sin)) in pairs.iter_mut().zip(cos.iter().zip(sin)) {
            let [a, b] = *pair;
            *pair = [a * cos - b * sin, b * cos + a * sin];
        }
    }
}
