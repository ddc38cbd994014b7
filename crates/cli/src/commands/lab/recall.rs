//! `keyfold lab recall`.

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use keyfold_core::atomic;
use keyfold_sequence::recall::{JointRecall, MultiQueryRecall, RecallText};
use serde_json::json;

use crate::args::Globals;
use crate::failure::Outcome;

/// Make up texts that can only be continued by looking back, to try any model of sequences on
///
/// Each line is a text: `tokens`, and `asked`, the places (from 0) at which something is asked,
/// with the token that is the answer; `told` is where it was told. Joint recall: a key has another value in each of several
/// contexts (1 begins a text, 4 stands between its halves, values are 10 and up, then keys, then
/// contexts). Multi-query recall: pairs of keys and values, then keys once more. The drawing is
/// that of the authors of HAX and of Zoology; the same seed gives the same texts.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold lab recall --texts 10000 --out train.jsonl
  keyfold lab recall --contexts 6 --keys 6 --texts 5
  keyfold lab recall --task multi-query --pairs 8 --length 128 --blank --texts 10000 --out queries.jsonl")]
pub(super) struct RecallArgs {
    /// Which texts
    #[arg(long, value_name = "TASK", default_value = "joint")]
    task: TaskArg,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1)]
    texts: u64,
    /// Joint recall: most contexts
    #[arg(long, value_name = "N", default_value_t = 16)]
    contexts: usize,
    /// Joint recall: most keys of a context
    #[arg(long, value_name = "N", default_value_t = 16)]
    keys: usize,
    /// Joint recall: fewest contexts, and fewest keys of each
    #[arg(long, value_name = "N", default_value_t = 5)]
    least: usize,
    /// Joint recall: different values
    #[arg(long, value_name = "N", default_value_t = 16)]
    values: usize,
    /// Multi-query recall: pairs of keys and values
    #[arg(long, value_name = "N", default_value_t = 4)]
    pairs: usize,
    /// Multi-query recall: tokens of a text
    #[arg(long, value_name = "N", default_value_t = 64)]
    length: usize,
    /// Multi-query recall: different tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    vocabulary: usize,
    /// Multi-query recall: 0 in place of any tokens between the questions, which with few tokens tell
    /// other values of the same keys
    #[arg(long)]
    blank: bool,
    /// File for the texts [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TaskArg {
    /// A key has another value in each context
    Joint,
    /// Pairs, and keys that are asked for
    MultiQuery,
}

impl RecallArgs {
    fn text(&self, seed: u64) -> anyhow::Result<RecallText> {
        Ok(match self.task {
            TaskArg::Joint => JointRecall {
                least: self.least,
                max_n_context: self.contexts,
                max_n_key: self.keys,
                n_value: self.values,
            }
            .text(seed)?,
            TaskArg::MultiQuery => MultiQueryRecall {
                vocab_size: self.vocabulary,
                input_seq_len: self.length,
                num_kv_pairs: self.pairs,
                random_non_queries: !self.blank,
                ..MultiQueryRecall::default()
            }
            .text(seed)?,
        })
    }
}

pub(super) fn run(args: &RecallArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let mut lines = String::new();
    let mut out = anstream::stdout().lock();
    for number in 0..args.texts {
        // Seeds of neighbouring runs must not share texts.
        let seed = keyfold_core::seed_of(&format!("recall {} {number}", globals.seed));
        let text = args.text(seed)?;
        let line = json!({"tokens": text.tokens, "asked": text.asked, "told": text.told});
        match args.out {
            None => writeln!(out, "{line}")?,
            Some(_) => writeln!(lines, "{line}")?,
        }
    }
    if let Some(path) = &args.out {
        atomic::write(path, lines.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(Outcome::Done)
}
