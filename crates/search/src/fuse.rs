//! One list out of two, by rank or by score.
//!
//! *Reciprocal rank fusion* (Cormack, Clarke, Buettcher 2009):
//! `score(p) = sum over lists of 1 / (k + rank of p in the list)`, ranks counted
//! from 1; a list that lacks `p` adds nothing. Only ranks count, so scores of
//! different retrievers need no common scale.
//!
//! *Interpolation* (Li, Wang, Zhuang, Mourad, Ma, Lin, Zuccon: To Interpolate or
//! not to Interpolate: PRF, Dense and Sparse Retrievers, SIGIR 2022):
//! `score(p) = w s(p) + (1 - w) d(p)` over the scaled scores of a sparse and a
//! dense list; a list that lacks `p` gives it its least score. Around a round of
//! feedback ([`crate::feedback`]) it can be done before (the feedback learns from
//! the mixed list), after (its list is mixed), or both.

use std::collections::{BTreeSet, HashMap};

/// A passage with the score that a retriever gave it.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Ranked {
    /// The passage.
    pub passage: u64,
    /// Its score; larger is better. Scales differ between retrievers.
    pub score: f32,
}

/// When the lists of words and meaning are mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fuse {
    /// At the end, by rank.
    #[default]
    Rank,
    /// Never: the list by meaning stands alone.
    None,
    /// Scores, before feedback: it learns from the mixed list, and the list by
    /// meaning that follows stands alone.
    Before,
    /// Scores, after feedback.
    After,
    /// Scores, before and after feedback.
    Both,
}

impl Fuse {
    /// Whether scores are mixed before feedback.
    pub(crate) fn before(self) -> bool {
        matches!(self, Self::Before | Self::Both)
    }

    /// Whether scores are mixed at the end.
    pub(crate) fn after(self) -> bool {
        matches!(self, Self::After | Self::Both)
    }
}

/// How the scores of a list are brought to a common range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// `(x - min) / (max - min)`: from 0 to 1.
    #[default]
    MinMax,
    /// `(x - (min + max) / 2) / (max - min)`: from -0.5 to 0.5, as Pyserini does it.
    Centre,
    /// As they are.
    Raw,
}

/// How scores are mixed: `w s(p) + (1 - w) d(p)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interpolation {
    /// `w`, what the sparse list (words, or learnt terms) counts; from 0 to 1.
    ///
    /// The default gives both lists the same say. Where one retriever is much
    /// weaker, its list should count less: measure with
    /// `keyfold bench prf-interpolation --sweep`.
    pub weight: f32,
    /// The common range of both lists.
    pub scale: Scale,
    /// How many passages of each list take part (never fewer than are asked for).
    pub depth: usize,
}

impl Default for Interpolation {
    fn default() -> Self {
        Self {
            weight: 0.5,
            scale: Scale::default(),
            depth: 1000,
        }
    }
}

/// How lists become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FusionOptions {
    /// When.
    pub fuse: Fuse,
    /// By rank: the constant `k`; the larger, the less the first ranks stand out.
    pub constant: f32,
    /// By rank: how many passages of each list take part (never fewer than are
    /// asked for).
    pub depth: usize,
    /// By score.
    pub interpolation: Interpolation,
}

impl Default for FusionOptions {
    fn default() -> Self {
        Self {
            fuse: Fuse::default(),
            constant: 60.0,
            depth: 100,
            interpolation: Interpolation::default(),
        }
    }
}

impl FusionOptions {
    /// How long the lists of both retrievers must be for `k` results.
    pub(crate) fn list_depth(&self, k: usize) -> usize {
        k.max(match self.fuse {
            Fuse::Rank => self.depth,
            Fuse::None => 0,
            Fuse::Before | Fuse::After | Fuse::Both => self.interpolation.depth,
        })
    }
}

/// Mixes the scores of two lists; the result holds every passage of both once,
/// best first. A passage that a list lacks has the least score of that list, and
/// a list whose scores are all the same has 0 for them (unless they are raw).
pub fn interpolate(sparse: &[Ranked], dense: &[Ranked], how: &Interpolation) -> Vec<Ranked> {
    let (sparse, dense) = (
        Scaled::new(sparse, how.scale),
        Scaled::new(dense, how.scale),
    );
    let passages: BTreeSet<u64> = sparse
        .scores
        .keys()
        .chain(dense.scores.keys())
        .copied()
        .collect();
    let mut mixed: Vec<Ranked> = passages
        .into_iter()
        .map(|passage| Ranked {
            passage,
            score: how.weight * sparse.of(passage) + (1.0 - how.weight) * dense.of(passage),
        })
        .collect();
    sort(&mut mixed);
    mixed
}

/// A list with scores in the common range.
struct Scaled {
    scores: HashMap<u64, f32>,
    /// What passages have that it lacks.
    least: f32,
}

impl Scaled {
    fn new(list: &[Ranked], scale: Scale) -> Self {
        let scores = list.iter().map(|r| r.score);
        let (min, max) = scores.fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), s| {
            (min.min(s), max.max(s))
        });
        let range = max - min;
        let scaled = |score: f32| match scale {
            Scale::Raw => score,
            _ if range <= 0.0 => 0.0,
            Scale::MinMax => (score - min) / range,
            Scale::Centre => (score - (min + max) / 2.0) / range,
        };
        Self {
            scores: list.iter().map(|r| (r.passage, scaled(r.score))).collect(),
            least: if list.is_empty() { 0.0 } else { scaled(min) },
        }
    }

    fn of(&self, passage: u64) -> f32 {
        self.scores.get(&passage).copied().unwrap_or(self.least)
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

    fn scores(pairs: &[(u64, f32)]) -> Vec<Ranked> {
        let ranked = |&(passage, score): &(u64, f32)| Ranked { passage, score };
        pairs.iter().map(ranked).collect()
    }

    #[test]
    fn scores_are_mixed_in_a_common_range() {
        // Dense scores far from 0: what a list lacks must get its least, not 0.
        let (sparse, dense) = (
            scores(&[(1, 8.0), (2, 4.0)]),
            scores(&[(2, 71.0), (3, 70.0), (1, 69.0)]),
        );
        let mixed = |weight, scale| {
            let how = Interpolation {
                weight,
                scale,
                depth: 10,
            };
            interpolate(&sparse, &dense, &how)
        };
        assert_eq!(
            mixed(0.5, Scale::MinMax),
            scores(&[(1, 0.5), (2, 0.5), (3, 0.25)])
        );
        assert_eq!(
            mixed(0.25, Scale::MinMax),
            scores(&[(2, 0.75), (3, 0.375), (1, 0.25)])
        );
        assert_eq!(
            mixed(0.5, Scale::Centre),
            scores(&[(1, 0.0), (2, 0.0), (3, -0.25)])
        );
        assert_eq!(
            mixed(0.5, Scale::Raw),
            scores(&[(1, 38.5), (2, 37.5), (3, 37.0)])
        );
    }

    #[test]
    fn lists_without_a_range_are_no_trouble() {
        let how = Interpolation::default();
        assert_eq!(interpolate(&[], &[], &how), []);
        let one = scores(&[(7, 3.0)]);
        assert_eq!(interpolate(&one, &[], &how), scores(&[(7, 0.0)]));
        // The one hit of a list says nothing; the other list decides.
        let mixed = interpolate(&one, &scores(&[(8, 2.0), (7, 1.0)]), &how);
        assert_eq!(mixed, scores(&[(8, 0.5), (7, 0.0)]));
    }

    proptest! {
        #[test]
        fn the_whole_weight_keeps_the_order_of_a_list(
            a in proptest::collection::btree_map(0u64..50, 0u32..1000, 1..30),
            b in proptest::collection::btree_map(0u64..50, 0u32..1000, 1..30),
            centre: bool,
        ) {
            let listed = |map: &std::collections::BTreeMap<u64, u32>| {
                let mut list: Vec<Ranked> = map.iter().map(|(&passage, &s)| Ranked { passage, score: s as f32 }).collect();
                sort(&mut list);
                list
            };
            let (sparse, dense) = (listed(&a), listed(&b));
            let scale = if centre { Scale::Centre } else { Scale::MinMax };
            for (weight, list) in [(1.0, &sparse), (0.0, &dense)] {
                let how = Interpolation { weight, scale, depth: 100 };
                let mixed = interpolate(&sparse, &dense, &how);
                let least = list.last().unwrap().score;
                let kept: Vec<u64> = mixed.iter().map(|r| r.passage).filter(|p| list.iter().any(|r| r.passage == *p && r.score > least)).collect();
                let own: Vec<u64> = list.iter().filter(|r| r.score > least).map(|r| r.passage).collect();
                prop_assert_eq!(kept, own);
                prop_assert!(mixed.windows(2).all(|w| w[0].score >= w[1].score));
            }
        }

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
