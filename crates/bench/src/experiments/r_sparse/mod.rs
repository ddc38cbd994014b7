//! R-Sparse beside its parts and dense weights: errors on made-up weights, perplexity of a
//! real model, and the time of products and of whole models.
//!
//! Z. Zhang et al., 2025. Errors and times need nothing; `--model FILE` and `--data TEXT` add
//! perplexity, `--sweep` the search of every map's split. The model of the speed table has
//! random weights of Qwen3-0.6B's sizes: what it writes means nothing, its bytes do.

mod generator;
mod speed;
mod text;

use keyfold_core::Progress;
use serde_json::{Value, json};

use crate::plot::{self, Line};
use crate::report::{Report, Table};
use crate::{BenchError, BenchOptions, Experiment};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "r-sparse",
    about: "half of the weights unread: errors, perplexity (--model, --data) and speed beside dense weights",
    run,
};

/// What a part of the experiment gives.
struct Part {
    tables: Vec<Table>,
    findings: Vec<String>,
    values: Value,
    lines: Vec<Line>,
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let generator = generator::run(options, progress)?;
    let products = speed::products(options, progress)?;
    let model = speed::model(options, progress)?;
    let text = text::run(options, progress)?;
    let mut title = ("Error of a product", "relative error");
    let mut lines = generator.lines;
    let (mut tables, mut findings) = (generator.tables, generator.findings);
    let mut perplexity = Value::Null;
    match text {
        Some(part) => {
            tables.extend(part.tables);
            findings.extend(part.findings);
            perplexity = part.values;
            (lines, title) = (part.lines, ("Perplexity", "perplexity"));
        }
        None => findings.push(super::long_context::NOT_MEASURED.to_owned()),
    }
    for part in [&products, &model] {
        tables.extend(part.tables.iter().cloned());
        findings.extend(part.findings.iter().cloned());
    }
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({
            "generator": generator.values, "perplexity": perplexity, "products": products.values,
            "model": model.values,
        }),
        svg: plot::lines(title.0, "share of weights unread", title.1, &lines)?,
    })
}
