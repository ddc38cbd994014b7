//! `keyfold lab in-context`.

mod circuits;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use keyfold_data::rows::write_csv;
use keyfold_inspect::in_context::algorithms::{Comparison, Predictor, compare, implied_weights};
use keyfold_inspect::in_context::learner::{Learner, LearnerConfig, SequenceModel};
use keyfold_inspect::in_context::probe::{self, ProbeConfig};
use keyfold_inspect::in_context::{Distribution, Sequence, Task};
use serde_json::json;

use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::output::terminal::BOLD;
use crate::progress::StderrProgress;
use circuits::CircuitArgs;

/// Sequences on which a model is set beside estimators.
const TESTS: usize = 1000;

/// Sequences that probes of hidden states learn from and are scored on, and numbers of their
/// states at most, above [`TESTS`] sequences.
const PROBED: usize = 5000;
const PROBED_NUMBERS: usize = 1 << 26;

/// Probes that tell the weights which predictions imply.
const PROBES: usize = 64;

/// Train a model on linear regression in its context, and say which algorithm it runs
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --heads a transformer (or Mamba) is trained on sequences x1 y1 x2 y2 ..., and what it predicts is set \
beside estimators that are refitted before every y. With --heads one layer of softmax attention \
is trained, and each head is read: what it compares (omega) and what it writes (mu).

Examples:
  keyfold lab in-context --layers 4 --steps 6000 --predictors ols,ridge:0.25,gd:0.02,knn:3
  keyfold lab in-context --noise 0.5 --save learner.safetensors
  keyfold lab in-context --load learner.safetensors --x normal*2.5+0 --w normal*1+2.5
  keyfold lab in-context --model mamba --layers 4
  keyfold lab in-context --heads 2 --save heads.safetensors
  keyfold lab in-context --heads 2 --load heads.safetensors --lengths 10,40,100
  keyfold lab in-context --heads 3 --tasks 2 --d 6
  keyfold lab in-context --heads 2 --stack 2")]
pub(super) struct InContextArgs {
    /// Train one layer of softmax attention with so many heads, and read its circuits
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u16).range(1..))]
    heads: Option<u16>,
    /// Numbers of x [default: 4, with --heads 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    d: Option<u16>,
    /// Steps of the training [default: 3000, with --heads 20000, with --stack 3000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// File for the weights (.safetensors; with --heads the names of the authors' code)
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Read weights instead of training
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["steps", "save", "n", "model", "layers", "hidden", "noise"]
    )]
    load: Option<PathBuf>,
    #[command(flatten)]
    learner: LearnerArgs,
    #[command(flatten)]
    circuits: CircuitArgs,
}

/// What reads the sequences.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Model {
    /// Attention and an MLP in every layer
    Transformer,
    /// A selective scan in every layer
    Mamba,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "A transformer or Mamba (without --heads)")]
struct LearnerArgs {
    /// Pairs of a sequence
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(2..))]
    n: u16,
    /// What reads the sequences
    #[arg(long, value_enum, default_value = "transformer")]
    model: Model,
    /// Layers
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    layers: u16,
    /// Numbers of a hidden state; for a transformer a multiple of 16
    #[arg(long, value_name = "N", default_value_t = 64)]
    hidden: usize,
    /// Standard deviation of the noise on y
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    noise: f64,
    /// Where x of the tests comes from, as in normal*2.5+0 or uniform*2+-1; several with commas
    /// are a mixture, of which every number chooses one (learned is normal*1+0)
    #[arg(long, value_name = "DISTRIBUTION", default_value = "normal*1+0")]
    x: Distribution,
    /// Where the functions w of the tests come from, as in normal*1+2.5 (learned is normal*1+0)
    #[arg(long, value_name = "DISTRIBUTION", default_value = "normal*1+0")]
    w: Distribution,
    /// Estimators to compare with: ols, ridge:A, constant, sgd:R, gd:R, steps:NxR, knn:K, knn-near:K
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "ols,ridge:0.1,ridge:0.25,ridge:1,constant,steps:1x0.3,gd:0.02,sgd:0.03,knn:3"
    )]
    predictors: Vec<Predictor>,
    /// File for the table of all prefixes (.csv)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &InContextArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    match args.heads {
        Some(heads) => circuits::run(args, heads, globals),
        None => algorithms(args, globals),
    }
}

fn algorithms(args: &InContextArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let t = &args.learner;
    let progress = StderrProgress::new(globals.quiet, 20);
    let (model, curve) = match &args.load {
        Some(path) => (loaded(args, path)?, Vec::new()),
        None => trained(args, globals, &progress)?,
    };
    if let Some(path) = &args.save {
        model.save(path).context("cannot keep the weights")?;
    }
    let config = model.config();
    let (n_layers, hidden_size, steps) = (config.n_layers, config.hidden_size, config.steps);
    let task = &config.task;
    let test = Task {
        x: t.x.clone(),
        w: t.w.clone(),
        ..*task
    };
    let sequences = test.sample(TESTS, globals.seed ^ 0x7e57);
    let found = compare(&sequences, &model.predict(&sequences)?, &t.predictors)?;
    if let Some(out) = &t.out {
        write_table(out, &found)?;
    }
    let at = (2 * task.d).min(task.n - 1);
    let line = linearity(&model, &test, at, globals.seed)?;
    let numbers = (2 * at + 1) * hidden_size * (n_layers + 1);
    let probed = (PROBED_NUMBERS / numbers).clamp(TESTS, PROBED);
    let probed = test.sample(probed, globals.seed ^ 0x9a9a);
    let config = ProbeConfig {
        seed: globals.seed,
        ..ProbeConfig::default()
    };
    let probes = probe::layers(&model, &probed, at, &config)?;
    let mut out = anstream::stdout().lock();
    if globals.json {
        let value = json!({
            "task": test, "model": model.config().model, "layers": n_layers, "steps": steps, "weights": model.weight_count(),
            "comparison": found, "curve": curve, "pairs": at, "r2_of_a_line": line, "probes": probes,
        });
        writeln!(out, "{value:#}")?;
        return Ok(Outcome::Done);
    }
    writeln!(
        out,
        "{BOLD}{n_layers} layers{}, {} weights, {steps} steps{BOLD:#}; squared errors as parts of the variance \
         of y",
        match model.config().model {
            SequenceModel::Transformer => "",
            SequenceModel::Mamba => " of Mamba",
        },
        model.weight_count()
    )?;
    let shown: Vec<usize> = [1, task.d / 2, task.d, at, task.n - 1]
        .into_iter()
        .filter(|i| (1..task.n).contains(i))
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    let row = |errors: &[f64]| -> String {
        let cells = shown
            .iter()
            .map(|i| format!("{:>9.4}", errors[*i] / found.variance));
        cells.collect()
    };
    let heads: String = shown.iter().map(|i| format!("{i:>9}")).collect();
    writeln!(out, "\n{:<16}{heads}   error after so many pairs", "")?;
    writeln!(out, "{:<16}{}", "the model", row(&found.model))?;
    for p in &found.predictors {
        writeln!(out, "{:<16}{}", p.name, row(&p.mse))?;
    }
    writeln!(out, "\n{:<16}{heads}   difference from the model", "")?;
    for p in &found.predictors {
        writeln!(out, "{:<16}{}", p.name, row(&p.spd))?;
    }
    writeln!(
        out,
        "\nwhat a probe of hidden states after {at} pairs finds, as a part of its variance:"
    )?;
    writeln!(
        out,
        "{:<16}{:>9}{:>9}{:>12}{:>22}",
        "layer", "X'y", "ols", "by chance", "ols, by a line"
    )?;
    for (layer, held) in probes.iter().enumerate() {
        let [moments, weights] = [held.moments, held.weights];
        let [others, line] = [held.others, held.line];
        writeln!(
            out,
            "{layer:<16}{moments:>9.3}{weights:>9.3}{others:>12.3}{line:>22.3}"
        )?;
    }
    writeln!(
        out,
        "\nThe model predicts most like {}. After {at} pairs a line explains {:.1} % of what it predicts.",
        found.predictors.first().map_or("none of them", |p| &p.name),
        100.0 * line
    )?;
    Ok(Outcome::Done)
}

/// The model of a file; the settings are its own.
fn loaded(args: &InContextArgs, path: &std::path::Path) -> anyhow::Result<Learner> {
    let model = Learner::load(path)?;
    match args.d {
        Some(d) if usize::from(d) != model.config().task.d => Err(wrong_use(format!(
            "{} has x of {} numbers, not {d}",
            path.display(),
            model.config().task.d
        ))),
        _ => Ok(model),
    }
}

fn trained(
    args: &InContextArgs,
    globals: &Globals,
    progress: &StderrProgress,
) -> anyhow::Result<(Learner, Vec<f64>)> {
    let t = &args.learner;
    let task = Task {
        d: args.d.map_or(4, usize::from),
        n: t.n.into(),
        x: Distribution::default(),
        w: Distribution::default(),
        noise: t.noise,
    };
    let steps = args.steps.unwrap_or(3000) as usize;
    let mut config = LearnerConfig::small(task, t.layers.into(), steps, globals.seed);
    // Wider models bear smaller steps only.
    config.learning_rate *= (config.hidden_size as f64 / t.hidden.max(1) as f64).min(1.0);
    config.hidden_size = t.hidden;
    config.model = match t.model {
        Model::Transformer => SequenceModel::Transformer,
        Model::Mamba => SequenceModel::Mamba,
    };
    let mut model = Learner::new(config).map_err(|e| wrong_use(e.to_string()))?;
    let curve = model.train(progress)?;
    Ok((model, curve))
}

/// Every prefix: the model's error, and of each estimator error and difference.
fn write_table(path: &std::path::Path, found: &Comparison) -> anyhow::Result<()> {
    let mut columns = vec!["pairs".to_owned(), "model mse".to_owned()];
    for p in &found.predictors {
        columns.extend([format!("{} mse", p.name), format!("{} spd", p.name)]);
    }
    let mut values = Vec::new();
    for i in 0..found.model.len() {
        values.extend([i as f32, found.model[i] as f32]);
        values.extend(
            found
                .predictors
                .iter()
                .flat_map(|p| [p.mse[i] as f32, p.spd[i] as f32]),
        );
    }
    write_csv(path, &values, columns.len(), &columns)?;
    Ok(())
}

/// What part of the predictions of many probes after one context a line explains, in the mean
/// over some contexts.
fn linearity(model: &Learner, task: &Task, pairs: usize, seed: u64) -> anyhow::Result<f64> {
    let contexts = task.sample(10, seed ^ 0xc0de);
    let mut sum = 0.0;
    for (i, context) in contexts.iter().enumerate() {
        let probes = Task {
            n: PROBES.max(2 * task.d + 2),
            ..task.clone()
        }
        .sample(1, seed ^ (i as u64 + 1));
        let x = &probes[0].x;
        let asked: Vec<Sequence> = x
            .chunks_exact(task.d)
            .map(|probe| Sequence {
                d: task.d,
                x: [&context.x[..pairs * task.d], probe].concat(),
                y: [&context.y[..pairs], &[0.0]].concat(),
                w: context.w.clone(),
            })
            .collect();
        let told: Vec<f64> = model.predict(&asked)?.iter().map(|p| p[pairs]).collect();
        sum += implied_weights(x, task.d, &told)?.r2 / contexts.len() as f64;
    }
    Ok(sum)
}
