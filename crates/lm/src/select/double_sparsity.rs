//! Double Sparsity: a decoded token reads few rows of the cache, found by scores on few
//! channels. For long contexts, at almost the same text.
//!
//! Shuo Yang, Ying Sheng, Joseph E. Gonzalez, Ion Stoica, Lianmin Zheng (2024):
//! Post-Training Sparse Attention with Double Sparsity.
//!
//! With the `r` most important channels `C` of a head ([rankings](super::rankings)):
//!
//! ```text
//! label(key)  = key[C], as 16-bit floats or 4-bit integers        written when appended
//! score(row)  = label(query) · label(key of row)
//! rows        = the heavy_const rows of greatest score
//! output      = softmax(query · keys[rows] / sqrt(d)) · values[rows]
//! ```
//!
//! Per layer and KV head a step reads `S` labels of `r` numbers and, for the union of `u`
//! rows that the head's `g` queries want, `u` keys and values of `d` numbers, instead of
//! `S` keys and values. The first layers stay dense, as does a context of at most
//! `heavy_const` rows.
//!
//! The query heads that share a KV head share one set of channels here, so that the
//! labels do not grow with the number of query heads; [`LabelHeads::PerHead`] does as the
//! authors do, who repeat keys for every query head.
//!
//! The authors' variant for a cache outside of memory, which guesses the rows of layer
//! `l + 1` from the input of layer `l`, is not here: it hides the time of copies from host
//! memory, and this engine holds its cache in memory.

use keyfold_kernels::Team;
use serde::{Deserialize, Serialize};

use super::labels::{LabelParts, Labels};
use super::rankings::{Channel, Rankings};
use super::side::{Notes, SideCache};
use super::{Budget, Work, choose_each, greatest, reads_all};
use crate::refusal::Refusal;
use crate::roles::{Dims, KvStore, Reads, Rows, Selector, StepCtx};
use crate::store::matryoshka::Bases;

const METHOD: &str = "double-sparse";

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DoubleSparsityConfig {
    /// Rows that a query head reads (the paper: 1/16 of them).
    pub heavy_const: Budget,
    /// A label has one channel for so many channels of the head (the paper: 16).
    pub group_factor: usize,
    /// Channels of a label, instead of `head_dim / group_factor`.
    pub channels: Option<usize>,
    /// Bits of a label's number: 4 or 16.
    pub label_bits: u8,
    /// Whether the query's label is rounded to 4 bits as the keys' are, in the authors'
    /// arithmetic (their evaluation does so), instead of to 8 bits in a faster one.
    pub round_query: bool,
    /// By what channels are ranked.
    pub channel: Channel,
    /// So many first layers read everything.
    pub dense_layers: usize,
    /// Who shares labels and rows.
    pub labels: LabelHeads,
    /// Whether the present token's row is always read (in the paper it must earn its place).
    pub keep_newest: bool,
}

/// Who shares labels and rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelHeads {
    /// One label per KV head; all its query heads read the union of their rows.
    #[default]
    PerKvHead,
    /// One label and one set of rows per query head, as the authors have it.
    PerHead,
}

impl Default for DoubleSparsityConfig {
    fn default() -> Self {
        Self {
            heavy_const: Budget::Share(1.0 / 16.0),
            group_factor: 16,
            channels: None,
            label_bits: 4,
            round_query: false,
            channel: Channel::Q,
            dense_layers: 2,
            labels: LabelHeads::PerKvHead,
            keep_newest: true,
        }
    }
}

impl DoubleSparsityConfig {
    /// As the authors' evaluation does it, in what differs from ours.
    pub fn authors() -> Self {
        Self {
            labels: LabelHeads::PerHead,
            round_query: true,
            keep_newest: false,
            ..Self::default()
        }
    }

    /// Channels of a label.
    pub fn label_channels(&self, dims: &Dims) -> usize {
        self.channels
            .unwrap_or(dims.head_dim / self.group_factor.max(1))
    }

    /// Refuses what does not fit.
    pub fn validate(&self, dims: &Dims) -> Result<(), Refusal> {
        let refuse = |what: String| Err(Refusal::setting(METHOD, what));
        self.heavy_const.check(METHOD, "heavy_const")?;
        if self.channels.is_none()
            && (self.group_factor == 0 || !dims.head_dim.is_multiple_of(self.group_factor))
        {
            return refuse(format!(
                "group_factor = {} does not divide the {} channels of a head",
                self.group_factor, dims.head_dim
            ));
        }
        let channels = self.label_channels(dims);
        if channels == 0 || channels > dims.head_dim {
            return refuse(format!(
                "channels = {channels}, but a head has {}",
                dims.head_dim
            ));
        }
        if ![4, 16].contains(&self.label_bits) {
            return refuse(format!(
                "label_bits = {} is neither 4 nor 16",
                self.label_bits
            ));
        }
        Ok(())
    }
}

/// The selector.
#[derive(Debug)]
pub struct DoubleSparsity {
    config: DoubleSparsityConfig,
    dims: Dims,
    cache: SideCache<LabelSets>,
    works: Vec<Work>,
}

/// Labels of one KV head: one set, or one for each query head of the group.
#[derive(Debug)]
struct LabelSets(Vec<Labels>);

impl Notes for LabelSets {
    fn push(&mut self, key: &[f32]) {
        self.0.iter_mut().for_each(|labels| labels.push(key));
    }

    fn len(&self) -> usize {
        self.0.first().map_or(0, Labels::len)
    }

    fn truncate(&mut self, rows: usize) {
        self.0.iter_mut().for_each(|labels| labels.truncate(rows));
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(Labels::bytes).sum()
    }
}

impl DoubleSparsity {
    /// Takes the channels that `rankings` puts first.
    pub fn new(
        config: DoubleSparsityConfig,
        dims: Dims,
        rankings: &Rankings,
    ) -> Result<Self, Refusal> {
        config.validate(&dims)?;
        let count = config.label_channels(&dims);
        let lists = match config.labels {
            LabelHeads::PerKvHead => 1,
            LabelHeads::PerHead => dims.group(),
        };
        let labels = |list: &Vec<u32>| {
            Labels::new(
                LabelParts::Channels(list[..count].to_vec()),
                config.label_bits,
                config.round_query,
            )
        };
        let cache = SideCache::new(dims, config.dense_layers, |layer| {
            let rankings = match config.labels {
                LabelHeads::PerKvHead => rankings.of_kv_heads(layer, config.channel, &dims)?,
                LabelHeads::PerHead => rankings.of_heads(layer, config.channel, &dims)?,
            };
            let groups = rankings.chunks(lists);
            Ok(groups
                .map(|group| LabelSets(group.iter().map(labels).collect()))
                .collect())
        })?;
        Ok(Self {
            config,
            dims,
            cache,
            works: vec![Work::default(); dims.heads],
        })
    }

    /// Takes the first directions of the bases of MatryoshkaKV in place of channels: they are
    /// ordered by what they tell, so that no ranking is needed. Query heads of a KV head share
    /// their labels.
    pub fn with_bases(
        config: DoubleSparsityConfig,
        dims: Dims,
        bases: &Bases,
    ) -> Result<Self, Refusal> {
        config.validate(&dims)?;
        let refuse = |e: crate::LmError| Refusal::setting(METHOD, e.to_string());
        bases.check(&dims).map_err(refuse)?;
        if config.labels == LabelHeads::PerHead {
            let what = "bases are of KV heads; labels per query head need a ranking";
            return Err(Refusal::setting(METHOD, what));
        }
        let count = config.label_channels(&dims);
        let cache = SideCache::new(dims, config.dense_layers, |layer| {
            let own = layer * dims.kv_heads..(layer + 1) * dims.kv_heads;
            let sets = bases.keys[own].iter().map(|basis| {
                let directions = basis.directions[..count * dims.head_dim].to_vec();
                let parts = LabelParts::Directions(directions, count);
                LabelSets(vec![Labels::new(
                    parts,
                    config.label_bits,
                    config.round_query,
                )])
            });
            Ok::<_, Refusal>(sets.collect())
        })?;
        Ok(Self {
            config,
            dims,
            cache,
            works: vec![Work::default(); dims.heads],
        })
    }

    /// Bytes of all labels.
    pub fn bytes(&self) -> u64 {
        self.cache.bytes()
    }
}

impl Selector for DoubleSparsity {
    fn on_append(&mut self, layer: usize, _positions: &[u32], keys: &[f32]) {
        self.cache.on_append(layer, keys);
    }

    fn select(
        &mut self,
        layer: usize,
        queries: &[f32],
        store: &dyn KvStore,
        ctx: &mut StepCtx,
        team: &Team,
        rows: &mut Rows,
    ) {
        let (dims, budget) = (self.dims, self.config.heavy_const);
        if layer < self.config.dense_layers || reads_all(layer, &dims, store, budget) {
            return rows.all();
        }
        self.cache.catch_up(layer, store);
        ctx.bytes_read += self.cache.layer_bytes(layer);
        let Self {
            config,
            cache,
            works,
            ..
        } = self;
        let reads = match config.labels {
            LabelHeads::PerKvHead => Reads::PerKvHead,
            LabelHeads::PerHead => Reads::PerHead,
        };
        choose_each(works, reads, &dims, team, rows, |head, work| {
            let sets = &cache.of(layer, head / dims.group()).0;
            // One set for all query heads of the group, or one for each.
            let labels = &sets[head % dims.group() % sets.len()];
            work.label.clear();
            let query = &queries[head * dims.head_dim..][..dims.head_dim];
            labels.of_query(query, &mut work.label);
            labels.scores(&work.label, &mut work.scores);
            let k = budget.of(labels.len());
            greatest(&work.scores, k, config.keep_newest, &mut work.chosen);
        });
    }

    fn changed(&mut self, layer: usize, kv_head: usize, from: usize) {
        self.cache.changed(layer, kv_head, from);
    }

    fn truncate(&mut self, position: u32) {
        self.cache.truncate(position);
    }
}

#[cfg(test)]
mod tests;
