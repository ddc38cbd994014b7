//! Layers that share the matrices of their attention while they learn.
//!
//! M. Zhussip et al., 2026 (MASA), and what they compare with: see
//! [`keyfold_compress::masa::train`].

use burn::module::Module;
use burn::tensor::Device;
use keyfold_compress::masa::Types;
use keyfold_compress::masa::train::{SharedLlama, Sharing};
use keyfold_nn::{Llama, LlamaConfig};
use keyfold_train::TrainError;
use serde::{Deserialize, Serialize};

/// How layers come to the matrices of their attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SharingMethod {
    /// Each has its own.
    None,
    /// Mixtures of a few matrices that all share (MASA).
    Masa,
    /// Layers that follow each other use one matrix.
    Sequential,
    /// Each has its own, of low rank.
    LowRank,
}

/// Which projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SharedTypes {
    /// Queries, keys and values.
    Qkv,
    /// The output as well.
    Qkvo,
}

/// What layers share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SharingConfig {
    /// How.
    pub method: SharingMethod,
    /// Of which projections.
    pub types: SharedTypes,
    /// Atoms, matrices, or the rank; 0 stands for a third: of the layers, or of the rank.
    pub count: usize,
}

impl Default for SharingConfig {
    /// None; with a method, the paper's choice.
    fn default() -> Self {
        Self {
            method: SharingMethod::None,
            types: SharedTypes::Qkv,
            count: 0,
        }
    }
}

impl SharingConfig {
    pub(super) fn init(
        &self,
        sizes: &LlamaConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Decoder, TrainError> {
        let third = |of: usize| match self.count {
            0 => (of / 3).max(1),
            count => count,
        };
        let sharing = match self.method {
            SharingMethod::None | SharingMethod::Masa => {
                Sharing::Atoms(third(sizes.num_hidden_layers))
            }
            SharingMethod::Sequential => Sharing::Sequential(third(sizes.num_hidden_layers)),
            SharingMethod::LowRank => Sharing::LowRank(third(sizes.hidden_size)),
        };
        let types = match self.types {
            SharedTypes::Qkv => Types::Qkv,
            SharedTypes::Qkvo => Types::Qkvo,
        };
        let model = SharedLlama::init(sizes, types, sharing, seed, device);
        let model = model.map_err(|e| TrainError::Config(format!("sharing: {e}")))?;
        Ok(Decoder::Shared(model))
    }
}

/// A decoder that learns, its layers sharing or not.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub(super) enum Decoder {
    /// Every layer has its own matrices.
    Whole(Llama),
    /// Some are made of shared ones.
    Shared(SharedLlama),
}

impl Decoder {
    /// With whole matrices, through which gradients go.
    pub(super) fn whole(&self) -> Llama {
        match self {
            Self::Whole(model) => model.clone(),
            Self::Shared(model) => model.dense(),
        }
    }
}
