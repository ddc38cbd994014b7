use keyfold_kernels::matmul_nt;
use proptest::prelude::*;

use super::*;
use crate::test_store::softmax;

/// Logits of the last token, and its attention in the last layer, by a decoder as plain as
/// can be.
fn forward(config: &RecallConfig, tokens: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let tensors = config.tensors();
    let (s, wide, dim) = (tokens.len(), config.hidden(), config.n);
    let tensor = |name: &str| &tensors[name];
    let linear = |x: &[f32], name: &str| {
        let weight = tensor(name);
        let (rows, columns) = (weight.shape[0], weight.shape[1]);
        let n = x.len() / columns;
        let mut out = vec![0.0; n * rows];
        matmul_nt(&mut out, x, &weight.numbers, n, rows, columns, 1);
        out
    };
    let norm = |x: &[f32]| -> Vec<f32> {
        let rows = x.chunks(wide).flat_map(|row| {
            let square = row.iter().map(|x| x * x).sum::<f32>() / wide as f32;
            row.iter().map(move |x| x / (square + 1e-10).sqrt())
        });
        rows.collect()
    };
    let rotate = |x: &mut [f32], heads: usize| {
        for (position, row) in x.chunks_mut(heads * dim).enumerate() {
            for head in row.chunks_mut(dim) {
                for (i, frequency) in config.inv_freq().enumerate() {
                    let (sin, cos) = (position as f64 * frequency).sin_cos();
                    let (a, b) = (f64::from(head[i]), f64::from(head[i + dim / 2]));
                    head[i] = (a * cos - b * sin) as f32;
                    head[i + dim / 2] = (b * cos + a * sin) as f32;
                }
            }
        }
    };
    let embed = &tensor("model.embed_tokens.weight").numbers;
    let rows = tokens
        .iter()
        .flat_map(|&t| &embed[t as usize * wide..][..wide]);
    let mut h: Vec<f32> = rows.copied().collect();
    let mut last = Vec::new();
    for layer in 0..config.layers {
        let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}.weight");
        let x = norm(&h);
        let (mut q, mut k) = (linear(&x, &name("q_proj")), linear(&x, &name("k_proj")));
        let v = linear(&x, &name("v_proj"));
        rotate(&mut q, HEADS);
        rotate(&mut k, KV_HEADS);
        let mut out = vec![0.0; s * HEADS * dim];
        for t in 0..s {
            for head in 0..HEADS {
                let at = head / (HEADS / KV_HEADS) * dim;
                let query = &q[(t * HEADS + head) * dim..][..dim];
                let key = |j: usize| &k[j * KV_HEADS * dim + at..][..dim];
                let mut weights: Vec<f32> = (0..=t)
                    .map(|j| keyfold_kernels::dot(query, key(j)))
                    .collect();
                softmax(&mut weights, (dim as f32).sqrt().recip());
                for (j, &weight) in weights.iter().enumerate() {
                    let out = &mut out[(t * HEADS + head) * dim..][..dim];
                    keyfold_kernels::axpy(out, weight, &v[j * KV_HEADS * dim + at..][..dim]);
                }
                last = weights;
            }
        }
        keyfold_kernels::add_assign(&mut h, &linear(&out, &name("o_proj")));
    }
    let x = norm(&h[(s - 1) * wide..]);
    (linear(&x, "lm_head.weight"), last)
}

fn best(logits: &[f32]) -> u32 {
    let at = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    at.unwrap() as u32
}

#[test]
fn the_value_is_recalled_at_every_depth_with_any_number_of_layers() {
    for layers in [2, 6] {
        let config = RecallConfig {
            layers,
            ..RecallConfig::default()
        };
        for (i, depth) in [0.0, 0.3, 0.7, 1.0].into_iter().enumerate() {
            let spec = PromptSpec {
                length: 200,
                depth,
                distractors: 3,
            };
            let prompt = config.prompt(&spec, i as u64).unwrap();
            let (logits, attention) = forward(&config, &prompt.tokens);
            assert_eq!(
                best(&logits),
                prompt.answer,
                "{layers} layers, depth {depth}"
            );
            assert!(
                attention[prompt.needle] > 0.99,
                "{}",
                attention[prompt.needle]
            );
        }
    }
}

#[test]
fn keys_of_a_family_share_a_part_of_their_codes_and_blunt_the_attention() {
    let config = RecallConfig {
        family: 8,
        shared_code: 0.8,
        sharpness: 1.0,
        ..RecallConfig::default()
    };
    let codes = config.codes();
    let alike = |a: usize, b: usize| {
        let pairs = codes[a * 64..][..64].iter().zip(&codes[b * 64..][..64]);
        pairs.filter(|(a, b)| **a != 0.0 && a == b).count()
    };
    // 50 channels live, 40 of them shared.
    assert_eq!(alike(3, 3), 50);
    assert!(alike(2, 5) >= 40 && alike(2, 9) < 40);
    let spec = PromptSpec {
        length: 200,
        depth: 0.5,
        distractors: 7,
    };
    let needle = |config: &RecallConfig| {
        let prompt = config.prompt(&spec, 1).unwrap();
        forward(config, &prompt.tokens).1[prompt.needle]
    };
    let alone = RecallConfig {
        family: 1,
        ..config.clone()
    };
    assert!(needle(&config) < needle(&alone) - 0.05);
}

#[test]
fn the_folder_is_a_llama_model() {
    let folder = tempfile::tempdir().unwrap();
    let model = RecallConfig {
        layers: 3,
        ..RecallConfig::default()
    };
    model.write_model(folder.path()).unwrap();
    let config = std::fs::read(folder.path().join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    assert_eq!(config["rope_theta"], 1e30);
    let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), 3 + 3 * 9);
    let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("model.layers.2.self_attn.k_proj.weight"), [128, 256]);
    assert_eq!(shape("model.layers.0.self_attn.o_proj.weight"), [256, 256]);
    assert_eq!(shape("model.layers.1.mlp.down_proj.weight"), [256, 64]);
    assert_eq!(shape("lm_head.weight"), [64, 256]);
}

proptest! {
    #[test]
    fn prompts_hold_one_pair_of_the_key_and_wrong_values_for_others(
        length in 24usize..300, depth in 0.0f32..=1.0, distractors in 0usize..10, seed in 0u64..500,
    ) {
        let config = RecallConfig { family: 4, ..RecallConfig::default() };
        let prompt = config.prompt(&PromptSpec { length, depth, distractors }, seed).unwrap();
        prop_assert_eq!(prompt.tokens.len(), length);
        let key = *prompt.tokens.last().unwrap();
        prop_assert!(key < 16 && (16..32).contains(&prompt.answer));
        prop_assert_eq!(prompt.tokens[prompt.needle], prompt.answer);
        prop_assert_eq!(prompt.tokens[prompt.needle - 1], key);
        let keys: Vec<usize> = (0..length - 1).filter(|&i| prompt.tokens[i] < 16).collect();
        prop_assert_eq!(keys.len(), distractors + 1);
        prop_assert!(keys.iter().all(|&i| i > 0));
        for i in keys {
            let value = prompt.tokens[i + 1];
            prop_assert!((16..32).contains(&value));
            prop_assert!(i + 1 == prompt.needle || value != prompt.answer);
        }
    }
}

#[test]
fn what_cannot_be_built_is_refused() {
    let bad = |change: &dyn Fn(&mut RecallConfig)| {
        let mut config = RecallConfig::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    assert!(bad(&|c| c.layers = 1).contains("layers"));
    assert!(bad(&|c| c.n = 18).contains("n must"));
    assert!(bad(&|c| c.family = 17).contains("family"));
    assert!(bad(&|c| c.sharpness = 0.0).contains("sharpness"));
    let spec = |length, depth, distractors| PromptSpec {
        length,
        depth,
        distractors,
    };
    let config = RecallConfig::default();
    for (spec, says) in [
        (spec(3, 0.5, 0), "3 tokens"),
        (spec(30, 1.5, 0), "depth"),
        (spec(300, 0.5, 16), "16 distractors"),
    ] {
        let error = config.prompt(&spec, 1).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
