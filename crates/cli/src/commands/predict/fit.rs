//! `keyfold predict fit`.

use std::io::Write;
use std::path::{Path, PathBuf};

use keyfold_core::Progress;
use keyfold_predict::cauchy_schwarz::CauchySchwarzConfig;
use keyfold_predict::label_budgets::prefers_naive_bayes;
use keyfold_predict::{Classifier, Labels, Model, Predictor, Regressor, Scale, Table};
use serde_json::json;

use super::curve::{self, Curve};
use super::input::{self, Examples, InputArgs, Notes, covariates_last, needed, read_examples};
use super::methods::{Method, ScaleArg, Settings};
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::output::terminal::BOLD;
use crate::progress::StderrProgress;

/// Learn to tell the classes (or numbers) of rows or texts
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Probabilities are calibrated: scores of rows that a model of the other folds told are made as sure as \
they are right.

Settings for --set, by method: naive-bayes variances=shared|per-class, floor; logistic c, tol; \
supervised-dictionary n_components, xi, variant=filter|feature, solver=bcd|lpgd; key-value-bottleneck \
num_codebooks, key_value_pairs_per_codebook, dim_keys, epochs, \
splitting_mode=random_projection|chunk|learned_projection, \
decoder=codebook-voting-logits|linear-probe|mlp; cs-bottleneck loss=cs|mse|huber, beta, sigma, epochs. An unknown name is answered with the list.")]
pub(super) struct FitArgs {
    /// A file of rows (.npy, .npz, .csv, .tsv, .parquet, .safetensors), - for standard input, or a
    /// folder with one sub-folder of texts for each class
    #[arg(value_name = "DATA")]
    data: PathBuf,
    /// Folder for the model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How they are told
    #[arg(long, default_value = "auto")]
    method: Method,
    #[command(flatten)]
    input: InputArgs,
    /// Another value for a setting, as in c=0.1 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How columns are scaled (default: standard for logistic and cs-bottleneck on rows, minmax for
    /// supervised-dictionary, else none)
    #[arg(long, value_name = "HOW")]
    scale: Option<ScaleArg>,
    /// Folds that probabilities are calibrated with; 0 leaves them as they are
    #[arg(long, value_name = "N", default_value_t = 5)]
    folds: usize,
    /// supervised-dictionary: columns that tell the class but are not rebuilt, by name or number
    #[arg(long, value_name = "COLUMN,..", value_delimiter = ',')]
    covariates: Vec<String>,
    /// key-value-bottleneck: rows of any kind, without labels, that the keys are placed by
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Learn more rows, perhaps of new classes, into the model that is there
    #[arg(long = "continue", conflicts_with_all = ["set", "scale", "covariates", "keys", "budgets"])]
    go_on: bool,
    /// Measure naive Bayes and logistic regression with so many labels each
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    budgets: Vec<usize>,
    /// Draws for each budget
    #[arg(long, value_name = "N", default_value_t = 5, requires = "budgets")]
    repeats: usize,
    /// cs-bottleneck: fit with each of these and print how much is kept and told
    #[arg(long, value_name = "BETA,..", value_delimiter = ',')]
    beta_sweep: Vec<f64>,
    /// The encoder of texts: `builtin`, a folder or a hub name
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

/// The share of rows that is kept apart to measure on.
const SHARE: f64 = 0.3;

pub(super) fn run(args: &FitArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let occupied = args.out.join("config.json").is_file();
    if args.go_on {
        if !occupied {
            return Err(wrong_use(format!(
                "{} holds no model to go on with",
                args.out.display()
            )));
        }
        return go_on(args, globals);
    }
    if args.out.is_dir() && !occupied && args.out.read_dir()?.next().is_some() {
        return Err(wrong_use(format!(
            "{} holds other files and no model; choose another folder",
            args.out.display()
        )));
    }
    let progress = StderrProgress::new(globals.quiet, 20);
    let model = args.model.as_deref();
    let mut examples = read_examples(&args.data, &args.input, model, None, globals, &progress)?;
    let covariates = covariates_last(&mut examples, &args.covariates)?;
    if covariates > 0 && args.method != Method::SupervisedDictionary {
        return Err(wrong_use("--covariates is for supervised-dictionary"));
    }
    let labels = needed(examples.labels.take())?;
    if args.method == Method::CsBottleneck {
        return regression(args, globals, &examples, &labels, &progress);
    }
    if !args.beta_sweep.is_empty() {
        return Err(wrong_use("--beta-sweep is for cs-bottleneck"));
    }
    let labels = Labels::new(&labels);
    labels.check(examples.x.rows())?;
    let texts = examples.notes.encoder.is_some();
    let scale = |method: Method| args.scale.map_or(method.scale(texts), Scale::from);
    let curve = match budgets(args, examples.x.rows()) {
        budgets if budgets.is_empty() => None,
        budgets => Some(curve::measure(
            &examples.x,
            &labels,
            &budgets,
            (args.repeats, SHARE),
            (scale(Method::Logistic), globals.seed),
            &progress,
        )?),
    };
    let method = match (args.method, &curve) {
        (Method::Auto, Some(curve)) => {
            match prefers_naive_bayes(&curve.points, examples.x.rows()) {
                true => Method::NaiveBayes,
                false => Method::Logistic,
            }
        }
        (method, _) => method,
    };
    let columns = examples.x.columns();
    let settings = Settings::new(method, &args.set, globals.seed, covariates, columns)?;
    let keys = match &args.keys {
        Some(path) => Some(keys(
            path,
            args,
            globals,
            &examples,
            scale(method),
            &progress,
        )?),
        None => None,
    };
    let folds = (args.folds > 0).then_some(args.folds);
    progress.start("fitting", "steps", None);
    let mut predictor = Predictor::fit(
        &examples.x,
        &labels,
        scale(method),
        folds,
        globals.seed,
        &progress,
        |x, labels| settings.fit(x, labels, keys.as_ref(), &progress),
    )?;
    progress.finish();
    predictor.notes = serde_json::to_value(&examples.notes)?;
    predictor.save(&args.out)?;
    report(&predictor, &examples.x, &labels, curve.as_ref(), globals)?;
    Ok(Outcome::Done)
}

/// The budgets to measure: as named, or for `auto` some that the rows allow.
fn budgets(args: &FitArgs, rows: usize) -> Vec<usize> {
    if !args.budgets.is_empty() || args.method != Method::Auto {
        return args.budgets.clone();
    }
    let most = rows - ((rows as f64 * SHARE).round() as usize).max(1);
    let some = [most / 4, most / 2, most];
    let mut some: Vec<usize> = some.into_iter().filter(|n| *n >= 20).collect();
    some.dedup();
    if some.is_empty() {
        some.push(most.max(1));
    }
    some
}

/// Rows that place keys, on the scale of the rows that are learned.
fn keys(
    path: &Path,
    args: &FitArgs,
    globals: &Globals,
    examples: &Examples,
    scale: Scale,
    progress: &StderrProgress,
) -> anyhow::Result<Table> {
    if args.method != Method::KeyValueBottleneck {
        return Err(wrong_use("--keys is for key-value-bottleneck"));
    }
    let notes = Some(&examples.notes);
    let input = InputArgs::default();
    let found = read_examples(
        path,
        &input,
        args.model.as_deref(),
        notes,
        globals,
        progress,
    )?;
    let scaler = keyfold_predict::Scaler::fit(scale, &examples.x);
    Ok(scaler.apply(&found.x)?)
}

/// Learns more rows into a model that is there.
fn go_on(args: &FitArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let progress = StderrProgress::new(globals.quiet, 20);
    let mut predictor = Predictor::load(&args.out)?;
    let notes: Notes = serde_json::from_value(predictor.notes.clone()).unwrap_or_default();
    let model = args.model.as_deref();
    let mut examples = read_examples(
        &args.data,
        &args.input,
        model,
        Some(&notes),
        globals,
        &progress,
    )?;
    let labels = Labels::new(&needed(examples.labels.take())?);
    progress.start("learning", "steps", None);
    predictor.partial_fit(&examples.x, &labels, &progress)?;
    progress.finish();
    predictor.save(&args.out)?;
    report(&predictor, &examples.x, &labels, None, globals)?;
    Ok(Outcome::Done)
}

/// Says what was learned.
fn report(
    predictor: &Predictor,
    x: &Table,
    labels: &Labels,
    curve: Option<&Curve>,
    globals: &Globals,
) -> anyhow::Result<()> {
    let fitted = predictor.score(x, labels)?;
    let told = match predictor.model() {
        Model::Logistic(_, model) => json!(model.told()),
        Model::SupervisedDictionary(model) => json!(model.told()),
        Model::KeyValueBottleneck(model) => json!({"unused_pairs": model.unused()}),
        Model::NaiveBayes(_) => json!({}),
    };
    let mut out = anstream::stdout().lock();
    if globals.json {
        let all = json!({
            "method": predictor.model().name(),
            "rows": x.rows(),
            "columns": x.columns(),
            "classes": predictor.classes(),
            "accuracy_on_these_rows": fitted,
            "calibration": predictor.calibration(),
            "fit": told,
            "curve": curve,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(());
    }
    if let Some(curve) = curve {
        curve::print(&mut out, curve)?;
    }
    writeln!(
        out,
        "{BOLD}{}{BOLD:#}: {} rows, {} columns, {} classes; {:.2} % of these rows are told right",
        predictor.model().name(),
        x.rows(),
        x.columns(),
        predictor.classes().len(),
        100.0 * fitted
    )?;
    if let Some(found) = predictor.calibration() {
        writeln!(
            out,
            "by folds {:.2} % are told right; calibration error {:.4}, before {:.4} (temperature {:.3})",
            100.0 * found.accuracy,
            found.error_after,
            found.error_before,
            found.temperature
        )?;
    }
    if let Model::Logistic(_, model) = predictor.model()
        && !model.told().stopped.is_converged()
    {
        writeln!(
            out,
            "not converged after {} steps (gradient {:.1e}): raise max_iter, or scale the columns",
            model.told().iterations,
            model.told().gradient
        )?;
    }
    if let Model::SupervisedDictionary(model) = predictor.model() {
        writeln!(
            out,
            "relative reconstruction error {:.4}",
            model.told().reconstruction
        )?;
    }
    Ok(())
}

/// Fits a regression, or one for each beta.
fn regression(
    args: &FitArgs,
    globals: &Globals,
    examples: &Examples,
    labels: &[String],
    progress: &StderrProgress,
) -> anyhow::Result<Outcome> {
    let y = input::targets(labels)?;
    let columns = examples.x.columns();
    let settings = Settings::new(args.method, &args.set, globals.seed, 0, columns)?;
    let Settings::CsBottleneck(config) = settings else {
        return Err(wrong_use("cs-bottleneck tells numbers"));
    };
    let texts = examples.notes.encoder.is_some();
    let scale = args.scale.map_or(args.method.scale(texts), Scale::from);
    let sweep: Vec<f64> = match args.beta_sweep.is_empty() {
        true => vec![config.beta],
        false => args.beta_sweep.clone(),
    };
    let total = (sweep.len() * config.epochs) as u64;
    progress.start("fitting", "passes", Some(total));
    let mut lines = Vec::new();
    // The last is the one that is kept.
    for beta in sweep {
        let config = CauchySchwarzConfig { beta, ..config };
        let mut model = Regressor::fit(&examples.x, &y, scale, &config, progress)?;
        let standing = model.standing(&examples.x, &y)?;
        lines.push((beta, standing));
        model.notes = serde_json::to_value(&examples.notes)?;
        model.save(&args.out)?;
    }
    progress.finish();
    let mut out = anstream::stdout().lock();
    if globals.json {
        let plane: Vec<_> = (lines.iter())
            .map(|(beta, standing)| json!({"beta": beta, "on_these_rows": standing}))
            .collect();
        let all = json!({
            "method": "cs-bottleneck",
            "rows": examples.x.rows(),
            "columns": examples.x.columns(),
            "plane": plane,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(Outcome::Done);
    }
    writeln!(
        out,
        "{BOLD}{:>8}  {:>10}  {:>10}  {:>8}  {:>6}{BOLD:#}   on these {} rows",
        "beta",
        "RMSE",
        "MAE",
        "kept",
        "bits",
        examples.x.rows()
    )?;
    for (beta, s) in lines {
        writeln!(
            out,
            "{beta:>8}  {:>10.5}  {:>10.5}  {:>8.4}  {:>6.3}",
            s.rmse, s.mae, s.compression, s.bits
        )?;
    }
    Ok(Outcome::Done)
}
