//! Semantic textual similarity: pairs of sentences with a gold score.

use std::path::Path;

use keyfold_core::{Encoder, Role};
use keyfold_kernels::{dot, maxsim, norm};
use keyfold_text::SentenceEncoder;

use crate::BenchError;
use crate::quality::spearman;

/// Names that columns have in the files of STS, the STS benchmark and SICK.
const SCORE: [&str; 3] = ["score", "relatedness_score", "similarity"];
const FIRST: [&str; 3] = ["sentence1", "sentence_A", "s1"];
const SECOND: [&str; 3] = ["sentence2", "sentence_B", "s2"];
/// Columns of the STS benchmark's own files, which have no heads.
const BENCHMARK: [usize; 3] = [4, 5, 6];

/// Pairs with their gold scores.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sts {
    pub(crate) pairs: Vec<(String, String)>,
    pub(crate) gold: Vec<f64>,
}

impl Sts {
    /// Reads a file with tabs between columns: with heads as above, or as the STS benchmark
    /// has them, or score, sentence, sentence. A pair without a score is left out.
    pub(crate) fn read(path: &Path) -> Result<Self, BenchError> {
        let text =
            std::fs::read_to_string(path).map_err(|e| BenchError::data(path, e.to_string()))?;
        Self::parse(&text).map_err(|what| BenchError::data(path, what))
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut lines = (1..).zip(text.lines()).peekable();
        let heads = lines.peek().map_or("", |(_, line)| *line);
        let columns: Vec<&str> = heads.split('\t').collect();
        let find = |names: [&str; 3]| columns.iter().position(|c| names.contains(c));
        let places = match (find(SCORE), find(FIRST), find(SECOND)) {
            (Some(score), Some(first), Some(second)) => {
                lines.next();
                [score, first, second]
            }
            _ if columns.len() > BENCHMARK[2] => BENCHMARK,
            _ => [0, 1, 2],
        };
        let mut all = Self::default();
        for (number, line) in lines {
            let cells: Vec<&str> = line.split('\t').collect();
            let [Some(score), Some(first), Some(second)] = places.map(|p| cells.get(p)) else {
                return Err(format!(
                    "line {number} has {} columns; write score, sentence, sentence with tabs \
                     between them",
                    cells.len()
                ));
            };
            if score.trim().is_empty() {
                continue;
            }
            let gold: f64 = (score.trim().parse().ok())
                .filter(|g: &f64| g.is_finite())
                .ok_or_else(|| format!("line {number}: the score '{score}' is no number"))?;
            all.pairs.push(((*first).to_owned(), (*second).to_owned()));
            all.gold.push(gold);
        }
        match all.pairs.len() {
            0 | 1 => Err("it has fewer than two pairs".to_owned()),
            _ => Ok(all),
        }
    }

    /// 100 times Spearman's correlation of the cosines with the gold scores, and the
    /// vectors of all sentences.
    pub(crate) fn measure(&self, encoder: &SentenceEncoder) -> Result<(f64, Vec<f32>), BenchError> {
        let texts: Vec<&str> = (self.pairs.iter())
            .flat_map(|(a, b)| [a.as_str(), b.as_str()])
            .collect();
        let rows = encoder.encode(&texts, Role::Document)?;
        let rows: Vec<f32> = rows.into_iter().flat_map(|v| v.into_vec()).collect();
        let dim = encoder.identity().dim;
        let cosine = |pair: &[f32]| f64::from(dot(&pair[..dim], &pair[dim..]));
        let cosines: Vec<f64> = rows.chunks_exact(2 * dim).map(cosine).collect();
        Ok((100.0 * spearman(&cosines, &self.gold), rows))
    }

    /// 100 times Spearman's correlation for an encoder of one or many vectors a text. Two texts
    /// are as alike as they find each other: the mean of both directions of MaxSim, each over
    /// the lengths of the query's vectors.
    pub(crate) fn measure_any(&self, encoder: &dyn Encoder) -> Result<f64, BenchError> {
        let texts: Vec<&str> = (self.pairs.iter())
            .flat_map(|(a, b)| [a.as_str(), b.as_str()])
            .collect();
        let queries = encoder.encode(&texts, Role::Query)?;
        let documents = encoder.encode(&texts, Role::Document)?;
        let dim = encoder.identity().dim;
        let found = |query: usize, document: usize| {
            let query = &queries[query];
            let lengths: f32 = query.iter().map(norm).sum();
            let score = maxsim(query.as_slice(), documents[document].as_slice(), dim);
            f64::from(score / lengths.max(f32::MIN_POSITIVE))
        };
        let alike = |pair: usize| found(2 * pair, 2 * pair + 1) + found(2 * pair + 1, 2 * pair);
        let alike: Vec<f64> = (0..self.pairs.len()).map(alike).collect();
        Ok(100.0 * spearman(&alike, &self.gold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_every_layout_give_the_same_pairs() {
        let heads =
            "genre\tscore\tsentence1\tsentence2\nx\t2.5\ta\tb\nx\t\tno\tscore\ny\t4\tc\td\n";
        let sick = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\n1\ta\tb\t2.5\n2\tc\td\t4\n";
        let bench = "main\tf\t2012\t1\t2.5\ta\tb\nmain\tf\t2012\t2\t4\tc\td\tmore\n";
        let plain = "2.5\ta\tb\n4.0\tc\td\n";
        let all = [heads, sick, bench, plain].map(|text| Sts::parse(text).unwrap());
        assert_eq!(all[0].gold, [2.5, 4.0]);
        assert_eq!(all[0].pairs[1], ("c".to_owned(), "d".to_owned()));
        assert!(all.iter().all(|sts| *sts == all[0]));
    }

    #[test]
    fn texts_that_mean_the_same_are_more_alike_for_an_encoder_of_many_vectors() {
        let text = "5\tA dog runs in the park\tA puppy is running outside\n\
                    0\tA dog runs in the park\tThe bank raised interest rates\n\
                    3\tA man plays a guitar\tA man plays a flute\n\
                    1\tA man plays a guitar\tA woman cooks soup\n";
        let encoder = keyfold_text::builtin::load(1).unwrap();
        let found = Sts::parse(text).unwrap().measure_any(&encoder).unwrap();
        assert!(found >= 60.0, "{found}");
    }

    #[test]
    fn broken_files_are_told_by_line() {
        let told = |text: &str| Sts::parse(text).unwrap_err();
        assert!(told("1\ta\tb\n2\ta\n").contains("line 2 has 2 columns"));
        assert!(told("1\ta\tb\nhigh\ta\tb\n").contains("line 2: the score 'high'"));
        assert!(told("").contains("fewer than two"));
    }
}
