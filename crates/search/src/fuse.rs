//! One list out of two: reciprocal rank fusion.
//!
//! `score(p) = sum over lists of 1 / (k + rank of p in the list)`, ranks counted
//! from 1; a list that lacks `p` adds nothing (Cormack, Clarke, Buettcher 2009).
//! Only ranks count, so scores of different retrievers need no common scale.

use std::collections::HashMap;

/// A passage with the score that a retriever gave it.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Ranked {
    /// The passage.
    pub passage: u64,
    /// Its score; larger is better. Scales differ between retrievers.
    pub score: f32,
}

/// How lists become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FusionOptions {
    /// The constant `k`: the larger, the less the first ranks stand out.
    pub constant: f32,
    /// How many passages of each list take part (never fewer than are asked for).
    pub depth: usize,
}

impl Default for FusionOptions {
    fn default() -> Self {
        Self {
            constant: 60.0,
            depth: 100,
        }
    }
}

/// Sorts by falling score; equal scores by passage, so that the order is the
/// same in every run.
pub fn sort(list: &mut [Ranked]) {
    list.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.passage.cmp(&b.passage)));
}

/// Fuses lists that are sorted best first; the result holds every passage of
/// every list once, best first.
pub fn reciprocal_rank(lists: &[&[Ranked]], constant: f32) -> Vec<Ranked> {
    let mut scores: HashMap<u64, f32> = HashMap::new();
    for list in lists {
        for (i, ranked) in list.iter().enumerate() {
            *scores.entry(ranked.passage).or_default() += 1.0 / (constant + 1.0 + i as f32);
        }
    }
    let mut fused: Vec<Ranked> = scores
        .into_iter()
        .map(|(passage, score)| Ranked { passage, score })
        .collect();
    sort(&mut fused);
    fused
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(ids: &[u64]) -> Vec<Ranked> {
        (ids.iter().zip((0..100).rev()))
            .map(|(&passage, s)| Ranked {
                passage,
                score: s as f32,
            })
            .collect()
    }

    #[test]
    fn agreement_beats_one_good_rank() {
        let (a, b) = (list(&[1, 2, 3]), list(&[4, 2, 5]));
        let fused = reciprocal_rank(&[&a, &b], 60.0);
        let ids: Vec<u64> = fused.iter().map(|r| r.passage).collect();
        // 2 is second in both; 1 and 4 are first in one and tie, as do 3 and 5.
        assert_eq!(ids, [2, 1, 4, 3, 5]);
        assert_eq!(fused[0].score, 2.0 / 62.0);
    }

    proptest! {
        #[test]
        fn holds_each_passage_once_in_falling_order(
            a in proptest::collection::hash_set(0u64..50, 0..30),
            b in proptest::collection::hash_set(0u64..50, 0..30),
        ) {
            let (la, lb) = (list(&a.iter().copied().collect::<Vec<_>>()), list(&b.iter().copied().collect::<Vec<_>>()));
            let fused = reciprocal_rank(&[&la, &lb], 60.0);
            let mut ids: Vec<u64> = fused.iter().map(|r| r.passage).collect();
            ids.sort();
            let mut union: Vec<u64> = a.union(&b).copied().collect();
            union.sort();
            prop_assert_eq!(ids, union);
            prop_assert!(fused.windows(2).all(|w| w[0].score >= w[1].score));
            // Fusing one list keeps its order.
            let alone: Vec<u64> = reciprocal_rank(&[&la], 60.0).iter().map(|r| r.passage).collect();
            prop_assert_eq!(alone, la.iter().map(|r| r.passage).collect::<Vec<_>>());
        }
    }
}
