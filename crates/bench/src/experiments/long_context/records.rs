//! Records in text, one of which is asked for: a passkey in English, letters for models of bytes.

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

/// A text with a question after it.
pub(super) struct Records {
    pub(super) prompt: Vec<u32>,
    pub(super) question: usize,
    value: Vec<u32>,
}

/// A text in which a passkey is hidden, as Amirkeivan Mohtashami and Martin Jaggi (2023, Landmark
/// Attention) have it.
const TASK: &str = "There is an important info hidden inside a lot of irrelevant text. Find it and \
     memorize it. I will quiz you about the important information there.\n";
const FILLER: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n";
const PASSKEY: &str = "What is the pass key? The pass key is";

/// A text, a question about it, and the answer as it follows the question.
struct Asked {
    prompt: Vec<u32>,
    question: String,
    answer: String,
}

/// For models that read English: a passkey at `depth` among sentences that tell nothing.
fn passkey(
    model: &Model,
    length: usize,
    depth: f64,
    rng: &mut StdRng,
) -> Result<Asked, BenchError> {
    let key = rng.random_range(10_000..100_000u32);
    let told = format!("The pass key is {key}. Remember it. {key} is the pass key.\n");
    let (told, filler) = (model.encode(&told)?, model.encode(FILLER)?);
    let mut prompt = [model.prefix(), model.encode(TASK)?].concat();
    let taken = prompt.len() + told.len() + model.encode(PASSKEY)?.len() + 8;
    let fillers = length.saturating_sub(taken) / filler.len().max(1);
    if fillers == 0 {
        let what = format!("{length} tokens have no room for a passkey");
        return Err(BenchError::data(&model.name, what));
    }
    let at = ((fillers + 1) as f64 * depth) as usize;
    for i in 0..=fillers {
        prompt.extend(if i == at.min(fillers) { &told } else { &filler });
    }
    Ok(Asked {
        prompt,
        question: PASSKEY.to_owned(),
        answer: format!(" {key}"),
    })
}

/// For models of bytes, as `keyfold train language-model` teaches them: records of three letters.
fn letters(
    model: &Model,
    length: usize,
    depth: f64,
    rng: &mut StdRng,
) -> Result<Asked, BenchError> {
    let mut prompt = model.prefix();
    let mut all: Vec<(String, String)> = Vec::new();
    let room = 24;
    while prompt.len() + room < length {
        let key = (0..3).map(|_| rng.random_range('a'..='z')).collect();
        let value = (0..3).map(|_| rng.random_range('A'..='Z')).collect();
        prompt.extend(model.encode(&format!("{key}{value};"))?);
        all.push((key, value));
    }
    let at = ((all.len() as f64 * depth) as usize).min(all.len().saturating_sub(1));
    let Some((key, value)) = all.get(at) else {
        let what = format!("{length} tokens have no room for a record");
        return Err(BenchError::data(&model.name, what));
    };
    Ok(Asked {
        prompt,
        question: format!("?{key}"),
        answer: value.clone(),
    })
}

impl Records {
    pub(super) fn new(
        model: &Model,
        length: usize,
        depth: f64,
        rng: &mut StdRng,
    ) -> Result<Self, BenchError> {
        // Such a model knows 256 bytes and four signs.
        let bytes = model.dims().vocab == 260 && model.encode("aA; ")?.len() == 4;
        let Asked {
            mut prompt,
            question: asked,
            answer,
        } = match bytes {
            true => letters(model, length, depth, rng)?,
            false => passkey(model, length, depth, rng)?,
        };
        let question = model.encode(&asked)?;
        let both = model.encode(&(asked + &answer))?;
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
