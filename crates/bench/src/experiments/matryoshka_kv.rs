//! MatryoshkaKV: keys and values in fewer numbers, by the basis they are turned in and by
//! how ranks are shared out.
//!
//! B. Lin et al., 2025. The constructed recall model and attention by itself need nothing;
//! `--model FILE` and `--data TEXT` add perplexity. Compared at the same numbers kept: rows cut
//! as they are, random orthogonal bases, principal components with the same rank for all and
//! with ranks by greedy search; and caches of 16, 8 and 4 bits at their bytes.

use std::sync::Arc;
use std::time::Instant;

use keyfold_core::{NoProgress, Progress};
use keyfold_kernels::Team;
use keyfold_lm::attention::DecodeAttention;
use keyfold_lm::perplexity::log_probability;
use keyfold_lm::recall::{PromptSpec, RecallConfig, RecallPrompt};
use keyfold_lm::roles::{Dims, KvStore, Rows};
use keyfold_lm::store::matryoshka::{
    Around, Bases, MatryoshkaStore, RankSearch, Ranks, principal, search_ranks,
};
use keyfold_lm::store::{CacheType, DenseStore};
use keyfold_lm::{LmError, Policy, Session};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::long_context::answers::{Way, answers};
use super::long_context::{
    Model, NOT_MEASURED, answered, cache_dims, failed, given_text, holds, which_tokens, windows,
};
use crate::memory;
use crate::plot::{self, Line};
use crate::report::{Report, Table};
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "matryoshka-kv",
    about: "caches of fewer numbers: recall, perplexity (--model, --data), bytes and time by kept share",
    run,
};

const KEPT: [f64; 5] = [1.0, 0.75, 0.5, 0.375, 0.25];

/// What a part of the experiment gives.
struct Part {
    tables: Vec<Table>,
    findings: Vec<String>,
    values: Value,
    lines: Vec<Line>,
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let recall = recall(options, progress)?;
    let time = time(options, progress)?;
    let text = on_text(options, progress)?;
    let mut findings = recall.findings;
    let (mut lines, mut title) = (
        recall.lines,
        ("Recall of the constructed model", "attention on the answer"),
    );
    let mut tables = recall.tables;
    let mut perplexity = Value::Null;
    match text {
        Some(part) => {
            tables.extend(part.tables);
            findings.extend(part.findings);
            perplexity = part.values;
            (lines, title) = (part.lines, ("Perplexity", "perplexity"));
        }
        None => findings.push(NOT_MEASURED.to_owned()),
    }
    tables.extend(time.tables);
    findings.extend(time.findings);
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({"recall": recall.values, "perplexity": perplexity, "attention": time.values}),
        svg: plot::lines(title.0, "share of the numbers kept", title.1, &lines)?,
    })
}

/// Principal components over some texts.
fn components(model: &Model, texts: &[&[u32]], around: Around) -> Result<Bases, BenchError> {
    let found = principal(&model.decoder, texts, around, &model.team, &NoProgress);
    found.map_err(failed(&model.name))
}

/// A session whose cache keeps so much, in 16 bits.
fn session(model: &Model, bases: &Arc<Bases>, ranks: &Ranks) -> Result<Session, BenchError> {
    let dims = model.dims();
    let store = MatryoshkaStore::new(dims, Arc::clone(bases), ranks, CacheType::F16, false, 0);
    with_store(model, Box::new(store.map_err(failed(&model.name))?))
}

fn with_store(model: &Model, store: Box<dyn KvStore>) -> Result<Session, BenchError> {
    let mut policy = model.policy(0, None, None)?;
    if let Policy::Roles { store: place, .. } = &mut policy {
        *place = store;
    }
    Ok(model.session(policy))
}

/// Whether the constructed model still answers, and how much of its attention reaches the answer.
fn recall(options: &BenchOptions, progress: &dyn Progress) -> Result<Part, BenchError> {
    let (length, prompts) = match options.scale {
        Scale::Smoke => (256, 2),
        Scale::Small => (2048, 8),
        Scale::Full => (8192, 32),
    };
    let config = RecallConfig {
        layers: 4,
        family: 4,
        seed: options.seed,
        ..RecallConfig::default()
    };
    let model = Model::recall(&config, options.thread_count())?;
    let dims = model.dims();
    let prompt = |i: u64| {
        let spec = PromptSpec {
            length,
            depth: (i as f32 + 0.5) / prompts as f32,
            distractors: 7,
        };
        config.prompt(&spec, options.seed.wrapping_add(i))
    };
    // Many short prompts: every key and value occurs in some.
    let sample = |i: u64| {
        let spec = PromptSpec {
            length: 128,
            depth: 0.5,
            distractors: 7,
        };
        config.prompt(&spec, options.seed ^ (1000 + i))
    };
    let samples: Vec<RecallPrompt> = (0..16)
        .map(sample)
        .collect::<Result<_, _>>()
        .map_err(failed("recall prompt"))?;
    let texts: Vec<&[u32]> = samples.iter().map(|s| &s.tokens[..]).collect();
    let all: Vec<RecallPrompt> = (0..prompts)
        .map(prompt)
        .collect::<Result<_, _>>()
        .map_err(failed("recall prompt"))?;
    let pca = Arc::new(components(&model, &texts, Around::Mean)?);
    let ways = [
        ("cut", Arc::new(Bases::plain(&dims))),
        ("random", Arc::new(Bases::random(&dims, options.seed))),
        ("principal", Arc::clone(&pca)),
    ];
    let title = format!(
        "answers of the constructed model, % (attention that reached them, %); {prompts} prompts of {length} tokens, {} layers",
        dims.layers
    );
    let columns = [
        "kept",
        "cut",
        "random",
        "principal",
        "principal, greedy ranks",
    ];
    let mut table = Table::new(&title, &columns);
    let mut lines: Vec<Line> = columns[1..]
        .iter()
        .map(|n| ((*n).to_owned(), Vec::new()))
        .collect();
    let mut values = Vec::new();
    let mut at_quarter = Vec::new();
    progress.start("recall", "shares", Some(KEPT.len() as u64));
    for keep in KEPT {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let uniform = Ranks::uniform(&dims, keep);
        let kept = uniform.kept(&dims);
        let search = RankSearch {
            target: kept,
            interval: dims.head_dim / 8,
            ..RankSearch::default()
        };
        let text = texts.concat();
        let text = &text[..256];
        let greedy = search_ranks(
            &model.decoder,
            &pca,
            text,
            &search,
            &model.team,
            &NoProgress,
        );
        let greedy = greedy.map_err(failed("ranks"))?;
        let mut cells = vec![format!("{kept:.3}")];
        let trials = ways
            .iter()
            .map(|(n, b)| (*n, b, &uniform))
            .chain([("greedy", &pca, &greedy)]);
        for ((name, bases, ranks), line) in trials.zip(&mut lines) {
            let (mut right, mut mass) = (0.0, 0.0);
            for prompt in &all {
                let mut session = session(&model, bases, ranks)?;
                session
                    .prefill(&prompt.tokens, &NoProgress)
                    .map_err(failed(&model.name))?;
                let found = answered(session.logits(), prompt.answer);
                right += f64::from(u8::from(found.0)) / prompts as f64;
                mass += found.1 / prompts as f64;
            }
            cells.push(format!("{:.0} ({:.0})", 100.0 * right, 100.0 * mass));
            line.1.push((kept, mass));
            values.push(json!({"kept": kept, "by": name, "answers": right, "attention": mass}));
            if keep == 0.25 {
                at_quarter.push(mass);
            }
        }
        table.rows.push(cells);
        progress.advance(1);
    }
    progress.finish();
    let findings = vec![format!(
        "a quarter of the numbers kept: attention of the constructed model on the answer {:.0} % with rows cut, {:.0} % in a \
         random basis, {:.0} % in that of principal components, {:.0} % with ranks by greedy search: greedy ranks {} the same \
         for all.",
        100.0 * at_quarter[0],
        100.0 * at_quarter[1],
        100.0 * at_quarter[2],
        100.0 * at_quarter[3],
        if at_quarter[3] > at_quarter[2] {
            "beat"
        } else {
            "do not beat"
        },
    )];
    Ok(Part {
        tables: vec![table],
        findings,
        values: json!(values),
        lines,
    })
}

/// Mean of `-ln p` of the second half of every window, read as a prompt, and bytes of the cache.
fn losses(
    make: &dyn Fn() -> Result<Session, BenchError>,
    windows: &[Vec<u32>],
    name: &str,
) -> Result<(f64, u64), BenchError> {
    let (mut sum, mut count, mut bytes) = (0.0, 0, 0);
    for window in windows {
        let mut session = make()?;
        let half = window.len() / 2;
        let read = session.score(window, &NoProgress, &mut |at, logits| {
            if at + 1 >= half && at + 1 < window.len() {
                sum -= log_probability(logits, window[at + 1]);
                count += 1;
            }
        });
        read.map_err(failed(name))?;
        bytes = session.cache_bytes();
    }
    Ok((sum / f64::from(count.max(1)), bytes))
}

/// Perplexity of the user's model on her text.
fn on_text(options: &BenchOptions, progress: &dyn Progress) -> Result<Option<Part>, BenchError> {
    let Some((model, tokens)) = given_text(options)? else {
        return Ok(None);
    };
    let (wanted, count, calibrated, searched, targets): (_, _, _, _, &[f64]) = match options.scale {
        Scale::Smoke => (128, 1, 256, 32, &[]),
        Scale::Small => (1024, 2, 4096, 64, &[0.5]),
        Scale::Full => (2048, 8, 16_384, 256, &[0.75, 0.5, 0.375, 0.25]),
    };
    let context = model.context(wanted);
    let windows = windows(&model, &tokens, context, count)?;
    let used = windows.len() * context;
    // What is calibrated on is not what is measured on, where the text is long enough; texts are
    // as long as the windows.
    let other = tokens.get(used..).filter(|t| t.len() >= context);
    let rest = other.unwrap_or(&tokens);
    let rest = &rest[..rest.len().min(calibrated)];
    let dims = model.dims();
    let texts: Vec<&[u32]> = rest.chunks(context).collect();
    let pca = Arc::new(components(&model, &texts, Around::Mean)?);
    let around_zero = Arc::new(components(&model, &texts, Around::Zero)?);
    let name = model.name.clone();
    let f16 = losses(&|| with_kind(&model, CacheType::F16), &windows, &name)?;
    let title = format!(
        "perplexity of {name}, second half of {} windows of {context} tokens read through the cache; 16 bits {:.3} ({:.1} MB); \
         bases from {} {} tokens",
        windows.len(),
        f16.0.exp(),
        f16.1 as f64 / 1e6,
        rest.len(),
        which_tokens(other.is_some()),
    );
    let columns = [
        "kept",
        "cache, MB",
        "cut",
        "random",
        "principal",
        "principal around zero",
        "principal around zero, greedy ranks",
        "4 or 8 bits of as many bytes",
    ];
    let mut table = Table::new(&title, &columns);
    let mut lines: Vec<Line> = columns[2..7]
        .iter()
        .map(|n| ((*n).to_owned(), Vec::new()))
        .collect();
    let mut values = vec![json!({"by": "f16", "perplexity": f16.0.exp(), "bytes": f16.1})];
    let ways = [
        Arc::new(Bases::plain(&dims)),
        Arc::new(Bases::random(&dims, options.seed)),
        pca,
        Arc::clone(&around_zero),
    ];
    let mut half = Vec::new();
    progress.start("perplexity", "shares", Some(KEPT.len() as u64));
    for keep in KEPT {
        let uniform = Ranks::uniform(&dims, keep);
        let kept = uniform.kept(&dims);
        let mut row = Vec::new();
        let mut bytes = 0;
        for ((bases, line), by) in
            ways.iter()
                .zip(&mut lines)
                .zip(["cut", "random", "principal", "principal around zero"])
        {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let found = losses(&|| session(&model, bases, &uniform), &windows, &name)?;
            bytes = found.1;
            row.push(found.0.exp());
            line.1.push((kept, found.0.exp()));
            values
                .push(json!({"by": by, "kept": kept, "perplexity": found.0.exp(), "bytes": bytes}));
        }
        let mut greedy = String::new();
        if targets.contains(&keep) {
            let search = RankSearch {
                target: kept,
                ..RankSearch::default()
            };
            let text = &rest[..rest.len().min(searched)];
            let bases = &around_zero;
            let ranks = search_ranks(&model.decoder, bases, text, &search, &model.team, progress);
            let ranks = ranks.map_err(failed(&name))?;
            let found = losses(&|| session(&model, bases, &ranks), &windows, &name)?;
            greedy = format!("{:.3}", found.0.exp());
            lines[4].1.push((kept, found.0.exp()));
            values.push(json!({
                "by": "greedy", "kept": ranks.kept(&dims), "perplexity": found.0.exp(), "bytes": found.1, "ranks": ranks,
            }));
            row.push(found.0.exp());
        }
        let packed = match keep {
            0.5 => Some(CacheType::Q8_0),
            0.25 => Some(CacheType::Q4_0),
            _ => None,
        };
        let mut other = String::new();
        if let Some(kind) = packed.filter(|kind| kind.blocks().row_bytes(dims.head_dim).is_some()) {
            let found = losses(&|| with_kind(&model, kind), &windows, &name)?;
            other = format!("{:.3} ({:.1} MB)", found.0.exp(), found.1 as f64 / 1e6);
            values.push(
                json!({"by": kind.blocks().name(), "perplexity": found.0.exp(), "bytes": found.1}),
            );
        }
        let cell = |i: usize| format!("{:.3}", row[i]);
        table.row([
            format!("{kept:.3}"),
            format!("{:.1}", bytes as f64 / 1e6),
            cell(0),
            cell(1),
            cell(2),
            cell(3),
            greedy,
            other,
        ]);
        if keep == 0.5 {
            half = row;
        }
        progress.advance(1);
    }
    progress.finish();
    let greedy = half
        .get(4)
        .map_or("not searched".to_owned(), |p| format!("{p:.3}"));
    let mut findings = vec![format!(
        "claim (for trained bases): over 90 % of the accuracy with 40 % of the cache, where PCA collapses. Untrained, at half: \
         perplexity {:.3} in principal components, {:.3} in those around zero, with greedy ranks {greedy}, rows cut {:.1}, random basis {:.1}, 16 bits {:.3}; a \
         collapse as the paper says: {}.",
        half[2],
        half[3],
        half[0],
        half[1],
        f16.0.exp(),
        holds(half[2] > 1.5 * f16.0.exp()),
    )];
    let mut tables = vec![table];
    let said = side_by_side(
        options,
        &model,
        &around_zero,
        progress,
        &mut tables,
        &mut findings,
    )?;
    Ok(Some(Part {
        tables,
        findings,
        values: json!({"ways": values, "answers": said}),
        lines,
    }))
}

/// Records and chat answers from caches of fewer numbers.
fn side_by_side(
    options: &BenchOptions,
    model: &Model,
    bases: &Arc<Bases>,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let dims = model.dims();
    let mut ways = Vec::new();
    for keep in [0.75, 0.5] {
        let ranks = Ranks::uniform(&dims, keep);
        let policy = move |_| {
            let kind = CacheType::F16;
            let store = MatryoshkaStore::new(dims, Arc::clone(bases), &ranks, kind, false, 0);
            let store = Box::new(store.map_err(failed(&model.name))?);
            Ok(Policy::of(&model.decoder, store))
        };
        ways.push(Way::new(format!("{keep} of the numbers"), model, policy));
    }
    answers(options, model, ways, progress, tables, findings)
}

fn with_kind(model: &Model, kind: CacheType) -> Result<Session, BenchError> {
    let dims = model.dims();
    let store = DenseStore::new(dims, kind, 0);
    let store = store.ok_or_else(|| BenchError::data(&model.name, "heads are no whole blocks"))?;
    with_store(model, Box::new(store))
}

/// Attention by itself on random rows, at ranks of half and a quarter.
fn time(options: &BenchOptions, progress: &dyn Progress) -> Result<Part, BenchError> {
    let (lengths, dims, repeat): (&[usize], _, _) = match options.scale {
        Scale::Smoke => (&[1024], cache_dims(1, 2, 2, 64), 2),
        Scale::Small => (&[8192, 32_768], cache_dims(1, 8, 8, 128), 10),
        Scale::Full => (&[8192, 32_768, 131_072], cache_dims(1, 8, 8, 128), 20),
    };
    let title = format!(
        "attention of a token, {} heads of {}; times as fast as 16 bits",
        dims.heads, dims.head_dim
    );
    let columns = [
        "rows",
        "16 bits, ms",
        "kept",
        "ms",
        "times as fast",
        "bytes allow",
        "of it, %",
        "MB of the process",
        "times smaller",
    ];
    let mut table = Table::new(&title, &columns);
    let (mut values, mut findings) = (Vec::new(), Vec::new());
    let team = Team::new(options.thread_count());
    progress.start("attention", "lengths", Some(lengths.len() as u64));
    for &rows in lengths {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let bases = Arc::new(Bases::random(&dims, options.seed));
        let mut stores: Vec<(f64, Box<dyn KvStore>)> = Vec::new();
        let dense = DenseStore::new(dims, CacheType::F16, rows);
        stores.push((
            1.0,
            Box::new(dense.ok_or_else(|| BenchError::data("attention", "rows"))?),
        ));
        for keep in [0.5, 0.25] {
            let ranks = Ranks::uniform(&dims, keep);
            let store = MatryoshkaStore::new(
                dims,
                Arc::clone(&bases),
                &ranks,
                CacheType::F16,
                false,
                rows,
            );
            stores.push((
                keep,
                Box::new(store.map_err(failed::<LmError>("attention"))?),
            ));
        }
        let held: Vec<Option<u64>> = stores
            .iter_mut()
            .map(|(_, store)| fill(&mut **store, &dims, rows, options.seed))
            .collect();
        let mut rng = StdRng::seed_from_u64(!options.seed);
        let queries: Vec<f32> = (0..dims.heads * dims.head_dim)
            .map(|_| rng.random_range(-1.7..1.7))
            .collect();
        let mut best = [f64::INFINITY; 3];
        // In turns, so that all meet the same disturbances.
        for _ in 0..=repeat {
            for ((_, store), best) in stores.iter().zip(&mut best) {
                *best = best.min(once(&dims, &**store, &queries, rows, &team));
            }
        }
        let bytes = |store: &dyn KvStore| {
            let (key, value) = store.row_bytes();
            (key + value) as f64
        };
        for (((keep, store), seconds), &held_here) in stores.iter().zip(best).zip(&held).skip(1) {
            let faster = best[0] / seconds;
            let (process, smaller) = match (held[0], held_here) {
                (Some(dense), Some(here)) if here > 0 => {
                    (here as f64 / 1e6, dense as f64 / here as f64)
                }
                _ => (f64::NAN, f64::NAN),
            };
            let allowed = bytes(&*stores[0].1) / bytes(&**store);
            table.row([
                rows.to_string(),
                plot::shown(1e3 * best[0]),
                format!("{keep}"),
                plot::shown(1e3 * seconds),
                plot::shown(faster),
                plot::shown(allowed),
                format!("{:.0}", 100.0 * faster / allowed),
                plot::shown(process),
                plot::shown(smaller),
            ]);
            values.push(json!({
                "rows": rows, "kept": keep, "process_bytes": held_here, "dense_seconds": best[0], "seconds": seconds, "faster": faster,
                "bytes_allow": allowed, "cache_bytes": store.bytes(),
            }));
            findings.push(format!(
                "{rows} rows at {keep}: attention {faster:.2} times as fast as 16 bits, {allowed:.1} allowed by bytes.",
            ));
        }
        progress.advance(1);
    }
    progress.finish();
    Ok(Part {
        tables: vec![table],
        findings,
        values: json!(values),
        lines: Vec::new(),
    })
}

/// Puts random rows into a store; gives the memory of the process that it took, where the
/// system tells.
fn fill(store: &mut dyn KvStore, dims: &Dims, rows: usize, seed: u64) -> Option<u64> {
    let mut rng = StdRng::seed_from_u64(seed);
    let width = dims.kv_heads * dims.head_dim;
    let before = memory::held();
    for from in (0..rows).step_by(1024) {
        let positions: Vec<u32> = (from as u32..(from + 1024).min(rows) as u32).collect();
        let mut draw = || -> Vec<f32> {
            let numbers = 0..positions.len() * width;
            numbers.map(|_| rng.random_range(-1.7..1.7)).collect()
        };
        let (keys, values) = (draw(), draw());
        store.append(0, &positions, &keys, &values);
    }
    let held = memory::held().zip(before);
    held.map(|(after, before)| after.saturating_sub(before))
}

/// Seconds of a token's attention.
fn once(dims: &Dims, store: &dyn KvStore, queries: &[f32], rows: usize, team: &Team) -> f64 {
    let mut out = vec![0.0; queries.len()];
    let mut work = DecodeAttention::default();
    let (all, last) = (Rows::default(), rows as u32 - 1);
    let clock = Instant::now();
    work.attend(
        0, dims, queries, last, None, store, &all, None, team, &mut out,
    );
    clock.elapsed().as_secs_f64()
}
