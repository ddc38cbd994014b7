//! `keyfold lm perplexity`: how well a model foresees a text.

use std::io::Write;
use std::path::PathBuf;

use keyfold_core::Progress;
use keyfold_lm::SpecialTokens;
use keyfold_lm::perplexity::{PerplexityOptions, Protocol, perplexity};
use serde_json::json;

use super::mamba::LongArgs;
use super::setup::{AnyModel, ModelArgs};
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;

/// Say how well a model foresees a text: the perplexity of each token
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold lm perplexity book.txt --model MODEL.gguf
  keyfold lm perplexity book.txt --model MODEL.gguf --context 2048 --decoded 256 --select tidal
  keyfold lm perplexity book.txt --model mamba2-130m --context 8192 --long")]
pub(super) struct PerplexityArgs {
    /// A text file
    #[arg(value_name = "FILE")]
    text: PathBuf,
    /// Tokens of a window; windows do not overlap
    #[arg(long, value_name = "N", default_value_t = 512)]
    context: usize,
    /// Windows at most
    #[arg(long, value_name = "N")]
    windows: Option<usize>,
    /// Read a window as a prompt but for its last N tokens, which are decoded one by one and
    /// alone are counted: what --select does shows there. 0 reads all as prompts, and counts
    /// the second half of each window
    #[arg(long, value_name = "N", default_value_t = 0)]
    decoded: usize,
    #[command(flatten)]
    long: LongArgs,
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: &PerplexityArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let text = std::fs::read(&args.text)
        .map_err(|e| wrong_use(format!("cannot read {}: {e}", args.text.display())))?;
    let text = String::from_utf8_lossy(&text);
    let progress = StderrProgress::new(globals.quiet, 20);
    let model = args.model.open(globals, &progress)?;
    let tokenizer = model.tokenizer()?;
    let tokens = tokenizer.encode(&text, SpecialTokens::Plain)?;
    if args.model.policy.evict.any() && args.decoded == 0 {
        return Err(wrong_use(
            "--evict drops rows when a prompt was read, and here all is one prompt; count written \
             tokens: --decoded N",
        ));
    }
    let options = PerplexityOptions {
        context: args.context,
        windows: args.windows.unwrap_or(usize::MAX),
        protocol: match args.decoded {
            0 => Protocol::Prompt,
            decoded => Protocol::Decoded(decoded),
        },
        prefix: tokenizer.prefix().to_vec(),
    };
    let found = match &model {
        AnyModel::Decoder(loaded) => {
            args.long.refuse()?;
            let mut session = || args.model.session(loaded, args.context, &progress);
            perplexity(&mut session, &tokens, &options, &progress)?
        }
        AnyModel::Mamba(loaded) => {
            let first = &tokens[..args.context.min(tokens.len())];
            let long = args.long.build(loaded, first, &progress)?;
            let mut session = || anyhow::Ok(loaded.session().with_long(long.clone()));
            perplexity(&mut session, &tokens, &options, &progress)?
        }
    };
    let mut out = anstream::stdout().lock();
    if globals.json {
        let bytes_per_token = text.len() as f64 / tokens.len().max(1) as f64;
        let whole = json!({
            "perplexity": found.perplexity, "nats_per_token": found.nats_per_token,
            "standard_error": found.standard_error, "tokens": found.tokens, "windows": found.windows,
            "bytes_per_token": bytes_per_token,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&whole)?)?;
    } else {
        writeln!(
            out,
            "perplexity {:.4}  ({:.4} +- {:.4} nats a token, {} tokens of {} windows)",
            found.perplexity,
            found.nats_per_token,
            found.standard_error,
            found.tokens,
            found.windows
        )?;
    }
    Ok(if progress.cancelled() {
        Outcome::Interrupted
    } else {
        Outcome::Done
    })
}
