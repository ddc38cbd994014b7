//! `keyfold lm bench`: how fast a model reads and writes here, beside what memory allows.

use std::io::Write;
use std::path::PathBuf;

use keyfold_core::Progress;
use keyfold_kernels::peak;
use keyfold_lm::Reading;
use keyfold_lm::decoding::argmax;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::grid;
use super::setup::ModelArgs;
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;

/// Measure how fast a model reads and writes, beside what the memory of this machine allows
#[derive(Debug, clap::Args)]
#[command(
    mut_arg("model", |model| model.required(false).required_unless_present("grid").default_value_if(
        "grid", clap::builder::ArgPredicate::IsPresent, grid::RECALL)),
    after_help = "\
--grid measures every cache, selector, evictor and way of the weights alone and two of them together: how \
well the last -n tokens of --text are foreseen, or without --model how often a model that is constructed \
to look one thing up still finds it.

Examples:
  keyfold lm bench --model MODEL.gguf
  keyfold lm bench --model MODEL.gguf --context 512,4096 --select tidal --tokens 256 --json
  keyfold lm bench --grid --tokens 64
  keyfold lm bench --grid --model MODEL.gguf --text notes.txt --context 1024")]
pub(super) struct MeasureArgs {
    /// Lengths of prompts (made of random tokens)
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "128,2048"
    )]
    context: Vec<usize>,
    /// Tokens that are written after each prompt
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64)]
    pub(super) tokens_to_write: usize,
    /// Measure the methods of --cache, --select, --evict and --weights alone and two by two, at the
    /// longest of --context
    #[arg(long)]
    grid: bool,
    /// grid: a text of yours, for your model
    #[arg(long, value_name = "FILE", requires = "grid")]
    pub(super) text: Option<PathBuf>,
    /// grid: parts of the text, or questions, that are read under every combination
    #[arg(long, value_name = "N", default_value_t = 4, requires = "grid")]
    pub(super) texts: usize,
    #[command(flatten)]
    pub(super) model: ModelArgs,
}

impl MeasureArgs {
    /// The longest context that is asked for.
    pub(super) fn longest(&self) -> usize {
        self.context.iter().copied().max().unwrap_or(2)
    }
}

/// What a session did, in rates.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Measured {
    pub(super) prompt_tokens: u64,
    pub(super) prompt_tokens_per_second: f64,
    pub(super) written_tokens: u64,
    pub(super) written_tokens_per_second: f64,
    pub(super) attention_share: f64,
    pub(super) weight_bytes_per_token: u64,
    pub(super) cache_bytes_read_per_token: u64,
    pub(super) selector_bytes_per_token: u64,
    pub(super) cache_bytes: u64,
}

impl Measured {
    pub(super) fn new(session: &dyn Reading) -> Self {
        let r = session.report();
        let per = |n: u64| n.checked_div(r.decoded_tokens).unwrap_or(0);
        let rate = |n: u64, seconds: f64| {
            if seconds > 0.0 {
                n as f64 / seconds
            } else {
                0.0
            }
        };
        let decode = r.decode_time.as_secs_f64();
        Self {
            prompt_tokens: r.prompt_tokens,
            prompt_tokens_per_second: rate(r.prompt_tokens, r.prompt_time.as_secs_f64()),
            written_tokens: r.decoded_tokens,
            written_tokens_per_second: rate(r.decoded_tokens, decode),
            attention_share: if decode > 0.0 {
                r.attention_time.as_secs_f64() / decode
            } else {
                0.0
            },
            weight_bytes_per_token: per(r.weight_bytes),
            cache_bytes_read_per_token: per(r.row_bytes),
            selector_bytes_per_token: per(r.selector_bytes),
            cache_bytes: session.cache_bytes(),
        }
    }

    pub(super) fn bytes_per_token(&self) -> u64 {
        self.weight_bytes_per_token
            + self.cache_bytes_read_per_token
            + self.selector_bytes_per_token
    }

    pub(super) fn print(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(
            out,
            "prompt   {} tokens, {:.1} a second\nwritten  {} tokens, {:.1} a second, {:.0} % of the time in attention",
            self.prompt_tokens,
            self.prompt_tokens_per_second,
            self.written_tokens,
            self.written_tokens_per_second,
            100.0 * self.attention_share,
        )?;
        writeln!(
            out,
            "read     {:.1} MB of weights, {:.2} MB of cache, {:.2} MB to choose, for each token\ncache    {:.1} MB",
            mb(self.weight_bytes_per_token),
            mb(self.cache_bytes_read_per_token),
            mb(self.selector_bytes_per_token),
            mb(self.cache_bytes),
        )
    }
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// One line of the table.
#[derive(Serialize)]
struct Row {
    context: usize,
    /// What the bytes that are read would allow at the memory's rate.
    ideal_tokens_per_second: f64,
    #[serde(flatten)]
    measured: Measured,
}

pub(super) fn run(args: &MeasureArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    if args.grid {
        return match args.texts {
            0 => Err(wrong_use(
                "--texts is 0; a combination needs something to read",
            )),
            _ => grid::run(args, globals),
        };
    }
    let progress = StderrProgress::new(globals.quiet, 20);
    let model = args.model.open(globals, &progress)?;
    let bandwidth = peak::read_bandwidth(model.threads());
    let mut rows = Vec::new();
    for &context in &args.context {
        let mut text = args
            .model
            .text(&model, context + args.tokens_to_write, &progress)?;
        let session = text.reading();
        let vocab = session.vocab() as u32;
        let mut rng = StdRng::seed_from_u64(globals.seed);
        let prompt: Vec<u32> = (0..context).map(|_| rng.random_range(0..vocab)).collect();
        session.prefill(&prompt, &progress)?;
        for _ in 0..args.tokens_to_write {
            if progress.cancelled() {
                return Ok(Outcome::Interrupted);
            }
            let token = argmax(session.logits());
            session.step(token)?;
        }
        let measured = Measured::new(session);
        let ideal_tokens_per_second = bandwidth / measured.bytes_per_token().max(1) as f64;
        rows.push(Row {
            context,
            ideal_tokens_per_second,
            measured,
        });
    }
    let mut out = anstream::stdout().lock();
    if globals.json {
        let whole = serde_json::json!({ "bytes_per_second": bandwidth, "rows": rows });
        writeln!(out, "{}", serde_json::to_string_pretty(&whole)?)?;
        return Ok(Outcome::Done);
    }
    writeln!(
        out,
        "memory reads {:.1} GB a second with {} threads",
        bandwidth / 1e9,
        model.threads()
    )?;
    writeln!(
        out,
        "{:>8} {:>12} {:>12} {:>8} {:>8} {:>10}",
        "context", "read tok/s", "write tok/s", "ideal", "share", "cache MB"
    )?;
    for row in &rows {
        let m = &row.measured;
        writeln!(
            out,
            "{:>8} {:>12.1} {:>12.1} {:>8.1} {:>6.0} % {:>10.1}",
            row.context,
            m.prompt_tokens_per_second,
            m.written_tokens_per_second,
            row.ideal_tokens_per_second,
            100.0 * m.written_tokens_per_second / row.ideal_tokens_per_second,
            mb(m.cache_bytes),
        )?;
    }
    Ok(Outcome::Done)
}
