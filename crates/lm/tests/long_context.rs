//! The long-context methods inside a whole decoder, on a model that was constructed to look
//! one thing up.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use keyfold_core::NoProgress;
use keyfold_core::block_mask::BlockMask;
use keyfold_kernels::Team;
use keyfold_lm::ModelFile;
use keyfold_lm::block_mask::PowerConfig;
use keyfold_lm::decoding::argmax;
use keyfold_lm::model::Decoder;
use keyfold_lm::prefill::hyper::{HyperConfig, HyperPrefill};
use keyfold_lm::prefill::power::PowerPrefill;
use keyfold_lm::recall::{PromptSpec, RecallConfig};
use keyfold_lm::roles::{Dims, Selector};
use keyfold_lm::select::Budget;
use keyfold_lm::select::act_qkv::{ActQkv, ActQkvConfig, Rotary};
use keyfold_lm::select::baselines::{OracleTopK, QuestPages, SlidingWindow};
use keyfold_lm::select::double_sparsity::{DoubleSparsity, DoubleSparsityConfig};
use keyfold_lm::select::power::PowerSelect;
use keyfold_lm::select::rankings::{Calibration, Rankings};
use keyfold_lm::select::tidal::{GroupRule, OverlapProbe, Tidal, TidalConfig};
use keyfold_lm::session::{AttentionInputs, Observer, Policy, Session};
use keyfold_lm::store::CacheType;

const LENGTH: usize = 512;
const PROMPTS: u64 = 4;

struct World {
    model: RecallConfig,
    decoder: Arc<Decoder>,
    team: Arc<Team>,
}

impl World {
    fn new() -> Self {
        let model = RecallConfig {
            layers: 8,
            ..RecallConfig::default()
        };
        let folder = tempfile::tempdir().unwrap();
        model.write_model(folder.path()).unwrap();
        let file = ModelFile::open(folder.path()).unwrap();
        Self {
            model,
            decoder: Arc::new(Decoder::load(&file).unwrap()),
            team: Arc::new(Team::new(2)),
        }
    }

    fn dims(&self) -> Dims {
        self.decoder.config().dims
    }

    fn session(&self, policy: Policy) -> Session {
        Session::new(Arc::clone(&self.decoder), policy, Arc::clone(&self.team))
    }

    /// Share of prompts whose value is recalled.
    fn recall(&self, policy: &dyn Fn() -> Policy) -> f64 {
        let right = (0..PROMPTS).filter(|&seed| {
            let spec = PromptSpec {
                length: LENGTH,
                depth: seed as f32 / PROMPTS as f32,
                distractors: 4,
            };
            let prompt = self.model.prompt(&spec, seed).unwrap();
            let (last, before) = prompt.tokens.split_last().unwrap();
            let mut session = self.session(policy());
            session.prefill(before, &NoProgress).unwrap();
            session.step(*last).unwrap();
            argmax(session.logits()) == prompt.answer
        });
        right.count() as f64 / PROMPTS as f64
    }

    fn dense(&self, cache: CacheType) -> Policy {
        Policy::dense(&self.decoder, cache, LENGTH).unwrap()
    }

    fn selecting(&self, cache: CacheType, new: &dyn Fn() -> Box<dyn Selector>) -> f64 {
        self.recall(&|| {
            let mut policy = self.dense(cache);
            if let Policy::Roles { selector, .. } = &mut policy {
                *selector = Some(new());
            }
            policy
        })
    }
}

struct Calibrating(Calibration);

impl Observer for Calibrating {
    fn attention(&mut self, seen: &AttentionInputs) {
        self.0.add(
            seen.layer,
            seen.queries_before,
            seen.keys_before,
            seen.queries,
            seen.keys,
        );
    }
}

impl World {
    /// Rankings from a text of this model.
    fn calibrated(&self) -> Rankings {
        let spec = PromptSpec {
            length: 256,
            depth: 0.5,
            distractors: 8,
        };
        let prompt = self.model.prompt(&spec, 99).unwrap();
        let mut calibrating = Calibrating(Calibration::new(self.dims()));
        let mut session = self.session(self.dense(CacheType::F32));
        session
            .observe(&prompt.tokens, &NoProgress, &mut calibrating)
            .unwrap();
        assert_eq!(calibrating.0.tokens(), 256);
        calibrating.0.rankings()
    }
}

#[test]
fn selectors_recall_with_few_rows_where_a_window_cannot() {
    let world = World::new();
    let dims = world.dims();
    assert_eq!(world.recall(&|| world.dense(CacheType::F16)), 1.0);
    let rankings = world.calibrated();
    for cache in [CacheType::F16, CacheType::Q8_0] {
        let sparse = world.selecting(cache, &|| {
            let config = DoubleSparsityConfig {
                heavy_const: Budget::Tokens(64),
                channels: Some(16),
                ..DoubleSparsityConfig::default()
            };
            Box::new(DoubleSparsity::new(config, dims, &rankings).unwrap())
        });
        assert_eq!(sparse, 1.0, "double sparsity on {cache:?}");
        for group in [GroupRule::Union, GroupRule::Mass, GroupRule::PerHead] {
            let tidal = world.selecting(cache, &|| {
                let config = TidalConfig {
                    top_k: Budget::Tokens(8),
                    group,
                    ..TidalConfig::for_layers(8)
                };
                Box::new(Tidal::new(config, dims).unwrap())
            });
            assert_eq!(tidal, 1.0, "tidal, {group:?} on {cache:?}");
        }
    }
    let tokens = Budget::Tokens(64);
    let oracle = world.selecting(CacheType::F16, &|| {
        Box::new(OracleTopK::new(tokens, 2, dims).unwrap())
    });
    assert_eq!(oracle, 1.0);
    let quest = world.selecting(CacheType::F16, &|| {
        Box::new(QuestPages::new(8, tokens, 2, dims).unwrap())
    });
    assert!(quest > 0.5, "{quest}");
    let window = world.selecting(CacheType::F16, &|| {
        Box::new(SlidingWindow::new(64, 0, 1, dims).unwrap())
    });
    assert!(window < 0.2, "{window}");
}

#[test]
fn masks_and_hashes_recall_where_some_layers_see_everything() {
    let world = World::new();
    let dims = world.dims();
    let power = world.recall(&|| {
        let mask = BlockMask {
            block: 64,
            window: 2,
            ..BlockMask::default()
        };
        let config = PowerConfig {
            mask,
            dense_layers: "2,5".parse().unwrap(),
            ..PowerConfig::default()
        };
        let mut policy = world.dense(CacheType::F16);
        if let Policy::Roles {
            selector, prefill, ..
        } = &mut policy
        {
            *selector = Some(Box::new(PowerSelect::new(config.clone(), dims).unwrap()));
            *prefill = Box::new(PowerPrefill::new(config, dims).unwrap());
        }
        policy
    });
    assert_eq!(power, 1.0);
    let hyper = world.recall(&|| {
        let config = HyperConfig {
            block_size: 64,
            sample_size: 64,
            min_seq_len: 128,
            layers: "last:7".parse().unwrap(),
            ..HyperConfig::default()
        };
        let mut policy = world.dense(CacheType::F16);
        if let Policy::Roles { prefill, .. } = &mut policy {
            *prefill = Box::new(HyperPrefill::new(config, dims).unwrap());
        }
        policy
    });
    assert_eq!(hyper, 1.0);
}

#[test]
fn act_qkv_recalls_from_blocks_in_bounded_memory() {
    let world = World::new();
    let dims = world.dims();
    let rotary = Rotary {
        inv_freq: (0..32)
            .map(|i| 1e30f64.powf(-2.0 * f64::from(i) / 64.0) as f32)
            .collect(),
        scale: 1.0,
        interleaved: false,
    };
    let act = world.recall(&|| {
        let config = ActQkvConfig {
            block_size: 8,
            n_init: 8,
            n_local: 64,
            exc_block_size: 32,
            topk: 16,
            repr_topk: 8,
            ..ActQkvConfig::default()
        };
        Policy::Whole(Box::new(ActQkv::new(config, dims, rotary.clone()).unwrap()))
    });
    assert!(act > 0.8, "{act}");

    let config = ActQkvConfig {
        block_size: 8,
        n_local: 64,
        exc_block_size: 32,
        ..ActQkvConfig::default()
    };
    let mut policy = Policy::Whole(Box::new(ActQkv::new(config, dims, rotary).unwrap()));
    if let Policy::Whole(whole) = &mut policy {
        assert!(whole.retrieved(3).is_empty());
    }
    let mut session = world.session(policy);
    session.prefill(&[40; 400], &NoProgress).unwrap();
    let Policy::Whole(whole) = session.policy() else {
        unreachable!()
    };
    let places = whole.retrieved(3);
    assert!(
        places.len() > 20
            && places
                .iter()
                .all(|p| p.len() == 8 && p.start >= 64 && p.end <= 336)
    );
}

#[test]
fn the_probe_sees_that_recalling_layers_choose_alike() {
    let world = World::new();
    let probe = OverlapProbe::new(Budget::Tokens(1), world.dims());
    let overlap = probe.overlap();
    let mut policy = world.dense(CacheType::F32);
    if let Policy::Roles { selector, .. } = &mut policy {
        *selector = Some(Box::new(probe));
    }
    let mut session = world.session(policy);
    let spec = PromptSpec {
        length: 200,
        depth: 0.4,
        distractors: 0,
    };
    let prompt = world.model.prompt(&spec, 3).unwrap();
    let (last, before) = prompt.tokens.split_last().unwrap();
    session.prefill(before, &NoProgress).unwrap();
    session.step(*last).unwrap();
    assert_eq!(argmax(session.logits()), prompt.answer);
    let overlap = overlap.lock().unwrap();
    let matrix = overlap.matrix();
    // Layer 0 looks at the token before, all others at the value.
    assert_eq!(matrix[8 + 7], 1.0);
    assert_eq!(matrix[1], 0.0);
    assert_eq!(overlap.best_correction_layer(2), Some(3));
}
