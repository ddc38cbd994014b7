#![allow(clippy::unwrap_used)]

use super::search::{SearchConfig, Trials};
use super::*;
use crate::model::LinearName;
use crate::session::{Policy, Session};
use crate::store::CacheType;
use crate::test_store::{Fixture, assert_near, numbers};
use crate::{Decoder, ModelFile};
use keyfold_core::NoProgress;
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;

const INPUTS: usize = 24;
const OUTPUTS: usize = 40;

/// `[out, in]` as a tensor of single precision.
fn tensor(weight: &[f32], inputs: usize) -> Tensor {
    let bytes = weight.iter().flat_map(|x| x.to_le_bytes()).collect();
    let shape = vec![weight.len() / inputs, inputs];
    Tensor::in_memory(BlockType::F32, shape, bytes)
}

fn linear(split: Split, threshold: Option<f32>, cap: Option<usize>) -> (RSparseLinear, Vec<f32>) {
    let weight = numbers(1, INPUTS * OUTPUTS);
    let rank = split.rank(INPUTS, OUTPUTS);
    let tensor = tensor(&weight, INPUTS);
    let factors = svd(&weight, INPUTS, rank).unwrap();
    let mut parts = Parts::new(&tensor, &split, threshold, Some((&factors, rank)), None);
    parts.cap = cap;
    (RSparseLinear::new(parts).unwrap(), weight)
}

fn apply(linear: &dyn Linear, x: &[f32], decoding: bool) -> Vec<f32> {
    let mut rows = Activations::new();
    rows.set(x, linear.cols());
    let mut out = vec![0.0; x.len() / linear.cols() * linear.rows()];
    linear.apply(&mut rows, &mut out, decoding, &Team::new(2));
    out
}

/// `W x` in double precision.
fn product(weight: &[f32], x: &[f32]) -> Vec<f32> {
    let row = |w: &[f32]| -> f64 {
        let terms = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
        terms.sum()
    };
    weight
        .chunks_exact(x.len())
        .map(|w| row(w) as f32)
        .collect()
}

#[test]
fn budgets_are_those_of_the_paper() {
    let split = Split::default();
    assert_eq!(split.channels(1024), 486.4);
    // (1024² / 2 - 486 * 1024) / 2048.
    assert_eq!(split.rank(1024, 1024), 13);
    assert!((split.quantile() - 0.525).abs() < 1e-12);
    // Keys of a model with a quarter of the KV heads: (131072 - 124416) / 1280.
    assert_eq!(split.rank(1024, 256), 5);
    assert_eq!(split.authors_rank(1024, 256, 1024), 13);
    let sparse = Split {
        rho: 1.0,
        sparsity: 0.5,
    };
    assert_eq!(sparse.rank(1001, 300), 0);
    let low = Split {
        rho: 0.0,
        sparsity: 0.5,
    };
    assert_eq!(low.rank(100, 300), 37);
    // Never more weights than the budget.
    for (inputs, outputs) in [(64, 64), (576, 192), (576, 1536), (1536, 576)] {
        for rho in [0.0, 0.3, 0.95] {
            let split = Split { rho, sparsity: 0.6 };
            let used = split.channels(inputs).floor() * outputs as f64
                + (split.rank(inputs, outputs) * (inputs + outputs)) as f64;
            assert!(used <= 0.4 * (inputs * outputs) as f64 + 1e-6);
        }
    }
}

#[test]
fn the_authors_file_is_read_and_nonsense_is_not() {
    let splits = read_splits("1.448306780541408212e-01\n5.0e-01\n1.0\n0.5\n").unwrap();
    assert_eq!(splits.len(), 2);
    assert!((splits[0].rho - 0.144_830_678_054).abs() < 1e-9);
    assert_eq!(splits[1].sparsity, 0.5);
    for bad in [
        "",
        "0.5",
        "0.5 0.5 0.5",
        "1.5 0.5",
        "0.5 1.0",
        "0.5 -0.1",
        "x 0.5",
        "NaN 0.5",
    ] {
        assert!(read_splits(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_written_token_gets_the_formula_and_a_prompt_all_weights() {
    for rho in [0.0, 0.5, 0.8, 1.0] {
        let split = Split { rho, sparsity: 0.4 };
        let threshold = (rho > 0.0).then_some(0.9);
        let (linear, weight) = linear(split, threshold, None);
        let x = numbers(2, INPUTS);
        let norm = |j: usize| {
            let column = weight.iter().skip(j).step_by(INPUTS);
            column.map(|w| w * w).sum::<f32>().sqrt()
        };
        let passes = |j: usize| match rho {
            0.0 => false,
            1.0 => x[j].abs() > 0.9,
            _ => x[j].abs() * norm(j) > 0.9,
        };
        let part = |wanted: bool| -> Vec<f32> {
            let keep = |(j, x): (usize, &f32)| if passes(j) == wanted { *x } else { 0.0 };
            x.iter().enumerate().map(keep).collect()
        };
        let mut expected = product(&weight, &part(true));
        let rank = split.rank(INPUTS, OUTPUTS);
        assert_eq!(rank > 0, rho < 1.0);
        if rank > 0 {
            let factors = svd(&weight, INPUTS, rank).unwrap();
            let low = product(&factors.down, &part(false));
            for (k, low) in low.iter().enumerate() {
                for (e, u) in expected.iter_mut().zip(&factors.up[k * OUTPUTS..]) {
                    *e += low * u;
                }
            }
        }
        assert_near(&apply(&linear, &x, true), &expected, 5e-3, "decoded");
        let chosen = (0..INPUTS).filter(|&j| passes(j)).count();
        let read = chosen * OUTPUTS * 4 + rank * (INPUTS + OUTPUTS) * 2;
        assert_eq!(linear.bytes_read(), read as u64);
        let whole = product(&weight, &x);
        assert_near(&apply(&linear, &x, false), &whole, 1e-5, "prompt");
    }
}

#[test]
fn a_cap_keeps_the_largest_and_leaves_the_others_to_the_rank() {
    let split = Split {
        rho: 0.7,
        sparsity: 0.4,
    };
    let x = numbers(2, INPUTS);
    let (all, _) = linear(split, Some(-1.0), None);
    let (capped, weight) = linear(split, Some(-1.0), Some(5));
    assert_near(&apply(&all, &x, true), &product(&weight, &x), 1e-4, "all");
    let out = apply(&capped, &x, true);
    let low = split.rank(INPUTS, OUTPUTS) * (INPUTS + OUTPUTS) * 2;
    assert_eq!(capped.bytes_read() as usize, 5 * OUTPUTS * 4 + low);
    // The same as with the threshold between the fifth and the sixth.
    let scales = &capped.parts().scales;
    let mut sizes: Vec<f32> = x.iter().zip(scales).map(|(x, s)| x.abs() * s).collect();
    sizes.sort_by(|a, b| b.total_cmp(a));
    let (same, _) = linear(split, Some(f32::midpoint(sizes[4], sizes[5])), None);
    assert_near(&apply(&same, &x, true), &out, 1e-5, "capped");
}

proptest! {
    #[test]
    fn factors_of_full_rank_are_the_matrix(seed in 0u64..1000, inputs in 1usize..9, outputs in 1usize..9) {
        let weight = numbers(seed, inputs * outputs);
        let factors = svd(&weight, inputs, 99).unwrap();
        prop_assert_eq!(factors.rank, inputs.min(outputs));
        for (i, row) in weight.chunks_exact(inputs).enumerate() {
            for (j, w) in row.iter().enumerate() {
                let terms = (0..factors.rank)
                    .map(|k| factors.up[k * outputs + i] * factors.down[k * inputs + j]);
                prop_assert!((terms.sum::<f32>() - w).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn weights_that_are_not_finite_have_no_factors() {
    assert!(svd(&[1.0, f32::NAN, 0.0, 1.0], 2, 1).is_err());
    assert!(svd(&[1.0, f32::INFINITY, 0.0, 1.0], 2, 1).is_err());
}

#[test]
fn maps_equal_those_of_the_authors() {
    let fixture = Fixture::open("r_sparse.safetensors");
    let (inputs, outputs) = (32, 48);
    let weight = numbers(11, inputs * outputs);
    let x = numbers(12, inputs);
    for (name, rho, threshold) in [("sparse", 1.0, 0.4), ("r_sparse", 0.8, 1.2)] {
        let split = Split { rho, sparsity: 0.5 };
        let rank = split.rank(inputs, outputs);
        let factors = svd(&weight, inputs, rank).unwrap();
        let cut = Some((&factors, rank));
        let mut parts = Parts::new(&tensor(&weight, inputs), &split, Some(threshold), cut, None);
        // Theirs has single precision here.
        parts.down = parts.down.map(|_| tensor(&factors.down, inputs));
        parts.up = parts.up.map(|_| tensor(&factors.up, outputs));
        let out = apply(&RSparseLinear::new(parts).unwrap(), &x, true);
        assert_near(&out, &fixture.floats(name), 1e-5, name);
    }
    let norms = calibrate::column_norms(&weight, inputs);
    assert_near(&norms, &fixture.floats("scale"), 1e-5, "scales");
}

fn llama() -> ModelFile {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llama");
    ModelFile::open(Path::new(folder)).unwrap()
}

fn text(vocab: usize, len: u64) -> Vec<u32> {
    (0..len)
        .map(|i| (i * i * 31 + 7 * i) as u32 % vocab as u32)
        .collect()
}

/// Logits after `tokens`, the last `decoded` of them written one by one.
fn logits(decoder: Decoder, tokens: &[u32], decoded: usize) -> (Vec<f32>, u64) {
    let decoder = Arc::new(decoder);
    let policy = Policy::dense(&decoder, CacheType::F32, tokens.len()).unwrap();
    let mut session = Session::new(decoder, policy, Arc::new(Team::new(2)));
    let (prompt, rest) = tokens.split_at(tokens.len() - decoded);
    session.prefill(prompt, &NoProgress).unwrap();
    rest.iter().for_each(|&token| session.step(token).unwrap());
    (session.logits().to_vec(), session.report().weight_bytes)
}

fn with(file: &ModelFile, opened: &RSparseFile) -> Decoder {
    let mut decoder = Decoder::load(file).unwrap();
    opened.put_into(&mut decoder).unwrap();
    decoder
}

#[test]
fn a_model_is_folded_saved_opened_and_written_with() {
    let (file, scratch) = (llama(), tempfile::tempdir().unwrap());
    let team = Arc::new(Team::new(2));
    let vocab = file.config().dims.vocab;
    let tokens = text(vocab, 60);
    let calibration = Calibration::read(&file, &tokens, &team).unwrap();
    assert_eq!(calibration.tokens(), 60);
    let model = Decoder::load(&file).unwrap().fingerprint();
    let path = scratch.path().join("model.r-sparse");
    let make = |split: Split| {
        let folded = fold(
            &file,
            &calibration,
            &[split],
            &FoldOptions::default(),
            &NoProgress,
        );
        save(&path, model, 60, &folded.unwrap()).unwrap();
        RSparseFile::open(&path).unwrap()
    };
    let no_channel = FoldOptions {
        cap: Some(0.0),
        ..FoldOptions::default()
    };
    let split = [Split::default()];
    assert!(fold(&file, &calibration, &split, &no_channel, &NoProgress).is_err());
    let (dense, dense_bytes) = logits(Decoder::load(&file).unwrap(), &tokens, 20);
    // Nothing is left out: the same text.
    let all = make(Split {
        rho: 1.0,
        sparsity: 0.0,
    });
    let (same, bytes) = logits(with(&file, &all), &tokens, 20);
    assert_near(&same, &dense, 2e-4, "all weights");
    assert_eq!(bytes, dense_bytes);
    // Half is left out: about half of the bytes, another text, but the same prompt.
    let half = make(Split::default());
    assert_eq!(half.tokens(), 60);
    let (other, bytes) = logits(with(&file, &half), &tokens, 20);
    assert!(other.iter().zip(&dense).any(|(a, b)| (a - b).abs() > 1e-3));
    let head = Decoder::load(&file).unwrap().weight_bytes()
        - all
            .maps()
            .iter()
            .map(|m| m.parts.weight.bytes().len() as u64)
            .sum::<u64>();
    let share = (bytes - 20 * head) as f64 / (dense_bytes - 20 * head) as f64;
    assert!((0.35..0.65).contains(&share), "{share}");
    let (prompt, _) = logits(with(&file, &half), &tokens, 0);
    let (dense_prompt, _) = logits(Decoder::load(&file).unwrap(), &tokens, 0);
    assert_near(&prompt, &dense_prompt, 2e-4, "prompt");

    // As many channels as the threshold was calibrated for.
    let folded = half.maps().iter().find(|m| m.name == LinearName::Down);
    assert!(folded.unwrap().parts.threshold.unwrap() > 0.0);

    // Damage anywhere is seen, and another model is refused.
    let bytes = std::fs::read(&path).unwrap();
    for at in [0, 9, 14, 200, bytes.len() / 2, bytes.len() - 1] {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        assert!(RSparseFile::open(&path).is_err(), "byte {at}");
    }
    for len in [0, 10, 16, 500, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(RSparseFile::open(&path).is_err(), "{len} bytes");
    }
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/qwen3");
    let mut other = Decoder::load(&ModelFile::open(Path::new(other)).unwrap()).unwrap();
    let error = half.put_into(&mut other).unwrap_err().to_string();
    assert!(error.contains("another model"), "{error}");
}

#[test]
fn a_search_loses_no_more_than_where_it_began() {
    let file = llama();
    let team = Arc::new(Team::new(2));
    let tokens = text(file.config().dims.vocab, 96);
    let calibration = Calibration::read(&file, &tokens, &team).unwrap();
    let config = SearchConfig {
        population: 8,
        generations: 2,
        seed: 3,
        ..SearchConfig::default()
    };
    let windows = vec![&tokens[..48], &tokens[48..]];
    let trials = Trials::new(&file, &calibration, 0.5, windows, &team, &NoProgress).unwrap();
    let found = trials.search(&config, &NoProgress).unwrap();
    assert!(found.loss <= found.uniform_loss);
    assert_eq!(found.splits.len(), trials.maps());
    assert_eq!(trials.loss(&found.splits).unwrap(), found.loss);
    assert_eq!(trials.search(&config, &NoProgress).unwrap(), found);
    // What is tried is what is written with: the mean loss of tokens decoded one by one.
    let half = Split::default();
    let tried = trials.loss(&vec![half; trials.maps()]).unwrap();
    let folded = fold(
        &file,
        &calibration,
        &[half],
        &FoldOptions::default(),
        &NoProgress,
    )
    .unwrap();
    let mut decoder = Decoder::load(&file).unwrap();
    for map in folded {
        let linear = RSparseLinear::new(map.parts).unwrap();
        decoder
            .replace(map.layer, map.name, Box::new(linear))
            .unwrap();
    }
    let decoder = Arc::new(decoder);
    let mut sum = 0.0;
    for window in [&tokens[..48], &tokens[48..]] {
        let policy = Policy::dense(&decoder, CacheType::F32, 48).unwrap();
        let mut session = Session::new(Arc::clone(&decoder), policy, Arc::clone(&team));
        for pair in window.windows(2) {
            session.step(pair[0]).unwrap();
            sum -= crate::perplexity::log_probability(session.logits(), pair[1]);
        }
    }
    assert!((sum / 94.0 - tried).abs() < 5e-3, "{} {tried}", sum / 94.0);
    let few = SearchConfig {
        population: 3,
        ..config
    };
    assert!(trials.search(&few, &NoProgress).is_err());
    assert!(trials.loss(&[half]).is_err());
    // Less sparsity than singular values were found for.
    let denser = Split {
        sparsity: 0.2,
        ..half
    };
    assert!(trials.loss(&vec![denser; trials.maps()]).is_err());
}
