//! A column that can be told from another alone: what mixing over columns is for.
//!
//! The first column is noise with a memory (AR(2)), the second is the first five rows later with a
//! little noise; six more are noise of their own. Five rows ahead the second stands in the first
//! already, and in its own past it does not.

use keyfold_core::Progress;
use keyfold_nn::random;
use keyfold_sequence::mamba_mixer::Averaging;
use keyfold_signals::tsm2::{Tsm2Config, Tsm2Training};
use keyfold_signals::{Series, Windows};
use keyfold_train::gradient::OptimConfig;
use serde_json::{Value, json};

use super::{failed, forecaster};
use crate::report::{Table, reached};
use crate::{BenchError, BenchOptions, Scale, trained};

/// Rows that the second column is behind the first, and that are forecast.
const LATER: usize = 5;

/// Rows that are looked at: enough that the means of both columns in a window are alike.
const CONTEXT: usize = 32;

pub(super) fn run(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (rows, steps, seeds) = match options.scale {
        Scale::Smoke => (400, 6, 1),
        // Rows cost no time, and of few the noise is learned by heart.
        Scale::Small => (60_000, 1500, 1),
        Scale::Full => (120_000, 3000, 3),
    };
    progress.start("coupled columns", "trainings", Some(2 * seeds));
    let mut found = [Vec::new(), Vec::new()];
    for seed in 0..seeds {
        for (channel_mixer, found) in [true, false].into_iter().zip(&mut found) {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            found.push(one(rows, steps, channel_mixer, options.seed + seed)?);
            progress.advance(1);
        }
    }
    progress.finish();
    let mut table = Table::new(
        &format!(
            "a column that is another one {LATER} rows later, among six of noise: {LATER} rows ahead, {steps} steps, {seeds} seeds"
        ),
        &["forecaster", "MSE of the coupled column"],
    );
    let [with, without] = found.each_ref().map(|all| crate::quality::mean(all));
    for (name, mse) in [("TSM2", with), ("TSM2 without mixing of columns", without)] {
        table.row([name.to_owned(), format!("{mse:.3}")]);
    }
    tables.push(table);
    findings.push(format!(
        "expected: the coupled column can be told by mixing of columns alone (towards 0.01, and about its share of noise without); measured {with:.3} beside {without:.3}: {}.",
        reached(with < 0.5 * without)
    ));
    Ok(json!({"with": found[0], "without": found[1]}))
}

/// The error of the second column's forecasts.
fn one(rows: usize, steps: u64, channel_mixer: bool, seed: u64) -> Result<f64, BenchError> {
    let series = coupled(rows, seed);
    let whole = Tsm2Training::default();
    let config = Tsm2Training {
        model: Tsm2Config {
            seq_len: CONTEXT,
            pred_len: LATER,
            patch_len: 8,
            stride: 4,
            d_model: 16,
            d_state: 8,
            channel_mixer,
            // Averages that begin alike add the input again with every layer: mixing is then a few
            // percent of what is read at the end, and takes longer to be learned.
            averaging: Averaging::Raw,
            dropout: 0.0,
            ..Tsm2Config::default()
        },
        batch_size: 32,
        optim: OptimConfig {
            learning_rate: 4e-3,
            max_steps: steps,
            warmup_steps: steps / 16,
            ..whole.optim
        },
        seed,
        run: trained::unwatched(),
        ..whole
    };
    let model = forecaster(&series, &config)?;
    let cut = rows * 4 / 5;
    let windows = Windows::new(CONTEXT, LATER, cut..rows).map_err(failed)?;
    let scaler = &model.learned().scaler;
    let scaled = scaler.scaled(&series);
    let mut errors = keyfold_signals::Errors::default();
    for number in windows.some(200) {
        let looked_at = series.part(windows.context(number));
        let told = model.forecast(&looked_at, None).map_err(failed)?;
        let told: Vec<f32> = told[1]
            .iter()
            .map(|x| ((x - scaler.mean[1]) / scaler.deviation[1]) as f32)
            .collect();
        errors.add(&told, &scaled[1][windows.horizon(number)]);
    }
    Ok(errors.mse)
}

fn coupled(rows: usize, seed: u64) -> Series {
    let noise = |part: u64| random::normal(random::derive(seed, part), rows + LATER, 1.0);
    let mut first = vec![0.0f64; rows + LATER];
    for (t, e) in noise(0).into_iter().enumerate() {
        let before = |k: usize| t.checked_sub(k).map_or(0.0, |at| first[at]);
        first[t] = 0.6 * before(1) - 0.3 * before(2) + f64::from(e);
    }
    let second = first[..rows].iter().zip(noise(1));
    let second: Vec<f64> = second.map(|(x, e)| x + 0.1 * f64::from(e)).collect();
    let mut columns = vec![first[LATER..].to_vec(), second];
    columns.extend((2..8).map(|part| noise(part)[..rows].iter().map(|x| f64::from(*x)).collect()));
    Series {
        names: (1..=8).map(|c| format!("column {c}")).collect(),
        columns,
        times: Vec::new(),
    }
}
