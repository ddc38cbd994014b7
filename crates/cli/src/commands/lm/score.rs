//! `keyfold lm score`: how likely a model holds single texts.

use std::io::{BufRead, Write};

use keyfold_core::NoProgress;
use keyfold_lm::SpecialTokens;
use keyfold_lm::perplexity::log_probabilities;
use serde_json::json;

use super::setup::ModelArgs;
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;

/// Say how likely a model holds texts, each given what stands before it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold lm score --given \"The capital of France is\" \" Paris.\" \" Rome.\" --model MODEL.gguf
  keyfold lm score --model MODEL.gguf --json < sentences.txt")]
pub(super) struct ScoreArgs {
    /// The texts; lines of stdin where none are named
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// What stands before each
    #[arg(long, value_name = "TEXT", default_value = "")]
    given: String,
    /// Show every token
    #[arg(long)]
    tokens: bool,
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: &ScoreArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    if args.model.policy.evict.any() {
        return Err(wrong_use(
            "--evict drops rows when a prompt was read, and a text is scored as one prompt; leave it out",
        ));
    }
    let progress = StderrProgress::new(globals.quiet, 20);
    let model = args.model.open(globals, &progress)?;
    let tokenizer = model.tokenizer()?;
    let texts: Vec<String> = match args.texts.is_empty() {
        true => std::io::stdin().lock().lines().collect::<Result<_, _>>()?,
        false => args.texts.clone(),
    };
    let mut out = anstream::stdout().lock();
    for text in &texts {
        if crate::interrupt::requested() {
            return Ok(Outcome::Interrupted);
        }
        let mut given = tokenizer.prefix().to_vec();
        given.extend(tokenizer.encode(&args.given, SpecialTokens::Plain)?);
        // The text is cut as it would be after what is given.
        let mut all = tokenizer.prefix().to_vec();
        all.extend(tokenizer.encode(&format!("{}{text}", args.given), SpecialTokens::Plain)?);
        let same = given.iter().zip(&all).take_while(|(a, b)| a == b).count();
        // Nothing foresees the first token.
        let from = same.max(1);
        if all.len() <= from {
            return Err(wrong_use(
                "a text has no token that another stands before; give more text, or --given",
            ));
        }
        let mut session = args.model.text(&model, all.len(), &progress)?;
        let found = log_probabilities(session.reading(), &all, &NoProgress)?;
        let found = &found[from - 1..];
        let sum: f64 = found.iter().sum();
        let each = || {
            all[from..]
                .iter()
                .zip(found)
                .map(|(&t, &p)| (tokenizer.token(t).unwrap_or_default(), p))
        };
        if globals.json {
            let tokens: Vec<_> = each()
                .map(|(t, p)| json!({ "token": t, "log_probability": p }))
                .collect();
            writeln!(
                out,
                "{}",
                json!({ "text": text, "log_probability": sum, "tokens": tokens })
            )?;
            continue;
        }
        writeln!(
            out,
            "{sum:9.3}  {:7.3} a token  {text}",
            sum / found.len() as f64
        )?;
        if args.tokens {
            for (token, p) in each() {
                writeln!(
                    out,
                    "{p:18.3}  {}",
                    crate::output::terminal::printable(&token)
                )?;
            }
        }
    }
    Ok(Outcome::Done)
}
