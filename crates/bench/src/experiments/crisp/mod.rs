//! CRISP: fewer vectors for a text, by clustering, and what that costs.
//!
//! *A model as it is*: the vectors of documents are folded after encoding, in every
//! way that `index --fold` has, and put into a store of 4 bits; bytes against
//! nDCG@10, with whole queries and with folded ones.
//!
//! *A model that is trained for it*: the small encoder of [`crate::toy`] is trained
//! with all vectors, then goes on from there with the vectors of both sides folded,
//! each way for as many steps, beside as many steps without folding whose vectors are
//! folded afterwards.
//!
//! *A model of the user's* (`--model` and `--pairs`), trained on her pairs in the two stages
//! of the publication, each fold beside as many steps without (see [`real`]), in the place
//! of the small encoder.
//!
//! *Time*: folding one passage, beside PyLate's pooling if a `--peer` runs it (see
//! [`speed`]).
//!
//! Takes a collection (`--data`; see the experiment `search` for its files), by
//! default the little one of the project.

mod posthoc;
mod real;
mod speed;
mod trained;

use keyfold_core::Progress;
use serde_json::json;

use super::search::{Collection, fixture, read};
use crate::quality::ndcg;
use crate::report::Report;
use crate::{BenchError, BenchOptions, Experiment, plot};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "crisp",
    about: "folding of token vectors: bytes against nDCG@10, as it is and trained for it",
    run,
};

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let collection = match &options.data {
        Some(folder) => read(folder)?,
        None => fixture()?,
    };
    // With pairs, `--model` is one to be trained, which has no vectors of tokens yet.
    let as_it_is = BenchOptions {
        model: options.model.clone().filter(|_| options.pairs.is_none()),
        ..options.clone()
    };
    let posthoc = posthoc::run(&collection, &as_it_is, progress)?;
    let real = real::run(&collection, options, progress)?;
    // A model that learned from real pairs says more than the small encoder.
    let trained = match &real {
        Some(_) => None,
        None => Some(trained::run(&collection, options, progress)?),
    };
    let speed = speed::run(&posthoc.rows, options, progress)?;
    let mut findings = posthoc.findings();
    findings.extend(trained.iter().flat_map(trained::Trained::findings));
    let mut tables = vec![posthoc.table()];
    tables.extend(trained.as_ref().map(trained::Trained::table));
    if let Some(real) = &real {
        findings.extend(real.findings());
        tables.push(real.table());
    }
    findings.extend(speed.findings);
    tables.extend(speed.tables);
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({
            "documents": collection.documents.len(),
            "queries": collection.queries.len(),
            "post_hoc": posthoc.values(),
            "trained": trained.as_ref().map(trained::Trained::values),
            "real": real.as_ref().map(real::Real::values),
            "speed": speed.values,
        }),
        svg: match &real {
            Some(real) => plot::lines(
                "What folding costs, afterwards and trained so",
                "vectors of a document",
                "nDCG@10",
                &real.lines(),
            )?,
            None => plot::lines(
                "What folding costs, model as it is",
                "bytes of vectors for a passage",
                "nDCG@10",
                &posthoc.lines(),
            )?,
        },
    })
}

/// nDCG@10 of every query.
fn quality(lists: &[Vec<usize>], collection: &Collection) -> Vec<f64> {
    let pairs = lists.iter().zip(&collection.relevant);
    pairs.map(|(list, r)| ndcg(list, r, 10)).collect()
}
