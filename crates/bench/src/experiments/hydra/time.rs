//! The time of a layer, forward and with its gradients, as texts grow.

use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData};
use keyfold_core::Progress;
use keyfold_nn::mixers::{
    Hydra, HydraConfig, Mamba2, Mamba2Config, MatrixFamily, MatrixMixer, MatrixMixerConfig,
};
use keyfold_nn::random;
use serde_json::{Value, json};

use super::failed;
use crate::plot::shown;
use crate::report::Table;
use crate::{BenchError, BenchOptions, Scale};

pub(super) fn time(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (d, lengths, repeat): (_, &[usize], _) = match options.scale {
        Scale::Smoke => (32, &[64, 128], 1),
        Scale::Small => (128, &[256, 512, 1024, 2048, 4096], 3),
        Scale::Full => (768, &[512, 2048, 8192], 5),
    };
    let mut table = Table::new(
        &format!("milliseconds of a layer of width {d} for one text: forward, and with gradients"),
        &[
            "positions",
            "Hydra",
            "with gradients",
            "Mamba-2",
            "with gradients",
            "attention",
            "with gradients",
        ],
    );
    let device = Device::flex().autodiff();
    let (hydra, mamba2, attention) = layers(d, lengths, options.seed, &device)?;
    let mut values = Vec::new();
    progress.start("time", "lengths", Some(lengths.len() as u64));
    for &length in lengths {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let starts = [0, length];
        let ways: [&dyn Fn(Tensor<2>) -> Tensor<2>; 3] = [
            &|u| hydra.forward(u, &starts),
            &|u| mamba2.forward(u, &starts),
            &|u| attention.forward(u, &starts),
        ];
        let mut cells = vec![length.to_string()];
        let mut row = json!({ "positions": length });
        for (name, way) in ["hydra", "mamba2", "attention"].iter().zip(ways) {
            let [forward, both] = seconds(way, d, length, repeat, &device);
            cells.push(shown(1e3 * forward));
            cells.push(shown(1e3 * both));
            row[*name] = json!({"forward": forward, "with_gradients": both});
        }
        table.rows.push(cells);
        values.push(row);
        progress.advance(1);
    }
    progress.finish();
    tables.push(table);
    let at = |row: &Value, name: &str| row[name]["with_gradients"].as_f64().unwrap_or(f64::NAN);
    if let (Some(first), Some(last)) = (values.first(), values.last()) {
        let grown = lengths[lengths.len() - 1] as f64 / lengths[0] as f64;
        findings.push(format!(
            "{grown:.0} times as long a text: Hydra takes {:.1} times as long with gradients, attention {:.1} times; Hydra {:.2} times as long as Mamba-2 (the authors' users report 2).",
            at(last, "hydra") / at(first, "hydra"),
            at(last, "attention") / at(first, "attention"),
            at(last, "hydra") / at(last, "mamba2"),
        ));
    }
    Ok(json!(values))
}

fn layers(
    d: usize,
    lengths: &[usize],
    seed: u64,
    device: &Device,
) -> Result<(Hydra, Mamba2, MatrixMixer), BenchError> {
    let headdim = 64.min(d);
    let hydra = HydraConfig {
        d_model: d,
        headdim,
        ..HydraConfig::default()
    };
    let mamba2 = Mamba2Config {
        d_model: d,
        d_state: 2 * hydra.d_state,
        headdim,
        ..Mamba2Config::default()
    };
    let attention = MatrixMixerConfig {
        matrix_mixer_type: MatrixFamily::Attention,
        d_model: d,
        qk_dim: 2 * hydra.d_state * headdim / (2 * d),
        max_seq_len: lengths.iter().copied().max().unwrap_or(1),
        headdim,
        ..MatrixMixerConfig::default()
    };
    Ok((
        Hydra::init(&hydra, 0.05, seed, device).map_err(failed)?,
        Mamba2::init(&mamba2, 0.05, seed, device).map_err(failed)?,
        MatrixMixer::init(&attention, 0.05, seed, device).map_err(failed)?,
    ))
}

/// The best of some tries: forward, and with gradients.
fn seconds(
    way: &dyn Fn(Tensor<2>) -> Tensor<2>,
    d: usize,
    length: usize,
    repeat: usize,
    device: &Device,
) -> [f64; 2] {
    let numbers = random::normal(1, length * d, 1.0);
    let mut best = [f64::INFINITY; 2];
    for _ in 0..=repeat {
        let data = TensorData::new(numbers.clone(), [length, d]);
        let u = Tensor::<2>::from_data(data, device).require_grad();
        let clock = Instant::now();
        let out = way(u);
        let forward = clock.elapsed().as_secs_f64();
        std::hint::black_box(out.sum().backward());
        best[0] = best[0].min(forward);
        best[1] = best[1].min(clock.elapsed().as_secs_f64());
    }
    best
}
