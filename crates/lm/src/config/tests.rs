#![allow(clippy::unwrap_used)]

use serde_json::{Value as Json, json};

use super::*;

fn read(json: &Json) -> Result<Config, LmError> {
    Config::from_json(Path::new("config.json"), json.to_string().as_bytes(), None)
}

fn llama() -> Json {
    json!({
        "model_type": "llama", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048, "eos_token_id": [2, 7],
    })
}

fn with(mut base: Json, more: Json) -> Json {
    for (key, value) in more.as_object().unwrap() {
        base[key] = value.clone();
    }
    base
}

/// The frequencies of transformers (parity/lm_text.py), for old and new configurations.
#[test]
fn rotary_frequencies_are_those_of_transformers() {
    let cases: Json =
        serde_json::from_str(include_str!("../../tests/fixtures-text/rope.json")).unwrap();
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 30);
    for case in cases {
        let config = read(&case["config"]).unwrap();
        let length = case["length"].as_u64().unwrap() as usize;
        let (frequencies, scale) = rope_frequencies(&config, length);
        let close = |a: f64, b: f64| (a - b).abs() <= 2e-6 * b.abs();
        assert!(
            close(scale.into(), case["scale"].as_f64().unwrap()),
            "{case}"
        );
        let expected: Vec<f64> = case["frequencies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f.as_f64().unwrap())
            .collect();
        assert_eq!(frequencies.len(), expected.len());
        for (&ours, &theirs) in frequencies.iter().zip(&expected) {
            assert!(close(ours.into(), theirs), "{frequencies:?} {case}");
        }
    }
}

#[test]
fn what_a_config_leaves_out_is_the_default_of_its_family() {
    let config = read(&llama()).unwrap();
    assert_eq!((config.dims.kv_heads, config.dims.head_dim), (4, 16));
    assert_eq!(config.rope().unwrap().theta, 1e4);
    assert_eq!(config.eos_token_ids, [2, 7]);
    assert!(!config.tie_word_embeddings);
    let smollm3 = with(
        llama(),
        json!({"model_type": "smollm3", "no_rope_layer_interval": 2}),
    );
    let config = read(&smollm3).unwrap();
    assert!(config.tie_word_embeddings);
    assert_eq!(config.rope().unwrap().layers, [true, false, true, false]);
    let gpt2 = json!({"model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_head": 2, "n_layer": 1,
        "n_ctx": 16, "n_inner": null});
    let config = read(&gpt2).unwrap();
    assert_eq!((config.intermediate_size, config.norm_eps), (32, 1e-5));
    assert_eq!(config.max_position_embeddings, 16);
}

#[test]
fn windows_slide_only_where_they_are_switched_on() {
    let window = |more: Json| {
        let qwen2 = with(llama(), json!({"model_type": "qwen2", "sliding_window": 8}));
        read(&with(qwen2, more)).unwrap().sliding_window
    };
    assert_eq!(window(json!({})), [None; 4]);
    assert_eq!(window(json!({"use_sliding_window": true})), [None; 4]);
    let on = json!({"use_sliding_window": true, "max_window_layers": 3});
    assert_eq!(window(on), [None, None, None, Some(8)]);
    let listed = json!({"use_sliding_window": true, "layer_types":
        ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]});
    assert_eq!(window(listed), [Some(8), None, Some(8), None]);
    let mistral = with(
        llama(),
        json!({"model_type": "mistral", "sliding_window": null}),
    );
    assert_eq!(read(&mistral).unwrap().sliding_window, [None; 4]);
}

#[test]
fn a_generation_config_adds_ends() {
    let json = llama().to_string();
    let generation = br#"{"eos_token_id": [7, 11]}"#;
    let config = Config::from_json(Path::new("config.json"), json.as_bytes(), Some(generation));
    assert_eq!(config.unwrap().eos_token_ids, [2, 7, 11]);
}

#[test]
fn context_limits_follow_the_scaling() {
    let limit = |scaling: Json| {
        read(&with(llama(), json!({"rope_scaling": scaling})))
            .unwrap()
            .context_limit()
    };
    assert_eq!(limit(Json::Null), Some(2048));
    assert_eq!(limit(json!({"type": "linear", "factor": 4.0})), Some(8192));
    assert_eq!(limit(json!({"type": "dynamic", "factor": 4.0})), None);
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024});
    assert_eq!(limit(yarn), Some(4096));
}

#[test]
fn wrong_numbers_are_refused_with_the_field() {
    let refused = [
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(5)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(-2)),
        ("head_dim", json!(7)),
        ("head_dim", json!(70_000)),
        ("hidden_size", json!(1u64 << 60)),
        ("hidden_size", json!("64")),
        ("num_hidden_layers", json!(1_000_000)),
        ("vocab_size", json!(2.5)),
        ("rms_norm_eps", json!(0.0)),
        ("rms_norm_eps", json!(1e-60)),
        ("rms_norm_eps", json!(-1e-5)),
        ("max_position_embeddings", json!(0)),
        ("rope_theta", json!(-1.0)),
        ("rope_theta", json!(0.5)),
        ("partial_rotary_factor", json!(1.5)),
        ("hidden_act", json!("swiglu")),
        ("eos_token_id", json!("</s>")),
        ("eos_token_id", json!(-7)),
        ("bos_token_id", json!(1u64 << 40)),
        ("attention_bias", json!("yes")),
        ("rope_scaling", json!("linear")),
        ("quantization_config", json!({"bits": 4})),
    ];
    for (field, value) in refused {
        let message = read(&with(llama(), json!({field: value})))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains(&format!("'{field}'")),
            "{field}: {message}"
        );
        assert!(message.starts_with("config.json"), "{message}");
    }
    for field in ["vocab_size", "hidden_size", "rms_norm_eps", "model_type"] {
        let mut config = llama();
        config.as_object_mut().unwrap().remove(field);
        let message = read(&config).unwrap_err().to_string();
        assert!(
            message.contains(&format!("'{field}' is missing")),
            "{message}"
        );
    }
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let message = |more: Json| read(&with(llama(), more)).unwrap_err().to_string();
    let unknown = message(json!({"model_type": "mixtral"}));
    assert!(
        unknown.contains("'mixtral'") && unknown.contains("qwen3"),
        "{unknown}"
    );
    let rope = message(json!({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}));
    assert!(
        rope.contains("'longrope'") && rope.contains("yarn"),
        "{rope}"
    );
    let factor = message(json!({"rope_scaling": {"rope_type": "linear"}}));
    assert!(factor.contains("'factor' is missing"), "{factor}");
    let ramp = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0});
    assert!(message(json!({"rope_scaling": ramp})).contains("'high_freq_factor'"));
    let kinds = json!({"model_type": "qwen3", "use_sliding_window": true, "sliding_window": 8,
        "layer_types": ["full_attention", "chunked_attention", "full_attention", "full_attention"]});
    assert!(message(kinds).contains("'layer_types'"));
}
