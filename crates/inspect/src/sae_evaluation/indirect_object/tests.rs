#![allow(clippy::unwrap_used)]

use keyfold_core::NoProgress;

use super::saved::{TASK, write_task};
use super::*;

#[test]
fn prompts_have_one_length_and_name_the_subject_twice() {
    let prompts = Prompt::sample(200, 40, 1).unwrap();
    for prompt in &prompts {
        let words = prompt.words();
        assert_eq!(words.len(), 16, "{words:?}");
        let count = |name: usize| words.iter().filter(|w| **w == NAMES[name]).count();
        assert_eq!((count(prompt.io), count(prompt.s)), (1, 2));
        assert_eq!(words[1] == NAMES[prompt.io], !prompt.io_second);
    }
    assert!(Prompt::sample(1, 1, 0).is_err());
    assert_eq!(&vocabulary()[..40], &NAMES);
}

#[test]
fn a_counterfactual_changes_one_attribute() {
    let mut rng = StdRng::seed_from_u64(1);
    for prompt in Prompt::sample(50, 40, 2).unwrap() {
        for attribute in 0..3 {
            let other = prompt.counterfactual(attribute, &mut rng);
            for (at, (a, b)) in prompt.values().iter().zip(other.values()).enumerate() {
                assert_eq!(*a != b, at == attribute);
            }
            assert_ne!(other.io, other.s);
        }
    }
}

#[test]
fn the_gradient_is_that_of_differences() {
    let config = SmallModelConfig {
        d_model: 8,
        heads: 2,
        ..SmallModelConfig::default()
    };
    let model = SmallModel::new(config).unwrap();
    let prompts = Prompt::sample(4, 40, 3).unwrap();
    let (_, gradient) = model.gradient(&prompts, 4);
    let loss = |model: &SmallModel| model.gradient(&prompts, 4).0 / 4.0;
    let step = 1e-2;
    for at in (0..model.weights.len()).step_by(53) {
        let (mut up, mut down) = (model.clone(), model.clone());
        up.weights[at] += step;
        down.weights[at] -= step;
        let difference = (loss(&up) - loss(&down)) / f64::from(2.0 * step);
        let analytic = f64::from(gradient[at]);
        assert!(
            (analytic - difference).abs() < 1e-3 * (1.0 + 10.0 * difference.abs()),
            "{at}: {analytic} {difference}"
        );
    }
}

#[test]
fn the_gradient_at_the_heads_is_that_of_what_is_put_there() {
    let config = SmallModelConfig {
        d_model: 8,
        heads: 2,
        ..SmallModelConfig::default()
    };
    let model = SmallModel::new(config).unwrap();
    let prompts = Prompt::sample(20, 40, 3).unwrap();
    let heads = model.pass(&prompts, None).unwrap().heads;
    for (layer, rows) in heads.iter().enumerate() {
        let gradient = model.gradients_at(&prompts, layer).unwrap();
        assert_eq!(gradient.len(), rows.len());
        let step = 1e-2;
        let difference = |at: usize, by: f32| {
            let mut rows = rows.clone();
            rows[at] += by;
            let pass = model.pass(&prompts, Some((layer, &rows))).unwrap();
            pass.logit_difference(&prompts) * prompts.len() as f64
        };
        for at in (0..rows.len()).step_by(7) {
            let found = (difference(at, step) - difference(at, -step)) / f64::from(2.0 * step);
            let analytic = f64::from(gradient[at]);
            assert!(
                (analytic - found).abs() < 2e-3 * (1.0 + found.abs()),
                "layer {layer}, {at}: {analytic} {found}"
            );
        }
    }
    assert!(model.gradients_at(&prompts, 2).is_err());
    assert!(
        model
            .difference_gradients(&[1; 16], &[(0, 9999)], 0)
            .is_err()
    );
}

#[test]
fn a_pass_with_its_own_activations_is_the_same_pass() {
    let model = SmallModel::new(SmallModelConfig::default()).unwrap();
    let prompts = Prompt::sample(20, 40, 3).unwrap();
    let plain = model.pass(&prompts, None).unwrap();
    let again = model.pass(&prompts, Some((1, &plain.heads[1]))).unwrap();
    assert_eq!(plain, again);
    let zeros = vec![0.0; plain.heads[1].len()];
    let without = model.pass(&prompts, Some((1, &zeros))).unwrap();
    assert_ne!(plain.names, without.names);
    assert_eq!(plain.heads[0], without.heads[0]);
    assert!(model.pass(&prompts, Some((2, &zeros))).is_err());
    assert!(model.pass(&prompts[..1], Some((1, &zeros))).is_err());
}

#[test]
fn training_lowers_the_loss() {
    let config = SmallModelConfig {
        d_model: 16,
        heads: 2,
        steps: 60,
        batch_size: 32,
        ..SmallModelConfig::default()
    };
    let mut model = SmallModel::new(config).unwrap();
    let curve = model.train(&NoProgress).unwrap();
    assert!(curve[59] < 0.93 * curve[0], "{curve:?}");
}

fn small() -> training::IndirectObjectTraining {
    training::IndirectObjectTraining {
        d_model: 16,
        heads: 2,
        steps: 4,
        batch_size: 32,
        prompts: 100,
        ..Default::default()
    }
}

#[test]
fn a_training_with_checkpoints_makes_the_same_weights_also_when_resumed() {
    use keyfold_train::Learner;
    use training::IndirectObjectLearner;

    let mut plain = SmallModel::new(SmallModelConfig {
        d_model: 16,
        heads: 2,
        steps: 4,
        batch_size: 32,
        ..SmallModelConfig::default()
    })
    .unwrap();
    plain.train(&NoProgress).unwrap();
    let mut first = IndirectObjectLearner::new(&small()).unwrap();
    for number in 1..=2 {
        first.step(number).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    first.save(folder.path()).unwrap();
    let mut second = IndirectObjectLearner::new(&small()).unwrap();
    second.load(folder.path()).unwrap();
    for number in 3..=4 {
        second.step(number).unwrap();
    }
    assert_eq!(second.model().weights, plain.weights);
    let validation = second.validate().unwrap().unwrap();
    assert!(validation.loss > 0.0 && validation.measures[0].1 <= 1.0);
}

#[test]
fn a_model_is_read_as_it_was_written_and_damage_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let model = SmallModel::new(SmallModelConfig::default()).unwrap();
    assert!(!SmallModel::is_at(folder.path()));
    model.save(folder.path()).unwrap();
    assert!(SmallModel::is_at(folder.path()));
    let read = SmallModel::load(folder.path()).unwrap();
    assert_eq!(read.weights, model.weights);
    // A prompt is read as a pass reads it.
    let prompts = Prompt::sample(3, 40, 5).unwrap();
    let pass = read.pass(&prompts, None).unwrap();
    let text = prompts[1].words().join(" ");
    let tokens = read.tokens_of(&text).unwrap();
    let mut seen = Vec::new();
    let mut see = |layer: usize, rows: &mut [f32]| {
        if layer == 1 {
            seen = rows[rows.len() - 64..].to_vec();
        }
    };
    let logits = read.read(&tokens, &mut see).unwrap();
    // But for the order of sums, which follows the number of prompts.
    let near = |a: &[f32], b: &[f32]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
    };
    assert!(near(&logits[..40], &pass.names[40..80]));
    assert!(near(&seen, &pass.heads[1][64..128]));
    assert!(read.read(&tokens[1..], &mut |_, _| ()).is_err());
    let unknown = read.tokens_of("Then Adam").unwrap_err().to_string();
    assert!(unknown.contains("'Adam'"), "{unknown}");
    let weights = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    let damaged = SmallModel::load(folder.path()).unwrap_err().to_string();
    assert!(damaged.contains("checksum"), "{damaged}");
    // A size that the weights do not have, under a checksum that is right.
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let hash = blake3::hash(&bytes).to_hex().to_string();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["weights"] = hash.into();
    json["d_model"] = 4096.into();
    std::fs::write(&config, json.to_string()).unwrap();
    let wrong = SmallModel::load(folder.path()).unwrap_err().to_string();
    assert!(wrong.contains("config.json tells of"), "{wrong}");
    // Heads that do not share out the numbers of a state.
    json["d_model"] = 64.into();
    json["heads"] = 3.into();
    std::fs::write(&config, json.to_string()).unwrap();
    let wrong = SmallModel::load(folder.path()).unwrap_err().to_string();
    assert!(
        wrong.contains("config.json") && wrong.contains("heads"),
        "{wrong}"
    );
    // A weight that is no number.
    bytes[last - 3..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, &bytes).unwrap();
    json["heads"] = 4.into();
    json["weights"] = blake3::hash(&bytes).to_hex().to_string().into();
    std::fs::write(&config, json.to_string()).unwrap();
    let wrong = SmallModel::load(folder.path()).unwrap_err().to_string();
    assert!(wrong.contains("not finite"), "{wrong}");
    // Weights that are finite, and sums of them that are not.
    let mut huge = model.clone();
    huge.weights.fill(f32::MAX);
    let wrong = huge.read(&tokens, &mut |_, _| ()).unwrap_err().to_string();
    assert!(wrong.contains("not finite"), "{wrong}");
}

#[test]
fn the_file_of_the_task_says_what_prompts_ask() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(TASK);
    let prompts = Prompt::sample(20, 40, 6).unwrap();
    write_task(&path, &prompts, 1).unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().count(), 20);
    for (line, prompt) in text.lines().zip(&prompts) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["answer"], NAMES[prompt.io]);
        assert_eq!(line["attributes"]["s"], NAMES[prompt.s]);
        let changed = &line["counterfactuals"];
        assert_eq!(changed["io"]["answer"], changed["io"]["value"]);
        assert_eq!(changed["io_pos"]["answer"], line["answer"]);
        assert_ne!(changed["io_pos"]["value"], line["attributes"]["io_pos"]);
        assert_ne!(changed["s"]["prompt"], line["prompt"]);
    }
}
