//! ActQKV: texts far beyond a small window, in that window and few retrieved blocks.
//!
//! Q. Xiao et al., 2025. Measured by what retrieves (a probe weighted by activations, the
//! mean query of InfLLM, the last query) and by blocks: whether records far outside the window
//! are found, by `--model` in text or by the constructed recall model; and perplexity of
//! `--model` on `--data` beside a sliding window of as many tokens.

use keyfold_core::{NoProgress, Progress};
use keyfold_lm::Policy;
use keyfold_lm::config::rope_frequencies;
use keyfold_lm::prefill::dense::DensePrefill;
use keyfold_lm::recall::{PromptSpec, RecallConfig};
use keyfold_lm::select::act_qkv::{ActQkv, ActQkvConfig, Probe, Rotary};
use keyfold_lm::select::baselines::SlidingWindow;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::records::Records;
use super::{Model, answered, failed, holds, read_perplexity, text};
use crate::plot::{self, Line};
use crate::report::{Report, Table};
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(crate) const EXPERIMENT: Experiment = Experiment {
    name: "act-qkv",
    about: "records beyond the window that are found, and perplexity (--model, --data), by retrieved blocks",
    run,
};

/// Tokens of a block, and always read at the beginning of a text.
const BLOCK: usize = 32;
const INIT: usize = 32;

#[derive(Clone)]
struct Sizes {
    /// Tokens of a context, and how many of them, with the constructed model.
    context: usize,
    prompts: usize,
    /// The same with the user's model.
    text: usize,
    questions: usize,
    /// Newest tokens that are read, in recall.
    local: usize,
    blocks: Vec<usize>,
    /// The same with the user's model.
    text_blocks: Vec<usize>,
    windows: usize,
    window: usize,
    /// Windows of newest tokens, for perplexity.
    locals: Vec<usize>,
}

fn sizes(scale: Scale) -> Sizes {
    let blocks = vec![4, 8, 16, 32];
    match scale {
        Scale::Smoke => Sizes {
            context: 768,
            prompts: 2,
            text: 384,
            questions: 1,
            local: 64,
            blocks: vec![4],
            text_blocks: vec![4],
            windows: 1,
            window: 384,
            locals: vec![64],
        },
        Scale::Small => Sizes {
            context: 2048,
            prompts: 12,
            text: 1024,
            questions: 6,
            local: 128,
            blocks,
            text_blocks: vec![4, 16],
            windows: 2,
            window: 2048,
            locals: vec![128],
        },
        Scale::Full => Sizes {
            context: 16_384,
            prompts: 50,
            text: 16_384,
            questions: 50,
            local: 512,
            text_blocks: blocks.clone(),
            blocks,
            windows: 16,
            window: 8192,
            locals: vec![128, 256, 512],
        },
    }
}

/// How far tokens are read.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// By blocks that this retrieves; `true` says where the question stands.
    Blocks(Probe, bool),
    /// As many newest tokens as the others read in all.
    Window,
    /// All.
    Dense,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Blocks(Probe::Activation, false) => "activation probe",
            Self::Blocks(Probe::Mean, false) => "mean query",
            Self::Blocks(Probe::Last, false) => "last query",
            Self::Blocks(_, true) => "probe + question",
            Self::Window => "window",
            Self::Dense => "dense",
        }
    }
}

const PROBES: [Way; 3] = [
    Way::Blocks(Probe::Activation, false),
    Way::Blocks(Probe::Mean, false),
    Way::Blocks(Probe::Last, false),
];

/// Tokens that a way may read.
#[derive(Debug, Clone, Copy)]
struct Budget {
    local: usize,
    blocks: usize,
}

impl Budget {
    fn tokens(self) -> usize {
        INIT + self.local + self.blocks * BLOCK
    }
}

/// The policy of a way for a text of `length` tokens whose last `question` ask.
fn policy(
    model: &Model,
    way: Way,
    budget: Budget,
    length: usize,
    question: usize,
) -> Result<Policy, BenchError> {
    let (config, dims) = (model.decoder.config(), model.dims());
    let Way::Blocks(probe, asked) = way else {
        if way == Way::Dense {
            return model.policy(length, None, None);
        }
        let window = budget.tokens();
        let prefill = DensePrefill::new(dims, vec![Some(window); dims.layers], 256);
        let select = SlidingWindow::new(window, 0, 0, dims).map_err(failed("window"))?;
        return model.policy(length, Some(Box::new(select)), Some(Box::new(prefill)));
    };
    let (inv_freq, scale) = rope_frequencies(config, config.max_position_embeddings);
    let interleaved = config.rope().is_some_and(|rope| rope.interleaved);
    let settings = ActQkvConfig {
        block_size: BLOCK,
        n_init: INIT,
        n_local: budget.local,
        topk: budget.blocks,
        min_blocks: (budget.blocks / 2).max(1),
        exc_block_size: budget.local.min(64),
        probe,
        ..ActQkvConfig::default()
    };
    let rotary = Rotary {
        inv_freq,
        scale,
        interleaved,
    };
    let mut act = ActQkv::new(settings, dims, rotary).map_err(failed("act-qkv"))?;
    if asked {
        let from = length.saturating_sub(question) as u32;
        act.set_question(from, length as u32, length as u32)
            .map_err(failed("act-qkv"))?;
    }
    Ok(Policy::Whole(Box::new(act)))
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let sizes = sizes(options.scale);
    let (mut tables, mut findings) = (Vec::new(), Vec::new());
    let (mut perplexity, mut records) = (Value::Null, Value::Null);
    let (recall, mut lines) = constructed(options, &sizes, progress, &mut tables, &mut findings)?;
    let mut title = ("Records found beyond the window", "share of answers");
    let sizes = Sizes {
        blocks: sizes.text_blocks.clone(),
        ..sizes
    };
    if let Some(model) = Model::given(options)? {
        (records, lines) = in_text(
            options,
            &model,
            &sizes,
            progress,
            &mut tables,
            &mut findings,
        )?;
        if let Some(tokens) = text(options, &model)? {
            (perplexity, lines) = on_text(
                &model,
                &tokens,
                &sizes,
                progress,
                &mut tables,
                &mut findings,
            )?;
            title = ("Perplexity beyond the window", "perplexity");
        }
    }
    if perplexity.is_null() {
        findings.push(super::NOT_MEASURED.to_owned());
    }
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({"constructed": recall, "records": records, "perplexity": perplexity}),
        svg: plot::lines(title.0, "retrieved blocks", title.1, &lines)?,
    })
}

/// The ways that recall is measured for.
fn recall_ways() -> Vec<Way> {
    let mut ways = PROBES.to_vec();
    ways.push(Way::Blocks(Probe::Activation, true));
    ways.push(Way::Window);
    ways
}

/// A table of shares by blocks and ways, with the lines of the plot.
struct Shares {
    ways: Vec<Way>,
    /// `[blocks, ways]`.
    found: Vec<Vec<f64>>,
}

impl Shares {
    /// The chance is that the record lies in blocks that are drawn blindly.
    fn table(&self, title: &str, sizes: &Sizes, context: usize) -> Table {
        let columns = ["blocks", "tokens read", "by chance"]
            .into_iter()
            .chain(self.ways.iter().map(|w| w.name()));
        let mut table = Table::new(title, &columns.collect::<Vec<_>>());
        for (&blocks, found) in sizes.blocks.iter().zip(&self.found) {
            let read = Budget {
                local: sizes.local,
                blocks,
            }
            .tokens();
            let far = context.saturating_sub(INIT + sizes.local).max(1);
            let chance = ((blocks * BLOCK) as f64 / far as f64).min(1.0);
            let cells = found.iter().map(|share| format!("{:.0}", 100.0 * share));
            table.rows.push(
                [
                    blocks.to_string(),
                    read.to_string(),
                    format!("{:.0}", 100.0 * chance),
                ]
                .into_iter()
                .chain(cells)
                .collect(),
            );
        }
        table
    }

    fn lines(&self, sizes: &Sizes) -> Vec<Line> {
        let line = |(i, way): (usize, &Way)| {
            let points = sizes
                .blocks
                .iter()
                .zip(&self.found)
                .map(|(&b, found)| (b as f64, found[i]));
            (way.name().to_owned(), points.collect())
        };
        self.ways.iter().enumerate().map(line).collect()
    }

    fn values(&self, sizes: &Sizes) -> Value {
        let rows = sizes.blocks.iter().zip(&self.found);
        let all = rows.flat_map(|(blocks, found)| {
            self.ways.iter().zip(found).map(
                move |(way, share)| json!({"blocks": blocks, "by": way.name(), "answers": share}),
            )
        });
        all.collect()
    }

    /// Means over blocks.
    fn mean(&self, way: Way) -> f64 {
        let at = self.ways.iter().position(|w| *w == way).unwrap_or(0);
        self.found.iter().map(|found| found[at]).sum::<f64>() / self.found.len().max(1) as f64
    }

    fn finding(&self, what: &str) -> String {
        let [activation, mean, _] = PROBES.map(|way| self.mean(way));
        let window = self.mean(Way::Window);
        format!(
            "claim: the weighted probe finds at least as much as the mean query, which finds more than a window. {what}: \
             {:.0} %, {:.0} % and {:.0} % of answers in the mean over blocks: {}; with the question's place told {:.0} %.",
            100.0 * activation,
            100.0 * mean,
            100.0 * window,
            holds(activation >= mean && mean > window),
            100.0 * self.mean(Way::Blocks(Probe::Activation, true)),
        )
    }
}

/// The constructed model: its question is the last token of a chunk of fillers.
fn constructed(
    options: &BenchOptions,
    sizes: &Sizes,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<(Value, Vec<Line>), BenchError> {
    let config = RecallConfig {
        layers: 3,
        seed: options.seed,
        ..RecallConfig::default()
    };
    let model = Model::recall(&config, options.thread_count())?;
    let ways = recall_ways();
    let mut found = vec![vec![0.0; ways.len()]; sizes.blocks.len()];
    progress.start("recall", "prompts", Some(sizes.prompts as u64));
    for i in 0..sizes.prompts {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        // Always outside the largest of the windows, where the text is long enough for it.
        let most = Budget {
            local: sizes.local,
            blocks: 0,
        }
        .tokens() as f32
            / sizes.context as f32;
        let depth = (i as f32 + 0.5) / sizes.prompts as f32 * (0.9 - most).max(0.1) + 0.05;
        let spec = PromptSpec {
            length: sizes.context,
            depth,
            distractors: 7,
        };
        let prompt = config
            .prompt(&spec, options.seed.wrapping_add(i as u64))
            .map_err(failed("recall prompt"))?;
        for (&blocks, found) in sizes.blocks.iter().zip(&mut found) {
            let budget = Budget {
                local: sizes.local,
                blocks,
            };
            for (&way, found) in ways.iter().zip(found) {
                let mut session =
                    model.session(policy(&model, way, budget, prompt.tokens.len(), 1)?);
                session
                    .prefill(&prompt.tokens, &NoProgress)
                    .map_err(failed(&model.name))?;
                let (right, _) = answered(session.logits(), prompt.answer);
                *found += f64::from(u8::from(right)) / sizes.prompts as f64;
            }
        }
        progress.advance(1);
    }
    progress.finish();
    let shares = Shares { ways, found };
    let title = format!(
        "answers of the constructed model, %; {} prompts of {} tokens, read in chunks of {}, window of {}",
        sizes.prompts,
        sizes.context,
        sizes.local.min(64),
        sizes.local
    );
    tables.push(shares.table(&title, sizes, sizes.context));
    findings.push(shares.finding("Constructed model"));
    Ok((shares.values(sizes), shares.lines(sizes)))
}

/// Records in text, asked of the user's model.
fn in_text(
    options: &BenchOptions,
    model: &Model,
    sizes: &Sizes,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<(Value, Vec<Line>), BenchError> {
    let mut ways = recall_ways();
    let limit = model.decoder.config().context_limit().unwrap_or(usize::MAX);
    if sizes.text + 16 < limit {
        ways.push(Way::Dense);
    }
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut found = vec![vec![0.0; ways.len()]; sizes.blocks.len()];
    progress.start("records", "prompts", Some(sizes.questions as u64));
    for i in 0..sizes.questions {
        let depth = (i as f64 + 0.5) / sizes.questions as f64 * 0.75;
        let records = Records::new(model, sizes.text, depth, &mut rng)?;
        let length = records.prompt.len();
        for (b, &blocks) in sizes.blocks.iter().enumerate() {
            let budget = Budget {
                local: sizes.local,
                blocks,
            };
            for (w, &way) in ways.iter().enumerate() {
                if progress.cancelled() {
                    return Err(BenchError::Cancelled);
                }
                // Blocks make no difference to a dense reading.
                let right = match (way, b) {
                    (Way::Dense, 1..) => found[0][w] > found[b][w],
                    (Way::Dense, _) => {
                        records.answered(model, model.policy(length + 16, None, None)?, 0)?
                    }
                    // What lies before the window is forgotten, so that texts of any length can be read.
                    (Way::Window, _) => {
                        let from = length.saturating_sub(budget.tokens());
                        records.answered(
                            model,
                            model.policy(length - from + 16, None, None)?,
                            from,
                        )?
                    }
                    _ => records.answered(
                        model,
                        policy(model, way, budget, length, records.question)?,
                        0,
                    )?,
                };
                found[b][w] += f64::from(u8::from(right)) / sizes.questions as f64;
            }
        }
        progress.advance(1);
    }
    progress.finish();
    let shares = Shares { ways, found };
    let title = format!(
        "records that {} answers exactly, %; {} prompts of {} tokens, window of {}",
        model.name, sizes.questions, sizes.text, sizes.local
    );
    tables.push(shares.table(&title, sizes, sizes.text));
    findings.push(shares.finding("Records in text"));
    Ok((shares.values(sizes), shares.lines(sizes)))
}

/// Perplexity of the user's model on the user's text.
fn on_text(
    model: &Model,
    tokens: &[u32],
    sizes: &Sizes,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<(Value, Vec<Line>), BenchError> {
    let context = model.context(sizes.window);
    let measure = |way: Way, budget: Budget| {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let make = || policy(model, way, budget, context, 1);
        let found = read_perplexity(model, tokens, (context, sizes.windows), &make)?;
        progress.advance(1);
        Ok(found.perplexity)
    };
    let cases: Vec<Budget> = sizes
        .locals
        .iter()
        .flat_map(|&local| {
            sizes
                .blocks
                .iter()
                .map(move |&blocks| Budget { local, blocks })
        })
        .filter(|budget| budget.tokens() < context)
        .collect();
    let ways = [PROBES[0], PROBES[1], PROBES[2], Way::Window];
    progress.start(
        "perplexity",
        "readings",
        Some((1 + cases.len() * ways.len()) as u64),
    );
    let dense = measure(
        Way::Dense,
        Budget {
            local: 0,
            blocks: 0,
        },
    )?;
    let title = format!(
        "perplexity of {}, second half of {} windows of {context} tokens; dense {dense:.3}",
        model.name, sizes.windows
    );
    let columns = ["window", "blocks", "tokens read"]
        .into_iter()
        .chain(ways.map(Way::name));
    let mut table = Table::new(&title, &columns.collect::<Vec<_>>());
    let mut lines: Vec<Line> = ways
        .iter()
        .map(|w| (w.name().to_owned(), Vec::new()))
        .collect();
    let mut values = vec![json!({"by": "dense", "perplexity": dense})];
    let (mut better, mut probe_first) = (0, 0);
    for &budget in &cases {
        let mut row = vec![
            budget.local.to_string(),
            budget.blocks.to_string(),
            budget.tokens().to_string(),
        ];
        let mut found = Vec::new();
        for (way, line) in ways.iter().zip(&mut lines) {
            let p = measure(*way, budget)?;
            row.push(format!("{p:.3}"));
            values.push(json!({"local": budget.local, "blocks": budget.blocks, "by": way.name(), "perplexity": p}));
            if Some(&budget.local) == sizes.locals.first() {
                line.1.push((budget.blocks as f64, p));
            }
            found.push(p);
        }
        better += usize::from(found[0] < found[3]);
        probe_first += usize::from(found[0] <= found[1]);
        table.rows.push(row);
    }
    progress.finish();
    tables.push(table);
    findings.push(format!(
        "perplexity: retrieved blocks are better than a window of as many tokens in {better} of {n} cases: {}; the weighted \
         probe is at least as good as the mean query in {probe_first} of {n}: {}.",
        holds(better == cases.len()), holds(probe_first == cases.len()), n = cases.len(),
    ));
    Ok((json!(values), lines))
}
