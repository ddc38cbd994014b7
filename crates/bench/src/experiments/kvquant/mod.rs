//! KVQuant: how much of numbers and of texts is lost in a cache of 2, 3 and 4 bits, what it
//! takes, and how fast it is read.
//!
//! C. Hooper et al., 2024. Measured: the error on channels with outliers, without any model;
//! time and bytes of a token's attention beside plain caches; perplexity of `--model` on
//! `--data`, as it is and with outliers put into its keys that change nothing else; and how
//! fast that model writes from every cache, beside a `--peer` that keeps its rows in 8 and 4 bits.

mod numbers;
mod speed;
mod text;
mod whole;

use keyfold_core::Progress;
use keyfold_lm::roles::{Dims, KvStore};
use keyfold_lm::store::kvquant::{
    Calibration, CalibrationConfig, Datatype, KvQuantConfig, Statistics, Weighting,
};
use serde_json::{Value, json};

use super::long_context::{cache_dims, failed, holds, on_given_text, relative_error};
use crate::plot;
use crate::report::{Report, Table};
use crate::{BenchError, BenchOptions, Experiment};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "kvquant",
    about: "error, bytes, speed and perplexity (--model, --data) of a cache of 2, 3 and 4 bits",
    run,
};

/// Bits, from many to few.
const BITS: [u8; 3] = [4, 3, 2];

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (mut tables, mut findings) = (Vec::new(), Vec::new());
    let (errors, bars) = numbers::errors(options, progress, &mut tables, &mut findings)?;
    let speed = speed::speed(options, progress, &mut tables, &mut findings)?;
    let perplexity = on_given_text(options, &mut findings, |model, tokens, findings| {
        text::perplexities(options, model, tokens, progress, &mut tables, findings)
    })?;
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({"errors": errors, "speed": speed, "perplexity": perplexity}),
        svg: plot::bars(
            "Error of numbers in 3 bits",
            "relative to their size",
            &bars,
            None,
        )?,
    })
}

/// Settings of one row of a comparison.
fn config(bits: u8, datatype: Datatype, outliers: bool) -> KvQuantConfig {
    KvQuantConfig {
        abits: bits,
        datatype,
        sparsity_threshold: if outliers { 0.99 } else { 1.0 },
        norm: Some(false),
        ..KvQuantConfig::default()
    }
}

/// A calibration of statistics with or without outliers.
fn calibrated(
    statistics: &Statistics,
    outliers: bool,
    weighting: Weighting,
    threads: usize,
) -> Result<Calibration, BenchError> {
    let made = CalibrationConfig {
        sparsity_threshold: if outliers { 0.99 } else { 1.0 },
        weighting,
    };
    let team = keyfold_kernels::Team::new(threads);
    statistics
        .calibrate(&made, None, &team)
        .map_err(failed("calibration"))
}

/// Rounds each row to even steps between its least and its greatest number.
fn round_rows(rows: &mut [f32], width: usize, bits: u8) {
    let last = f32::from((1u8 << bits) - 1);
    for row in rows.chunks_exact_mut(width) {
        let low = row.iter().copied().fold(f32::INFINITY, f32::min);
        let high = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let step = ((high - low) / last).max(1e-12);
        row.iter_mut()
            .for_each(|x| *x = ((*x - low) / step).round() * step + low);
    }
}

#[cfg(test)]
mod tests {
    use super::round_rows;

    #[test]
    fn rows_are_rounded_between_their_ends() {
        let mut rows = [0.0, 1.0, 2.9, 6.0, 5.0, 5.0, 5.0, 5.0];
        round_rows(&mut rows, 4, 2);
        assert_eq!(rows, [0.0, 2.0, 2.0, 6.0, 5.0, 5.0, 5.0, 5.0]);
    }
}
