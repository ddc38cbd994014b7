//! Conversations as the prompt that a model was trained on.
//!
//! Models carry a template in the language of Jinja that writes the roles, turns and
//! special tokens. Templates come with the model, so they are foreign programs: each runs
//! with a limited number of steps, and can read nothing but the conversation.

use std::time::SystemTime;

use keyfold_core::ModelFolder;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde_json::Value as Json;
use time::OffsetDateTime;
use time::format_description::parse_strftime_owned;

use crate::config::Fields;
use crate::error::LmError;
use crate::file::Gguf;
use crate::tokenizer::token_text;

/// Steps that a template may take, and how many more for every byte of the conversation
/// (making a text costs a step for each byte). Templates of models take some hundred for a
/// turn and copy what is said a few times.
const STEPS: u64 = 500_000;
const STEPS_PER_BYTE: u64 = 100;
/// The name under which a model lists its usual template among several.
const DEFAULT: &str = "default";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    fn value(&self) -> Value {
        Value::from_pairs([("role", &*self.role), ("content", &*self.content)])
    }
}

/// How a model wants a conversation to be written.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// A template, and the texts of the tokens that begin and end a text, which it may use.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, LmError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|e| refuse(&e))?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |what: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, what))
        });
        environment
            .add_template_owned(DEFAULT, source.to_owned())
            .map_err(|e| refuse(&e))?;
        Ok(Self {
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// The template of a model's folder: `chat_template.jinja`, or the field
    /// `chat_template` of `tokenizer_config.json`.
    pub fn from_folder(folder: &ModelFolder) -> Result<Option<Self>, LmError> {
        let config: Json = folder
            .json_optional("tokenizer_config.json")?
            .unwrap_or_default();
        let own = folder.read_optional("chat_template.jinja")?;
        let source = match own {
            Some(bytes) => Some(String::from_utf8(bytes).map_err(|_| LmError::Template {
                what: format!(
                    "{} is not UTF-8",
                    folder.file("chat_template.jinja").display()
                ),
            })?),
            None => template_of(&config["chat_template"]),
        };
        let token = |name| token_text(&config, name).unwrap_or_default();
        source
            .map(|source| Self::new(&source, &token("bos_token"), &token("eos_token")))
            .transpose()
    }

    /// The template of a GGUF file.
    pub fn from_gguf(file: &Gguf) -> Result<Option<Self>, LmError> {
        let fields = Fields::gguf(file);
        let Some(source) = fields.text("tokenizer.chat_template")? else {
            return Ok(None);
        };
        let tokens = file.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let token = |name: &str| -> Result<String, LmError> {
            let id = fields.token(&format!("tokenizer.ggml.{name}_token_id"))?;
            let text = id.and_then(|id| tokens.get(id as usize));
            Ok(text.map(|text| (*text).to_owned()).unwrap_or_default())
        };
        Self::new(&source, &token("bos")?, &token("eos")?).map(Some)
    }

    /// Writes a conversation. `add_generation_prompt` adds what begins an answer; `now` is
    /// for templates that tell the model the date (in universal time).
    ///
    /// The result has the special tokens written out: encode it with
    /// [`SpecialTokens::Parse`](crate::tokenizer::SpecialTokens::Parse), without a prefix.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<String, LmError> {
        let mut environment = self.environment.clone();
        let bytes: usize = messages
            .iter()
            .map(|m| m.role.len() + m.content.len())
            .sum();
        environment.set_fuel(Some(STEPS + STEPS_PER_BYTE * bytes as u64));
        environment.add_function("strftime_now", move |format: String| date(now, &format));
        let template = environment.get_template(DEFAULT).map_err(|e| refuse(&e))?;
        let context = context! {
            messages => messages.iter().map(Message::value).collect::<Vec<_>>(),
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        template.render(context).map_err(|e| refuse(&e))
    }
}

/// One template, or the usual one of a list of named ones.
fn template_of(value: &Json) -> Option<String> {
    let usual = || {
        value
            .as_array()?
            .iter()
            .find(|entry| entry["name"] == DEFAULT)
    };
    let text = value.as_str().or_else(|| usual()?["template"].as_str())?;
    Some(text.to_owned())
}

fn date(now: SystemTime, format: &str) -> Result<String, Error> {
    let wrong = |e: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidOperation, e.to_string());
    let format = parse_strftime_owned(format).map_err(|e| wrong(&e))?;
    OffsetDateTime::from(now)
        .format(&format)
        .map_err(|e| wrong(&e))
}

fn refuse(error: &Error) -> LmError {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "it takes too many steps".to_owned(),
        _ => error.to_string(),
    };
    LmError::Template { what }
}
