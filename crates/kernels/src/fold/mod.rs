//! Folding: fewer rows for a text than its model gives.
//!
//! | spec | what becomes of the rows of a text |
//! |---|---|
//! | `c8x32`, `c4x8` | k-means to 8 (4) clusters of a query, 32 (8) of a document |
//! | `c25`, `c50` | k-means to 25 % (50 %) of the rows, rounded down, at least one |
//! | `ward:F` | the first row, and Ward clusters of the rest, a cluster for `F` rows |
//! | `tail:QxD` | the last `Q` rows of a query, the last `D` of a document |
//! | `space:K` | every `K`-th row from the first |
//!
//! Clusters become the mean of their rows. The first two are CRISP (Veneroso,
//! Jayaram, Rao, Hernández Ábrego, Hadian, Cer 2025, *CRISP: Clustering
//! Multi-Vector Representations for Denoising and Pruning*), where the model is
//! trained with the clusters of both sides; `tail` and `space` are its baselines.
//! `ward` is the token pooling of PyLate (Clavié, Chaffin, Adams 2024, *Reducing
//! the Footprint of Multi-Vector Retrieval with Minimal Performance Impact via
//! Token Pooling*), made for models that were not trained for it.
//!
//! A text with no more rows than it may keep keeps them as they are. The same
//! text and rows always fold to the same rows.

mod clusters;
mod prune;
mod ward;

use std::fmt;
use std::str::FromStr;

use crate::add_assign;
pub use clusters::{MOST_ROUNDS, kmeans, kmeans_from};
pub use ward::PROTECTED;

/// A way to fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fold {
    /// As many k-means clusters, of a query and of a document.
    Clusters(usize, usize),
    /// K-means clusters, by percent of the rows.
    Share(usize),
    /// A Ward cluster for so many rows.
    Ward(usize),
    /// The last rows, of a query and of a document.
    Tail(usize, usize),
    /// Every row of so many.
    Space(usize),
}

impl FromStr for Fold {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{s}' is no way to fold: choose c4x8, c8x32 (clusters of a query x of a \
                 document), c25, c50 (percent of the rows), ward:2 (rows in a cluster), \
                 tail:8x32 (last rows) or space:2 (every second row)"
            )
        };
        let number = |s: &str, least: usize| match s.parse::<usize>() {
            // More rows than a text can have.
            Ok(n) if n >= least && n <= 65_535 => Ok(n),
            _ => Err(wrong()),
        };
        let pair = |s: &str| -> Result<(usize, usize), String> {
            let (q, d) = s.split_once('x').ok_or_else(wrong)?;
            Ok((number(q, 1)?, number(d, 1)?))
        };
        if let Some(factor) = s.strip_prefix("ward:") {
            return Ok(Self::Ward(number(factor, 2)?));
        }
        if let Some(rows) = s.strip_prefix("tail:") {
            let (queries, documents) = pair(rows)?;
            return Ok(Self::Tail(queries, documents));
        }
        if let Some(step) = s.strip_prefix("space:") {
            return Ok(Self::Space(number(step, 2)?));
        }
        match s.strip_prefix('c') {
            Some(rest) if rest.contains('x') => {
                let (queries, documents) = pair(rest)?;
                Ok(Self::Clusters(queries, documents))
            }
            Some(rest) => match number(rest, 1)? {
                percent @ 1..=99 => Ok(Self::Share(percent)),
                _ => Err(wrong()),
            },
            None => Err(wrong()),
        }
    }
}

impl fmt::Display for Fold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clusters(q, d) => write!(f, "c{q}x{d}"),
            Self::Share(percent) => write!(f, "c{percent}"),
            Self::Ward(factor) => write!(f, "ward:{factor}"),
            Self::Tail(q, d) => write!(f, "tail:{q}x{d}"),
            Self::Space(step) => write!(f, "space:{step}"),
        }
    }
}

impl Fold {
    /// Which of `rows` (`[n, dim]`, of length one) become one. `seed` is that of the
    /// text.
    ///
    /// # Panics
    /// When `rows` is no whole number of rows.
    pub fn groups(&self, rows: &[f32], dim: usize, is_query: bool, seed: u64) -> Groups {
        assert!(
            dim > 0 && rows.len().is_multiple_of(dim),
            "Fold::groups: {} numbers are no whole rows of {dim}",
            rows.len()
        );
        let n = rows.len() / dim;
        let side = |(queries, documents)| if is_query { queries } else { documents };
        let clusters = |k: usize| match k {
            k if n <= k => Groups::all(n),
            k => Groups::new(kmeans(rows, dim, k, seed)),
        };
        match *self {
            Self::Clusters(q, d) => clusters(side((q, d))),
            Self::Share(percent) => clusters((n * percent / 100).max(1)),
            Self::Ward(factor) => Groups::new(ward::clusters(rows, dim, factor)),
            Self::Tail(q, d) => Groups::new(prune::tail(n, side((q, d)))),
            Self::Space(step) => Groups::new(prune::spaced(n, step)),
        }
    }
}

/// The number of a row that is dropped.
const DROPPED: u32 = u32::MAX;

/// Which rows become one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    /// The group of each row, or [`DROPPED`].
    codes: Vec<u32>,
    count: usize,
}

impl Groups {
    /// Every row for itself.
    fn all(n: usize) -> Self {
        Self {
            codes: (0..n as u32).collect(),
            count: n,
        }
    }

    /// From the group of each row, numbers below the number of rows; [`u32::MAX`] drops a
    /// row. They are numbered anew in the order of their first rows, without gaps.
    ///
    /// # Panics
    /// When a number is not below that of the rows.
    pub fn new(mut codes: Vec<u32>) -> Self {
        let mut names = vec![DROPPED; codes.len()];
        let mut count = 0;
        for code in codes.iter_mut().filter(|c| **c != DROPPED) {
            // There are no more groups than rows, and their numbers are below.
            let name = &mut names[*code as usize];
            if *name == DROPPED {
                *name = count;
                count += 1;
            }
            *code = *name;
        }
        Self {
            codes,
            count: count as usize,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The group of each row; none for a row that is dropped.
    pub fn of_rows(&self) -> impl Iterator<Item = Option<usize>> {
        let known = |&code: &u32| (code != DROPPED).then_some(code as usize);
        self.codes.iter().map(known)
    }

    /// The mean of the rows of every group, `[count, dim]`.
    ///
    /// # Panics
    /// When `rows` are not those that were grouped.
    pub fn means(&self, rows: &[f32], dim: usize) -> Vec<f32> {
        let mut means = self.sums(rows, dim);
        let mut members = vec![0usize; self.count];
        self.of_rows()
            .flatten()
            .for_each(|group| members[group] += 1);
        for (mean, members) in means.chunks_exact_mut(dim).zip(members) {
            let share = 1.0 / members as f32;
            mean.iter_mut().for_each(|x| *x *= share);
        }
        means
    }

    /// The sum of the rows of every group, `[count, dim]`.
    ///
    /// # Panics
    /// When `rows` are not those that were grouped.
    pub fn sums(&self, rows: &[f32], dim: usize) -> Vec<f32> {
        assert_eq!(rows.len(), self.codes.len() * dim, "Groups: other rows");
        let mut sums = vec![0.0; self.count * dim];
        for (row, group) in rows.chunks_exact(dim).zip(self.of_rows()) {
            if let Some(group) = group {
                add_assign(&mut sums[group * dim..(group + 1) * dim], row);
            }
        }
        sums
    }
}
