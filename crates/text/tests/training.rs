//! Training of text encoders from a folder to a folder, on a tiny random model.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use keyfold_core::{Encoder, ModelFolder, NoProgress, Progress, Role, StopAfter};
use keyfold_text::colberter::train::{self as colberter, ColberterConfig};
use keyfold_text::crisp::{self, CrispConfig};
use keyfold_text::training::{LateSettings, Pair, Pairs, Place};
use keyfold_text::{ColberterEncoder, ColberterOptions, LoadOptions, SentenceEncoder, load};
use keyfold_train::gradient::OptimConfig;
use keyfold_train::{Ended, Report, RunConfig, TrainError};

fn base() -> ModelFolder {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/st-bert-mean");
    ModelFolder::find(path.to_str().unwrap()).unwrap()
}

/// Queries that share a word with their answer.
fn pairs() -> Pairs {
    let words = [
        "store", "crash", "words", "vector", "token", "model", "text", "query", "search", "index",
        "the", "of",
    ];
    let mut all = Vec::new();
    for (i, word) in words.iter().enumerate() {
        for other in words.iter().skip(i + 1) {
            all.push(Pair {
                query: format!("{word} {other}"),
                positive: format!("a {other} with the {word}, and {other} again"),
                negatives: vec![format!("a {word} without")],
            });
        }
    }
    Pairs(all)
}

fn optim() -> OptimConfig {
    OptimConfig {
        learning_rate: 3e-3,
        max_steps: 30,
        ..OptimConfig::default()
    }
}

fn watching() -> RunConfig {
    RunConfig {
        checkpoint_every: 10,
        validate_every: 10,
        log_every: 5,
        ..RunConfig::default()
    }
}

fn crisp_config(fold: &str) -> CrispConfig {
    CrispConfig {
        fold: fold.into(),
        batch_size: 8,
        hold_out: 0.2,
        late: LateSettings {
            query_prefix: String::new(),
            document_prefix: String::new(),
            query_length: 12,
            document_length: 24,
            dim: 16,
        },
        optim: optim(),
        run: watching(),
        ..CrispConfig::default()
    }
}

fn train_crisp(
    from: &ModelFolder,
    config: &CrispConfig,
    out: &Path,
    resume: bool,
    progress: &dyn Progress,
) -> Result<Report, TrainError> {
    let place = Place {
        out,
        resume,
        progress,
        watch: &mut |_| {},
    };
    crisp::train(from, &pairs(), config, place)
}

fn folder(path: &Path) -> ModelFolder {
    ModelFolder::find(path.to_str().unwrap()).unwrap()
}

fn rows(path: &Path, text: &str, role: Role) -> Vec<f32> {
    let encoder = load(path.to_str().unwrap(), &LoadOptions { threads: 1 }).unwrap();
    encoder.encode(&[text], role).unwrap()[0]
        .as_slice()
        .to_vec()
}

/// Means over training lines of metrics.jsonl: the first and the last loss.
fn losses(path: &Path) -> (f64, f64) {
    let text = std::fs::read_to_string(path.join("metrics.jsonl")).unwrap();
    let lines = text
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let losses: Vec<f64> = lines.filter_map(|l| l["loss"].as_f64()).collect();
    (losses[0], losses[losses.len() - 1])
}

#[test]
fn crisp_learns_writes_a_model_that_is_read_and_goes_on_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let report = train_crisp(&base(), &crisp_config("none"), &whole, false, &NoProgress).unwrap();
    assert_eq!((report.ended, report.steps), (Ended::Finished, 30));
    let (first, last) = losses(&whole);
    assert!(last < 0.8 * first, "{first} {last}");
    assert!(report.best.unwrap().1 < 0.6, "held-out {:?}", report.best);
    let document = rows(&whole, "a crash, of the store", Role::Document);
    assert_eq!(document.len() % 16, 0);
    let unit = |r: &[f32]| (r.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-4;
    assert!(document.chunks_exact(16).all(unit));
    // The words that make a pair are near each other in it.
    let query = rows(&whole, "crash store", Role::Query);
    assert_eq!(query.len() / 16, 4, "no expansion");

    let few = dir.path().join("few");
    let from = folder(&whole);
    let report = train_crisp(&from, &crisp_config("c2x4"), &few, false, &NoProgress).unwrap();
    assert_eq!(report.steps, 30);
    let (first_of_few, _) = losses(&few);
    assert!(first_of_few < first, "it starts from what is trained");
    assert_ne!(
        rows(&few, "crash", Role::Query),
        rows(&whole, "crash", Role::Query)
    );
    // It says how it was folded; a damaged word of it is no model.
    let read = |path: &Path| load(path.to_str().unwrap(), &LoadOptions { threads: 1 });
    assert_eq!(read(&whole).unwrap().trained_fold(), None);
    assert_eq!(read(&few).unwrap().trained_fold(), Some("c2x4"));
    std::fs::write(few.join("crisp.json"), "{\"fold\": \"two\"}").unwrap();
    let error = read(&few).err().unwrap().to_string();
    assert!(error.contains("crisp.json"), "{error}");
}

#[test]
fn a_stopped_crisp_run_ends_with_the_weights_of_one_that_ran_through() {
    let dir = tempfile::tempdir().unwrap();
    let (through, parts) = (dir.path().join("through"), dir.path().join("parts"));
    let config = crisp_config("c2x4");
    train_crisp(&base(), &config, &through, false, &NoProgress).unwrap();
    let stop = StopAfter::new(13);
    let report = train_crisp(&base(), &config, &parts, false, &stop).unwrap();
    assert_eq!(report.ended, Ended::Stopped);
    assert!(!parts.join("model.safetensors").exists());
    train_crisp(&base(), &config, &parts, true, &NoProgress).unwrap();
    for file in ["model.safetensors", "1_Dense/model.safetensors"] {
        let bytes = |folder: &PathBuf| std::fs::read(folder.join(file)).unwrap();
        assert_eq!(bytes(&parts), bytes(&through), "{file}");
    }
}

#[test]
fn crisp_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let mut told = Vec::new();
    for (number, change) in [
        (|c: &mut CrispConfig| c.fold = "c0".into()) as fn(&mut CrispConfig),
        |c| c.temperature = 0.0,
        |c| c.late.query_prefix = "[nowhere]".into(),
        |c| c.late.document_length = 2,
        |c| c.optim.learning_rate = -1.0,
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = crisp_config("c2x4");
        change(&mut config);
        let out = dir.path().join(number.to_string());
        let error = train_crisp(&base(), &config, &out, false, &NoProgress);
        told.push(error.unwrap_err().to_string());
    }
    for (told, word) in told.iter().zip([
        "c0",
        "temperature",
        "[nowhere]",
        "document_length",
        "learning_rate",
    ]) {
        assert!(told.contains(word), "{told}");
    }
    let place = Place {
        out: &dir.path().join("one"),
        resume: false,
        progress: &NoProgress,
        watch: &mut |_| {},
    };
    let one = Pairs(pairs().0[..1].to_vec());
    let error = crisp::train(&base(), &one, &crisp_config("none"), place).unwrap_err();
    assert!(
        error.to_string().contains("pairs in the data: 1;"),
        "{error}"
    );
}

fn colberter_config(stage: u8) -> ColberterConfig {
    ColberterConfig {
        compression_dim: 8,
        retrieval_compression_dim: 16,
        stage,
        batch_size: 8,
        hold_out: 0.2,
        query_length: 12,
        document_length: 24,
        sparsity: 0.5,
        optim: optim(),
        run: watching(),
        ..ColberterConfig::default()
    }
}

#[test]
fn a_head_that_is_more_than_a_linear_layer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    train_crisp(&base(), &crisp_config("none"), &whole, false, &NoProgress).unwrap();
    let config = whole.join("1_Dense/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("linear.Identity", "activation.GELU")).unwrap();
    let out = dir.path().join("out");
    let error = train_crisp(
        &folder(&whole),
        &crisp_config("none"),
        &out,
        false,
        &NoProgress,
    );
    let told = error.unwrap_err().to_string();
    assert!(told.contains("an activation"), "{told}");
}

#[test]
fn colberter_learns_in_stages_and_its_model_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let teacher = SentenceEncoder::load(&base(), &LoadOptions { threads: 1 }).unwrap();
    let teachers: [&dyn Encoder; 1] = [&teacher];
    let mut from = base();
    for stage in 1..=3 {
        let out = dir.path().join(stage.to_string());
        let place = Place {
            out: &out,
            resume: false,
            progress: &NoProgress,
            watch: &mut |_| {},
        };
        let config = colberter_config(stage);
        let report = colberter::train(&from, &teachers, &pairs(), &config, place).unwrap();
        assert_eq!(report.steps, 30);
        let (first, last) = losses(&out);
        // Later stages start from what has been learned.
        assert!(stage > 1 || last < 0.8 * first, "{first} {last}");
        assert!(first < 1.0 || stage == 1, "stage {stage}: {first}");
        from = folder(&out);
        let model = ColberterEncoder::load(
            &from,
            ColberterOptions::default(),
            &LoadOptions { threads: 1 },
        )
        .unwrap();
        assert_eq!(model.has_gates(), stage == 3);
        assert_eq!(model.word_dim(), 8);
        let bags = model
            .bags(&["a store with the crash"], Role::Document)
            .unwrap();
        assert_eq!(bags[0].words.len(), 5);
        assert_eq!(bags[0].whole.len(), 16);
    }
    let text = std::fs::read_to_string(dir.path().join("3/metrics.jsonl")).unwrap();
    assert!(text.contains("\"gates\""), "{text}");
}
