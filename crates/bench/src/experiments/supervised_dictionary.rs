//! A dictionary that learns with the labels against one that does not, followed by logistic
//! regression: Lee, Lyu and Yao, Supervised Dictionary Learning with Auxiliary Covariates
//! (2022).
//!
//! The generator hides the class in a small part of rows whose large parts say nothing of
//! it. Digits, one of ten against the rest, are an imbalanced case of real data.

use keyfold_core::Progress;
use keyfold_predict::logistic::{Logistic, LogisticConfig};
use keyfold_predict::supervised_dictionary::{
    Solver, SupervisedDictionary, SupervisedDictionaryConfig, Variant,
};
use keyfold_predict::{Classifier, Labels, Scale as Columns, Scaler, Table, metrics};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::plot;
use crate::random::normal;
use crate::report::{Report, Table as Shown, reached};
use crate::samples;
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "supervised-dictionary",
    about: "atoms learned with the labels against NMF and then logistic regression",
    run,
};

/// What one method did in one run.
#[derive(Clone, Copy, Default)]
struct Measured {
    accuracy: f64,
    auc: f64,
    f: f64,
    reconstruction: f64,
}

impl Measured {
    fn mean(all: &[Self]) -> Self {
        let mean = |pick: fn(&Self) -> f64| all.iter().map(pick).sum::<f64>() / all.len() as f64;
        Self {
            accuracy: mean(|m| m.accuracy),
            auc: mean(|m| m.auc),
            f: mean(|m| m.f),
            reconstruction: mean(|m| m.reconstruction),
        }
    }

    fn cells(&self) -> [String; 4] {
        [self.accuracy, self.auc, self.f, self.reconstruction].map(|x| format!("{x:.3}"))
    }

    /// The least and the most accuracy of runs.
    fn spread(all: &[Self]) -> [f64; 2] {
        let of = |f: fn(f64, f64) -> f64, from| all.iter().map(|m| m.accuracy).fold(from, f);
        [of(f64::min, f64::INFINITY), of(f64::max, 0.0)]
    }
}

/// Rows to learn from and rows to tell.
struct Case {
    learn: (Table, Labels),
    tell: (Table, Labels),
}

struct Method {
    name: &'static str,
    /// None for NMF, then logistic regression.
    config: Option<SupervisedDictionaryConfig>,
    /// How many times the steps of the others it takes.
    times: usize,
}

/// The methods: NMF first, then dictionaries that see the labels.
fn methods() -> Vec<Method> {
    let filter = SupervisedDictionaryConfig::default();
    let lifted = SupervisedDictionaryConfig {
        solver: Solver::Lpgd,
        ..filter
    };
    let feature = SupervisedDictionaryConfig {
        variant: Variant::Feature,
        ..filter
    };
    let method = |name, config, times| Method {
        name,
        config,
        times,
    };
    vec![
        method("NMF, then logistic", None, 1),
        method("filter, xi 1", Some(filter), 1),
        method("filter, xi 1, 5 times the steps", Some(filter), 5),
        method(
            "filter, xi 10",
            Some(SupervisedDictionaryConfig { xi: 10.0, ..filter }),
            1,
        ),
        method("filter, lifted, xi 1", Some(lifted), 1),
        method("feature, xi 1", Some(feature), 1),
    ]
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (seeds, iter) = match options.scale {
        Scale::Smoke => (1, 60),
        Scale::Small => (10, 200),
        Scale::Full => (20, 200),
    };
    let methods = methods();
    let total = (seeds * methods.len() * 2) as u64;
    progress.start("dictionaries", "fits", Some(total));
    let quiet = Quiet(progress);
    let mut cases: [Vec<Vec<Measured>>; 2] = Default::default();
    for (which, measured) in cases.iter_mut().enumerate() {
        *measured = vec![Vec::new(); methods.len()];
        for seed in 0..seeds as u64 {
            let seed = options.seed.wrapping_add(seed);
            let (case, r) = match which {
                0 => (generated(seed)?, 4),
                _ => (digits(seed, options.scale)?, 8),
            };
            for (method, measured) in methods.iter().zip(measured.iter_mut()) {
                measured.push(match method.config {
                    None => two_steps(&case, r, iter, seed, &quiet)?,
                    Some(config) => {
                        let config = SupervisedDictionaryConfig {
                            n_components: r,
                            iter: method.times * iter,
                            seed,
                            ..config
                        };
                        together(&case, &config, &quiet)?
                    }
                });
                progress.advance(1);
            }
        }
    }
    progress.finish();
    report(&methods, &cases)
}

/// Passes requests to stop on, and keeps the bar to itself.
struct Quiet<'a>(&'a dyn Progress);

impl Progress for Quiet<'_> {
    fn start(&self, _: &str, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn set_total(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, line: &str) {
        self.0.note(line);
    }
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

/// The specification's generator: 400 rows of 40 numbers, the first 300 to learn from.
fn generated(seed: u64) -> Result<Case, BenchError> {
    let (p, n, r) = (40, 400, 4);
    let mut rng = StdRng::seed_from_u64(seed);
    let w: Vec<f64> = (0..p * r).map(|_| rng.random()).collect();
    let (mut numbers, mut names) = (Vec::with_capacity(n * p), Vec::new());
    for _ in 0..n {
        let h = [10.0, 8.0, 6.0, 4.0].map(|scale| scale * rng.random::<f64>());
        let s = 2.0 * rng.random::<f64>();
        for f in 0..p {
            let large: f64 = (0..r).map(|j| w[f * r + j] * h[j]).sum();
            let small = if f < 5 { s } else { 0.0 };
            numbers.push(large + small + 0.1 * rng.random::<f64>());
        }
        let sure = s + 0.1 * f64::from(normal(&mut rng));
        names.push(if sure > 1.0 { "1" } else { "0" });
    }
    let most = numbers.iter().copied().fold(0.0, f64::max);
    numbers.iter_mut().for_each(|x| *x /= most);
    let (x, labels) = (Table::new(p, numbers)?, Labels::new(&names));
    let rows: Vec<usize> = (0..n).collect();
    Ok(case(&x, &labels, &rows, 300))
}

/// Digits: whether it is the eight.
fn digits(seed: u64, scale: Scale) -> Result<Case, BenchError> {
    let all = samples::digits()?;
    let names: Vec<&str> = (0..all.x.rows())
        .map(|i| if all.labels.name(i) == "8" { "8" } else { "0" })
        .collect();
    let (mut rows, rest) = keyfold_predict::label_budgets::hold_out(all.x.rows(), 0.4, seed);
    let learned = match scale {
        Scale::Smoke => 300,
        _ => rows.len(),
    };
    rows.truncate(learned);
    rows.extend(rest);
    Ok(case(&all.x, &Labels::new(&names), &rows, learned))
}

fn case(x: &Table, labels: &Labels, rows: &[usize], learned: usize) -> Case {
    let (learn, tell) = rows.split_at(learned);
    Case {
        learn: (x.select(learn), labels.select(learn)),
        tell: (x.select(tell), labels.select(tell)),
    }
}

fn measure(scores: &[f64], told: &[usize], labels: &Labels, reconstruction: f64) -> Measured {
    let codes = labels.codes();
    let right = told.iter().zip(codes).filter(|(a, b)| a == b).count();
    let confusion = metrics::confusion(told, codes, 2);
    Measured {
        accuracy: right as f64 / codes.len() as f64,
        auc: metrics::auc(scores, &metrics::is_second(labels)).unwrap_or(0.5),
        f: metrics::f_scores(&confusion)[1],
        reconstruction,
    }
}

/// A dictionary that sees the labels.
fn together(
    case: &Case,
    config: &SupervisedDictionaryConfig,
    progress: &dyn Progress,
) -> Result<Measured, BenchError> {
    let model = SupervisedDictionary::fit(&case.learn.0, &case.learn.1, config, progress)?;
    let logits = model.logits(&case.tell.0)?;
    let scores: Vec<f64> = logits.chunks_exact(2).map(|s| s[1] - s[0]).collect();
    let told = model.predict(&case.tell.0)?;
    let lost = model.told().reconstruction;
    Ok(measure(&scores, &told, &case.tell.1, lost))
}

/// Non-negative matrix factorisation, then logistic regression on its codes; the threshold
/// is chosen as for the others.
fn two_steps(
    case: &Case,
    r: usize,
    iter: usize,
    seed: u64,
    progress: &dyn Progress,
) -> Result<Measured, BenchError> {
    let mut nmf = Nmf::new(&case.learn.0, r, seed);
    let codes = nmf.fit(&case.learn.0, 3 * iter);
    let lost = nmf.distance(&case.learn.0, &codes);
    let code = |x: &Table, codes: Option<Vec<f64>>| -> Result<Table, BenchError> {
        let codes = codes.unwrap_or_else(|| nmf.encode(x, 3 * iter));
        Ok(Table::new(r, codes)?)
    };
    let (learn, tell) = (code(&case.learn.0, Some(codes))?, code(&case.tell.0, None)?);
    let scaler = Scaler::fit(Columns::Standard, &learn);
    let (learn, tell) = (scaler.apply(&learn)?, scaler.apply(&tell)?);
    let model = Logistic::fit(&learn, &case.learn.1, &LogisticConfig::default(), progress)?;
    let scores = |x: &Table| -> Result<Vec<f64>, BenchError> {
        let logits = model.logits(x)?;
        Ok(logits.chunks_exact(2).map(|s| s[1] - s[0]).collect())
    };
    let second = metrics::is_second(&case.learn.1);
    let threshold = metrics::best_threshold(&scores(&learn)?, &second);
    let scores = scores(&tell)?;
    let told: Vec<usize> = scores
        .iter()
        .map(|s| usize::from(*s >= threshold))
        .collect();
    Ok(measure(&scores, &told, &case.tell.1, lost))
}

/// Multiplicative updates (Lee and Seung, 2001): rows are `codes · atoms`.
struct Nmf {
    r: usize,
    p: usize,
    /// `[r, p]`.
    atoms: Vec<f64>,
}

impl Nmf {
    fn new(x: &Table, r: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x6e6d);
        let p = x.columns();
        Self {
            r,
            p,
            atoms: (0..r * p).map(|_| rng.random_range(0.1..1.0)).collect(),
        }
    }

    fn fit(&mut self, x: &Table, steps: usize) -> Vec<f64> {
        let n = x.rows();
        let mut codes = vec![0.5; n * self.r];
        for _ in 0..steps {
            self.update_codes(x, &mut codes);
            // Atoms: CᵀX over CᵀC A.
            let (r, p) = (self.r, self.p);
            let (mut up, mut gram) = (vec![0.0; r * p], vec![0.0; r * r]);
            for (i, code) in codes.chunks_exact(r).enumerate() {
                for j in 0..r {
                    for (u, v) in up[j * p..(j + 1) * p].iter_mut().zip(x.row(i)) {
                        *u += code[j] * v;
                    }
                    for k in 0..r {
                        gram[j * r + k] += code[j] * code[k];
                    }
                }
            }
            let old = self.atoms.clone();
            for j in 0..r {
                for f in 0..p {
                    let down: f64 = (0..r).map(|k| gram[j * r + k] * old[k * p + f]).sum();
                    self.atoms[j * p + f] *= up[j * p + f] / (down + 1e-12);
                }
            }
        }
        codes
    }

    fn encode(&self, x: &Table, steps: usize) -> Vec<f64> {
        let mut codes = vec![0.5; x.rows() * self.r];
        for _ in 0..steps {
            self.update_codes(x, &mut codes);
        }
        codes
    }

    fn update_codes(&self, x: &Table, codes: &mut [f64]) {
        let (r, p) = (self.r, self.p);
        let atom = |j: usize| &self.atoms[j * p..(j + 1) * p];
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let gram: Vec<f64> = (0..r * r).map(|i| dot(atom(i / r), atom(i % r))).collect();
        for (i, code) in codes.chunks_exact_mut(r).enumerate() {
            let old = code.to_vec();
            for (j, c) in code.iter_mut().enumerate() {
                let down = dot(&gram[j * r..(j + 1) * r], &old);
                *c *= dot(atom(j), x.row(i)) / (down + 1e-12);
            }
        }
    }

    /// `‖X - C A‖ / ‖X‖`.
    fn distance(&self, x: &Table, codes: &[f64]) -> f64 {
        let (mut rest, mut all) = (0.0, 0.0);
        for (i, code) in codes.chunks_exact(self.r).enumerate() {
            for (f, v) in x.row(i).iter().enumerate() {
                let made: f64 = (0..self.r)
                    .map(|j| code[j] * self.atoms[j * self.p + f])
                    .sum();
                rest += (v - made) * (v - made);
                all += v * v;
            }
        }
        (rest / all).sqrt()
    }
}

fn report(methods: &[Method], cases: &[Vec<Vec<Measured>>; 2]) -> Result<Report, BenchError> {
    let titles = [
        "generator (the specification has accuracy 0.57 for NMF, 0.80 for xi 1, 0.60 for xi 10)",
        "digits: the eight against all others",
    ];
    let (mut tables, mut values, mut bars) = (Vec::new(), Vec::new(), Vec::new());
    let mut means = Vec::new();
    for (title, measured) in titles.iter().zip(cases) {
        let mut table = Shown::new(
            title,
            &[
                "method",
                "accuracy",
                "least to most",
                "AUC",
                "F",
                "reconstruction error",
            ],
        );
        let mut all = Vec::new();
        for (method, runs) in methods.iter().zip(measured) {
            let (mean, [least, most]) = (Measured::mean(runs), Measured::spread(runs));
            let [a, b, c, d] = mean.cells();
            let spread = format!("{least:.2} to {most:.2}");
            table.row([method.name.to_owned(), a, spread, b, c, d]);
            values.push(json!({
                "case": title, "method": method.name, "accuracy": mean.accuracy, "auc": mean.auc,
                "f": mean.f, "reconstruction": mean.reconstruction,
                "accuracies": runs.iter().map(|m| m.accuracy).collect::<Vec<_>>(),
            }));
            if means.is_empty() {
                bars.push((method.name.to_owned(), mean.accuracy));
            }
            all.push((mean, [least, most]));
        }
        means.push(all);
        tables.push(table);
    }
    let ((nmf, _), (sdl, [least, most]), (long, _)) = (means[0][0], means[0][1], means[0][2]);
    let f = |at: usize| means[1][at].0.f;
    let best = (1..methods.len()).map(f).fold(0.0, f64::max);
    let findings = vec![
        format!(
            "aim: with labels the atoms find what reconstruction hides; accuracy {:.3} against {:.3} of NMF: {}; \
             starts differ from {least:.2} to {most:.2}; the authors' package had 0.82, 0.86 and 0.73 in the \
             specification (parity/peers/supervised_dictionary.py runs it from more starts)",
            sdl.accuracy,
            nmf.accuracy,
            reached(sdl.accuracy > nmf.accuracy + 0.1)
        ),
        format!(
            "aim: 0.80; after five times as many steps the block-coordinate algorithm has {:.3} instead of {:.3}: {}",
            long.accuracy,
            sdl.accuracy,
            reached(long.accuracy >= 0.8)
        ),
        format!(
            "its price: the reconstruction error is {:.3} against {:.3}; with xi 10 it is {:.3}, at an \
             accuracy of {:.3}",
            sdl.reconstruction,
            nmf.reconstruction,
            means[0][3].0.reconstruction,
            means[0][3].0.accuracy
        ),
        format!(
            "aim: F at least that of NMF on the imbalanced digits; {best:.3} (best of all variants) against \
             {:.3}: {}",
            f(0),
            reached(best >= f(0))
        ),
    ];
    let svg = plot::bars(
        "Accuracy on the generator",
        "accuracy",
        &bars,
        Some(nmf.accuracy),
    )?;
    Ok(Report {
        name: "supervised-dictionary".to_owned(),
        tables,
        findings,
        values: json!(values),
        svg,
    })
}
