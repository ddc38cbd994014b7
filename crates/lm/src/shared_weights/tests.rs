#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::Arc;

use keyfold_compress::masa::Atoms;
use keyfold_core::NoProgress;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::SpecialTokens;
use crate::synthetic::{Geometry, write_random};
use crate::test_store::assert_near;

fn team() -> Arc<Team> {
    Arc::new(Team::new(1))
}

fn geometry() -> Geometry {
    Geometry {
        layers: 3,
        hidden: 32,
        intermediate: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        vocab: 300,
        ..Geometry::smollm_135m()
    }
}

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    // Few digits, so that 16 bits hold them.
    (0..count)
        .map(|_| rng.random_range(-32i32..32) as f32 / 64.0)
        .collect()
}

const NAMES: [LinearName; 2] = [LinearName::K, LinearName::Q];

/// Keys of layers 0 to 1 and queries of all, mixtures of random atoms.
fn shared() -> Vec<Shared> {
    let part = |projection, layers: Range<usize>, rows: usize, count: usize, rank: usize| {
        let pair = |l: usize| {
            let rank = if l == 0 { 0 } else { rank };
            Pair {
                up: numbers(rows * rank, 3),
                down: numbers(rank * 32, 4),
                rank,
                rows,
                columns: 32,
            }
        };
        Shared {
            projection,
            shape: [rows, 32],
            atoms: Atoms {
                count,
                size: rows * 32,
                matrices: numbers(count * rows * 32, 1),
                coefficients: numbers(layers.len() * count, 2),
                energy: 0.0,
                lost: 0.0,
            },
            pairs: (0..layers.len()).map(pair).collect(),
            layers,
            errors: Vec::new(),
            output_errors: Vec::new(),
        }
    };
    vec![part(0, 0..2, 16, 1, 3), part(1, 0..3, 32, 2, 1)]
}

fn whole(part: &Shared, within: usize) -> Vec<f32> {
    let ([rows, columns], atoms) = (part.shape, part.atoms.count);
    let pair = &part.pairs[within];
    let number = |i: usize| {
        let mixed = (0..atoms).map(|s| {
            part.atoms.coefficients[within * atoms + s]
                * part.atoms.matrices[s * rows * columns + i]
        });
        let (row, column) = (i / columns, i % columns);
        let added =
            (0..pair.rank).map(|r| pair.up[row * pair.rank + r] * pair.down[r * columns + column]);
        mixed.sum::<f32>() + added.sum::<f32>()
    };
    (0..rows * columns).map(number).collect()
}

fn logits(file: &ModelFile) -> Vec<f32> {
    let decoder = Arc::new(Decoder::load(file).unwrap());
    let policy = Policy::dense(&decoder, CacheType::F32, 8).unwrap();
    let mut session = Session::new(decoder, policy, team());
    session.prefill(&[65, 66, 67], &NoProgress).unwrap();
    session.logits().to_vec()
}

#[test]
fn a_saved_gguf_opens_with_whole_matrices_and_all_else_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.gguf");
    write_random(&geometry(), BlockType::Q8_0, 5, &path).unwrap();
    let before = ModelFile::open(&path).unwrap();
    let out = folder.path().join("shared");
    let written = save(&before, &NAMES, &shared(), &out).unwrap();
    assert_eq!(written, out.join("model.gguf"));
    let after = ModelFile::open(&out).unwrap();
    for part in shared() {
        for (within, layer) in part.layers.clone().enumerate() {
            let name = format!(
                "model.layers.{layer}.{}.weight",
                NAMES[part.projection].path()
            );
            let found = after.tensor(&name).unwrap();
            assert_eq!(found.shape(), part.shape);
            assert_near(&found.to_f32(), &whole(&part, within), 2e-3, &name);
        }
    }
    let mut same = 0;
    for name in before.names() {
        let (a, b) = (before.tensor(name).unwrap(), after.tensor(name).unwrap());
        let replaced = name.contains("q_proj")
            || name.contains("0.self_attn.k_proj")
            || name.contains("1.self_attn.k_proj");
        if !replaced {
            assert_eq!((a.kind(), a.bytes()), (b.kind(), b.bytes()), "{name}");
            same += 1;
        }
    }
    assert!(same > 15);
    assert_ne!(logits(&before), logits(&after));
    let text = "what is written is read";
    let read = |file: &ModelFile| {
        file.tokenizer()
            .unwrap()
            .encode(text, SpecialTokens::Plain)
            .unwrap()
    };
    assert_eq!(read(&before), read(&after), "the tokenizer came along");
    // What is whole already is shared once more: all of it, and a part of it.
    for parts in [2, 1] {
        let again = folder.path().join(format!("again-{parts}"));
        save(&after, &NAMES, &shared()[..parts], &again).unwrap();
        let again = ModelFile::open(&again).unwrap();
        assert_eq!(logits(&again), logits(&after), "{parts}");
    }
}

#[test]
fn a_saved_folder_opens_too() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama");
    let before = ModelFile::open(&fixture).unwrap();
    let dims = before.config().dims;
    let first = before
        .tensor("model.layers.0.self_attn.q_proj.weight")
        .unwrap();
    let shape = [first.rows(), first.row_len()];
    let size = shape[0] * shape[1];
    let part = Shared {
        projection: 0,
        layers: 0..dims.layers,
        shape,
        // The first layer's own matrix, for all.
        atoms: Atoms {
            count: 1,
            size,
            matrices: first.to_f32(),
            coefficients: vec![1.0; dims.layers],
            energy: 0.0,
            lost: 0.0,
        },
        pairs: vec![Pair::none(shape[0], shape[1]); dims.layers],
        errors: Vec::new(),
        output_errors: Vec::new(),
    };
    let out = tempfile::tempdir().unwrap();
    save(
        &before,
        &[LinearName::Q],
        std::slice::from_ref(&part),
        out.path(),
    )
    .unwrap();
    let after = ModelFile::open(out.path()).unwrap();
    for layer in 0..dims.layers {
        let name = format!("model.layers.{layer}.self_attn.q_proj.weight");
        assert_near(
            &after.tensor(&name).unwrap().to_f32(),
            &part.atoms.matrices,
            1e-3,
            &name,
        );
    }
    let name = "model.layers.0.self_attn.v_proj.weight";
    assert_eq!(
        before.tensor(name).unwrap().bytes(),
        after.tensor(name).unwrap().bytes()
    );
    assert_eq!(logits(&after).len(), dims.vocab);
}

#[test]
fn sharing_a_whole_model_leaves_one_that_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.gguf");
    write_random(&geometry(), BlockType::F32, 5, &path).unwrap();
    let file = ModelFile::open(&path).unwrap();
    let names = [LinearName::Q, LinearName::K, LinearName::V];
    let tokens: Vec<u32> = (0..200).map(|t| t * 37 % 256).collect();
    let seen = Calibration::read(&file, &tokens, &names, &team(), &NoProgress).unwrap();
    let mut apart = Vec::new();
    for keep in [0.3, 0.9] {
        let config = MasaConfig {
            groups: 1,
            keep,
            ..MasaConfig::default()
        };
        let made = share(&file, &names, &config, Some(&seen), &NoProgress).unwrap();
        let out = folder.path().join(format!("{keep}"));
        save(&file, &names, &made, &out).unwrap();
        let after = logits(&ModelFile::open(&out).unwrap());
        let before = logits(&file);
        let far = before
            .iter()
            .zip(&after)
            .map(|(a, b)| (a - b).powi(2))
            .sum::<f32>();
        apart.push(far / before.iter().map(|a| a * a).sum::<f32>());
    }
    assert!(apart[1] < 0.7 * apart[0] && apart[0] < 1.5, "{apart:?}");
    // Without atoms pairs alone are written, and of rank 0 as well.
    let config = MasaConfig {
        groups: 1,
        keep: 0.02,
        atoms: Some(0),
        ..MasaConfig::default()
    };
    let made = share(&file, &names, &config, Some(&seen), &NoProgress).unwrap();
    assert!(made.iter().any(|p| p.pairs.iter().any(|p| p.rank == 0)));
    let out = folder.path().join("pairs");
    let written = save(&file, &names, &made, &out).unwrap();
    let bytes = |path: &Path| std::fs::metadata(path).unwrap().len();
    let saved = bytes(&path) - bytes(&written);
    // Whole matrices took 4 bytes a number.
    let matrices = 3 * (32 * 32 + 2 * 16 * 32) * 4;
    assert!(saved > matrices * 8 / 10, "{saved} of {matrices}");
    let after = logits(&ModelFile::open(&out).unwrap());
    assert!(after.iter().all(|x| x.is_finite()));
    // Without a text atoms alone, in groups of one size.
    let config = MasaConfig {
        groups: 3,
        residual: false,
        ..MasaConfig::default()
    };
    let made = share(&file, &names, &config, None, &NoProgress).unwrap();
    assert_eq!(made.len(), 9);
    assert!(share(&file, &names, &MasaConfig::default(), None, &NoProgress).is_err());
}

#[test]
fn a_text_shows_moments_and_drifts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.gguf");
    write_random(&geometry(), BlockType::F32, 5, &path).unwrap();
    let file = ModelFile::open(&path).unwrap();
    let names = [LinearName::Q, LinearName::K, LinearName::O];
    let tokens: Vec<u32> = (60..100).collect();
    let seen = Calibration::read(&file, &tokens, &names, &team(), &NoProgress).unwrap();
    assert_eq!(seen.distributions.len(), 3);
    for p in &seen.distributions {
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }
    assert_ne!(seen.distributions[0], seen.distributions[1]);
    // Inputs of queries are normed: their squares sum to the width.
    let moments = seen.moments(1, LinearName::K).unwrap();
    let trace: f64 = (0..32).map(|i| moments[i * 33]).sum();
    assert!((trace - 32.0).abs() < 0.1, "{trace}");
    assert!((moments[3 * 32 + 7] - moments[7 * 32 + 3]).abs() < 1e-6);
    assert_eq!(seen.moments(1, LinearName::O).unwrap().len(), 32 * 32);
    assert!(seen.moments(1, LinearName::Down).is_none());
}

fn damaged(change: &dyn Fn(&mut Shared)) -> Result<PathBuf, LmError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.gguf");
    write_random(&geometry(), BlockType::F16, 5, &path).unwrap();
    let mut parts = shared();
    change(&mut parts[0]);
    let file = ModelFile::open(&path).unwrap();
    save(&file, &NAMES, &parts, &folder.path().join("out"))?;
    ModelFile::open(&folder.path().join("out"))?;
    Ok(path)
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    assert!(damaged(&|_| {}).is_ok());
    assert!(damaged(&|p| p.atoms.coefficients.truncate(1)).is_err());
    assert!(damaged(&|p| p.pairs.truncate(1)).is_err());
    assert!(damaged(&|p| p.pairs[1].up.truncate(1)).is_err());
    let large = damaged(&|p| p.atoms.matrices[5] = 1e6).unwrap_err();
    assert!(large.to_string().contains("16 bits"), "{large}");
    // Each number is one of 16 bits, and their sum is none.
    let sum = damaged(&|p| p.atoms.coefficients.fill(1e6)).unwrap_err();
    assert!(sum.to_string().contains("damaged"), "{sum}");
    assert!(damaged(&|p| p.atoms.matrices.clear()).is_err());
    // A matrix of another shape than the model asks for.
    let odd = damaged(&|p| {
        p.shape = [8, 32];
        p.atoms.matrices.truncate(8 * 32);
        p.pairs = vec![Pair::none(8, 32); 2];
    });
    let text = odd.unwrap_err().to_string();
    assert!(
        text.contains("k_proj.weight") && text.contains("[8, 32]"),
        "{text}"
    );
    let beyond = damaged(&|p| p.layers = 2..4).unwrap_err().to_string();
    assert!(beyond.contains("layers.3"), "{beyond}");
}

#[test]
fn files_with_half_of_what_is_shared_are_refused() {
    let tensor = |shape: &[usize]| {
        let count = shape.iter().product();
        Tensor::from_f32(shape.to_vec(), &numbers(count, 0)).unwrap()
    };
    let role = "self_attn.k_proj";
    let expand = |parts: &[(&str, &[usize])]| {
        let stored = parts
            .iter()
            .map(|(name, shape)| (format!("masa.{name}"), tensor(shape)));
        let needed = || {
            let name = |layer| format!("model.layers.{layer}.{role}.weight");
            (0..2).map(|layer| (name(layer), vec![4, 3])).collect()
        };
        crate::file::expand(Path::new("f"), &mut stored.collect(), needed)
    };
    let refusal = |parts: &[(&str, &[usize])]| expand(parts).unwrap_err().to_string();
    let (atoms, mixture) = (
        format!("0-1.{role}.atoms"),
        format!("0-1.{role}.coefficients"),
    );
    let (up, down) = (format!("1.{role}.up"), format!("1.{role}.down"));
    let good: [(&str, &[usize]); 2] = [(&atoms, &[1, 4, 3]), (&mixture, &[2, 1])];
    assert_eq!(expand(&good).unwrap().len(), 2);
    assert!(refusal(&good[..1]).contains("is missing"));
    assert!(refusal(&good[1..]).contains("belongs to no atoms"));
    assert!(refusal(&[(&atoms, &[4, 3]), good[1]]).contains("atoms are"));
    assert!(refusal(&[good[0], (&mixture, &[3, 1])]).contains("[2, 1]"));
    assert!(refusal(&[good[0], good[1], (&up, &[4, 2])]).contains("other half"));
    assert!(refusal(&[good[0], good[1], (&down, &[2, 3])]).contains("belongs to no atoms"));
    assert!(refusal(&[good[0], good[1], (&up, &[4, 2]), (&down, &[3, 3])]).contains("[2, 3]"));
    // A pair alone tells a matrix of the shape that the model asks for.
    let alone: [(&str, &[usize]); 2] = [(&up, &[4, 2]), (&down, &[2, 3])];
    let whole = expand(&alone).unwrap();
    assert_eq!((whole.len(), whole[0].1.shape()), (1, &[4, 3][..]));
    assert!(refusal(&[(&up, &[5, 2]), alone[1]]).contains("[4, 2]"));
    // Layers and shapes that the model has not.
    let (of_ten, ten) = (
        format!("0-9.{role}.atoms"),
        format!("0-9.{role}.coefficients"),
    );
    let many: [(&str, &[usize]); 2] = [(&of_ten, &[1, 4, 3]), (&ten, &[10, 1])];
    assert!(refusal(&many).contains("no such matrix"));
    assert!(refusal(&[(&atoms, &[1, 5, 3]), good[1]]).contains("[4, 3]"));
    assert!(refusal(&[("5-2.x.atoms", &[1, 4, 3])]).contains("names no layers"));
    assert!(refusal(&[("x.atoms", &[1, 4, 3])]).contains("names no layers"));
    let huge = format!("0-{}.x.atoms", u64::MAX);
    assert!(refusal(&[(&huge, &[1, 4, 3])]).contains("names no layers"));
}
