//! Sizes of an encoder of mixers, as config.json has them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ModelError;
use crate::error::invalid;
use crate::mixers::{HydraConfig, Mamba2Config, MatrixFamily, MatrixMixerConfig};

/// What mixes the positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixerKind {
    /// Two scans, of which each writes and reads its own way.
    Hydra,
    /// Two scans that write and read alike.
    Quasiseparable,
    /// Any matrix.
    Dense,
    /// A number for each distance.
    Toeplitz,
    /// Cosines of queries and keys.
    Vandermonde,
    /// Reciprocals of sums of queries and keys.
    Cauchy,
    /// Products of queries and keys.
    LowRank,
    /// Softmax of these.
    Attention,
    /// One scan, which sees what came before alone. Not among the authors' mixers.
    Mamba2,
    /// The sum of a scan from either side, each a layer of its own. Not among the authors' mixers.
    Mamba2Sum,
}

impl MixerKind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Hydra,
        Self::Quasiseparable,
        Self::Mamba2Sum,
        Self::Mamba2,
        Self::Attention,
        Self::LowRank,
        Self::Cauchy,
        Self::Vandermonde,
        Self::Toeplitz,
        Self::Dense,
    ];

    /// As config.json has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hydra => "hydra",
            Self::Quasiseparable => "quasiseparable",
            Self::Dense => "dense",
            Self::Toeplitz => "toeplitz",
            Self::Vandermonde => "vandermonde",
            Self::Cauchy => "cauchy",
            Self::LowRank => "low_rank",
            Self::Attention => "attention",
            Self::Mamba2 => "mamba2",
            Self::Mamba2Sum => "mamba2_sum",
        }
    }
}

/// Fields of config.json: those of BERT in transformers that count here, and those that Hydra's
/// authors added to them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MixerEncoderConfig {
    /// `hydra`, whatever mixes.
    pub model_type: String,
    /// What mixes.
    pub matrix_mixer_type: MixerKind,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Kinds of texts, of which the first is used.
    pub type_vocab_size: usize,
    /// Length of a hidden state.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// The longest text; matrices other than those of scans and attention are made for it.
    pub max_position_embeddings: usize,
    /// Width of the convolutions.
    pub d_conv: usize,
    /// Channels for each number of a hidden state.
    pub expand: usize,
    /// State numbers of a scan.
    pub d_state: usize,
    /// Numbers of a query and a key.
    pub qk_dim: usize,
    /// Channels of a head.
    pub headdim: usize,
    /// Deviation of the weights at the beginning.
    pub initializer_range: f32,
    /// What is added to the variance of the embeddings' norm.
    pub layer_norm_eps: f64,
    /// Whether norms stand before the mixers; not computed here.
    pub is_prenorm: bool,
    /// Whether positions have vectors; not computed here.
    pub use_position_embeddings: bool,
    /// Whether queries and keys come from the input; else not computed here.
    pub is_data_dependent: bool,
}

impl Default for MixerEncoderConfig {
    /// The paper's model for English texts.
    fn default() -> Self {
        Self {
            model_type: "hydra".into(),
            matrix_mixer_type: MixerKind::Hydra,
            vocab_size: 30_528,
            type_vocab_size: 2,
            hidden_size: 768,
            num_hidden_layers: 23,
            max_position_embeddings: 512,
            d_conv: 7,
            expand: 2,
            d_state: 64,
            qk_dim: 16,
            headdim: 64,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            is_prenorm: false,
            use_position_embeddings: false,
            is_data_dependent: true,
        }
    }
}

/// A layer's sizes.
pub(super) enum Layer {
    Hydra(HydraConfig),
    Matrix(MatrixMixerConfig),
    /// So many layers of Mamba-2.
    Mamba2(Mamba2Config, usize),
}

impl MixerEncoderConfig {
    /// # Errors
    /// When sizes make no sense, or it asks for what is not computed here; `path` is named as
    /// the place of the configuration.
    pub(super) fn check(&self, path: &Path) -> Result<(), ModelError> {
        let wrong = |what: String| Err(invalid(path, what));
        if self.model_type != "hydra" {
            return wrong(format!("model_type is '{}', not 'hydra'", self.model_type));
        }
        for (field, found, needed) in [
            ("is_prenorm", self.is_prenorm, false),
            (
                "use_position_embeddings",
                self.use_position_embeddings,
                false,
            ),
            (
                "is_data_dependent",
                self.is_data_dependent || self.matrix_mixer_type == MixerKind::Dense,
                true,
            ),
        ] {
            if found != needed {
                return wrong(format!("{field} is {found}; here it can only be {needed}"));
            }
        }
        for (field, size) in [
            ("vocab_size", self.vocab_size),
            ("type_vocab_size", self.type_vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if size == 0 {
                return wrong(format!("{field} is 0"));
            }
        }
        Ok(())
    }

    /// The sizes of a layer.
    pub(super) fn layer(&self) -> Layer {
        let hydra = HydraConfig {
            d_model: self.hidden_size,
            d_state: self.d_state,
            d_conv: self.d_conv,
            expand: self.expand,
            headdim: self.headdim,
            ..HydraConfig::default()
        };
        let matrix = |matrix_mixer_type| {
            Layer::Matrix(MatrixMixerConfig {
                matrix_mixer_type,
                d_model: self.hidden_size,
                qk_dim: self.qk_dim,
                max_seq_len: self.max_position_embeddings,
                d_conv: self.d_conv,
                expand: self.expand,
                headdim: self.headdim,
            })
        };
        let mamba2 = Mamba2Config {
            d_model: self.hidden_size,
            d_state: self.d_state,
            d_conv: self.d_conv,
            expand: self.expand,
            headdim: self.headdim,
        };
        match self.matrix_mixer_type {
            MixerKind::Hydra => Layer::Hydra(hydra),
            MixerKind::Quasiseparable => Layer::Hydra(HydraConfig {
                // As released: as many as all heads of the other families have.
                d_state: (self.expand * self.hidden_size / self.headdim.max(1)) * self.qk_dim,
                shared: true,
                ..hydra
            }),
            MixerKind::Dense => matrix(MatrixFamily::Dense),
            MixerKind::Toeplitz => matrix(MatrixFamily::Toeplitz),
            MixerKind::Vandermonde => matrix(MatrixFamily::Vandermonde),
            MixerKind::Cauchy => matrix(MatrixFamily::Cauchy),
            MixerKind::LowRank => matrix(MatrixFamily::LowRank),
            MixerKind::Attention => matrix(MatrixFamily::Attention),
            MixerKind::Mamba2 => Layer::Mamba2(mamba2, 1),
            MixerKind::Mamba2Sum => Layer::Mamba2(mamba2, 2),
        }
    }
}
