//! How fast rows are coded and dictionaries learned, beside SPAMS and scikit-learn if a
//! `--peer` runs them (parity/peers/dictionary.py).
//!
//! 8 x 8 patches of a drawn picture, or the user's rows: codes of 5,000 of them under a
//! dictionary of 256 by matching pursuit with 8 atoms and by the lasso, and one pass of online
//! learning over 20,000; and a training step of sparse autoencoders on random rows. Each with
//! one thread and with all, by the fastest of some runs.
//!
//! A peer is called as `COMMAND dictionary REQUEST -`, with JSON in the file REQUEST: `rows` and
//! `atoms` (`.npy` files), `threads`, `repeats` and `cases`, each with a `name`, a `kind` (`omp`,
//! `lasso`, `online`, `sae`), the number of `rows`, and `atoms_per_row`, `alpha` or `n_components`
//! and `batch_size`, or `d_in`, `d_sae`, `architecture` and `k`. It prints `{"seconds": {NAME: SECONDS, ..}}`; cases may be missing.

use std::time::Instant;

use keyfold_core::Progress;
use keyfold_data::rows::{RowOptions, read_rows, write_npy};
use keyfold_dictionary::sae::{SaeConfig, SaeMethod, Training};
use keyfold_dictionary::{Coder, DictionaryError, Learner, Online, OnlineConfig, SparseCoder};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::peers::Engine;
use crate::pictures::{dead_leaves, patches};
use crate::random::normal;
use crate::report::{Report, Table, reached};
use crate::{BenchError, BenchOptions, Experiment, Scale, plot};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "dictionary-speed",
    about: "sparse coding and online dictionary learning, beside SPAMS and scikit-learn (--peer)",
    run,
};

/// What is aimed at, as a share of a peer's speed.
const AIM: f64 = 1.0;

/// Weight of the lasso.
const ALPHA: f32 = 0.1;

/// One piece of work.
#[derive(Debug, Clone, Copy)]
enum Case {
    Omp {
        rows: usize,
        atoms_per_row: usize,
    },
    Lasso {
        rows: usize,
    },
    Online {
        rows: usize,
        n_components: usize,
    },
    Sae {
        rows: usize,
        d_in: usize,
        architecture: SaeMethod,
    },
}

/// Codes of a row in a top-k autoencoder, and how many codes it has to each number of a row.
const SAE: (usize, usize) = (32, 8);

impl Case {
    fn name(self) -> String {
        match self {
            Self::Omp {
                rows,
                atoms_per_row,
            } => format!("{rows} rows, {atoms_per_row} atoms by pursuit"),
            Self::Lasso { rows } => format!("{rows} rows, lasso"),
            Self::Online { rows, n_components } => {
                format!("a pass over {rows} rows, {n_components} atoms")
            }
            Self::Sae {
                rows,
                d_in,
                architecture,
            } => {
                format!(
                    "a step of a {} autoencoder, {rows} rows of {d_in}",
                    kind(architecture)
                )
            }
        }
    }

    fn asked(self) -> Value {
        let name = self.name();
        match self {
            Self::Omp {
                rows,
                atoms_per_row,
            } => {
                json!({"name": name, "kind": "omp", "rows": rows, "atoms_per_row": atoms_per_row})
            }
            Self::Lasso { rows } => {
                json!({"name": name, "kind": "lasso", "rows": rows, "alpha": ALPHA})
            }
            Self::Online { rows, n_components } => json!({
                "name": name, "kind": "online", "rows": rows, "n_components": n_components,
                "alpha": ALPHA, "batch_size": 256,
            }),
            Self::Sae {
                rows,
                d_in,
                architecture,
            } => json!({
                "name": name, "kind": "sae", "rows": rows, "d_in": d_in, "d_sae": d_in * SAE.1,
                "architecture": kind(architecture), "k": SAE.0,
            }),
        }
    }

    /// Seconds of one run.
    fn run(self, rows: &[f32], atoms: &[f32], width: usize) -> Result<f64, DictionaryError> {
        if let Self::Sae {
            rows,
            d_in,
            architecture,
        } = self
        {
            return step(rows, d_in, architecture);
        }
        let clock = Instant::now();
        match self {
            Self::Sae { .. } => {}
            Self::Omp {
                rows: count,
                atoms_per_row,
            } => {
                let coder = Coder::Omp {
                    n_nonzero_coefs: Some(atoms_per_row),
                    tol: None,
                };
                SparseCoder::new(atoms, width, coder)?.encode(&rows[..count * width])?;
            }
            Self::Lasso { rows: count } => {
                let coder = Coder::LassoCd {
                    alpha: ALPHA,
                    positive: false,
                };
                SparseCoder::new(atoms, width, coder)?.encode(&rows[..count * width])?;
            }
            Self::Online {
                rows: count,
                n_components,
            } => {
                let config = OnlineConfig {
                    n_components,
                    alpha: ALPHA,
                    ..OnlineConfig::default()
                };
                let start = atoms[..n_components * width].to_vec();
                let mut learner = Online::with_start(config, width, start)?;
                learner.partial_fit(&rows[..count * width])?;
                learner.flush()?;
            }
        }
        Ok(clock.elapsed().as_secs_f64())
    }
}

fn kind(architecture: SaeMethod) -> &'static str {
    match architecture {
        SaeMethod::Standard => "standard",
        SaeMethod::TopK => "topk",
        SaeMethod::BatchTopK => "batchtopk",
        SaeMethod::Gated => "gated",
        SaeMethod::JumpRelu => "jumprelu",
        SaeMethod::Attribution => "attribution",
    }
}

/// Seconds of the second step; the first finds its memory. Thresholds start where SAELens' do, so that
/// half of a jump ReLU's codes, and of a gate's, are in use, as of a ReLU's.
fn step(rows: usize, d_in: usize, architecture: SaeMethod) -> Result<f64, DictionaryError> {
    let mut rng = StdRng::seed_from_u64(1);
    let rows: Vec<f32> = (0..rows * d_in).map(|_| normal(&mut rng)).collect();
    let config = SaeConfig {
        architecture,
        d_sae: d_in * SAE.1,
        k: SAE.0,
        ..SaeConfig::default()
    };
    let mut training = Training::new(config, d_in)?;
    training.step(&rows, &rows)?;
    let clock = Instant::now();
    training.step(&rows, &rows)?;
    Ok(clock.elapsed().as_secs_f64())
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let peers = options.peers.iter().map(|p| Engine::parse(p));
    let peers: Vec<Engine> = peers.collect::<Result<_, _>>()?;
    let smoke = options.scale == Scale::Smoke;
    let (count, coded, repeats) = if smoke {
        (600, 200, 1)
    } else {
        (20_000, 5_000, 5)
    };
    let (rows, width) = rows(options, count)?;
    let count = count.min(rows.len() / width);
    let coded = coded.min(count);
    // Rows of the data as atoms: what a learner begins with.
    let n_components = if smoke { 40 } else { 256 };
    let mut atoms = rows[rows.len() - n_components * width..].to_vec();
    keyfold_kernels::normalize_rows(&mut atoms, width);
    let (batch, d_in) = if smoke { (32, 16) } else { (2048, 512) };
    let steps = [
        SaeMethod::TopK,
        SaeMethod::BatchTopK,
        SaeMethod::Standard,
        SaeMethod::Gated,
        SaeMethod::JumpRelu,
    ];
    let steps = steps.map(|architecture| Case::Sae {
        rows: batch,
        d_in,
        architecture,
    });
    let mut cases = vec![
        Case::Omp {
            rows: coded,
            atoms_per_row: 8,
        },
        Case::Lasso { rows: coded },
        Case::Online {
            rows: count,
            n_components: n_components * 2 / 5,
        },
        Case::Online {
            rows: count,
            n_components,
        },
    ];
    cases.extend(steps);
    let folder = tempfile::tempdir()?;
    let [rows_file, atoms_file] = ["rows.npy", "atoms.npy"].map(|name| folder.path().join(name));
    let written =
        write_npy(&rows_file, &rows, width).and_then(|()| write_npy(&atoms_file, &atoms, width));
    written.map_err(|e| BenchError::data(&rows_file, e.to_string()))?;

    let mut table = Table::new(
        "sparse coding and online learning, seconds",
        &["work", "threads", "by", "seconds", "ours is faster by"],
    );
    let (mut findings, mut values, mut bars) = (Vec::new(), Vec::new(), Vec::new());
    let mut threads = vec![1, options.thread_count()];
    threads.dedup();
    progress.start("measure", "runs", None);
    for threads in threads {
        let asked: Vec<Value> = cases.iter().map(|case| case.asked()).collect();
        let request = folder.path().join("request.json");
        let asked = json!({
            "rows": rows_file, "atoms": atoms_file, "threads": threads, "repeats": repeats, "cases": asked,
        });
        std::fs::write(&request, asked.to_string())?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| BenchError::data("dictionary-speed", e.to_string()))?;
        let mut theirs = Vec::new();
        for peer in &peers {
            let lines = peer.run("dictionary", &request, "-".as_ref())?;
            let seconds = lines
                .into_iter()
                .find_map(|mut line| Some(line.get_mut("seconds")?.take()));
            theirs.push((peer.name.clone(), seconds.unwrap_or_default()));
        }
        for &case in &cases {
            let mut best = f64::INFINITY;
            for _ in 0..repeats {
                if progress.cancelled() {
                    return Err(BenchError::Cancelled);
                }
                let seconds = pool.install(|| case.run(&rows, &atoms, width));
                best = best
                    .min(seconds.map_err(|e| BenchError::data("dictionary-speed", e.to_string()))?);
                progress.advance(1);
            }
            let mut by = vec![("keyfold".to_owned(), best)];
            for (name, seconds) in &theirs {
                let Some(seconds) = seconds[case.name()].as_f64() else {
                    continue;
                };
                by.push((name.clone(), seconds));
                let ratio = seconds / best;
                findings.push(format!(
                    "{}, {threads} threads: {ratio:.2} times as fast as {name}; aim: {AIM:.1}, {}.",
                    case.name(),
                    reached(ratio >= AIM)
                ));
            }
            for (name, seconds) in by {
                table.row([
                    case.name(),
                    threads.to_string(),
                    name.clone(),
                    format!("{seconds:.4}"),
                    format!("{:.2}", seconds / best),
                ]);
                bars.push((format!("{name}, {threads}: {}", case.name()), seconds));
                values.push(json!({"case": case.name(), "threads": threads, "by": name, "seconds": seconds}));
            }
        }
    }
    progress.finish();
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables: vec![table],
        findings,
        values: json!({"alpha": ALPHA, "width": width, "runs": values}),
        svg: plot::bars("Sparse coding and online learning", "seconds", &bars, None)?,
    })
}

/// The user's rows, or patches that are drawn.
fn rows(options: &BenchOptions, count: usize) -> Result<(Vec<f32>, usize), BenchError> {
    let Some(path) = &options.data else {
        let side = if count < 1000 { 96 } else { 512 };
        let picture = dead_leaves(side, options.seed);
        return Ok((patches(&picture, side, 8, count, options.seed), 64));
    };
    let rows = read_rows(path, &RowOptions::default());
    let rows = rows.map_err(|e| BenchError::data(path, e.to_string()))?;
    match rows.len() >= 256 && rows.width >= 8 {
        true => Ok((rows.values, rows.width)),
        false => Err(BenchError::data(path, "give 256 rows of 8 numbers or more")),
    }
}
