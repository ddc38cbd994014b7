use super::*;

#[test]
fn settings_that_make_no_sense_are_told() {
    let told = |change: &dyn Fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        config.check().unwrap_err()
    };
    assert!(told(&|c| c.senses = 1).contains("fewer than 2"));
    assert!(told(&|c| c.dim = 0).contains("dim"));
    assert!(told(&|c| c.momentum.clear()).contains("momentum"));
    assert!(told(&|c| c.last_temperature = 0.0).contains("temperatures"));
    assert!(Config::default().check().is_ok());
}

#[cfg(feature = "train")]
mod trained {
    use keyfold_train::Learner;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::super::*;

    const CALM: [&str; 6] = ["river", "water", "shore", "mud", "reed", "boat"];
    const RICH: [&str; 6] = ["money", "loan", "credit", "cash", "teller", "vault"];

    /// Sentences about rivers and about money; both have banks.
    fn text() -> String {
        let mut rng = SmallRng::seed_from_u64(3);
        let mut sentence = |words: [&str; 6]| {
            let mut all: Vec<&str> = (0..7).map(|_| words[rng.random_range(0..6)]).collect();
            all[3] = "bank";
            all.join(" ") + ". "
        };
        (0..600)
            .map(|i| sentence(if i % 2 == 0 { CALM } else { RICH }))
            .collect()
    }

    fn config() -> Config {
        Config {
            senses: 2,
            dim: 16,
            min_count: 5,
            negatives: 4,
            first_learning_rate: 1.0,
            learning_rates: vec![1.0, 1.0, 0.5, 0.5],
            batch: 32,
            round: 2,
            step_words: 1000,
            ..Config::default()
        }
    }

    fn train(config: &Config, threads: usize) -> Trainer {
        let mut trainer = Trainer::new(&[&text()], config, threads).unwrap();
        for step in 1..=trainer.steps() {
            assert!(trainer.step(step).unwrap().loss.is_finite(), "{step}");
        }
        trainer
    }

    #[test]
    fn a_word_of_two_meanings_gets_a_sense_for_each() {
        let model = train(&config(), 1).model();
        let sense = |sentence: &str| {
            let weights = model.disambiguate(sentence, "bank").unwrap();
            assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            usize::from(weights[1] > weights[0])
        };
        let calm = sense("the boat lay in mud by the river bank with reed");
        let rich = sense("the bank gave cash, credit and a loan of money");
        assert_ne!(calm, rich);
        let senses = model.senses("Bank", 3).unwrap();
        assert_eq!(senses.len(), 2);
        for sense in &senses {
            let of: &[&str] = if sense.sense == calm { &CALM } else { &RICH };
            assert!((0.3..0.7).contains(&sense.prior), "{sense:?}");
            for (word, _) in &sense.near {
                assert!(of.contains(&&**word), "{sense:?}");
            }
        }

        assert!(
            model
                .senses("tree", 3)
                .unwrap_err()
                .to_string()
                .contains("tree")
        );
        assert!(model.senses("UNKNOWN", 3).is_err());
        let refused = |sentence: &str| model.disambiguate(sentence, "bank").unwrap_err();
        assert!(matches!(
            refused("river water"),
            SenseError::NotInSentence { .. }
        ));
        assert!(matches!(
            refused("a bank of snow"),
            SenseError::NoContext { .. }
        ));
    }

    #[test]
    fn threads_and_a_new_start_give_the_same_model() {
        let whole = train(&config(), 1);
        assert_eq!(whole.params, train(&config(), 3).params);
        // Stopped in the first stage, at its end, and in the second stage.
        let per_epoch = whole.steps_per_epoch();
        for at in [1, per_epoch, per_epoch + 2] {
            let folder = tempfile::tempdir().unwrap();
            let mut first = Trainer::new(&[&text()], &config(), 1).unwrap();
            (1..=at).for_each(|step| drop(first.step(step).unwrap()));
            first.save(folder.path()).unwrap();
            let mut second = Trainer::new(&[&text()], &config(), 1).unwrap();
            second.load(folder.path()).unwrap();
            (at + 1..=second.steps()).for_each(|step| drop(second.step(step).unwrap()));
            assert_eq!(second.params, whole.params, "{at}");
        }
    }

    #[test]
    fn a_saved_model_is_the_same_and_damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        // Only `bank` gets a classifier of its own.
        let config = Config {
            classifier_min_count: 400,
            ..config()
        };
        let model = train(&config, 1).model();
        assert_eq!(model.params.classifier.values.len(), 2 * 32);
        model.save(folder.path()).unwrap();
        let named = ModelFolder {
            name: "m".into(),
            path: folder.path().to_owned(),
        };
        let again = SenseVectors::load(&named).unwrap();
        assert_eq!(again.priors, model.priors);
        assert_eq!(again.senses("bank", 4), model.senses("bank", 4));
        let path = folder.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = SenseVectors::load(&named).unwrap_err().to_string();
        assert!(
            error.contains("model.safetensors") && error.contains("checksum"),
            "{error}"
        );
    }
}
