//! The small model of the indirect object: three tests at the outputs of its heads.

use keyfold_core::Progress;
use keyfold_dictionary::sae::{SaeConfig, SaeMethod};
use keyfold_inspect::sae_evaluation::indirect_object::{
    ATTRIBUTES, Pass, Prompt, SmallModel, SmallModelConfig, attributes,
};
use keyfold_inspect::sae_evaluation::scores::Scores;
use keyfold_inspect::sae_evaluation::{
    Coded, ScaledSae, SupervisedDictionary, edits, recovered, train_sae, unexplained,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::report::Table as Shown;
use crate::{BenchError, BenchOptions, Scale};

/// Features that an edit may change.
const FEATURES: [usize; 3] = [2, 4, 8];

/// Names in the prompts that are learned from; all of them.
const NAMES: usize = 40;

/// How a dictionary did.
#[derive(Clone, Default)]
pub(super) struct Standing {
    pub(super) recovered: f64,
    /// Share of prompts whose edit of `io` names the new indirect object, with 4 features.
    pub(super) counterfactual: f64,
    /// Features that can be explained, by attribute.
    pub(super) explained: [usize; 3],
}

pub(super) struct Task {
    pub(super) tables: Vec<Shown>,
    pub(super) accuracy: f64,
    /// Share of prompts where the true patch of `io` names the new one.
    pub(super) patch: f64,
    pub(super) supervised: Standing,
    pub(super) autoencoder: Standing,
    pub(super) bars: Vec<(String, f64)>,
    pub(super) values: Value,
}

/// Prompts to test on, their counterfactuals by attribute, and what the model makes of them.
struct Tests<'m> {
    model: &'m SmallModel,
    layer: usize,
    prompts: Vec<Prompt>,
    others: Vec<Vec<Prompt>>,
    clean: Pass,
    passes: Vec<Pass>,
    /// What the model makes of the prompts with the true patch of each attribute.
    patched: Vec<Pass>,
}

impl Tests<'_> {
    fn rows(&self) -> &[f32] {
        &self.clean.heads[self.layer]
    }

    /// What the answers are once the heads' outputs are these rows.
    fn outcome(&self, rows: &[f32]) -> Result<Pass, BenchError> {
        Ok(self.model.pass(&self.prompts, Some((self.layer, rows)))?)
    }

    /// Shares of prompts that name the old and the new indirect object, and that answer as the
    /// true patch does.
    fn edited(&self, attribute: usize, rows: &[f32]) -> Result<[f64; 3], BenchError> {
        let found = self.outcome(rows)?;
        Ok([
            found.share(self.prompts.iter().map(|p| p.io)),
            found.share(self.others[attribute].iter().map(|p| p.io)),
            found.agreement(&self.patched[attribute]),
        ])
    }
}

pub(super) fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Task, BenchError> {
    let (steps, learn, tests, epochs, width) = match options.scale {
        Scale::Smoke => (150, 800, 100, 6, 128),
        Scale::Small => (2500, 8000, 1000, 100, 512),
        Scale::Full => (5000, 20_000, 5000, 2000, 512),
    };
    let mut model = SmallModel::new(SmallModelConfig {
        steps,
        seed: options.seed,
        ..SmallModelConfig::default()
    })?;
    model.train(progress)?;
    let prompts = Prompt::sample(learn, NAMES, options.seed ^ 1)?;
    let pass = model.pass(&prompts, None)?;
    let mut out = Task {
        tables: Vec::new(),
        accuracy: pass.share(prompts.iter().map(|p| p.io)),
        patch: 0.0,
        supervised: Standing::default(),
        autoencoder: Standing::default(),
        bars: Vec::new(),
        values: Value::Null,
    };
    let mut values = Vec::new();
    for layer in (0..model.config().layers).rev() {
        let found = at_layer(
            &model,
            layer,
            (&prompts, &pass),
            (tests, epochs, width),
            options,
            progress,
        )?;
        values.push(found.values);
        out.tables.extend(found.tables);
        if layer + 1 == model.config().layers {
            (out.patch, out.bars) = (found.patch, found.bars);
            (out.supervised, out.autoencoder) = (found.supervised, found.autoencoder);
        }
    }
    out.values = json!(values);
    Ok(out)
}

fn at_layer(
    model: &SmallModel,
    layer: usize,
    (prompts, pass): (&[Prompt], &Pass),
    (count, epochs, width): (usize, usize, usize),
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Task, BenchError> {
    let d = model.config().d_model;
    let rows = &pass.heads[layer];
    let known = attributes(prompts);
    let mut rng = StdRng::seed_from_u64(options.seed ^ 2);
    let tested = Prompt::sample(count, NAMES / 2, options.seed ^ 3)?;
    let others: Vec<Vec<Prompt>> = (0..ATTRIBUTES.len())
        .map(|a| {
            tested
                .iter()
                .map(|p| p.counterfactual(a, &mut rng))
                .collect()
        })
        .collect();
    let passes: Vec<Pass> = others
        .iter()
        .map(|o| model.pass(o, None))
        .collect::<Result<_, _>>()?;
    let patched: Vec<Pass> = passes
        .iter()
        .map(|p| model.pass(&tested, Some((layer, &p.heads[layer][..]))))
        .collect::<Result<_, _>>()?;
    let tests = Tests {
        model,
        layer,
        clean: model.pass(&tested, None)?,
        passes,
        patched,
        prompts: tested,
        others,
    };
    let mean = SupervisedDictionary::mean_codes(rows, d, &[])?;
    let ablated = tests
        .outcome(&mean.b.repeat(count))?
        .logit_difference(&tests.prompts);
    let clean = tests.clean.logit_difference(&tests.prompts);
    let keeps = |rows: &[f32]| -> Result<f64, BenchError> {
        Ok(recovered(
            tests.outcome(rows)?.logit_difference(&tests.prompts),
            ablated,
            clean,
        ))
    };
    let mut table = Shown::new(
        &format!("outputs of the heads at the last word, layer {layer} (edits of 4 features)"),
        &[
            "dictionary",
            "recovered",
            "unexplained",
            "io: new / as patch",
            "s",
            "io_pos",
            "weight",
            "explained",
        ],
    );
    let (mut values, mut bars) = (Vec::new(), Vec::new());
    let two = |x: f64| format!("{x:.2}");
    let patch = tests.edited(0, &tests.passes[0].heads[layer])?;
    let mut supervised = Standing::default();
    for (name, least_squares) in [
        ("supervised, means", false),
        ("supervised, least squares", true),
    ] {
        let dictionary = match least_squares {
            true => SupervisedDictionary::mse_codes(rows, d, &known)?,
            false => SupervisedDictionary::mean_codes(rows, d, &known)?,
        };
        let told = dictionary.reconstruct(&attributes(&tests.prompts));
        let left = unexplained(tests.rows(), &told, d);
        let kept = keeps(&told)?;
        let mut outcomes = Vec::new();
        for attribute in 0..ATTRIBUTES.len() {
            let mut edited = tests.rows().to_vec();
            let pairs = tests.prompts.iter().zip(&tests.others[attribute]);
            for (row, (old, new)) in edited.chunks_exact_mut(d).zip(pairs) {
                dictionary.edit(
                    row,
                    attribute,
                    old.values()[attribute],
                    new.values()[attribute],
                );
            }
            outcomes.push(tests.edited(attribute, &edited)?);
        }
        let weights = tests
            .prompts
            .iter()
            .map(|p| dictionary.weights(&p.values())[0]);
        let weight = weights.sum::<f64>() / count as f64;
        table.row([
            name.to_owned(),
            format!("{kept:.3}"),
            format!("{left:.4}"),
            format!("{} / {}", two(outcomes[0][1]), two(outcomes[0][2])),
            two(outcomes[1][2]),
            two(outcomes[2][2]),
            two(weight),
            "all".to_owned(),
        ]);
        values.push(json!({"dictionary": name, "recovered": kept, "unexplained": left, "edits": outcomes, "weight_io": weight}));
        bars.push((name.to_owned(), outcomes[0][1]));
        supervised = Standing {
            recovered: kept,
            counterfactual: outcomes[0][1],
            explained: [0; 3],
        };
    }
    let mut autoencoder = Standing::default();
    let base = SaeConfig {
        d_sae: width,
        normalize_decoder: true,
        lr: 1e-3,
        batch_size: 512.min(prompts.len() / 4),
        seed: options.seed,
        ..SaeConfig::default()
    };
    let standard = SaeConfig {
        architecture: SaeMethod::Standard,
        l1_coefficient: 1.0,
        ..base.clone()
    };
    let top_k = SaeConfig {
        architecture: SaeMethod::TopK,
        k: 12,
        ..base.clone()
    };
    let gated = SaeConfig {
        architecture: SaeMethod::Gated,
        l1_coefficient: 1.0,
        ..base
    };
    let batches = prompts.len().div_ceil(standard.batch_size);
    let recipe = with_recipe(&standard, epochs, batches);
    let attribution = SaeConfig {
        architecture: SaeMethod::Attribution,
        ..recipe.clone()
    };
    let gradients = model.gradients_at(prompts, layer)?;
    let cases = [
        ("ReLU, l1 1", standard.clone(), epochs),
        ("ReLU, l1 1, dead codes anew", recipe, epochs),
        ("attribution, l1 1", attribution, epochs),
        ("top 12", top_k, epochs),
        ("gated, l1 1", gated, epochs),
        ("not trained", standard, 0),
    ];
    for (name, config, epochs) in cases {
        let metric =
            (config.architecture == SaeMethod::Attribution).then_some(gradients.as_slice());
        let sae = train_sae(rows, d, metric, config, epochs, progress)?;
        let learned = sae.code(rows)?;
        let scores: Vec<Scores> = known
            .iter()
            .map(|a| Scores::of(&learned.codes, a))
            .collect();
        let explained: Vec<usize> = scores.iter().map(|s| s.meanings(0.8).len()).collect();
        let told = sae.code(tests.rows())?;
        let targets: Vec<Coded> = tests
            .passes
            .iter()
            .map(|p| sae.code(&p.heads[layer]))
            .collect::<Result<_, _>>()?;
        let kept = keeps(&told.rows)?;
        let left = unexplained(tests.rows(), &told.rows, d);
        let mut lines = Vec::new();
        let mut shown: Option<([[f64; 3]; 3], f64)> = None;
        for (way, by_meaning) in [("greedy", false), ("by meaning", true)] {
            for m in FEATURES {
                let coded = (&told, &targets[..]);
                let (outcomes, weight) = edit(&tests, &sae, coded, &scores, by_meaning, m)?;
                lines.push(
                    json!({"way": way, "features": m, "edits": outcomes, "weight_io": weight}),
                );
                if m == 4 && !by_meaning {
                    shown = Some((outcomes, weight));
                }
                if m == 4 {
                    bars.push((format!("{name}, {way}"), outcomes[0][1]));
                }
            }
        }
        let (outcomes, weight) = shown.unwrap_or_default();
        table.row([
            name.to_owned(),
            format!("{kept:.3}"),
            format!("{left:.4}"),
            format!("{} / {}", two(outcomes[0][1]), two(outcomes[0][2])),
            two(outcomes[1][2]),
            two(outcomes[2][2]),
            two(weight),
            format!("{} / {} / {}", explained[0], explained[1], explained[2]),
        ]);
        values.push(json!({
            "dictionary": name, "recovered": kept, "unexplained": left, "active": told.codes.mean_active(),
            "edits": lines, "explained": explained,
            "f1": scores.iter().map(Scores::mean_best).collect::<Vec<_>>(),
        }));
        if name == "ReLU, l1 1" {
            autoencoder = Standing {
                recovered: kept,
                counterfactual: outcomes[0][1],
                explained: [explained[0], explained[1], explained[2]],
            };
        }
    }
    Ok(Task {
        tables: vec![table],
        accuracy: 0.0,
        patch: patch[1],
        supervised,
        autoencoder,
        bars,
        values: json!({"layer": layer, "patch_io": patch, "dictionaries": values}),
    })
}

/// The authors' recipe, drawn together from their 2,000 passes: dead codes begin anew after one and two
/// quarters, the rate then warms up for a twentieth, and falls in the last quarter.
fn with_recipe(config: &SaeConfig, epochs: usize, batches: usize) -> SaeConfig {
    let at = |part: f64| ((epochs as f64 * part).round() as u64).max(1) * batches as u64;
    SaeConfig {
        dead_feature_window: batches as u64,
        resample_steps: vec![at(0.25), at(0.5)],
        resample_warm_up_steps: at(0.05),
        lr_decay_start: at(0.75),
        lr_decay_end: at(1.0) + 1,
        ..config.clone()
    }
}

/// Outcomes of edits of each attribute, and the mean weight of features changed for `io`; the
/// prompts and their counterfactuals are coded already.
fn edit(
    tests: &Tests,
    sae: &ScaledSae,
    (clean, targets): (&Coded, &[Coded]),
    scores: &[Scores],
    by_meaning: bool,
    m: usize,
) -> Result<([[f64; 3]; 3], f64), BenchError> {
    let mut outcomes = [[0.0; 3]; 3];
    let mut weight = 0.0;
    for ((attribute, outcome), coded) in outcomes.iter_mut().enumerate().zip(targets) {
        let target = &tests.passes[attribute].heads[tests.layer];
        let rankings = by_meaning.then(|| scores[attribute].ranking());
        let mut rows = Vec::with_capacity(tests.rows().len());
        for (i, (old, new)) in tests
            .prompts
            .iter()
            .zip(&tests.others[attribute])
            .enumerate()
        {
            let edit = match &rankings {
                None => edits::greedy(sae, (tests.rows(), clean), (&target[..], coded), i, m),
                Some(ranking) => {
                    let chosen = (
                        &ranking[old.values()[attribute]][..],
                        &ranking[new.values()[attribute]][..],
                    );
                    edits::by_score(sae, (tests.rows(), clean), coded, i, chosen, m)
                }
            };
            rows.extend(edit.row);
            if attribute == 0 {
                weight += edit.weight / tests.prompts.len() as f64;
            }
        }
        *outcome = tests.edited(attribute, &rows)?;
    }
    Ok((outcomes, weight))
}
