//! Folders and files of others: SAELens, EleutherAI's sparsify, OpenAI's sparse_autoencoder.
//!
//! What is read and written again is unchanged: the configuration as it was, tensors in
//! their precision, statistics that are not used here. Names and shapes:
//!
//! | layout | files | tensors |
//! |---|---|---|
//! | SAELens | `cfg.json`, `sae_weights.safetensors`, `sparsity.safetensors` | `W_enc [d_in, d_sae]`, `W_dec [d_sae, d_out]`, `b_enc`, `b_dec`, `threshold`, `b_gate`, `b_mag`, `r_mag`, `W_skip [d_out, d_in]` |
//! | sparsify | `cfg.json`, `sae.safetensors` | `encoder.weight [d_sae, d_in]`, `encoder.bias`, `W_dec [d_sae, d_in]`, `b_dec`, `W_skip` |
//! | OpenAI | one file of `torch.save` | `pre_bias`, `encoder.weight [d_sae, d_in]`, `latent_bias`, `decoder.weight [d_in, d_sae]` |

mod openai;
mod saelens;
mod sparsify;
mod tensors;
mod torch_writer;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::Sae;
use crate::DictionaryError;

pub use openai::WEIGHTS as OPENAI_FILE;
pub use tensors::Precision;
use tensors::Tensor;

/// Whose layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// SAELens, version 6.
    #[default]
    SaeLens,
    /// EleutherAI's sparsify.
    Sparsify,
    /// OpenAI's sparse_autoencoder.
    OpenAi,
}

/// An autoencoder with what its file says beside the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct SaeFile {
    /// The autoencoder.
    pub sae: Sae,
    /// Whose layout.
    pub layout: Layout,
    /// The configuration as it was read, or as it will be written.
    pub config: Value,
    /// How the weights are stored.
    pub precision: Precision,
    /// Rows are to be multiplied by a number from elsewhere before they are coded (SAELens'
    /// `expected_average_only_in`); see [`Sae::fold_input_scale`].
    pub needs_input_scale: bool,
    /// SAELens' `sparsity`: the logarithm (to 10) of how often each code is in use.
    pub log_sparsity: Option<Vec<f32>>,
    /// Tensors that are kept for those who use them.
    others: BTreeMap<String, Tensor>,
}

impl SaeFile {
    /// An autoencoder that is to be written in a layout.
    ///
    /// # Errors
    /// When the layout has no place for it.
    pub fn new(sae: Sae, layout: Layout) -> Result<Self, DictionaryError> {
        sae.check()?;
        let config = match layout {
            Layout::SaeLens => saelens::config(&sae),
            Layout::Sparsify => sparsify::config(&sae)?,
            Layout::OpenAi => openai::config(&sae)?,
        };
        Ok(Self {
            sae,
            layout,
            config,
            precision: Precision::F32,
            needs_input_scale: false,
            log_sparsity: None,
            others: BTreeMap::new(),
        })
    }

    /// Reads a folder of SAELens or sparsify, or a file of OpenAI's or its folder; which is seen by
    /// its files.
    ///
    /// # Errors
    /// When it is none of them, of an architecture that is not known, or damaged.
    pub fn load(path: &Path) -> Result<Self, DictionaryError> {
        let file = if path.is_file() {
            openai::load(path)?
        } else if path.join(saelens::WEIGHTS).is_file() {
            saelens::load(path)?
        } else if path.join(sparsify::WEIGHTS).is_file() {
            sparsify::load(path)?
        } else if path.join(openai::WEIGHTS).is_file() {
            openai::load(&path.join(openai::WEIGHTS))?
        } else {
            return Err(DictionaryError::format(
                path,
                format!(
                    "it holds no sparse autoencoder: neither {} (SAELens) nor {} (sparsify) nor {} \
                     (OpenAI; name the file itself where it is called otherwise)",
                    saelens::WEIGHTS,
                    sparsify::WEIGHTS,
                    openai::WEIGHTS
                ),
            ));
        };
        file.sae
            .check()
            .map_err(|e| DictionaryError::format(path, e.to_string()))?;
        Ok(file)
    }

    /// Writes the folder, or OpenAI's file.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), DictionaryError> {
        match self.layout {
            Layout::SaeLens => saelens::save(self, path),
            Layout::Sparsify => sparsify::save(self, path),
            Layout::OpenAi => openai::save(self, path),
        }
    }
}

fn read_config(path: &Path) -> Result<Value, DictionaryError> {
    let bytes = std::fs::read(path).map_err(|source| DictionaryError::io(path, source))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| DictionaryError::format(path, format!("it is damaged: {e}")))
}

fn write_config(path: &Path, config: &Value) -> Result<(), DictionaryError> {
    keyfold_core::atomic::write(path, format!("{config:#}\n").as_bytes())
        .map_err(|source| DictionaryError::io(path, source))
}

/// A whole number of a configuration.
fn size(config: &Value, name: &str, path: &Path) -> Result<usize, DictionaryError> {
    let number = config[name].as_u64().and_then(|n| usize::try_from(n).ok());
    number.ok_or_else(|| DictionaryError::format(path, format!("it says no '{name}'")))
}

/// `[rows, width]` turned.
fn transposed(m: &[f32], width: usize) -> Vec<f32> {
    let rows = m.len().checked_div(width).unwrap_or(0);
    let mut out = vec![0.0; m.len()];
    for (i, row) in m.chunks_exact(width.max(1)).enumerate() {
        row.iter()
            .enumerate()
            .for_each(|(j, x)| out[j * rows + i] = *x);
    }
    out
}
