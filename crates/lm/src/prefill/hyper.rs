//! HyperAttention: an approximation of attention for long prompts, in almost linear time
//! and without training.
//!
//! Insu Han, Rajesh Jayaram, Amin Karbasi, Vahab Mirrokni, David P. Woodruff, Amir Zandieh
//! (2024): HyperAttention: Long-context Attention in Near-Linear Time.
//!
//! For queries and keys without a mask:
//!
//! ```text
//! bucket(x)  = Gray code of the number with bits [x · G > 0],  G of `lsh_num_projs` random directions
//! block part = queries and keys sorted by bucket, cut into blocks of block_size keys;
//!              exact attention within each block
//! the others = attention to sample_size keys, drawn evenly with replacement and
//!              not of the own block, each counted n / sample_size times
//! ```
//!
//! both merged by their sums of exponentials. With the causal mask the sequence is halved:
//! both halves by themselves the same way, down to `min_seq_len` tokens, which are exact; the
//! second half sees the first half without a mask, as above. Cost: `n (block_size +
//! sample_size) d log(n / min_seq_len)` instead of `n² d / 2`.
//!
//! It is an approximation: the error is small where attention is concentrated on keys of
//! like direction, and large where it is flat. `keyfold bench hyper-attention` measures it.

mod lsh;
mod run;

use keyfold_kernels::Team;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::Layers;
use super::runs::{Chunk, attend_all};
use crate::refusal::Refusal;
use crate::roles::{Dims, KvStore, Prefill};
pub use lsh::{AngularLsh, Gray};
use run::{Run, State};

const METHOD: &str = "hyper";

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HyperConfig {
    /// Directions that keys are hashed by.
    pub lsh_num_projs: usize,
    /// Keys of a block; 0 leaves only the sample.
    pub block_size: usize,
    /// Sampled keys; 0 leaves only the blocks.
    pub sample_size: usize,
    /// Up to this many tokens attention is exact.
    pub min_seq_len: usize,
    /// Layers that it is used in; the others are exact.
    pub layers: Layers,
    /// Of the directions and samples.
    pub seed: u64,
    /// How buckets are put in order.
    pub gray: Gray,
    /// Whether the keys of zeros that fill the last block get attention, as in the authors' code.
    pub count_padding: bool,
    /// Whether samples of the own block count too, and so twice, as in the authors' code for
    /// single precision.
    pub count_block_twice: bool,
}

impl Default for HyperConfig {
    fn default() -> Self {
        Self {
            lsh_num_projs: 7,
            block_size: 256,
            sample_size: 256,
            min_seq_len: 4096,
            layers: Layers::All,
            seed: 0,
            gray: Gray::Code,
            count_padding: false,
            count_block_twice: false,
        }
    }
}

impl HyperConfig {
    /// Refuses what does not fit.
    pub fn validate(&self) -> Result<(), Refusal> {
        let refuse = |what: String| Err(Refusal::setting(METHOD, what));
        if self.block_size == 0 && self.sample_size == 0 {
            return refuse("block_size and sample_size are both 0: nothing would be read".into());
        }
        if self.block_size > 0 && !(1..=16).contains(&self.lsh_num_projs) {
            return refuse(format!(
                "lsh_num_projs = {} is not between 1 and 16",
                self.lsh_num_projs
            ));
        }
        if self.min_seq_len == 0 {
            return refuse("min_seq_len must be at least 1".into());
        }
        Ok(())
    }
}

/// Draws keys: `draw(first query, keys)` gives numbers below `keys`.
type Draw<'a> = &'a dyn Fn(usize, usize) -> Vec<u32>;

/// Queries, keys and values of one head.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// `[queries, dim]`.
    pub queries: &'a [f32],
    /// `[keys, dim]`.
    pub keys: &'a [f32],
    /// `[keys, dim]`.
    pub values: &'a [f32],
    /// Length of a row.
    pub dim: usize,
}

impl<'a> Head<'a> {
    fn n_queries(&self) -> usize {
        self.queries.len() / self.dim
    }

    fn n_keys(&self) -> usize {
        self.keys.len() / self.dim
    }

    fn of(&self, queries: std::ops::Range<usize>, keys: std::ops::Range<usize>) -> Head<'a> {
        let cut = |rows: &'a [f32], range: &std::ops::Range<usize>| {
            &rows[range.start * self.dim..range.end * self.dim]
        };
        Head {
            queries: cut(self.queries, &queries),
            keys: cut(self.keys, &keys),
            values: cut(self.values, &keys),
            dim: self.dim,
        }
    }
}

/// The attention of one head, `[queries, dim]`: for encoders without, for decoders with the
/// causal mask. `number` tells heads that shall not draw the same samples apart.
///
/// A causal mask needs as many queries as keys.
pub fn hyper_attention(
    head: Head,
    causal: bool,
    config: &HyperConfig,
    lsh: &AngularLsh,
    number: usize,
) -> Result<Vec<f32>, Refusal> {
    attention_of(head, causal, config, lsh, &|first, keys| {
        sample(config, &[number, first, keys])
    })
}

fn attention_of(
    head: Head,
    causal: bool,
    config: &HyperConfig,
    lsh: &AngularLsh,
    draw: Draw,
) -> Result<Vec<f32>, Refusal> {
    config.validate()?;
    if causal && head.n_queries() != head.n_keys() {
        return Err(Refusal::setting(
            METHOD,
            format!(
                "{} queries and {} keys: a causal mask needs equal numbers",
                head.n_queries(),
                head.n_keys()
            ),
        ));
    }
    let mut state = State::new(head.n_queries(), head.dim);
    let run = Run { config, lsh, draw };
    if causal {
        run.causal(head, 0, &mut state.whole());
    } else {
        run.unmasked(head, 0, &mut state.whole());
    }
    Ok(state.finish(head.dim))
}

/// Numbers below the last of `of`, which also says, with the seed, which ones.
fn sample(config: &HyperConfig, of: &[usize]) -> Vec<u32> {
    let mut seed = config.seed;
    for &part in of {
        seed = (seed ^ part as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        seed ^= seed >> 29;
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let keys = of.last().map_or(0, |&keys| keys as u32);
    (0..config.sample_size)
        .map(|_| rng.random_range(0..keys))
        .collect()
}

/// The prefill kernel.
#[derive(Debug)]
pub struct HyperPrefill {
    config: HyperConfig,
    dims: Dims,
    /// Directions of every layer.
    lsh: Vec<AngularLsh>,
}

impl HyperPrefill {
    /// Checks the settings and draws the directions.
    pub fn new(config: HyperConfig, dims: Dims) -> Result<Self, Refusal> {
        config.validate()?;
        let lsh = |layer: usize| {
            let seed = config.seed ^ (layer as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            AngularLsh::new(dims.head_dim, config.lsh_num_projs, config.gray, seed)
        };
        Ok(Self {
            lsh: (0..dims.layers).map(lsh).collect(),
            config,
            dims,
        })
    }
}

impl Prefill for HyperPrefill {
    fn attend(
        &mut self,
        layer: usize,
        queries: &[f32],
        positions: &[u32],
        store: &dyn KvStore,
        team: &Team,
        out: &mut [f32],
        mass: &mut [f32],
    ) {
        let (dims, config, n) = (self.dims, &self.config, positions.len());
        // Sampled attention gives no mass of single keys, so where that is wanted all is exact.
        if n <= config.min_seq_len
            || !config.layers.contains(layer, dims.layers)
            || !mass.is_empty()
        {
            let chunk = Chunk {
                layer,
                dims,
                queries,
                positions,
                store,
                window: None,
            };
            return attend_all(&chunk, team, out, mass);
        }
        let (dim, wide) = (dims.head_dim, dims.heads * dims.head_dim);
        let mut heads: Vec<Vec<f32>> = vec![Vec::new(); dims.heads];
        team.split(&mut heads, dims.group(), |first, heads| {
            for (i, group) in heads.chunks_mut(dims.group()).enumerate() {
                let kv_head = first / dims.group() + i;
                let len = store.len(layer, kv_head);
                let (mut keys, mut values) = (vec![0.0; len * dim], vec![0.0; len * dim]);
                store.read(layer, kv_head, 0..len, &mut keys, &mut values);
                for (g, out) in group.iter_mut().enumerate() {
                    let number = kv_head * dims.group() + g;
                    let of_head = queries.chunks_exact(wide);
                    let queries: Vec<f32> = of_head
                        .flat_map(|row| &row[number * dim..][..dim])
                        .copied()
                        .collect();
                    let head = Head {
                        queries: &queries,
                        keys: &keys,
                        values: &values,
                        dim,
                    };
                    *out = self.head(layer, number, head);
                }
            }
        });
        for (number, rows) in heads.iter().enumerate() {
            for (row, out) in rows.chunks_exact(dim).zip(out.chunks_exact_mut(wide)) {
                out[number * dim..][..dim].copy_from_slice(row);
            }
        }
    }

    /// Hashing wants the whole prompt.
    fn chunk(&self) -> Option<usize> {
        None
    }
}

impl HyperPrefill {
    /// The newest keys are those of the queries; older ones are seen without a mask.
    fn head(&self, layer: usize, number: usize, head: Head) -> Vec<f32> {
        let (n, dim) = (head.n_queries(), head.dim);
        let old = head.n_keys() - n;
        let draw = |first: usize, keys: usize| sample(&self.config, &[layer, number, first, keys]);
        let run = Run {
            config: &self.config,
            lsh: &self.lsh[layer],
            draw: &draw,
        };
        let mut state = State::new(n, dim);
        run.causal(head.of(0..n, old..old + n), 0, &mut state.whole());
        if old > 0 {
            run.unmasked(head.of(0..n, 0..old), n, &mut state.whole());
        }
        state.finish(dim)
    }
}

#[cfg(test)]
mod tests;
