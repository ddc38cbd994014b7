//! Vectors of whole texts by a sentence encoder.

use clap::ValueEnum;
use keyfold_core::ModelFolder;
use keyfold_text::{LoadOptions, Pool, SentenceEncoder};
use serde_json::Value;

use crate::args::Globals;

/// How a text's vector is made of those of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PoolArg {
    /// The first token's
    Cls,
    /// The mean of all
    Mean,
    /// The mask's in: This sentence : "TEXT" means [MASK] .
    Prompt,
}

impl From<PoolArg> for Pool {
    fn from(arg: PoolArg) -> Self {
        match arg {
            PoolArg::Cls => Self::Cls,
            PoolArg::Mean => Self::Mean,
            PoolArg::Prompt => Self::Prompt,
        }
    }
}

/// The sentence encoder of a name, pooling as asked.
pub(super) fn encoder(
    name: &str,
    pool: Option<PoolArg>,
    globals: &Globals,
) -> anyhow::Result<(ModelFolder, SentenceEncoder)> {
    let folder = ModelFolder::find(name)?;
    let options = LoadOptions {
        threads: globals.threads.map_or(0, usize::from),
    };
    let encoder = SentenceEncoder::load(&folder, &options)?;
    let encoder = match pool {
        Some(pool) => encoder.with_pool(pool.into())?,
        None => encoder,
    };
    Ok((folder, encoder))
}

/// Whether a model is a transformer or an encoder of mixers, and no model of words or paragraphs.
pub(super) fn is_encoder(name: &str) -> bool {
    let config = ModelFolder::find(name)
        .ok()
        .and_then(|folder| folder.json_optional::<Value>("config.json").ok()?);
    let heads = ["num_attention_heads", "n_heads", "num_heads"];
    config.is_some_and(|config| {
        config["model_type"] == "hydra" || heads.iter().any(|h| config[*h].is_number())
    })
}
