//! Online orthogonal dictionaries by Frank-Wolfe steps (Xue and Lau 2021), beside the schedule
//! of convex problems, an online alternating learner, and fixed bases.
//!
//! Recovery: rows `D x` with a random orthogonal `D` and `x` Bernoulli-Gaussian; the error is
//! `|Σ (A D)⁴ / n - 1|` after so many batches, the median over seeds. Patches: what part of
//! the energy of 8 x 8 patches is lost when 8 of 64 numbers are kept.

mod patches;
mod recovery;

use keyfold_core::Progress;
use keyfold_dictionary::DictionaryError;
use serde_json::json;

use crate::report::{Report, reached};
use crate::{BenchError, BenchOptions, Experiment, Scale, plot};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "frank-wolfe-dictionary",
    about: "orthonormal atoms from a stream: how fast they are found, and what they keep of patches",
    run,
};

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let recovery = recovery::run(options, progress)?;
    let patches = patches::run(options, progress)?;
    let mut findings = Vec::new();
    for case in &recovery.cases {
        findings.push(format!(
            "Aim: with {} columns, activity {} and batches of {}, the published steps come nearer than those \
             of convex problems: {} ({} against {}).",
            case.n,
            case.theta,
            case.batch,
            reached(case.last(recovery::Way::Clamped) < case.last(recovery::Way::Sfw)),
            plot::shown(case.last(recovery::Way::Clamped)),
            plot::shown(case.last(recovery::Way::Sfw)),
        ));
    }
    let online = recovery
        .online
        .iter()
        .map(|(_, e)| *e)
        .fold(f64::INFINITY, f64::min);
    findings.push(format!(
        "Aim: in one pass, a lower error than online alternating minimisation at its best weight: {} ({} \
         against {}).",
        reached(recovery.ours < online),
        plot::shown(recovery.ours),
        plot::shown(online)
    ));
    for picture in &patches.pictures {
        let best = picture.dct.min(picture.pca);
        findings.push(format!(
            "Aim: on {}, less energy lost than by the cosine basis and by principal components: {} ({:.4} \
             against {best:.4}).",
            picture.name,
            reached(picture.ours_from_dct < best && picture.ours < best),
            picture.ours.max(picture.ours_from_dct),
        ));
    }
    let lines: Vec<plot::Line> = recovery.lines();
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        findings,
        values: json!({
            "recovery": recovery.values(),
            "online": recovery.online.iter().map(|(alpha, error)| json!({"alpha": alpha, "error": error})).collect::<Vec<_>>(),
            "frank_wolfe_on_that_stream": recovery.ours,
            "patches": patches.values(),
            "seed": options.seed,
            "scale": options.scale,
        }),
        svg: plot::log_lines(
            "Finding an orthogonal dictionary",
            "batches",
            "error",
            &lines,
        )?,
        tables: vec![recovery.table(), recovery.online_table(), patches.table()],
    })
}

/// Data of the experiment's own is always fit to learn from.
fn failed(error: DictionaryError) -> BenchError {
    BenchError::data("frank-wolfe-dictionary", error.to_string())
}

/// How many of something a scale asks for.
fn by_scale(scale: Scale, smoke: usize, small: usize, full: usize) -> usize {
    match scale {
        Scale::Smoke => smoke,
        Scale::Small => small,
        Scale::Full => full,
    }
}
