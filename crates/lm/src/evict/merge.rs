//! Folding rows that are dropped into rows that stay.

use std::fmt;
use std::str::FromStr;

use keyfold_kernels::{add_assign, matmul_nt, normalize_rows};
use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;

/// What a kept row `c` becomes of the dropped rows `e` that are most like it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Merge {
    /// Nothing: dropped is dropped.
    None,
    /// The mean of `c` and the `e`.
    Average,
    /// The mean of `c` and the `(e + c) / 2`: the kept row stays the pivot.
    #[default]
    Pivotal,
    /// The mean of `c` and the `sim(e, c) e`, where the similarity is at least the mean of all.
    Weighted,
}

impl Merge {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Average => "average",
            Self::Pivotal => "pivotal",
            Self::Weighted => "weighted",
        }
    }
}

impl fmt::Display for Merge {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Merge {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let all = [Self::None, Self::Average, Self::Pivotal, Self::Weighted];
        all.into_iter().find(|m| m.name() == text).ok_or_else(|| {
            let what = format!("{text:?} is no merge: pivotal, weighted, average or none");
            Refusal::setting("look-m", what)
        })
    }
}

/// Rows whose similarities are computed together.
const BLOCK: usize = 256;

/// Where the dropped rows of a head go.
pub(super) struct Assignment {
    /// Place among the kept rows, of each dropped row.
    pub(super) to: Vec<u32>,
    /// The cosine between the two.
    pub(super) similarity: Vec<f32>,
}

/// The kept key that is most like each dropped key, by cosine; of equal ones the first.
pub(super) fn assign(dropped: &[f32], kept: &[f32], dim: usize) -> Assignment {
    let unit = |rows: &[f32]| {
        let mut rows = rows.to_vec();
        normalize_rows(&mut rows, dim);
        rows
    };
    let kept = unit(kept);
    let candidates = kept.len() / dim;
    let mut found = Assignment {
        to: Vec::new(),
        similarity: Vec::new(),
    };
    let mut scores = Vec::new();
    for block in unit(dropped).chunks(BLOCK * dim) {
        let n = block.len() / dim;
        scores.clear();
        scores.resize(n * candidates, 0.0);
        matmul_nt(&mut scores, block, &kept, n, candidates, dim, 1);
        for row in scores.chunks_exact(candidates) {
            let mut best = (0, f32::NEG_INFINITY);
            for (i, &s) in row.iter().enumerate() {
                if s > best.1 {
                    best = (i as u32, s);
                }
            }
            found.to.push(best.0);
            found.similarity.push(best.1);
        }
    }
    found
}

/// Changes `kept` by the rows of `dropped`: `[rows, dim]` each, the same for keys and values.
/// `takes(i)` says whether dropped row `i` counts.
pub(super) fn fold(
    how: Merge,
    assignment: &Assignment,
    takes: impl Fn(usize) -> bool,
    dropped: &[f32],
    kept: &mut [f32],
    dim: usize,
) {
    let before = kept.to_vec();
    let mut counts = vec![1.0f32; kept.len() / dim];
    let mut row = vec![0.0; dim];
    for (i, e) in dropped
        .chunks_exact(dim)
        .enumerate()
        .filter(|(i, _)| takes(*i))
    {
        let to = assignment.to[i] as usize;
        let c = &before[to * dim..][..dim];
        row.copy_from_slice(e);
        match how {
            Merge::None => continue,
            Merge::Average => {}
            Merge::Pivotal => row.iter_mut().zip(c).for_each(|(e, c)| *e = 0.5 * (*e + c)),
            Merge::Weighted => {
                let weight = assignment.similarity[i];
                row.iter_mut().for_each(|e| *e *= weight);
            }
        }
        add_assign(&mut kept[to * dim..][..dim], &row);
        counts[to] += 1.0;
    }
    for (row, count) in kept.chunks_exact_mut(dim).zip(counts) {
        row.iter_mut().for_each(|x| *x /= count);
    }
}
