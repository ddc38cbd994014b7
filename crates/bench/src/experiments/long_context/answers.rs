//! What a model finds and says when it reads its context, or its weights, in another way: records
//! in text, and chat answers side by side.

use std::time::SystemTime;

use keyfold_core::{NoProgress, Progress};
use keyfold_lm::decoding::argmax;
use keyfold_lm::generate::encode_chat;
use keyfold_lm::{Message, Policy};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::records::{Records, asked};
use super::{Model, failed};
use crate::report::Table;
use crate::{BenchError, BenchOptions, Scale};

/// A way to read, for contexts of so many tokens.
pub(in crate::experiments) struct Way<'a> {
    pub(in crate::experiments) name: String,
    pub(in crate::experiments) model: &'a Model,
    pub(in crate::experiments) policy: Box<dyn Fn(usize) -> Result<Policy, BenchError> + 'a>,
}

impl<'a> Way<'a> {
    pub(in crate::experiments) fn new(
        name: impl Into<String>,
        model: &'a Model,
        policy: impl Fn(usize) -> Result<Policy, BenchError> + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            model,
            policy: Box::new(policy),
        }
    }

    /// The plain way, whose name is [`DENSE`].
    fn dense(model: &'a Model) -> Self {
        Self::new(DENSE, model, |length| model.policy(length, None, None))
    }
}

/// All rows in 16 bits.
const DENSE: &str = "16 bits";

const QUESTIONS: [&str; 3] = [
    "What is the capital of France? Answer in one sentence.",
    "Explain in two sentences why the sky is blue.",
    "Name three things that one needs to bake bread.",
];

/// Both comparisons of ways to read with all rows of `model` in 16 bits.
pub(in crate::experiments) fn answers<'a>(
    options: &BenchOptions,
    model: &'a Model,
    mut ways: Vec<Way<'a>>,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    ways.insert(0, Way::dense(model));
    let found = needles(options, model, &ways, progress, tables, findings)?;
    let said = chats(options, model, &ways, progress, tables, findings)?;
    Ok(json!({ "records": found, "chat": said }))
}

/// Records of which one is asked for, at several depths.
fn needles(
    options: &BenchOptions,
    model: &Model,
    ways: &[Way],
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (wanted, prompts) = asked(options.scale);
    let length = model.context(wanted + 16).saturating_sub(16);
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut right = vec![0u32; ways.len()];
    progress.start("records", "prompts", Some(prompts as u64));
    for i in 0..prompts {
        let depth = (i as f64 + 0.5) / prompts as f64;
        let records = Records::new(model, length, depth, &mut rng)?;
        for (way, right) in ways.iter().zip(&mut right) {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let policy = (way.policy)(records.prompt.len() + 16)?;
            *right += u32::from(records.answered(way.model, policy, 0)?);
        }
        progress.advance(1);
    }
    progress.finish();
    let title = format!(
        "records that {} answers exactly, {prompts} prompts of {length} tokens",
        model.name
    );
    let mut table = Table::new(&title, &["way", "right", "%"]);
    let share = |right: u32| 100.0 * f64::from(right) / prompts as f64;
    for (way, &right) in ways.iter().zip(&right) {
        let percent = format!("{:.0}", share(right));
        table.row([way.name.clone(), right.to_string(), percent]);
    }
    tables.push(table);
    let each = ways.iter().zip(&right);
    let each: Vec<String> = each
        .map(|(w, &r)| format!("{} {:.0} %", w.name, share(r)))
        .collect();
    findings.push(format!("records in text: {}.", each.join(", ")));
    let names: Vec<&str> = ways.iter().map(|w| w.name.as_str()).collect();
    Ok(json!({ "ways": names, "right": right, "prompts": prompts, "tokens": length }))
}

/// Answers to a few questions, the likeliest token each time.
fn chats(
    options: &BenchOptions,
    model: &Model,
    ways: &[Way],
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let prompts = model.chat_prompts(&QUESTIONS)?;
    if prompts.is_empty() {
        findings.push("the model has no chat template; answers were not compared.".to_owned());
        return Ok(Value::Null);
    }
    let most = if options.scale == Scale::Smoke { 8 } else { 48 };
    let title = format!("answers, at most {most} tokens");
    let columns = ["question", "way", "tokens as in 16 bits", "answer"];
    let mut table = Table::new(&title, &columns);
    let mut values = Vec::new();
    progress.start("answers", "questions", Some(prompts.len() as u64));
    for (question, prompt) in QUESTIONS.iter().zip(&prompts) {
        let mut measure: Option<Vec<u32>> = None;
        for way in ways {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let answer = written(way, prompt, most)?;
            let measure = measure.get_or_insert_with(|| answer.clone());
            let same = answer.iter().zip(&*measure).take_while(|(a, b)| a == b);
            let same = format!("{} of {}", same.count(), measure.len());
            let text = way.model.decode(&answer).trim().replace('\n', " ");
            values.push(json!({
                "question": question, "way": way.name, "same": same, "answer": text,
            }));
            table.row([(*question).to_owned(), way.name.clone(), same, text]);
        }
        progress.advance(1);
    }
    progress.finish();
    tables.push(table);
    Ok(json!(values))
}

/// The tokens that follow a prompt, up to the end of the answer.
fn written(way: &Way, prompt: &[u32], most: usize) -> Result<Vec<u32>, BenchError> {
    let failed = failed(&way.model.name);
    let mut session = way.model.session((way.policy)(prompt.len() + most)?);
    session.prefill(prompt, &NoProgress).map_err(&failed)?;
    let mut answer = Vec::new();
    while answer.len() < most {
        let token = argmax(session.logits());
        if way.model.ends(token) {
            break;
        }
        answer.push(token);
        session.step(token).map_err(&failed)?;
    }
    Ok(answer)
}

impl Model {
    /// The questions as the model's chat template writes them; none where it has none.
    fn chat_prompts(&self, questions: &[&str]) -> Result<Vec<Vec<u32>>, BenchError> {
        let (Some(template), Some(tokenizer)) = (&self.template, &self.tokenizer) else {
            return Ok(Vec::new());
        };
        let prompt = |question: &&str| {
            let message = Message {
                role: "user".to_owned(),
                content: (*question).to_owned(),
            };
            // Some templates write the date: always the same one.
            let then = SystemTime::UNIX_EPOCH;
            encode_chat(template, tokenizer, &[message], then).map_err(failed(&self.name))
        };
        questions.iter().map(prompt).collect()
    }

    fn decode(&self, tokens: &[u32]) -> String {
        let tokenizer = self.tokenizer.as_ref();
        tokenizer.map_or_else(String::new, |t| t.decode(tokens))
    }

    fn ends(&self, token: u32) -> bool {
        let tokenizer = self.tokenizer.as_ref();
        tokenizer.is_some_and(|t| t.eos().contains(&token))
    }
}
