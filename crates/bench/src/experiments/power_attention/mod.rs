//! PowerAttention: how far a fixed mask of blocks lets tokens see through layers, and what it
//! saves and costs.
//!
//! L. Chen et al., 2025. Measured: layers until every block is reached (exact), beside the
//! masks that the paper compares with; the share of blocks that is read; the time of attention
//! for prompts and decoded tokens; how far models that are trained on each mask carry a passkey
//! ([`relay`]); and perplexity of `--model` on `--data`. The model was not
//! trained on the mask, as the paper's was, so perplexity is that of a hybrid with 2 of every
//! 7 layers dense.

mod relay;

use keyfold_core::Progress;
use keyfold_core::block_mask::{BlockMask, Pattern, Reach};
use keyfold_lm::block_mask::{DenseLayers, PowerConfig};
use keyfold_lm::prefill::power::PowerPrefill;
use keyfold_lm::select::power::PowerSelect;
use serde_json::{Value, json};

use super::long_context::{
    Attention, Model, cache_dims, failed, holds, on_given_text, read_perplexity,
};
use crate::plot::{self, Line};
use crate::report::{Report, Table};
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "power-attention",
    about: "layers until all is reached, time of attention, and perplexity (--model, --data) of block masks",
    run,
};

/// Layers (and the share of blocks, where not all are reached) that the sheet computed for
/// 128 and 1,024 blocks.
const SHEET: [(&str, [&str; 2]); 5] = [
    ("power", ["6", "9"]),
    ("window", ["16", "128"]),
    ("stride slash", ["8", "52"]),
    ("dilated", ["50 %", ""]),
    ("LongNet", ["6, 62.5 %", ""]),
];

/// Perplexity of PG19 at 32,768 tokens, Qwen2-7B trained on each mask, in the paper.
const PAPER: [(&str, f64); 6] = [
    ("dense", 9.42),
    ("window", 9.97),
    ("dilated", 10.58),
    ("stride slash", 10.03),
    ("LongNet", 10.31),
    ("power", 10.00),
];

fn patterns(blocks: usize) -> [(&'static str, BlockMask); 5] {
    [
        ("power", BlockMask::default()),
        ("window", BlockMask::baseline(Pattern::Window)),
        (
            "stride slash",
            BlockMask::baseline(Pattern::StrideSlash((blocks / 4).max(1))),
        ),
        ("dilated", BlockMask::baseline(Pattern::Dilated)),
        ("LongNet", BlockMask::baseline(Pattern::LongNet)),
    ]
}

/// Blocks that block `query` sees.
fn seen(config: &BlockMask, query: usize) -> usize {
    config.runs(query).iter().map(|(from, to)| to - from).sum()
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (mut tables, mut findings) = (Vec::new(), Vec::new());
    let reach = reach(&mut tables, &mut findings);
    let (share, lines) = shares(&mut tables);
    let time = time(options, progress, &mut tables, &mut findings)?;
    let relay = relay::relay(options, progress, &mut tables, &mut findings)?;
    let perplexity = on_given_text(options, &mut findings, |model, tokens, findings| {
        on_text(options, model, tokens, progress, &mut tables, findings)
    })?;
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({"reach": reach, "share": share, "attention": time, "relay": relay, "perplexity": perplexity}),
        svg: plot::lines(
            "Blocks that the newest block reads",
            "blocks of the text",
            "share",
            &lines,
        )?,
    })
}

/// Layers until nothing new is reached, exactly.
fn reach(tables: &mut Vec<Table>, findings: &mut Vec<String>) -> Value {
    let mut table = Table::new(
        "layers until nothing new is reached from the last block (share of blocks reached)",
        &["mask", "128 blocks", "sheet", "1024 blocks", "sheet"],
    );
    let shown = |r: Reach| {
        if r.share == 1.0 {
            r.layers.to_string()
        } else {
            format!("{}, {:.1} %", r.layers, 100.0 * r.share)
        }
    };
    let mut values = Vec::new();
    let (mut power, mut others) = (
        [Reach {
            layers: 0,
            share: 0.0,
        }; 2],
        Vec::new(),
    );
    for (i, (name, sheet)) in SHEET.iter().enumerate() {
        let found = [128, 1024].map(|blocks| Reach::of(&patterns(blocks)[i].1, blocks));
        table.row([
            (*name).to_owned(),
            shown(found[0]),
            sheet[0].to_owned(),
            shown(found[1]),
            sheet[1].to_owned(),
        ]);
        for (blocks, r) in [128, 1024].iter().zip(found) {
            values.push(
                json!({"mask": name, "blocks": blocks, "layers": r.layers, "share": r.share}),
            );
        }
        if *name == "power" {
            power = found
        } else {
            others.push(found)
        }
    }
    tables.push(table);
    let fewest = others
        .iter()
        .flat_map(|found| found.iter().zip(&power))
        .filter(|(r, _)| r.share == 1.0)
        .all(|(r, power)| r.layers > power.layers);
    findings.push(format!(
        "claim: what is reached grows exponentially with layers. All of 128 blocks are reached in {} layers and all of 1024 in \
         {}; every other mask needs more or misses some: {}.",
        power[0].layers, power[1].layers, holds(power.iter().all(|r| r.share == 1.0) && fewest)
    ));
    json!(values)
}

/// Which part of the blocks the newest block reads.
fn shares(tables: &mut Vec<Table>) -> (Value, Vec<Line>) {
    let lengths = [16usize, 32, 64, 128, 256, 512, 1024];
    let columns = [
        "blocks",
        "power",
        "window",
        "stride slash",
        "dilated",
        "LongNet",
    ];
    let mut table = Table::new(
        "part of the blocks that the newest block reads, %",
        &columns,
    );
    let mut lines: Vec<Line> = patterns(16)
        .iter()
        .map(|(name, _)| ((*name).to_owned(), Vec::new()))
        .collect();
    for &blocks in &lengths {
        let part =
            patterns(blocks).map(|(_, config)| seen(&config, blocks - 1) as f64 / blocks as f64);
        for (line, part) in lines.iter_mut().zip(part) {
            line.1.push((blocks as f64, part));
        }
        let cells = part.iter().map(|part| format!("{:.1}", 100.0 * part));
        table
            .rows
            .push(std::iter::once(blocks.to_string()).chain(cells).collect());
    }
    tables.push(table);
    (json!(lines), lines)
}

/// Attention by itself on random rows.
fn time(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (rows, dims, repeat) = match options.scale {
        Scale::Smoke => (vec![2048], cache_dims(1, 2, 2, 64), 2),
        Scale::Small => (vec![8192, 16_384, 32_768], cache_dims(1, 4, 4, 64), 10),
        Scale::Full => (
            vec![8192, 16_384, 32_768, 65_536],
            cache_dims(1, 8, 8, 128),
            20,
        ),
    };
    let config = match options.scale {
        Scale::Smoke => BlockMask {
            block: 64,
            ..BlockMask::default()
        },
        _ => BlockMask::default(),
    };
    let title = format!(
        "attention of {} heads of {}, blocks of {}; more than is allowed where the rows that are left fit the processor's cache",
        dims.heads, dims.head_dim, config.block
    );
    let columns = [
        "",
        "rows",
        "dense, ms",
        "ours, ms",
        "times as fast",
        "blocks allow",
        "of it, %",
    ];
    let mut table = Table::new(&title, &columns);
    let mut values = Vec::new();
    progress.start("attention", "lengths", Some(rows.len() as u64));
    for &rows in &rows {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let mut attention = Attention::new(dims, rows, options.thread_count(), options.seed)?;
        let dense = attention.decode(None, repeat);
        let mut select = PowerSelect::new(config.clone().into(), dims).map_err(failed("power"))?;
        let ours = attention.decode(Some(&mut select), repeat);
        let (decode, decode_ideal) = ours.against(dense);
        let exact = attention.prefill(&mut attention.dense_prefill(), options.seed);
        let mut prefill =
            PowerPrefill::new(config.clone().into(), dims).map_err(failed("power"))?;
        let masked = attention.prefill(&mut prefill, options.seed);
        let (read, read_ideal) = (exact / masked, pairs_allow(&config, rows));
        for (what, dense, ours, faster, ideal) in [
            (
                "decoded token",
                dense.seconds,
                ours.seconds,
                decode,
                decode_ideal,
            ),
            ("prompt", exact, masked, read, read_ideal),
        ] {
            table.row([
                what.to_owned(),
                rows.to_string(),
                plot::shown(1e3 * dense),
                plot::shown(1e3 * ours),
                plot::shown(faster),
                plot::shown(ideal),
                format!("{:.0}", 100.0 * faster / ideal),
            ]);
            values.push(json!({
                "what": what, "rows": rows, "dense_seconds": dense, "seconds": ours, "faster": faster, "blocks_allow": ideal,
            }));
        }
        findings.push(format!(
            "{rows} rows: {decode:.2} times as fast for a decoded token ({decode_ideal:.2} allowed), {read:.2} times for a prompt \
             ({read_ideal:.2} allowed). The paper's whole model at 128 k: 3.0 times for prompts, 58 % of the time for tokens."
        ));
        progress.advance(1);
    }
    progress.finish();
    tables.push(table);
    Ok(json!(values))
}

/// Pairs of query and key that a dense prompt has, over those that the mask leaves.
fn pairs_allow(config: &BlockMask, rows: usize) -> f64 {
    let blocks = rows.div_ceil(config.block);
    // Of the own block half is after the query.
    let pairs: f64 = (0..blocks)
        .map(|query| seen(config, query) as f64 - 0.5)
        .sum();
    (blocks * blocks) as f64 / 2.0 / pairs
}

/// The mask with a window such that the last of `blocks` blocks sees at most `most` of them.
fn fitted(config: BlockMask, blocks: usize, most: usize) -> BlockMask {
    let with = |window: usize| BlockMask {
        window,
        ..config.clone()
    };
    let fits = (1..=blocks)
        .rev()
        .find(|&window| seen(&with(window), blocks - 1) <= most);
    with(fits.unwrap_or(1))
}

/// Perplexity of the user's model on the user's text, untrained for any mask.
fn on_text(
    options: &BenchOptions,
    model: &Model,
    tokens: &[u32],
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (wanted, windows) = match options.scale {
        Scale::Smoke => (1024, 1),
        Scale::Small => (4096, 2),
        Scale::Full => (8192, 16),
    };
    let context = model.context(wanted);
    let (dims, block) = (model.dims(), 64);
    let blocks = (context / block).max(2);
    let power = BlockMask {
        block,
        window: 3,
        ..BlockMask::default()
    };
    let most = seen(&power, blocks - 1);
    let stride = BlockMask {
        block,
        ..BlockMask::baseline(Pattern::StrideSlash((blocks / 3).max(1)))
    };
    let window = BlockMask {
        block,
        ..BlockMask::baseline(Pattern::Window)
    };
    let masks = [
        ("power", power),
        ("window", fitted(window, blocks, most)),
        ("stride slash", fitted(stride, blocks, most)),
    ];
    let hybrid = DenseLayers::OfEvery(2, 7);
    progress.start("perplexity", "readings", Some(1 + 2 * masks.len() as u64));
    let measure = |config: Option<PowerConfig>| {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let make = || {
            let Some(config) = config.clone() else {
                return model.policy(context, None, None);
            };
            let prefill = PowerPrefill::new(config, dims).map_err(failed("power"))?;
            model.policy(context, None, Some(Box::new(prefill)))
        };
        let found = read_perplexity(model, tokens, (context, windows), &make)?;
        progress.advance(1);
        Ok(found.perplexity)
    };
    let dense = measure(None)?;
    let title = format!(
        "perplexity of {} (not trained on any mask), second half of {windows} windows of {context} tokens, blocks of {block}; \
         dense {dense:.3}; in the paper, trained, Qwen2-7B on PG19: dense {:.2}",
        model.name, PAPER[0].1
    );
    let mut table = Table::new(
        &title,
        &[
            "mask",
            "blocks seen",
            "2 of 7 layers dense",
            "no layer dense",
            "paper",
        ],
    );
    let mut values = vec![json!({"mask": "dense", "perplexity": dense})];
    let mut mixed = Vec::new();
    for (name, config) in &masks {
        let mask = PowerConfig::from(config.clone());
        let half = measure(Some(PowerConfig {
            dense_layers: hybrid.clone(),
            ..mask.clone()
        }))?;
        let whole = measure(Some(mask))?;
        let paper = PAPER
            .iter()
            .find(|p| p.0 == *name)
            .map_or(String::new(), |p| format!("{:.2}", p.1));
        let sees = seen(config, blocks - 1);
        table.row([
            (*name).to_owned(),
            format!("{sees} of {blocks}"),
            format!("{half:.3}"),
            format!("{whole:.3}"),
            paper,
        ]);
        values.push(json!({"mask": name, "blocks_seen": sees, "hybrid": half, "masked": whole}));
        mixed.push((half, whole));
    }
    progress.finish();
    tables.push(table);
    findings.push(format!(
        "claim: at equal blocks the mask loses no more than a window or strides (paper: 10.00, 9.97, 10.03 against {:.2} dense, \
         after training). Here without training: {:.3}, {:.3}, {:.3} with 2 of 7 layers dense, against {dense:.3}: {}; with no \
         dense layer {:.3}, {:.3}, {:.3}.",
        PAPER[0].1, mixed[0].0, mixed[1].0, mixed[2].0, holds(mixed[0].0 <= 1.01 * mixed[1].0.min(mixed[2].0)),
        mixed[0].1, mixed[1].1, mixed[2].1,
    ));
    Ok(json!(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_compared_at_no_more_blocks() {
        let power = BlockMask {
            window: 3,
            ..BlockMask::default()
        };
        let most = seen(&power, 63);
        let window = fitted(BlockMask::baseline(Pattern::Window), 64, most);
        assert_eq!(seen(&window, 63), most);
        assert!(
            seen(
                &fitted(BlockMask::baseline(Pattern::StrideSlash(21)), 64, most),
                63
            ) <= most
        );
    }
}
