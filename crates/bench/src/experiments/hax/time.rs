//! The time of attention to few keys beside attention to all.

use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData};
use keyfold_core::Progress;
use keyfold_nn::ops::{self, SharedHeads};
use keyfold_nn::random;
use keyfold_sequence::hax::{HaxConfig, select};
use serde_json::{Value, json};

use super::failed;
use crate::plot::shown;
use crate::report::Table;
use crate::{BenchError, BenchOptions, Scale};

/// Numbers of queries and keys, as mamba2-130m has.
const DIM: usize = 128;

pub(super) fn time(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (lengths, repeat): (&[usize], _) = match options.scale {
        Scale::Smoke => (&[64, 128], 1),
        Scale::Small => (&[1024, 2048, 4096], 3),
        Scale::Full => (&[1024, 4096, 16_384], 5),
    };
    let mut table = Table::new(
        &format!("milliseconds of one head of {DIM} and as wide values, forward; 64 keys"),
        &[
            "positions",
            "choosing keys",
            "reading them",
            "attention to all",
            "times as fast",
        ],
    );
    let mut values = Vec::new();
    let device = Device::flex();
    progress.start("time", "lengths", Some(lengths.len() as u64));
    for &length in lengths {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let draw = |part| random::normal(random::derive(options.seed, part), length * DIM, 0.3);
        let (q, k, v) = (draw(0), draw(1), draw(2));
        let config = HaxConfig::default();
        let hashes = random::normal(options.seed, DIM * config.num_hash, 1.0);
        let scores = &draw(3)[..length];
        let mut best = [f64::INFINITY; 3];
        for _ in 0..=repeat {
            let clock = Instant::now();
            let chosen = select(&config, &q, &k, DIM, &hashes, scores).map_err(failed)?;
            best[0] = best[0].min(clock.elapsed().as_secs_f64());
            let tensor = |x: &[f32]| {
                Tensor::<2>::from_data(TensorData::new(x.to_vec(), [length, DIM]), &device)
            };
            let [q, k, v] = [&q, &k, &v].map(|x| tensor(x));
            let clock = Instant::now();
            let starts = [0, length];
            let few = ops::sparse_attention(q.clone(), k.clone(), v.clone(), &starts, vec![chosen]);
            std::hint::black_box(few);
            best[1] = best[1].min(clock.elapsed().as_secs_f64());
            let heads = SharedHeads {
                count: 1,
                kv: 1,
                size: DIM,
            };
            let clock = Instant::now();
            std::hint::black_box(ops::causal_attention(q, k, v, &starts, heads, None));
            best[2] = best[2].min(clock.elapsed().as_secs_f64());
        }
        let faster = best[2] / (best[0] + best[1]);
        table.row([
            length.to_string(),
            shown(1e3 * best[0]),
            shown(1e3 * best[1]),
            shown(1e3 * best[2]),
            shown(faster),
        ]);
        values.push(json!({
            "positions": length, "choosing": best[0], "reading": best[1], "all": best[2],
        }));
        if Some(&length) == lengths.last() {
            findings.push(format!(
                "{length} positions: choosing 64 keys and reading them is {faster:.1} times as fast as attention to all, both on one thread."
            ));
        }
        progress.advance(1);
    }
    progress.finish();
    tables.push(table);
    Ok(json!(values))
}
