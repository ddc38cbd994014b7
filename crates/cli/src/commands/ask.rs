//! `keyfold ask`: an answer from what a store holds.

use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use keyfold_core::{Encoder, Role};
use keyfold_lm::Message;
use keyfold_lm::Tokenizer;
use keyfold_lm::generate::encode_chat;
use keyfold_lm::generate::{Ended, generate};
use keyfold_search::engine::{self, Mode, Models, SearchOptions};
use keyfold_search::store::Snapshot;
use serde::Serialize;
use serde_json::json;

use super::lm::setup::{DecodeArgs, Loaded, ModelArgs};
use super::lm::template;
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::output::hits::ShownHit;
use crate::progress::StderrProgress;
use crate::{place, update};

/// Answer a question from what a store holds, and say where it stands
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold ask \"When must the boat be out of the water?\" --model SmolLM2-135M-Instruct.Q4_1.gguf
  keyfold ask \"What causes flutter?\" --store papers/.keyfold --model MODEL.gguf --json

The passages that were found are shown with the answer. Small models make mistakes: look there.")]
pub(crate) struct AskArgs {
    /// The question
    question: String,
    /// Where the store is [default: .keyfold in the current folder or above it]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// How many passages the model reads
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    passages: u32,
    /// How near a passage must be to the question to count, 0 to 1
    #[arg(long, value_name = "X", default_value_t = 0.45)]
    min_relevance: f32,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// A passage that the model reads.
#[derive(Debug, Serialize)]
struct Source {
    number: usize,
    path: PathBuf,
    lines: Option<(u32, u32)>,
    part: Option<u32>,
    relevance: f32,
    text: String,
    /// Whether the answer names it.
    cited: bool,
}

impl Source {
    /// `path:12-18`, as editors and other programs take it.
    fn place(&self) -> String {
        let path = self.path.display();
        match (self.lines, self.part) {
            (Some((from, to)), _) if from == to => format!("{path}:{from}"),
            (Some((from, to)), _) => format!("{path}:{from}-{to}"),
            (None, Some(part)) => format!("{path}, part {part}"),
            (None, None) => path.to_string(),
        }
    }
}

pub(crate) fn run(args: &AskArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    if args.question.trim().is_empty() {
        return Err(wrong_use(
            "the question is empty; ask something: keyfold ask \"how does it work\" --model M",
        ));
    }
    let progress = StderrProgress::new(globals.quiet, 20);
    let mut sources = find(args, globals)?;
    if sources.is_empty() {
        let said = "nothing in the store is near enough to the question";
        if globals.json {
            let whole = json!({ "question": args.question, "answer": null, "sources": sources });
            writeln!(
                anstream::stdout(),
                "{}",
                serde_json::to_string_pretty(&whole)?
            )?;
        } else {
            progress.say(&format!(
                "{said}; ask in other words, or lower --min-relevance"
            ));
        }
        return Ok(Outcome::Negative);
    }
    let loaded = args.model.load(globals, &progress)?;
    let tokenizer = loaded.file.tokenizer()?;
    let ends = &loaded.decoder.config().eos_token_ids;
    let options = args.decode.options(ends, &tokenizer, globals.seed)?;
    let tokens = fit(args, &loaded, &tokenizer, &mut sources, options.max_tokens)?;
    let mut session = args
        .model
        .session(&loaded, tokens.len() + options.max_tokens, &progress)?;
    let mut out = anstream::stdout().lock();
    let mut failed = None;
    let mut show = |piece: &str| {
        if !globals.json && failed.is_none() {
            failed = write!(out, "{piece}").and_then(|()| out.flush()).err();
        }
    };
    let written = generate(
        &mut session,
        &tokenizer,
        &tokens,
        &options,
        &progress,
        &mut show,
    )?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    for source in &mut sources {
        source.cited = written.text.contains(&format!("[{}]", source.number));
    }
    if globals.json {
        let whole =
            json!({ "question": args.question, "answer": written.text, "sources": sources });
        writeln!(out, "{}", serde_json::to_string_pretty(&whole)?)?;
    } else {
        writeln!(out, "\n")?;
        for source in &sources {
            writeln!(out, "[{}] {}", source.number, source.place())?;
        }
    }
    Ok(if written.ended == Ended::Stopped {
        Outcome::Interrupted
    } else {
        Outcome::Done
    })
}

/// The passages that are near to the question, nearest first.
fn find(args: &AskArgs, globals: &Globals) -> anyhow::Result<Vec<Source>> {
    let here = std::path::Path::new(".");
    let store = place::locate(here, args.store.as_deref())?.store;
    let snapshot = Snapshot::open(&store)?;
    let encoder = update::encoder(&store, None, globals)?;
    let options = SearchOptions {
        k: args.passages as usize,
        mode: Mode::Both,
        ..SearchOptions::default()
    };
    let models = Models {
        encoder: Some(&*encoder),
        sparse: None,
        reranker: None,
    };
    let found = engine::search_with(&snapshot, &args.question, &models, &options)?;
    let most = highest_score(&*encoder, &args.question)?;
    let near = found.hits.into_iter().filter_map(|hit| {
        let relevance = hit.meaning.map_or(0.0, |place| place.score / most);
        (relevance >= args.min_relevance).then(|| (relevance, ShownHit::new(hit)))
    });
    let source = |(i, (relevance, hit)): (usize, (f32, ShownHit))| Source {
        number: i + 1,
        path: hit.path,
        lines: hit.lines,
        part: hit.part,
        relevance,
        text: hit.text,
        cited: false,
    };
    Ok(near.enumerate().map(source).collect())
}

/// The MaxSim of a passage that has every row of the question, at length one.
fn highest_score(encoder: &dyn Encoder, question: &str) -> anyhow::Result<f32> {
    let encoded = encoder.encode(&[question], Role::Query)?;
    let rows = encoded.iter().flat_map(|vectors| vectors.iter());
    Ok(rows
        .map(keyfold_kernels::norm)
        .sum::<f32>()
        .max(f32::MIN_POSITIVE))
}

/// The prompt, with as many of the passages as the model's context has room for.
fn fit(
    args: &AskArgs,
    loaded: &Loaded,
    tokenizer: &Tokenizer,
    sources: &mut Vec<Source>,
    answer: usize,
) -> anyhow::Result<Vec<u32>> {
    let template = template(loaded)?;
    let room = loaded
        .decoder
        .config()
        .context_limit()
        .map_or(usize::MAX, |c| c.saturating_sub(answer));
    loop {
        let messages = messages(&args.question, sources);
        let tokens = encode_chat(&template, tokenizer, &messages, SystemTime::now())?;
        if tokens.len() <= room {
            return Ok(tokens);
        }
        if sources.len() <= 1 {
            return Err(wrong_use(format!(
                "the question and one passage take {} tokens; the model has room for {room}: lower --max-tokens",
                tokens.len()
            )));
        }
        sources.pop();
    }
}

/// What the model is told.
fn messages(question: &str, sources: &[Source]) -> Vec<Message> {
    let mut text = String::from(
        "Answer the question from the passages below and from nothing else. Write after each \
         statement the number of its passage in brackets, like [1]. If the passages do not say \
         it, answer: The passages do not say.\n\n",
    );
    for source in sources {
        text.push_str(&format!(
            "Passage [{}]:\n{}\n\n",
            source.number,
            source.text.trim()
        ));
    }
    text.push_str(&format!("Question: {question}"));
    vec![Message {
        role: "user".into(),
        content: text,
    }]
}
