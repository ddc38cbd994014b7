//! The decoder beside transformers, on tiny random checkpoints of every architecture
//! (parity/lm_checkpoints.py).

// A fixture that cannot be read fails the test.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyfold_core::NoProgress;
use keyfold_kernels::Team;
use keyfold_kernels::blocks::{BlockType, matmul_rounds};
use keyfold_lm::ModelFile;
use keyfold_lm::decoding::argmax;
use keyfold_lm::model::Decoder;
use keyfold_lm::prefill::dense::DensePrefill;
use keyfold_lm::session::{Policy, Session};
use keyfold_lm::store::CacheType;
use safetensors::SafeTensors;

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut found: Vec<PathBuf> = std::fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("expected.safetensors").exists())
        .collect();
    found.sort();
    assert!(found.len() >= 15);
    found
}

struct Expected {
    prompt: Vec<u32>,
    /// Of the last positions of the prompt.
    logits: Vec<f32>,
    greedy: Vec<u32>,
    greedy_logits: Vec<f32>,
}

fn expected(folder: &Path) -> Expected {
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        file.tensor(name)
            .unwrap()
            .data()
            .chunks_exact(4)
            .map(|c| c.try_into().unwrap())
            .collect()
    };
    let ids = |name| words(name).into_iter().map(u32::from_le_bytes).collect();
    let floats = |name| words(name).into_iter().map(f32::from_le_bytes).collect();
    Expected {
        prompt: ids("prompt"),
        logits: floats("logits"),
        greedy: ids("greedy"),
        greedy_logits: floats("greedy_logits"),
    }
}

fn load(folder: &Path) -> (Arc<Decoder>, usize) {
    let gguf = folder.join("model.gguf");
    let file = ModelFile::open(if gguf.exists() { &gguf } else { folder }).unwrap();
    let vocab = file.config().dims.vocab;
    (Arc::new(Decoder::load(&file).unwrap()), vocab)
}

fn session(decoder: &Arc<Decoder>, cache: CacheType, chunk: usize, threads: usize) -> Session {
    let mut policy = Policy::dense(decoder, cache, 128).unwrap();
    let config = decoder.config();
    if let Policy::Roles { prefill, .. } = &mut policy {
        *prefill = Box::new(DensePrefill::new(
            config.dims,
            config.sliding_window.clone(),
            chunk,
        ));
    }
    Session::new(Arc::clone(decoder), policy, Arc::new(Team::new(threads)))
}

/// The greatest difference, as a share of the spread of what is expected.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let spread = |f: fn(f32, f32) -> f32| expected.iter().copied().reduce(f).unwrap();
    let spread = spread(f32::max) - spread(f32::min);
    let far = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    far / spread
}

/// How the weights of a fixture are packed.
fn kind(folder: &Path) -> BlockType {
    let gguf = folder.join("model.gguf");
    let file = ModelFile::open(if gguf.exists() { &gguf } else { folder }).unwrap();
    let name = "model.layers.0.mlp.down_proj.weight";
    file.tensor(name).unwrap().kind()
}

/// While decoding, quantised weights are multiplied with activations in 8 bits, which
/// transformers does not do, and which counts much for hidden states of 32 numbers; more where
/// prompts are rounded too. Expanded weights are compared to 2e-4 in tests/trainable.rs.
fn tolerance(folder: &Path) -> f32 {
    let kind = kind(folder);
    match kind.block_len() {
        1 => 1e-4,
        _ if matmul_rounds(kind) => 0.1,
        _ => 0.05,
    }
}

/// The same for prompts, which are rounded on some machines.
fn prompt_tolerance(folder: &Path) -> f32 {
    match matmul_rounds(kind(folder)) {
        true => tolerance(folder),
        false => 1e-4,
    }
}

#[test]
fn logits_of_prompts_are_those_of_transformers_however_they_are_cut() {
    for folder in fixtures() {
        let expected = expected(&folder);
        let (decoder, vocab) = load(&folder);
        let first = expected.prompt.len() - expected.logits.len() / vocab;
        for chunk in [256, 17] {
            let mut session = session(&decoder, CacheType::F32, chunk, 2);
            let mut found = Vec::new();
            session
                .score(&expected.prompt, &NoProgress, &mut |at, logits| {
                    if at >= first {
                        found.extend_from_slice(logits);
                    }
                })
                .unwrap();
            let far = difference(&found, &expected.logits);
            let most = prompt_tolerance(&folder);
            assert!(far < most, "{}: chunk {chunk}: {far}", folder.display());
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for folder in fixtures() {
        let expected = expected(&folder);
        let (decoder, vocab) = load(&folder);
        for threads in [1, 3] {
            let mut session = session(&decoder, CacheType::F32, 256, threads);
            session.prefill(&expected.prompt, &NoProgress).unwrap();
            for (&token, logits) in expected
                .greedy
                .iter()
                .zip(expected.greedy_logits.chunks(vocab))
            {
                let far = difference(session.logits(), logits);
                assert!(far < tolerance(&folder), "{}: {far}", folder.display());
                if tolerance(&folder) < 1e-3 {
                    assert_eq!(argmax(session.logits()), token, "{}", folder.display());
                }
                session.step(token).unwrap();
            }
        }
    }
}

#[test]
fn a_prompt_read_token_by_token_gives_the_same_and_smaller_caches_nearly_the_same() {
    for folder in fixtures() {
        let expected = expected(&folder);
        let (decoder, _) = load(&folder);
        let mut whole = session(&decoder, CacheType::F32, 256, 1);
        whole.prefill(&expected.prompt, &NoProgress).unwrap();
        let mut single = session(&decoder, CacheType::F32, 256, 1);
        single.prefill(&expected.prompt[..1], &NoProgress).unwrap();
        for &token in &expected.prompt[1..] {
            single.step(token).unwrap();
        }
        // Dynamic scaling rotates the tokens of a prompt as the length of all of it says.
        if !folder.ends_with("llama-rope-dynamic") {
            let limit = tolerance(&folder);
            let far = difference(single.logits(), whole.logits());
            assert!(far < limit, "{}: {far}", folder.display());
        }
        let mut small = session(&decoder, CacheType::F16, 256, 1);
        small.prefill(&expected.prompt, &NoProgress).unwrap();
        let far = difference(small.logits(), whole.logits());
        assert!(
            far < 0.01f32.max(tolerance(&folder)),
            "{}: {far}",
            folder.display()
        );
    }
}

#[test]
fn candidates_see_what_a_step_sees_and_leave_nothing_behind() {
    for name in ["llama", "mistral", "gpt2", "qwen3"] {
        let folder = fixtures().into_iter().find(|f| f.ends_with(name)).unwrap();
        let expected = expected(&folder);
        let (decoder, vocab) = load(&folder);
        let hidden = decoder.config().dims.hidden;
        let mut tried = session(&decoder, CacheType::F32, 256, 2);
        tried.prefill(&expected.prompt, &NoProgress).unwrap();
        for round in 0..3 {
            tried.candidates(&[1 + round, 2, 7]).unwrap();
            for (i, token) in [1 + round, 2, 7].into_iter().enumerate() {
                let mut stepped = session(&decoder, CacheType::F32, 256, 2);
                stepped.prefill(tried.tokens(), &NoProgress).unwrap();
                stepped.step(token).unwrap();
                let at = i * vocab..(i + 1) * vocab;
                assert!(
                    difference(&tried.logits()[at], stepped.logits()) < 1e-4,
                    "{name}"
                );
                let at = i * hidden..(i + 1) * hidden;
                assert!(
                    difference(&tried.hidden()[at], stepped.hidden()) < 1e-4,
                    "{name}"
                );
            }
            tried.accept(2, 7).unwrap();
            assert!(
                tried.accept(0, 2).is_err(),
                "they were tried for another place"
            );
            let mut stepped = session(&decoder, CacheType::F32, 256, 2);
            stepped.prefill(tried.tokens(), &NoProgress).unwrap();
            assert!(
                difference(tried.logits(), stepped.logits()) < 1e-4,
                "{name}"
            );
        }
    }
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let folder = fixtures()
        .into_iter()
        .find(|f| f.ends_with("gpt2"))
        .unwrap();
    let (decoder, vocab) = load(&folder);
    let limit = decoder.config().context_limit().unwrap();
    let mut session = session(&decoder, CacheType::F32, 256, 1);
    let said = |e: Result<(), keyfold_lm::LmError>| e.unwrap_err().to_string();
    assert!(said(session.prefill(&[], &NoProgress)).contains("empty"));
    assert!(said(session.prefill(&[vocab as u32], &NoProgress)).contains(&vocab.to_string()));
    assert!(said(session.prefill(&vec![0; limit + 1], &NoProgress)).contains("context"));
    assert!(session.tokens().is_empty());
    session.prefill(&[1, 2, 3], &NoProgress).unwrap();
    assert!(said(session.accept(0, 1)).contains("candidate"));
}

#[test]
fn a_saved_prompt_goes_on_as_if_it_had_been_read() {
    let folder = fixtures()
        .into_iter()
        .find(|f| f.ends_with("llama"))
        .unwrap();
    let expected = expected(&folder);
    let (decoder, _) = load(&folder);
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("prompt");
    let with = |cache| session(&decoder, cache, 256, 1);
    let fresh = || with(CacheType::F16);
    let mut first = fresh();
    first.prefill(&expected.prompt[..40], &NoProgress).unwrap();
    keyfold_lm::prompt_cache::save(&mut first, &path).unwrap();
    let mut whole = fresh();
    whole.prefill(&expected.prompt, &NoProgress).unwrap();
    let read = |path: &Path, cache| {
        let mut again = with(cache);
        let held =
            keyfold_lm::prompt_cache::prefill(&mut again, path, &expected.prompt, &NoProgress)?;
        Ok::<_, keyfold_lm::LmError>((held, again.logits().to_vec()))
    };
    let (held, logits) = read(&path, CacheType::F16).unwrap();
    assert_eq!(held, 40);
    assert!(difference(&logits, whole.logits()) < 1e-4);
    assert!(
        read(&path, CacheType::F32)
            .unwrap_err()
            .to_string()
            .contains("--cache")
    );
    // Any byte that changes is noticed, and so is a file that ends early.
    let bytes = std::fs::read(&path).unwrap();
    let bad = scratch.path().join("bad");
    for at in (0..bytes.len()).step_by(bytes.len() / 50 + 1) {
        let mut changed = bytes.clone();
        changed[at] ^= 4;
        std::fs::write(&bad, &changed).unwrap();
        assert!(read(&bad, CacheType::F16).is_err(), "byte {at}");
        std::fs::write(&bad, &bytes[..at]).unwrap();
        assert!(read(&bad, CacheType::F16).is_err(), "length {at}");
    }
}

#[test]
fn contrastive_search_picks_what_the_formula_picks() {
    use keyfold_lm::decoding::{ContrastiveConfig, ContrastiveSearch};
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let text = std::fs::read_to_string(root.join("../contrastive.json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (name, reference) in all.as_object().unwrap() {
        let folder = root.join(name);
        let (decoder, _) = load(&folder);
        let mut session = session(&decoder, CacheType::F32, 256, 2);
        session.keep_hidden(true);
        session
            .prefill(&expected(&folder).prompt, &NoProgress)
            .unwrap();
        session.keep_hidden(false);
        let hidden = decoder.config().dims.hidden;
        let mut search = ContrastiveSearch::new(ContrastiveConfig::default(), hidden);
        search.push(session.hidden());
        let tokens = reference["tokens"].as_array().unwrap();
        for (step, token) in tokens.iter().enumerate() {
            let candidates: Vec<u32> = search
                .candidates(session.logits())
                .iter()
                .map(|c| c.0)
                .collect();
            session.candidates(&candidates).unwrap();
            let pick = search.pick(session.hidden());
            let number = |field: &str| reference[field][step].as_f64().unwrap() as f32;
            assert!(
                (pick.score - number("scores")).abs() < 1e-3,
                "{name} {step}"
            );
            assert!((pick.probability - number("probabilities")).abs() < 1e-4);
            assert!((pick.penalty - number("penalties")).abs() < 1e-3);
            assert_eq!(
                u64::from(candidates[pick.candidate]),
                token.as_u64().unwrap(),
                "{name} {step}"
            );
            session
                .accept(pick.candidate, candidates[pick.candidate])
                .unwrap();
        }
    }
}

/// A map that gives zeros.
struct Nothing([usize; 2]);

impl keyfold_lm::linear::Linear for Nothing {
    fn rows(&self) -> usize {
        self.0[0]
    }

    fn cols(&self) -> usize {
        self.0[1]
    }

    fn apply(
        &self,
        _x: &mut keyfold_kernels::blocks::Activations,
        out: &mut [f32],
        _decoding: bool,
        _team: &Team,
    ) {
        out.fill(0.0);
    }

    fn bytes_read(&self) -> u64 {
        0
    }
}

#[test]
fn a_linear_map_can_be_replaced_by_one_of_its_shape() {
    use keyfold_lm::model::LinearName;
    let folder = fixtures().into_iter().find(|f| f.ends_with("llama"));
    let folder = folder.unwrap();
    let expected = expected(&folder);
    let (decoder, _) = load(&folder);
    let mut decoder = Arc::into_inner(decoder).unwrap();
    let before = decoder.weight_bytes();
    let [rows, cols] = {
        let down = decoder.layers()[1].linear(LinearName::Down).unwrap();
        [down.rows(), down.cols()]
    };
    let wrong = Box::new(Nothing([cols, rows]));
    assert!(decoder.replace(1, LinearName::Down, wrong).is_err());
    let right = Box::new(Nothing([rows, cols]));
    decoder.replace(1, LinearName::Down, right).unwrap();
    assert!(decoder.weight_bytes() < before);
    let mut session = session(&Arc::new(decoder), CacheType::F32, 256, 1);
    session.prefill(&expected.prompt, &NoProgress).unwrap();
    let last = expected.logits.len() - session.logits().len();
    assert!(difference(session.logits(), &expected.logits[last..]) > 0.01);
}
