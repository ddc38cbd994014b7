//! How well queries find the one document that belongs to them, among all held-out ones.

use keyfold_train::Validation;

/// Means over queries.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ranking {
    /// One over the rank, 0 beyond the tenth.
    pub mrr_10: f64,
    /// `1 / log2(1 + rank)`, 0 beyond the tenth.
    pub ndcg_10: f64,
    /// Share of queries whose document is first.
    pub first: f64,
}

impl Ranking {
    /// From `scores`, `[queries, documents]`, where document `i` belongs to query `i` and
    /// `same(i, j)` says that document `j` is the same text. Of equal scores the others
    /// stand before.
    ///
    /// # Panics
    /// When `scores` is no whole number of rows.
    pub fn of(scores: &[f32], documents: usize, same: impl Fn(usize, usize) -> bool) -> Self {
        assert!(
            documents > 0 && scores.len().is_multiple_of(documents),
            "Ranking: no whole rows"
        );
        let queries = scores.len() / documents;
        let mut sum = Self::default();
        for (i, row) in scores.chunks_exact(documents).enumerate() {
            let better = row.iter().enumerate();
            let better = better.filter(|(j, s)| *j != i && !same(i, *j) && **s >= row[i]);
            let rank = 1 + better.count();
            if rank <= 10 {
                sum.mrr_10 += 1.0 / rank as f64;
                sum.ndcg_10 += 1.0 / (1.0 + rank as f64).log2();
            }
            sum.first += f64::from(rank == 1);
        }
        let n = queries.max(1) as f64;
        Self {
            mrr_10: sum.mrr_10 / n,
            ndcg_10: sum.ndcg_10 / n,
            first: sum.first / n,
        }
    }

    /// As a validation: the loss is what is missing of the MRR.
    pub fn validation(&self) -> Validation {
        Validation {
            loss: 1.0 - self.mrr_10,
            measures: vec![
                ("mrr@10", self.mrr_10),
                ("ndcg@10", self.ndcg_10),
                ("first", self.first),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_better_and_equal_documents_but_not_the_same_text() {
        let scores = [
            0.9, 0.1, 0.2, // first
            0.5, 0.5, 0.1, // second, since an equal stands before
            0.3, 0.2, 0.1, // third
        ];
        let ranking = Ranking::of(&scores, 3, |_, _| false);
        assert!((ranking.mrr_10 - (1.0 + 0.5 + 1.0 / 3.0) / 3.0).abs() < 1e-12);
        assert!((ranking.first - 1.0 / 3.0).abs() < 1e-12);
        assert!((ranking.ndcg_10 - (1.0 + 1.0 / 3f64.log2() + 0.5) / 3.0).abs() < 1e-12);
        let same = Ranking::of(&scores, 3, |i, j| i == 1 && j == 0);
        assert!((same.first - 2.0 / 3.0).abs() < 1e-12);
        assert!((ranking.validation().loss + ranking.mrr_10 - 1.0).abs() < 1e-12);
    }
}
