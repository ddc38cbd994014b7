//! Contrastive search beside greedy search, beam search and sampling: how much texts repeat
//! themselves, how well they follow their beginning, how evenly hidden states point, and how
//! long a token takes.
//!
//! Y. Su and N. Collier, 2023. Diversity is the product of the shares of different word 2-,
//! 3- and 4-grams. Coherence is the mean log-probability of the continuation; the paper takes
//! it under a second, larger model, here it is the model's own (`--teacher` names another).
//! MAUVE needs a network's worth of human texts and is left out.
//!
//! `--model` names the language model, `--data` a text file whose beginnings of lines are the
//! prompts. Without a model, random weights show that it runs.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use keyfold_core::{NoProgress, Progress};
use keyfold_kernels::Team;
use keyfold_kernels::blocks::BlockType;
use keyfold_lm::decoding::{ContrastiveConfig, SamplingConfig, isotropy};
use keyfold_lm::generate::{Decoding, GenerateOptions, generate};
use keyfold_lm::perplexity::{log_probabilities, log_probability};
use keyfold_lm::store::CacheType;
use keyfold_lm::synthetic::{Geometry, write_random};
use keyfold_lm::{Decoder, LmError, ModelFile, Policy, Session, SpecialTokens, Tokenizer};
use serde_json::json;

use crate::plot;
use crate::report::{Report, Table};
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "contrastive-search",
    about: "diversity, coherence and speed of decoding methods; isotropy of the model (--model)",
    run,
};

/// What the paper reports for GPT-2-large on WebText: method, diversity in percent, coherence.
const PAPER: &[(&str, f64, f64)] = &[
    ("greedy", 5.38, -0.58),
    ("beam 4", 4.04, -0.46),
    ("top-k 50", 91.33, -2.35),
    ("nucleus 0.95", 93.61, -2.88),
    ("contrastive", 92.54, -1.52),
];

/// Tokens of a prompt.
const PREFIX: usize = 40;

/// A model that writes or judges.
struct Model {
    decoder: Arc<Decoder>,
    tokenizer: Tokenizer,
    team: Arc<Team>,
}

impl Model {
    fn open(path: &Path, threads: usize) -> Result<Self, LmError> {
        let file = ModelFile::open(path)?;
        Ok(Self {
            decoder: Arc::new(Decoder::load(&file)?),
            tokenizer: file.tokenizer()?,
            team: Arc::new(Team::new(threads)),
        })
    }

    fn session(&self, length: usize) -> Result<Session, LmError> {
        let policy = Policy::dense(&self.decoder, CacheType::F16, length)?;
        Ok(Session::new(
            Arc::clone(&self.decoder),
            policy,
            Arc::clone(&self.team),
        ))
    }
}

/// A way to pick tokens.
enum Way {
    Library(Decoding),
    Beam(usize),
}

fn ways(seed: u64) -> Vec<(&'static str, Way)> {
    let sample =
        |config: SamplingConfig| Way::Library(Decoding::Sample(SamplingConfig { seed, ..config }));
    vec![
        ("greedy", sample(SamplingConfig::greedy())),
        ("beam 4", Way::Beam(4)),
        (
            "top-k 50",
            sample(SamplingConfig {
                top_k: 50,
                ..Default::default()
            }),
        ),
        (
            "nucleus 0.95",
            sample(SamplingConfig {
                top_p: 0.95,
                ..Default::default()
            }),
        ),
        (
            "contrastive",
            Way::Library(Decoding::Contrastive(ContrastiveConfig::default())),
        ),
    ]
}

/// What one way gave.
#[derive(Default)]
struct Measured {
    texts: Vec<String>,
    coherence: Vec<f64>,
    tokens: usize,
    seconds: f64,
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let scratch = tempfile::tempdir()?;
    let path = model_path(options, scratch.path())?;
    let failed = |e: LmError| BenchError::data(path.display().to_string(), e.to_string());
    let model = Model::open(&path, options.thread_count()).map_err(failed)?;
    let judge = match &options.teacher {
        Some(name) => Some(Model::open(Path::new(name), options.thread_count()).map_err(failed)?),
        None => None,
    };
    let (count, length) = match options.scale {
        Scale::Smoke => (2, 8),
        Scale::Small => (16, 100),
        Scale::Full => (100, 200),
    };
    let prompts = prompts(options, &model, count)?;
    let ways = ways(options.seed);
    progress.start("write", "texts", Some((ways.len() * prompts.len()) as u64));
    let mut found: Vec<(&str, Measured)> = Vec::new();
    for (name, way) in &ways {
        let mut measured = Measured::default();
        for prompt in &prompts {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            write(&model, judge.as_ref(), way, prompt, length, &mut measured).map_err(failed)?;
            progress.advance(1);
        }
        found.push((name, measured));
    }
    progress.finish();
    let isotropy = isotropy_of(&model, &prompts, &found).map_err(failed)?;
    report(&path, &found, isotropy, judge.is_some())
}

/// The user's model, or a tiny one with random weights.
fn model_path(options: &BenchOptions, scratch: &Path) -> Result<PathBuf, BenchError> {
    if let Some(model) = &options.model {
        return Ok(model.into());
    }
    let tiny = Geometry {
        layers: 2,
        hidden: 256,
        intermediate: 512,
        heads: 4,
        kv_heads: 2,
        vocab: 512,
        ..Geometry::smollm_135m()
    };
    let path = scratch.join("random.gguf");
    write_random(&tiny, BlockType::Q8_0, options.seed, &path)
        .map_err(|e| BenchError::data("random weights", e.to_string()))?;
    Ok(path)
}

/// Beginnings of lines of the user's text, or random tokens.
fn prompts(
    options: &BenchOptions,
    model: &Model,
    count: usize,
) -> Result<Vec<Vec<u32>>, BenchError> {
    let Some(path) = &options.data else {
        let vocab = model.decoder.config().dims.vocab as u64;
        let token = |p: usize, i: usize| {
            (keyfold_nn::random::derive(options.seed, (p * 1000 + i) as u64) % vocab) as u32
        };
        return Ok((0..count)
            .map(|p| (0..PREFIX).map(|i| token(p, i)).collect())
            .collect());
    };
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| BenchError::data(&name, e.to_string()))?;
    let mut found = Vec::new();
    for line in text.lines().filter(|l| l.len() > 4 * PREFIX) {
        let tokens = model.tokenizer.encode(line.trim(), SpecialTokens::Plain);
        let tokens = tokens.map_err(|e| BenchError::data(&name, e.to_string()))?;
        if tokens.len() >= PREFIX {
            let mut prompt = model.tokenizer.prefix().to_vec();
            prompt.extend(&tokens[..PREFIX]);
            found.push(prompt);
        }
    }
    if found.is_empty() {
        return Err(BenchError::data(
            &name,
            "it has no line of 40 tokens to begin with",
        ));
    }
    // Spread over the whole text.
    let step = (found.len() / count).max(1);
    Ok(found.into_iter().step_by(step).take(count).collect())
}

/// Writes one text and judges it.
fn write(
    model: &Model,
    judge: Option<&Model>,
    way: &Way,
    prompt: &[u32],
    length: usize,
    measured: &mut Measured,
) -> Result<(), LmError> {
    let clock = Instant::now();
    let tokens = match way {
        Way::Library(decoding) => {
            let mut session = model.session(prompt.len() + length)?;
            let options = GenerateOptions {
                max_tokens: length,
                decoding: decoding.clone(),
                stop: Vec::new(),
                end_tokens: Vec::new(),
            };
            generate(
                &mut session,
                &model.tokenizer,
                prompt,
                &options,
                &NoProgress,
                &mut |_| {},
            )?
            .tokens
        }
        Way::Beam(width) => beam(model, prompt, length, *width)?,
    };
    measured.seconds += clock.elapsed().as_secs_f64();
    measured.tokens += tokens.len();
    let text = model.tokenizer.decode(&tokens);
    measured.coherence.push(match judge {
        Some(judge) => {
            let of = |t: &str| judge.tokenizer.encode(t, SpecialTokens::Plain);
            coherence(judge, &of(&model.tokenizer.decode(prompt))?, &of(&text)?)?
        }
        None => coherence(model, prompt, &tokens)?,
    });
    measured.texts.push(text);
    Ok(())
}

/// Mean log-probability of a continuation.
fn coherence(model: &Model, prompt: &[u32], continuation: &[u32]) -> Result<f64, LmError> {
    let whole = [prompt, continuation].concat();
    let mut session = model.session(whole.len())?;
    let all = log_probabilities(&mut session, &whole, &NoProgress)?;
    let found = &all[all.len() - continuation.len()..];
    Ok(found.iter().sum::<f64>() / found.len().max(1) as f64)
}

/// Beam search by the sum of log-probabilities: the baseline; every beam has its own cache.
fn beam(model: &Model, prompt: &[u32], length: usize, width: usize) -> Result<Vec<u32>, LmError> {
    let mut first = model.session(prompt.len() + length)?;
    first.prefill(prompt, &NoProgress)?;
    let mut beams = vec![(0.0f64, first)];
    for _ in 0..length {
        let mut next: Vec<(f64, usize, u32)> = Vec::new();
        for (b, (sum, session)) in beams.iter().enumerate() {
            let logits = session.logits();
            for token in keyfold_kernels::top_k(logits, width) {
                let token = token.1;
                next.push((sum + log_probability(logits, token), b, token));
            }
        }
        next.sort_by(|a, b| b.0.total_cmp(&a.0));
        next.truncate(width);
        let mut grown = Vec::with_capacity(width);
        for (sum, b, token) in next {
            // A dense session can always be forked.
            let Some(mut session) = beams[b].1.fork() else {
                continue;
            };
            session.step(token)?;
            grown.push((sum, session));
        }
        beams = grown;
    }
    Ok(beams.first().map_or(Vec::new(), |(_, session)| {
        session.tokens()[prompt.len()..].to_vec()
    }))
}

/// The product of the shares of different word 2-, 3- and 4-grams.
fn diversity(text: &str) -> f64 {
    let words: Vec<&str> = text.split_whitespace().collect();
    let share = |n: usize| {
        let grams: Vec<&[&str]> = words.windows(n).collect();
        let different: HashSet<&[&str]> = grams.iter().copied().collect();
        if grams.is_empty() {
            1.0
        } else {
            different.len() as f64 / grams.len() as f64
        }
    };
    (2..=4).map(share).product()
}

/// The isotropy of the model on prompts and what was sampled after them.
fn isotropy_of(
    model: &Model,
    prompts: &[Vec<u32>],
    found: &[(&str, Measured)],
) -> Result<f64, LmError> {
    let sampled = found.iter().find(|(name, _)| *name == "nucleus 0.95");
    let mut texts = prompts.to_vec();
    if let Some((_, measured)) = sampled {
        for (text, sampled) in texts.iter_mut().zip(&measured.texts) {
            text.extend(model.tokenizer.encode(sampled, SpecialTokens::Plain)?);
        }
    }
    let mut session = || model.session(isotropy::MOST_TOKENS);
    isotropy::isotropy(&mut session, &texts, &NoProgress)
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len().max(1) as f64;
    values.sum::<f64>() / n
}

fn report(
    path: &Path,
    found: &[(&str, Measured)],
    isotropy: f64,
    judged: bool,
) -> Result<Report, BenchError> {
    let whose = if judged {
        "another model"
    } else {
        "the model itself"
    };
    let mut table = Table::new(
        &format!(
            "{}: isotropy {isotropy:.2}; coherence under {whose}",
            path.display()
        ),
        &[
            "method",
            "diversity, %",
            "paper, %",
            "coherence",
            "paper",
            "tokens a second",
        ],
    );
    let (mut values, mut bars) = (Vec::new(), Vec::new());
    let of = |name: &str| found.iter().find(|(n, _)| *n == name).map(|(_, m)| m);
    let spread = |m: &Measured| 100.0 * mean(m.texts.iter().map(|t| diversity(t)));
    let follows = |m: &Measured| mean(m.coherence.iter().copied());
    for ((name, measured), paper) in found.iter().zip(PAPER) {
        let (diversity, coherence) = (spread(measured), follows(measured));
        let rate = measured.tokens as f64 / measured.seconds;
        table.row([
            (*name).to_owned(),
            format!("{diversity:.1}"),
            format!("{:.1}", paper.1),
            format!("{coherence:.2}"),
            format!("{:.2}", paper.2),
            plot::shown(rate),
        ]);
        values.push(json!({
            "method": name, "diversity": diversity, "coherence": coherence, "tokens_per_second": rate,
            "texts": measured.texts,
        }));
        bars.push(((*name).to_owned(), diversity));
    }
    let mut findings = Vec::new();
    if let (Some(greedy), Some(contrastive), Some(nucleus)) =
        (of("greedy"), of("contrastive"), of("nucleus 0.95"))
    {
        let rate = |m: &Measured| m.tokens as f64 / m.seconds;
        findings.push(format!(
            "claim: contrastive search repeats itself far less than greedy search and follows its beginning better \
             than sampling. Diversity {:.1} % against {:.1} % greedy; coherence {:.2} against {:.2} of nucleus \
             sampling: {}.",
            spread(contrastive),
            spread(greedy),
            follows(contrastive),
            follows(nucleus),
            match (spread(contrastive) > spread(greedy), follows(contrastive) > follows(nucleus)) {
                (true, true) => "both hold here",
                (true, false) => "the first holds here, the second does not",
                (false, true) => "the second holds here, the first does not",
                (false, false) => "neither holds here",
            },
        ));
        findings.push(format!(
            "a token takes {:.2} times as long as in greedy search; {} candidates read one cache.",
            rate(greedy) / rate(contrastive),
            ContrastiveConfig::default().k,
        ));
    }
    if isotropy < isotropy::LEAST {
        findings.push(format!(
            "isotropy is {isotropy:.2}: hidden states nearly point one way, so the penalty says little \
             (the paper finds 0.10 for GPT-2 small, 0.5 to 0.85 for most models)."
        ));
    }
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables: vec![table],
        findings,
        values: json!({"model": path, "isotropy": isotropy, "coherence_under": whose, "methods": values}),
        svg: plot::bars("Diversity of what is written", "%", &bars, None)?,
    })
}

#[cfg(test)]
mod tests {
    use super::diversity;

    #[test]
    fn a_loop_is_not_diverse() {
        assert!((diversity("one two three four five six") - 1.0).abs() < 1e-9);
        assert!(diversity(&"again and ".repeat(20)) < 0.001);
    }
}
