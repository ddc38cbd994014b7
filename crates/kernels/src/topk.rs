//! The k greatest of many scores.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::vector::{Eight, simd};

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
    assert!(
        u32::try_from(scores.len().saturating_sub(1)).is_ok(),
        "top_k: more than 2^32 scores"
    );
    let mut top = TopK::new(k);
    push_all(scores, &mut top);
    let sorted = top.into_sorted();
    sorted.into_iter().map(|(s, i)| (s, i as u32)).collect()
}

simd! {
    fn push_all(scores: &[f32], top: &mut TopK) = push_all_body;
}

#[inline(always)]
fn push_all_body<V: Eight>(scores: &[f32], top: &mut TopK) {
    // The first k enter anyway, NaN apart. Of those that follow, an equal score
    // has a higher place and stays out: only greater ones matter.
    let mut next = 0;
    while next < scores.len() && top.heap.len() < top.k {
        top.push(scores[next], next as u64);
        next += 1;
    }
    let blocks = scores[next..].chunks_exact(8);
    let rest = blocks.remainder();
    for block in blocks {
        let mut mask = V::splat(top.threshold()).less_mask(V::load(block));
        while mask != 0 {
            let l = mask.trailing_zeros() as usize;
            top.push(block[l], (next + l) as u64);
            mask &= mask - 1;
        }
        next += 8;
    }
    for (i, &score) in rest.iter().enumerate() {
        top.push(score, (next + i) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Portable;
    use proptest::prelude::*;

    /// Few values, so that many scores are equal, and all that is odd.
    fn scores() -> impl Strategy<Value = Vec<f32>> {
        let score = prop_oneof![
            8 => (-20i32..20).prop_map(|x| x as f32 / 4.0),
            1 => Just(f32::NAN),
            1 => Just(f32::NEG_INFINITY),
            1 => Just(f32::INFINITY),
            1 => Just(-0.0),
        ];
        prop::collection::vec(score, 0..100)
    }

    fn by_sorting(scores: &[f32], k: usize) -> Vec<(f32, u64)> {
        let mut all: Vec<(f32, u64)> = scores.iter().copied().zip(0..).collect();
        all.retain(|(score, _)| !score.is_nan());
        all.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
        all.truncate(k);
        all
    }

    proptest! {
        #[test]
        fn the_greatest_are_those_of_a_full_sort(scores in scores(), k in 0usize..40) {
            let want = by_sorting(&scores, k);
            let got: Vec<(f32, u64)> =
                top_k(&scores, k).into_iter().map(|(s, i)| (s, u64::from(i))).collect();
            prop_assert_eq!(&got, &want);

            let mut portable = TopK::new(k);
            push_all_body::<Portable>(&scores, &mut portable);
            prop_assert_eq!(&portable.into_sorted(), &want);
        }

        #[test]
        fn the_order_of_pushes_does_not_matter(
            scores in scores(),
            k in 0usize..40,
            start in 0usize..100,
        ) {
            let mut top = TopK::new(k);
            for i in 0..scores.len() {
                let i = (i * 37 + start) % scores.len();
                if !scores.len().is_multiple_of(37) {
                    top.push(scores[i], i as u64);
                }
            }
            let want = by_sorting(&scores, k);
            if !scores.len().is_multiple_of(37) {
                let worst = want.last().map_or(f32::NEG_INFINITY, |w| w.0);
                if k > 0 {
                    let full = want.len() == k;
                    prop_assert_eq!(top.threshold(), if full { worst } else { f32::NEG_INFINITY });
                }
                prop_assert_eq!(top.into_sorted(), want);
            }
        }
    }

    #[test]
    fn room_for_none_and_for_all() {
        let mut none = TopK::new(0);
        none.push(1.0, 1);
        assert_eq!(none.threshold(), f32::INFINITY);
        assert_eq!(none.into_sorted(), []);
        let mut all = TopK::new(usize::MAX);
        all.push(1.0, 1);
        assert_eq!(all.threshold(), f32::NEG_INFINITY);
        assert_eq!(all.into_sorted(), [(1.0, 1)]);
    }
}
