#![allow(clippy::unwrap_used)]

use keyfold_core::NoProgress;

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
