//! Means of rows that belong together: of a text, or of a cluster or a word in a text.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::operator::{Array, BLOCK, Operator, apply};

/// Which rows belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    /// The group of each row; `None` for a row of no group.
    pub of_rows: Vec<Option<u32>>,
    /// The first group of each text, and at the end the number of groups.
    pub starts: Vec<usize>,
    /// What the rows of each group share.
    pub ids: Vec<u32>,
}

impl Groups {
    /// Rows of a text with the same id belong together, in the order in which the ids come
    /// first; a row without an id belongs nowhere. `starts` has the first row of each text
    /// and, at its end, the number of rows.
    ///
    /// # Panics
    /// When `starts` reaches beyond the ids.
    pub fn by_id(ids: &[Option<u32>], starts: &[usize]) -> Self {
        let mut groups = Self {
            of_rows: vec![None; ids.len()],
            starts: vec![0],
            ids: Vec::new(),
        };
        for text in starts.windows(2) {
            let mut known = HashMap::new();
            let rows = text[0]..text[1];
            let of_rows = &mut groups.of_rows[rows.clone()];
            for (group, id) in of_rows.iter_mut().zip(&ids[rows]) {
                *group = id.map(|id| {
                    *known.entry(id).or_insert_with(|| {
                        groups.ids.push(id);
                        groups.ids.len() as u32 - 1
                    })
                });
            }
            groups.starts.push(groups.ids.len());
        }
        groups
    }

    /// Number of groups.
    pub fn count(&self) -> usize {
        self.ids.len()
    }
}

/// The mean of the rows of each text, `[texts, width]`; zeros for a text without rows.
///
/// # Panics
/// When `starts` does not end with the number of rows.
pub fn segment_mean(x: Tensor<2>, starts: &[usize]) -> Tensor<2> {
    let texts = (0u32..).zip(starts.windows(2));
    let of_rows = texts.flat_map(|(text, t)| std::iter::repeat_n(Some(text), t[1] - t[0]));
    let groups = starts.len().saturating_sub(1);
    mean(x, of_rows.collect(), groups)
}

/// The means of rows with the same id within a text ([`Groups::by_id`]), `[groups, width]`,
/// and the groups.
///
/// # Panics
/// When there are not as many ids as rows.
pub fn segment_mean_by(x: Tensor<2>, starts: &[usize], ids: &[Option<u32>]) -> (Tensor<2>, Groups) {
    let groups = Groups::by_id(ids, starts);
    (group_mean(x, &groups), groups)
}

/// The mean of the rows of each group, `[groups, width]`.
///
/// # Panics
/// When the groups are of another number of rows.
pub fn group_mean(x: Tensor<2>, groups: &Groups) -> Tensor<2> {
    mean(x, groups.of_rows.clone(), groups.count())
}

fn mean(x: Tensor<2>, of_rows: Vec<Option<u32>>, count: usize) -> Tensor<2> {
    assert_eq!(x.dims()[0], of_rows.len(), "a group for each row");
    let mut sizes = vec![0u32; count];
    for group in of_rows.iter().flatten() {
        sizes[*group as usize] += 1;
    }
    let shares = sizes.into_iter().map(|n| 1.0 / n.max(1) as f32).collect();
    apply(
        GroupMean {
            of_rows: of_rows.into(),
            shares,
        },
        [x.into()],
    )
}

#[derive(Clone, Debug)]
struct GroupMean {
    of_rows: Arc<[Option<u32>]>,
    /// One over the number of rows of each group.
    shares: Arc<[f32]>,
}

impl Operator<1> for GroupMean {
    /// Width.
    type Saved = usize;

    fn forward(&self, [x]: [Array; 1]) -> (Array, usize) {
        let [_, width] = x.sizes();
        let mut out = vec![0.0; self.shares.len() * width];
        let rows = x.numbers().chunks_exact(width.max(1));
        for (row, group) in rows.zip(self.of_rows.iter()) {
            if let Some(group) = group {
                keyfold_kernels::add_assign(&mut out[*group as usize * width..][..width], row);
            }
        }
        for (out, share) in out.chunks_exact_mut(width.max(1)).zip(self.shares.iter()) {
            out.iter_mut().for_each(|x| *x *= share);
        }
        (Array::new(out, [self.shares.len(), width]), width)
    }

    fn backward(&self, width: usize, g: Array, _: [bool; 1]) -> [Option<Array>; 1] {
        let mut out = vec![0.0; self.of_rows.len() * width];
        let g = g.numbers();
        let blocks = out.par_chunks_mut(BLOCK * width.max(1));
        blocks
            .zip(self.of_rows.par_chunks(BLOCK))
            .for_each(|(out, groups)| {
                let rows = out.chunks_exact_mut(width.max(1)).zip(groups);
                for (row, group) in rows.filter_map(|(row, group)| Some((row, (*group)? as usize)))
                {
                    let pairs = row.iter_mut().zip(&g[group * width..]);
                    pairs.for_each(|(x, g)| *x = g * self.shares[group]);
                }
            });
        [Some(Array::new(out, [self.of_rows.len(), width]))]
    }
}
