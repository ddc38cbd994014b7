//! The k greatest of many scores.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Keeps the `k` greatest scores that are pushed. Of equal scores the lower id
/// is the greater. NaN never enters.
#[derive(Debug, Clone)]
pub struct TopK {
    k: usize,
    /// The worst entry is on top.
    heap: BinaryHeap<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    score: f32,
    id: u64,
}

impl Eq for Entry {}

impl Ord for Entry {
    /// The worse entry is the greater, since the heap gives up its greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        other
            .score
            .partial_cmp(&self.score)
            .unwrap_or(Ordering::Equal)
            .then(self.id.cmp(&other.id))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl TopK {
    /// Room for `k` scores.
    pub fn new(k: usize) -> Self {
        Self {
            k,
            heap: BinaryHeap::new(),
        }
    }

    /// Offers a score.
    pub fn push(&mut self, score: f32, id: u64) {
        if score.is_nan() || self.k == 0 {
            return;
        }
        let entry = Entry { score, id };
        if self.heap.len() < self.k {
            self.heap.push(entry);
        } else if let Some(mut worst) = self.heap.peek_mut()
            && entry < *worst
        {
            *worst = entry;
        }
    }

    /// A score below this cannot enter any more; an equal one can, by a lower
    /// id. `-inf` until `k` scores are in.
    pub fn threshold(&self) -> f32 {
        match self.heap.peek() {
            _ if self.k == 0 => f32::INFINITY,
            Some(worst) if self.heap.len() == self.k => worst.score,
            _ => f32::NEG_INFINITY,
        }
    }

    /// The scores that are in, the greatest first.
    pub fn into_sorted(self) -> Vec<(f32, u64)> {
        let sorted = self.heap.into_sorted_vec();
        sorted.into_iter().map(|e| (e.score, e.id)).collect()
    }
}

/// The `k` greatest of `scores` with their places, the greatest first; of equal
/// ones the first. NaN is left out.
///
/// # Panics
/// When there are more than 2³² scores.
pub fn top_k(scores: &[f32], k: usize) -> Vec<(f32, u32)> {
    assert!(scores.len() <= 1 << 32, "top_k: more than 2^32 scores");
    let mut top = TopK::new(k);
    for (i, &score) in scores.iter().enumerate() {
        top.push(score, i as u64);
    }
    let sorted = top.into_sorted();
    sorted.into_iter().map(|(s, i)| (s, i as u32)).collect()
}
