//! Sparse autoencoders against dictionaries computed from labels: Makelov et al., Towards Principled
//! Evaluations of Sparse Autoencoders for Interpretability and Control (2024).
//!
//! First on rows whose parts are known, then on a model of two layers of attention that is
//! trained here on the task of the indirect object: how much of its logit difference survives
//! reconstruction, whether few features change one attribute, and what features stand for.

mod planted;
mod task;

use keyfold_core::Progress;
use serde_json::json;

use crate::plot;
use crate::report::{Report, reached};
use crate::{BenchError, BenchOptions, Experiment};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "sae-evaluation",
    about: "sparse autoencoders against supervised dictionaries: approximation, control by edits, meaning; \
            occlusion and over-splitting",
    run,
};

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let planted = planted::run(options, progress)?;
    let task = task::run(options, progress)?;
    let mut tables = planted.tables;
    tables.extend(task.tables);
    let (sup, sae) = (&task.supervised, &task.autoencoder);
    let findings = vec![
        format!(
            "aim: on rows of known parts, supervised codes leave less than autoencoders; {:.4} (least \
             squares), {:.4} (means), {:.3}: {}",
            planted.mse,
            planted.mean,
            planted.sae,
            reached(planted.mse < planted.mean && planted.mean < planted.sae)
        ),
        format!(
            "aim: an attribute that is half as large as another gets worse features (occlusion); F1 of io {:.2} \
             to {:.2}, of s {:.2} to {:.2}: {}",
            planted.occlusion[0],
            planted.occlusion[1],
            planted.occlusion[2],
            planted.occlusion[3],
            reached(planted.occlusion[1] < planted.occlusion[0])
        ),
        format!(
            "aim: a binary attribute is spread over several features (over-splitting); up to {} features stand \
             for one value alone, the best of them is active on {:.0} % of its prompts: {}",
            planted.splitting.0,
            100.0 * planted.splitting.1,
            reached(planted.splitting.0 > 1)
        ),
        format!(
            "the small model names the indirect object in {:.1} % of prompts",
            100.0 * task.accuracy
        ),
        format!(
            "aim: supervised dictionaries recover the whole logit difference; {:.3} (autoencoder {:.3}): {}",
            sup.recovered,
            sae.recovered,
            reached((sup.recovered - 1.0).abs() < 0.05)
        ),
        format!(
            "aim: supervised edits do what the true patch does, autoencoders' are worse at 4 features; names \
             the new indirect object in {:.2} and {:.2} of prompts (patch {:.2}): {}",
            sup.counterfactual,
            sae.counterfactual,
            task.patch,
            reached(
                sup.counterfactual > task.patch - 0.1 && sae.counterfactual < sup.counterfactual
            )
        ),
        format!(
            "aim: most features that can be explained stand for io and s, few for io_pos; {} / {} / {}: {}",
            sae.explained[0],
            sae.explained[1],
            sae.explained[2],
            if sae.explained == [0; 3] {
                "none can be explained, so that nothing follows"
            } else {
                reached(sae.explained[2] <= sae.explained[0].max(sae.explained[1]))
            }
        ),
    ];
    let svg = plot::bars(
        "Prompts whose edit names the new indirect object",
        "share of prompts",
        &task.bars,
        Some(task.patch),
    )?;
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({"planted": planted.values, "task": task.values}),
        svg,
    })
}
