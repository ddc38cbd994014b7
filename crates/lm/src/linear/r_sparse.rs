//! R-Sparse: about half of the weights stay unread for every token that is written, without
//! training.
//!
//! Zhenyu Zhang, Zechun Liu, Yuandong Tian, Harshit Khaitan, Zhangyang Wang and Steven Li,
//! 2025, R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference.
//!
//! ```text
//! y = W (x ∘ m) + U_r S_r V_rᵀ (x ∘ (1 - m)) + b        W = U S Vᵀ
//! m_j = 1 where |x_j| * |column j of W| > τ
//! ```
//!
//! Inputs that matter read their column of `W`; the others are told by the few greatest
//! singular values. With the sparsity `s` and the sparse share `ρ` of a map of `in` inputs
//! and `out` outputs, `in (1 - s) ρ` channels are kept on average, and what is left of
//! the budget gives the rank `floor((in out (1 - s) - floor(in (1 - s) ρ) out) / (in + out))`.
//! With ρ = 1 there is no second part and no scale: `m_j = 1` where `|x_j| > τ`. With ρ = 0
//! there is no first one. τ is the `1 - (1 - s) ρ` quantile over a calibration text.
//!
//! Weights lie by input channel ([`sum_channels`](keyfold_kernels::blocks::sum_channels)), in place of the usual layout and not
//! beside it. A prompt is multiplied whole. The embedding and the output matrix stay as they
//! are. Bytes of a token: `channels * out` weights and `rank * (in + out)` numbers of 8 bits.
//!
//! One τ for all tokens means that a token may keep many more channels than another; `cap`
//! bounds them, the largest being kept.

mod calibrate;
mod file;
pub mod search;

pub use calibrate::{Calibration, Factors, FoldOptions, by_channel, fold, linears, svd};
pub use file::{EXTENSION, Folded, RSparseFile, beside, save};

use super::{Linear, Way};
use crate::{LmError, Tensor};
use keyfold_kernels::Team;
use keyfold_kernels::blocks::{
    Activations, BlockMatrix, BlockType, ChannelSum, LowRank, SparseProduct, choose_channels,
    matmul_channels, sparse_products,
};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a linear map is split.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Share of the budget that whole channels get, the others going to the low rank.
    pub rho: f64,
    /// Share of the weights that stay unread.
    pub sparsity: f64,
}

impl Default for Split {
    fn default() -> Self {
        Self {
            rho: 0.95,
            sparsity: 0.5,
        }
    }
}

impl Split {
    /// Refuses what is no share.
    ///
    /// # Errors
    /// When `rho` is outside \[0, 1\] or `sparsity` outside \[0, 1).
    pub fn validate(&self) -> Result<(), LmError> {
        let refuse = |what: String| Err(LmError::Input { what });
        if !(0.0..=1.0).contains(&self.rho) {
            return refuse(format!(
                "r-sparse: rho = {} is not between 0 and 1",
                self.rho
            ));
        }
        if !(0.0..1.0).contains(&self.sparsity) {
            return refuse(format!(
                "r-sparse: sparsity = {} is not at least 0 and below 1",
                self.sparsity
            ));
        }
        Ok(())
    }

    /// Channels that are kept on average.
    pub fn channels(&self, inputs: usize) -> f64 {
        inputs as f64 * (1.0 - self.sparsity) * self.rho
    }

    /// Rank of what stands for the other channels.
    pub fn rank(&self, inputs: usize, outputs: usize) -> usize {
        if self.rho == 1.0 {
            return 0;
        }
        let budget = (inputs * outputs) as f64 * (1.0 - self.sparsity);
        let left = budget - self.channels(inputs).floor() * outputs as f64;
        let rank = (left / (inputs + outputs) as f64).floor().max(0.0) as usize;
        rank.min(inputs.min(outputs))
    }

    /// [`rank`](Self::rank) as the authors' script counts it, which takes every map of the
    /// attention for one of `hidden` outputs, so that keys and values of models with fewer KV
    /// heads get more than their budget.
    pub fn authors_rank(&self, inputs: usize, outputs: usize, hidden: usize) -> usize {
        self.rank(inputs, outputs.max(hidden))
            .min(inputs.min(outputs))
    }

    /// Share of the inputs below τ.
    pub fn quantile(&self) -> f64 {
        1.0 - (1.0 - self.sparsity) * self.rho
    }

    /// Whether inputs are weighed by the columns they meet.
    pub fn scaled(&self) -> bool {
        self.rho < 1.0
    }
}

/// Reads the authors' file of a search (text, whatever its name says): pairs of ρ and
/// sparsity, one for each linear map, layer by layer in the order q, k, v, o, gate, up, down.
///
/// # Errors
/// When there is something other than numbers, an odd count of them, or one that is no share.
pub fn read_splits(text: &str) -> Result<Vec<Split>, LmError> {
    let refuse = |what: String| LmError::Input { what };
    let numbers = text.split_whitespace().map(|word| {
        word.parse::<f64>().map_err(|_| {
            refuse(format!(
                "r-sparse: {word:?} is no number; the file has pairs of rho and sparsity"
            ))
        })
    });
    let numbers: Vec<f64> = numbers.collect::<Result<_, _>>()?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    if pairs.is_empty() || !rest.is_empty() {
        return Err(refuse(format!(
            "r-sparse: {} numbers are no pairs of rho and sparsity",
            numbers.len()
        )));
    }
    let split = |&[rho, sparsity]: &[f64; 2]| {
        let split = Split { rho, sparsity };
        split.validate().map(|()| split)
    };
    pairs.iter().map(split).collect()
}

/// The kind in which weights of `kind` are kept by channel: the same where it can be
/// multiplied in registers and its blocks divide the outputs.
pub fn channel_kind(kind: BlockType, outputs: usize) -> BlockType {
    let wanted = match kind {
        BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q5K | BlockType::Q6K => BlockType::Q8_0,
        kind => kind,
    };
    let fits = |kind: &BlockType| kind.row_bytes(outputs).is_some();
    let kinds = [wanted, BlockType::Q8_0, BlockType::F16];
    kinds.into_iter().find(fits).unwrap_or(BlockType::F16)
}

/// What an [`RSparseLinear`] is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Weights by channel, `[in, out]`.
    pub weight: Tensor,
    /// Norm of the column of each input; empty where ρ = 1.
    pub scales: Vec<f32>,
    /// τ; nothing passes where there is none (ρ = 0).
    pub threshold: Option<f32>,
    /// `S_r V_rᵀ`, `[rank, in]`.
    pub down: Option<Tensor>,
    /// `U_rᵀ`, `[rank, out]`.
    pub up: Option<Tensor>,
    /// Added to the outputs.
    pub bias: Option<Vec<f32>>,
    /// Channels of a token at most.
    pub cap: Option<usize>,
}

/// A linear map that reads the columns of large inputs.
pub struct RSparseLinear {
    parts: Parts,
    /// Bytes that the last decoded pass read.
    last_bytes: AtomicU64,
}

/// The channels that one map reads for one input, and what is left for the low rank.
#[derive(Default)]
struct Chosen {
    channels: Vec<u32>,
    factors: Vec<f32>,
    order: Vec<u32>,
    rest: Activations,
}

thread_local! {
    /// Of each of the maps of an input.
    static CHOSEN: RefCell<Vec<Chosen>> = RefCell::default();
}

/// Products of several maps with one row `x`, each into its own output; the team is called once.
pub(super) fn decode<const N: usize>(
    maps: [&RSparseLinear; N],
    x: &[f32],
    mut outs: [&mut [f32]; N],
    team: &Team,
) {
    // Taken out: the caller's thread works as well.
    let mut chosen = CHOSEN.take();
    if chosen.len() < N {
        chosen.resize_with(N, Chosen::default);
    }
    let mut rooms = chosen.iter_mut();
    let products = maps.map(|map| match rooms.next() {
        Some(room) => map.product(x, room),
        None => unreachable!("resized above"),
    });
    sparse_products(&mut outs, &products, team);
    for (map, out) in maps.iter().zip(outs) {
        if let Some(bias) = &map.parts.bias {
            keyfold_kernels::add_bias(out, bias);
        }
    }
    CHOSEN.set(chosen);
}

impl RSparseLinear {
    /// # Errors
    /// When the parts do not fit each other.
    pub fn new(parts: Parts) -> Result<Self, LmError> {
        let refuse = |what: &str| {
            Err(LmError::Input {
                what: format!("r-sparse: {what}"),
            })
        };
        let (inputs, outputs) = (parts.weight.rows(), parts.weight.row_len());
        if matrix(&parts.weight).is_none() {
            return refuse("the weights of a channel are no whole blocks");
        }
        if !(parts.scales.is_empty() || parts.scales.len() == inputs) {
            return refuse("there are not as many scales as inputs");
        }
        if parts.threshold.is_some_and(f32::is_nan) {
            return refuse("the threshold is no number");
        }
        let bias = parts.bias.as_ref().map_or(outputs, Vec::len);
        let fits = match (&parts.down, &parts.up) {
            (None, None) => true,
            (Some(down), Some(up)) => {
                matrix(down).is_some()
                    && matrix(up).is_some()
                    && (down.rows(), down.row_len(), up.row_len()) == (up.rows(), inputs, outputs)
            }
            _ => false,
        };
        if !fits || bias != outputs {
            return refuse("the shapes of its parts do not fit each other");
        }
        Ok(Self {
            parts,
            last_bytes: AtomicU64::new(0),
        })
    }

    /// What it is made of.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Begins to count bytes.
    pub(super) fn count_anew(&self) {
        self.last_bytes.store(0, Ordering::Relaxed);
    }

    /// What is to be read for one row; counts its bytes.
    fn product<'a>(&'a self, x: &[f32], chosen: &'a mut Chosen) -> SparseProduct<'a> {
        let parts = &self.parts;
        let weights = checked(&parts.weight);
        let Chosen {
            channels,
            factors,
            order,
            rest,
        } = chosen;
        channels.clear();
        factors.clear();
        let threshold = parts.threshold.unwrap_or(f32::INFINITY);
        let unread = rest.fill(1, x.len());
        choose_channels(x, &parts.scales, threshold, channels, factors, unread);
        if let Some(cap) = parts.cap.filter(|&cap| cap < channels.len()) {
            keep_largest(cap, &parts.scales, channels, factors, order, unread);
        }
        let row = weights.bytes().len() / weights.rows().max(1);
        let mut bytes = channels.len() * row;
        let low = match (&parts.down, &parts.up) {
            (Some(down), Some(up)) => {
                bytes += down.bytes().len() + up.bytes().len();
                Some(LowRank::new(checked(down), checked(up), rest))
            }
            _ => None,
        };
        self.last_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        SparseProduct {
            kept: ChannelSum {
                weights,
                channels,
                factors,
            },
            low,
        }
    }
}

/// Leaves the `cap` channels of largest weighed inputs; the others go to `rest`.
fn keep_largest(
    cap: usize,
    scales: &[f32],
    channels: &mut Vec<u32>,
    factors: &mut Vec<f32>,
    order: &mut Vec<u32>,
    rest: &mut [f32],
) {
    let size = |i: u32| {
        let scale = scales.get(channels[i as usize] as usize).copied();
        factors[i as usize].abs() * scale.unwrap_or(1.0)
    };
    order.clear();
    order.extend(0..channels.len() as u32);
    if cap > 0 {
        order.select_nth_unstable_by(cap - 1, |&a, &b| size(b).total_cmp(&size(a)));
    }
    for &i in &order[cap..] {
        rest[channels[i as usize] as usize] = factors[i as usize];
    }
    order.truncate(cap);
    // Ascending, so that weights are read in the order in which they lie.
    order.sort_unstable();
    for (to, &from) in order.iter().enumerate() {
        channels[to] = channels[from as usize];
        factors[to] = factors[from as usize];
    }
    channels.truncate(cap);
    factors.truncate(cap);
}

fn matrix(tensor: &Tensor) -> Option<BlockMatrix<'_>> {
    BlockMatrix::new(
        tensor.kind(),
        tensor.rows(),
        tensor.row_len(),
        tensor.bytes(),
    )
    .ok()
}

fn checked(tensor: &Tensor) -> BlockMatrix<'_> {
    matrix(tensor).unwrap_or_else(|| unreachable!("checked in new"))
}

impl Linear for RSparseLinear {
    fn rows(&self) -> usize {
        self.parts.weight.row_len()
    }

    fn cols(&self) -> usize {
        self.parts.weight.rows()
    }

    fn apply(&self, x: &mut Activations, out: &mut [f32], decoding: bool, team: &Team) {
        if decoding {
            self.count_anew();
            let rows = x.values().chunks_exact(self.cols());
            for (x, out) in rows.zip(out.chunks_exact_mut(self.rows())) {
                decode([self], x, [out], team);
            }
            return;
        }
        matmul_channels(out, &checked(&self.parts.weight), x.values(), team);
        if let Some(bias) = &self.parts.bias {
            keyfold_kernels::add_bias(out, bias);
        }
    }

    fn way(&self) -> Way<'_> {
        Way::RSparse(self)
    }

    /// What the last decoded pass read: it differs from token to token.
    fn bytes_read(&self) -> u64 {
        self.last_bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
