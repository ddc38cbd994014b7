//! The k greatest of many scores.

use std::cell::RefCell;
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

/// The places of the `k` greatest of `scores`, ascending; of equal ones the first. NaN
/// counts as `-inf`. Faster than [`top_k`] for many, and nothing is allocated once `out`
/// has room and a thread has done it before.
///
/// # Panics
/// When there are more than 2³² scores.
pub fn top_k_rows(scores: &[f32], k: usize, out: &mut Vec<u32>) {
    assert!(
        u32::try_from(scores.len().saturating_sub(1)).is_ok(),
        "top_k_rows: more than 2^32 scores"
    );
    out.clear();
    if k >= scores.len() {
        out.extend(0..scores.len() as u32);
        return;
    }
    if k == 0 {
        return;
    }
    let least = NEAR.with_borrow_mut(|near| least_of_top(scores, k, near));
    // Of those equal to the least, as many as there is room for.
    let mut equals = k - count_above(scores, least);
    out.reserve(k + 8);
    push_from(scores, least, &mut equals, out);
}

thread_local! {
    /// Scores near the one that is looked for.
    static NEAR: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// So many scores tell roughly where the `k`-th lies.
const SAMPLE: usize = 512;

/// The `k`-th greatest score, `0 < k < scores.len()`.
fn least_of_top(scores: &[f32], k: usize, near: &mut Vec<f32>) -> f32 {
    let descending = |a: &f32, b: &f32| b.total_cmp(a);
    let clean = |&x: &f32| if x.is_nan() { f32::NEG_INFINITY } else { x };
    if scores.len() > 4 * SAMPLE {
        near.clear();
        let step = scores.len() / SAMPLE;
        near.extend(scores.iter().step_by(step).map(clean));
        // The place of the k-th among the sample is within three standard deviations of
        // that share of it, nearly always.
        let share = near.len() as f32 * k as f32 / scores.len() as f32;
        let margin = 3.0 * share.sqrt() + 2.0;
        let place = |x: f32, near: &[f32]| (x.max(0.0) as usize).min(near.len() - 1);
        let low_place = place(share + margin, near);
        let high_place = place(share - margin, near);
        let low = *near.select_nth_unstable_by(low_place, descending).1;
        let high = *near[..=low_place]
            .select_nth_unstable_by(high_place, descending)
            .1;
        near.clear();
        let above = split_near(scores, low, high, near);
        if above < k && k <= above + near.len() {
            return *near.select_nth_unstable_by(k - above - 1, descending).1;
        }
    }
    near.clear();
    near.extend(scores.iter().map(clean));
    *near.select_nth_unstable_by(k - 1, descending).1
}

simd! {
    /// How many scores are above `high`; those of the others that are not below `low` go to `near`.
    fn split_near(scores: &[f32], low: f32, high: f32, near: &mut Vec<f32>) -> usize = split_near_body;
}

#[inline(always)]
fn split_near_body<V: Eight>(scores: &[f32], low: f32, high: f32, near: &mut Vec<f32>) -> usize {
    let mut above = 0;
    let (low, high) = (V::splat(low), V::splat(high));
    let mut meet = [f32::NEG_INFINITY; 8];
    let blocks = scores.chunks_exact(8);
    let rest = blocks.remainder();
    for (block, count) in blocks.map(|b| (b, 8)).chain([(rest, rest.len())]) {
        let x = if count == 8 {
            V::load(block)
        } else {
            meet[..count].copy_from_slice(block);
            V::load(&meet)
        };
        // NaN becomes -inf.
        let x = x.max(V::splat(f32::NEG_INFINITY));
        let greater = high.less_mask(x);
        above += greater.count_ones() as usize;
        let lanes = (1u32 << count) - 1;
        let mut mask = !greater & !x.less_mask(low) & lanes;
        if mask != 0 {
            let x = x.to_array();
            while mask != 0 {
                near.push(x[mask.trailing_zeros() as usize]);
                mask &= mask - 1;
            }
        }
    }
    above
}

simd! {
    fn count_above(scores: &[f32], bound: f32) -> usize = count_above_body;
}

#[inline(always)]
fn count_above_body<V: Eight>(scores: &[f32], bound: f32) -> usize {
    let blocks = scores.chunks_exact(8);
    let rest = blocks.remainder().iter().filter(|&&x| x > bound).count();
    let mut count = 0;
    for block in blocks {
        count += V::splat(bound).less_mask(V::load(block)).count_ones() as usize;
    }
    count + rest
}

simd! {
    /// Pushes the places of scores above `least`, and of the first `equals` that are equal.
    fn push_from(scores: &[f32], least: f32, equals: &mut usize, out: &mut Vec<u32>) = push_from_body;
}

#[inline(always)]
fn push_from_body<V: Eight>(scores: &[f32], least: f32, equals: &mut usize, out: &mut Vec<u32>) {
    let bound = V::splat(least);
    let blocks = scores.chunks_exact(8);
    let rest = blocks.remainder();
    let mut next = 0;
    for block in blocks {
        let x = V::load(block).max(V::splat(f32::NEG_INFINITY));
        let mut mask = !x.less_mask(bound) & 0xff;
        while mask != 0 {
            let l = mask.trailing_zeros() as usize;
            push_one(block[l], next + l, least, equals, out);
            mask &= mask - 1;
        }
        next += 8;
    }
    for (l, &x) in rest.iter().enumerate() {
        push_one(x, next + l, least, equals, out);
    }
}

#[inline(always)]
fn push_one(x: f32, place: usize, least: f32, equals: &mut usize, out: &mut Vec<u32>) {
    let x = if x.is_nan() { f32::NEG_INFINITY } else { x };
    if x > least {
        out.push(place as u32);
    } else if x == least && *equals > 0 {
        *equals -= 1;
        out.push(place as u32);
    }
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
        fn rows_of_the_greatest_are_those_of_a_full_sort(
            scores in prop_oneof![
                scores(),
                // Enough for a sample; some with few values, some in an order that misleads it.
                (1usize..5000, 1u32..4000, any::<bool>()).prop_map(|(n, values, sorted)| {
                    let score = |i: usize| (i as u32).wrapping_mul(2_654_435_761) / 7 % values;
                    let mut x: Vec<f32> = (0..n).map(|i| score(i) as f32 - 9.0).collect();
                    if sorted {
                        x.sort_by(f32::total_cmp);
                    }
                    x
                }),
            ],
            k in prop_oneof![0usize..40, 0usize..5000],
        ) {
            let clean = |&x: &f32| if x.is_nan() { f32::NEG_INFINITY } else { x };
            let cleaned: Vec<f32> = scores.iter().map(clean).collect();
            let mut want: Vec<u32> = by_sorting(&cleaned, k).iter().map(|x| x.1 as u32).collect();
            want.sort_unstable();
            let mut got = vec![7; 3];
            top_k_rows(&scores, k, &mut got);
            prop_assert_eq!(&got, &want);

            if 0 < k && k < scores.len() {
                let least = least_of_top(&scores, k, &mut Vec::new());
                let mut equals = k - count_above_body::<Portable>(&scores, least);
                let mut twin = Vec::new();
                push_from_body::<Portable>(&scores, least, &mut equals, &mut twin);
                prop_assert_eq!(&twin, &want);
                let (mut near, mut near_twin) = (Vec::new(), Vec::new());
                let above = split_near(&scores, least - 1.0, least + 1.0, &mut near);
                let above_twin = split_near_body::<Portable>(&scores, least - 1.0, least + 1.0, &mut near_twin);
                prop_assert_eq!((above, near), (above_twin, near_twin));
            }
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
