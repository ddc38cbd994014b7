//! `keyfold lab random-features`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use keyfold_core::Progress;
use keyfold_inspect::random_features::{
    Example, Kind, RandomFeaturePredictor, RandomFeaturesConfig, Target, synthetic,
};
use serde_json::json;

use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::output::terminal::BOLD;
use crate::progress::StderrProgress;

/// Numbers of examples in the report.
const SIZES: [usize; 3] = [100, 300, 1000];

/// Learn a function of a vector and a set by attention whose heads are random
#[derive(Debug, clap::Args)]
#[command(after_help = "\
DATA holds JSON Lines: {\"q\": [...], \"set\": [[...], ...], \"y\": 1.5}. Sets may differ in size. A share of the \
examples is held out and told with three models: random attention, attention biased to the \
product with the query, and a random layer (where sets have one size). Without DATA, the same is \
shown on made-up functions by number of examples.

Examples:
  keyfold lab random-features
  keyfold lab random-features examples.jsonl --heads 300 --save predictor.safetensors
  keyfold lab random-features new.jsonl --predict predictor.safetensors")]
pub(super) struct RandomFeaturesArgs {
    /// Examples, as JSON Lines
    #[arg(value_name = "DATA")]
    data: Option<PathBuf>,
    /// Random heads [default: 1000, without DATA 150]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    heads: Option<u32>,
    /// Heads with the identity as mean: for functions of the product with the query
    #[arg(long)]
    biased: bool,
    /// Penalty of the ridge regression, times examples and mean square of a feature (default:
    /// the best of four on examples held out)
    #[arg(long, value_name = "X")]
    lambda: Option<f64>,
    /// Share of the examples that is held out to tell the error
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    test: f64,
    /// Memory that the solution may take, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    memory: u64,
    /// File for the predictor, learned from all examples (.safetensors)
    #[arg(long, value_name = "FILE", requires = "data")]
    save: Option<PathBuf>,
    /// Tell DATA with a predictor that was saved, one number a line
    #[arg(long, value_name = "FILE", requires = "data", conflicts_with_all = ["save", "heads", "biased", "lambda"])]
    predict: Option<PathBuf>,
}

pub(super) fn run(args: &RandomFeaturesArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let Some(data) = &args.data else {
        return report(args, globals);
    };
    let examples = read(data)?;
    let mut out = anstream::stdout().lock();
    if let Some(saved) = &args.predict {
        let told = RandomFeaturePredictor::load(saved)?.predict(&examples)?;
        for y in told {
            if globals.json {
                writeln!(out, "{}", json!({"y": y}))?;
            } else {
                writeln!(out, "{y}")?;
            }
        }
        return Ok(Outcome::Done);
    }
    if !(args.test > 0.0 && args.test < 1.0) {
        return Err(wrong_use("--test is a share between 0 and 1"));
    }
    let held = ((examples.len() as f64 * args.test).round() as usize).max(1);
    if examples.len() < held + 5 {
        return Err(wrong_use(format!(
            "{} examples are too few to learn from and hold {held} out",
            examples.len()
        )));
    }
    let (learn, test) = examples.split_at(examples.len() - held);
    let first = examples[0].set.len();
    let one_size = examples.iter().all(|e| e.set.len() == first);
    let progress = StderrProgress::new(globals.quiet, 20);
    let mut rows = Vec::new();
    progress.start("random features", "models", Some(2 + u64::from(one_size)));
    for (name, kind, biased) in [
        ("attention", Kind::Attention, false),
        ("biased attention", Kind::Attention, true),
        ("random layer", Kind::Mlp, false),
    ] {
        if progress.cancelled() {
            return Ok(Outcome::Interrupted);
        }
        if kind == Kind::Mlp && !one_size {
            continue;
        }
        let config = config(args, kind, biased, 1000, globals.seed);
        let fitted = RandomFeaturePredictor::fit(&config, learn)?;
        rows.push((name, fitted.relative_error(test)?, fitted.lambda()));
        progress.advance(1);
    }
    progress.finish();
    if let Some(path) = &args.save {
        let config = config(args, Kind::Attention, args.biased, 1000, globals.seed);
        RandomFeaturePredictor::fit(&config, &examples)?.save(path)?;
    }
    if globals.json {
        let models: Vec<_> = rows
            .iter()
            .map(|(name, error, lambda)| json!({"model": name, "error": error, "lambda": lambda}))
            .collect();
        let value = json!({"learned": learn.len(), "told": test.len(), "models": models, "saved": args.save});
        writeln!(out, "{value:#}")?;
        return Ok(Outcome::Done);
    }
    writeln!(
        out,
        "{BOLD}squared error as a part of the variance{BOLD:#}, {} examples learned, {} told",
        learn.len(),
        test.len()
    )?;
    for (name, error, lambda) in rows {
        writeln!(out, "{name:<18}{error:>8.4}   lambda {lambda}")?;
    }
    if !one_size {
        writeln!(
            out,
            "the sets differ in size, which a random layer cannot read"
        )?;
    }
    Ok(Outcome::Done)
}

fn config(
    args: &RandomFeaturesArgs,
    kind: Kind,
    biased: bool,
    heads: usize,
    seed: u64,
) -> RandomFeaturesConfig {
    RandomFeaturesConfig {
        kind,
        biased,
        heads: args.heads.map_or(heads, |h| h as usize),
        lambda: args.lambda,
        memory: args.memory.saturating_mul(1 << 20),
        seed,
        ..RandomFeaturesConfig::default()
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<Example>> {
    let file =
        File::open(path).map_err(|e| wrong_use(format!("cannot read {}: {e}", path.display())))?;
    let mut out = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        if line.trim().is_empty() {
            continue;
        }
        let example = serde_json::from_str(&line).map_err(|e| {
            wrong_use(format!(
                "{}: line {number} is no example ({e}); write {{\"q\": [...], \"set\": [[...]], \"y\": 1.5}}",
                path.display()
            ))
        })?;
        out.push(example);
    }
    match out.is_empty() {
        true => Err(wrong_use(format!("{} holds no examples", path.display()))),
        false => Ok(out),
    }
}

/// Errors on made-up functions, by number of examples.
fn report(args: &RandomFeaturesArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let targets = [
        ("mean <b, x>^2", 0, 2),
        ("mean <q, x>^2", 2, 0),
        ("mean <q, x>^3 <b, x>", 3, 1),
    ];
    let models = [
        ("attention", Kind::Attention, false),
        ("biased", Kind::Attention, true),
        ("random layer", Kind::Mlp, false),
    ];
    let progress = StderrProgress::new(globals.quiet, 20);
    progress.start(
        "random features",
        "fits",
        Some((targets.len() * models.len() * SIZES.len()) as u64),
    );
    let mut rows = Vec::new();
    for (target, query_power, direction_power) in targets {
        let of = Target {
            query_power,
            direction_power,
        };
        let learn = synthetic(of, (8, 8), SIZES[2], globals.seed, 0);
        let test = synthetic(of, (8, 8), 2000, globals.seed, 1);
        for (model, kind, biased) in models {
            let mut errors = Vec::new();
            for size in SIZES {
                if progress.cancelled() {
                    return Ok(Outcome::Interrupted);
                }
                let config = config(args, kind, biased, 150, globals.seed);
                let fitted = RandomFeaturePredictor::fit(&config, &learn[..size])?;
                errors.push(fitted.relative_error(&test)?);
                progress.advance(1);
            }
            rows.push((target, model, errors));
        }
    }
    progress.finish();
    let mut out = anstream::stdout().lock();
    if globals.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(target, model, errors)| {
                json!({"target": target, "model": model, "examples": SIZES, "errors": errors})
            })
            .collect();
        writeln!(out, "{:#}", json!(rows))?;
        return Ok(Outcome::Done);
    }
    writeln!(
        out,
        "{BOLD}{:<22}{:<14}{:>8}{:>8}{:>8}{BOLD:#}   examples; error as a part of the variance",
        "function of query, set", "model", SIZES[0], SIZES[1], SIZES[2]
    )?;
    for (target, model, errors) in rows {
        let cells: String = errors.iter().map(|e| format!("{e:>8.3}")).collect();
        writeln!(out, "{target:<22}{model:<14}{cells}")?;
    }
    Ok(Outcome::Done)
}
