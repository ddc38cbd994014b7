//! Writing on from a prompt: reads it, picks token after token, streams the text.

use crate::LmError;
use crate::decoding::{
    ContrastiveConfig, ContrastiveSearch, Pick, Sampler, SamplingConfig, StopStrings,
};
use crate::reading::Reading;
use crate::{ChatTemplate, Message, SpecialTokens, Tokenizer};
use keyfold_core::Progress;
use std::time::SystemTime;

/// How tokens are picked.
#[derive(Debug, Clone)]
pub enum Decoding {
    /// By a draw (or the likeliest, at temperature 0).
    Sample(SamplingConfig),
    /// By contrastive search.
    Contrastive(ContrastiveConfig),
}

/// When and how to write.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Tokens at most.
    pub max_tokens: usize,
    /// How they are picked.
    pub decoding: Decoding,
    /// The text ends before any of these.
    pub stop: Vec<String>,
    /// The text ends at any of these tokens.
    pub end_tokens: Vec<u32>,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The model said that it ends.
    EndToken,
    /// A stop string came.
    StopString,
    /// As long as was asked for.
    Length,
    /// The model's context is full.
    ContextFull,
    /// The user asked to stop.
    Stopped,
}

/// What was written.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Generated {
    /// The text.
    pub text: String,
    /// Its tokens, the one that ended it left out.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub ended: Ended,
    /// Contrastive search: why each token was picked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub picks: Vec<Pick>,
}

/// Picks one token after the other.
enum Picker {
    Sample(Box<Sampler>),
    Contrastive(ContrastiveSearch),
}

impl Picker {
    fn new(decoding: &Decoding, text: &mut dyn Reading) -> Result<Self, LmError> {
        Ok(match decoding {
            Decoding::Sample(config) => Self::Sample(Box::new(Sampler::new(config.clone())?)),
            Decoding::Contrastive(config) => {
                let session = text.decoder_session().ok_or_else(only_attention)?;
                let dims = session.decoder().config().dims;
                config.validate(dims.vocab)?;
                Self::Contrastive(ContrastiveSearch::new(config.clone(), dims.hidden))
            }
        })
    }

    /// The next token. Contrastive search has then read it already.
    fn next(&mut self, text: &mut dyn Reading, picks: &mut Vec<Pick>) -> Result<u32, LmError> {
        match self {
            Self::Sample(sampler) => {
                let (logits, context) = text.logits_and_tokens();
                Ok(sampler.next(logits, context))
            }
            Self::Contrastive(search) => {
                let session = text.decoder_session().ok_or_else(only_attention)?;
                let candidates: Vec<u32> = search
                    .candidates(session.logits())
                    .iter()
                    .map(|c| c.0)
                    .collect();
                session.candidates(&candidates)?;
                let pick = search.pick(session.hidden());
                let token = candidates.get(pick.candidate).copied().unwrap_or(0);
                session.accept(pick.candidate, token)?;
                picks.push(pick);
                Ok(token)
            }
        }
    }
}

fn only_attention() -> LmError {
    let what = "contrastive search compares hidden states of one cache, which this model does not have; \
                choose another way to pick tokens";
    LmError::Input { what: what.into() }
}

/// Reads `prompt` (of which the session may have read a beginning) and writes on. `show`
/// gets the text piece by piece, without half characters and without stop strings.
///
/// A stop asked for through `progress` while writing is no error: what was written is kept.
///
/// # Errors
/// As [`Reading::prefill`], or when a setting is out of its range.
pub fn generate(
    text: &mut dyn Reading,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
    progress: &dyn Progress,
    show: &mut dyn FnMut(&str),
) -> Result<Generated, LmError> {
    let mut picker = Picker::new(&options.decoding, text)?;
    if let Picker::Contrastive(search) = &mut picker {
        let session = text.decoder_session().ok_or_else(only_attention)?;
        if !session.tokens().is_empty() {
            let what = "contrastive search needs the hidden states of the whole text: \
                        do not combine it with a saved prompt or a chat";
            return Err(LmError::Input { what: what.into() });
        }
        session.keep_hidden(true);
        session.prefill(prompt, progress)?;
        session.keep_hidden(false);
        search.push(session.hidden());
    } else if !prompt.is_empty() {
        text.prefill(prompt, progress)?;
    }
    write(text, tokenizer, &mut picker, options, progress, show)
}

/// The loop: pick, show, read.
fn write(
    session: &mut dyn Reading,
    tokenizer: &Tokenizer,
    picker: &mut Picker,
    options: &GenerateOptions,
    progress: &dyn Progress,
    show: &mut dyn FnMut(&str),
) -> Result<Generated, LmError> {
    let mut stream = tokenizer.stream(session.tokens());
    let mut stops = StopStrings::new(options.stop.iter().cloned());
    let mut out = Generated {
        text: String::new(),
        tokens: Vec::new(),
        ended: Ended::Length,
        picks: Vec::new(),
    };
    let mut tell = |piece: String, text: &mut String| {
        if !piece.is_empty() {
            show(&piece);
            text.push_str(&piece);
        }
    };
    let limit = session.context_left();
    while out.tokens.len() < options.max_tokens {
        if progress.cancelled() {
            out.ended = Ended::Stopped;
            break;
        }
        if limit.is_some_and(|limit| out.tokens.len() >= limit) {
            out.ended = Ended::ContextFull;
            break;
        }
        let token = picker.next(session, &mut out.picks)?;
        if options.end_tokens.contains(&token) {
            out.ended = Ended::EndToken;
            break;
        }
        out.tokens.push(token);
        let (piece, stopped) = stops.push(&stream.push(token));
        tell(piece, &mut out.text);
        if stopped {
            out.ended = Ended::StopString;
            return Ok(out);
        }
        if matches!(picker, Picker::Sample(_)) {
            session.step(token)?;
        }
        if let Some(session) = session.decoder_session() {
            session.correct_if_due(out.tokens.len())?;
        }
    }
    let (piece, _) = stops.push(&stream.finish());
    tell(piece, &mut out.text);
    tell(stops.finish(), &mut out.text);
    Ok(out)
}

/// The tokens of a conversation up to where the model answers. What people wrote never
/// becomes a special token, whatever it looks like: a text that holds the name of one
/// (`<|im_end|>`) is cut into tokens apart from the template's own.
///
/// # Errors
/// When the template or the tokenizer refuses.
pub fn encode_chat(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Message],
    now: SystemTime,
) -> Result<Vec<u32>, LmError> {
    let marked: Vec<Message> = messages
        .iter()
        .enumerate()
        .map(|(i, m)| marked(i, m))
        .collect();
    let whole = template.render(messages, true, now)?;
    if !holds_special(tokenizer, messages)? {
        return tokenizer.encode(&whole, SpecialTokens::Parse);
    }
    let rendered = template.render(&marked, true, now)?;
    let mut tokens = Vec::new();
    let mut rest = rendered.as_str();
    for (i, message) in messages.iter().enumerate() {
        let Some((before, after)) = rest.split_once(&mark(i)) else {
            continue;
        };
        tokens.extend(tokenizer.encode(before, SpecialTokens::Parse)?);
        tokens.extend(tokenizer.encode(message.content.trim(), SpecialTokens::Plain)?);
        rest = after;
    }
    tokens.extend(tokenizer.encode(rest, SpecialTokens::Parse)?);
    Ok(tokens)
}

/// What stands for the content of a message while a template is rendered.
fn mark(message: usize) -> String {
    format!("\u{f8ff}{message}\u{f8ff}")
}

fn marked(i: usize, message: &Message) -> Message {
    Message {
        role: message.role.clone(),
        content: mark(i),
    }
}

/// Whether what people wrote holds the name of a special token.
fn holds_special(tokenizer: &Tokenizer, messages: &[Message]) -> Result<bool, LmError> {
    for message in messages {
        let plain = tokenizer.encode(&message.content, SpecialTokens::Plain)?;
        if plain != tokenizer.encode(&message.content, SpecialTokens::Parse)? {
            return Ok(true);
        }
    }
    Ok(false)
}
