//! `keyfold lm bench --grid`: what caches, selectors, evictors and weights do alone and two by two.
//!
//! Without a model of the user's it is the one that is constructed to look one thing up: whether it
//! still finds it says what a combination loses.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use keyfold_core::{NoProgress, Progress};
use keyfold_kernels::Team;
use keyfold_lm::decoding::argmax;
use keyfold_lm::linear::r_sparse::{self, FoldOptions, Split};
use keyfold_lm::perplexity::log_probability;
use keyfold_lm::recall::{PromptSpec, RecallConfig};
use keyfold_lm::store::matryoshka::{
    Around, Bases, RankSearch, Ranks, principal, save, search_ranks,
};
use keyfold_lm::{Decoder, LmError, ModelFile, Session, SpecialTokens};
use serde::Serialize;
use serde_json::json;

use super::cache::CacheArg;
use super::measure::{MeasureArgs, Measured};
use super::setup::{Loaded, ModelArgs, WeightsArg, path};
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;

/// `--model` of the one that is constructed.
pub(super) const RECALL: &str = "recall";

/// Options of the roles, and what each is where nothing is said.
const OPTIONS: [&str; 4] = ["cache", "select", "evict", "weights"];
const PLAIN: [&str; 4] = ["f16", "none", "none", "dense"];

/// Share of the numbers that matryoshka keeps of the constructed model, which tells 64 tokens apart
/// by heads of 64 numbers: a half is too few for it.
const KEPT: f64 = 0.75;

/// One method for each role, as the options name it.
type Combination = [String; 4];

/// What a combination is measured on.
struct Text {
    tokens: Vec<u32>,
    /// Tokens at the end that are written and counted.
    counted: usize,
    /// What the constructed model should say at the end, for which nothing else is counted.
    answer: Option<u32>,
}

/// What a combination did.
#[derive(Debug, Clone, Serialize)]
struct Row {
    #[serde(flatten)]
    methods: HashMap<&'static str, String>,
    /// Share of the texts whose answer was found; of the constructed model.
    #[serde(skip_serializing_if = "Option::is_none")]
    recall: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    perplexity: Option<f64>,
    cache_bytes: u64,
    bytes_read_per_token: u64,
    tokens_per_second: f64,
}

/// Methods that do not go together, and why.
#[derive(Debug, Clone, Serialize)]
struct Refused {
    #[serde(flatten)]
    methods: HashMap<&'static str, String>,
    why: String,
}

pub(super) fn run(args: &MeasureArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let progress = StderrProgress::new(globals.quiet, 20);
    let folder = tempfile::tempdir()?;
    let mut model = args.model.clone();
    let mut values = methods();
    let texts = match args.model.model == RECALL {
        true => {
            model.model = folder.path().join("model").display().to_string();
            let bases = folder.path().join("bases");
            let texts = constructed(args, globals, Path::new(&model.model), &bases, &progress)?;
            values[0].push(format!("matryoshka:{}", bases.display()));
            values[3].push("r-sparse".to_owned());
            texts
        }
        false => {
            if let CacheArg::Matryoshka(Some(file)) = &args.model.policy.cache.cache {
                values[0].push(format!("matryoshka:{}", file.display()));
            }
            if let Some(weights) = sparse_weights(&args.model)? {
                values[3].push(weights);
            }
            given(args, globals, &progress)?
        }
    };
    let combinations = pairs(&values);
    let (mut rows, mut refused) = (Vec::new(), Vec::new());
    let mut loaded = HashMap::new();
    progress.start("combinations", "measured", Some(combinations.len() as u64));
    for combination in &combinations {
        if progress.cancelled() {
            break;
        }
        let written = args.tokens_to_write;
        match measure(&model, combination, &texts, written, &mut loaded, globals) {
            Ok(row) => rows.push(row),
            Err(e) if matches!(e.downcast_ref(), Some(LmError::Stopped)) => break,
            Err(e) => refused.push(Refused {
                methods: named(combination),
                why: format!("{e:#}"),
            }),
        }
        progress.advance(1);
    }
    progress.finish();
    let stopped = rows.len() + refused.len() < combinations.len();
    tell(&rows, &refused, globals)?;
    Ok(if stopped {
        Outcome::Interrupted
    } else {
        Outcome::Done
    })
}

/// Methods of each role beside the plain one, which need no file.
fn methods() -> [Vec<String>; 4] {
    let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    [
        list(&["q8_0", "q4_0", "kvquant:4", "kvquant:3", "kvquant:2"]),
        list(&["double-sparse", "tidal", "act-qkv", "power"]),
        list(&["h2o", "look-m"]),
        Vec::new(),
    ]
}

/// The plain one, every method alone, and every two of different roles.
fn pairs(values: &[Vec<String>; 4]) -> Vec<Combination> {
    let plain: Combination = PLAIN.map(str::to_owned);
    let mut all = vec![plain.clone()];
    let one = |from: &Combination, role: usize, value: &String| {
        let mut new = from.clone();
        new[role].clone_from(value);
        new
    };
    for (role, here) in values.iter().enumerate() {
        all.extend(here.iter().map(|value| one(&plain, role, value)));
    }
    for (first, here) in values.iter().enumerate() {
        for (second, there) in values.iter().enumerate().skip(first + 1) {
            for value in here {
                let with = one(&plain, first, value);
                all.extend(there.iter().map(|value| one(&with, second, value)));
            }
        }
    }
    all
}

/// The methods by role; files that were named are left out.
fn named(combination: &Combination) -> HashMap<&'static str, String> {
    let short = |value: &String| match value.split_once(':') {
        Some((name @ ("matryoshka" | "r-sparse"), _)) => name.to_owned(),
        _ => value.clone(),
    };
    OPTIONS
        .into_iter()
        .zip(combination.iter().map(short))
        .collect()
}

/// Folded weights that the user named, or that lie beside her model.
fn sparse_weights(model: &ModelArgs) -> anyhow::Result<Option<String>> {
    if let WeightsArg::RSparse(Some(file)) = &model.weights {
        return Ok(Some(format!("r-sparse:{}", file.display())));
    }
    let beside = r_sparse::beside(&path(&model.model)?);
    Ok(beside.exists().then(|| "r-sparse".to_owned()))
}

/// Windows of the user's text.
fn given(
    args: &MeasureArgs,
    globals: &Globals,
    progress: &StderrProgress,
) -> anyhow::Result<Vec<Text>> {
    let Some(path) = &args.text else {
        return Err(wrong_use(
            "--grid measures how well a model foresees a text: give --text FILE, or leave out --model",
        ));
    };
    let text = std::fs::read(path)
        .map_err(|e| wrong_use(format!("cannot read {}: {e}", path.display())))?;
    let tokenizer = Loaded::open(&args.model.model, globals, progress)?
        .file
        .tokenizer()?;
    let tokens = tokenizer.encode(&String::from_utf8_lossy(&text), SpecialTokens::Plain)?;
    let prefix = tokenizer.prefix();
    let fresh = args.longest().saturating_sub(prefix.len()).max(2);
    let counted = args.tokens_to_write.clamp(1, fresh - 1);
    let windows = tokens.chunks_exact(fresh).take(args.texts);
    let texts: Vec<Text> = windows
        .map(|window| Text {
            tokens: [prefix, window].concat(),
            counted,
            answer: None,
        })
        .collect();
    if texts.is_empty() {
        return Err(wrong_use(format!(
            "{} has {} tokens, and --context asks for {fresh}",
            path.display(),
            tokens.len()
        )));
    }
    Ok(texts)
}

/// Writes the constructed model with bases of its cache and folded weights; gives its questions.
fn constructed(
    args: &MeasureArgs,
    globals: &Globals,
    model: &Path,
    bases: &Path,
    progress: &StderrProgress,
) -> anyhow::Result<Vec<Text>> {
    let config = RecallConfig {
        layers: 4,
        seed: globals.seed,
        ..RecallConfig::default()
    };
    std::fs::create_dir(model)?;
    config.write_model(model)?;
    let spec = |depth: f32| PromptSpec {
        length: args.longest(),
        depth,
        distractors: 8,
    };
    let prompt = |depth: f32, seed: u64| config.prompt(&spec(depth), globals.seed ^ seed);
    let file = ModelFile::open(model)?;
    let decoder = Arc::new(Decoder::load(&file)?);
    let team = Arc::new(Team::new(globals.threads.map_or(0, usize::from)));
    let (found, ranks) = bases_of(&config, &decoder, &team, progress)?;
    save(bases, &decoder, &found, &ranks)?;
    let known = prompt(0.5, 0xca11)?.tokens;
    let calibration = r_sparse::Calibration::read(&file, &known, &team)?;
    let options = FoldOptions::default();
    let folded = r_sparse::fold(&file, &calibration, &[Split::default()], &options, progress)?;
    let beside = r_sparse::beside(model);
    r_sparse::save(&beside, decoder.fingerprint(), known.len(), &folded)?;
    (0..args.texts as u64)
        .map(|i| {
            let depth = (i as f32 + 0.5) / args.texts as f32;
            let prompt = prompt(depth, i)?;
            Ok(Text {
                tokens: prompt.tokens,
                counted: 1,
                answer: Some(prompt.answer),
            })
        })
        .collect()
}

/// Bases of the constructed model's cache, and how many numbers each head keeps.
fn bases_of(
    config: &RecallConfig,
    decoder: &Arc<Decoder>,
    team: &Arc<Team>,
    progress: &StderrProgress,
) -> anyhow::Result<(Arc<Bases>, Ranks)> {
    // Many short prompts: every key and value occurs in some. In one long prompt nearly all tokens
    // are fillers, and the bases would keep nothing else.
    let spec = PromptSpec {
        length: 128,
        depth: 0.5,
        distractors: 8,
    };
    let samples = (0..16u64)
        .map(|i| {
            Ok(config
                .prompt(&spec, config.seed ^ (0x5a3b_1e00 + i))?
                .tokens)
        })
        .collect::<anyhow::Result<Vec<Vec<u32>>>>()?;
    let samples: Vec<&[u32]> = samples.iter().map(Vec::as_slice).collect();
    let bases = principal(decoder, &samples, Around::Zero, team, progress)?;
    let bases = Arc::new(bases);
    let search = RankSearch {
        target: KEPT,
        interval: config.dims().head_dim / 8,
        ..RankSearch::default()
    };
    let text = samples[..2].concat();
    let ranks = search_ranks(decoder, &bases, &text, &search, team, progress)?;
    Ok((bases, ranks))
}

/// Reads all texts under a combination; the constructed model then writes some tokens.
fn measure(
    model: &ModelArgs,
    combination: &Combination,
    texts: &[Text],
    written: usize,
    loaded: &mut HashMap<(String, String), Loaded>,
    globals: &Globals,
) -> anyhow::Result<Row> {
    let quiet = StderrProgress::new(true, 0);
    let model = model.with(combination)?;
    // Weights and bases change the decoder; all else leaves it as it is.
    let [cache, _, _, weights] = combination;
    let bases = match cache.starts_with("matryoshka") {
        true => cache.clone(),
        false => String::new(),
    };
    let key = (bases, weights.clone());
    if !loaded.contains_key(&key) {
        loaded.insert(key.clone(), model.load(globals, &quiet)?);
    }
    let loaded = &loaded[&key];
    let (mut nats, mut counted, mut right) = (0.0, 0usize, 0usize);
    let mut last = None;
    for text in texts {
        let mut session = model.session(loaded, text.tokens.len(), &quiet)?;
        let (context, rest) = text.tokens.split_at(text.tokens.len() - text.counted);
        session.prefill(context, &NoProgress)?;
        match text.answer {
            Some(answer) => {
                rest.iter().try_for_each(|token| session.step(*token))?;
                right += usize::from(argmax(session.logits()) == answer);
            }
            None => {
                nats -= foreseen(&mut session, rest)?;
                counted += rest.len();
            }
        }
        last = Some(session);
    }
    let Some(mut session) = last else {
        return Err(wrong_use("there is no text to read"));
    };
    if counted == 0 {
        // One answer tells nothing of speed.
        for _ in 0..written {
            let token = argmax(session.logits());
            session.step(token)?;
        }
    }
    let told = Measured::new(&session);
    Ok(Row {
        methods: named(combination),
        recall: (counted == 0).then(|| right as f64 / texts.len() as f64),
        perplexity: (counted > 0).then(|| (nats / counted as f64).exp()),
        cache_bytes: told.cache_bytes,
        bytes_read_per_token: told.bytes_per_token(),
        tokens_per_second: told.written_tokens_per_second,
    })
}

/// Sum of `ln p` of tokens that are written one by one.
fn foreseen(session: &mut Session, tokens: &[u32]) -> Result<f64, LmError> {
    let mut sum = 0.0;
    for token in tokens {
        sum += log_probability(session.logits(), *token);
        session.step(*token)?;
    }
    Ok(sum)
}

fn tell(rows: &[Row], refused: &[Refused], globals: &Globals) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    if globals.json {
        let whole = json!({"rows": rows, "refused": refused});
        writeln!(out, "{}", serde_json::to_string_pretty(&whole)?)?;
        return Ok(());
    }
    let recalled = rows.iter().any(|row| row.recall.is_some());
    let quality = if recalled { "recall" } else { "perplexity" };
    writeln!(
        out,
        "{:<12} {:<14} {:<8} {:<9} {quality:>10} {:>10} {:>10} {:>9}",
        OPTIONS[0], OPTIONS[1], OPTIONS[2], OPTIONS[3], "cache MB", "read MB", "tok/s"
    )?;
    for row in rows {
        let [cache, select, evict, weights] = OPTIONS.map(|option| row.methods[option].as_str());
        let quality = row.recall.or(row.perplexity).unwrap_or(f64::NAN);
        writeln!(
            out,
            "{cache:<12} {select:<14} {evict:<8} {weights:<9} {quality:>10.4} {:>10.3} {:>10.3} {:>9.1}",
            row.cache_bytes as f64 / 1e6,
            row.bytes_read_per_token as f64 / 1e6,
            row.tokens_per_second,
        )?;
    }
    // One line for a reason that several have.
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for refused in refused {
        let parts = OPTIONS.iter().zip(PLAIN);
        let parts = parts.filter(|(option, plain)| refused.methods[**option] != *plain);
        let parts = parts.map(|(option, _)| refused.methods[*option].clone());
        let pair = parts.collect::<Vec<_>>().join(" and ");
        match reasons.iter_mut().find(|(why, _)| *why == refused.why) {
            Some((_, pairs)) => pairs.push(pair),
            None => reasons.push((&refused.why, vec![pair])),
        }
    }
    for (why, pairs) in reasons {
        writeln!(out, "\nnot together: {}\n  {why}", pairs.join(", "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_of_two_roles_and_each_comes_once() {
        let values = ["ab", "c", "", "d"].map(|names| names.chars().map(String::from).collect());
        let all = pairs(&values);
        // None, four alone, and a or b with c or d, and c with d.
        assert_eq!(all.len(), 1 + 4 + 5);
        for (i, one) in all.iter().enumerate() {
            assert!(!all[..i].contains(one), "{one:?} twice");
            let changed = one.iter().zip(PLAIN).filter(|(a, b)| *a != b).count();
            assert!(changed <= 2, "{one:?}");
        }
    }
}
