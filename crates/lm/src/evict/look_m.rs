//! LOOK-M: after one look at a prompt of text and images, the text stays and the rows of the
//! images are folded into what is kept. The cache of a long multimodal prompt shrinks to a
//! fifth and less.
//!
//! Zhongwei Wan, Ziang Wu, Che Liu, Jinfa Huang, Zhihong Zhu, Peng Jin, Longyue Wang, Li Yuan
//! (2024): LOOK-M: Look-Once Optimization in KV Cache for Efficient Multimodal Long-Context
//! Inference.
//!
//! For each layer and KV head, once, at the end of the prompt, `S` rows long:
//!
//! ```text
//! a_j    = Σ over queries (and query heads of the KV head) of the attention that row j got
//! chosen = the hh_ratio S older rows that come first: text before images, then by a
//! kept   = all text, the chosen, and the recent_ratio S newest rows
//! c(e)   = the kept row whose key has the greatest cosine with the key of the dropped row e
//! ```
//!
//! and every kept row becomes what [`Merge`] says, key and value alike, at its own position.
//! It costs a second pass over the prompt's scores and `|e| |c| d` products for each head.
//!
//! Not in the paper: with [`merge_mass`](LookMConfig::merge_mass) a row that stands for `m`
//! rows has `ln m` added to its logits, as `m` rows alike would have together. Where images
//! are made of few kinds of rows this cuts the error of attention by several times.
//!
//! The authors' code adds -65,516 to the scores of image rows in half precision, which leaves
//! their order to rounding; here the order has two keys. Without image spans all is text that
//! may go: then it is [H2O](super::h2o) whose dropped rows are merged.

use serde::{Deserialize, Serialize};

use super::merge::{assign, fold};
use super::{Merge, Ratios, heaviest, thinned};
use crate::refusal::Refusal;
use crate::roles::{Dims, Evictor, KvStore, Needs, TokenKinds};

const METHOD: &str = "look-m";

/// Settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LookMConfig {
    /// How many rows are kept.
    #[serde(flatten)]
    pub ratios: Ratios,
    /// How dropped rows are folded into kept ones.
    pub merge: Merge,
    /// Whether rows that stand for several weigh as much as those together would.
    pub merge_mass: bool,
}

/// The evictor.
#[derive(Debug, Clone)]
pub struct LookM {
    config: LookMConfig,
    dims: Dims,
}

/// One head's rows.
struct Split {
    keep: Vec<u32>,
    drop: Vec<u32>,
}

/// One head's rows as numbers.
struct Rows {
    split: Split,
    dropped: [Vec<f32>; 2],
    kept: [Vec<f32>; 2],
}

impl LookM {
    /// Checks the settings.
    ///
    /// # Errors
    /// When shares are out of range.
    pub fn new(config: LookMConfig, dims: Dims) -> Result<Self, Refusal> {
        config.ratios.validate(METHOD)?;
        if config.merge_mass && config.merge == Merge::None {
            let what = "merge_mass counts merged rows, and none are merged; choose a merge";
            return Err(Refusal::setting(METHOD, what));
        }
        Ok(Self { config, dims })
    }

    /// What a user should know of a prompt without image spans.
    pub fn notice(kinds: &TokenKinds) -> Option<String> {
        kinds.images.is_empty().then(|| {
            format!(
                "{METHOD}: no image spans are given, so this is H2O whose dropped rows are merged"
            )
        })
    }

    /// Which rows of a head stay. None where all do.
    fn split(&self, mass: &[f32], positions: &[u32], kinds: &TokenKinds) -> Option<Split> {
        let rows = positions.len();
        let (hh, recent) = self.config.ratios.sizes(rows);
        if rows <= hh + recent {
            return None;
        }
        let newest = rows - recent;
        let image = |row: usize| kinds.is_image(positions[row]);
        let mut stays = vec![false; rows];
        stays[newest..].fill(true);
        let mut left = hh;
        if !kinds.images.is_empty() {
            for row in (0..newest).filter(|&row| !image(row)) {
                stays[row] = true;
                left = left.saturating_sub(1);
            }
        }
        let rest = (0..newest as u32).filter(|&row| !stays[row as usize]);
        for row in heaviest(mass, rest, left) {
            stays[row as usize] = true;
        }
        let which = |stay: bool| -> Vec<u32> {
            let rows = 0..rows as u32;
            rows.filter(|&row| stays[row as usize] == stay).collect()
        };
        let (keep, drop) = (which(true), which(false));
        (!drop.is_empty() && !keep.is_empty()).then_some(Split { keep, drop })
    }

    /// The rows of a split as numbers.
    fn rows(&self, layer: usize, kv_head: usize, split: Split, store: &dyn KvStore) -> Rows {
        let dim = self.dims.head_dim;
        let all = store.len(layer, kv_head);
        let (mut keys, mut values) = (vec![0.0; all * dim], vec![0.0; all * dim]);
        store.read(layer, kv_head, 0..all, &mut keys, &mut values);
        let pick = |from: &[f32], rows: &[u32]| -> Vec<f32> {
            let row = |&r: &u32| &from[r as usize * dim..(r as usize + 1) * dim];
            rows.iter().flat_map(row).copied().collect()
        };
        let both = |rows: &[u32]| [pick(&keys, rows), pick(&values, rows)];
        Rows {
            dropped: both(&split.drop),
            kept: both(&split.keep),
            split,
        }
    }

    /// Drops the rows of a layer and folds them into the others.
    fn merge(&self, layer: usize, heads: Vec<(usize, Rows)>, store: &mut dyn KvStore) {
        let dim = self.dims.head_dim;
        let assigned: Vec<_> = heads
            .iter()
            .map(|(_, rows)| assign(&rows.dropped[0], &rows.kept[0], dim))
            .collect();
        // The i-th dropped rows of all heads are judged together, as the authors do.
        let most = assigned.iter().map(|a| a.to.len()).max().unwrap_or(0);
        let mean_of = |i: usize| {
            let all = assigned.iter().filter_map(|a| a.similarity.get(i));
            let (sum, n) = all.fold((0.0, 0), |(sum, n), s| (sum + s, n + 1));
            sum / n.max(1) as f32
        };
        let means: Vec<f32> = (0..most).map(mean_of).collect();
        let all = assigned.iter().flat_map(|a| &a.similarity);
        let (sum, n) = all.fold((0.0f64, 0), |(sum, n), &s| (sum + f64::from(s), n + 1));
        let mean = (sum / n.max(1) as f64) as f32;
        let takes = |i: usize| self.config.merge != Merge::Weighted || means[i] >= mean;
        for ((kv_head, rows), assigned) in heads.into_iter().zip(assigned) {
            let Rows {
                split,
                dropped,
                mut kept,
            } = rows;
            for (dropped, kept) in dropped.iter().zip(&mut kept) {
                fold(self.config.merge, &assigned, takes, dropped, kept, dim);
            }
            store.keep(layer, kv_head, &split.keep);
            let mut counts = vec![1u32; split.keep.len()];
            let taken = assigned.to.iter().enumerate().filter(|(i, _)| takes(*i));
            taken.for_each(|(_, &to)| counts[to as usize] += 1);
            // Rows that nothing was folded into stay as they are, not rounded once more.
            let changed: Vec<u32> = (0..counts.len() as u32)
                .filter(|&row| counts[row as usize] > 1)
                .collect();
            let of = |from: &[f32]| -> Vec<f32> {
                let row = |&r: &u32| &from[r as usize * dim..(r as usize + 1) * dim];
                changed.iter().flat_map(row).copied().collect()
            };
            store.write(layer, kv_head, &changed, &of(&kept[0]), &of(&kept[1]));
            if self.config.merge_mass {
                let bias = counts.iter().map(|&n| (n as f32).ln()).collect();
                store.set_bias(layer, kv_head, bias);
            }
        }
    }
}

impl Evictor for LookM {
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
        kinds: &TokenKinds,
        store: &mut dyn KvStore,
    ) {
        let mut heads = Vec::new();
        for kv_head in 0..self.dims.kv_heads {
            if thinned(layer, kv_head, store) {
                return;
            }
            let positions = store.positions(layer, kv_head);
            let mass = &mass[kv_head * positions.len()..][..positions.len()];
            let Some(split) = self.split(mass, positions, kinds) else {
                continue;
            };
            match self.config.merge {
                Merge::None => store.keep(layer, kv_head, &split.keep),
                _ => heads.push((kv_head, self.rows(layer, kv_head, split, store))),
            }
        }
        if !heads.is_empty() {
            self.merge(layer, heads, store);
        }
    }
}

#[cfg(test)]
mod tests;
