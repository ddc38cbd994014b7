//! H2O: of a prompt the rows that attention looked at most survive, and the newest. LOOK-M's
//! baseline.
//!
//! Zhenyu Zhang, Ying Sheng, Tianyi Zhou, Tianlong Chen, Lianmin Zheng and others (2023): H2O:
//! Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models.
//!
//! ```text
//! a_j  = Σ over queries (and query heads of the KV head) of the attention that row j got
//! kept = the hh rows of greatest a among the older, and the newest
//! ```
//!
//! As LOOK-M's authors run it: once after the prompt. (The paper goes on while writing.)

use serde::{Deserialize, Serialize};

use super::{Ratios, heaviest, thinned};
use crate::refusal::Refusal;
use crate::roles::{Dims, Evictor, KvStore, Needs, TokenKinds};

/// Settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct H2oConfig {
    /// How many rows are kept.
    #[serde(flatten)]
    pub ratios: Ratios,
}

/// The evictor.
#[derive(Debug, Clone)]
pub struct H2o {
    config: H2oConfig,
    dims: Dims,
}

impl H2o {
    /// Checks the settings.
    ///
    /// # Errors
    /// When shares are out of range.
    pub fn new(config: H2oConfig, dims: Dims) -> Result<Self, Refusal> {
        config.ratios.validate("h2o")?;
        Ok(Self { config, dims })
    }
}

impl Evictor for H2o {
    fn needs(&self) -> Needs {
        Needs {
            attention_mass: true,
            ..Needs::default()
        }
    }

    fn after_prefill(
        &mut self,
        layer: usize,
        mass: &[f32],
        _kinds: &TokenKinds,
        store: &mut dyn KvStore,
    ) {
        for kv_head in 0..self.dims.kv_heads {
            let rows = store.len(layer, kv_head);
            let (hh, recent) = self.config.ratios.sizes(rows);
            if rows <= hh + recent || thinned(layer, kv_head, store) {
                continue;
            }
            let mass = &mass[kv_head * rows..][..rows];
            let newest = (rows - recent) as u32;
            let mut keep = heaviest(mass, 0..newest, hh);
            keep.extend(newest..rows as u32);
            keep.sort_unstable();
            store.keep(layer, kv_head, &keep);
        }
    }
}
