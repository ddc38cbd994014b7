//! `keyfold lm chat`.

use std::io::{BufRead, IsTerminal, Write};
use std::time::SystemTime;

use keyfold_lm::Tokenizer;
use keyfold_lm::generate::encode_chat;
use keyfold_lm::generate::{Ended, Generated, generate};
use keyfold_lm::session::Session;
use keyfold_lm::{ChatTemplate, Message};
use serde_json::json;

use super::setup::{DecodeArgs, Loaded, ModelArgs};
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;

/// Talk with a model that was trained to answer
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold lm chat --model SmolLM2-135M-Instruct.Q4_1.gguf
  echo \"What is flutter?\" | keyfold lm chat --model MODEL --json

Every line of stdin is something you say; the talk ends with the input, or with Ctrl-D.")]
pub(super) struct ChatArgs {
    /// Instructions that stand before the talk
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// A talk so far.
struct Talk<'a> {
    template: ChatTemplate,
    tokenizer: Tokenizer,
    session: Session,
    messages: Vec<Message>,
    loaded: &'a Loaded,
    args: &'a ChatArgs,
    globals: &'a Globals,
}

impl ChatArgs {
    /// An empty text with room for a talk.
    fn session(&self, loaded: &Loaded, globals: &Globals) -> anyhow::Result<Session> {
        let progress = StderrProgress::new(globals.quiet, 20);
        let context = loaded.decoder.config().context_limit().unwrap_or(MOST_ROOM);
        self.model
            .session(loaded, context.min(MOST_ROOM), &progress)
    }
}

/// Tokens of a talk for which there is room at once; a longer one makes more.
const MOST_ROOM: usize = 8192;

/// The model's template, or why there is no talking with it.
pub(in crate::commands) fn template(loaded: &Loaded) -> anyhow::Result<ChatTemplate> {
    loaded.file.chat_template()?.ok_or_else(|| {
        wrong_use(format!(
            "{} has no chat template, so it was not trained to answer; use 'keyfold lm generate'",
            loaded.file.path().display()
        ))
    })
}

pub(super) fn run(args: &ChatArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let progress = StderrProgress::new(globals.quiet, 20);
    let loaded = args.model.load(globals, &progress)?;
    let message = |content: &String| Message {
        role: "system".into(),
        content: content.clone(),
    };
    let mut talk = Talk {
        template: template(&loaded)?,
        tokenizer: loaded.file.tokenizer()?,
        session: args.session(&loaded, globals)?,
        messages: args.system.iter().map(message).collect(),
        loaded: &loaded,
        args,
        globals,
    };
    let asks = std::io::stdin().is_terminal() && !globals.json;
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if asks {
            write!(anstream::stderr(), "> ")?;
        }
        let Some(line) = lines.next() else {
            return Ok(Outcome::Done);
        };
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        if talk.answer(&line)?.ended == Ended::Stopped {
            return Ok(Outcome::Interrupted);
        }
    }
}

impl Talk<'_> {
    /// Answers one line; the session keeps what both have said.
    fn answer(&mut self, line: &str) -> anyhow::Result<Generated> {
        self.messages.push(Message {
            role: "user".into(),
            content: line.to_owned(),
        });
        let tokens = encode_chat(
            &self.template,
            &self.tokenizer,
            &self.messages,
            SystemTime::now(),
        )?;
        // What the model has read already is not read again.
        let held = self.session.tokens();
        let same = held.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
        // Contrastive search compares with the hidden states of the whole talk.
        let kept = match self.args.decode.is_contrastive() {
            true => 0,
            false => same.min(tokens.len().saturating_sub(1)),
        };
        if self.session.truncate(kept).is_err() {
            // What act-qkv has read cannot be taken back: it reads the talk again.
            self.session = self.args.session(self.loaded, self.globals)?;
        }
        let rest = &tokens[self.session.tokens().len()..];
        let options = self.args.decode.options(
            &self.loaded.decoder.config().eos_token_ids,
            &self.tokenizer,
            self.globals.seed,
        )?;
        let mut out = anstream::stdout().lock();
        let mut failed = None;
        let json = self.globals.json;
        let mut show = |piece: &str| {
            if !json && failed.is_none() {
                failed = write!(out, "{piece}").and_then(|()| out.flush()).err();
            }
        };
        // A bar for what is read at once would only flicker.
        let progress = StderrProgress::new(self.globals.quiet || rest.len() < 512, 0);
        let written = generate(
            &mut self.session,
            &self.tokenizer,
            rest,
            &options,
            &progress,
            &mut show,
        )?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        if json {
            writeln!(
                out,
                "{}",
                json!({ "answer": written.text, "ended": written.ended })
            )?;
        } else {
            writeln!(out)?;
        }
        self.messages.push(Message {
            role: "assistant".into(),
            content: written.text.clone(),
        });
        Ok(written)
    }
}
