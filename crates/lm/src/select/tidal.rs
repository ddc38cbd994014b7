//! TidalDecode: a few layers look at every key, the layers between read what those found.
//! Faster decoding of long contexts without any calibration.
//!
//! Lijie Yang, Zhihao Zhang, Zhuofu Chen, Zikun Li, Zhihao Jia (2025): TidalDecode: Fast and
//! Accurate LLM Decoding with Position Persistent Sparse Attention.
//!
//! Layers by number, of every decoded token anew:
//!
//! ```text
//! below sparse_layer_start            read all
//! sparse_layer_start                  reads all, and notes the top_k rows of greatest q · k
//! after it                            read the rows that were noted last
//! each of correction_layers           reads all, and notes anew
//! ```
//!
//! Of `L` layers `sparse_layer_start + 1 + corrections` read all `S` rows, the others read
//! `top_k` rows for each query head; for `L` = 32 and few rows that is 1/8 of the bytes.
//! The newest row always has a place among the `top_k`, as in the authors' kernels; their
//! script for evaluation lets it compete ([`keep_newest`](TidalConfig::keep_newest)).
//!
//! Keys and values of decoded tokens come from hidden states that were themselves computed
//! with few rows. With [`correct_every`](TidalConfig::correct_every) the host reads the decoded
//! tokens again from time to time, densely, and replaces their keys and values.

use std::sync::{Arc, Mutex, PoisonError};

use keyfold_kernels::{Team, add_assign};
use serde::{Deserialize, Serialize};

use super::{
    Budget, Work, choose_lists, key_bytes, of_group, pick, reads_all, score_all, sort_unique, works,
};
use crate::refusal::Refusal;
use crate::roles::{Dims, KvStore, Reads, Rows, Selector, StepCtx};

const METHOD: &str = "tidal";

/// Below this many layers too few are left between the dense ones.
const LEAST_LAYERS: usize = 5;

/// Decoded tokens after which answers were found to suffer without correction.
const LONG_ANSWER: usize = 4096;

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TidalConfig {
    /// Rows that a query head reads between the layers that look at all.
    pub top_k: Budget,
    /// So many first layers read everything; the next is the first that notes rows.
    pub sparse_layer_start: usize,
    /// Layers that look at everything again and note anew, ascending.
    pub correction_layers: Vec<usize>,
    /// How query heads that share a KV head come to rows.
    pub group: GroupRule,
    /// Whether the present token's row always has a place.
    pub keep_newest: bool,
    /// After so many decoded tokens their keys and values are computed anew.
    pub correct_every: Option<usize>,
}

/// How the query heads that share a KV head come to rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupRule {
    /// All read the union of what each wants.
    #[default]
    Union,
    /// All read the `top_k` rows of greatest attention, summed over the group.
    Mass,
    /// Each reads its own rows, as the authors have it, who repeat keys for every query head.
    PerHead,
}

impl Default for TidalConfig {
    /// The authors' values, made for the 32 layers of Llama-3-8B.
    fn default() -> Self {
        Self {
            top_k: Budget::Tokens(256),
            sparse_layer_start: 2,
            correction_layers: vec![13],
            group: GroupRule::Union,
            keep_newest: true,
            correct_every: None,
        }
    }
}

impl TidalConfig {
    /// The default with the correction layer at the same depth of a model of `layers`
    /// layers. Better is the layer that [`Overlap::best_correction_layer`] measures.
    pub fn for_layers(layers: usize) -> Self {
        let default = Self::default();
        let scaled = (layers * 13).div_ceil(32);
        let earliest = default.sparse_layer_start + 1;
        let fits = layers >= LEAST_LAYERS;
        Self {
            correction_layers: fits
                .then(|| scaled.clamp(earliest, layers - 1))
                .into_iter()
                .collect(),
            ..default
        }
    }

    /// As the authors' script for evaluation does it, in what differs from ours.
    pub fn authors() -> Self {
        Self {
            group: GroupRule::PerHead,
            keep_newest: false,
            ..Self::default()
        }
    }

    /// Refuses what does not fit.
    pub fn validate(&self, dims: &Dims) -> Result<(), Refusal> {
        let refuse = |what: String| Err(Refusal::setting(METHOD, what));
        self.top_k.check(METHOD, "top_k")?;
        if self.correct_every == Some(0) {
            return refuse("correct_every must be at least 1 token".into());
        }
        if dims.layers < LEAST_LAYERS {
            return Ok(());
        }
        let mut earlier = self.sparse_layer_start;
        for &layer in &self.correction_layers {
            if layer <= earlier {
                return refuse(format!(
                    "correction layer {layer} must come after layer {earlier}, which looks at \
                     everything already"
                ));
            }
            if layer >= dims.layers {
                return refuse(format!(
                    "correction layer {layer}: the model's layers are 0 to {}",
                    dims.layers - 1
                ));
            }
            earlier = layer;
        }
        if self.sparse_layer_start >= dims.layers {
            return refuse(format!(
                "sparse_layer_start = {}: the model's layers are 0 to {}",
                self.sparse_layer_start,
                dims.layers - 1
            ));
        }
        Ok(())
    }
}

/// The selector.
#[derive(Debug)]
pub struct Tidal {
    config: TidalConfig,
    dims: Dims,
    works: Vec<Work>,
}

impl Tidal {
    /// Checks the settings.
    pub fn new(config: TidalConfig, dims: Dims) -> Result<Self, Refusal> {
        config.validate(&dims)?;
        let lists = match config.group {
            GroupRule::PerHead => dims.group(),
            _ => 1,
        };
        Ok(Self {
            works: works(&dims, lists),
            config,
            dims,
        })
    }

    /// What a user should know of these settings for `generated` tokens to come.
    pub fn notices(&self, generated: usize) -> Vec<String> {
        let mut notices = Vec::new();
        if self.too_few_layers() {
            notices.push(format!(
                "{METHOD}: a model of {} layers is read densely, since too few layers are left \
                 between those that look at everything",
                self.dims.layers
            ));
        } else if generated > LONG_ANSWER && self.config.correct_every.is_none() {
            notices.push(format!(
                "{METHOD}: over some thousand generated tokens the rows of other layers miss \
                 more and more; set a correction of keys and values every few hundred tokens"
            ));
        }
        notices
    }

    fn too_few_layers(&self) -> bool {
        self.dims.layers < LEAST_LAYERS
    }

    fn notes(&self, layer: usize) -> bool {
        layer == self.config.sparse_layer_start || self.config.correction_layers.contains(&layer)
    }
}

impl Selector for Tidal {
    fn on_append(&mut self, _layer: usize, _positions: &[u32], _keys: &[f32]) {}

    fn select(
        &mut self,
        layer: usize,
        queries: &[f32],
        store: &dyn KvStore,
        ctx: &mut StepCtx,
        team: &Team,
        rows: &mut Rows,
    ) {
        let (dims, config) = (self.dims, &self.config);
        rows.all();
        if self.too_few_layers()
            || layer < config.sparse_layer_start
            || reads_all(layer, &dims, store, config.top_k)
        {
            return;
        }
        let reads = match config.group {
            GroupRule::PerHead => Reads::PerHead,
            _ => Reads::PerKvHead,
        };
        if self.notes(layer) {
            let works = &mut self.works;
            choose_lists(works, reads, team, &mut ctx.shared, |head, work| {
                note(layer, head, queries, store, config, &dims, work);
            });
            ctx.bytes_read += key_bytes(layer, &dims, store);
        } else if ctx.shared.reads == reads {
            // A layer before which nothing was noted (all was short) reads all.
            rows.start(reads, ctx.shared.lists.len());
            let per_head = ctx.shared.lists.len() / dims.kv_heads;
            for (i, (noted, list)) in ctx.shared.lists.iter().zip(&mut rows.lists).enumerate() {
                let head = i / per_head;
                to_rows(noted, store.positions(layer, head), list);
                let newest = store.len(layer, head) as u32 - 1;
                if config.keep_newest && list.last() != Some(&newest) {
                    list.push(newest);
                }
            }
        }
    }

    fn truncate(&mut self, _position: u32) {}

    fn due_correction(&self, decoded: usize) -> Option<usize> {
        let every = self.config.correct_every?;
        let due = decoded > 0 && decoded.is_multiple_of(every) && !self.too_few_layers();
        due.then_some(every)
    }
}

/// Fills the lists of a KV head with the positions that its query heads want.
fn note(
    layer: usize,
    head: usize,
    queries: &[f32],
    store: &dyn KvStore,
    config: &TidalConfig,
    dims: &Dims,
    work: &mut Work,
) {
    let len = store.len(layer, head);
    score_all(
        layer,
        head,
        of_group(queries, head, dims),
        store,
        dims,
        work,
    );
    let k = config.top_k.of(len);
    let Work {
        scores,
        chosen,
        lists,
        ..
    } = work;
    if config.group == GroupRule::Mass {
        group_mass(scores, len, (dims.head_dim as f32).sqrt().recip());
        scores.truncate(len);
    }
    let one_list = lists.len() == 1;
    for (i, scores) in scores.chunks_exact(len).enumerate() {
        let list = &mut lists[if one_list { 0 } else { i }];
        pick(scores, k, config.keep_newest, chosen, list);
    }
    let positions = store.positions(layer, head);
    for list in lists {
        sort_unique(list);
        if !unmoved(positions) {
            for row in list {
                *row = positions[*row as usize];
            }
        }
    }
}

/// Sums the softmax of each query head's `len` scores into the first `len`.
fn group_mass(scores: &mut [f32], len: usize, scale: f32) {
    for scores in scores.chunks_exact_mut(len) {
        let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for score in scores.iter_mut() {
            *score = ((*score - greatest) * scale).exp();
            sum += *score;
        }
        scores.iter_mut().for_each(|score| *score /= sum);
    }
    let (first, others) = scores.split_at_mut(len);
    for other in others.chunks_exact(len) {
        add_assign(first, other);
    }
}

/// Whether every row lies at its position, so that none was dropped.
fn unmoved(positions: &[u32]) -> bool {
    positions
        .last()
        .is_none_or(|&last| last as usize + 1 == positions.len())
}

/// The rows at which the ascending positions `noted` lie, as far as they are there.
fn to_rows(noted: &[u32], positions: &[u32], rows: &mut Vec<u32>) {
    if unmoved(positions) {
        rows.extend(noted.iter().filter(|&&p| (p as usize) < positions.len()));
        return;
    }
    let mut from = 0;
    for position in noted {
        match positions[from..].binary_search(position) {
            Ok(at) => {
                rows.push((from + at) as u32);
                from += at + 1;
            }
            Err(at) => from += at,
        }
    }
}

/// How alike the layers of a model choose.
#[derive(Debug, Clone)]
pub struct Overlap {
    layers: usize,
    /// `[layers, layers]`, and how many steps they are of.
    sums: Vec<f64>,
    steps: u32,
}

impl Overlap {
    /// `[layers, layers]`: which part of the row layer's choice the column layer chose too,
    /// as a mean over heads and steps.
    pub fn matrix(&self) -> Vec<f32> {
        let steps = f64::from(self.steps.max(1));
        self.sums.iter().map(|sum| (sum / steps) as f32).collect()
    }

    /// The layer after `sparse_layer_start` whose choice is most like those of all layers
    /// after it; `None` before any step, and where no layer has one after it.
    pub fn best_correction_layer(&self, sparse_layer_start: usize) -> Option<usize> {
        let layers = self.layers;
        let matrix = (self.steps > 0).then(|| self.matrix())?;
        let likeness = |layer: usize| {
            let later = &matrix[layer * layers..][layer + 1..layers];
            later.iter().sum::<f32>() / later.len() as f32
        };
        (sparse_layer_start + 1..layers.saturating_sub(1))
            .map(|layer| (likeness(layer), layer))
            // Of equals the earlier one, which serves more layers.
            .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))
            .map(|(_, layer)| layer)
    }

    /// Adds the rows that the heads of every layer chose in a step, `[layers][heads]`.
    fn add(&mut self, step: &[Vec<Vec<u32>>]) {
        for (i, own) in step.iter().enumerate() {
            for (j, other) in step.iter().enumerate() {
                let shares = own.iter().zip(other).map(|(own, other)| share(own, other));
                let heads = own.len().max(1) as f64;
                self.sums[i * self.layers + j] += shares.sum::<f64>() / heads;
            }
        }
        self.steps += 1;
    }
}

/// Reads everything and notes what every layer would have chosen for itself, to find a
/// model's best correction layer.
#[derive(Debug)]
pub struct OverlapProbe {
    dims: Dims,
    config: TidalConfig,
    works: Vec<Work>,
    /// Chosen rows of the present step, `[layers][heads]`.
    step: Vec<Vec<Vec<u32>>>,
    overlap: Arc<Mutex<Overlap>>,
}

impl OverlapProbe {
    /// Notes the `top_k` rows of every query head.
    pub fn new(top_k: Budget, dims: Dims) -> Self {
        let overlap = Overlap {
            layers: dims.layers,
            sums: vec![0.0; dims.layers * dims.layers],
            steps: 0,
        };
        Self {
            dims,
            config: TidalConfig {
                top_k,
                ..TidalConfig::authors()
            },
            works: works(&dims, dims.group()),
            step: vec![Vec::new(); dims.layers],
            overlap: Arc::new(Mutex::new(overlap)),
        }
    }

    /// What is found, also after the probe was handed to a session.
    pub fn overlap(&self) -> Arc<Mutex<Overlap>> {
        Arc::clone(&self.overlap)
    }
}

/// Which part of `own` is in `other`; both ascending.
fn share(own: &[u32], other: &[u32]) -> f64 {
    let both = own.iter().filter(|row| other.binary_search(row).is_ok());
    both.count() as f64 / own.len().max(1) as f64
}

impl Selector for OverlapProbe {
    fn on_append(&mut self, _layer: usize, _positions: &[u32], _keys: &[f32]) {}

    fn select(
        &mut self,
        layer: usize,
        queries: &[f32],
        store: &dyn KvStore,
        _ctx: &mut StepCtx,
        team: &Team,
        rows: &mut Rows,
    ) {
        let (dims, config) = (self.dims, &self.config);
        let mut chosen = Rows::default();
        choose_lists(
            &mut self.works,
            Reads::PerHead,
            team,
            &mut chosen,
            |head, work| {
                note(layer, head, queries, store, config, &dims, work);
            },
        );
        self.step[layer] = chosen.lists;
        if layer + 1 == dims.layers {
            let overlap = self.overlap.lock();
            overlap
                .unwrap_or_else(PoisonError::into_inner)
                .add(&self.step);
        }
        rows.all();
    }

    fn truncate(&mut self, _position: u32) {}
}

#[cfg(test)]
mod tests;
