//! Settings of ActQKV.

use serde::{Deserialize, Serialize};

use super::METHOD;
use super::memory::Sizes;
use super::probe::Bounds;
use crate::refusal::Refusal;

/// Settings; the default is the authors' for Llama-3-8B.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ActQkvConfig {
    /// Tokens of a block.
    pub block_size: usize,
    /// First tokens, which are always read.
    pub n_init: usize,
    /// Newest tokens, which are always read.
    pub n_local: usize,
    /// Blocks that a layer retrieves in the mean.
    pub topk: usize,
    /// Blocks that a layer retrieves at least (at most `topk` of them; there may be fewer).
    pub min_blocks: usize,
    /// Keys of a block that its mean key is of.
    pub repr_topk: usize,
    /// Queries that retrieve together.
    pub exc_block_size: usize,
    /// Tokens of a prompt that pass a layer together (the authors: 32768). A question can
    /// guide the retrieval of the tokens that are read together with it.
    pub chunk_size: usize,
    /// How much the question counts beside the probe.
    pub question_weight: f32,
    /// After so many chunks old queries fade from the statistics.
    pub h_upper: u64,
    /// Rankings of a layer whose entropy is remembered.
    pub history: usize,
    /// What retrieves.
    pub probe: Probe,
    /// As the authors' code has it where it differs from their text.
    pub compat: bool,
}

/// What retrieves blocks for a chunk of queries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// The sum of the queries, weighted by how unusual they are.
    #[default]
    Activation,
    /// Their mean (InfLLM; a baseline).
    Mean,
    /// The last of them (a baseline).
    Last,
}

impl Default for ActQkvConfig {
    fn default() -> Self {
        Self {
            block_size: 32,
            n_init: 64,
            n_local: 512,
            topk: 46,
            min_blocks: 32,
            repr_topk: 4,
            exc_block_size: 256,
            chunk_size: 4096,
            question_weight: 4.0,
            h_upper: 1000,
            history: 100,
            probe: Probe::Activation,
            compat: false,
        }
    }
}

impl ActQkvConfig {
    /// Refuses what does not fit.
    pub fn validate(&self) -> Result<(), Refusal> {
        let refuse = |what: String| Err(Refusal::setting(METHOD, what));
        for (name, value) in [
            ("block_size", self.block_size),
            ("n_local", self.n_local),
            ("topk", self.topk),
            ("repr_topk", self.repr_topk),
            ("exc_block_size", self.exc_block_size),
            ("chunk_size", self.chunk_size),
            ("history", self.history),
        ] {
            if value == 0 {
                return refuse(format!("{name} must be at least 1"));
            }
        }
        if self.exc_block_size > self.n_local {
            return refuse(format!(
                "exc_block_size = {} is greater than the window n_local = {}",
                self.exc_block_size, self.n_local
            ));
        }
        if self.repr_topk > self.block_size {
            return refuse(format!(
                "repr_topk = {} is greater than block_size = {}",
                self.repr_topk, self.block_size
            ));
        }
        if self.compat && self.min_blocks > 2 * self.topk {
            return refuse(format!(
                "min_blocks = {} is more than twice topk = {}",
                self.min_blocks, self.topk
            ));
        }
        if !self.question_weight.is_finite() {
            return refuse("question_weight is no number".into());
        }
        Ok(())
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            n_init: self.n_init,
            n_local: self.n_local,
            block_size: self.block_size,
            repr_topk: self.repr_topk,
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        let least = match self.compat {
            true => self.min_blocks,
            false => self.min_blocks.min(self.topk),
        };
        Bounds {
            least,
            most: 2 * self.topk,
        }
    }
}
