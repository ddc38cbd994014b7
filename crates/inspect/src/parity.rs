//! Against what other code gives on the same numbers (parity/look_inside.py).

use std::path::Path;

use keyfold_dictionary::sae::{Activation, Normalize, Sae};
use serde_json::Value;

use crate::convergent::{
    Activations, correlations, greedy, matching, mutual_information, sparse_prediction,
};
use crate::in_context::Sequence;
use crate::in_context::algorithms::Predictor;
use crate::in_context::softmax::{
    Estimator, Prompts, SoftmaxConfig, SoftmaxModel, Stack, StackConfig, approximate_gradient,
    approximate_loss, best_mu,
};
use crate::random_features::{
    Example, RandomFeaturePredictor, RandomFeatures, RandomFeaturesConfig,
};
use crate::sae_evaluation::scores::Scores;
use crate::sae_evaluation::{Attribute, ScaledSae, SupervisedDictionary, edits};
use crate::small_transformer::{BlockConfig, Blocks, Layout};

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// All numbers of nested lists.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(parts) => parts.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

fn floats(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|x| x as f32).collect()
}

fn count(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

#[track_caller]
fn close(found: impl IntoIterator<Item = f64>, want: &[f64], tolerance: f64) {
    let found: Vec<f64> = found.into_iter().collect();
    assert_eq!(found.len(), want.len());
    for (i, (a, b)) in found.iter().zip(want).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{i}: {a} {b}");
    }
}

fn single(x: &[f32]) -> impl Iterator<Item = f64> + '_ {
    x.iter().map(|x| f64::from(*x))
}

#[test]
fn units_are_compared_as_numpy_scipy_scikit_learn_and_the_authors_do() {
    let f = fixture("convergent.json");
    let (a, b) = (floats(&f["a"]), floats(&f["b"]));
    let a = Activations::new("a", a, 8).unwrap();
    let b = Activations::new("b", b, 5).unwrap();
    let c = correlations(&a, &b).unwrap();
    let all = (0..13).flat_map(|i| (0..13).map(move |j| (i, j)));
    close(all.map(|at| c.all[at]), &numbers(&f["all"]), 1e-10);
    let partners = greedy(c.between()).into_iter().map(|p| p.partner as f64);
    close(partners, &numbers(&f["greedy"]), 0.0);
    let total: f64 = matching(c.between()).iter().map(|p| p.score).sum();
    close([total], &numbers(&f["total"]), 1e-9);
    let found = mutual_information((&a, &c.a), (&b, &c.b)).unwrap();
    let all = (0..8).flat_map(|i| (0..5).map(move |j| (i, j)));
    close(all.map(|at| found.nats[at]), &numbers(&f["nats"]), 1e-9);
    let alpha = f["alpha"].as_f64().unwrap();
    let found = sparse_prediction(&a, &b, count(&f["learn"]), &[alpha]).unwrap();
    let mut weights = vec![0.0; 5 * 8];
    for unit in &found[1].units {
        for (from, w) in &unit.from {
            weights[unit.unit * 8 + from] = f64::from(*w);
        }
    }
    close(weights, &numbers(&f["lasso"]), 1e-4);
}

#[test]
fn a_block_and_its_gradient_are_torchs() {
    let f = fixture("in_context.json");
    let size = |name: &str| count(&f["sizes"][name]);
    let config = BlockConfig {
        width: size("width"),
        heads: size("heads"),
        head_dim: size("head_dim"),
        mlp: size("mlp"),
        norm: true,
        layers: 1,
    };
    let mut layout = Layout::default();
    let blocks = Blocks::new(config, &mut layout);
    let of = |part: &str| -> Vec<f32> {
        let order = f["order"].as_array().unwrap().iter();
        order
            .flat_map(|name| floats(&f[part][name.as_str().unwrap()]))
            .collect()
    };
    let weights = of("weights");
    assert_eq!(weights.len(), layout.zeros().len());
    let trace = blocks.forward(&weights, floats(&f["x"]), size("length"), None);
    close(single(&trace.out), &numbers(&f["out"]), 1e-5);
    let mut gradient = layout.zeros();
    let c = floats(&f["c"]);
    let dx = blocks.backward(&weights, &trace, c, size("length"), &mut gradient);
    close(single(&dx), &numbers(&f["dx"]), 5e-5);
    let want: Vec<f64> = of("gradients").iter().map(|x| f64::from(*x)).collect();
    close(single(&gradient), &want, 5e-5);
}

#[test]
fn estimators_are_scikit_learns() {
    let f = fixture("in_context.json");
    let d = count(&f["d"]);
    let sequence = Sequence {
        d,
        x: numbers(&f["xs"]),
        y: numbers(&f["ys"]),
        w: Vec::new(),
    };
    for (name, want) in f["told"].as_object().unwrap() {
        let want = numbers(want);
        let found = name.parse::<Predictor>().unwrap().predict(&sequence);
        close(found[found.len() - want.len()..].to_vec(), &want, 1e-8);
    }
}

#[test]
fn attention_and_its_theory_are_the_authors() {
    let f = fixture("softmax.json");
    let (d, heads, length) = (count(&f["d"]), count(&f["heads"]), count(&f["length"]));
    let weight = |part: &str| floats(&f["weights"][part]);
    let model = SoftmaxModel {
        d,
        tasks: 1,
        heads,
        q: weight("q"),
        k: weight("k"),
        v: weight("v"),
        o: weight("o"),
    };
    let prompts = Prompts {
        z: floats(&f["z"]),
        queries: floats(&f["query"]),
        targets: floats(&f["target"]),
        length,
        row: d + 1,
    };
    close(
        single(&model.predict(&prompts).unwrap()),
        &numbers(&f["told"]),
        2e-6,
    );
    let (loss, gradient) =
        crate::in_context::softmax::gradient(&model, std::slice::from_ref(&prompts));
    close([loss], &numbers(&f["loss"]), 2e-6);
    let parts = ["q", "k", "v", "o"]
        .iter()
        .flat_map(|p| numbers(&f["gradients"][p]));
    close(single(&gradient), &parts.collect::<Vec<f64>>(), 2e-6);
    let (omega, mu) = (numbers(&f["omega"]), numbers(&f["mu"]));
    close(
        best_mu(&omega, d, length, 0.1).unwrap(),
        &numbers(&f["best_mu"]),
        1e-9,
    );
    close(
        [approximate_loss(&omega, &mu, d, length, 0.1)],
        &numbers(&f["approximate"]),
        1e-10,
    );
    let (by_omega, by_mu) = approximate_gradient(&omega, &mu, d, length, 0.1);
    close(by_omega, &numbers(&f["by_omega"]), 1e-10);
    close(by_mu, &numbers(&f["by_mu"]), 1e-10);
    let (z, query) = (&prompts.z[..length * (d + 1)], &prompts.queries[..d]);
    let all = [
        Estimator::OneHead {
            omega: 0.2,
            mu: 2.0,
        },
        Estimator::TwoHeads {
            omega: 0.2,
            step: 0.8,
        },
        Estimator::GradientDescent { step: 0.8 },
        Estimator::Debiased { step: 0.8 },
        Estimator::Ridge {
            alpha: 0.1 * d as f64,
        },
    ];
    let told = all.map(|e| f64::from(e.predict(z, query).unwrap()));
    close(told, &numbers(&f["estimates"]), 1e-5);
}

#[test]
fn a_stack_with_two_softmaxes_is_the_authors() {
    let f = fixture("softmax_stack.json");
    let (d, heads, length) = (count(&f["d"]), count(&f["heads"]), count(&f["length"]));
    let base = SoftmaxConfig {
        d,
        heads,
        length,
        ..SoftmaxConfig::default()
    };
    let config = StackConfig {
        base,
        compat: true,
        ..StackConfig::default()
    };
    let mut model = Stack::new(config).unwrap();
    model.weights = floats(&f["weights"]);
    let prompts = Prompts {
        z: floats(&f["z"]),
        queries: floats(&f["query"]),
        targets: floats(&f["target"]),
        length,
        row: d + 1,
    };
    let told = model.predict(&prompts).unwrap();
    close(single(&told), &numbers(&f["told"]), 2e-6);
    let (loss, gradient) = model.gradient(&prompts);
    close([loss], &numbers(&f["loss"]), 2e-6);
    close(single(&gradient), &numbers(&f["gradient"]), 2e-6);
}

#[test]
fn random_features_are_numpys_and_ridge_is_scikit_learns() {
    let f = fixture("random_features.json");
    let (d, heads) = (count(&f["d"]), count(&f["heads"]));
    let config = RandomFeaturesConfig {
        heads,
        lambda: f["lambda"].as_f64(),
        ..RandomFeaturesConfig::default()
    };
    let mut features = RandomFeatures::new(&config, d, 0).unwrap();
    features.set_weights(floats(&f["w"]));
    let sets = f["sets"].as_array().unwrap().iter();
    let examples: Vec<Example> = f["q"]
        .as_array()
        .unwrap()
        .iter()
        .zip(sets)
        .zip(numbers(&f["y"]))
        .map(|((q, set), y)| Example {
            q: floats(q),
            set: set.as_array().unwrap().iter().map(floats).collect(),
            y,
        })
        .collect();
    close(
        single(&features.features(&examples).unwrap()),
        &numbers(&f["features"]),
        1e-5,
    );
    let model = RandomFeaturePredictor::fit_with(features, &examples).unwrap();
    close(
        model.predict(&examples).unwrap(),
        &numbers(&f["told"]),
        1e-5,
    );
}

#[test]
fn dictionaries_are_scored_as_the_authors_do() {
    let f = fixture("sae_evaluation.json");
    let (d, hidden) = (count(&f["d"]), count(&f["hidden"]));
    let sae = Sae {
        d_in: d,
        d_sae: hidden,
        d_out: d,
        activation: Activation::Relu,
        normalize: Normalize::None,
        apply_b_dec_to_input: true,
        rescale_acts_by_decoder_norm: false,
        w_enc: floats(&f["w_enc"]),
        b_enc: floats(&f["b_enc"]),
        w_dec: floats(&f["w_dec"]),
        b_dec: floats(&f["b_dec"]),
        w_skip: Vec::new(),
    };
    let sae = ScaledSae { sae, scale: 1.0 };
    let (rows, target) = (floats(&f["rows"]), floats(&f["target"]));
    let n = rows.len() / d;
    let (coded, coded_target) = (sae.code(&rows).unwrap(), sae.code(&target).unwrap());
    close(single(&coded.rows), &numbers(&f["told"]), 1e-5);
    let values = count(&f["values"]);
    let of: Vec<usize> = numbers(&f["of"]).iter().map(|v| *v as usize).collect();
    let attribute = Attribute::numbered("a", values, of);
    let scores = Scores::of(&coded.codes, &attribute);
    let all = (0..hidden).flat_map(|j| (0..values).map(move |v| (j, v)));
    let f1 = all.map(|(j, v)| scores.get(j, v).f1.max(-1.0));
    // The authors have no F1 where nothing is in common; here it is 0, and none of features that
    // are never active.
    let want = numbers(&f["f1"]);
    for (found, want) in f1.zip(want) {
        assert!(
            (found - want).abs() < 1e-6 || (want == -1.0 && found == 0.0),
            "{found} {want}"
        );
    }
    let mean = SupervisedDictionary::mean_codes(&rows, d, &[attribute]).unwrap();
    close(single(&mean.b), &numbers(&f["mean"]), 1e-6);
    close(single(&mean.codes[0]), &numbers(&f["codes"]), 1e-6);
    let (edited, weights) = (numbers(&f["edited"]), numbers(&f["weights"]));
    let chosen = numbers(&f["features"]);
    for i in 0..n {
        let edit = edits::greedy(&sae, (&rows, &coded), (&target, &coded_target), i, 3);
        // Where no feature helps any more theirs takes one that changes nothing, or harms.
        if edit.features.len() == 3 {
            let found = edit.features.iter().map(|j| f64::from(*j));
            close(found, &chosen[i * 3..][..3], 0.0);
            close(single(&edit.row), &edited[i * d..][..d], 1e-5);
        }
        let (features, _) = coded.codes.row(i);
        let mut dense = vec![0.0; hidden];
        for (j, w) in features.iter().zip(sae.weights(&coded, i)) {
            dense[*j as usize] = w;
        }
        close(dense, &weights[i * hidden..][..hidden], 1e-4);
    }
    let full = (0..n).filter(|i| {
        edits::greedy(&sae, (&rows, &coded), (&target, &coded_target), *i, 3)
            .features
            .len()
            == 3
    });
    assert!(full.count() > n / 2, "most edits are compared");
}
