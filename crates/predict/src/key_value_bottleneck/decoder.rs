//! Decoders with weights: scores from all values that a row has looked up, side by side.
//!
//! A linear probe or a network with one hidden layer (128, ReLU). They learn together with the
//! values of the first rows, and stay from then on: later rows move values alone, so that what was
//! learned is read as it was. A class that comes later gets weights that are drawn.

use rand::rngs::SmallRng;

use super::{Decoder, KeyValueBottleneckConfig};
use crate::layers::{Layers, Shape};
use crate::tensors::Tensors;

/// Names of a `torch.nn.Sequential`.
const NAMES: [&str; 2] = ["decoder.0", "decoder.2"];

/// A decoder with weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Network {
    pub(super) layers: Layers,
    /// Whether the first rows were learned.
    pub(super) frozen: bool,
}

/// The layers from values of `width` numbers to the scores of `classes`; none of a decoder without
/// weights.
fn shapes(config: &KeyValueBottleneckConfig, width: usize, classes: usize) -> Vec<Shape> {
    let inputs = config.num_codebooks * width;
    let shape = |width, inputs, relu| Shape {
        width,
        inputs,
        relu,
    };
    match config.decoder {
        Decoder::CodebookVotingLogits => Vec::new(),
        Decoder::LinearProbe => vec![shape(classes, inputs, false)],
        Decoder::Mlp => vec![
            shape(config.decoder_hidden, inputs, true),
            shape(classes, config.decoder_hidden, false),
        ],
    }
}

impl Network {
    /// Without classes yet; none for a decoder without weights.
    pub(super) fn new(
        config: &KeyValueBottleneckConfig,
        width: usize,
        rng: &mut SmallRng,
    ) -> Option<Box<Self>> {
        let shapes = shapes(config, width, 0);
        (!shapes.is_empty()).then(|| {
            Box::new(Self {
                layers: Layers::random(&shapes, rng),
                frozen: false,
            })
        })
    }

    /// The scores of rows of values, `[rows, classes]`.
    pub(super) fn scores(&self, values: &[f32]) -> Vec<f32> {
        self.layers.forward(values).told().to_vec()
    }

    pub(super) fn save(&self, tensors: &mut Tensors) {
        self.layers.save(&NAMES, tensors);
    }

    /// Reads what [`save`](Self::save) wrote.
    pub(super) fn load(
        config: &KeyValueBottleneckConfig,
        (width, classes): (usize, usize),
        tensors: &mut Tensors,
    ) -> Result<Option<Box<Self>>, String> {
        let shapes = shapes(config, width, classes);
        if shapes.is_empty() {
            return Ok(None);
        }
        Ok(Some(Box::new(Self {
            layers: Layers::load(&shapes, &NAMES, tensors)?,
            frozen: true,
        })))
    }
}
