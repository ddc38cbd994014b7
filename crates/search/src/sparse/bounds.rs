//! What blocks of passages can score at most, so that most of them are never scored.
//!
//! Source: Mallia, Suel, Tonellotto, *Faster Learned Sparse Retrieval with Block-Max
//! Pruning* (SIGIR 2024). With blocks of passages `D`, the greatest impact
//! `m_t(D)` of each term in each block, and the weights `w_t` of a query,
//!
//! ```text
//! score(q, p) <= bound(q, D) = sum over t of w_t m_t(D)   for all p in D
//! ```
//!
//! Blocks are scored from the greatest bound down, until the bound is below the worst
//! of the `k` best so far: the result is that of scoring all.
//!
//! Terms that fewer passages have than there are blocks keep no maxima: their postings
//! are added to the scores of all passages at once, and the greatest sum of a block is
//! part of its bound. So the tables take less memory than the lists.

use std::ops::Range;

use keyfold_core::SparseVector;
use keyfold_kernels::{TopK, add_postings, add_scaled};

use super::index::ImpactIndex;
use crate::filter::BitSet;
use crate::fuse::Ranked;

/// Passages of a block.
const BLOCK: usize = 64;
/// With fewer blocks than this for each wanted passage, all of them are scored, in
/// order, which reads memory faster (measured: `cargo bench --bench impacts`).
const BLOCKS_EACH: usize = 32;

/// Tables of the terms that many passages have.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Bounds {
    blocks: usize,
    /// For every term its row in the tables.
    rows: Vec<Option<u32>>,
    /// `[rows, blocks + 1]`: where the postings of each block begin in the list.
    starts: Vec<u32>,
    /// `[rows, blocks]`: the greatest impact.
    greatest: Vec<u16>,
}

impl Bounds {
    /// Of lists over `passages` passages.
    pub(crate) fn new<'a>(
        passages: usize,
        lists: impl Iterator<Item = (&'a [u32], &'a [u16])>,
    ) -> Self {
        let mut bounds = Self {
            blocks: passages.div_ceil(BLOCK),
            ..Self::default()
        };
        for (docs, impacts) in lists {
            if docs.len() < bounds.blocks {
                bounds.rows.push(None);
                continue;
            }
            bounds
                .rows
                .push(Some((bounds.greatest.len() / bounds.blocks.max(1)) as u32));
            let mut at = 0;
            for block in 0..bounds.blocks {
                bounds.starts.push(at as u32);
                let end = (block + 1) * BLOCK;
                let mut greatest = 0;
                while at < docs.len() && (docs[at] as usize) < end {
                    greatest = greatest.max(impacts[at]);
                    at += 1;
                }
                bounds.greatest.push(greatest);
            }
            bounds.starts.push(docs.len() as u32);
        }
        bounds
    }

    fn greatest(&self, row: usize) -> &[u16] {
        &self.greatest[row * self.blocks..(row + 1) * self.blocks]
    }

    /// Where the postings of a block are in the list.
    fn range(&self, row: usize, block: usize) -> Range<usize> {
        let at = row * (self.blocks + 1) + block;
        self.starts[at] as usize..self.starts[at + 1] as usize
    }
}

/// The `k` allowed passages of the greatest score above 0.
pub(crate) fn best(
    index: &ImpactIndex,
    query: &SparseVector,
    k: usize,
    allowed: &BitSet,
) -> Vec<Ranked> {
    let bounds = index.bounds();
    // Where many blocks hold one of the best, bounds cost more than they save.
    let every_block = k.saturating_mul(BLOCKS_EACH) > bounds.blocks;
    let mut scores = vec![0u32; index.len()];
    let mut long = Vec::new();
    for &(term, weight) in query.entries() {
        let Some(i) = index.place(term) else { continue };
        let (docs, impacts) = index.list(i);
        match bounds.rows[i] {
            Some(row) if !every_block => long.push((row as usize, docs, impacts, weight)),
            _ => add_postings(&mut scores, 0, docs, impacts, weight),
        }
    }
    let mut most: Vec<u32> = scores.chunks(BLOCK).map(greatest).collect();
    for &(row, _, _, weight) in &long {
        add_scaled(&mut most, bounds.greatest(row), weight);
    }
    let mut top = TopK::new(k);
    for (most, block) in falling(&most) {
        if (most as f32) < top.threshold() {
            break;
        }
        let first = block * BLOCK;
        let scores = &mut scores[first..(first + BLOCK).min(index.len())];
        for &(row, docs, impacts, weight) in &long {
            let range = bounds.range(row, block);
            add_postings(
                scores,
                first as u32,
                &docs[range.clone()],
                &impacts[range],
                weight,
            );
        }
        if (greatest(scores) as f32) < top.threshold() {
            continue;
        }
        for (&score, &id) in scores.iter().zip(&index.ids()[first..]) {
            let score = score as f32;
            if score > 0.0 && score >= top.threshold() && allowed.contains(id as usize) {
                top.push(score, id);
            }
        }
    }
    let ranked = top.into_sorted().into_iter();
    ranked
        .map(|(score, passage)| Ranked { passage, score })
        .collect()
}

fn greatest(scores: &[u32]) -> u32 {
    scores.iter().copied().max().unwrap_or(0)
}

/// The bounds above 0 with their blocks, the greatest first.
fn falling(most: &[u32]) -> Vec<(u32, usize)> {
    let bounds = most.iter().copied().zip(0..);
    let mut all: Vec<(u32, usize)> = bounds.filter(|b| b.0 > 0).collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Passages with terms of which some are in most, some in few.
    fn passages(n: usize, rng: &mut SmallRng) -> Vec<SparseVector> {
        let mut one = || {
            let terms = rng.random_range(0..12);
            let mut draw = || {
                let term = 40.0 * rng.random::<f32>().powi(3);
                let impact = 1.0 + 300.0 * rng.random::<f32>().powi(6);
                (term as u32, impact)
            };
            SparseVector::new((0..terms).map(|_| draw()), f32::max)
        };
        (0..n).map(|_| one()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn blocks_that_are_left_out_hold_none_of_the_best(
            seed: u64, n in 1usize..6000, k in 1usize..4, every in 1usize..4,
        ) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let added: Vec<(u64, SparseVector)> = (5..).zip(passages(n, &mut rng)).collect();
            let (mut live, mut allowed) = (BitSet::default(), BitSet::default());
            for (i, (id, _)) in added.iter().enumerate() {
                live.insert(*id as usize);
                if i % every == 0 {
                    allowed.insert(*id as usize);
                }
            }
            let index = ImpactIndex::default().with(&added, &live);
            for query in passages(4, &mut rng) {
                let scored = added.iter().filter(|a| allowed.contains(a.0 as usize));
                let mut expected: Vec<Ranked> = scored
                    .map(|(id, v)| Ranked { passage: *id, score: v.dot(&query) as f32 })
                    .filter(|r| r.score > 0.0)
                    .collect();
                crate::fuse::sort(&mut expected);
                expected.truncate(k);
                prop_assert_eq!(best(&index, &query, k, &allowed), expected);
            }
        }
    }

    #[test]
    fn blocks_come_by_what_they_can_hold() {
        // One passage stands out.
        let impact = |i| if i == 100 { 9.0 } else { 2.0 };
        let added: Vec<(u64, SparseVector)> = (0..640)
            .map(|i| (i, SparseVector::new([(1, impact(i))], f32::max)))
            .collect();
        let mut live = BitSet::default();
        (0..640).for_each(|i| live.insert(i));
        let index = ImpactIndex::default().with(&added, &live);
        let mut most = vec![0; 10];
        add_scaled(&mut most, index.bounds().greatest(0), 3);
        let order = falling(&most);
        assert_eq!(order[0], (27, 1));
        assert!(order.len() == 10 && order[1..].iter().all(|b| b.0 == 6));
    }
}
