//! What is between the input and the read-out of a learner.

use rand::rngs::StdRng;

use super::{LearnerConfig, SequenceModel};
use crate::InspectError;
use crate::small_mamba::{MambaBlocks, MambaConfig, MambaTrace};
use crate::small_transformer::{BlockConfig, Blocks, Layout, Trace};

/// The blocks of a learner.
#[derive(Debug, Clone)]
pub(super) enum Body {
    Transformer(Blocks),
    Mamba(MambaBlocks),
}

/// What a forward pass keeps for its gradient, with the blocks that it went through.
pub(super) enum BodyTrace<'a> {
    Transformer(&'a Blocks, Trace),
    Mamba(&'a MambaBlocks, MambaTrace),
}

impl BodyTrace<'_> {
    /// States before every block.
    pub(super) fn inputs(&self) -> Vec<&[f32]> {
        match self {
            Self::Transformer(_, trace) => trace.blocks.iter().map(|b| &b.input[..]).collect(),
            Self::Mamba(_, trace) => trace.inputs().collect(),
        }
    }

    /// States that are read out.
    pub(super) fn out(&self) -> &[f32] {
        match self {
            Self::Transformer(_, trace) => &trace.out,
            Self::Mamba(_, trace) => &trace.out,
        }
    }

    /// The gradient of the states before the first block; adds those of the weights to `gradient`.
    pub(super) fn backward(
        &self,
        weights: &[f32],
        d: Vec<f32>,
        length: usize,
        gradient: &mut [f32],
    ) -> Vec<f32> {
        match self {
            Self::Transformer(blocks, trace) => {
                blocks.backward(weights, trace, d, length, gradient)
            }
            Self::Mamba(blocks, trace) => blocks.backward(weights, trace, d, length, gradient),
        }
    }
}

impl Body {
    pub(super) fn new(config: &LearnerConfig, layout: &mut Layout) -> Result<Self, InspectError> {
        match config.model {
            SequenceModel::Transformer => Ok(Self::Transformer(Blocks::new(
                block_config(config)?,
                layout,
            ))),
            SequenceModel::Mamba => {
                let sizes = MambaConfig::new(config.hidden_size, config.n_layers)?;
                Ok(Self::Mamba(MambaBlocks::new(sizes, layout)))
            }
        }
    }

    pub(super) fn init(&self, weights: &mut [f32], rng: &mut StdRng) {
        match self {
            Self::Transformer(blocks) => blocks.init(weights, rng),
            Self::Mamba(blocks) => blocks.init(weights, rng),
        }
    }

    pub(super) fn forward(&self, weights: &[f32], x: Vec<f32>, length: usize) -> BodyTrace<'_> {
        match self {
            Self::Transformer(blocks) => {
                BodyTrace::Transformer(blocks, blocks.forward(weights, x, length, None))
            }
            Self::Mamba(blocks) => BodyTrace::Mamba(blocks, blocks.forward(weights, x, length)),
        }
    }
}

fn block_config(config: &LearnerConfig) -> Result<BlockConfig, InspectError> {
    let square = config.n_heads * config.n_heads;
    if square == 0 || config.hidden_size == 0 || !config.hidden_size.is_multiple_of(square) {
        return Err(InspectError::settings(format!(
            "hidden_size {} must be a multiple of n_heads², which is {square}",
            config.hidden_size
        )));
    }
    let block = BlockConfig {
        width: config.hidden_size,
        heads: config.n_heads,
        head_dim: config.hidden_size / square,
        mlp: 4 * config.hidden_size,
        norm: true,
        layers: config.n_layers,
    };
    block.check()?;
    Ok(block)
}
