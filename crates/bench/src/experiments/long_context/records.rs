//! Records in text, one of which is asked for.

use keyfold_core::NoProgress;
use keyfold_lm::decoding::argmax;
use keyfold_lm::{LmError, Policy, Session};
use rand::Rng;
use rand::rngs::StdRng;

use super::{Model, failed};
use crate::{BenchError, Scale};

/// Tokens of a text with records, and in how many texts one is asked for.
pub(super) fn asked(scale: Scale) -> (usize, usize) {
    match scale {
        Scale::Smoke => (192, 1),
        Scale::Small => (1024, 10),
        Scale::Full => (2048, 50),
    }
}

/// Records as text with a question after them.
pub(super) struct Records {
    pub(super) prompt: Vec<u32>,
    pub(super) question: usize,
    value: Vec<u32>,
}

const NAMES: [&str; 16] = [
    "river", "stone", "garden", "window", "candle", "market", "harbor", "forest", "winter",
    "silver", "bridge", "castle", "island", "meadow", "rocket", "thunder",
];

/// How records are written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Style {
    /// Sentences, for models that read English.
    Sentences,
    /// As `keyfold train language-model` has them, for its models of bytes.
    Bytes,
}

impl Style {
    fn of(model: &Model) -> Result<Self, BenchError> {
        // Such a model knows 256 bytes and four signs.
        let bytes = model.dims().vocab == 260 && model.encode("aA; ")?.len() == 4;
        Ok(if bytes { Self::Bytes } else { Self::Sentences })
    }

    fn intro(self) -> &'static str {
        match self {
            Self::Sentences => "Here are the codes of all doors.\n",
            Self::Bytes => "",
        }
    }

    fn key(self, rng: &mut StdRng, number: usize) -> String {
        match self {
            Self::Sentences => {
                let of = |rng: &mut StdRng| NAMES[rng.random_range(0..NAMES.len())];
                format!("{}-{}-{number}", of(rng), of(rng))
            }
            Self::Bytes => (0..3).map(|_| rng.random_range('a'..='z')).collect(),
        }
    }

    fn code(self, rng: &mut StdRng) -> String {
        match self {
            Self::Sentences => rng.random_range(1000..10_000u32).to_string(),
            Self::Bytes => (0..3).map(|_| rng.random_range('A'..='Z')).collect(),
        }
    }

    fn record(self, key: &str, code: &str) -> String {
        match self {
            Self::Sentences => format!("The code of door {key} is {code}.\n"),
            Self::Bytes => format!("{key}{code};"),
        }
    }

    fn question(self, key: &str) -> String {
        match self {
            Self::Sentences => format!("\nThe code of door {key} is"),
            Self::Bytes => format!("?{key}"),
        }
    }

    /// The value as it follows the question.
    fn answer(self, code: &str) -> String {
        match self {
            Self::Sentences => format!(" {code}"),
            Self::Bytes => code.to_owned(),
        }
    }
}

impl Records {
    pub(super) fn new(
        model: &Model,
        length: usize,
        depth: f64,
        rng: &mut StdRng,
    ) -> Result<Self, BenchError> {
        let style = Style::of(model)?;
        let mut prompt = [model.prefix(), model.encode(style.intro())?].concat();
        let mut all = Vec::new();
        let room = 24;
        while prompt.len() + room < length {
            let key = style.key(rng, all.len());
            let code = style.code(rng);
            prompt.extend(model.encode(&style.record(&key, &code))?);
            all.push((key, code));
        }
        let at = ((all.len() as f64 * depth) as usize).min(all.len().saturating_sub(1));
        let Some((key, code)) = all.get(at) else {
            let what = format!("{length} tokens have no room for a record");
            return Err(BenchError::data(&model.name, what));
        };
        let asked = style.question(key);
        let question = model.encode(&asked)?;
        let both = model.encode(&(asked + &style.answer(code)))?;
        let value = both
            .get(question.len()..)
            .map_or(Vec::new(), <[u32]>::to_vec);
        prompt.extend(&question);
        Ok(Self {
            prompt,
            question: question.len(),
            value,
        })
    }

    /// Whether every token of the value is the likeliest, after the prompt's tokens from `from` on.
    pub(super) fn answered(
        &self,
        model: &Model,
        policy: Policy,
        from: usize,
    ) -> Result<bool, BenchError> {
        let mut session = model.session(policy);
        session
            .prefill(&self.prompt[from..], &NoProgress)
            .map_err(failed(&model.name))?;
        self.goes_on(&mut session).map_err(failed(&model.name))
    }

    /// The same for a session that has read the prompt.
    pub(super) fn goes_on(&self, session: &mut Session) -> Result<bool, LmError> {
        for (i, &token) in self.value.iter().enumerate() {
            if argmax(session.logits()) != token {
                return Ok(false);
            }
            if i + 1 < self.value.len() {
                session.step(token)?;
            }
        }
        Ok(true)
    }
}
