//! The error of numbers whose channels differ and have outliers, without any model.

use keyfold_lm::store::kvquant::KvQuantStore;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::random::normal;
use crate::{Scale, plot};

/// Channels, those of them that are large, and how many times.
const WIDTH: usize = 256;
const LARGE: usize = 8;
const TIMES: f32 = 8.0;

/// What was measured before at 4, 3 and 2 bits.
const SHEET: [(&str, [f64; 3]); 5] = [
    ("integers for each token", [0.233, 0.500, 1.35]),
    ("integers for each channel", [0.171, 0.365, 0.948]),
    ("and 1 % outliers", [0.081, 0.174, 0.418]),
    ("tables, integers' thresholds", [0.110, 0.204, 0.369]),
    ("tables and 1 % outliers", [0.063, 0.122, 0.233]),
];

/// `t₆ scale + mean`, scales log-normal; the first channels are large and far from 0.
fn draw(tokens: usize, rng: &mut StdRng) -> Vec<f32> {
    let mut scales: Vec<f32> = (0..WIDTH).map(|_| (0.5 * normal(rng)).exp()).collect();
    scales[..LARGE].iter_mut().for_each(|s| *s *= TIMES);
    let mut rows = Vec::with_capacity(tokens * WIDTH);
    for _ in 0..tokens {
        for (channel, scale) in scales.iter().enumerate() {
            let chi: f32 = (0..6).map(|_| normal(rng).powi(2)).sum();
            let t = normal(rng) / (chi / 6.0).sqrt();
            let mean = if channel < LARGE { 1.5 } else { 0.0 };
            rows.push((t + mean) * scale);
        }
    }
    rows
}

/// What keys become in a store: every channel has its thresholds.
fn stored(
    rows: &[f32],
    dims: Dims,
    statistics: &Statistics,
    config: KvQuantConfig,
    threads: usize,
) -> Result<Vec<f32>, BenchError> {
    let outliers = config.sparsity_threshold < 1.0;
    let calibration = calibrated(statistics, outliers, Weighting::Fisher, threads)?;
    let config = KvQuantConfig {
        first_few_fp16: 0,
        ..config
    };
    let store = KvQuantStore::after_rope(dims, config, &calibration);
    let mut store = store.map_err(failed("kvquant"))?;
    let tokens = rows.len() / WIDTH;
    let positions: Vec<u32> = (0..tokens as u32).collect();
    store.append(0, &positions, rows, rows);
    let (mut keys, mut values) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
    store.read(0, 0, 0..tokens, &mut keys, &mut values);
    Ok(keys)
}

pub(super) fn errors(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<(Value, Vec<(String, f64)>), BenchError> {
    let tokens = if options.scale == Scale::Smoke {
        512
    } else {
        4096
    };
    let threads = options.thread_count();
    let rows = draw(tokens, &mut StdRng::seed_from_u64(options.seed));
    let dims = cache_dims(1, 1, 1, WIDTH);
    let mut statistics = Statistics::new(dims, 0, false);
    statistics
        .observe(0, &rows, &rows, None, None)
        .map_err(failed("statistics"))?;
    let title = format!(
        "relative error of {tokens} rows of {WIDTH} channels, {LARGE} of them large; the sheet's numbers \
         (4096 rows) in brackets"
    );
    let mut table = Table::new(&title, &["kept as", "4 bits", "3 bits", "2 bits"]);
    progress.start("errors", "ways", Some(SHEET.len() as u64));
    let (mut values, mut bars, mut found) = (Vec::new(), Vec::new(), Vec::new());
    let mut worst = 0.0f64;
    for (way, (name, sheet)) in SHEET.iter().enumerate() {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let mut errors = [0.0; 3];
        for (error, bits) in errors.iter_mut().zip(BITS) {
            let of = |datatype, outliers| {
                stored(
                    &rows,
                    dims,
                    &statistics,
                    config(bits, datatype, outliers),
                    threads,
                )
            };
            let got = match way {
                0 => {
                    let mut rows = rows.clone();
                    round_rows(&mut rows, WIDTH, bits);
                    rows
                }
                1 => of(Datatype::Int, false)?,
                2 => of(Datatype::Int, true)?,
                3 => of(Datatype::Nuq, false)?,
                _ => of(Datatype::Nuq, true)?,
            };
            *error = relative_error(&got, &rows);
        }
        let cell = |i: usize| format!("{} ({})", plot::shown(errors[i]), plot::shown(sheet[i]));
        table.row([(*name).to_owned(), cell(0), cell(1), cell(2)]);
        for (ours, before) in errors.iter().zip(sheet) {
            worst = worst.max((ours / before - 1.0).abs());
        }
        values.push(json!({"way": name, "errors": errors, "sheet": sheet}));
        bars.push(((*name).to_owned(), errors[1]));
        found.push(errors);
        progress.advance(1);
    }
    progress.finish();
    tables.push(table);
    let helps = |a: usize, b: usize| (0..3).all(|i| found[b][i] < found[a][i]);
    let all = helps(0, 1) && helps(1, 2) && helps(1, 3) && helps(2, 4) && helps(3, 4);
    findings.push(format!(
        "every part of the method lowers the error at 4, 3 and 2 bits: {}. From the numbers measured before ours differ by at \
         most {:.0} %{}.",
        holds(all),
        100.0 * worst,
        if tokens == 4096 { "" } else { ", with fewer rows" },
    ));
    Ok((json!(values), bars))
}
