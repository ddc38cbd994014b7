//! Rotary position embedding (Su et al. 2021).

use std::sync::Arc;

use burn::tensor::Tensor;
use keyfold_kernels::attention::{Rotation, rotate};
use rayon::prelude::*;

use super::operator::{Array, BLOCK, Operator, apply};

/// Angles by which the heads of every row are turned.
#[derive(Debug, Clone)]
pub struct Angles {
    /// `[rows, pairs]`.
    cos: Arc<[f32]>,
    /// `[rows, pairs]`.
    sin: Arc<[f32]>,
    pairs: usize,
    rotation: Rotation,
}

impl Angles {
    /// `position · frequency` for every row and pair; cosines and sines are multiplied by `scale`.
    pub fn new(positions: &[u32], frequencies: &[f32], scale: f32, rotation: Rotation) -> Self {
        let angles = positions
            .iter()
            .flat_map(|&p| frequencies.iter().map(move |f| (p as f32 * f).sin_cos()));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(|(s, c)| (s * scale, c * scale)).unzip();
        Self {
            cos: cos.into(),
            sin: sin.into(),
            pairs: frequencies.len(),
            rotation,
        }
    }
}

/// Every head (`size` numbers) of the rows of `x` `[rows, heads · size]`, turned by the
/// row's angles.
///
/// # Panics
/// When the shapes do not fit.
pub fn rotary(x: Tensor<2>, angles: &Angles, size: usize) -> Tensor<2> {
    let angles = angles.clone();
    apply(Rotary { angles, size }, [x.into()])
}

#[derive(Clone, Debug)]
struct Rotary {
    angles: Angles,
    size: usize,
}

impl Rotary {
    fn turn(&self, mut x: Array, back: bool) -> Array {
        let [rows, width] = x.sizes();
        let pairs = self.angles.pairs;
        assert_eq!(
            self.angles.cos.len(),
            rows * pairs,
            "rotary: angles of each row"
        );
        if rows * width * pairs == 0 {
            return x;
        }
        x.numbers_mut()
            .par_chunks_mut(BLOCK * width)
            .zip(self.angles.cos.par_chunks(BLOCK * pairs))
            .zip(self.angles.sin.par_chunks(BLOCK * pairs))
            .for_each(|((x, cos), sin)| {
                let rows = x.chunks_exact_mut(width);
                let angles = cos.chunks_exact(pairs).zip(sin.chunks_exact(pairs));
                let mut turned = vec![0.0; pairs];
                for (x, (cos, sin)) in rows.zip(angles) {
                    turned.copy_from_slice(sin);
                    if back {
                        turned.iter_mut().for_each(|s| *s = -*s);
                    }
                    rotate(x, self.size, cos, &turned, self.angles.rotation);
                }
            });
        x
    }
}

impl Operator<1> for Rotary {
    type Saved = ();

    fn forward(&self, [x]: [Array; 1]) -> (Array, ()) {
        (self.turn(x, false), ())
    }

    /// A rotation's transpose turns back.
    fn backward(&self, (): (), g: Array, _: [bool; 1]) -> [Option<Array>; 1] {
        [Some(self.turn(g, true))]
    }
}
