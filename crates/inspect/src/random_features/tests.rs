use super::*;

const KEYS: Target = Target {
    query_power: 0,
    direction_power: 2,
};

fn config(heads: usize) -> RandomFeaturesConfig {
    RandomFeaturesConfig {
        heads,
        ..RandomFeaturesConfig::default()
    }
}

#[test]
fn features_are_the_equation_and_do_not_mind_the_order() {
    let features = RandomFeatures::new(&config(3), 2, 0).unwrap();
    let examples = synthetic(KEYS, (2, 4), 2, 1, 0);
    let found = features.features(&examples).unwrap();
    for (row, e) in found.chunks_exact(features.len()).zip(&examples) {
        for head in 0..3 {
            let w = &features.weights()[head * 9..][..9];
            let mut want = [0.0f64; 3];
            for x in &e.set {
                let (q, x) = ([e.q[0], e.q[1], 1.0], [x[0], x[1], 1.0]);
                let terms = (0..9).map(|i| f64::from(q[i / 3] * w[i] * x[i % 3]));
                let score = terms.sum::<f64>().max(0.0);
                (0..3).for_each(|j| want[j] += score * f64::from(x[j]) / 4.0);
            }
            for j in 0..3 {
                assert!((f64::from(row[head * 3 + j]) - want[j]).abs() < 1e-5);
            }
        }
    }
    let mut turned = examples.clone();
    turned[0].set.reverse();
    let again = features.features(&turned).unwrap();
    assert!(found.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn primal_and_dual_solutions_agree() {
    let examples = synthetic(KEYS, (3, 4), 30, 1, 0);
    let features = RandomFeatures::new(&config(20), 3, 0).unwrap();
    let x = algebra::matrix(&features.features(&examples).unwrap(), features.len());
    let y: Vec<f64> = examples.iter().map(|e| e.y).collect();
    let dual = ridge(&x, &y, &[1e-2]).unwrap().remove(0);
    let gram = x.transpose() * &x;
    let right = x.transpose() * Mat::from_fn(30, 1, |i, _| y[i]);
    let primal = algebra::solve_symmetric(gram.as_ref(), right.as_ref(), 0.3).unwrap();
    for (j, v) in dual.iter().enumerate() {
        assert!((v - primal[(j, 0)]).abs() < 1e-8, "{j}");
    }
}

#[test]
fn a_function_of_the_set_is_learned_where_a_random_layer_learns_nothing() {
    let learn = synthetic(KEYS, (4, 6), 400, 1, 0);
    let test = synthetic(KEYS, (4, 6), 400, 1, 1);
    let attention = RandomFeaturePredictor::fit(&config(60), &learn).unwrap();
    let mlp = RandomFeaturesConfig {
        kind: Kind::Mlp,
        ..config(60)
    };
    let layer = RandomFeaturePredictor::fit(&mlp, &learn).unwrap();
    let (ours, theirs) = (
        attention.relative_error(&test).unwrap(),
        layer.relative_error(&test).unwrap(),
    );
    assert!(ours < 0.2 && theirs > 0.5, "{ours} {theirs}");
}

#[test]
fn sets_of_other_sizes_are_averaged_over_their_own() {
    let learn = synthetic(KEYS, (3, 4), 200, 1, 0);
    let model = RandomFeaturePredictor::fit(&config(40), &learn).unwrap();
    // The same vectors twice are the same set to an average.
    let mut twice = learn[..3].to_vec();
    twice.iter_mut().for_each(|e| e.set.extend(e.set.clone()));
    let (a, b) = (
        model.predict(&learn[..3]).unwrap(),
        model.predict(&twice).unwrap(),
    );
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4));
}

#[test]
fn a_predictor_goes_to_a_file_and_back() {
    let learn = synthetic(KEYS, (3, 4), 60, 1, 0);
    let model = RandomFeaturePredictor::fit(&config(10), &learn).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    model.save(&path).unwrap();
    let read = RandomFeaturePredictor::load(&path).unwrap();
    assert_eq!(read, model);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(
        RandomFeaturePredictor::load(&path)
            .unwrap_err()
            .to_string()
            .contains("checksum")
    );
    std::fs::write(&path, &bytes[..40]).unwrap();
    assert!(
        RandomFeaturePredictor::load(&path)
            .unwrap_err()
            .to_string()
            .contains("no predictor")
    );
}

#[test]
fn examples_that_do_not_fit_are_refused_by_number() {
    let mut examples = synthetic(KEYS, (3, 4), 20, 1, 0);
    let refused = |examples: &[Example], word: &str| {
        let error = RandomFeaturePredictor::fit(&config(5), examples)
            .unwrap_err()
            .to_string();
        assert!(error.contains(word), "{error}");
    };
    refused(&[], "no rows");
    refused(&examples[..3], "too few");
    examples[7].set[2].push(1.0);
    refused(&examples, "example 8");
    examples[7].set.clear();
    refused(&examples, "empty set");
    examples.remove(7);
    examples[1].q[0] = f32::NAN;
    refused(&examples, "not finite");
    // Too little for the heads, and for the solution.
    for memory in [1000, 100_000] {
        let small = RandomFeaturesConfig {
            memory,
            ..config(500)
        };
        let error = RandomFeaturePredictor::fit(&small, &synthetic(KEYS, (3, 4), 20, 1, 0));
        assert!(error.unwrap_err().to_string().contains("MiB"));
    }
    assert!(RandomFeatures::new(&config(5), usize::MAX, 0).is_err());
}
