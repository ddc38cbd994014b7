//! What transformers that learn in context compute: Akyürek et al., What learning algorithm is
//! in-context learning? Investigations with linear models (ICLR 2023).
//!
//! Transformers of 1, 2 and 4 layers are trained on sequences of a linear function of four numbers,
//! and one on noisy ones; each is set beside estimators that are refitted for every prefix.
//! Transformers whose weights are written down compute two of these estimators. Probes say
//! which layers hold what least squares would find.

use keyfold_core::Progress;
use keyfold_inspect::in_context::algorithms::{Comparison, Predictor, compare};
use keyfold_inspect::in_context::constructed::{gradient_descent, ridge};
use keyfold_inspect::in_context::learner::{Learner, LearnerConfig, SequenceModel};
use keyfold_inspect::in_context::probe::{self, Held, ProbeConfig};
use keyfold_inspect::in_context::{Distribution, Sequence, Task};
use serde_json::json;

use crate::plot;
use crate::report::{Report, Table as Shown, reached};
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "icl-algorithms",
    about: "which estimator transformers of 1, 2 and 4 layers imitate in context, and what their hidden \
            states hold",
    run,
};

/// Pairs before the prediction at which models are compared: twice as many as numbers of `x`.
const PREFIX: usize = 8;

const NOISE: f64 = 0.5;

fn task(noise: f64) -> Task {
    Task {
        d: 4,
        n: 12,
        x: Distribution::default(),
        w: Distribution::default(),
        noise,
    }
}

fn predictors() -> Vec<Predictor> {
    let mut all = vec![
        Predictor::LeastSquares,
        Predictor::Ridge(0.1),
        Predictor::Ridge(0.25),
        Predictor::Ridge(0.5),
        Predictor::Ridge(1.0),
        Predictor::ConstantCovariance,
        Predictor::Sgd(0.01),
        Predictor::Sgd(0.03),
        Predictor::Gd(0.01),
        Predictor::Gd(0.02),
        Predictor::Neighbours(3),
        Predictor::NearNeighbours(5),
    ];
    // One step on the mean, at the rate that would suit each prefix alone: half is the
    // constant covariance.
    all.extend([0.2, 0.3, 0.4].map(|rate| Predictor::Steps(1, rate)));
    all.extend([2, 4].map(|steps| Predictor::Steps(steps, 0.3)));
    all
}

struct Trained {
    kind: SequenceModel,
    layers: usize,
    noise: f64,
    comparison: Comparison,
    /// By layer, what probes find.
    probes: Vec<Held>,
    curve: Vec<f64>,
}

impl Trained {
    /// Difference from an estimator at the prefix, as a part of the variance.
    fn from(&self, name: &str) -> f64 {
        let found = self.comparison.predictors.iter().find(|p| p.name == name);
        found.map_or(f64::NAN, |p| p.spd[PREFIX] / self.comparison.variance)
    }

    /// Difference from the nearest single step of gradient descent.
    fn one_step(&self) -> f64 {
        let steps = ["steps:1x0.2", "steps:1x0.3", "steps:1x0.4", "constant"];
        let far = steps.iter().map(|s| self.from(s));
        far.fold(f64::INFINITY, f64::min)
    }

    /// The estimator that is nearest at the prefix.
    fn nearest(&self) -> (&str, f64) {
        let all = self.comparison.predictors.iter();
        let best = all.min_by(|a, b| a.spd[PREFIX].total_cmp(&b.spd[PREFIX]));
        best.map_or(("none", f64::NAN), |p| {
            (&p.name, p.spd[PREFIX] / self.comparison.variance)
        })
    }
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    use SequenceModel::{Mamba, Transformer};
    let (steps, tests, probe_steps) = match options.scale {
        Scale::Smoke => (60, 200, 20),
        Scale::Small => (4_000, 1000, 2000),
        Scale::Full => (20_000, 4000, 2000),
    };
    let (programs, program_errors) = constructed(options.seed)?;
    let mut trained = Vec::new();
    for (kind, layers, noise) in [
        (Transformer, 1, 0.0),
        (Transformer, 2, 0.0),
        (Transformer, 4, 0.0),
        (Transformer, 4, NOISE),
        (Mamba, 2, 0.0),
    ] {
        let config = LearnerConfig {
            model: kind,
            ..LearnerConfig::small(task(noise), layers, steps, options.seed)
        };
        let mut model = Learner::new(config)?;
        let curve = model.train(progress)?;
        let sequences = task(noise).sample(tests, options.seed ^ 0x7e57);
        let probed = task(noise).sample(5 * tests, options.seed ^ 0x9a9a);
        let config = ProbeConfig {
            steps: probe_steps,
            seed: options.seed,
            ..ProbeConfig::default()
        };
        trained.push(Trained {
            kind,
            layers,
            noise,
            comparison: compare(&sequences, &model.predict(&sequences)?, &predictors())?,
            probes: probe::layers(&model, &probed, PREFIX, &config)?,
            curve,
        });
    }
    report(&trained, programs, program_errors, options.scale)
}

/// Programs beside the estimators that they compute: a table, and the greatest differences.
fn constructed(seed: u64) -> Result<(Shown, [f64; 2]), BenchError> {
    let half = Distribution::normal(0.5, 0.0);
    let task = Task {
        d: 3,
        n: 7,
        x: half.clone(),
        w: half,
        noise: 0.1,
    };
    let (rate, lambda, largest) = (0.1, 0.5, 5.0);
    let descent = gradient_descent(&task, rate, 0.0)?;
    let program = ridge(&task, lambda, largest)?;
    let inside = |s: &Sequence| {
        s.x.chunks_exact(s.d)
            .all(|x| x.iter().map(|x| x * x).sum::<f64>() < largest)
    };
    let sequences: Vec<Sequence> = task
        .sample(200, seed ^ 0xbead)
        .into_iter()
        .filter(inside)
        .take(50)
        .collect();
    // To have compared nothing is no success, nor is what is no number.
    let mut greatest = [if sequences.is_empty() { f64::NAN } else { 0.0 }; 2];
    for sequence in &sequences {
        let last = task.n - 1;
        let far = [
            descent.predict(sequence)? - Predictor::Sgd(rate).predict(sequence)[last],
            program.predict(sequence)? - Predictor::Ridge(lambda).predict(sequence)[last],
        ];
        for (greatest, far) in greatest.iter_mut().zip(far) {
            if far.is_nan() || far.abs() > *greatest {
                *greatest = far.abs();
            }
        }
    }
    let mut table = Shown::new(
        "transformers whose weights are written down",
        &["program", "layers", "width", "greatest difference"],
    );
    for (name, model, far) in [
        (
            "gradient descent, one pair at a time",
            &descent,
            greatest[0],
        ),
        ("ridge regression", &program, greatest[1]),
    ] {
        table.row([
            name.to_owned(),
            model.layers().to_string(),
            model.width().to_string(),
            format!("{far:.1e}"),
        ]);
    }
    Ok((table, greatest))
}

fn report(
    trained: &[Trained],
    programs: Shown,
    program_errors: [f64; 2],
    scale: Scale,
) -> Result<Report, BenchError> {
    let three = |x: f64| format!("{x:.3}");
    let mut table = Shown::new(
        &format!("difference from estimators after {PREFIX} pairs, as a part of the variance"),
        &[
            "model",
            "own error",
            "nearest",
            "its difference",
            "ols",
            "ridge:0.25",
            "one step",
            "knn:3",
        ],
    );
    let mut held = Shown::new(
        &format!("variance that a probe finds in hidden states after {PREFIX} pairs"),
        &[
            "model, layer",
            "X'y",
            "weights of least squares",
            "of other sequences",
            "weights, by a line from the last place",
        ],
    );
    let (mut values, mut lines) = (Vec::new(), Vec::new());
    for t in trained {
        let name = match (t.kind, t.noise > 0.0) {
            (SequenceModel::Mamba, _) => format!("{} layers of Mamba", t.layers),
            (_, true) => format!("{} layers, noise {}", t.layers, t.noise),
            (_, false) => format!("{} layers", t.layers),
        };
        let (nearest, far) = t.nearest();
        table.row([
            name.clone(),
            three(t.comparison.model[PREFIX] / t.comparison.variance),
            nearest.to_owned(),
            three(far),
            three(t.from("ols")),
            three(t.from("ridge:0.25")),
            three(t.one_step()),
            three(t.from("knn:3")),
        ]);
        for (layer, found) in t.probes.iter().enumerate() {
            held.row([
                format!("{name}, {layer}"),
                three(found.moments),
                three(found.weights),
                three(found.others),
                three(found.line),
            ]);
        }
        let points = t.comparison.model.iter().enumerate();
        let points = points.map(|(i, e)| (i as f64 + 1.0, e / t.comparison.variance));
        lines.push((name.clone(), points.collect()));
        values.push(json!({
            "model": t.kind, "layers": t.layers, "noise": t.noise, "comparison": t.comparison, "probes": t.probes,
            "curve": t.curve,
        }));
    }
    let ols = trained[2]
        .comparison
        .predictors
        .iter()
        .find(|p| p.name == "ols");
    if let Some(ols) = ols {
        let points = ols.mse.iter().enumerate();
        let variance = trained[2].comparison.variance;
        let points = points.map(|(i, e)| (i as f64 + 1.0, e / variance));
        lines.push(("least squares".to_owned(), points.collect()));
    }
    let (one, two, four, noisy) = (&trained[0], &trained[1], &trained[2], &trained[3]);
    let mamba = &trained[4];
    let ridges = ["ols", "ridge:0.1", "ridge:0.25", "ridge:0.5", "ridge:1"];
    let best = ridges
        .iter()
        .min_by(|a, b| noisy.from(a).total_cmp(&noisy.from(b)));
    let best = best.copied().unwrap_or("none");
    let last = four.probes.last().copied().unwrap_or_default();
    let findings = vec![
        format!(
            "aim: weights that are written down compute gradient descent and ridge regression to 0.001; {:.1e} \
             and {:.1e}: {}",
            program_errors[0],
            program_errors[1],
            reached(program_errors.iter().all(|e| *e < 1e-3))
        ),
        format!(
            "aim: four layers differ from least squares by less than 0.1 of the variance after {PREFIX} pairs, one \
             layer by more; {:.3} and {:.3}: {}",
            four.from("ols"),
            one.from("ols"),
            reached(four.from("ols") < 0.1 && one.from("ols") > four.from("ols"))
        ),
        format!(
            "aim: one layer is nearer to one step of gradient descent than to least squares; {:.3} against \
             {:.3}: {}",
            one.one_step(),
            one.from("ols"),
            reached(one.one_step() < one.from("ols"))
        ),
        format!(
            "aim: with noise of {NOISE} the nearest ridge is about {}, the Bayes answer; {best}: {}",
            NOISE * NOISE,
            reached(["ridge:0.1", "ridge:0.25", "ridge:0.5"].contains(&best))
        ),
        format!(
            "aim: late layers hold the weights; a probe of all places finds {:.2} of their variance after the \
             last of four layers ({:.2} a line from the last place), {:.2} of those of other sequences: {}{}",
            last.weights,
            last.line,
            last.others,
            reached(last.weights > 0.5 && last.weights > last.others),
            if scale == Scale::Smoke {
                " (smoke: hardly trained)"
            } else {
                ""
            }
        ),
        format!(
            "In the place of a transformer of two layers, which differs from least squares by {:.3}, two layers of \
             Mamba differ by {:.3}, and most like them is {}.",
            two.from("ols"),
            mamba.from("ols"),
            mamba.nearest().0
        ),
    ];
    let svg = plot::lines(
        "Error in context",
        "pairs, with the one that is predicted",
        "part of the variance",
        &lines,
    )?;
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables: vec![table, programs, held],
        findings,
        values: json!(values),
        svg,
    })
}
