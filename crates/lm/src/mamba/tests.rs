#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use keyfold_core::NoProgress;
use keyfold_kernels::Team;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::long_mamba::{LongMamba, LongMambaConfig, StepRecorder};
use super::*;
use crate::Reading;

const VOCAB: usize = 24;

type Named = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A tiny model: its configuration as the authors write it, and its tensors.
fn tiny(two: bool, seed: u64) -> (Value, Named) {
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut tensors = Named::new();
    let mut put = |name: &str, shape: &[usize], low: f32, high: f32| {
        let numbers = (0..shape.iter().product()).map(|_| rng.random_range(low..high));
        tensors.insert(name.to_owned(), (shape.to_vec(), numbers.collect()));
    };
    put("backbone.embedding.weight", &[VOCAB, 8], -1.0, 1.0);
    put("backbone.norm_f.weight", &[8], 0.5, 1.5);
    for layer in 0..2 {
        let mut put = |name: &str, shape: &[usize], low: f32, high: f32| {
            put(&format!("backbone.layers.{layer}.{name}"), shape, low, high);
        };
        put("norm.weight", &[8], 0.5, 1.5);
        put("mixer.out_proj.weight", &[8, 16], -0.5, 0.5);
        if two {
            put(
                "mixer.in_proj.weight",
                &[2 * 16 + 2 * 2 * 3 + 4, 8],
                -0.7,
                0.7,
            );
            put("mixer.conv1d.weight", &[16 + 12, 1, 4], -0.5, 0.5);
            put("mixer.conv1d.bias", &[16 + 12], -0.5, 0.5);
            put("mixer.dt_bias", &[4], -4.0, -1.0);
            put("mixer.A_log", &[4], 0.0, 2.0);
            put("mixer.D", &[4], 0.5, 1.5);
            put("mixer.norm.weight", &[16], 0.5, 1.5);
        } else {
            put("mixer.in_proj.weight", &[32, 8], -0.7, 0.7);
            put("mixer.conv1d.weight", &[16, 1, 4], -0.5, 0.5);
            put("mixer.conv1d.bias", &[16], -0.5, 0.5);
            put("mixer.x_proj.weight", &[2 + 6, 16], -0.5, 0.5);
            put("mixer.dt_proj.weight", &[16, 2], -0.5, 0.5);
            put("mixer.dt_proj.bias", &[16], -4.0, -1.0);
            put("mixer.A_log", &[16, 3], 0.0, 2.0);
            put("mixer.D", &[16], 0.5, 1.5);
        }
    }
    let ssm = match two {
        true => json!({"layer": "Mamba2", "d_state": 3, "headdim": 4, "ngroups": 2}),
        false => json!({"d_state": 3, "dt_rank": 2}),
    };
    let config = json!({
        "d_model": 8, "n_layer": 2, "vocab_size": VOCAB - 1, "ssm_cfg": ssm,
        "rms_norm": true, "pad_vocab_size_multiple": 8,
    });
    (config, tensors)
}

fn write(folder: &Path, config: &Value, tensors: &Named) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, x))| (name, x.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).unwrap();
        (name.clone(), view)
    });
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
}

fn load(config: &Value, tensors: &Named) -> Result<Arc<MambaLm>, crate::LmError> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), config, tensors);
    assert!(MambaFile::is_mamba(folder.path()));
    MambaFile::open(folder.path())?.load().map(Arc::new)
}

fn model(two: bool, seed: u64) -> Arc<MambaLm> {
    let (config, tensors) = tiny(two, seed);
    load(&config, &tensors).unwrap()
}

fn session(lm: &Arc<MambaLm>) -> MambaSession {
    MambaSession::new(Arc::clone(lm), Arc::new(Team::new(2)))
}

fn prompt(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 7 + i / 5) % 23).collect()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
}

#[test]
fn a_prompt_read_at_once_is_the_prompt_read_step_by_step() {
    for two in [false, true] {
        let lm = model(two, 1);
        for length in [1, 3, 5, 70, 600] {
            let tokens = prompt(length);
            let (mut whole, mut steps) = (session(&lm), session(&lm));
            whole.prefill(&tokens, &NoProgress).unwrap();
            for &token in &tokens {
                steps.step(token).unwrap();
            }
            assert!(close(whole.logits(), steps.logits()), "{two} {length}");
            let mut scored = session(&lm);
            let mut last = Vec::new();
            let mut places = Vec::new();
            scored
                .score(&tokens, &NoProgress, &mut |at, logits| {
                    places.push(at);
                    last = logits.to_vec();
                })
                .unwrap();
            assert_eq!(places, (0..length).collect::<Vec<_>>());
            assert!(close(&last, whole.logits()));
            assert_eq!(whole.cache_bytes(), steps.cache_bytes());
            assert_eq!(whole.cache_bytes(), lm.empty_state().bytes());
        }
    }
}

#[test]
fn a_saved_state_goes_on_as_if_it_had_never_been_saved() {
    let scratch = tempfile::tempdir().unwrap();
    for two in [false, true] {
        let lm = model(two, 2);
        let path = scratch.path().join("state");
        let mut unbroken = session(&lm);
        unbroken.prefill(&prompt(40), &NoProgress).unwrap();
        saved::save(&unbroken, &path).unwrap();
        let mut again = session(&lm);
        let held = saved::prefill(&mut again, &path, &prompt(40), &NoProgress).unwrap();
        assert_eq!(held, 40);
        assert_eq!(again.logits(), unbroken.logits());
        for token in [3, 9, 1] {
            unbroken.step(token).unwrap();
            again.step(token).unwrap();
            assert_eq!(again.logits(), unbroken.logits());
        }
        // A prompt that goes on where the state was saved.
        let mut longer = session(&lm);
        assert_eq!(
            saved::prefill(&mut longer, &path, &prompt(50), &NoProgress).unwrap(),
            40
        );
        let mut alone = session(&lm);
        alone.prefill(&prompt(50), &NoProgress).unwrap();
        assert!(close(longer.logits(), alone.logits()));
        // A shorter or another one cannot use it.
        let mut shorter = session(&lm);
        assert_eq!(
            saved::prefill(&mut shorter, &path, &prompt(30), &NoProgress).unwrap(),
            0
        );
        assert_eq!(shorter.tokens(), prompt(30));
        // Another model's state, and damage.
        let e = saved::prefill(
            &mut session(&model(two, 3)),
            &path,
            &prompt(40),
            &NoProgress,
        );
        assert!(e.unwrap_err().to_string().contains("another model"));
        let mut bytes = std::fs::read(&path).unwrap();
        for at in [9, 60, bytes.len() / 2, bytes.len() - 2] {
            bytes[at] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            assert!(saved::prefill(&mut session(&lm), &path, &prompt(40), &NoProgress).is_err());
            bytes[at] ^= 0x10;
        }
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(saved::prefill(&mut session(&lm), &path, &prompt(40), &NoProgress).is_err());
    }
}

#[test]
fn names_of_the_authors_and_of_transformers_give_the_same_model() {
    for two in [false, true] {
        let (config, tensors) = tiny(two, 4);
        let theirs = load(&config, &tensors).unwrap();
        let mut renamed: Named = tensors
            .iter()
            .map(|(n, t)| {
                (
                    n.replace("embedding.weight", "embeddings.weight"),
                    t.clone(),
                )
            })
            .collect();
        let embedding = renamed["backbone.embeddings.weight"].clone();
        renamed.insert("lm_head.weight".into(), embedding);
        let config = match two {
            true => json!({
                "model_type": "mamba2", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": VOCAB,
                "state_size": 3, "head_dim": 4, "num_heads": 4, "n_groups": 2, "tie_word_embeddings": true,
            }),
            false => json!({
                "model_type": "mamba", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": VOCAB,
                "state_size": 3, "time_step_rank": 2,
            }),
        };
        let ours = load(&config, &renamed).unwrap();
        let bare: Named = tensors
            .iter()
            .map(|(n, t)| (n.trim_start_matches("backbone.").to_owned(), t.clone()))
            .collect();
        let (mut a, mut b) = (session(&theirs), session(&ours));
        a.prefill(&prompt(9), &NoProgress).unwrap();
        b.prefill(&prompt(9), &NoProgress).unwrap();
        assert_eq!(a.logits(), b.logits());
        let mut c = session(&load(&tiny(two, 4).0, &bare).unwrap());
        c.prefill(&prompt(9), &NoProgress).unwrap();
        assert_eq!(a.logits(), c.logits());
    }
}

#[test]
fn an_infinite_limit_in_a_configuration_is_read() {
    let (_, tensors) = tiny(true, 4);
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "mamba2", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": VOCAB,
        "state_size": 3, "head_dim": 4, "num_heads": 4, "n_groups": 2, "tie_word_embeddings": true,
        "time_step_limit": [0.0, 1.0],
    });
    write(folder.path(), &config, &tensors);
    for limit in ["Infinity", r#"{"__float__":"Infinity"}"#] {
        let text = config
            .to_string()
            .replace("[0.0,1.0]", &format!("[0.0, {limit}]"));
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        let file = MambaFile::open(folder.path()).unwrap();
        let Mixer::Two { dt_limit, .. } = file.config().mixer else {
            panic!()
        };
        assert_eq!(dt_limit, (0.0, f32::INFINITY));
        file.load().unwrap();
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let refusal = |change: &dyn Fn(&mut Value, &mut Named)| {
        let (mut config, mut tensors) = tiny(true, 5);
        change(&mut config, &mut tensors);
        load(&config, &tensors).err().unwrap().to_string()
    };
    let e = refusal(&|c, _| c["ssm_cfg"]["d_state"] = json!(5));
    assert!(
        e.contains("conv1d.bias") && e.contains("[28]") && e.contains("[36]"),
        "{e}"
    );
    let e = refusal(&|c, _| c["ssm_cfg"]["layer"] = json!("Mamba3"));
    assert!(e.contains("Mamba3"), "{e}");
    let e = refusal(&|c, _| c["ssm_cfg"]["headdim"] = json!(5));
    assert!(e.contains("headdim"), "{e}");
    let e = refusal(&|c, _| c["ssm_cfg"]["ngroups"] = json!(3));
    assert!(e.contains("ngroups"), "{e}");
    let e = refusal(&|c, _| c["attn_layer_idx"] = json!([1]));
    assert!(e.contains("attention"), "{e}");
    let e = refusal(&|_, t| {
        t.remove("backbone.layers.1.mixer.D");
    });
    assert!(
        e.contains("layers.1.mixer.D") && e.contains("missing"),
        "{e}"
    );
    let e = refusal(&|_, t| {
        t.insert(
            "backbone.layers.0.mlp.fc1.weight".into(),
            (vec![1], vec![0.0]),
        );
    });
    assert!(e.contains("mlp.fc1"), "{e}");
    let e = refusal(&|_, t| {
        t.entry("backbone.layers.0.mixer.A_log".into())
            .and_modify(|(_, x)| x[1] = 200.0);
    });
    assert!(e.contains("A_log"), "{e}");
    let e = refusal(&|c, _| {
        c["n_layer"] = json!(4096);
        c["ssm_cfg"]["expand"] = json!(1024);
        c["ssm_cfg"]["d_state"] = json!(65_536);
    });
    assert!(e.contains("d_state") && e.contains("numbers"), "{e}");
    // A column that lies as a row.
    let (mut config, mut tensors) = tiny(false, 5);
    config["ssm_cfg"]["dt_rank"] = json!(1);
    for layer in 0..2 {
        let mut put = |name: &str, shape: [usize; 2]| {
            let name = format!("backbone.layers.{layer}.mixer.{name}.weight");
            let numbers = vec![0.1; shape[0] * shape[1]];
            tensors.insert(name, (shape.to_vec(), numbers));
        };
        put("x_proj", [1 + 6, 16]);
        put("dt_proj", [16, 1]);
    }
    assert!(load(&config, &tensors).is_ok());
    let column = "backbone.layers.1.mixer.dt_proj.weight";
    tensors.insert(column.into(), (vec![1, 16], vec![0.1; 16]));
    let e = load(&config, &tensors).err().unwrap().to_string();
    assert!(e.contains("dt_proj") && e.contains("[16, 1]"), "{e}");
    let lm = model(true, 5);
    let e = session(&lm).prefill(&[1, 24], &NoProgress).unwrap_err();
    assert!(e.to_string().contains("token 24"), "{e}");
    assert!(session(&lm).prefill(&[], &NoProgress).is_err());
}

#[test]
fn weights_that_are_not_numbers_are_noticed() {
    let (config, mut tensors) = tiny(false, 6);
    tensors
        .entry("backbone.layers.1.mixer.in_proj.weight".into())
        .and_modify(|(_, x)| x[3] = f32::NAN);
    let lm = load(&config, &tensors).unwrap();
    let e = session(&lm).prefill(&[1, 2, 3], &NoProgress).unwrap_err();
    assert!(e.to_string().contains("finite"), "{e}");
    // The last row of the projection of Mamba-2 makes steps.
    for (two, name) in [(false, "dt_proj.weight"), (true, "in_proj.weight")] {
        let (config, mut tensors) = tiny(two, 6);
        tensors
            .entry(format!("backbone.layers.1.mixer.{name}"))
            .and_modify(|(_, x)| x.iter_mut().rev().take(1).for_each(|x| *x = f32::NAN));
        let lm = load(&config, &tensors).unwrap();
        let e = session(&lm).prefill(&[1, 2, 3], &NoProgress).unwrap_err();
        let e = e.to_string();
        assert!(e.contains("layer 1") && e.contains("time steps"), "{e}");
    }
}

fn long(lm: &Arc<MambaLm>, theta: f32) -> LongMamba {
    let config = LongMambaConfig {
        length: 64,
        windows: 2,
        theta,
        clamp: 0.0,
        ..LongMambaConfig::for_mixer(lm.config().mixer)
    };
    LongMamba::calibrate(lm, config, &|| session(lm), &prompt(200), &NoProgress).unwrap()
}

/// The sum of steps of every head of the second layer.
fn sums(steps: &StepRecorder, heads: usize) -> Vec<f32> {
    let mut sums = vec![0.0; heads];
    for row in steps.layers()[1].chunks(heads) {
        keyfold_kernels::add_assign(&mut sums, row);
    }
    sums
}

#[test]
fn long_prompts_lose_small_steps_in_global_heads_alone() {
    for two in [false, true] {
        let lm = model(two, 7);
        let heads = lm.config().steps();
        // Every head is global.
        let all = Arc::new(long(&lm, 0.0));
        let none = Arc::new(long(&lm, 0.999_999));
        let read = |long: &Arc<LongMamba>, n: usize| {
            let mut text = session(&lm).with_long(Some(Arc::clone(long)));
            text.prefill(&prompt(n), &NoProgress).unwrap();
            text.logits().to_vec()
        };
        let plain = |n: usize| {
            let mut text = session(&lm);
            text.prefill(&prompt(n), &NoProgress).unwrap();
            text.logits().to_vec()
        };
        assert_eq!(read(&all, 90), plain(90));
        assert_ne!(read(&all, 640), plain(640));
        assert_eq!(read(&none, 640), plain(640));
        assert_eq!(all.global(0), heads);
        assert_eq!(none.global(0), 0);

        let mut record = StepRecorder::default();
        session(&lm)
            .observe(&prompt(640), &NoProgress, &mut record)
            .unwrap();
        let before = sums(&record, heads);
        // Steps of the second layer depend on what stood before, so that they differ.
        let mut steps = record.layers()[1].clone();
        all.filter(640).steps(1, &mut steps);
        let mut after = vec![0.0; heads];
        for row in steps.chunks(heads) {
            keyfold_kernels::add_assign(&mut after, row);
        }
        for h in 0..heads {
            let aim = all.layers()[1].decay[h];
            assert!(before[h] > 8.0 * aim);
            assert!(
                0.3 * aim < after[h] && after[h] < 3.0 * aim,
                "{} {aim}",
                after[h]
            );
        }
    }
}

#[test]
fn a_calibration_is_kept_and_bound_to_its_model() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("long.json");
    let lm = model(true, 8);
    let made = long(&lm, 0.05);
    made.save(&path).unwrap();
    assert_eq!(LongMamba::load(&path, &lm).unwrap(), made);
    let e = LongMamba::load(&path, &model(true, 9)).unwrap_err();
    assert!(e.to_string().contains("another model"), "{e}");
    std::fs::write(&path, "{}").unwrap();
    assert!(LongMamba::load(&path, &lm).is_err());
    let config = LongMambaConfig::for_mixer(lm.config().mixer);
    let e = LongMamba::calibrate(&lm, config, &|| session(&lm), &prompt(50), &NoProgress);
    assert!(e.unwrap_err().to_string().contains("2000"));
}
