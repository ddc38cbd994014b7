#![allow(clippy::unwrap_used)]

use keyfold_core::NoProgress;

use super::*;

fn tiny() -> LanguageModelConfig {
    LanguageModelConfig {
        model: LlamaConfig {
            hidden_size: 32,
            intermediate_size: 64,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 16,
            max_position_embeddings: 128,
            ..LlamaConfig::default()
        },
        start: Start::Random,
        recall_share: 0.25,
        length: 64,
        long_length: 128,
        batch_tokens: 256,
        held_out: 0.1,
        optim: OptimConfig {
            max_steps: 200,
            learning_rate: 1e-2,
            warmup_steps: 5,
            ..LanguageModelConfig::default().optim
        },
        run: RunConfig {
            checkpoint_every: 20,
            validate_every: 20,
            ..RunConfig::default()
        },
        ..LanguageModelConfig::default()
    }
}

fn text() -> String {
    "the cat sat on the mat; the dog sat on the log. ".repeat(60)
}

fn train_in(out: &Path, config: &LanguageModelConfig, resume: bool) -> Report {
    let place = Place {
        out,
        resume,
        progress: &NoProgress,
        watch: &mut |_| (),
    };
    train(&text(), config, place).unwrap()
}

#[test]
fn a_model_learns_the_text_and_is_a_model_folder() {
    let folder = tempfile::tempdir().unwrap();
    let report = train_in(folder.path(), &tiny(), false);
    let (_, bits) = report.best.unwrap();
    // Ten letters at random would be 3.3 bits a byte.
    assert!(bits < 2.0, "{bits} bits a byte");
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        assert!(folder.path().join(name).is_file(), "{name}");
    }
}

#[test]
fn answers_lie_where_the_window_has_the_values_of_earlier_records() {
    let mut recall = Recall::new(7);
    let tokens = recall.tokens(600);
    let text: String = tokens.iter().map(|&t| t as u8 as char).collect();
    let answers: Vec<_> = recall.answers().collect();
    assert!(answers.len() > 5);
    for answer in &answers {
        let asked = &text[answer.start - 4..answer.end];
        let record = asked.strip_prefix('?').unwrap();
        let at = text.find(record).unwrap();
        assert!(at < answer.start - 3, "{record}");
    }
    let known: Vec<usize> = recall.known().collect();
    assert_eq!(known.len(), answers.len() * 5);
    let first = answers[0].start - 2;
    assert_eq!(known[..5], (first..first + 5).collect::<Vec<_>>());
}

#[test]
fn long_windows_come_last() {
    let config = LanguageModelConfig {
        length: 128,
        long_length: 256,
        ..tiny()
    };
    assert_eq!([0, 79, 80].map(|n| config.window(n, 100)), [128, 128, 256]);
}

#[test]
fn first_weights_that_look_back_find_values_before_any_training() {
    let device = Device::flex();
    let found =
        |config: &LanguageModelConfig| recalled(&config.init(&device).unwrap().whole(), 256, 3);
    let look_back = LanguageModelConfig::default();
    let random = LanguageModelConfig {
        start: Start::Random,
        ..look_back.clone()
    };
    assert!(found(&look_back) > 0.5, "{}", found(&look_back));
    assert_eq!(found(&random), 0.0);
    // Every head has keys and values of its own.
    let mut own = look_back.clone();
    own.model.num_key_value_heads = 6;
    assert!(found(&own) > 0.5, "{}", found(&own));
}

#[test]
fn a_model_too_small_to_look_back_is_told_how_to_begin() {
    let mut small = tiny();
    small.start = Start::LookBack;
    let why = small.init(&Device::flex()).unwrap_err().to_string();
    assert!(
        why.contains("hidden_size") && why.contains("start=random"),
        "{why}"
    );
    let mut fast = LanguageModelConfig::default();
    fast.model.rope_theta = 2.0;
    let why = fast.init(&Device::flex()).unwrap_err().to_string();
    assert!(why.contains("rope_theta"), "{why}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut short = tiny();
    short.long_length = 4096;
    let refuse = |text: &str, config: &LanguageModelConfig| {
        let place = Place {
            out: folder.path(),
            resume: false,
            progress: &NoProgress,
            watch: &mut |_| (),
        };
        train(text, config, place).unwrap_err().to_string()
    };
    assert!(refuse(&text(), &short).contains("batch_tokens"));
    assert!(refuse("too short", &tiny()).contains("9 bytes"));
    let mut gelu = tiny();
    gelu.model.hidden_act = "gelu".into();
    assert!(refuse(&text(), &gelu).contains("hidden_act"));
}
