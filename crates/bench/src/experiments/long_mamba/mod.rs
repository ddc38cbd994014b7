//! LongMamba: recall and perplexity of Mamba models on prompts longer than they were trained on.
//!
//! Z. Ye et al., 2025. Measured without a checkpoint: how well the sum of steps that are kept
//! agrees with that of the calibration; and recall of a value by a Mamba-2 model whose weights
//! are written by hand. It stores what follows a mark, forgets as trained models do, and is
//! fooled by what leaks into its state, so that on long prompts the value drowns. It is no
//! trained model: it shows the mechanism. A small model that is trained here on the same task is
//! measured in the same way ([`trained`]). With `--model` (and `--data`, a text) the perplexity
//! of the last 100 tokens of prompts of growing length is measured as well.

mod trained;

use std::sync::Arc;

use keyfold_core::{NoProgress, Progress};
use keyfold_kernels::Team;
use keyfold_lm::mamba::long_mamba::{LongMamba, LongMambaConfig, Method, StepRecorder};
use keyfold_lm::mamba::{
    MambaConfig, MambaFile, MambaLm, MambaSession, Mixer, Numbers, StepFilter, tensor_shapes,
};
use keyfold_lm::perplexity::log_probability;
use keyfold_lm::{LmError, Reading, SpecialTokens};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::plot::{self, Line};
use crate::random::normal;
use crate::report::{Report, Table, reached};
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "long-mamba",
    about: "recall and perplexity (--model, --data) of Mamba beyond its training length",
    run,
};

/// Noise, and values that may follow the mark.
const NOISE: u32 = 32;
const VALUES: std::ops::Range<u32> = 32..62;
const MARK: u32 = 62;
const QUERY: u32 = 63;
const VOCAB: usize = 64;

/// Tokens that the model by hand was "trained" on.
const TRAINED: usize = 256;

/// Numbers of a token's content; four more say what kind it is.
const CONTENT: usize = 64;

fn failed(e: LmError) -> BenchError {
    BenchError::data("long-mamba", e.to_string())
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (mut tables, mut findings) = (Vec::new(), Vec::new());
    let sums = sums(options, &mut tables, &mut findings)?;
    let by_hand = Asked {
        lm: Arc::new(hand_model(options.seed)?),
        about: format!("made by hand for {TRAINED} tokens"),
        short: "by hand",
    };
    let (recall, mut lines) = recall(options, &by_hand, progress, &mut tables, &mut findings)?;
    let trained = Asked {
        lm: Arc::new(trained::model(options, progress, &mut findings)?),
        about: format!("trained here on up to {TRAINED} tokens"),
        short: "trained",
    };
    let (learned, more) = self::recall(options, &trained, progress, &mut tables, &mut findings)?;
    lines.extend(more);
    let perplexity = match (&options.model, &options.data) {
        (Some(model), Some(data)) => {
            on_text(options, model, data, progress, &mut tables, &mut findings)?
        }
        _ => {
            findings.push(
                "Perplexity was not measured: it needs a checkpoint (--model) and a long text (--data).".into(),
            );
            Value::Null
        }
    };
    findings.push(
        "The paper: up to 24.6 points more on RULER, with trained models of 1.3 billion weights."
            .into(),
    );
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({"sums": sums, "recall": recall, "recall_trained": learned, "perplexity": perplexity}),
        svg: plot::lines(
            "Recall of a value in the first quarter",
            "tokens",
            "share right",
            &lines,
        )?,
    })
}

/// Texts that sums are the mean of.
const DRAWS: u64 = 10;

/// Steps of a text, drawn.
fn drawn(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..n).map(|_| normal(&mut rng).exp()).collect()
}

/// Sums of kept steps beside that of the calibration, for steps that are lognormal.
fn sums(
    options: &BenchOptions,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let length = 2_000;
    let mut table = Table::new(
        &format!(
            "sum of the steps that are kept, as a multiple of the calibration's (1 is what is aimed at); \
             lognormal steps, {length} of them calibrated on, mean of {DRAWS} draws"
        ),
        &[
            "clamp, %",
            "4000 tokens",
            "kept, %",
            "16000 tokens",
            "kept, %",
        ],
    );
    let lm = by_hand();
    let model = MambaLm::from_numbers(lm.clone(), hand_weights(&lm, 0)).map_err(failed)?;
    let heads = lm.heads();
    let (mut values, mut exact, mut clamped) = (Vec::new(), Vec::new(), Vec::new());
    for clamp in [0.0, 5.0, 20.0] {
        let config = LongMambaConfig {
            length,
            windows: 1,
            theta: 0.0,
            clamp,
            ..LongMambaConfig::for_mixer(lm.mixer)
        };
        let mut cells = vec![clamp.to_string()];
        for tokens in [4_000, 16_000] {
            let (mut ratio, mut share) = (0.0, 0.0);
            for draw in 0..DRAWS {
                let steps = drawn(length, options.seed.wrapping_add(2 * draw));
                let aim: f64 = steps.iter().map(|&s| f64::from(s)).sum();
                let mut record = StepRecorder::default();
                let mut rows: Vec<f32> = steps.iter().flat_map(|&s| vec![s; heads]).collect();
                record.steps(0, &mut rows);
                let long = LongMamba::from_steps(&model, config.clone(), &[record]);
                let limit = long.threshold(0, 0, tokens);
                let kept = drawn(tokens, options.seed.wrapping_add(2 * draw + 1)).into_iter();
                let kept: Vec<f64> = kept.filter(|&s| s > limit).map(f64::from).collect();
                ratio += kept.iter().sum::<f64>() / aim / DRAWS as f64;
                share += 100.0 * kept.len() as f64 / tokens as f64 / DRAWS as f64;
            }
            cells.extend([format!("{ratio:.2}"), format!("{share:.0}")]);
            values.push(
                json!({"clamp": clamp, "tokens": tokens, "ratio": ratio, "kept_percent": share}),
            );
            if clamp == 0.0 {
                exact.push(ratio);
            } else if tokens == 16_000 {
                clamped.push(format!("{ratio:.2} times with a clamp of {clamp} %"));
            }
        }
        table.row(<[String; 5]>::try_from(cells).unwrap_or_default());
    }
    tables.push(table);
    let within = exact.iter().all(|r| (r - 1.0).abs() < 0.1);
    findings.push(format!(
        "Without a clamp the sums agree within 10 %: {}. At 16000 tokens what is kept sums to {}.",
        reached(within),
        clamped.join(", ")
    ));
    Ok(json!(values))
}

/// The model by hand: two heads, of which one is local.
fn by_hand() -> MambaConfig {
    MambaConfig {
        d_model: CONTENT + 4,
        n_layer: 1,
        vocab_size: VOCAB,
        d_inner: 4 * CONTENT,
        d_state: 2,
        d_conv: 4,
        mixer: Mixer::Two {
            headdim: 2 * CONTENT,
            ngroups: 1,
            dt_limit: (0.0, f32::INFINITY),
            d_has_hdim: false,
        },
        bias: false,
        conv_bias: true,
        norm_eps: 1e-5,
        tie_embeddings: true,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

/// Its weights. Head 0 writes the content of a token if a mark stood before it, and a little of
/// every other token's; head 1 forgets at once. Steps of noise are small and vary, those of
/// values are large.
fn hand_weights(config: &MambaConfig, seed: u64) -> Numbers {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x10_4d);
    let d = config.d_model;
    let inner = config.d_inner;
    let channels = config.conv_channels();
    let mut numbers: Numbers = tensor_shapes(config)
        .into_iter()
        .map(|(name, shape)| {
            let len = shape.iter().product();
            let fill = if name.contains("norm") { 1.0 } else { 0.0 };
            (name, (shape, vec![fill; len]))
        })
        .collect();
    let mut set = |name: &str, at: usize, value: f32| {
        if let Some((_, x)) = numbers.get_mut(name) {
            x[at] = value;
        }
    };
    // Kinds: 0 mark, 1 query, 2 noise, 3 value.
    for token in 0..VOCAB {
        let kind = match token as u32 {
            MARK => 0,
            QUERY => 1,
            t if t < NOISE => 2,
            _ => 3,
        };
        for c in 0..CONTENT {
            let content = normal(&mut rng) * if kind < 2 { 0.0 } else { 1.0 };
            set("embedding.weight", token * d + c, content);
        }
        set("embedding.weight", token * d + CONTENT + kind, 4.0);
    }
    let layer = |name: &str| format!("layers.0.mixer.{name}");
    let in_proj = layer("in_proj.weight");
    let row = |row: usize, column: usize| row * d + column;
    // The gate is open for every kind.
    for z in 0..inner {
        for kind in 0..4 {
            set(&in_proj, row(z, CONTENT + kind), 1.0);
        }
    }
    // Each number of the content and its negative: silu(x) - silu(-x) = x.
    for c in 0..CONTENT {
        set(&in_proj, row(inner + 2 * c, c), 1.0);
        set(&in_proj, row(inner + 2 * c + 1, c), -1.0);
    }
    let (b, c, dt) = (inner * 2, inner * 2 + 2, inner + channels);
    set(&in_proj, row(b, CONTENT), 4.0);
    set(&in_proj, row(c, CONTENT + 1), 4.0);
    set(&in_proj, row(dt, CONTENT + 3), 1.5);
    // What makes steps of noise vary.
    for i in 0..CONTENT {
        set(&in_proj, row(dt, i), 0.08 * normal(&mut rng));
    }
    // Content and C meet the token itself, B the one before it, with a leak.
    let conv = layer("conv1d.weight");
    for channel in 0..channels {
        set(&conv, channel * 4 + 3, 1.0);
    }
    let b_channel = inner;
    set(&conv, b_channel * 4 + 3, 0.0);
    set(&conv, b_channel * 4 + 2, 1.0);
    set(&layer("conv1d.bias"), b_channel, 0.06);
    set(&layer("dt_bias"), 0, -4.0);
    set(&layer("dt_bias"), 1, -1.0);
    set(&layer("A_log"), 0, 0.3f32.ln());
    set(&layer("A_log"), 1, 16f32.ln());
    let out = layer("out_proj.weight");
    for i in 0..CONTENT {
        set(&out, i * inner + 2 * i, 8.0);
        set(&out, i * inner + 2 * i + 1, -8.0);
    }
    numbers
}

fn hand_model(seed: u64) -> Result<MambaLm, BenchError> {
    let config = by_hand();
    MambaLm::from_numbers(config.clone(), hand_weights(&config, seed)).map_err(failed)
}

/// A model whose recall is measured.
struct Asked {
    lm: Arc<MambaLm>,
    /// What is said of it.
    about: String,
    short: &'static str,
}

/// A prompt with a mark and a value in its first quarter, that ends with the query; and the value.
fn prompt(length: usize, rng: &mut StdRng) -> (Vec<u32>, u32) {
    let mut tokens: Vec<u32> = (0..length).map(|_| rng.random_range(0..NOISE)).collect();
    let at = rng.random_range(0..length / 4 - 1);
    let value = rng.random_range(VALUES);
    tokens[at] = MARK;
    tokens[at + 1] = value;
    tokens[length - 1] = QUERY;
    (tokens, value)
}

fn recall(
    options: &BenchOptions,
    asked: &Asked,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<(Value, Vec<Line>), BenchError> {
    let (lengths, prompts): (&[usize], usize) = match options.scale {
        Scale::Smoke => (&[256, 1_024], 8),
        Scale::Small => (&[256, 512, 1_024, 2_048, 4_096, 8_192], 60),
        Scale::Full => (&[256, 512, 1_024, 2_048, 4_096, 8_192, 16_384], 300),
    };
    let lm = Arc::clone(&asked.lm);
    let team = Arc::new(Team::new(options.thread_count()));
    let session = || MambaSession::new(Arc::clone(&lm), Arc::clone(&team));
    let mut rng = StdRng::seed_from_u64(options.seed);
    let text: Vec<u32> = (0..5).flat_map(|_| prompt(TRAINED, &mut rng).0).collect();
    let calibrated = |clamp: f32| {
        let config = LongMambaConfig {
            length: TRAINED,
            clamp,
            ..LongMambaConfig::for_mixer(lm.config().mixer)
        };
        LongMamba::calibrate(&lm, config, &session, &text, &NoProgress)
            .map(Arc::new)
            .map_err(failed)
    };
    let clamped = calibrated(5.0)?;
    // What the authors' program can do besides, with the same calibration.
    let other = |method| Some(Arc::new(LongMamba::clone(&clamped).with_method(method)));
    let ways: [(&str, Option<Arc<LongMamba>>); 9] = [
        ("vanilla", None),
        ("LongMamba, clamp 5 %", Some(Arc::clone(&clamped))),
        ("no clamp", Some(calibrated(0.0)?)),
        ("alpha", other(Method::Alpha)),
        ("offline", other(Method::Offline)),
        ("bound", other(Method::Bound)),
        ("norm", other(Method::Norm)),
        ("channelwise_topk", other(Method::ChannelwiseTopk)),
        ("all_topk", other(Method::AllTopk)),
    ];
    let names = ways.each_ref().map(|(name, _)| *name);
    let mut table = Table::new(
        &format!(
            "share of values recalled by a model {}, {prompts} prompts of each length (chance {:.2})",
            asked.about,
            1.0 / VALUES.len() as f64
        ),
        &[&["tokens"][..], &names].concat(),
    );
    let mut lines: Vec<Line> = ways
        .iter()
        .map(|w| (format!("{}: {}", asked.short, w.0), Vec::new()))
        .collect();
    let mut values = Vec::new();
    progress.start("recall", "lengths", Some(lengths.len() as u64));
    for &length in lengths {
        let mut cells = vec![length.to_string()];
        for ((name, long), line) in ways.iter().zip(&mut lines) {
            let mut rng = StdRng::seed_from_u64(options.seed.wrapping_add(length as u64));
            let mut right = 0;
            for _ in 0..prompts {
                if progress.cancelled() {
                    return Err(BenchError::Cancelled);
                }
                let (tokens, value) = prompt(length, &mut rng);
                let mut text = session().with_long(long.clone());
                text.prefill(&tokens, &NoProgress).map_err(failed)?;
                let logits = text.logits();
                let best =
                    VALUES.max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize]));
                right += usize::from(best == Some(value));
            }
            let share = right as f64 / prompts as f64;
            line.1.push((length as f64, share));
            cells.push(format!("{share:.2}"));
            values.push(json!({"tokens": length, "way": name, "right": share}));
        }
        table.row(<[String; 10]>::try_from(cells).unwrap_or_default());
        progress.advance(1);
    }
    progress.finish();
    tables.push(table);
    let last = |line: &Line| line.1.last().map_or(0.0, |p| p.1);
    findings.push(format!(
        "At {} tokens the model {} recalls {:.2} of the values, with LongMamba {:.2} (clamp 5 %) and {:.2} (no \
         clamp); at {TRAINED} tokens {:.2}.",
        lengths.last().copied().unwrap_or(0),
        asked.about,
        last(&lines[0]),
        last(&lines[1]),
        last(&lines[2]),
        lines[0].1.first().map_or(0.0, |p| p.1),
    ));
    // The program's other ways would hide these in the drawing.
    lines.truncate(3);
    Ok((json!(values), lines))
}

/// Perplexity of the last tokens of prompts of growing length.
fn on_text(
    options: &BenchOptions,
    model: &str,
    data: &std::path::Path,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    const COUNTED: usize = 100;
    let path = std::path::Path::new(model);
    if !MambaFile::is_mamba(path) {
        return Err(BenchError::data(path, "this is no Mamba model"));
    }
    let file = MambaFile::open(path).map_err(failed)?;
    let lm = Arc::new(file.load().map_err(failed)?);
    let text = std::fs::read(data).map_err(|e| BenchError::data(data, e.to_string()))?;
    let tokenizer = file.tokenizer().map_err(failed)?;
    let tokens = tokenizer
        .encode(&String::from_utf8_lossy(&text), SpecialTokens::Plain)
        .map_err(failed)?;
    let team = Arc::new(Team::new(options.thread_count()));
    let session = || MambaSession::new(Arc::clone(&lm), Arc::clone(&team));
    let config = LongMambaConfig::for_mixer(lm.config().mixer);
    let long = LongMamba::calibrate(&lm, config, &session, &tokens, progress).map_err(failed)?;
    let long = Arc::new(long);
    let mut table = Table::new(
        &format!("perplexity of the last {COUNTED} tokens"),
        &["tokens", "vanilla", "LongMamba"],
    );
    let (mut values, mut told) = (Vec::new(), Vec::new());
    for length in [2_000, 4_000, 10_000, 20_000] {
        let windows: Vec<&[u32]> = tokens.chunks_exact(length).take(10).collect();
        if windows.is_empty() {
            break;
        }
        let mut found = Vec::new();
        for way in [None, Some(Arc::clone(&long))] {
            let mut sum = 0.0;
            for window in &windows {
                if progress.cancelled() {
                    return Err(BenchError::Cancelled);
                }
                let mut text = session().with_long(way.clone());
                text.score(window, &NoProgress, &mut |at, logits| {
                    if at + 1 < length && at + 1 >= length - COUNTED {
                        sum -= log_probability(logits, window[at + 1]);
                    }
                })
                .map_err(failed)?;
            }
            found.push((sum / (COUNTED * windows.len()) as f64).exp());
        }
        table.row([
            length.to_string(),
            plot::shown(found[0]),
            plot::shown(found[1]),
        ]);
        told.push(format!(
            "{} and {} at {length} tokens",
            plot::shown(found[0]),
            plot::shown(found[1])
        ));
        values.push(json!({"tokens": length, "windows": windows.len(), "vanilla": found[0], "long": found[1]}));
    }
    tables.push(table);
    findings.push(if told.is_empty() {
        format!(
            "Perplexity was not measured: a prompt needs 2000 tokens, the text has {}.",
            tokens.len()
        )
    } else {
        format!(
            "Perplexity without and with LongMamba: {}; the paper: it stays flat to 100,000 tokens.",
            told.join(", ")
        )
    });
    Ok(json!(values))
}
