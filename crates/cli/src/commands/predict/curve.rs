//! Which head is better at how many labels: the table of `fit --budgets`.

use std::io::Write;

use keyfold_core::Progress;
use keyfold_predict::label_budgets::{BudgetsConfig, Crossing, Point, crossing, curve, hold_out};
use keyfold_predict::{Labels, Scale, Table};
use serde::Serialize;

use crate::output::terminal::BOLD;

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Curve {
    pub(super) points: Vec<Point>,
    pub(super) crossing: Crossing,
    /// Rows that were told.
    pub(super) tested: usize,
}

/// Keeps a share of the rows apart and measures both heads on them.
pub(super) fn measure(
    x: &Table,
    labels: &Labels,
    budgets: &[usize],
    (repeats, share): (usize, f64),
    (scale, seed): (Scale, u64),
    progress: &dyn Progress,
) -> anyhow::Result<Curve> {
    let (pool, test) = hold_out(x.rows(), share, seed);
    let config = BudgetsConfig {
        budgets: budgets.to_vec(),
        repeats,
        scale,
        seed,
        ..Default::default()
    };
    progress.start(
        "label budgets",
        "fits",
        Some((budgets.len() * repeats) as u64),
    );
    let (pool_x, pool_labels) = (x.select(&pool), labels.select(&pool));
    let (test_x, test_labels) = (x.select(&test), labels.select(&test));
    let points = curve(
        (&pool_x, &pool_labels),
        (&test_x, &test_labels),
        &config,
        progress,
    )?;
    progress.finish();
    Ok(Curve {
        crossing: crossing(&points, seed),
        points,
        tested: test.len(),
    })
}

/// The table for people.
pub(super) fn print(out: &mut impl Write, curve: &Curve) -> std::io::Result<()> {
    writeln!(
        out,
        "{BOLD}{:>8}  {:>12}  {:>12}{BOLD:#}   errors on {} rows",
        "labels", "naive Bayes", "logistic", curve.tested
    )?;
    for point in &curve.points {
        let (nb, lr) = point.means();
        writeln!(out, "{:>8}  {nb:>12.4}  {lr:>12.4}", point.budget)?;
    }
    match curve.crossing.at {
        Some(at) => writeln!(
            out,
            "logistic regression is better from about {at:.0} labels on (5 to 95 %: {:.0} to {:.0})",
            curve.crossing.interval.0, curve.crossing.interval.1
        ),
        None => writeln!(out, "the curves do not cross"),
    }
}
