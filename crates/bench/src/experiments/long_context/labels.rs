//! Whether labels of few channels bring the right row among the best, without any model: on
//! the codes of the constructed recall model.

use keyfold_lm::recall::RecallConfig;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::plot::Line;
use crate::report::Table;

/// One of the measures.
pub(super) struct Part {
    pub(super) table: Table,
    pub(super) findings: Vec<String>,
    pub(super) values: Value,
    pub(super) lines: Vec<Line>,
}

/// What was measured before on the codes of the recall model: channels, rows in the choice,
/// and the share of runs whose needle is among them with calibrated, random and first
/// channels (64 channels, 50 of them live, 32 fillers, 8,192 tokens).
const SHEET: &[(usize, usize, [Option<f64>; 3])] = &[
    (4, 32, [Some(0.20), Some(0.11), Some(0.00)]),
    (4, 256, [Some(0.68), Some(0.42), Some(0.02)]),
    (4, 1024, [Some(0.98), Some(0.88), Some(0.09)]),
    (8, 32, [Some(0.88), Some(0.72), Some(0.01)]),
    (8, 256, [Some(1.0), Some(0.92), Some(0.07)]),
    (8, 1024, [Some(1.0), Some(1.0), Some(0.29)]),
    (16, 32, [Some(1.0), None, None]),
    (16, 256, [Some(1.0), None, None]),
    (16, 1024, [Some(1.0), None, None]),
];

/// Whether the needle is among the best rows by its label alone: the mean chance where rows
/// of equal labels are taken in any order.
pub(super) fn labels(runs: usize, context: usize, seed: u64) -> Part {
    let mut rng = StdRng::seed_from_u64(seed);
    let title = format!(
        "needle among the best rows by labels of ±1 codes alone; {runs} runs of {context} tokens; \
         the sheet's numbers in brackets"
    );
    let mut table = Table::new(
        &title,
        &["channels", "rows", "calibrated", "random", "first"],
    );
    let mut sums = vec![[0.0f64; 3]; SHEET.len()];
    for _ in 0..runs {
        let config = RecallConfig {
            seed: rng.random(),
            ..RecallConfig::default()
        };
        let (n, codes) = (config.n, config.codes());
        let key = rng.random_range(0..n / 4);
        let fillers: Vec<usize> = (0..context).map(|_| rng.random_range(n / 2..n)).collect();
        // Calibration can see which channels live, and no more: all live ones are alike.
        let mut live: Vec<usize> = (0..n).filter(|c| codes[key * n + c] != 0.0).collect();
        live.shuffle(&mut rng);
        let mut random: Vec<usize> = (0..n).collect();
        random.shuffle(&mut rng);
        let first: Vec<usize> = (0..n).collect();
        for (sums, (r, k, _)) in sums.iter_mut().zip(SHEET) {
            for (sum, order) in sums.iter_mut().zip([&live, &random, &first]) {
                let score = |token: usize| -> f32 {
                    order
                        .iter()
                        .take(*r)
                        .map(|c| codes[key * n + c] * codes[token * n + c])
                        .sum()
                };
                let by_token: Vec<f32> = (0..n).map(score).collect();
                let equal = fillers
                    .iter()
                    .filter(|&&t| by_token[t] >= by_token[key])
                    .count();
                *sum += (*k as f64 / (equal + 1) as f64).min(1.0);
            }
        }
    }
    let mut values = Vec::new();
    let mut worst = 0.0f64;
    for ((r, k, sheet), sums) in SHEET.iter().zip(&sums) {
        let ours = sums.map(|sum| sum / runs as f64);
        let cell = |i: usize| match sheet[i] {
            Some(before) => format!("{:.2} ({before:.2})", ours[i]),
            None => format!("{:.2}", ours[i]),
        };
        table.row([r.to_string(), k.to_string(), cell(0), cell(1), cell(2)]);
        for (before, ours) in sheet.iter().zip(ours) {
            worst = worst.max(before.map_or(0.0, |b| (b - ours).abs()));
        }
        values.push(json!({"channels": r, "rows": k, "calibrated": ours[0], "random": ours[1], "first": ours[2], "sheet": sheet}));
    }
    let findings = vec![format!(
        "labels alone: the shares differ from those measured before by at most {worst:.2} over {} runs.",
        runs
    )];
    Part {
        table,
        findings,
        values: json!(values),
        lines: Vec::new(),
    }
}
