//! The small network: six linear layers, with the authors' names.

use rand::rngs::SmallRng;

use crate::layers::{Layers, Pass, Shape};
use crate::tensors::Tensors;

/// Names of the layers in the authors' state dict.
const NAMES: [&str; 6] = [
    "encoder.f_theta.0",
    "encoder.f_theta.2",
    "encoder.f_theta.4",
    "enc_mean",
    "decoder.g_theta.0",
    "decoder.g_theta.2",
];

/// The layer whose output is the code.
pub(super) const CODE: usize = 3;

/// Of so many columns, hidden numbers, and numbers of a code.
fn shapes((columns, hidden, code): (usize, usize, usize)) -> [Shape; 6] {
    let shape = |width, inputs, relu| Shape {
        width,
        inputs,
        relu,
    };
    [
        shape(hidden, columns, true),
        shape(hidden, hidden, true),
        shape(code, hidden, false),
        shape(code, code, false),
        shape(hidden, code, true),
        shape(1, hidden, false),
    ]
}

pub(super) fn random(widths: (usize, usize, usize), rng: &mut SmallRng) -> Layers {
    Layers::random(&shapes(widths), rng)
}

/// The codes of some rows, `[rows, code]`.
pub(super) fn code(pass: &Pass) -> &[f32] {
    &pass.values[CODE + 1]
}

pub(super) fn save(network: &Layers, tensors: &mut Tensors) {
    network.save(&NAMES, tensors);
}

pub(super) fn load(widths: (usize, usize, usize), tensors: &mut Tensors) -> Result<Layers, String> {
    Layers::load(&shapes(widths), &NAMES, tensors)
}
