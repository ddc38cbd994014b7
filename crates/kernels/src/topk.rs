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
    NEAR.with_borrow_mut(|near| {
        collect(scores, bound_below_top(scores, k, near), near, out);
        if out.len() < k {
            collect(scores, f32::NEG_INFINITY, near, out);
        }
        keep_top(k, near, out);
    });
}

thread_local! {
    /// Scores that may be among the greatest, twice.
    static NEAR: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// So many scores tell roughly where the `k`-th lies.
const SAMPLE: usize = 512;

/// A score that most likely is not above the `k`-th greatest, and not far below it.
fn bound_below_top(scores: &[f32], k: usize, sample: &mut Vec<f32>) -> f32 {
    if scores.len() <= 4 * SAMPLE {
        return f32::NEG_INFINITY;
    }
    sample.clear();
    let clean = |&x: &f32| if x.is_nan() { f32::NEG_INFINITY } else { x };
    sample.extend(scores.iter().step_by(scores.len() / SAMPLE).map(clean));
    // The place of the k-th among the sample is within three standard deviations of that share
    // of it, nearly always.
    let share = sample.len() as f32 * k as f32 / scores.len() as f32;
    let place = ((share + 3.0 * share.sqrt() + 2.0) as usize).min(sample.len() - 1);
    *sample
        .select_nth_unstable_by(place, |a, b| b.total_cmp(a))
        .1
}

/// Leaves in `places`, whose scores are `near`, those of the `k` greatest, in their order; of
/// equal ones the first.
fn keep_top(k: usize, near: &mut Vec<f32>, places: &mut Vec<u32>) {
    let count = near.len();
    if count <= k {
        return;
    }
    near.extend_from_within(..);
    let (inside, copy) = near.split_at_mut(count);
    let (greater, &mut least, _) = copy.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    // Zeros of either sign are equal, though the order above puts one before the other.
    let mut equals = k - greater.iter().filter(|&&x| x > least).count();
    let mut kept = 0;
    for (i, &score) in inside.iter().enumerate() {
        // Written always, kept if it is one: no branch to be guessed. kept <= i.
        places[kept] = places[i];
        let equal = score == least && equals > 0;
        equals -= usize::from(equal);
        kept += usize::from(score > least || equal);
    }
    places.truncate(kept);
}

/// The scores that are not below `bound`, with their places. NaN becomes `-inf`.
fn collect(scores: &[f32], bound: f32, near: &mut Vec<f32>, places: &mut Vec<u32>) {
    #[cfg(target_arch = "x86_64")]
    if crate::vector::has_vnni() {
        // SAFETY: the machine has AVX-512.
        return unsafe { collect_wide(scores, bound, near, places) };
    }
    collect_eight(scores, bound, near, places);
}

/// [`collect`], sixteen scores at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f")]
fn collect_wide(scores: &[f32], bound: f32, near: &mut Vec<f32>, places: &mut Vec<u32>) {
    use std::arch::x86_64::*;
    near.clear();
    places.clear();
    // Every step writes sixteen numbers and keeps the first few of them.
    near.reserve(scores.len() + 16);
    places.reserve(scores.len() + 16);
    let mut found = 0;
    // SAFETY: a step reads the numbers of its block and no others. It writes sixteen numbers from
    // `found` on, which is at most the number of scores before the block, so that there is room;
    // the first `found` of both are written when the lengths are set.
    unsafe {
        let (least, bound) = (_mm512_set1_ps(f32::NEG_INFINITY), _mm512_set1_ps(bound));
        let mut ids = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for block in scores.chunks(16) {
            let there = (0xffff_u32 >> (16 - block.len())) as u16;
            // NaN becomes -inf.
            let x = _mm512_max_ps(_mm512_maskz_loadu_ps(there, block.as_ptr()), least);
            let mask = there & _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, bound);
            let to = near.as_mut_ptr().add(found);
            _mm512_storeu_ps(to, _mm512_maskz_compress_ps(mask, x));
            let to = places.as_mut_ptr().add(found);
            _mm512_storeu_si512(to.cast(), _mm512_maskz_compress_epi32(mask, ids));
            found += mask.count_ones() as usize;
            ids = _mm512_add_epi32(ids, _mm512_set1_epi32(16));
        }
        near.set_len(found);
        places.set_len(found);
    }
}

simd! {
    /// [`collect`], eight scores at a time.
    fn collect_eight(scores: &[f32], bound: f32, near: &mut Vec<f32>, places: &mut Vec<u32>) = collect_body;
}

#[inline(always)]
fn collect_body<V: Eight>(scores: &[f32], bound: f32, near: &mut Vec<f32>, places: &mut Vec<u32>) {
    near.clear();
    places.clear();
    let bound = V::splat(bound);
    let blocks = scores.chunks_exact(8);
    let rest = blocks.remainder();
    let mut last = [f32::NEG_INFINITY; 8];
    last[..rest.len()].copy_from_slice(rest);
    let mut next = 0;
    for (block, count) in blocks.map(|b| (b, 8)).chain([(&last[..], rest.len())]) {
        // NaN becomes -inf.
        let x = V::load(block).max(V::splat(f32::NEG_INFINITY));
        let mut mask = !x.less_mask(bound) & ((1u32 << count) - 1);
        if mask != 0 {
            let x = x.to_array();
            while mask != 0 {
                let l = mask.trailing_zeros();
                near.push(x[l as usize]);
                places.push(next + l);
                mask &= mask - 1;
            }
        }
        next += 8;
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
                let bound = bound_below_top(&scores, k, &mut Vec::new());
                let (mut near, mut places) = (Vec::new(), Vec::new());
                collect(&scores, bound, &mut near, &mut places);
                let (mut near_twin, mut places_twin) = (Vec::new(), Vec::new());
                collect_body::<Portable>(&scores, bound, &mut near_twin, &mut places_twin);
                prop_assert_eq!((near, places), (near_twin, places_twin));
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
