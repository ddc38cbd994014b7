//! ActQKV: contexts far beyond the trained window, in a window of the newest tokens and few
//! retrieved blocks of old ones.
//!
//! Qingfa Xiao, Jiachuan Wang, Haoyang Li, Cheng Deng, Jiaqi Tang, Shuangyin Li, Yongqi Zhang,
//! Jun Wang, Lei Chen (2025): Activation-aware Probe-Query: Effective Key-Value Retrieval for
//! Long-Context LLMs Inference. The memory of blocks is InfLLM's (Chaojun Xiao et al., 2024).
//!
//! Of every layer:
//!
//! ```text
//! window     the n_local newest tokens; queries and keys rotated by their distance
//! far        initial tokens (n_init), retrieved blocks of block_size tokens, and what left the
//!            window but fills no block yet: keys not rotated, queries rotated to
//!            n_local − 1, so that all far keys seem n_local − 1 away
//! output     one softmax over both
//! block key  per query head, the mean of the repr_topk keys that got most attention while
//!            they were in the window; the heads side by side
//! probe      Σ a_t q_t over the queries of a chunk, a_t ∝ mean over channels of
//!            (q_t − mean)² / (variance + mean variance / 100), running statistics
//! score      cos(block key, probe), + question_weight · cos(block key, question) while
//!            the prompt is read
//! blocks     per layer and chunk the K best; K grows with the entropy of the scores, of
//!            topk blocks per layer in the mean
//! ```
//!
//! Per token a layer reads `n_local + n_init + K · block_size` keys and values and one
//! vector of `heads · head_dim` numbers for each block. All blocks stay in memory, so the authors'
//! cache of blocks on the accelerator has no counterpart here; they are the rows of a
//! [`KvStore`], 16-bit floats or the codes of any store that gives back keys as they came.
//!
//! [`retrieved`](WholeAttention::retrieved) tells which blocks a layer read last: where an answer came from.
//!
//! In the authors' code the statistics are those of all layers together and do nothing in
//! the first 1000 chunks, and queries of a chunk see tokens that are leaving the window
//! twice; [`compat`](ActQkvConfig::compat) does so too.

mod config;
mod memory;
mod probe;
mod rotary;
mod view;

use keyfold_kernels::{Team, axpy, dot, normalize_rows, top_k_rows};

pub use self::config::{ActQkvConfig, Probe};
use self::memory::{Memory, mean_of_top};
use self::probe::{Budgets, Statistics};
use self::rotary::Angles;
pub use self::rotary::Rotary;
use self::view::{HeadResult, View};
use crate::refusal::Refusal;
use crate::roles::{Dims, KvStore, WholeAttention};
use crate::store::{CacheType, DenseStore};

const METHOD: &str = "act-qkv";

/// Attention, cache and retrieval in one.
pub struct ActQkv {
    config: ActQkvConfig,
    dims: Dims,
    angles: Angles,
    layers: Vec<Layer>,
    /// Rows of the blocks, one after the other; keys not rotated.
    store: Box<dyn KvStore>,
    /// Rows of the tails of all layers; keys rotated by their positions.
    near: DenseStore,
    /// Of all layers together, as the authors have it.
    shared: Statistics,
    budgets: Budgets,
    /// Blocks that are left to the layers to come, for every chunk of the present call.
    remaining: Vec<f32>,
    question: Option<(u32, u32)>,
    /// Calls since a layer was first called, as the authors tell decoding from reading.
    calls: usize,
}

/// State of one layer.
#[derive(Debug, Clone, Default)]
struct Layer {
    memory: Memory,
    statistics: Statistics,
    /// The question's vector, of length one.
    question: Option<Vec<f32>>,
    retrieved: Vec<u32>,
    /// All that was ever retrieved.
    #[cfg(test)]
    log: Vec<Vec<u32>>,
}

impl ActQkv {
    /// Checks the settings. `rotary` turns queries and keys, which come unrotated. Blocks are
    /// kept in 16 bits (32 where the authors' code is followed).
    ///
    /// # Errors
    /// When a setting is out of range, or the model does not turn its keys.
    pub fn new(config: ActQkvConfig, dims: Dims, rotary: Rotary) -> Result<Self, Refusal> {
        let kind = match config.compat {
            true => CacheType::F32,
            false => CacheType::F16,
        };
        let store = DenseStore::new(dims, kind, 0)
            .ok_or_else(|| Refusal::setting(METHOD, "heads of no numbers"))?;
        Self::with_store(config, dims, rotary, Box::new(store))
    }

    /// The same with blocks in `store`, which is empty and gives back keys unrotated, as it gets
    /// them. The window is kept in 16 bits, or in 32 where `store` keeps those.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_store(
        config: ActQkvConfig,
        dims: Dims,
        rotary: Rotary,
        store: Box<dyn KvStore>,
    ) -> Result<Self, Refusal> {
        config.validate()?;
        if rotary.inv_freq.is_empty() {
            return Err(Refusal::setting(
                METHOD,
                "the model has no rotary embedding, so far keys cannot be put at one distance",
            ));
        }
        if rotary.inv_freq.len() * 2 > dims.head_dim {
            return Err(Refusal::setting(
                METHOD,
                format!(
                    "{} rotary frequencies for heads of {} numbers",
                    rotary.inv_freq.len(),
                    dims.head_dim
                ),
            ));
        }
        let kind = match store.row_bytes().0 < 4 * dims.head_dim as u64 {
            true => CacheType::F16,
            false => CacheType::F32,
        };
        let near = DenseStore::new(dims, kind, 0)
            .ok_or_else(|| Refusal::setting(METHOD, "heads of no numbers"))?;
        Ok(Self {
            near,
            angles: Angles::new(rotary, config.n_local as u32 - 1),
            layers: vec![Layer::default(); dims.layers],
            store,
            shared: Statistics::default(),
            budgets: Budgets::new(dims.layers, config.history),
            remaining: Vec::new(),
            question: None,
            calls: 0,
            config,
            dims,
        })
    }

    /// Says that the tokens `[from, to)` of a prompt of `prompt` tokens are its question.
    pub fn set_question(&mut self, from: u32, to: u32, prompt: u32) -> Result<(), Refusal> {
        if from >= to || to > prompt {
            return Err(Refusal::setting(
                METHOD,
                format!("question {from}:{to} lies not within the {prompt} tokens of the prompt"),
            ));
        }
        self.question = Some((from, to));
        Ok(())
    }

    /// Positions of the tokens of a block.
    fn block_positions(&self, block: u32) -> std::ops::Range<u32> {
        let from = self.config.n_init as u32 + block * self.config.block_size as u32;
        from..from + self.config.block_size as u32
    }

    /// Blocks that `layer` holds.
    pub fn blocks(&self, layer: usize) -> usize {
        self.layers[layer].memory.blocks
    }

    /// Attention of at most `exc_block_size` queries. Returns how many bytes of rows were read.
    fn attend_few(&mut self, layer: usize, few: &Few, team: &Team, out: &mut [f32]) -> u64 {
        let dims = self.dims;
        let wide = dims.heads * dims.head_dim;
        let mut far_queries = few.queries.to_vec();
        self.angles.rotate_far(&mut far_queries, dims.head_dim);
        let mut near_queries = few.queries.to_vec();
        self.angles
            .rotate(&mut near_queries, wide, few.from, dims.head_dim);

        let chosen = self.choose(layer, &far_queries, few);
        let memory = &mut self.layers[layer].memory;
        let held = memory.len(&dims);
        let narrow = dims.kv_heads * dims.head_dim;
        let mut rotated = few.keys.to_vec();
        self.angles
            .rotate(&mut rotated, narrow, few.from, dims.head_dim);
        let new = (few.keys.len() / narrow) as u32;
        let positions: Vec<u32> = (0..new).map(|i| memory.tokens as u32 + i).collect();
        self.near.append(layer, &positions, &rotated, few.values);
        memory.append(few.keys, few.values, &dims);
        let view = View {
            memory,
            store: &*self.store,
            near: &self.near,
            layer,
            block_size: self.config.block_size,
            dims,
            chosen: &chosen,
            near_queries: &near_queries,
            far_queries: &far_queries,
            held,
            n_local: self.config.n_local,
            twice: self.config.compat,
        };
        let bytes = view.bytes();
        let window = view.window();
        if new == 1 {
            let mass = view.attend_one(team, out);
            memory.mass[window.start * dims.heads..]
                .iter_mut()
                .zip(&mass)
                .for_each(|(sum, mass)| *sum += mass);
        } else {
            let mut heads: Vec<HeadResult> = vec![HeadResult::default(); dims.kv_heads];
            team.split(&mut heads, 1, |first, heads| {
                for (i, result) in heads.iter_mut().enumerate() {
                    view.attend_many(first + i, result);
                }
            });
            for (kv_head, result) in heads.iter().enumerate() {
                result.write(kv_head, &dims, window.start, out, &mut memory.mass);
            }
        }
        #[cfg(test)]
        self.layers[layer].log.push(chosen.clone());
        self.layers[layer].retrieved = chosen;
        bytes
    }

    /// The blocks that the layer reads for a chunk.
    fn choose(&mut self, layer: usize, far_queries: &[f32], few: &Few) -> Vec<u32> {
        let Self {
            config,
            dims,
            layers,
            shared,
            budgets,
            remaining,
            calls,
            ..
        } = self;
        let wide = dims.heads * dims.head_dim;
        let state = &mut layers[layer];
        let statistics = match config.compat {
            true => shared,
            false => &mut state.statistics,
        };
        let n = far_queries.len() / wide;
        let weights = match config.probe {
            Probe::Activation => {
                statistics.weights(far_queries, wide, config.h_upper, config.compat)
            }
            Probe::Mean => vec![1.0 / n as f32; n],
            Probe::Last => (1..=n).map(|i| if i == n { 1.0 } else { 0.0 }).collect(),
        };
        let mut probe = vec![0.0; wide];
        for (weight, query) in weights.iter().zip(far_queries.chunks_exact(wide)) {
            axpy(&mut probe, *weight, query);
        }
        normalize_rows(&mut probe, wide);
        let decoding = match config.compat {
            true => *calls > dims.layers,
            false => few.decoding,
        };
        let question = state.question.as_ref().filter(|_| !decoding);
        let blocks = state.memory.representatives.chunks_exact(wide);
        let scores: Vec<f32> = blocks
            .map(|key| {
                let of_question = question.map_or(0.0, |question| dot(key, question));
                dot(key, &probe) + config.question_weight * of_question
            })
            .collect();
        if config.compat && scores.is_empty() {
            budgets.note(layer, 0.0);
        }
        let remaining = &mut remaining[few.number];
        let count = budgets.share(layer, &scores, config.bounds(), decoding, remaining);
        let mut chosen = Vec::with_capacity(count);
        top_k_rows(&scores, count, &mut chosen);
        chosen
    }

    /// Makes the question's vector of those of `queries` (of positions from `first`, rotated
    /// for far keys) that belong to it. `by_mass`: of the tokens with most attention.
    fn take_question(&mut self, layer: usize, queries: &[f32], first: u32, by_mass: bool) {
        let Some((from, to)) = self.question else {
            return;
        };
        let (dims, dim) = (self.dims, self.dims.head_dim);
        let wide = dims.heads * dim;
        let end = first + (queries.len() / wide) as u32;
        if from < first || to > end {
            return;
        }
        let mut own =
            queries[(from - first) as usize * wide..(to - first) as usize * wide].to_vec();
        self.angles.rotate_far(&mut own, dim);
        let state = &mut self.layers[layer];
        let count = (to - from) as usize;
        let oldest = state.memory.tokens - state.memory.len(&dims);
        let mut question = vec![0.0; wide];
        for (head, mean) in question.chunks_exact_mut(dim).enumerate() {
            let mass = |token: usize| {
                let row = (from as usize + token).checked_sub(oldest);
                let mass = row.and_then(|row| state.memory.mass.get(row * dims.heads + head));
                mass.copied().unwrap_or(0.0)
            };
            let mass: Vec<f32> = (0..count).map(mass).collect();
            let kept = if by_mass {
                self.config.repr_topk
            } else {
                count
            };
            mean_of_top(
                &mass,
                kept,
                |row| &own[row as usize * wide + head * dim..][..dim],
                mean,
            );
        }
        normalize_rows(&mut question, wide);
        state.question = Some(question);
    }
}

/// A few tokens of a call.
struct Few<'a> {
    /// Which of the call's chunks.
    number: usize,
    /// Place of the first in the call.
    from: usize,
    queries: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    decoding: bool,
}

impl WholeAttention for ActQkv {
    fn attend(
        &mut self,
        layer: usize,
        queries: &[f32],
        keys: &[f32],
        values: &[f32],
        positions: &[u32],
        decoding: bool,
        team: &Team,
        out: &mut [f32],
    ) -> u64 {
        let dims = self.dims;
        let (wide, narrow) = (dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim);
        let (n, size) = (positions.len(), self.config.exc_block_size);
        let Some(&first) = positions.first() else {
            return 0;
        };
        let mut bytes = 0;
        if layer == 0 {
            let all = (self.config.topk * dims.layers) as f32;
            self.remaining = vec![all; n.div_ceil(size)];
            self.angles.prepare(positions);
        }
        if self.layers[layer].memory.tokens == 0 {
            self.calls = 0;
        }
        let compat = self.config.compat;
        if !compat {
            // No attention to its tokens is known yet.
            self.take_question(layer, queries, first, false);
        }
        for number in 0..n.div_ceil(size) {
            let tokens = number * size..((number + 1) * size).min(n);
            let few = Few {
                number,
                from: tokens.start,
                queries: &queries[tokens.start * wide..tokens.end * wide],
                keys: &keys[tokens.start * narrow..tokens.end * narrow],
                values: &values[tokens.start * narrow..tokens.end * narrow],
                decoding,
            };
            bytes += self.attend_few(
                layer,
                &few,
                team,
                &mut out[tokens.start * wide..tokens.end * wide],
            );
            let sizes = self.config.sizes();
            let asked = match compat {
                // When the first tokens are about to leave the window.
                true => {
                    let memory = &self.layers[layer].memory;
                    memory.len(&dims) > sizes.n_local
                        && memory.first.keys.len() < sizes.n_init * narrow
                        && self.layers[layer].question.is_none()
                }
                // As soon as the question was read.
                false => self.question.is_some_and(|(_, to)| {
                    let read = |token: usize| first + token as u32;
                    read(tokens.start) < to && to <= read(tokens.end)
                }),
            };
            if asked {
                self.take_question(layer, queries, first, true);
            }
            let memory = &mut self.layers[layer].memory;
            memory.settle(&sizes, &dims, &mut *self.store, &mut self.near, layer);
        }
        self.calls += 1;
        bytes
    }

    fn chunk(&self) -> usize {
        self.config.chunk_size
    }

    fn retrieved(&self, layer: usize) -> Vec<std::ops::Range<u32>> {
        let blocks = self.layers[layer].retrieved.iter();
        blocks.map(|&block| self.block_positions(block)).collect()
    }

    fn bytes(&self) -> u64 {
        let layers = self.layers.iter().map(|layer| layer.memory.bytes());
        layers.sum::<u64>() + self.store.bytes() + self.near.bytes()
    }
}

#[cfg(test)]
mod tests;
