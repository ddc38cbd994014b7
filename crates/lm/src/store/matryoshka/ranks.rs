//! How many numbers of every head are kept.

use super::{Bases, MatryoshkaStore};
use crate::roles::Dims;
use crate::session::{Policy, Session};
use crate::store::CacheType;
use crate::{Decoder, LmError};
use keyfold_core::{NoProgress, Progress};
use keyfold_kernels::Team;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Ranks of keys and values, `[layers, kv_heads]` each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranks {
    /// Of keys.
    pub keys: Vec<usize>,
    /// Of values.
    pub values: Vec<usize>,
}

impl Ranks {
    /// The same rank for all: the share `keep` of the dimensions, in whole eights (which
    /// kernels take at once; of small heads in eighths), but at least one.
    pub fn uniform(dims: &Dims, keep: f64) -> Self {
        let unit = (dims.head_dim / 8).clamp(1, 8);
        let units = (dims.head_dim as f64 * keep / unit as f64).round() as usize;
        Self::all(dims, (unit * units.max(1)).min(dims.head_dim))
    }

    /// This rank for all.
    pub fn all(dims: &Dims, rank: usize) -> Self {
        let ranks = vec![rank; dims.layers * dims.kv_heads];
        Self {
            keys: ranks.clone(),
            values: ranks,
        }
    }

    /// Refuses ranks that are 0 or more than there are dimensions, or of another model.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self, dims: &Dims) -> Result<(), LmError> {
        let heads = dims.layers * dims.kv_heads;
        let refuse = |what: String| Err(LmError::Input { what });
        if self.keys.len() != heads || self.values.len() != heads {
            return refuse(format!(
                "matryoshka: ranks of {} and {} heads; the model has {heads}",
                self.keys.len(),
                self.values.len()
            ));
        }
        let unfit = |&&rank: &&usize| rank == 0 || rank > dims.head_dim;
        match self.keys.iter().chain(&self.values).find(unfit) {
            Some(rank) => refuse(format!(
                "matryoshka: rank {rank} is not between 1 and the {} dimensions of a head",
                dims.head_dim
            )),
            None => Ok(()),
        }
    }

    /// Share of the dimensions that is kept.
    pub fn kept(&self, dims: &Dims) -> f64 {
        let sum: usize = self.keys.iter().chain(&self.values).sum();
        sum as f64 / (2 * dims.layers * dims.kv_heads * dims.head_dim) as f64
    }

    fn entry(&mut self, i: usize) -> &mut usize {
        let heads = self.keys.len();
        if i < heads {
            &mut self.keys[i]
        } else {
            &mut self.values[i - heads]
        }
    }
}

/// Settings of the greedy search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RankSearch {
    /// Share of the dimensions that shall be kept on average.
    pub target: f64,
    /// Dimensions that a head gives up at a time; a quarter of them where it is 0 (the
    /// authors: 32 of 128).
    pub interval: usize,
    /// Share of all heads, of keys and values, that give up some in a round (the authors:
    /// 1536 of 2048).
    pub share: f64,
}

impl Default for RankSearch {
    fn default() -> Self {
        Self {
            target: 0.4,
            interval: 0,
            share: 0.75,
        }
    }
}

/// Lowers ranks where it changes the final hidden states of a text least.
///
/// In every round each head of keys or values is tried alone with one interval less than it
/// has; the error is `|h - h_ref| / |h_ref|` with the states of the round's beginning. The
/// cheapest give up an interval, none its last. The last round lowers no more than the target
/// asks for (the authors' lowers as many as the others).
///
/// Cost: `2 layers kv_heads` readings of the text a round.
///
/// # Errors
/// When the target is no share or cannot be reached in whole intervals, or a session fails;
/// [`LmError::Stopped`] where `progress` asked to stop.
pub fn search_ranks(
    decoder: &Arc<Decoder>,
    bases: &Arc<Bases>,
    tokens: &[u32],
    config: &RankSearch,
    team: &Arc<Team>,
    progress: &dyn Progress,
) -> Result<Ranks, LmError> {
    let dims = decoder.config().dims;
    let d = dims.head_dim;
    let interval = match config.interval {
        0 => (d / 4).max(1),
        n => n.min(d),
    };
    let refuse = |what: String| Err(LmError::Input { what });
    let least = interval as f64 / d as f64;
    if !(config.target > 0.0 && config.target <= 1.0) {
        return refuse(format!(
            "matryoshka: {} is no share of the dimensions to keep",
            config.target
        ));
    }
    if config.target < least {
        return refuse(format!(
            "matryoshka: steps of {interval} of {d} dimensions leave {least:.3} of them, more than {}; \
             take a smaller interval",
            config.target
        ));
    }
    if !(config.share > 0.0 && config.share <= 1.0) {
        return refuse(format!("matryoshka: share = {} is no share", config.share));
    }
    let mut ranks = Ranks::all(&dims, d);
    let entries = 2 * dims.layers * dims.kv_heads;
    let states = |ranks: &Ranks| -> Result<Vec<f32>, LmError> {
        let store = MatryoshkaStore::new(
            dims,
            Arc::clone(bases),
            ranks,
            CacheType::F32,
            false,
            tokens.len(),
        )?;
        let policy = Policy::of(decoder, Box::new(store));
        let mut session = Session::new(Arc::clone(decoder), policy, Arc::clone(team));
        session.keep_hidden(true);
        session.prefill(tokens, &NoProgress)?;
        Ok(session.hidden().to_vec())
    };
    while ranks.kept(&dims) > config.target + 1e-9 {
        progress.start("ranks", "heads", Some(entries as u64));
        let reference = states(&ranks)?;
        let mut errors = Vec::with_capacity(entries);
        for i in 0..entries {
            if progress.cancelled() {
                progress.finish();
                return Err(LmError::Stopped);
            }
            let rank = *ranks.entry(i);
            if rank > interval {
                *ranks.entry(i) = rank - interval;
                let lowered = states(&ranks);
                *ranks.entry(i) = rank;
                errors.push((error(&lowered?, &reference), i));
            }
            progress.advance(1);
        }
        progress.finish();
        errors.sort_by(|a, b| a.0.total_cmp(&b.0));
        let over = (ranks.kept(&dims) - config.target) * (entries * d) as f64;
        let asked = (over / interval as f64 - 1e-9).ceil().max(1.0) as usize;
        let share = ((entries as f64 * config.share) as usize).max(1);
        for &(_, i) in errors.iter().take(share.min(asked)) {
            *ranks.entry(i) -= interval;
        }
        if errors.is_empty() {
            break;
        }
    }
    Ok(ranks)
}

/// `|a - b| / |b|`.
fn error(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let distance: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    let size: f64 = b.iter().map(|&x| square(x)).sum();
    (distance / size.max(f64::MIN_POSITIVE)).sqrt()
}
