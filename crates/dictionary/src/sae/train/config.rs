//! Settings of a training.

use serde::{Deserialize, Serialize};

use crate::DictionaryError;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaeMethod {
    /// ReLU with L1.
    Standard,
    /// The `k` largest of each row.
    #[default]
    TopK,
    /// `k` per row, the largest of the whole batch.
    BatchTopK,
    /// A gate and a size.
    Gated,
    /// A threshold of its own for each code.
    JumpRelu,
    /// ReLU with L1, and losses by what a metric of the model makes of the rows.
    Attribution,
}

/// The sparsity loss of jump ReLU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SparsityLoss {
    /// The number of codes in use.
    #[default]
    Step,
    /// `tanh(4 f ‖W_dec‖)`.
    Tanh,
}

/// Where `b_dec` begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BiasInit {
    /// At the mean of the first batch.
    #[default]
    Mean,
    /// At 0.
    Zeros,
}

/// Settings, with SAELens' names and values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SaeConfig {
    /// What is trained.
    pub architecture: SaeMethod,
    /// Number of codes; 0 for eight times `d_in`.
    pub d_sae: usize,
    /// Numbers of a row that is given back; 0 for an autoencoder, else a transcoder.
    pub d_out: usize,
    /// Codes of a row, for top-k.
    pub k: usize,
    /// Weight of the L1 loss.
    pub l1_coefficient: f32,
    /// Weight of the L0 loss.
    pub l0_coefficient: f32,
    /// Steps in which the weight of sparsity grows from 0.
    pub sparsity_warm_up_steps: u64,
    /// The sparsity loss of jump ReLU.
    pub jumprelu_sparsity_loss_mode: SparsityLoss,
    /// Thresholds at the start.
    pub jumprelu_init_threshold: f32,
    /// Width of the rectangle around a threshold.
    pub jumprelu_bandwidth: f32,
    /// Weight of the loss of dead codes, for top-k.
    pub aux_loss_coefficient: f32,
    /// Steps without use after which a code is dead.
    pub dead_feature_window: u64,
    /// Steps after which dead codes begin anew, at rows that are explained badly.
    pub resample_steps: Vec<u64>,
    /// Steps in which the learning rate then grows from a tenth.
    pub resample_warm_up_steps: u64,
    /// Length of a new code's encoder, as a part of the mean of those in use.
    pub resample_scale: f32,
    /// Do as the released code of the recipe: that mean is over columns instead of codes.
    pub compat: bool,
    /// Weight of what codes in use do to the metric, for attribution.
    pub attribution_sparsity_penalty: f32,
    /// Weight of what the error does to the metric, for attribution.
    pub unexplained_attribution_penalty: f32,
    /// Top-k chooses by the codes' share of the result.
    pub rescale_acts_by_decoder_norm: bool,
    /// Where `b_dec` begins.
    pub b_dec_init_method: BiasInit,
    /// Whether `b_dec` is taken from rows; never for transcoders.
    pub apply_b_dec_to_input: bool,
    /// Length of the atoms at the start.
    pub decoder_init_norm: f32,
    /// Make atoms of length 1 after every step.
    pub normalize_decoder: bool,
    /// A skip from input to output, for transcoders.
    pub skip_connection: bool,
    /// Learning rate.
    pub lr: f32,
    /// Steps in which it grows from 0.
    pub lr_warm_up_steps: u64,
    /// Step from which on it falls, in a line.
    pub lr_decay_start: u64,
    /// Step at which it is 0; 0 for a rate that does not fall.
    pub lr_decay_end: u64,
    /// Adam's decay of the mean.
    pub adam_beta1: f32,
    /// Adam's decay of the squares.
    pub adam_beta2: f32,
    /// Adam's epsilon.
    pub adam_eps: f32,
    /// Rows of a batch.
    pub batch_size: usize,
    /// Seed of the start.
    pub seed: u64,
}

impl Default for SaeConfig {
    fn default() -> Self {
        Self {
            architecture: SaeMethod::default(),
            d_sae: 0,
            d_out: 0,
            k: 32,
            l1_coefficient: 1.0,
            l0_coefficient: 1.0,
            sparsity_warm_up_steps: 0,
            jumprelu_sparsity_loss_mode: SparsityLoss::default(),
            jumprelu_init_threshold: 0.01,
            jumprelu_bandwidth: 0.05,
            aux_loss_coefficient: 1.0,
            dead_feature_window: 1000,
            resample_steps: Vec::new(),
            resample_warm_up_steps: 100,
            resample_scale: 0.2,
            compat: false,
            attribution_sparsity_penalty: 1000.0,
            unexplained_attribution_penalty: 1000.0,
            rescale_acts_by_decoder_norm: true,
            b_dec_init_method: BiasInit::Mean,
            apply_b_dec_to_input: true,
            decoder_init_norm: 0.1,
            normalize_decoder: false,
            skip_connection: false,
            lr: 3e-4,
            lr_warm_up_steps: 0,
            lr_decay_start: 0,
            lr_decay_end: 0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_eps: 1e-8,
            batch_size: 4096,
            seed: 0,
        }
    }
}

impl SaeConfig {
    /// Refuses settings without sense.
    pub(super) fn check(&self) -> Result<(), DictionaryError> {
        let above = |name: &str, x: f32| match x > 0.0 && x.is_finite() {
            true => Ok(()),
            false => Err(DictionaryError::settings(format!(
                "{name} is {x}; it must be above 0"
            ))),
        };
        above("batch_size", self.batch_size as f32)?;
        above("lr", self.lr)?;
        above("jumprelu_bandwidth", self.jumprelu_bandwidth)?;
        above("decoder_init_norm", self.decoder_init_norm)?;
        above("k", self.k as f32)?;
        for (name, x) in [
            ("l1_coefficient", self.l1_coefficient),
            ("l0_coefficient", self.l0_coefficient),
            ("aux_loss_coefficient", self.aux_loss_coefficient),
            ("jumprelu_init_threshold", self.jumprelu_init_threshold),
            ("resample_scale", self.resample_scale),
            (
                "attribution_sparsity_penalty",
                self.attribution_sparsity_penalty,
            ),
            (
                "unexplained_attribution_penalty",
                self.unexplained_attribution_penalty,
            ),
        ] {
            if !(x >= 0.0 && x.is_finite()) {
                return Err(DictionaryError::settings(format!(
                    "{name} is {x}; it must be 0 or more"
                )));
            }
        }
        if self.lr_decay_end != 0 && self.lr_decay_start >= self.lr_decay_end {
            return Err(DictionaryError::settings(format!(
                "lr_decay_start is {}; it must be below lr_decay_end, {}",
                self.lr_decay_start, self.lr_decay_end
            )));
        }
        if self.architecture == SaeMethod::Attribution && self.d_out != 0 {
            return Err(DictionaryError::settings(
                "attribution is for autoencoders: d_out must be 0",
            ));
        }
        Ok(())
    }
}
