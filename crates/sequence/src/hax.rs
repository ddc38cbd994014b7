//! HAX: attention to few keys, chosen by hashes and by a score, beside the scan of a Mamba layer.
//!
//! Z. Zhan et al., 2025, Overcoming Long-Context Limitations of State-Space Models via
//! Context-Dependent Sparse Attention. A scan keeps a state of one size, so what it can recall
//! is bounded; here each position may also look at up to `m` earlier ones, itself among them.
//! With queries `q`, keys `k` (over the root of their length `N`) and values `v`:
//!
//! ```text
//! code(x) = the signs of (x - mean) H, H ~ N(0, 1) of [N, hashes]
//! S_t     = the last m_1 keys with the code of q_t, and the m_2 keys of the largest scores so far
//! y_t     = Σ_{j in S_t} softmax_j(q_t · k_j) v_j
//! ```
//!
//! Cost per position `m (N + width of v)`, memory that of the inputs. The released code centres
//! and normalises over the whole sequence, so it looks ahead; that is [`Mode::Compat`].
//! [`Mode::Causal`] takes means of what came so far and the length of each vector by itself.
//!
//! [`Chooser`] picks the keys token by token; a whole text goes through the same code.

mod attend;
mod choose;

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::SequenceError;

pub use attend::{attend, attend_backward, shares};
pub use choose::{Chooser, Selected, importances, score_inputs, select};

/// Where keys come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The last keys with the query's hash.
    SignBinLsh,
    /// Those of the largest scores so far.
    KeySelection,
    /// The last ones.
    SlidingWindow,
    /// The first ones.
    Sink,
    /// Every so many.
    Dilated,
    /// All; stands alone.
    Full,
}

/// What means and lengths are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// What came so far. A query without a key reads nothing.
    Causal,
    /// As released: all of the sequence, each number of a vector over the time. A query without
    /// a key reads the mean of all values, of later ones as well.
    Compat,
}

/// Which keys are looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HaxConfig {
    /// Where they come from; HAX is `sign_bin_lsh` and `key_selection`.
    pub sparse_arch: Vec<Source>,
    /// Most keys of a query, shared evenly by the sources.
    pub sparse_keys: usize,
    /// Bits of a hash.
    pub num_hash: usize,
    /// Longest text, over which dilated keys are spread.
    pub data_max_length: usize,
    /// What means and lengths are taken over.
    pub mode: Mode,
}

impl Default for HaxConfig {
    fn default() -> Self {
        Self {
            sparse_arch: vec![Source::SignBinLsh, Source::KeySelection],
            sparse_keys: 64,
            num_hash: 8,
            data_max_length: 2048,
            mode: Mode::Causal,
        }
    }
}

impl HaxConfig {
    /// Whether it asks for a source.
    pub fn has(&self, source: Source) -> bool {
        self.sparse_arch.contains(&source)
    }

    /// Keys of each source.
    pub fn keys_each(&self) -> usize {
        self.sparse_keys / self.sparse_arch.len().max(1)
    }

    /// The part of it that has one source alone.
    #[must_use]
    pub fn only(&self, source: Source) -> Self {
        Self {
            sparse_arch: vec![source],
            sparse_keys: self.keys_each(),
            ..self.clone()
        }
    }

    /// Positions between dilated keys.
    fn dilation(&self) -> usize {
        self.data_max_length / self.keys_each().max(1)
    }

    /// # Errors
    /// When there is no source or one twice, the keys do not divide, a hash has no or more than
    /// 62 bits, or dilated keys would lie less than a position apart.
    pub fn check(&self) -> Result<(), SequenceError> {
        let refuse = |what: String| Err(SequenceError::Refused(what));
        let sources = self.sparse_arch.len();
        if sources == 0 {
            return refuse("sparse_arch names no source of keys".into());
        }
        let different: HashSet<Source> = self.sparse_arch.iter().copied().collect();
        if different.len() < sources {
            return refuse("sparse_arch names a source twice".into());
        }
        if self.has(Source::Full) && sources > 1 {
            return refuse("full in sparse_arch stands alone".into());
        }
        if self.sparse_keys == 0 || !self.sparse_keys.is_multiple_of(sources) {
            return refuse(format!(
                "{sources} sources do not share {} keys (sparse_keys) evenly",
                self.sparse_keys
            ));
        }
        if self.has(Source::SignBinLsh) && !(1..=62).contains(&self.num_hash) {
            return refuse(format!(
                "num_hash is {}; it must be from 1 to 62",
                self.num_hash
            ));
        }
        if self.has(Source::Dilated) && self.dilation() == 0 {
            return refuse(format!(
                "data_max_length {} is less than the {} dilated keys",
                self.data_max_length,
                self.keys_each()
            ));
        }
        Ok(())
    }
}
