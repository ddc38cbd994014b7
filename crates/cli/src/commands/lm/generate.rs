//! `keyfold lm generate`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;

use keyfold_lm::generate::{Ended, generate};
use keyfold_lm::session::{Policy, Session};
use keyfold_lm::{SpecialTokens, Tokenizer};
use serde::Serialize;
use serde_json::json;

use super::mamba::LongArgs;
use super::setup::{AnyModel, DecodeArgs, ModelArgs, Text};
use crate::args::Globals;
use crate::commands::lm::measure::Measured;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;

/// Write on from a prompt
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold lm generate \"The wing of an aircraft\" --model SmolLM2-135M-Instruct.Q4_1.gguf
  keyfold lm generate --prompt-file notes.md --model MODEL --select tidal --tokens 256 --report
  keyfold lm generate \"Once upon a time\" --model MODEL --decode contrastive -k 5 --alpha 0.6
  keyfold lm generate --prompt-file book.txt --model mamba2-1.3b --long")]
pub(super) struct GenerateArgs {
    /// What the text begins with
    #[arg(value_name = "PROMPT", required_unless_present = "prompt_file")]
    prompt: Option<String>,
    /// Read the prompt from a file; - is stdin
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Take names of special tokens in the prompt (<|im_end|>) for these tokens
    #[arg(long)]
    special: bool,
    /// Keep the state after the prompt in this file, and begin with it where it is there
    #[arg(long, value_name = "FILE")]
    prompt_cache: Option<PathBuf>,
    /// Say on stderr how fast it went and what was read
    #[arg(long)]
    report: bool,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    long: LongArgs,
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: &GenerateArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let text = prompt(args)?;
    if text.is_empty() {
        return Err(wrong_use(
            "the prompt is empty; say what the text begins with: keyfold lm generate \"Once\" --model MODEL",
        ));
    }
    let progress = StderrProgress::new(globals.quiet, 20);
    let model = args.model.open(globals, &progress)?;
    let tokenizer = model.tokenizer()?;
    let special = if args.special {
        SpecialTokens::Parse
    } else {
        SpecialTokens::Plain
    };
    let mut tokens = tokenizer.prefix().to_vec();
    tokens.extend(tokenizer.encode(&text, special)?);
    let options = args
        .decode
        .options(model.end_tokens(), &tokenizer, globals.seed)?;
    let mut session = match &model {
        AnyModel::Decoder(loaded) => {
            args.long.refuse()?;
            args.model.policy.check_question(tokens.len())?;
            let room = tokens.len() + options.max_tokens;
            let mut session = args.model.session(loaded, room, &progress)?;
            let images = args.model.policy.evict.in_prompt(&tokenizer, &tokens)?;
            session.set_kinds(images);
            Text::Decoder(Box::new(session))
        }
        AnyModel::Mamba(loaded) => {
            let long = args.long.build(loaded, &tokens, &progress)?;
            Text::Mamba(Box::new(loaded.session().with_long(long)))
        }
    };
    let mut rest = tokens.clone();
    if let Some(path) = &args.prompt_cache {
        if path.exists() {
            let held = session.prefill_saved(path, &tokens, &progress)?;
            progress.say(&format!(
                "{held} of {} tokens came from {}",
                tokens.len(),
                path.display()
            ));
        } else {
            session.reading().prefill(&tokens, &progress)?;
        }
        session.save(path)?;
        rest.clear();
    }
    let mut out = anstream::stdout().lock();
    let mut failed = None;
    let mut show = |piece: &str| {
        if !globals.json && failed.is_none() {
            failed = write!(out, "{piece}").and_then(|()| out.flush()).err();
        }
    };
    let written = generate(
        session.reading(),
        &tokenizer,
        &rest,
        &options,
        &progress,
        &mut show,
    )?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let measured = Measured::new(session.reading());
    let looked_up = match &session {
        Text::Decoder(session) => looked_up(session, &tokenizer),
        Text::Mamba(_) => Vec::new(),
    };
    if globals.json {
        let whole = json!({
            "text": written.text, "tokens": written.tokens, "ended": written.ended,
            "picks": written.picks, "prompt_tokens": tokens.len(), "report": measured,
            "looked_up": looked_up,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&whole)?)?;
    } else {
        writeln!(out)?;
    }
    if args.report && !globals.json {
        let mut err = anstream::stderr();
        measured.print(&mut err)?;
        for block in looked_up.iter().take(SHOWN_BLOCKS) {
            writeln!(
                err,
                "read     tokens {} to {}, in {} layers: {}",
                block.from,
                block.to,
                block.layers,
                block.text.trim().replace('\n', " ")
            )?;
        }
    }
    Ok(if written.ended == Ended::Stopped {
        Outcome::Interrupted
    } else {
        Outcome::Done
    })
}

/// Blocks of old tokens that `--report` shows.
const SHOWN_BLOCKS: usize = 8;

/// A block of old tokens that was looked up for the last token: where it came from.
#[derive(Serialize)]
struct LookedUp {
    from: u32,
    to: u32,
    /// In how many layers.
    layers: usize,
    text: String,
}

/// What the layers looked up last, from what most of them did on.
fn looked_up(session: &Session, tokenizer: &Tokenizer) -> Vec<LookedUp> {
    let Policy::Whole(whole) = session.policy() else {
        return Vec::new();
    };
    let mut counts = BTreeMap::<(u32, u32), usize>::new();
    for layer in 0..session.decoder().config().dims.layers {
        for block in whole.retrieved(layer) {
            *counts.entry((block.start, block.end)).or_default() += 1;
        }
    }
    let mut found: Vec<LookedUp> = counts
        .into_iter()
        .map(|((from, to), layers)| LookedUp {
            from,
            to,
            layers,
            text: (session.tokens().get(from as usize..to as usize))
                .map_or_else(String::new, |tokens| tokenizer.decode(tokens)),
        })
        .collect();
    found.sort_by_key(|block| std::cmp::Reverse(block.layers));
    found
}

fn prompt(args: &GenerateArgs) -> anyhow::Result<String> {
    let Some(path) = &args.prompt_file else {
        return Ok(args.prompt.clone().unwrap_or_default());
    };
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes)?;
    } else {
        bytes = std::fs::read(path)
            .map_err(|e| wrong_use(format!("cannot read {}: {e}", path.display())))?;
    }
    String::from_utf8(bytes).map_err(|_| {
        wrong_use(format!(
            "{} is not UTF-8 text; convert it first",
            path.display()
        ))
    })
}
