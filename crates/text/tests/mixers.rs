//! Encoders of mixers and small Mamba models with attention to few keys: they learn, and their
//! folders give them again.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

use std::path::Path;

use burn::tensor::Device;
use keyfold_core::{ModelFolder, NoProgress};
use keyfold_text::training::Place;
use keyfold_train::gradient::OptimConfig;
use keyfold_train::{Report, RunConfig, TrainError};

mod masked {
    use super::*;
    use keyfold_nn::{MixerEncoder, MixerEncoderConfig, MixerKind};
    use keyfold_text::masked_model::{MaskedModelConfig, Measured, train};

    fn tiny(mixer: MixerKind) -> MaskedModelConfig {
        MaskedModelConfig {
            model: MixerEncoderConfig {
                matrix_mixer_type: mixer,
                hidden_size: 16,
                num_hidden_layers: 2,
                max_position_embeddings: 32,
                d_state: 4,
                qk_dim: 4,
                headdim: 16,
                initializer_range: 0.1,
                ..MaskedModelConfig::default().model
            },
            length: 32,
            batch_size: 8,
            held_out: 0.1,
            optim: OptimConfig {
                max_steps: 200,
                learning_rate: 2e-2,
                warmup_steps: 5,
                ..MaskedModelConfig::default().optim
            },
            run: RunConfig {
                checkpoint_every: 0,
                validate_every: 100,
                ..RunConfig::default()
            },
            ..MaskedModelConfig::default()
        }
    }

    fn text() -> String {
        "the cat sat on the mat; the dog sat on the log. ".repeat(60)
    }

    fn train_in(out: &Path, text: &str, config: &MaskedModelConfig) -> Result<Report, TrainError> {
        let place = Place {
            out,
            resume: false,
            progress: &NoProgress,
            watch: &mut |_| (),
        };
        train(text, config, place)
    }

    #[test]
    fn every_mixer_learns_and_its_folder_gives_the_model_again() {
        let device = Device::flex();
        for mixer in MixerKind::ALL {
            let folder = tempfile::tempdir().unwrap();
            let config = tiny(mixer);
            let report = train_in(folder.path(), &text(), &config).unwrap();
            let (_, loss) = report.best.unwrap();
            // The letters by how frequent they are would be 2.5.
            assert!(loss < 2.0, "{mixer:?}: {loss}");
            let found = ModelFolder::find(&folder.path().to_string_lossy()).unwrap();
            let model = MixerEncoder::load(&found, &device).unwrap();
            let held_out = &text().into_bytes()[(60.0 * 48.0 * 0.9) as usize..];
            let measured = Measured::of(&model, held_out, &config).unwrap().unwrap();
            assert!(
                (measured.loss - loss).abs() < 1e-4,
                "{mixer:?}: {measured:?} {loss}"
            );
            let error = model.states(&[1; 33], &[0, 33]).unwrap_err().to_string();
            assert!(error.contains("33 tokens"), "{error}");
            let error = model.states(&[999], &[0, 1]).unwrap_err().to_string();
            assert!(error.contains("token 999"), "{error}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refuse = |text: &str, change: &dyn Fn(&mut MaskedModelConfig)| {
            let mut config = tiny(MixerKind::Hydra);
            change(&mut config);
            train_in(folder.path(), text, &config)
                .unwrap_err()
                .to_string()
        };
        assert!(refuse("too short", &|_| ()).contains("9 bytes"));
        assert!(refuse(&text(), &|c| c.length = 64).contains("max_position_embeddings"));
        assert!(refuse(&text(), &|c| c.mask_share = 0.0).contains("mask_share"));
        assert!(refuse(&text(), &|c| c.model.d_conv = 4).contains("d_conv"));
        assert!(refuse(&text(), &|c| c.model.headdim = 5).contains("headdim"));
        assert!(refuse(&text(), &|c| c.model.is_prenorm = true).contains("is_prenorm"));
    }
}

mod recall {
    use super::*;
    use keyfold_nn::{HaxKind, HaxModel, HaxModelConfig};
    use keyfold_sequence::hax::{self, Source};
    use keyfold_sequence::recall::{JointRecall, MultiQueryRecall};
    use keyfold_text::hax::{Answered, HaxConfig, HaxTask, train};

    /// Two or three pairs to recall.
    fn tiny(base: HaxKind, sparse: hax::HaxConfig) -> HaxConfig {
        HaxConfig {
            model: HaxModelConfig {
                base,
                sparse,
                vocab_size: 0,
                hidden_size: 32,
                state_size: 16,
                ..HaxModelConfig::default()
            },
            task: HaxTask::MultiQueryRecall,
            multi_query_recall: MultiQueryRecall {
                vocab_size: 24,
                input_seq_len: 16,
                num_kv_pairs: 2,
                random_non_queries: false,
                ..MultiQueryRecall::default()
            },
            joint_recall: JointRecall {
                least: 1,
                max_n_context: 2,
                max_n_key: 2,
                n_value: 4,
            },
            length: 32,
            batch_size: 16,
            validation_texts: 64,
            optim: OptimConfig {
                learning_rate: 1e-2,
                max_steps: 250,
                warmup_steps: 20,
                ..HaxConfig::default().optim
            },
            run: RunConfig {
                checkpoint_every: 0,
                validate_every: 250,
                ..RunConfig::default()
            },
            ..HaxConfig::default()
        }
    }

    fn keys(sources: &[Source]) -> hax::HaxConfig {
        hax::HaxConfig {
            sparse_arch: sources.to_vec(),
            sparse_keys: 4,
            num_hash: 2,
            ..hax::HaxConfig::default()
        }
    }

    fn train_in(out: &Path, text: &str, config: &HaxConfig) -> Result<Report, TrainError> {
        let place = Place {
            out,
            resume: false,
            progress: &NoProgress,
            watch: &mut |_| (),
        };
        train(text, config, place)
    }

    #[test]
    fn models_learn_to_recall_and_their_folders_give_them_again() {
        let both = [Source::SignBinLsh, Source::KeySelection];
        for (base, sparse) in [
            (HaxKind::Mamba2, keys(&[])),
            (HaxKind::Mamba2, keys(&both)),
            (HaxKind::Mamba, keys(&both)),
            (HaxKind::Mamba2, keys(&[Source::SlidingWindow])),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let config = HaxConfig {
                // It counts for language alone.
                length: 0,
                ..tiny(base, sparse)
            };
            let report = train_in(folder.path(), "", &config).unwrap();
            let (_, loss) = report.best.unwrap();
            // Any of the 12 values: 2.48; one of the two that were said: 0.69.
            assert!(loss < 1.2, "{base:?}: {loss}");
            let found = ModelFolder::find(&folder.path().to_string_lossy()).unwrap();
            let model = HaxModel::load(&found, &Device::flex()).unwrap();
            assert_eq!(model.config().sparse, config.model.sparse);
            let texts: Vec<_> = (0..50)
                .map(|seed| config.multi_query_recall.text(seed).unwrap())
                .collect();
            let answered = Answered::of(&model, &texts).unwrap();
            assert_eq!(answered.questions, 100);
            assert!(answered.loss < 1.4, "{base:?}: {answered:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refuse = |text: &str, change: &dyn Fn(&mut HaxConfig)| {
            let mut config = tiny(HaxKind::Mamba2, keys(&[Source::SlidingWindow]));
            change(&mut config);
            train_in(folder.path(), text, &config)
                .unwrap_err()
                .to_string()
        };
        assert!(refuse("", &|c| c.model.vocab_size = 5).contains("24 tokens"));
        assert!(refuse("short", &|c| c.task = HaxTask::Language).contains("5 bytes"));
        assert!(refuse("", &|c| c.multi_query_recall.num_kv_pairs = 9).contains("9 pairs"));
        assert!(refuse("", &|c| c.gate_loss = -1.0).contains("gate_loss"));
        assert!(refuse("", &|c| c.model.head_dim = 5).contains("headdim 5"));
        let full = [Source::Full, Source::Sink];
        assert!(refuse("", &|c| c.model.sparse = keys(&full)).contains("full"));
    }
}
