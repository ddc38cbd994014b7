//! What the experiment prints, and its numbers as JSON.

use serde_json::{Value, json};

use super::sweep::{FOLDS, named};
use super::{BM25, Bench, DEPTH, EXPERIMENT, Line, Measured, REFERENCE, ROWS, Row, Sweep};
use crate::quality::{bootstrap, mean};
use crate::report::{Report, Table};
use crate::{BenchError, plot};

impl Bench<'_> {
    pub(super) fn report(
        &self,
        reference: Option<Vec<(&'static str, Measured)>>,
    ) -> Result<Report, BenchError> {
        let mut tables = vec![self.sparse_table(), self.main_table(), self.time_table()];
        if !self.sweeps.is_empty() {
            tables.push(self.sweep_table());
        }
        let mut findings = vec![format!(
            "Paper: interpolation before and after feedback is best on most data sets and \
             measures. Here, at the same say for both lists, 'both' has the best MAP in {} of {} \
             pairs of retrievers, 'after' or no feedback at all in {}.",
            self.pairs_won(&self.lines, |row| row == Row::Both),
            self.pairs(),
            self.pairs_won(&self.lines, |row| matches!(
                row,
                Row::After | Row::NoFeedback
            )),
        )];
        let mut differences = Vec::new();
        for line in self.lines.iter().filter(|l| l.row == Row::Both) {
            for against in [Row::Average, Row::NoFeedback] {
                let Some(other) = self.line(&line.dense, &line.sparse, against) else {
                    continue;
                };
                let d = bootstrap(&line.measured.map, &other.measured.map, self.options.seed);
                findings.push(format!(
                    "{} with {}: 'both' against '{}': MAP {:+.4}, 95 % of resamples from {:+.4} \
                     to {:+.4}, p = {:.4}.",
                    line.dense,
                    line.sparse,
                    against.name(),
                    d.mean,
                    d.low,
                    d.high,
                    d.p
                ));
                differences.push(json!({
                    "dense": line.dense, "sparse": line.sparse, "first": line.row.name(),
                    "second": against.name(), "difference": d,
                }));
            }
        }
        if let Some(reference) = &reference
            && self.options.data.is_some()
        {
            let (table, finding) = reference_table(reference);
            tables.push(table);
            findings.push(finding);
        }
        if !self.options.sweep {
            findings.push(
                "Both lists count the same here; --sweep finds weights by cross-validation."
                    .to_owned(),
            );
        }
        let bars: Vec<(String, f64)> = (self.lines.iter())
            .filter(|l| l.sparse == BM25)
            .map(|l| {
                (
                    format!("{}: {}", l.dense, l.row.name()),
                    mean(&l.measured.map),
                )
            })
            .collect();
        let values = json!({
            "queries": self.collection.queries.len(),
            "sparse": self.sparse_alone.iter().map(|(n, m)| json!({"name": n, "measured": m.json()})).collect::<Vec<_>>(),
            "rows": self.lines.iter().map(Line::json).collect::<Vec<_>>(),
            "differences": differences,
            "milliseconds": self.times.borrow().iter().map(|(what, t)| json!({"search": what, "milliseconds": t})).collect::<Vec<_>>(),
            "sweep": self.sweeps.iter().map(Sweep::json).collect::<Vec<_>>(),
            "reference": reference.iter().flatten().map(|(n, m)| json!({"name": n, "measured": m.json()})).collect::<Vec<_>>(),
        });
        Ok(Report {
            name: EXPERIMENT.name.to_owned(),
            tables,
            findings,
            values,
            svg: plot::bars("Feedback and interpolation with BM25", "MAP", &bars, None)?,
        })
    }

    fn line(&self, dense: &str, sparse: &str, row: Row) -> Option<&Line> {
        let mut lines = self.lines.iter();
        lines.find(|l| l.dense == dense && l.sparse == sparse && l.row == row)
    }

    fn pairs(&self) -> usize {
        self.lines.iter().filter(|l| l.row == Row::Dense).count()
    }

    /// In how many pairs a row of a kind has the best MAP.
    fn pairs_won(&self, lines: &[Line], of_kind: impl Fn(Row) -> bool) -> usize {
        let pairs = lines.chunks(ROWS.len());
        let won = pairs.filter(|rows| {
            let by_map =
                |a: &&Line, b: &&Line| mean(&a.measured.map).total_cmp(&mean(&b.measured.map));
            rows.iter()
                .max_by(by_map)
                .is_some_and(|best| of_kind(best.row))
        });
        won.count()
    }

    fn sparse_table(&self) -> Table {
        let mut table = Table::new(
            "sparse retrievers alone",
            &["retriever", "MAP", "nDCG@10", "recall@100"],
        );
        for (name, measured) in &self.sparse_alone {
            let [map, ndcg, recall] = measured.cells();
            table.row([name.clone(), map, ndcg, recall]);
        }
        table
    }

    fn main_table(&self) -> Table {
        let title = "interpolation and feedback, both lists with the same say";
        let columns = ["dense", "sparse", "row", "MAP", "nDCG@10", "recall@100"];
        let mut table = Table::new(title, &columns);
        for l in &self.lines {
            // Rows without a sparse list are the same for all of them.
            let of_sparse = l.row.is_mixed();
            if !of_sparse && l.sparse != BM25 {
                continue;
            }
            let sparse = if of_sparse {
                l.sparse.clone()
            } else {
                String::new()
            };
            let [map, ndcg, recall] = l.measured.cells();
            table.row([
                l.dense.clone(),
                sparse,
                l.row.name().to_owned(),
                map,
                ndcg,
                recall,
            ]);
        }
        table
    }

    fn time_table(&self) -> Table {
        let title = format!("one search for the best {DEPTH}, every passage scored");
        let mut table = Table::new(&title, &["search", "milliseconds"]);
        for (what, milliseconds) in &*self.times.borrow() {
            table.row([what.clone(), format!("{milliseconds:.2}")]);
        }
        table
    }

    fn sweep_table(&self) -> Table {
        let title =
            format!("weight of the sparse list and feedback by cross-validation ({FOLDS} folds)");
        let columns = [
            "dense",
            "sparse",
            "row",
            "weight",
            "feedback",
            "MAP",
            "nDCG@10",
            "recall@100",
        ];
        let mut table = Table::new(&title, &columns);
        for s in &self.sweeps {
            let [map, ndcg, recall] = s.held_out.cells();
            let row = if s.sparse.is_none() {
                "PRF"
            } else {
                s.row.name()
            };
            table.row([
                s.dense.clone(),
                s.sparse.clone().unwrap_or_default(),
                row.to_owned(),
                s.best.weight.map_or(String::new(), |w| format!("{w:.1}")),
                s.best.feedback.as_ref().map_or(String::new(), named),
                map,
                ndcg,
                recall,
            ]);
        }
        table
    }
}

/// The measured rows beside [`REFERENCE`], and what to say of them.
fn reference_table(measured: &[(&'static str, Measured)]) -> (Table, String) {
    let columns = [
        "row",
        "MAP",
        "reference",
        "nDCG@10",
        "reference",
        "recall@100",
        "reference",
    ];
    let mut table = Table::new(
        "LSA, sparse list 0.1, beside the reference run on Cranfield",
        &columns,
    );
    let mut farthest = 0.0f64;
    for ((name, ours), (_, theirs)) in measured.iter().zip(REFERENCE) {
        let means = [mean(&ours.map), mean(&ours.ndcg), mean(&ours.recall)];
        for (a, b) in means.iter().zip(theirs) {
            farthest = farthest.max((a - b).abs());
        }
        let cell = |x: f64| format!("{x:.3}");
        table.row([
            (*name).to_owned(),
            cell(means[0]),
            cell(theirs[0]),
            cell(means[1]),
            cell(theirs[1]),
            cell(means[2]),
            cell(theirs[2]),
        ]);
    }
    let finding = format!(
        "On Cranfield, a reference run with LSA is at most {farthest:.3} away in any number; its \
         word endings are stripped by other rules."
    );
    (table, finding)
}

impl Line {
    fn json(&self) -> Value {
        json!({"dense": self.dense, "sparse": self.sparse, "row": self.row.name(), "measured": self.measured.json()})
    }
}

impl Sweep {
    fn json(&self) -> Value {
        json!({
            "dense": self.dense, "sparse": self.sparse, "row": self.row.name(),
            "weight": self.best.weight, "feedback": self.best.feedback.as_ref().map(named),
            "held_out": self.held_out.json(),
        })
    }
}
