//! `keyfold predict score`.

use std::io::Write;
use std::path::PathBuf;

use keyfold_predict::{Classifier, Labels, Predictor, Regressor, describe, metrics};
use serde_json::json;

use super::input::{self, InputArgs, Notes, needed, read_examples};
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::output::terminal::BOLD;
use crate::progress::StderrProgress;

/// Say how good a model is on rows or texts whose labels are known
#[derive(Debug, clap::Args)]
pub(super) struct ScoreArgs {
    /// A folder that `keyfold predict fit` wrote
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A file of rows, - for standard input, or a folder with one sub-folder of texts for each class
    #[arg(value_name = "DATA")]
    data: PathBuf,
    #[command(flatten)]
    input: InputArgs,
    /// cs-bottleneck: also after each column was moved by so much against the model
    #[arg(long, value_name = "EPS")]
    attack: Option<f64>,
    /// The encoder of texts, where it is not found under the name that the model remembers
    #[arg(long = "model", value_name = "NAME", id = "encoder")]
    encoder: Option<String>,
}

pub(super) fn run(args: &ScoreArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let (method, notes) = describe(&args.model)?;
    let notes: Notes = serde_json::from_value(notes).unwrap_or_default();
    let progress = StderrProgress::new(globals.quiet, 20);
    let encoder = args.encoder.as_deref();
    let mut examples = read_examples(
        &args.data,
        &args.input,
        encoder,
        Some(&notes),
        globals,
        &progress,
    )?;
    let labels = needed(examples.labels.take())?;
    let mut out = anstream::stdout().lock();
    if method == "cs-bottleneck" {
        let model = Regressor::load(&args.model)?;
        let y = input::targets(&labels)?;
        let scaled = model.scaled(&examples.x)?;
        let standing = model.model().standing(&scaled, &y)?;
        let attacked = match args.attack {
            Some(eps) => {
                let moved = model.model().attacked(&scaled, &y, eps)?;
                Some(model.model().standing(&moved, &y)?.rmse)
            }
            None => None,
        };
        if globals.json {
            let all = json!({"method": method, "rows": y.len(), "standing": standing, "attacked_rmse": attacked});
            writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
            return Ok(Outcome::Done);
        }
        writeln!(out, "{BOLD}{method}{BOLD:#} on {} rows", y.len())?;
        writeln!(out, "RMSE           {:.5}", standing.rmse)?;
        writeln!(out, "MAE            {:.5}", standing.mae)?;
        writeln!(out, "R²             {:.4}", standing.r_squared)?;
        writeln!(out, "kept of rows   {:.4}", standing.compression)?;
        writeln!(out, "told of target {:.3} bits", standing.bits)?;
        if let Some(rmse) = attacked {
            writeln!(out, "RMSE attacked  {rmse:.5}")?;
        }
        return Ok(Outcome::Done);
    }
    if args.attack.is_some() {
        return Err(wrong_use("--attack is for cs-bottleneck"));
    }
    let model = Predictor::load(&args.model)?;
    let classes = model.classes().to_vec();
    let labels = Labels::among(&classes, &labels)?;
    let logits = model.logits(&examples.x)?;
    let k = classes.len();
    let told: Vec<usize> = logits
        .chunks_exact(k)
        .map(|row| model.decide(row))
        .collect();
    let probabilities = model.probabilities(&logits);
    let codes = labels.codes();
    let right = told.iter().zip(codes).filter(|(a, b)| a == b).count();
    let accuracy = right as f64 / codes.len() as f64;
    let confusion = metrics::confusion(&told, codes, k);
    let f = metrics::f_scores(&confusion);
    let macro_f = f.iter().sum::<f64>() / k as f64;
    let auc = match k {
        2 => {
            let scores: Vec<f64> = logits.chunks_exact(2).map(|s| s[1] - s[0]).collect();
            metrics::auc(&scores, &metrics::is_second(&labels))
        }
        _ => None,
    };
    let loss = metrics::log_loss(&probabilities, codes);
    let calibration = metrics::calibration_error(&probabilities, codes);
    if globals.json {
        let all = json!({
            "method": method,
            "rows": codes.len(),
            "accuracy": accuracy,
            "log_loss": loss,
            "calibration_error": calibration,
            "auc": auc,
            "macro_f": macro_f,
            "f": f,
            "classes": classes,
            "confusion": confusion,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(Outcome::Done);
    }
    writeln!(out, "{BOLD}{method}{BOLD:#} on {} rows", codes.len())?;
    writeln!(out, "accuracy           {accuracy:.4}")?;
    writeln!(out, "F, mean of classes {macro_f:.4}")?;
    if let Some(auc) = auc {
        writeln!(out, "area under ROC     {auc:.4}")?;
    }
    writeln!(out, "-ln p of the truth {loss:.4}")?;
    writeln!(out, "calibration error  {calibration:.4}")?;
    // Larger tables are for programs.
    if k <= 12 {
        let width = classes
            .iter()
            .map(|c| c.chars().count())
            .max()
            .unwrap_or(0)
            .max(6);
        let cells: Vec<String> = classes.iter().map(|c| format!("{c:>width$}")).collect();
        writeln!(out, "\n{:width$}  {}   told", "is", cells.join("  "))?;
        for (class, row) in classes.iter().zip(&confusion) {
            let cells: Vec<String> = row.iter().map(|n| format!("{n:>width$}")).collect();
            writeln!(out, "{class:width$}  {}", cells.join("  "))?;
        }
    }
    Ok(Outcome::Done)
}
