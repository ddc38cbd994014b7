//! The weight of the sparse list, and the feedback, that are best on other queries.

use keyfold_search::bm25::Bm25;
use keyfold_search::feedback::{Rocchio, VectorFeedback, VectorKind};

use super::{Bench, Dense, Lists, Measured, Row, Sparse, mixed};
use crate::BenchError;

/// Weights of the sparse list.
const WEIGHTS: [f32; 6] = [0.0, 0.1, 0.2, 0.3, 0.5, 0.7];
/// Passages of average feedback.
const AVERAGES: [usize; 4] = [1, 3, 5, 10];
/// What the query weighs in Rocchio's feedback; the passages weigh the rest.
const ALPHAS: [f32; 2] = [0.4, 0.6];
/// Folds of the cross-validation.
pub(super) const FOLDS: usize = 5;

/// What is chosen: the weight of the sparse list, and the feedback.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    pub(super) weight: Option<f32>,
    pub(super) feedback: Option<VectorFeedback>,
}

/// What a sweep found for a row.
pub(super) struct Sweep {
    pub(super) dense: String,
    /// None for feedback alone.
    pub(super) sparse: Option<String>,
    pub(super) row: Row,
    /// What is best on all queries.
    pub(super) best: Choice,
    /// By the choices of the other folds.
    pub(super) held_out: Measured,
}

/// How many runs a dense retriever needs, and each sparse one with it.
pub(super) fn runs() -> (usize, usize) {
    let feedbacks = feedbacks().len();
    (feedbacks, feedbacks * (WEIGHTS.len() - 1))
}

fn feedbacks() -> Vec<VectorFeedback> {
    let average = |k| VectorFeedback {
        k,
        ..VectorFeedback::average()
    };
    let rocchio = |alpha| VectorFeedback {
        kind: VectorKind::Rocchio(Rocchio {
            alpha,
            beta: 1.0 - alpha,
            ..Rocchio::default()
        }),
        ..VectorFeedback::rocchio()
    };
    let all = AVERAGES.into_iter().map(average);
    all.chain(ALPHAS.into_iter().map(rocchio)).collect()
}

/// As people read it: `average of 3`, `rocchio 0.4, 5`.
pub(super) fn named(feedback: &VectorFeedback) -> String {
    match feedback.kind {
        VectorKind::Average => format!("average of {}", feedback.k),
        VectorKind::Rocchio(how) => format!("rocchio {:.1}, {}", how.alpha, feedback.k),
    }
}

/// The lists of a dense retriever, without feedback and after each kind of it.
pub(super) struct Tried {
    dense: Lists,
    after: Vec<(VectorFeedback, Lists)>,
}

impl Tried {
    pub(super) fn new(
        bench: &Bench<'_>,
        dense: &Dense,
        without: Lists,
    ) -> Result<Self, BenchError> {
        let mut after = Vec::new();
        for feedback in feedbacks() {
            let lists = bench.by_meaning_after(dense, &named(&feedback), Some(feedback))?;
            after.push((feedback, lists));
        }
        Ok(Self {
            dense: without,
            after,
        })
    }

    /// For every row what is best on the other folds.
    pub(super) fn sweep(
        &self,
        bench: &Bench<'_>,
        dense: &Dense,
        sparse: &Sparse<'_>,
        lexical: &Lists,
    ) -> Result<Vec<Sweep>, BenchError> {
        let measured = |lists: &Lists| bench.measured(lists);
        let mut rows: [(Row, Vec<(Choice, Measured)>); 5] = [
            (Row::Average, Vec::new()),
            (Row::NoFeedback, Vec::new()),
            (Row::Before, Vec::new()),
            (Row::After, Vec::new()),
            (Row::Both, Vec::new()),
        ];
        let [(_, alone), (_, none), (_, before), (_, after), (_, both)] = &mut rows;
        for weight in WEIGHTS {
            let choice = Choice {
                weight: Some(weight),
                feedback: None,
            };
            none.push((choice, measured(&mixed(lexical, &self.dense, weight))));
        }
        for (feedback, plain) in &self.after {
            let feedback = Some(*feedback);
            let choice = Choice {
                weight: None,
                feedback,
            };
            alone.push((choice, measured(plain)));
            for weight in WEIGHTS {
                let choice = Choice {
                    weight: Some(weight),
                    feedback,
                };
                let searched;
                // Without the sparse list, feedback learns from the dense one.
                let lists = if weight == 0.0 {
                    plain
                } else {
                    searched = bench.before(dense, sparse, weight, Bm25::anserini(), feedback)?;
                    &searched
                };
                before.push((choice, measured(lists)));
                after.push((choice, measured(&mixed(lexical, plain, weight))));
                both.push((choice, measured(&mixed(lexical, lists, weight))));
            }
        }
        let queries: Vec<usize> = (0..bench.collection.queries.len()).collect();
        let known = |row| {
            let mut sweeps = bench.sweeps.iter();
            sweeps.any(|s| s.row == row && s.dense == dense.name)
        };
        let rows = rows.into_iter();
        // Feedback alone is the same for all sparse retrievers.
        let rows = rows.filter(|(row, _)| row.is_mixed() || !known(*row));
        let chosen = rows.map(|(row, tried)| {
            let (best, held_out) = chosen(&tried, &queries);
            Sweep {
                dense: dense.name.clone(),
                sparse: row.is_mixed().then(|| sparse.name.clone()),
                row,
                best,
                held_out,
            }
        });
        Ok(chosen.collect())
    }
}

/// The choice that is best on all queries, and what every query gets by the choice
/// that is best on the other folds.
fn chosen(tried: &[(Choice, Measured)], queries: &[usize]) -> (Choice, Measured) {
    let maps: Vec<&[f64]> = tried.iter().map(|(_, m)| &m.map[..]).collect();
    let by_fold: Vec<usize> = (0..FOLDS)
        .map(|fold| best(&maps, queries.iter().filter(|&&q| q % FOLDS != fold)))
        .collect();
    let held_out = |of: fn(&Measured) -> &[f64]| -> Vec<f64> {
        let choice = |&q: &usize| of(&tried[by_fold[q % FOLDS]].1)[q];
        queries.iter().map(choice).collect()
    };
    let measured = Measured {
        map: held_out(|m| &m.map),
        ndcg: held_out(|m| &m.ndcg),
        recall: held_out(|m| &m.recall),
    };
    (tried[best(&maps, queries.iter())].0, measured)
}

/// The place of the run with the best mean over some queries.
fn best<'q>(runs: &[&[f64]], queries: impl Iterator<Item = &'q usize> + Clone) -> usize {
    let total = |run: &&[f64]| queries.clone().map(|&q| run[q]).sum::<f64>();
    let totals: Vec<f64> = runs.iter().map(total).collect();
    let better = |best, i| if totals[i] > totals[best] { i } else { best };
    (0..runs.len()).fold(0, better)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_measured_by_what_the_others_choose() {
        // The second is better everywhere but for query 0, where it is far worse.
        let run = |first: f64, rest: f64| {
            let map: Vec<f64> = (0..10).map(|q| if q == 0 { first } else { rest }).collect();
            let choice = Choice {
                weight: Some(rest as f32),
                feedback: None,
            };
            let (ndcg, recall) = (map.clone(), map.clone());
            (choice, Measured { map, ndcg, recall })
        };
        let tried = [run(9.0, 0.1), run(0.0, 0.2)];
        let queries: Vec<usize> = (0..10).collect();
        let (best, held_out) = chosen(&tried, &queries);
        assert_eq!(best.weight, Some(0.1));
        // Queries 0 and 5 are a fold; the other folds prefer the second.
        assert_eq!(
            held_out.map,
            [0.0, 0.1, 0.1, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1]
        );
    }
}
