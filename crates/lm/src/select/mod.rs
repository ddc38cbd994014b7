//! Which rows a decoded token reads.
//!
//! | method | chooses by |
//! |---|---|
//! | [`double_sparsity`] | scores on few calibrated channels |
//! | [`tidal`] | full scores in two layers, whose rows the layers between reuse |
//! | [`act_qkv`] | blocks whose mean key is near to a weighted query (a whole attention of its own) |
//! | [`power`] | blocks at power-of-two distances, whatever the query |
//! | [`baselines`] | what the papers compare with |
//!
//! Selectors that choose by scores give every KV head the union of the rows that its
//! query heads want, so that a key and a value are read once for all of them.

pub mod act_qkv;
pub mod baselines;
pub mod double_sparsity;
mod labels;
pub mod power;
pub mod rankings;
mod side;
pub mod tidal;

use std::cell::RefCell;
use std::str::FromStr;

use keyfold_kernels::{Team, top_k_rows};
use serde::{Deserialize, Serialize};

use crate::attention::add_bias;
use crate::refusal::Refusal;
use crate::roles::{Dims, KvStore, Reads, RowSet, Rows};

/// How many rows a method may read: a number, or a share of those that are there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Budget {
    /// So many rows.
    Tokens(usize),
    /// This part of the rows, rounded up.
    Share(f64),
}

impl Budget {
    /// How many of `len` rows; at least one where there is one.
    pub fn of(self, len: usize) -> usize {
        match self {
            Self::Tokens(n) => n.min(len),
            Self::Share(share) => ((len as f64 * share).ceil() as usize).clamp(1.min(len), len),
        }
    }

    /// Refuses 0 and shares outside (0, 1].
    fn check(self, method: &'static str, field: &str) -> Result<(), Refusal> {
        match self {
            Self::Tokens(0) => Err(Refusal::setting(
                method,
                format!("{field} must be at least 1"),
            )),
            Self::Share(share) if !(share > 0.0 && share <= 1.0) => Err(Refusal::setting(
                method,
                format!("{field} = {share} is no share between 0 and 1"),
            )),
            _ => Ok(()),
        }
    }
}

impl FromStr for Budget {
    type Err = Refusal;

    /// `1024`, `1/16` or `0.0625`.
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let refuse = || {
            Refusal::setting(
                "rows to read",
                format!("{text:?} is neither a number of tokens (1024) nor a share (1/16)"),
            )
        };
        let number = |part: &str| part.trim().parse::<f64>().map_err(|_| refuse());
        let budget = if let Some((over, under)) = text.split_once('/') {
            Self::Share(number(over)? / number(under)?)
        } else if let Ok(tokens) = text.trim().parse() {
            Self::Tokens(tokens)
        } else {
            Self::Share(number(text)?)
        };
        budget.check("rows to read", text).map(|()| budget)
    }
}

/// What choosing rows for one KV head needs, kept between steps.
#[derive(Debug, Clone, Default)]
struct Work {
    /// Scores of one query head, or of all of the group one after the other.
    scores: Vec<f32>,
    /// Rows that one query head chose.
    chosen: Vec<u32>,
    /// Labels of the queries.
    label: Vec<f32>,
    /// Rows of every list that this KV head gives: one, or one for each query head.
    lists: Vec<Vec<u32>>,
}

/// Sorts and removes doubles.
fn sort_unique(rows: &mut Vec<u32>) {
    rows.sort_unstable();
    rows.dedup();
}

/// Fills `chosen` with the `k` rows of greatest `scores`, ascending; `keep_newest` takes one of
/// the places for the last row, whatever its score. Of equal scores the earlier row counts
/// more.
fn greatest(scores: &[f32], k: usize, keep_newest: bool, chosen: &mut Vec<u32>) {
    match scores.split_last() {
        Some((_, earlier)) if keep_newest && k > 0 => {
            top_k_rows(earlier, k - 1, chosen);
            chosen.push(earlier.len() as u32);
        }
        _ => top_k_rows(scores, k, chosen),
    }
}

/// Appends the [`greatest`] to `rows`.
fn pick(scores: &[f32], k: usize, keep_newest: bool, chosen: &mut Vec<u32>, rows: &mut Vec<u32>) {
    greatest(scores, k, keep_newest, chosen);
    rows.extend_from_slice(chosen);
}

/// Whether every KV head of `layer` may read all that it has.
fn reads_all(layer: usize, dims: &Dims, store: &dyn KvStore, budget: Budget) -> bool {
    (0..dims.kv_heads).all(|head| {
        let len = store.len(layer, head);
        budget.of(len) == len
    })
}

/// Lets `choose(kv_head, work)` fill the lists of every KV head, threads side by side, and
/// hands them to `rows`.
fn choose_lists(
    works: &mut [Work],
    reads: Reads,
    team: &Team,
    rows: &mut Rows,
    choose: impl Fn(usize, &mut Work) + Sync,
) {
    team.split(works, 1, |first, run| {
        for (offset, work) in run.iter_mut().enumerate() {
            work.lists.iter_mut().for_each(Vec::clear);
            choose(first + offset, work);
        }
    });
    rows.start(reads, works.iter().map(|work| work.lists.len()).sum());
    let lists = works.iter_mut().flat_map(|work| &mut work.lists);
    for (to, from) in rows.lists.iter_mut().zip(lists) {
        std::mem::swap(to, from);
    }
}

/// Lets `choose(head, work)` fill `chosen` of every query head with ascending rows, threads
/// side by side, and hands `rows` these, or for each KV head what any of its query heads chose.
fn choose_each(
    works: &mut [Work],
    reads: Reads,
    dims: &Dims,
    team: &Team,
    rows: &mut Rows,
    choose: impl Fn(usize, &mut Work) + Sync,
) {
    team.split(works, 1, |first, run| {
        for (offset, work) in run.iter_mut().enumerate() {
            choose(first + offset, work);
        }
    });
    if reads == Reads::PerHead {
        rows.start(reads, works.len());
        for (to, work) in rows.lists.iter_mut().zip(works) {
            std::mem::swap(to, &mut work.chosen);
        }
        return;
    }
    rows.start(reads, dims.kv_heads);
    let works = &*works;
    team.split(&mut rows.lists, 1, |first, run| {
        for (offset, list) in run.iter_mut().enumerate() {
            let own = &works[(first + offset) * dims.group()..][..dims.group()];
            union(own.iter().map(|work| work.chosen.as_slice()), list);
        }
    });
}

thread_local! {
    /// A bit for each row.
    static MARKS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Fills `to` with the rows of any of the ascending `lists`, ascending.
fn union<'a>(lists: impl Iterator<Item = &'a [u32]>, to: &mut Vec<u32>) {
    to.clear();
    MARKS.with_borrow_mut(|marks| {
        for list in lists {
            let words = list.last().map_or(0, |&last| last as usize / 64 + 1);
            if marks.len() < words {
                marks.resize(words, 0);
            }
            for &row in list {
                marks[row as usize / 64] |= 1 << (row % 64);
            }
        }
        for (word, bits) in marks.iter_mut().enumerate() {
            while *bits != 0 {
                to.push(64 * word as u32 + bits.trailing_zeros());
                *bits &= *bits - 1;
            }
        }
    });
}

/// One [`Work`] for every KV head, with `lists` lists each.
fn works(dims: &Dims, lists: usize) -> Vec<Work> {
    let work = Work {
        lists: vec![Vec::new(); lists],
        ..Work::default()
    };
    vec![work; dims.kv_heads]
}

/// The queries `[group, head_dim]` of a KV head, of `[heads, head_dim]`.
fn of_group<'a>(queries: &'a [f32], kv_head: usize, dims: &Dims) -> &'a [f32] {
    let len = dims.group() * dims.head_dim;
    &queries[kv_head * len..][..len]
}

/// Products of a KV head's `queries` `[group, head_dim]` with all its keys, one query after
/// the other, in `work.scores`.
fn score_all(
    layer: usize,
    head: usize,
    queries: &[f32],
    store: &dyn KvStore,
    dims: &Dims,
    work: &mut Work,
) {
    let len = store.len(layer, head);
    let heads = queries.len() / dims.head_dim;
    work.scores.clear();
    work.scores.resize(heads * len, 0.0);
    let all = RowSet::Range(0, len);
    store.dot(layer, head, queries, all, &mut work.scores);
    let factor = (dims.head_dim as f32).sqrt();
    add_bias(store.bias(layer, head), all, factor, &mut work.scores);
}

/// Bytes of all keys of a layer.
fn key_bytes(layer: usize, dims: &Dims, store: &dyn KvStore) -> u64 {
    let rows: usize = (0..dims.kv_heads).map(|head| store.len(layer, head)).sum();
    rows as u64 * store.row_bytes().0
}

#[cfg(test)]
mod tests;
