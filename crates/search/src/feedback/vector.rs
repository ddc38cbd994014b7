//! Vector feedback: the query moves towards the passages that it found.
//!
//! Source: Li, Mourad, Zhuang, Koopman, Zuccon: Pseudo Relevance Feedback with
//! Deep Language Models and Dense Retrievers (2021), as used in To Interpolate or
//! not to Interpolate (SIGIR 2022) and Pyserini. With `q` the query's vector and
//! `p_1 .. p_k` those of the passages found:
//!
//! ```text
//! average   q' = (q + p_1 + .. + p_k) / (k + 1)
//! Rocchio   q' = a q + b mean(p_1 .. p_k) - c mean(the last `bottom` of the list)
//! ```
//!
//! `q'` is not scaled again. Fewer passages than `k`: as many as there are; none:
//! the query stays.
//!
//! Queries and passages of many token vectors have no single `q` and `p`. Here
//! each query row meets in every passage the row that MaxSim pairs it with
//! ([`TokenRows::Paired`]): the formulas above hold row by row, with the
//! passage's row scaled to the length of the query's, since that length is the
//! weight of a query word. With one row each, that is the published method.
//! [`TokenRows::Added`] instead puts the passages' rows beside the query's:
//! MaxSim with the new query is then `a` times the old one plus `b` times the mean
//! MaxSim of the passages found (each counted as if it had as many rows as the
//! query), so words that the query lacks can match; the second search has a few
//! hundred query rows.
//!
//! Cost: a second search; `k` passages are decoded.

use keyfold_core::Vectors;
use keyfold_kernels as kernels;

/// How a query learns from passages.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VectorFeedback {
    /// The formula.
    pub kind: VectorKind,
    /// From how many passages, from 1.
    pub k: usize,
    /// What the rows of passages do where there are many.
    pub rows: TokenRows,
}

/// The formula of vector feedback.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum VectorKind {
    /// The mean of the query and the passages.
    Average,
    /// Weights for each.
    Rocchio(Rocchio),
}

/// The weights of Rocchio's formula.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rocchio {
    /// Of the query.
    pub alpha: f32,
    /// Of the passages found.
    pub beta: f32,
    /// Of the last passages of the list, which are taken away.
    pub gamma: f32,
    /// How many of these.
    pub bottom: usize,
}

/// What the token vectors of passages do to those of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TokenRows {
    /// Each moves the query row that it matches.
    #[default]
    Paired,
    /// They become query rows of their own.
    Added,
}

impl VectorFeedback {
    /// The mean with the best 3.
    pub fn average() -> Self {
        Self {
            kind: VectorKind::Average,
            k: 3,
            rows: TokenRows::default(),
        }
    }

    /// Rocchio's formula with the best 5: 0.4 of the query, 0.6 of the passages.
    pub fn rocchio() -> Self {
        Self {
            kind: VectorKind::Rocchio(Rocchio::default()),
            k: 5,
            rows: TokenRows::default(),
        }
    }

    /// How many of the last passages take part.
    pub(crate) fn bottom(&self) -> usize {
        match self.kind {
            VectorKind::Average => 0,
            VectorKind::Rocchio(r) => r.bottom,
        }
    }

    /// The new query. `best` are the passages found, `worst` the last of the
    /// list; rows are as wide as the query's.
    pub fn apply(&self, query: &Vectors, best: &[Vectors], worst: &[Vectors]) -> Vectors {
        let best: Vec<&Vectors> = with_rows(best, query.dim()).take(self.k).collect();
        let worst: Vec<&Vectors> = with_rows(worst, query.dim()).collect();
        if best.is_empty() || query.is_empty() {
            return query.clone();
        }
        let n = best.len() as f32;
        let (of_query, of_best, of_worst) = match self.kind {
            VectorKind::Average => (1.0 / (n + 1.0), 1.0 / (n + 1.0), 0.0),
            VectorKind::Rocchio(r) => (
                r.alpha,
                r.beta / n,
                if r.bottom > 0 {
                    r.gamma / worst.len().max(1) as f32
                } else {
                    0.0
                },
            ),
        };
        let shares = best.iter().map(|p| (*p, of_best));
        let shares = shares.chain(worst.iter().map(|p| (*p, -of_worst)));
        let shares = shares.filter(|&(_, share)| share != 0.0);
        let rows = match self.rows {
            TokenRows::Paired => paired(query, of_query, shares),
            // What is to be taken away cannot be a row of its own: MaxSim would take
            // the row that is the least opposite.
            TokenRows::Added => added(query, of_query, shares.filter(|&(_, share)| share > 0.0)),
        };
        // Sums of finite numbers; were they too large, the old query is as good.
        Vectors::new(query.dim(), rows).unwrap_or_else(|_| query.clone())
    }
}

impl Default for Rocchio {
    fn default() -> Self {
        Self {
            alpha: 0.4,
            beta: 0.6,
            gamma: 0.0,
            bottom: 0,
        }
    }
}

fn with_rows(passages: &[Vectors], dim: usize) -> impl Iterator<Item = &Vectors> {
    passages
        .iter()
        .filter(move |p| !p.is_empty() && p.dim() == dim)
}

/// Every query row with its share of the rows that it matches best.
fn paired<'a>(
    query: &Vectors,
    of_query: f32,
    shares: impl Iterator<Item = (&'a Vectors, f32)>,
) -> Vec<f32> {
    let dim = query.dim();
    let mut new: Vec<f32> = query.as_slice().iter().map(|x| x * of_query).collect();
    let lengths: Vec<f32> = query.iter().map(length).collect();
    for (passage, share) in shares {
        let rows = passage.rows();
        let mut products = vec![0.0; query.rows() * rows];
        let (q, p) = (query.as_slice(), passage.as_slice());
        kernels::matmul_nt(&mut products, q, p, query.rows(), rows, dim, 1);
        for ((new, products), length) in new
            .chunks_exact_mut(dim)
            .zip(products.chunks_exact(rows))
            .zip(&lengths)
        {
            let Some((_, best)) = kernels::top_k(products, 1).into_iter().next() else {
                continue;
            };
            let row = passage.row(best as usize);
            // Passage rows have length one, so that one row each is the plain formula
            // where the query's has length one as well.
            let share = share * length;
            new.iter_mut().zip(row).for_each(|(n, x)| *n += share * x);
        }
    }
    new
}

/// The query rows and those of the passages, each passage counted as if it had
/// as much weight as the query.
fn added<'a>(
    query: &Vectors,
    of_query: f32,
    shares: impl Iterator<Item = (&'a Vectors, f32)>,
) -> Vec<f32> {
    let mut new: Vec<f32> = query.as_slice().iter().map(|x| x * of_query).collect();
    let weight: f32 = query.iter().map(length).sum();
    for (passage, share) in shares {
        let scale = share * weight / passage.rows() as f32;
        new.extend(passage.as_slice().iter().map(|x| x * scale));
    }
    new
}

fn length(row: &[f32]) -> f32 {
    kernels::dot(row, row).sqrt()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(row: &[f32]) -> Vectors {
        Vectors::new(row.len(), row.to_vec()).unwrap()
    }

    fn close(found: &Vectors, expected: &[f32]) -> bool {
        let pairs = found.as_slice().iter().zip(expected);
        found.as_slice().len() == expected.len()
            && pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-6)
    }

    #[test]
    fn single_vectors_follow_the_formulas() {
        let query = one(&[1.0, 0.0]);
        let best = [one(&[0.0, 1.0]), one(&[0.6, 0.8]), one(&[-1.0, 0.0])];
        let average = VectorFeedback {
            k: 2,
            ..VectorFeedback::average()
        };
        let new = average.apply(&query, &best, &[]);
        assert!(close(&new, &[1.6 / 3.0, 1.8 / 3.0]), "{new:?}");
        let rocchio = VectorFeedback {
            k: 2,
            kind: VectorKind::Rocchio(Rocchio {
                alpha: 0.4,
                beta: 0.6,
                gamma: 0.1,
                bottom: 1,
            }),
            ..VectorFeedback::rocchio()
        };
        let new = rocchio.apply(&query, &best, &best[2..]);
        assert!(close(&new, &[0.4 + 0.3 * 0.6 + 0.1, 0.3 * 1.8]), "{new:?}");
    }

    #[test]
    fn few_or_no_passages_are_taken_as_they_are() {
        let query = one(&[2.0, 0.0]);
        let empty = Vectors::new(2, Vec::new()).unwrap();
        for feedback in [VectorFeedback::average(), VectorFeedback::rocchio()] {
            assert_eq!(feedback.apply(&query, &[], &[]), query);
            assert_eq!(
                feedback.apply(&query, std::slice::from_ref(&empty), &[]),
                query
            );
            assert_eq!(feedback.apply(&empty, &[one(&[0.0, 1.0])], &[]), empty);
        }
        // One passage where three were asked for; it weighs as much as the query.
        let new = VectorFeedback::average().apply(&query, &[one(&[0.0, 1.0])], &[]);
        assert_eq!(new.as_slice(), [1.0, 1.0]);
    }

    #[test]
    fn token_rows_move_the_query_rows_that_they_match() {
        let query = Vectors::new(2, vec![1.0, 0.0, 0.0, 0.5]).unwrap();
        let passage = Vectors::new(2, vec![0.0, 1.0, 0.8, 0.6]).unwrap();
        let how = VectorFeedback {
            k: 1,
            ..VectorFeedback::average()
        };
        let new = how.apply(&query, std::slice::from_ref(&passage), &[]);
        assert!(close(&new, &[0.9, 0.3, 0.0, 0.5]), "{new:?}");
        let how = VectorFeedback {
            rows: TokenRows::Added,
            ..how
        };
        let new = how.apply(&query, &[passage], &[]);
        assert_eq!(new.rows(), 4);
        assert_eq!(new.row(2), [0.0, 0.375]);
    }

    proptest! {
        #[test]
        fn added_rows_score_as_the_mixture_of_both(
            q in proptest::collection::vec(-1.0f32..1.0, 6),
            p in proptest::collection::vec(-1.0f32..1.0, 9),
            d in proptest::collection::vec(-1.0f32..1.0, 12),
        ) {
            let (query, passage) = (Vectors::new(3, q).unwrap(), Vectors::new(3, p).unwrap());
            let how = VectorFeedback { rows: TokenRows::Added, ..VectorFeedback::rocchio() };
            let new = how.apply(&query, std::slice::from_ref(&passage), &[]);
            let maxsim = |x: &Vectors| kernels::maxsim(x.as_slice(), &d, 3);
            let weight: f32 = query.iter().map(length).sum();
            let expected = 0.4 * maxsim(&query) + 0.6 * weight / 3.0 * maxsim(&passage);
            prop_assert!((maxsim(&new) - expected).abs() < 1e-4);
        }
    }
}
