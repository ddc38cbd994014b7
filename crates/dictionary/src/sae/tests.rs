#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::PathBuf;

use safetensors::SafeTensors;

use super::layouts::{Layout, SaeFile};
use super::*;
use crate::{Learner, Saved};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

pub(super) fn tensors(name: &str) -> HashMap<String, Vec<f32>> {
    let bytes = std::fs::read(fixture(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |data: &[u8]| {
        data.as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect()
    };
    let all = file.tensors().into_iter();
    all.map(|(name, t)| (name, numbers(t.data()))).collect()
}

#[track_caller]
pub(super) fn close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() < tolerance * size, "{what} at {i}: {g} {w}");
    }
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let t = tensors("autoencoders.safetensors");
    let (d, m) = (6, 14);
    let kinds = [
        ("standard", SaeMethod::Standard),
        ("topk", SaeMethod::TopK),
        ("topk_dead", SaeMethod::TopK),
        ("batchtopk", SaeMethod::BatchTopK),
        ("gated", SaeMethod::Gated),
        ("jumprelu", SaeMethod::JumpRelu),
        ("jumprelu_tanh", SaeMethod::JumpRelu),
        ("transcoder", SaeMethod::Standard),
    ];
    for (kind, architecture) in kinds {
        let part = |name: &str| {
            t.get(&format!("{kind}.{name}"))
                .cloned()
                .unwrap_or_default()
        };
        let transcoder = kind == "transcoder";
        let config = SaeConfig {
            architecture,
            d_sae: m,
            d_out: if transcoder { d } else { 0 },
            k: 3,
            l1_coefficient: 0.7,
            l0_coefficient: 0.05,
            jumprelu_bandwidth: 0.4,
            jumprelu_sparsity_loss_mode: match kind {
                "jumprelu_tanh" => SparsityLoss::Tanh,
                _ => SparsityLoss::Step,
            },
            skip_connection: transcoder,
            ..SaeConfig::default()
        };
        let mut sae = Training::new(config.clone(), d).unwrap().sae;
        (sae.w_enc, sae.b_enc) = (part("w_enc"), part("b_enc"));
        (sae.w_dec, sae.b_dec, sae.w_skip) = (part("w_dec"), part("b_dec"), part("w_skip"));
        match &mut sae.activation {
            Activation::JumpRelu { threshold } => *threshold = part("own"),
            Activation::Gated { b_mag, r_mag } => (*b_mag, *r_mag) = (part("own"), part("r_mag")),
            _ => {}
        }
        let mut training = Training::with_weights(config, sae).unwrap();
        if kind == "topk_dead" {
            training.kill(&[0, 1, 2, 3]);
        }
        let targets = if transcoder { &t["y"] } else { &t["x"] };
        let (gradients, losses) = training.gradients(&t["x"], targets, None);
        let want = part("losses");
        close(&[losses.mse as f32, losses.other as f32], &want, 1e-5, kind);
        for (name, got) in gradients.parts() {
            let want = part(&format!("grad.{name}"));
            close(got, &want, 2e-5, &format!("{kind}, gradient of {name}"));
        }
        if architecture != SaeMethod::BatchTopK {
            let codes = training.sae.encode(&t["x"]).unwrap();
            close(
                &codes.to_dense(),
                &part("codes"),
                1e-5,
                &format!("{kind}, codes"),
            );
            let result = training.sae.decode(&codes, &t["x"]).unwrap();
            close(&result, &part("result"), 1e-5, &format!("{kind}, result"));
        }
    }
}

#[test]
fn a_step_is_the_same_by_lists_and_by_dense_products() {
    let (d, m) = (6, 64);
    let n = 150;
    let batch = rows(n, d, 5);
    let tanh = SparsityLoss::Tanh;
    let methods = [
        (SaeMethod::Standard, SparsityLoss::default()),
        (SaeMethod::Gated, SparsityLoss::default()),
        (SaeMethod::JumpRelu, SparsityLoss::default()),
        (SaeMethod::JumpRelu, tanh),
    ];
    for (architecture, mode) in methods {
        let config = SaeConfig {
            architecture,
            d_sae: m,
            decoder_init_norm: 1.0,
            l1_coefficient: 0.3,
            l0_coefficient: 0.3,
            sparsity_warm_up_steps: 0,
            jumprelu_sparsity_loss_mode: mode,
            jumprelu_bandwidth: 0.5,
            apply_b_dec_to_input: true,
            ..SaeConfig::default()
        };
        let mut by_lists = Training::new(config, d).unwrap();
        let largest = batch.iter().fold(0f32, |m, x| m.max(x.abs()));
        // So few codes that lists are made.
        by_lists.sae.b_enc.fill(-largest);
        by_lists.sae.b_dec.fill(0.1);
        match &mut by_lists.sae.activation {
            Activation::Gated { b_mag, r_mag } => {
                b_mag
                    .iter_mut()
                    .step_by(2)
                    .for_each(|b| *b = -2.0 * largest);
                r_mag.iter_mut().step_by(3).for_each(|r| *r = 0.5);
            }
            Activation::JumpRelu { threshold } => threshold.fill(0.3),
            _ => {}
        }
        let mut x = batch.clone();
        let products = by_lists.sae.products(&mut x, 1);
        let norms = by_lists.sae.norms();
        let mut dense = by_lists.clone();
        let (want, losses) = by_lists.gradients(&batch, &batch, None);
        let few = 0.1 * m as f64;
        assert!(
            losses.l0 > 0.0 && losses.l0 < few,
            "{architecture:?} {losses:?}"
        );
        let (got, same) = dense.dense(&batch, &batch, &x, &products, &norms);
        assert!((losses.mse - same.mse).abs() < 1e-6 * losses.mse);
        let other = (losses.other - same.other).abs();
        assert!(
            other < 1e-6 * losses.other,
            "{architecture:?} {losses:?} {same:?}"
        );
        assert_eq!((losses.l0, losses.dead), (same.l0, same.dead));
        for ((name, want), (_, got)) in want.parts().into_iter().zip(got.parts()) {
            close(
                got,
                want,
                2e-5,
                &format!("{architecture:?} {mode:?} {name}"),
            );
        }
        assert!(by_lists == dense, "{architecture:?}: codes in use");
    }
}

#[test]
fn files_of_others_are_read_and_written_unchanged() {
    let t = tensors("layouts.safetensors");
    for (name, case, layout) in [
        ("saelens-jumprelu", "saelens-jumprelu", Layout::SaeLens),
        ("saelens-topk-old", "saelens-topk-old", Layout::SaeLens),
        ("sparsify/layers.8", "sparsify", Layout::Sparsify),
        ("openai.pt", "openai", Layout::OpenAi),
    ] {
        is_read_and_written_unchanged(&t, name, case, layout);
    }
}

/// parity/sae_layouts.py
#[test]
fn files_that_the_packages_wrote_are_read_and_written_unchanged() {
    let t = tensors("packages.safetensors");
    for (name, layout) in [
        ("by-saelens-standard", Layout::SaeLens),
        ("by-saelens-topk", Layout::SaeLens),
        ("by-saelens-gated", Layout::SaeLens),
        ("by-saelens-jumprelu", Layout::SaeLens),
        ("by-saelens-transcoder", Layout::SaeLens),
        ("by-saelens-skip", Layout::SaeLens),
        ("by-sparsify-topk", Layout::Sparsify),
        ("by-sparsify-transcoder", Layout::Sparsify),
    ] {
        is_read_and_written_unchanged(&t, name, name, layout);
    }
}

/// `t` has, under `case`, what the autoencoder makes of the rows `x`.
fn is_read_and_written_unchanged(
    t: &HashMap<String, Vec<f32>>,
    name: &str,
    case: &str,
    layout: Layout,
) {
    let folder = tempfile::tempdir().unwrap();
    let file = SaeFile::load(&fixture(name)).unwrap();
    assert_eq!(file.layout, layout, "{name}");
    let codes = file.sae.encode(&t["x"]).unwrap();
    close(&codes.to_dense(), &t[&format!("{case}.codes")], 1e-5, name);
    let result = file.sae.decode(&codes, &t["x"]).unwrap();
    close(&result, &t[&format!("{case}.result")], 1e-5, name);

    let path = folder.path().join(case);
    file.save(&path).unwrap();
    assert_eq!(SaeFile::load(&path).unwrap(), file, "{name}");
    for weights in ["sae_weights.safetensors", "sae.safetensors"] {
        let (here, there) = (path.join(weights), fixture(name).join(weights));
        if there.is_file() {
            let [here, there] = [here, there].map(|p| std::fs::read(p).unwrap());
            let [here, there] = [&here, &there].map(|b| {
                let file = SafeTensors::deserialize(b).unwrap();
                let mut all: Vec<_> = file
                    .tensors()
                    .into_iter()
                    .map(|(n, t)| (n, t.dtype(), t.shape().to_vec(), t.data().to_vec()))
                    .collect();
                all.sort_by(|a, b| a.0.cmp(&b.0));
                all
            });
            assert_eq!(here, there, "{name}");
        }
    }
}

#[test]
fn new_ones_are_read_as_they_were_written() {
    let d = 6;
    let (x, told) = (rows(40, d, 4), rows(40, d, 5));
    let new = |architecture, d_out: usize, skip_connection| {
        let config = SaeConfig {
            architecture,
            d_sae: 14,
            d_out,
            k: 3,
            skip_connection,
            ..SaeConfig::default()
        };
        let mut training = Training::new(config, d).unwrap();
        let targets = match d_out {
            0 => x.clone(),
            n => told.chunks_exact(d).flat_map(|t| t[..n].to_vec()).collect(),
        };
        training.step(&x, &targets).unwrap();
        training.sae()
    };
    use Layout::{OpenAi, SaeLens, Sparsify};
    use SaeMethod::{BatchTopK, Gated, JumpRelu, Standard, TopK};
    let folder = tempfile::tempdir().unwrap();
    for (at, (method, d_out, skip, layout)) in [
        (Standard, 0, false, SaeLens),
        (TopK, 0, false, SaeLens),
        (BatchTopK, 0, false, SaeLens),
        (Gated, 0, false, SaeLens),
        (JumpRelu, 0, false, SaeLens),
        (Standard, 4, false, SaeLens),
        (Standard, d, true, SaeLens),
        (JumpRelu, 4, true, SaeLens),
        (TopK, 0, false, Sparsify),
        (TopK, d, true, Sparsify),
        (Standard, 0, false, OpenAi),
    ]
    .into_iter()
    .enumerate()
    {
        let sae = new(method, d_out, skip);
        let path = folder.path().join(at.to_string());
        let file = SaeFile::new(sae.clone(), layout).unwrap();
        file.save(&path).unwrap();
        let again = SaeFile::load(&path).unwrap();
        let case = format!("{method:?} to {d_out}, skip {skip}, {layout:?}");
        assert_eq!(again.sae, sae, "{case}");
        assert_eq!(again.layout, layout, "{case}");
        assert_eq!(again.config, file.config, "{case}");
        assert_eq!(sae.w_skip.iter().any(|x| *x != 0.0), skip, "{case}");
    }
    for (sae, layout, part) in [
        (new(Gated, 0, false), Sparsify, "top-k"),
        (new(TopK, 4, false), Sparsify, "output width"),
        (new(TopK, 0, false), OpenAi, "SAELens"),
    ] {
        let error = SaeFile::new(sae, layout).unwrap_err().to_string();
        assert!(error.contains(part), "no '{part}' in: {error}");
    }
}

#[test]
fn what_is_no_autoencoder_or_of_an_unknown_kind_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = SaeFile::load(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("SAELens") && error.contains("sparsify"),
        "{error}"
    );
    let source = fixture("saelens-jumprelu");
    let weights = "sae_weights.safetensors";
    std::fs::copy(source.join(weights), folder.path().join(weights)).unwrap();
    let config = std::fs::read_to_string(source.join("cfg.json")).unwrap();
    for (from, to, part) in [
        (
            "\"jumprelu\"",
            "\"matryoshka_batchtopk\"",
            "matryoshka_batchtopk",
        ),
        ("\"d_sae\": 10", "\"d_sae\": 11", "[6, 11]"),
        (
            "\"none\",\n  \"metadata\"",
            "\"whitening\",\n  \"metadata\"",
            "whitening",
        ),
        ("\"d_in\": 6,", "", "d_in"),
    ] {
        let changed = config.replace(from, to);
        assert_ne!(changed, config, "{from}");
        std::fs::write(folder.path().join("cfg.json"), changed).unwrap();
        let error = SaeFile::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(part), "no '{part}' in: {error}");
    }
    std::fs::write(folder.path().join("cfg.json"), &config).unwrap();
    let bytes = std::fs::read(source.join(weights)).unwrap();
    std::fs::write(folder.path().join(weights), &bytes[..bytes.len() - 9]).unwrap();
    assert!(
        SaeFile::load(folder.path())
            .unwrap_err()
            .to_string()
            .contains(weights)
    );
}

/// Rows of few directions.
pub(super) fn rows(n: usize, d: usize, seed: u64) -> Vec<f32> {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    let mut rng = StdRng::seed_from_u64(9);
    let mut atoms: Vec<f32> = (0..2 * d * d)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    kernels::normalize_rows(&mut atoms, d);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rows = vec![0.0; n * d];
    for row in rows.chunks_exact_mut(d) {
        for _ in 0..2 {
            let atom = rng.random_range(0..2 * d);
            kernels::axpy(row, rng.random_range(0.5..2.0), &atoms[atom * d..][..d]);
        }
    }
    rows
}

#[test]
fn every_kind_learns_to_explain_rows_with_few_codes() {
    let d = 16;
    let (train, test) = (rows(4096, d, 1), rows(512, d, 2));
    for architecture in [
        SaeMethod::Standard,
        SaeMethod::TopK,
        SaeMethod::BatchTopK,
        SaeMethod::Gated,
        SaeMethod::JumpRelu,
    ] {
        let config = SaeConfig {
            architecture,
            d_sae: 64,
            k: 3,
            l1_coefficient: match architecture {
                SaeMethod::Gated => 0.1,
                _ => 0.2,
            },
            l0_coefficient: 0.01,
            batch_size: 256,
            lr: 3e-3,
            dead_feature_window: 20,
            ..SaeConfig::default()
        };
        let mut training = Training::new(config, d).unwrap();
        for _ in 0..30 {
            training.partial_fit(&train).unwrap();
        }
        assert_eq!(training.steps(), 480);
        let sae = training.sae();
        sae.check().unwrap();
        let codes = sae.encode(&test).unwrap();
        let again = sae.decode(&codes, &test).unwrap();
        let lost: f32 = test
            .iter()
            .zip(&again)
            .map(|(x, y)| (x - y) * (x - y))
            .sum();
        let all: f32 = test.iter().map(|x| x * x).sum();
        // The gate learns beside the size, and more slowly.
        let most = if architecture == SaeMethod::Gated {
            0.65
        } else {
            0.3
        };
        assert!(lost / all < most, "{architecture:?} loses {}", lost / all);
        // Gates and thresholds close one by one, in more steps than these.
        let slow = matches!(architecture, SaeMethod::Gated | SaeMethod::JumpRelu);
        let active = codes.mean_active();
        assert!(slow || active < 30.0, "{architecture:?} uses {active}");
        // What is written is what was measured.
        let folder = tempfile::tempdir().unwrap();
        SaeFile::new(sae.clone(), Layout::SaeLens)
            .unwrap()
            .save(folder.path())
            .unwrap();
        assert_eq!(SaeFile::load(folder.path()).unwrap().sae, sae);
    }
}

#[test]
fn a_training_that_was_cut_gives_the_same_bits() {
    let d = 8;
    let all = rows(300, d, 3);
    for architecture in [SaeMethod::BatchTopK, SaeMethod::Gated, SaeMethod::Standard] {
        let config = SaeConfig {
            architecture,
            d_sae: 20,
            k: 2,
            batch_size: 64,
            dead_feature_window: 1,
            resample_steps: match architecture {
                SaeMethod::Standard => vec![2, 3],
                _ => Vec::new(),
            },
            ..SaeConfig::default()
        };
        let mut whole = Training::new(config.clone(), d).unwrap();
        whole.partial_fit(&all).unwrap();
        let mut cut = Training::new(config, d).unwrap();
        cut.partial_fit(&all[..150 * d]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        cut.dictionary()
            .unwrap()
            .save(folder.path(), &cut.state(), None)
            .unwrap();
        let mut cut = Training::resume(&Saved::load(folder.path()).unwrap()).unwrap();
        cut.partial_fit(&all[150 * d..]).unwrap();
        assert_eq!(cut.state(), whole.state());
    }
}

#[test]
fn folding_changes_weights_and_not_results() {
    let d = 6;
    let t = tensors("layouts.safetensors");
    let mut sae = SaeFile::load(&fixture("saelens-jumprelu")).unwrap().sae;
    let before = sae.forward(&t["x"]).unwrap();
    sae.fold_decoder_norms().unwrap();
    close(&sae.forward(&t["x"]).unwrap(), &before, 1e-5, "norms");
    for atom in sae.w_dec.chunks_exact(d) {
        assert!((kernels::norm(atom) - 1.0).abs() < 1e-5);
    }
    let mut scaled = sae.clone();
    scaled.fold_input_scale(2.0);
    let twice: Vec<f32> = t["x"].iter().map(|x| x * 2.0).collect();
    let want: Vec<f32> = sae
        .forward(&twice)
        .unwrap()
        .iter()
        .map(|x| x / 2.0)
        .collect();
    close(&scaled.forward(&t["x"]).unwrap(), &want, 1e-5, "scale");
    let mut top = SaeFile::load(&fixture("sparsify/layers.8")).unwrap().sae;
    assert!(top.fold_decoder_norms().is_err());
}
