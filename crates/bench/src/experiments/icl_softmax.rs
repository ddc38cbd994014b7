//! Circuits of softmax attention that learns in context: He et al., In-Context Linear Regression
//! Demystified (ICML 2025).
//!
//! One layer with one, two and four heads is trained on linear regression of 5 numbers with 40
//! examples, then read: what each head compares and writes. Errors at several lengths stand
//! beside the estimators of the theory. Then two tasks at once with two, three and four heads, and
//! `x` whose numbers are of different size.

use std::time::Instant;

use keyfold_core::Progress;
use keyfold_inspect::in_context::softmax::{
    Estimator, Head, Prompts, SoftmaxConfig, single_head_optimum, train, two_head_step,
};
use serde_json::{Value, json};

use crate::plot;
use crate::report::{Report, Table as Shown, reached};
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "icl-softmax",
    about: "heads of softmax attention trained on regression in context: opposite pairs, and the errors \
            that the theory tells",
    run,
};

const LENGTHS: [usize; 4] = [10, 20, 40, 100];

/// Errors that the specification's own runs gave at these lengths.
const THEN: [(usize, [f64; 4]); 3] = [
    (1, [0.840, 0.578, 0.404, 0.278]),
    (2, [0.597, 0.362, 0.247, 0.170]),
    (4, [0.578, 0.366, 0.245, 0.167]),
];

/// And those of the estimators, at 10, 40 and 100.
const ESTIMATORS_THEN: [(&str, [f64; 3]); 5] = [
    ("two heads", [0.604, 0.243, 0.164]),
    ("gradient descent", [0.643, 0.241, 0.162]),
    ("centred gradient descent", [0.614, 0.243, 0.163]),
    ("one head", [0.875, 0.405, 0.284]),
    ("ridge (Bayes)", [0.194, 0.115, 0.104]),
];

struct Trained {
    heads: usize,
    circuits: Vec<Head>,
    errors: Vec<f64>,
    seconds: f64,
    curve: Vec<f64>,
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (steps, tests) = match options.scale {
        Scale::Smoke => (400, 2000),
        Scale::Small => (20_000, 20_000),
        Scale::Full => (500_000, 20_000),
    };
    let config = |heads: usize| SoftmaxConfig {
        heads,
        steps,
        seed: options.seed,
        ..SoftmaxConfig::default()
    };
    let plain = config(2);
    let prompts: Vec<Prompts> = LENGTHS
        .iter()
        .map(|length| Prompts::sample(&plain, *length, tests, options.seed ^ 0xabcd))
        .collect();
    let mut trained = Vec::new();
    for (heads, _) in THEN {
        let start = Instant::now();
        let (model, curve) = train(&config(heads), progress)?;
        trained.push(Trained {
            heads,
            seconds: start.elapsed().as_secs_f64(),
            circuits: model.circuits(),
            errors: prompts
                .iter()
                .map(|p| model.error(p))
                .collect::<Result<_, _>>()?,
            curve,
        });
    }
    let extended = extended(&plain, tests, progress)?;
    let estimators: Vec<Vec<f64>> = prompts
        .iter()
        .map(
            |prompts| -> Result<Vec<f64>, keyfold_inspect::InspectError> {
                // As of heads that were trained at one length.
                let step = two_head_step(plain.d, plain.length, plain.sigma2);
                let (omega, mu) = single_head_optimum(plain.d, plain.length, plain.sigma2);
                let all = [
                    Estimator::TwoHeads { omega: 0.1, step },
                    Estimator::GradientDescent { step },
                    Estimator::Debiased { step },
                    Estimator::OneHead { omega, mu },
                    Estimator::Ridge {
                        alpha: plain.sigma2 * plain.d as f64,
                    },
                ];
                all.iter().map(|e| e.error(prompts)).collect()
            },
        )
        .collect::<Result<_, _>>()?;
    report(&trained, &estimators, extended, &plain)
}

/// Standard deviations of `x` where they differ.
const SPREAD: [f64; 5] = [1.5, 1.25, 1.0, 0.75, 0.5];

/// Two tasks at once with too few, with three and with enough heads, and `x` of several sizes.
struct Extended {
    table: Shown,
    findings: Vec<String>,
    values: Value,
}

fn extended(
    plain: &SoftmaxConfig,
    tests: usize,
    progress: &dyn Progress,
) -> Result<Extended, BenchError> {
    let mut table = Shown::new(
        "two tasks of x[..4] and x[2..] of 6 numbers, and x of spread 1.5 to 0.5",
        &["model, head", "diagonal of KQ", "mu by task", "error"],
    );
    let mut values = Vec::new();
    let mut errors = Vec::new();
    // By heads: how much of each head's mu is that of its greater task, the least of them.
    let mut shared = Vec::new();
    let mut weighed = [0.0; 2];
    let two = |heads: usize| SoftmaxConfig {
        heads,
        d: 6,
        tasks: 2,
        ..plain.clone()
    };
    let uneven = SoftmaxConfig {
        heads: 2,
        spread: SPREAD.to_vec(),
        ..plain.clone()
    };
    let cases = [
        ("two tasks, 2 heads", two(2)),
        ("two tasks, 3 heads", two(3)),
        ("two tasks, 4 heads", two(4)),
        ("uneven x, 2 heads", uneven),
    ];
    for (name, config) in cases {
        let (model, _) = train(&config, progress)?;
        let prompts = Prompts::sample(&config, config.length, tests, config.seed ^ 0xabcd);
        let error = model.error(&prompts)?;
        let row = config.d + config.tasks;
        let mut least = 1.0f64;
        let mut heads = Vec::new();
        for (i, head) in model.circuits().iter().enumerate() {
            let kq = model.kq(i);
            let diagonal: Vec<f32> = (0..config.d).map(|j| kq[j * row + j]).collect();
            let sizes: Vec<f64> = head.mu.iter().map(|m| m.abs()).collect();
            let most = sizes.iter().copied().fold(0.0, f64::max);
            least = least.min(most / sizes.iter().sum::<f64>().max(1e-12));
            table.row([
                format!("{name}, {}", i + 1),
                join(diagonal.iter().map(|x| format!("{x:.2}"))),
                join(head.mu.iter().map(|m| format!("{m:.2}"))),
                format!("{error:.3}"),
            ]);
            heads.push(json!({"diagonal": diagonal, "mu": head.mu}));
            if config.tasks == 1 && i == 0 {
                weighed = [diagonal[0], diagonal[4]].map(|x| f64::from(x.abs()));
            }
        }
        errors.push(error);
        shared.push(least);
        values.push(json!({"model": name, "error": error, "heads": heads}));
    }
    let findings = vec![
        format!(
            "aim: four heads give each of two tasks a pair of its own, three share one between them \
             (superposition): of the head that serves both most evenly, the greater task has {:.2} (four) and \
             {:.2} (three) of mu: {}",
            shared[2],
            shared[1],
            reached(shared[2] > 0.9 && shared[1] < 0.9)
        ),
        format!(
            "two, three and four heads for two tasks: errors {:.3} / {:.3} / {:.3}",
            errors[0], errors[1], errors[2]
        ),
        format!(
            "aim: with numbers of x of different size KQ is a pre-conditioner: it weighs the smallest (spread \
             0.5) by {:.3}, the largest (1.5) by {:.3}: {}",
            weighed[1],
            weighed[0],
            reached(weighed[1] > weighed[0])
        ),
    ];
    Ok(Extended {
        table,
        findings,
        values: json!(values),
    })
}

fn join(numbers: impl Iterator<Item = String>) -> String {
    numbers.collect::<Vec<_>>().join(" ")
}

fn report(
    trained: &[Trained],
    estimators: &[Vec<f64>],
    extended: Extended,
    config: &SoftmaxConfig,
) -> Result<Report, BenchError> {
    let three = |x: f64| format!("{x:.3}");
    let names: Vec<String> = LENGTHS.iter().map(|l| format!("{l} examples")).collect();
    let mut columns = vec!["model"];
    columns.extend(names.iter().map(String::as_str));
    columns.push("specification");
    let mut errors = Shown::new("squared error on fresh prompts", &columns);
    let mut heads = Shown::new(
        "what heads do",
        &["heads, head", "omega", "mu", "away from it", "role"],
    );
    let (mut values, mut lines) = (Vec::new(), Vec::new());
    for (t, (_, then)) in trained.iter().zip(THEN) {
        let mut row = vec![format!("{} heads, trained", t.heads)];
        row.extend(t.errors.iter().map(|e| three(*e)));
        row.push(then.map(|x| format!("{x}")).join(" / "));
        errors.rows.push(row);
        for (i, h) in t.circuits.iter().enumerate() {
            heads.row([
                format!("{} heads, {}", t.heads, i + 1),
                three(h.omega),
                three(h.mu[0]),
                three(h.spread),
                h.role.to_owned(),
            ]);
        }
        values.push(json!({
            "heads": t.heads, "lengths": LENGTHS, "errors": t.errors, "circuits": t.circuits,
            "seconds": t.seconds, "curve": t.curve,
        }));
        let points = LENGTHS.iter().zip(&t.errors).map(|(l, e)| (*l as f64, *e));
        lines.push((format!("{} heads, trained", t.heads), points.collect()));
    }
    for (at, (name, then)) in ESTIMATORS_THEN.iter().enumerate() {
        let of: Vec<f64> = estimators.iter().map(|e| e[at]).collect();
        let mut row = vec![(*name).to_owned()];
        row.extend(of.iter().map(|e| three(*e)));
        row.push(format!("{} / - / {} / {}", then[0], then[1], then[2]));
        errors.rows.push(row);
        values.push(json!({"estimator": name, "lengths": LENGTHS, "errors": of}));
        let points = LENGTHS.iter().zip(&of).map(|(l, e)| (*l as f64, *e));
        lines.push(((*name).to_owned(), points.collect()));
    }
    let pair = &trained[1];
    let (one, two) = (&pair.circuits[0], &pair.circuits[1]);
    let opposite =
        one.omega * two.omega < 0.0 && (one.mu[0] + two.mu[0]).abs() < 0.2 * one.mu[0].abs();
    let step: f64 = pair.circuits.iter().map(|h| h.omega * h.mu[0]).sum();
    let formula = two_head_step(config.d, config.length, config.sigma2);
    let (found, theory) = (pair.errors[2], estimators[2][2]);
    let four = &trained[2];
    let sum: f64 = four.circuits.iter().map(|h| h.mu[0]).sum();
    let mut findings = vec![
        format!(
            "aim: two heads become opposites, whose mu sum to 0; omega {:.3} and {:.3}, mu {:.2} and {:.2}: {}",
            one.omega,
            two.omega,
            one.mu[0],
            two.mu[0],
            reached(opposite)
        ),
        format!(
            "aim: their step is {formula:.3}; {step:.3}: {}",
            reached((step - formula).abs() < 0.05)
        ),
        format!(
            "aim: they predict as gradient descent on centred y does ({theory:.3}); {found:.3}: {}",
            reached((found - theory).abs() < 0.02)
        ),
        format!(
            "aim: one head is worse than two at every length, four are as two; {:.3} / {:.3} / {:.3} at 40: {}",
            trained[0].errors[2],
            pair.errors[2],
            four.errors[2],
            reached(
                trained[0]
                    .errors
                    .iter()
                    .zip(&pair.errors)
                    .all(|(a, b)| a > b)
                    && (four.errors[2] - pair.errors[2]).abs() < 0.02
            )
        ),
        format!(
            "four heads: the mu sum to {sum:.2}; trained in {} s",
            trained
                .iter()
                .map(|t| format!("{:.0}", t.seconds))
                .collect::<Vec<_>>()
                .join(" / ")
        ),
    ];
    findings.extend(extended.findings);
    let svg = plot::lines("Regression in context", "examples", "squared error", &lines)?;
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables: vec![errors, heads, extended.table],
        findings,
        values: json!({"plain": values, "extended": extended.values}),
        svg,
    })
}
