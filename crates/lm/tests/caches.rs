//! Folded caches in a whole model: the constructed recall model knows the right answer.

// A fixture that cannot be read fails the test.
#![allow(clippy::unwrap_used)]

mod common;

use common::{LAYERS, Model};
use keyfold_core::NoProgress;
use keyfold_lm::decoding::argmax;
use keyfold_lm::evict::h2o::{H2o, H2oConfig};
use keyfold_lm::evict::look_m::{LookM, LookMConfig};
use keyfold_lm::evict::{Merge, Ratios};
use keyfold_lm::prompt_cache;
use keyfold_lm::recall::{RecallConfig, RecallPrompt};
use keyfold_lm::roles::{Evictor, KvStore, Selector, TokenKinds};
use keyfold_lm::store::kvquant::model_hash;
use keyfold_lm::store::{CacheType, DenseStore};
use keyfold_lm::{ModelFile, Policy, Session};

/// This model was not trained on the mask of blocks: every layer is told to be dense.
fn selectors(model: &Model) -> Vec<(&'static str, Box<dyn Selector>)> {
    model.selectors((0..LAYERS).collect())
}

/// Reads the context, then the question as a decoded token.
fn answers(mut session: Session, prompt: &RecallPrompt) -> bool {
    let (&question, context) = prompt.tokens.split_last().unwrap();
    session.prefill(context, &NoProgress).unwrap();
    session.step(question).unwrap();
    argmax(session.logits()) == prompt.answer
}

#[test]
fn few_bits_recall_under_every_selector() {
    let model = Model::new();
    let calibration = model.calibrate(1);
    for bits in [2, 3, 4] {
        let prompt = model.prompt(700, u64::from(bits));
        let store = || Box::new(model.kvquant(bits, &calibration));
        assert!(
            answers(model.with(store(), None, None), &prompt),
            "{bits} bits"
        );
        for (name, selector) in selectors(&model) {
            let session = model.with(store(), Some(selector), None);
            assert!(answers(session, &prompt), "{bits} bits, {name}");
        }
    }
}

#[test]
fn a_calibration_of_another_model_is_refused() {
    let model = Model::new();
    let calibration = model.calibrate(1);
    let own = model_hash(&model.file).unwrap();
    assert_eq!(calibration.model, Some(own));
    calibration.check_model(own).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let other = RecallConfig {
        seed: 1,
        ..model.config.clone()
    };
    other.write_model(folder.path()).unwrap();
    let file = ModelFile::open(folder.path()).unwrap();
    let error = calibration.check_model(model_hash(&file).unwrap());
    assert!(error.unwrap_err().to_string().contains("another model"));
}

#[test]
fn a_prompt_in_few_bits_is_kept_in_a_file() {
    let model = Model::new();
    let calibration = model.calibrate(1);
    let prompt = model.prompt(300, 5);
    let (&question, context) = prompt.tokens.split_last().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompt");
    let fresh = |bits| model.with(Box::new(model.kvquant(bits, &calibration)), None, None);
    let mut first = fresh(3);
    first.prefill(context, &NoProgress).unwrap();
    prompt_cache::save(&mut first, &path).unwrap();
    first.step(question).unwrap();
    let mut again = fresh(3);
    let held = prompt_cache::prefill(&mut again, &path, context, &NoProgress).unwrap();
    assert_eq!(held, context.len() - 1);
    again.step(question).unwrap();
    let apart = first
        .logits()
        .iter()
        .zip(again.logits())
        .map(|(a, b)| (a - b).abs());
    assert!(apart.fold(0.0, f32::max) < 1e-3);
    let error = prompt_cache::prefill(&mut fresh(4), &path, context, &NoProgress).unwrap_err();
    assert!(error.to_string().contains("--cache"));
}

/// A question on a pair in the text, behind many tokens that stand for an image.
fn multimodal(model: &Model, seed: u64) -> (RecallPrompt, TokenKinds) {
    let mut prompt = model.prompt(120, seed);
    let fillers = model.prompt(600, seed + 50).tokens;
    let image = fillers.into_iter().filter(|t| *t >= 32).take(400);
    let at = prompt.tokens.len() - 20;
    let image: Vec<u32> = image.collect();
    let span = (at as u32, (at + image.len()) as u32);
    prompt.tokens.splice(at..at, image);
    (prompt, TokenKinds { images: vec![span] })
}

#[test]
fn text_survives_the_images_and_selectors_read_what_is_left() {
    let model = Model::new();
    let dims = model.decoder.config().dims;
    let calibration = model.calibrate(1);
    let look_m = |merge| -> Box<dyn Evictor> {
        let config = LookMConfig {
            ratios: Ratios {
                hh_ratio: 0.1,
                recent_ratio: 0.05,
            },
            merge,
            merge_mass: false,
        };
        Box::new(LookM::new(config, dims).unwrap())
    };
    for seed in 0..3 {
        let (prompt, kinds) = multimodal(&model, seed);
        let rows = prompt.tokens.len() - 1;
        let run = |store: Box<dyn KvStore>, selector, merge| {
            let mut session = model.with(store, selector, Some(look_m(merge)));
            session.set_kinds(kinds.clone());
            let (&question, context) = prompt.tokens.split_last().unwrap();
            session.prefill(context, &NoProgress).unwrap();
            let Policy::Roles { store, .. } = session.policy() else {
                unreachable!()
            };
            // Text and newest rows; the images are gone.
            assert!(store.len(3, 1) < rows * 2 / 5, "{}", store.len(3, 1));
            assert_eq!(store.len(3, 1), store.positions(3, 1).len());
            session.step(question).unwrap();
            argmax(session.logits()) == prompt.answer
        };
        let plain =
            || -> Box<dyn KvStore> { Box::new(DenseStore::new(dims, CacheType::F16, 0).unwrap()) };
        assert!(run(plain(), None, Merge::None));
        assert!(run(plain(), None, Merge::Pivotal));
        for (name, selector) in selectors(&model) {
            assert!(run(plain(), Some(selector), Merge::Pivotal), "{name}");
        }
        for (name, selector) in selectors(&model) {
            let store = Box::new(model.kvquant(4, &calibration));
            assert!(
                run(store, Some(selector), Merge::Pivotal),
                "kvquant, {name}"
            );
        }
    }
}

#[test]
fn spans_outside_of_the_prompt_are_refused() {
    let model = Model::new();
    let dims = model.decoder.config().dims;
    let h2o = H2o::new(H2oConfig::default(), dims).unwrap();
    let store = DenseStore::new(dims, CacheType::F16, 0).unwrap();
    let mut session = model.with(Box::new(store), None, Some(Box::new(h2o)));
    session.set_kinds(TokenKinds {
        images: vec![(10, 60)],
    });
    let tokens = model.prompt(50, 1).tokens;
    let error = session.prefill(&tokens, &NoProgress).unwrap_err();
    assert!(error.to_string().contains("50 tokens"));
    session.set_kinds(TokenKinds::default());
    session.prefill(&tokens, &NoProgress).unwrap();
    let Policy::Roles { store, .. } = session.policy() else {
        unreachable!()
    };
    assert_eq!(store.len(0, 0), 10);
}
