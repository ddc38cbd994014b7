use super::*;
use crate::sampled::WordLoss;

#[test]
fn codes_are_packed_as_numpy_packs_bits() {
    let sums = [1.0, -1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.5, -1.0, 3.0];
    assert_eq!(pack(&sums), [0b1001_0001, 0b0100_0000]);
}

#[test]
fn settings_that_make_no_sense_are_told() {
    let told = |change: &dyn Fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        config.check().unwrap_err()
    };
    assert!(told(&|c| c.bits = 12).contains("multiple of 8"));
    assert!(told(&|c| c.bits = 0).contains("multiple of 8"));
    assert!(told(&|c| c.negatives = 0).contains("negatives"));
    assert!(told(&|c| c.share_negatives = false).contains("negative_sampling"));
    assert!(told(&|c| c.learning_rate = f32::NAN).contains("learning rates"));
    assert!(Config::default().check().is_ok());
    let word2vec = Config {
        share_negatives: false,
        loss: WordLoss::NegativeSampling,
        ..Config::default()
    };
    assert!(word2vec.check().is_ok());
}

#[cfg(feature = "train")]
mod trained {
    use keyfold_core::ModelFolder;
    use keyfold_train::Learner;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::super::*;
    use crate::sampled::WordLoss;

    /// Texts of three topics, ten words each, none of them in common but `the`.
    fn texts(many: usize) -> Vec<String> {
        let mut rng = SmallRng::seed_from_u64(5);
        let mut text = |topic: usize| {
            let word = |_| match rng.random_range(0..4) {
                0 => "the".to_owned(),
                _ => format!("t{topic}w{}", rng.random_range(0..10)),
            };
            (0..30).map(word).collect::<Vec<String>>().join(" ")
        };
        (0..many).map(|i| text(i % 3)).collect()
    }

    fn config() -> Config {
        Config {
            bits: 32,
            min_count: 1,
            bigram_min_count: 3,
            subsample: 0.0,
            epochs: 8,
            batch: 32,
            step_words: 500,
            ..Config::default()
        }
    }

    fn trainer(config: &Config, threads: usize) -> Trainer {
        let texts = texts(60);
        let texts: Vec<&str> = texts.iter().map(|t| &**t).collect();
        Trainer::new(&texts, config, threads).unwrap()
    }

    fn train(config: &Config, threads: usize) -> Trainer {
        let mut trainer = trainer(config, threads);
        for step in 1..=trainer.steps() {
            assert!(trainer.step(step).unwrap().loss.is_finite(), "{step}");
        }
        trainer
    }

    fn distance(a: &[u8], b: &[u8]) -> u32 {
        a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
    }

    #[test]
    fn documents_of_a_topic_get_near_codes_also_new_ones() {
        let word2vec = Config {
            loss: WordLoss::NegativeSampling,
            share_negatives: false,
            negatives: 5,
            ..config()
        };
        let real = Config {
            real_dim: 16,
            ..config()
        };
        let memory = Config {
            architecture: Architecture::PvDm,
            learning_rate: 0.02,
            epochs: 30,
            ..config()
        };
        let beside = Config {
            context: Join::Concatenation,
            ..memory.clone()
        };
        let adagrad = Config {
            optimizer: Optimizer::Adagrad,
            learning_rate: 0.1,
            ..config()
        };
        for config in [config(), word2vec, real, memory, beside, adagrad] {
            let trainer = train(&config, 1);
            let codes = trainer.trained();
            assert_eq!(codes.len(), 60);
            let code = |i: usize| &codes[i].as_ref().unwrap().code;
            let (mut same, mut other) = (0, 0);
            for i in 3..60 {
                same += distance(code(i), code(i % 3));
                other += distance(code(i), code((i + 1) % 3));
            }
            // With PV-DM the words around tell most of it.
            assert!(same * 4 < other * 3, "{same} {other} {config:?}");

            let model = trainer.model("m");
            let new = texts(63);
            for (i, text) in new.iter().enumerate().skip(60) {
                let embedded = model.embed(text).unwrap();
                assert_eq!(embedded.real.is_some(), config.real_dim > 0);
                let to = |topic: usize| -> u32 {
                    let some = (topic..60).step_by(3);
                    some.map(|j| distance(&embedded.code, code(j))).sum()
                };
                assert!(to(i % 3) < to((i + 1) % 3), "{i} {config:?}");
                assert!(to(i % 3) < to((i + 2) % 3), "{i} {config:?}");
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_model() {
        let one = train(&config(), 1);
        let three = train(&config(), 3);
        assert_eq!(one.params, three.params);
        assert_eq!(one.documents, three.documents);
        let model = one.model("m");
        let texts = ["t0w1 t0w2", "nothing", "the t2w3"];
        assert_eq!(model.embed_all(&texts, 1), model.embed_all(&texts, 2));
    }

    #[test]
    fn a_resumed_training_gives_the_same_model() {
        resumed(&config());
        resumed(&Config {
            optimizer: Optimizer::Adagrad,
            learning_rate: 0.1,
            real_dim: 16,
            ..config()
        });
    }

    fn resumed(config: &Config) {
        let folder = tempfile::tempdir().unwrap();
        let whole = train(config, 1);
        let mut first = trainer(config, 1);
        let half = first.steps() / 2;
        (1..=half).for_each(|step| drop(first.step(step).unwrap()));
        first.save(folder.path()).unwrap();
        let mut second = trainer(config, 1);
        second.load(folder.path()).unwrap();
        (half + 1..=second.steps()).for_each(|step| drop(second.step(step).unwrap()));
        assert_eq!(second.params, whole.params);
        assert_eq!(second.documents, whole.documents);
        let mut other = trainer(
            &Config {
                bits: 64,
                ..config.clone()
            },
            1,
        );
        let error = other.load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("state.safetensors"), "{error}");
    }

    #[test]
    fn a_saved_model_gives_the_same_codes_and_damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            real_dim: 16,
            ..config()
        };
        let model = train(&config, 1).model("m");
        model.save(folder.path()).unwrap();
        assert!(ParagraphVectors::is_in(folder.path()));
        let named = ModelFolder {
            name: "m".into(),
            path: folder.path().to_owned(),
        };
        let again = ParagraphVectors::load(&named).unwrap();
        assert_eq!(again.embed("the t1w1 t1w5"), model.embed("the t1w1 t1w5"));
        let error = again.embed("no such words").unwrap_err().to_string();
        assert!(error.contains("31 words"), "{error}");
        assert!(again.embed("").is_err());

        for file in ["vocabulary.tsv", "model.safetensors", "config.json"] {
            let path = folder.path().join(file);
            let whole = std::fs::read(&path).unwrap();
            let mut bytes = whole.clone();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x11;
            for damaged in [&bytes[..], &whole[..middle], &[]] {
                std::fs::write(&path, damaged).unwrap();
                let error = ParagraphVectors::load(&named).unwrap_err().to_string();
                assert!(error.contains(file), "{error}");
            }
            std::fs::write(&path, whole).unwrap();
        }
        let newer = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
        let newer = newer.replace("\"format_version\": 1", "\"format_version\": 2");
        std::fs::write(folder.path().join("config.json"), newer).unwrap();
        let error = ParagraphVectors::load(&named).unwrap_err().to_string();
        assert!(error.contains("version 2"), "{error}");
    }

    #[test]
    fn texts_without_words_are_no_data() {
        let error = |texts: &[&str]| Trainer::new(texts, &config(), 1).err().unwrap().to_string();
        assert!(error(&[]).contains("min_count"));
        assert!(error(&["", "..."]).contains("min_count"));
    }
}
