//! The constructed recall model, and what keeps and chooses its rows.

// Every test file uses its own part of this.
#![allow(dead_code)]
// A fixture that cannot be read fails the test.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use keyfold_core::NoProgress;
use keyfold_kernels::Team;
use keyfold_lm::block_mask::{DenseLayers, PowerConfig};
use keyfold_lm::recall::{PromptSpec, RecallConfig, RecallPrompt};
use keyfold_lm::roles::{Evictor, KvStore, Selector};
use keyfold_lm::select::Budget;
use keyfold_lm::select::double_sparsity::{DoubleSparsity, DoubleSparsityConfig};
use keyfold_lm::select::power::PowerSelect;
use keyfold_lm::select::rankings::Rankings;
use keyfold_lm::select::tidal::{Tidal, TidalConfig};
use keyfold_lm::session::{AttentionInputs, Observer};
use keyfold_lm::store::CacheType;
use keyfold_lm::store::kvquant::{
    Calibration, CalibrationConfig, KvQuantConfig, KvQuantStore, Statistics, model_hash,
};
use keyfold_lm::{Decoder, ModelFile, Policy, Session};

/// Layers of the model.
pub(crate) const LAYERS: usize = 6;

/// The model, and the threads that read it.
pub(crate) struct Model {
    pub(crate) file: ModelFile,
    pub(crate) decoder: Arc<Decoder>,
    pub(crate) config: RecallConfig,
    pub(crate) team: Arc<Team>,
}

impl Model {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = RecallConfig {
            layers: LAYERS,
            ..RecallConfig::default()
        };
        config.write_model(folder.path()).unwrap();
        let file = ModelFile::open(folder.path()).unwrap();
        Self {
            decoder: Arc::new(Decoder::load(&file).unwrap()),
            file,
            config,
            team: Arc::new(Team::new(2)),
        }
    }

    /// A question on a pair that stands in `length` tokens.
    pub(crate) fn prompt(&self, length: usize, seed: u64) -> RecallPrompt {
        let spec = PromptSpec {
            length,
            depth: 0.4,
            distractors: 6,
        };
        self.config.prompt(&spec, seed).unwrap()
    }

    /// Tables for KVQuant, made without the `first_few` tokens of a text.
    pub(crate) fn calibrate(&self, first_few: usize) -> Calibration {
        struct Feed(Statistics);
        impl Observer for Feed {
            fn attention(&mut self, seen: &AttentionInputs) {
                let noted = self
                    .0
                    .observe(seen.layer, seen.keys_before, seen.values, None, None);
                noted.unwrap();
            }
        }
        let dims = self.decoder.config().dims;
        let mut feed = Feed(Statistics::new(dims, first_few, false));
        for seed in 0..3 {
            feed.0.begin_sequence();
            let policy = Policy::dense(&self.decoder, CacheType::F32, 300).unwrap();
            let mut session = self.session(policy);
            let tokens = self.prompt(300, 100 + seed).tokens;
            session.observe(&tokens, &NoProgress, &mut feed).unwrap();
        }
        let hash = model_hash(&self.file).unwrap();
        let made = CalibrationConfig::default();
        feed.0.calibrate(&made, Some(hash), &self.team).unwrap()
    }

    pub(crate) fn kvquant(&self, bits: u8, calibration: &Calibration) -> KvQuantStore {
        let config = KvQuantConfig {
            abits: bits,
            ..KvQuantConfig::default()
        };
        KvQuantStore::new(self.decoder.config(), config, calibration).unwrap()
    }

    pub(crate) fn session(&self, policy: Policy) -> Session {
        Session::new(Arc::clone(&self.decoder), policy, Arc::clone(&self.team))
    }

    /// A session by these roles.
    pub(crate) fn with(
        &self,
        store: Box<dyn KvStore>,
        of_selector: Option<Box<dyn Selector>>,
        of_evictor: Option<Box<dyn Evictor>>,
    ) -> Session {
        let mut policy = Policy::of(&self.decoder, store);
        if let Policy::Roles {
            selector, evictor, ..
        } = &mut policy
        {
            *selector = of_selector;
            *evictor = of_evictor;
        }
        self.session(policy)
    }

    /// Selectors; for the one by blocks `dense` layers read everything.
    pub(crate) fn selectors(&self, dense: Vec<usize>) -> Vec<(&'static str, Box<dyn Selector>)> {
        let dims = self.decoder.config().dims;
        let double = DoubleSparsityConfig {
            heavy_const: Budget::Tokens(64),
            channels: Some(16),
            ..DoubleSparsityConfig::default()
        };
        let tidal = TidalConfig {
            top_k: Budget::Tokens(64),
            ..TidalConfig::for_layers(LAYERS)
        };
        let power = PowerConfig {
            dense_layers: DenseLayers::List(dense),
            ..PowerConfig::default()
        };
        let live = Rankings::random(&dims, 1);
        vec![
            (
                "double",
                Box::new(DoubleSparsity::new(double, dims, &live).unwrap()),
            ),
            ("tidal", Box::new(Tidal::new(tidal, dims).unwrap())),
            ("power", Box::new(PowerSelect::new(power, dims).unwrap())),
        ]
    }
}
