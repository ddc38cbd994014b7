//! What one layer of attention learns with heads that do not change: Fu et al., What can a Single
//! Attention Layer Learn? A Study Through the Random Features Lens (NeurIPS 2023).
//!
//! Random heads, biased random heads and a random layer on everything at once learn four
//! functions of a query and a set from more and more examples. Errors are parts of the
//! variance on fresh examples.

use keyfold_core::Progress;
use keyfold_inspect::random_features::{
    Kind, RandomFeaturePredictor, RandomFeaturesConfig, Target, synthetic,
};
use serde_json::json;

use crate::plot;
use crate::report::{Report, Table as Shown, reached};
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "random-feature-attention",
    about: "functions of a query and a set from few examples: random attention against a random layer",
    run,
};

const D: usize = 8;
const SET: usize = 8;

/// The targets, by name and powers of the products with the query and with a direction.
const TARGETS: [(&str, u32, u32); 4] = [
    ("mean <b, x>^2", 0, 2),
    ("mean <b, x>^4", 0, 4),
    ("mean <q, x>^2", 2, 0),
    ("mean <q, x>^3 <b, x>", 3, 1),
];

const MODELS: [&str; 3] = ["attention", "biased attention", "random layer"];

/// What the specification's own run gave with 2,000 examples, by target and model; none where it
/// says nothing.
const THEN: [[f64; 3]; 4] = [
    [0.035, 0.079, 0.99],
    [0.23, f64::NAN, 1.00],
    [1.02, 0.66, f64::NAN],
    [0.33, 0.32, 0.59],
];

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (sizes, seeds, heads): (&[usize], u64, usize) = match options.scale {
        Scale::Smoke => (&[100, 300], 1, 40),
        Scale::Small => (&[100, 300, 1000, 2000], 1, 150),
        Scale::Full => (&[100, 300, 1000, 2000, 4000, 8000], 5, 150),
    };
    let total = TARGETS.len() * MODELS.len() * sizes.len() * seeds as usize;
    progress.start("random features", "fits", Some(total as u64));
    // By target, model, size: mean over seeds.
    let mut errors = vec![vec![vec![0.0; sizes.len()]; MODELS.len()]; TARGETS.len()];
    for seed in 0..seeds {
        let seed = options.seed.wrapping_add(seed);
        for (target, (_, query_power, direction_power)) in TARGETS.iter().enumerate() {
            let target_fn = Target {
                query_power: *query_power,
                direction_power: *direction_power,
            };
            let most = sizes.iter().copied().max().unwrap_or(0);
            let learn = synthetic(target_fn, (D, SET), most, seed, 0);
            let test = synthetic(target_fn, (D, SET), 2000, seed, 1);
            for (model, errors) in errors[target].iter_mut().enumerate() {
                let config = RandomFeaturesConfig {
                    kind: if model == 2 {
                        Kind::Mlp
                    } else {
                        Kind::Attention
                    },
                    biased: model == 1,
                    heads,
                    seed,
                    ..RandomFeaturesConfig::default()
                };
                for (error, size) in errors.iter_mut().zip(sizes) {
                    if progress.cancelled() {
                        return Err(BenchError::Cancelled);
                    }
                    let fitted = RandomFeaturePredictor::fit(&config, &learn[..*size])?;
                    *error += fitted.relative_error(&test)? / seeds as f64;
                    progress.advance(1);
                }
            }
        }
    }
    progress.finish();
    report(sizes, &errors, options.scale)
}

fn report(sizes: &[usize], errors: &[Vec<Vec<f64>>], scale: Scale) -> Result<Report, BenchError> {
    let heads: Vec<String> = sizes.iter().map(|n| format!("{n} examples")).collect();
    let mut columns: Vec<&str> = vec!["target, model"];
    columns.extend(heads.iter().map(String::as_str));
    columns.push("specification");
    let mut table = Shown::new("squared error as a part of the variance", &columns);
    let (mut values, mut lines) = (Vec::new(), Vec::new());
    for ((name, ..), (by_model, then)) in TARGETS.iter().zip(errors.iter().zip(THEN)) {
        for ((model, errors), then) in MODELS.iter().zip(by_model).zip(then) {
            let mut row = vec![format!("{name}, {model}")];
            row.extend(errors.iter().map(|e| format!("{e:.3}")));
            row.push(match then.is_finite() {
                true => format!("{then} at 2000"),
                false => String::new(),
            });
            table.rows.push(row);
            values
                .push(json!({"target": name, "model": model, "examples": sizes, "errors": errors}));
            let points = sizes.iter().zip(errors).map(|(n, e)| (*n as f64, *e));
            lines.push((format!("{name}, {model}"), points.collect()));
        }
    }
    let last = |target: usize, model: usize| errors[target][model].last().copied().unwrap_or(0.0);
    let findings = vec![
        format!(
            "aim: random attention learns averages over the set with far fewer examples than a random \
             layer; {:.3} and {:.3} against {:.2} and {:.2}: {}",
            last(0, 0),
            last(1, 0),
            last(0, 2),
            last(1, 2),
            reached(last(0, 0) < 0.2 * last(0, 2) && last(1, 0) < 0.6 * last(1, 2))
        ),
        format!(
            "aim: biased heads win where the target is the product with the query; {:.2} against {:.2}: {}",
            last(2, 1),
            last(2, 0),
            reached(last(2, 1) < last(2, 0))
        ),
        format!(
            "aim: heads without bias suit functions of the set alone; {:.3} against {:.3}: {}{}",
            last(0, 0),
            last(0, 1),
            reached(last(0, 0) < last(0, 1)),
            if scale == Scale::Smoke {
                " (smoke: too few examples to say)"
            } else {
                ""
            }
        ),
    ];
    let svg = plot::lines(
        "Error by number of examples",
        "examples",
        "part of the variance",
        &lines,
    )?;
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables: vec![table],
        findings,
        values: json!(values),
        svg,
    })
}
