//! How long products and whole models take.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use keyfold_core::{NoProgress, Progress};
use keyfold_kernels::blocks::{
    Activations, BlockMatrix, BlockType, ChannelSum, matvec, quantize, sum_channels,
};
use keyfold_kernels::{Team, peak};
use keyfold_lm::decoding::argmax;
use keyfold_lm::linear::r_sparse::{
    Calibration, Factors, Folded, Parts, RSparseFile, Split, beside, linears, save,
};
use keyfold_lm::store::CacheType;
use keyfold_lm::synthetic::{Geometry, write_random};
use keyfold_lm::{Decoder, LmError, ModelFile, Policy, Session};
use rand::rngs::StdRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;
use serde_json::json;

use super::Part;
use crate::experiments::long_context::failed;
use crate::plot;
use crate::report::{Table, reached};
use crate::{BenchError, BenchOptions, Scale};

/// Of the limit of 2 that bytes set at half of the channels.
const AIM_PRODUCT: f64 = 1.6;
const AIM_MODEL: f64 = 1.4;

/// Rows of packed random numbers; a few dozen, repeated.
fn packed(kind: BlockType, rows: usize, cols: usize, rng: &mut StdRng) -> Vec<u8> {
    let row_bytes = kind.row_bytes(cols).unwrap_or(0);
    let mut bytes = vec![0; rows.min(37) * row_bytes];
    for row in bytes.chunks_exact_mut(row_bytes.max(1)) {
        let numbers: Vec<f32> = (0..cols).map(|_| rng.random_range(-1.0..1.0)).collect();
        quantize(kind, &numbers, row);
    }
    bytes
        .iter()
        .copied()
        .cycle()
        .take(rows * row_bytes)
        .collect()
}

/// Products of a wide layer, dense and with a part of the channels, in turns.
pub(super) fn products(
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Part, BenchError> {
    let smoke = options.scale == Scale::Smoke;
    let shapes: &[(usize, usize)] = match options.scale {
        Scale::Smoke => &[(256, 1024)],
        _ => &[(1024, 3072), (2048, 8192), (8192, 2048), (4096, 14_336)],
    };
    let (kinds, shares) = (
        [
            BlockType::F16,
            BlockType::Q8_0,
            BlockType::Q4_1,
            BlockType::Q4K,
        ],
        [0.25, 0.5, 0.75],
    );
    let team = Team::new(options.thread_count());
    let columns = [
        "inputs x outputs",
        "weights",
        "dense, ms",
        "a quarter read",
        "half",
        "three quarters",
        "bytes allow at half",
    ];
    let title = format!(
        "times as fast as the dense product with a part of the channels, drawn at random; {} threads, weights beyond the \
         processor's cache",
        team.threads()
    );
    let mut table = Table::new(&title, &columns);
    let (mut values, mut findings) = (Vec::new(), Vec::new());
    progress.start(
        "products",
        "kinds",
        Some((shapes.len() * kinds.len()) as u64),
    );
    for &(inputs, outputs) in shapes {
        for kind in kinds {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let mut rng = StdRng::seed_from_u64(options.seed);
            // So many copies that none stays in a cache.
            let bytes = kind.row_bytes(outputs).unwrap_or(0) * inputs;
            let copies = if smoke {
                1
            } else {
                (160_000_000 / bytes).clamp(2, 12)
            };
            let usual: Vec<Vec<u8>> = (0..copies)
                .map(|_| packed(kind, outputs, inputs, &mut rng))
                .collect();
            let turned: Vec<Vec<u8>> = (0..copies)
                .map(|_| packed(kind, inputs, outputs, &mut rng))
                .collect();
            let numbers: Vec<f32> = (0..inputs).map(|_| rng.random_range(-1.0..1.0)).collect();
            let mut x = Activations::new();
            let mut out = vec![0.0; outputs];
            let mut best = [f64::INFINITY; 4];
            let lists: Vec<(Vec<u32>, Vec<f32>)> = shares
                .iter()
                .map(|share| {
                    let count = (inputs as f64 * share) as usize;
                    let mut list: Vec<u32> = index::sample(&mut rng, inputs, count)
                        .iter()
                        .map(|i| i as u32)
                        .collect();
                    list.sort_unstable();
                    let factors = list.iter().map(|&c| numbers[c as usize]).collect();
                    (list, factors)
                })
                .collect();
            for _ in 0..if smoke { 2 } else { 15 } {
                let start = Instant::now();
                for bytes in &usual {
                    x.set(&numbers, inputs);
                    let weights = BlockMatrix::new(kind, outputs, inputs, bytes)
                        .map_err(failed("weights"))?;
                    matvec(&mut out, &weights, &mut x, &team);
                }
                best[0] = best[0].min(start.elapsed().as_secs_f64() / copies as f64);
                for ((channels, factors), best) in lists.iter().zip(&mut best[1..]) {
                    let start = Instant::now();
                    for bytes in &turned {
                        let weights = BlockMatrix::new(kind, inputs, outputs, bytes)
                            .map_err(failed("weights"))?;
                        sum_channels(
                            &mut out,
                            &[ChannelSum {
                                weights,
                                channels,
                                factors,
                            }],
                            &team,
                        );
                    }
                    *best = best.min(start.elapsed().as_secs_f64() / copies as f64);
                }
            }
            let faster: Vec<f64> = best[1..].iter().map(|t| best[0] / t).collect();
            table.row([
                format!("{inputs} x {outputs}"),
                kind.name().to_owned(),
                plot::shown(1e3 * best[0]),
                plot::shown(faster[0]),
                plot::shown(faster[1]),
                plot::shown(faster[2]),
                plot::shown(inputs as f64 / lists[1].0.len() as f64),
            ]);
            values.push(json!({
                "inputs": inputs, "outputs": outputs, "kind": kind.name(), "dense_seconds": best[0], "shares": shares,
                "faster": faster, "bytes_per_second": bytes as f64 / best[0],
            }));
            if (inputs, outputs) == (2048, 8192) {
                findings.push(format!(
                    "half of the channels of {inputs} x {outputs} in {}: {:.2} times as fast as dense; aim {AIM_PRODUCT} of 2.0: {}.",
                    kind.name(), faster[1], reached(faster[1] >= AIM_PRODUCT),
                ));
            }
            progress.advance(1);
        }
    }
    progress.finish();
    Ok(Part {
        tables: vec![table],
        findings,
        values: json!(values),
        lines: Vec::new(),
    })
}

/// Tokens a second of a whole model with random weights, dense and sparse in turns.
pub(super) fn model(options: &BenchOptions, progress: &dyn Progress) -> Result<Part, BenchError> {
    let tiny = Geometry {
        layers: 2,
        hidden: 256,
        intermediate: 512,
        heads: 4,
        kv_heads: 4,
        head_dim: 64,
        vocab: 512,
        ..Geometry::smollm_135m()
    };
    let (name, geometry, kinds, rounds, write) = match options.scale {
        Scale::Smoke => ("tiny", tiny, vec![BlockType::Q8_0], 1, 4),
        Scale::Small => (
            "Qwen3-0.6B",
            Geometry::qwen3_06b(),
            vec![BlockType::F16, BlockType::Q8_0, BlockType::Q4K],
            5,
            16,
        ),
        Scale::Full => (
            "Qwen3-0.6B",
            Geometry::qwen3_06b(),
            vec![BlockType::F16, BlockType::Q8_0, BlockType::Q4K],
            8,
            32,
        ),
    };
    let bandwidth = peak::read_bandwidth(options.thread_count());
    let title = format!(
        "tokens a second of {name} (random weights), context 32, half of the weights unread; median of {rounds} turns; memory \
         reads {:.1} GB a second",
        bandwidth / 1e9
    );
    let columns = [
        "weights",
        "dense",
        "of memory, %",
        "sparse",
        "of memory, %",
        "times as fast",
        "bytes allow",
    ];
    let mut table = Table::new(&title, &columns);
    let (mut values, mut findings) = (Vec::new(), Vec::new());
    progress.start("whole models", "models", Some(kinds.len() as u64));
    for kind in kinds {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let scratch = tempfile::tempdir()?;
        let path = scratch.path().join("model.gguf");
        let failed = failed::<LmError>(name);
        write_random(&geometry, kind, options.seed, &path).map_err(&failed)?;
        let team = Arc::new(Team::new(options.thread_count()));
        let dense =
            Arc::new(Decoder::load(&ModelFile::open(&path).map_err(&failed)?).map_err(&failed)?);
        let sparse = Arc::new(sparse(&path, options.seed, &team).map_err(&failed)?);
        let (mut rates, mut bytes) = ([Vec::new(), Vec::new()], [0.0; 2]);
        for _ in 0..rounds {
            for (i, decoder) in [&dense, &sparse].into_iter().enumerate() {
                let (rate, read) = written(decoder, &team, write).map_err(&failed)?;
                rates[i].push(rate);
                bytes[i] = read;
            }
        }
        let [dense, sparse] = rates.map(median);
        let ideal = bytes.map(|b| bandwidth / b);
        let (faster, allowed) = (sparse / dense, bytes[0] / bytes[1]);
        table.row([
            kind.name().to_owned(),
            plot::shown(dense),
            format!("{:.0}", 100.0 * dense / ideal[0]),
            plot::shown(sparse),
            format!("{:.0}", 100.0 * sparse / ideal[1]),
            plot::shown(faster),
            plot::shown(allowed),
        ]);
        values.push(json!({
            "model": name, "kind": kind.name(), "dense": dense, "sparse": sparse, "faster": faster,
            "dense_bytes": bytes[0], "sparse_bytes": bytes[1],
        }));
        findings.push(format!(
            "{name} in {}: {faster:.2} times the tokens a second with half of the weights of its layers unread (bytes allow \
             {allowed:.2}, the output matrix being dense); aim {AIM_MODEL}: {}; the paper: 1.43 times on a GPU.",
            kind.name(), reached(faster >= AIM_MODEL),
        ));
        progress.advance(1);
    }
    progress.finish();
    Ok(Part {
        tables: vec![table],
        findings,
        values: json!(values),
        lines: Vec::new(),
    })
}

/// The model with thresholds of its own and factors of the right rank that are made up:
/// the time of a product does not depend on their numbers. Read from a file, as users have it.
fn sparse(path: &Path, seed: u64, team: &Arc<Team>) -> Result<Decoder, LmError> {
    let file = ModelFile::open(path)?;
    let mut rng = StdRng::seed_from_u64(seed);
    let vocab = file.config().dims.vocab as u32;
    let tokens: Vec<u32> = (0..64).map(|_| rng.random_range(0..vocab)).collect();
    let calibration = Calibration::read(&file, &tokens, team)?;
    let split = Split::default();
    let folded = linears(&file)?
        .into_par_iter()
        .map(|(layer, name, linear)| {
            let weight = linear.weight();
            let (inputs, outputs) = (weight.row_len(), weight.rows());
            let rank = split.rank(inputs, outputs);
            let factors = Factors {
                rank,
                down: vec![1e-3; rank * inputs],
                up: vec![1e-3; rank * outputs],
            };
            let threshold = calibration.threshold(layer, name, &split)?;
            let parts = Parts::new(weight, &split, threshold, Some((&factors, rank)), None);
            Ok(Folded {
                layer,
                name,
                split,
                parts,
            })
        });
    let folded: Vec<_> = folded.collect::<Result<_, LmError>>()?;
    let mut decoder = Decoder::load(&file)?;
    let written = beside(path);
    save(&written, decoder.fingerprint(), tokens.len(), &folded)?;
    RSparseFile::open(&written)?.put_into(&mut decoder)?;
    Ok(decoder)
}

/// Tokens a second, and bytes of weights and rows that one reads.
fn written(decoder: &Arc<Decoder>, team: &Arc<Team>, write: usize) -> Result<(f64, f64), LmError> {
    let policy = Policy::dense(decoder, CacheType::F16, 64)?;
    let mut session = Session::new(Arc::clone(decoder), policy, Arc::clone(team));
    let prompt: Vec<u32> = (0..32)
        .map(|i| i * 37 % decoder.config().dims.vocab as u32)
        .collect();
    session.prefill(&prompt, &NoProgress)?;
    for _ in 0..write {
        let token = argmax(session.logits());
        session.step(token)?;
    }
    let report = session.report();
    let tokens = write.max(1) as f64;
    let rate = tokens / report.decode_time.as_secs_f64();
    Ok((
        rate,
        (report.weight_bytes + report.row_bytes) as f64 / tokens,
    ))
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}
