//! What the experiments with long contexts share: the user's model and text, many selectors
//! on one reading of a context, and the time of attention by itself.

pub(super) mod act_qkv;
pub(super) mod answers;
mod attention;
pub(super) mod double_sparsity;
mod labels;
mod overlap;
mod records;
mod sparse_text;
pub(super) mod tidal_decode;
pub(super) mod whole;

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keyfold_core::{NoProgress, Progress};
use keyfold_kernels::Team;
use keyfold_lm::perplexity::{
    Perplexity, PerplexityOptions, Protocol, log_probability, perplexity,
};
use keyfold_lm::recall::{PromptSpec, RecallConfig, RecallPrompt};
use keyfold_lm::roles::{Dims, KvStore, Prefill, Rows, Selector, StepCtx};
use keyfold_lm::store::CacheType;
use keyfold_lm::{
    ChatTemplate, Decoder, LmError, ModelFile, Policy, Session, SpecialTokens, Tokenizer,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;

pub(super) use self::attention::{Attention, cache_dims};
use self::records::Records;
use crate::{BenchError, BenchOptions};

/// What a finding says of a claim.
pub(super) fn holds(yes: bool) -> &'static str {
    if yes {
        "holds here"
    } else {
        "does not hold here"
    }
}

/// An error of the language model, with what it was about.
pub(super) fn failed<E: Display>(what: &str) -> impl Fn(E) -> BenchError + '_ {
    move |e| BenchError::data(what, e.to_string())
}

/// A model and what it runs with.
pub(super) struct Model {
    pub(super) name: String,
    pub(super) decoder: Arc<Decoder>,
    pub(super) team: Arc<Team>,
    tokenizer: Option<Arc<Tokenizer>>,
    template: Option<Arc<ChatTemplate>>,
    /// Where a constructed model lies.
    _folder: Option<tempfile::TempDir>,
}

impl Model {
    /// The user's model, if there is one.
    pub(super) fn given(options: &BenchOptions) -> Result<Option<Self>, BenchError> {
        let Some(name) = &options.model else {
            return Ok(None);
        };
        let file = ModelFile::open(Path::new(name)).map_err(failed(name))?;
        Ok(Some(Self {
            decoder: Arc::new(Decoder::load(&file).map_err(failed(name))?),
            team: Arc::new(Team::new(options.thread_count())),
            tokenizer: Some(Arc::new(file.tokenizer().map_err(failed(name))?)),
            template: file.chat_template().map_err(failed(name))?.map(Arc::new),
            name: name.clone(),
            _folder: None,
        }))
    }

    /// The constructed model that looks one thing up.
    pub(super) fn recall(config: &RecallConfig, threads: usize) -> Result<Self, BenchError> {
        let name = "the constructed recall model";
        let folder = tempfile::tempdir()?;
        config.write_model(folder.path()).map_err(failed(name))?;
        let file = ModelFile::open(folder.path()).map_err(failed(name))?;
        Ok(Self {
            name: name.to_owned(),
            decoder: Arc::new(Decoder::load(&file).map_err(failed(name))?),
            team: Arc::new(Team::new(threads)),
            tokenizer: None,
            template: None,
            _folder: Some(folder),
        })
    }

    /// The same with other weights.
    pub(super) fn replaced(&self, decoder: Arc<Decoder>) -> Self {
        Self {
            name: self.name.clone(),
            decoder,
            team: Arc::clone(&self.team),
            tokenizer: self.tokenizer.clone(),
            template: self.template.clone(),
            _folder: None,
        }
    }

    pub(super) fn dims(&self) -> Dims {
        self.decoder.config().dims
    }

    /// Tokens of a text; none where the model has no tokenizer.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, BenchError> {
        let Some(tokenizer) = &self.tokenizer else {
            return Ok(Vec::new());
        };
        tokenizer
            .encode(text, SpecialTokens::Plain)
            .map_err(failed(&self.name))
    }

    /// What every text begins with.
    pub(super) fn prefix(&self) -> Vec<u32> {
        self.tokenizer
            .as_ref()
            .map_or(Vec::new(), |t| t.prefix().to_vec())
    }

    /// Roles for `context` tokens: dense where none is given.
    pub(super) fn policy(
        &self,
        context: usize,
        selector: Option<Box<dyn Selector>>,
        prefill: Option<Box<dyn Prefill>>,
    ) -> Result<Policy, BenchError> {
        let mut policy =
            Policy::dense(&self.decoder, CacheType::F16, context).map_err(failed(&self.name))?;
        if let Policy::Roles {
            selector: s,
            prefill: p,
            ..
        } = &mut policy
        {
            *s = selector;
            if let Some(prefill) = prefill {
                *p = prefill;
            }
        }
        Ok(policy)
    }

    pub(super) fn session(&self, policy: Policy) -> Session {
        Session::new(Arc::clone(&self.decoder), policy, Arc::clone(&self.team))
    }

    /// A window of at most `wanted` tokens that fits the model.
    pub(super) fn context(&self, wanted: usize) -> usize {
        self.decoder
            .config()
            .context_limit()
            .map_or(wanted, |limit| limit.min(wanted))
    }
}

/// The tokens of `--data`, if it was given.
pub(super) fn text(options: &BenchOptions, model: &Model) -> Result<Option<Vec<u32>>, BenchError> {
    let Some(path) = &options.data else {
        return Ok(None);
    };
    let bytes = std::fs::read(path).map_err(|e| BenchError::data(path, e.to_string()))?;
    model.encode(&String::from_utf8_lossy(&bytes)).map(Some)
}

/// What a finding says where [`given_text`] gives nothing.
pub(super) const NOT_MEASURED: &str =
    "perplexity needs --model FILE and --data TEXT; it was not measured.";

/// The user's model and the tokens of her text, if both were given.
pub(super) fn given_text(options: &BenchOptions) -> Result<Option<(Model, Vec<u32>)>, BenchError> {
    let Some(model) = Model::given(options)? else {
        return Ok(None);
    };
    Ok(text(options, &model)?.map(|tokens| (model, tokens)))
}

/// What `measure` finds of the user's model on her text; where they were not given, a finding
/// that says so.
pub(super) fn on_given_text(
    options: &BenchOptions,
    findings: &mut Vec<String>,
    measure: impl FnOnce(&Model, &[u32], &mut Vec<String>) -> Result<Value, BenchError>,
) -> Result<Value, BenchError> {
    match given_text(options)? {
        Some((model, tokens)) => measure(&model, &tokens, findings),
        None => {
            findings.push(NOT_MEASURED.to_owned());
            Ok(Value::Null)
        }
    }
}

/// How a table names the tokens that a method was calibrated on.
pub(super) fn which_tokens(others: bool) -> &'static str {
    if others {
        "other"
    } else {
        "of the same (the text is too short for others)"
    }
}

/// `|got - exact| / |exact|` over all numbers.
pub(super) fn relative_error(got: &[f32], exact: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let apart: f64 = got.iter().zip(exact).map(|(g, e)| square(g - e)).sum();
    (apart / exact.iter().map(|&e| square(e)).sum::<f64>()).sqrt()
}

/// A selector under a name; none reads everything.
pub(super) struct Method {
    pub(super) name: String,
    pub(super) selector: Option<Box<dyn Selector>>,
}

impl Method {
    pub(super) fn new(name: impl Into<String>, selector: impl Selector + 'static) -> Self {
        Self {
            name: name.into(),
            selector: Some(Box::new(selector)),
        }
    }

    pub(super) fn dense() -> Self {
        Self {
            name: "dense".to_owned(),
            selector: None,
        }
    }
}

/// Several selectors in the place of one; `current` says which is asked.
struct Switch {
    methods: Vec<Option<Box<dyn Selector>>>,
    current: Arc<AtomicUsize>,
}

impl Selector for Switch {
    fn on_append(&mut self, layer: usize, positions: &[u32], keys: &[f32]) {
        for method in self.methods.iter_mut().flatten() {
            method.on_append(layer, positions, keys);
        }
    }

    fn select(
        &mut self,
        layer: usize,
        queries: &[f32],
        store: &dyn KvStore,
        ctx: &mut StepCtx,
        team: &Team,
        rows: &mut Rows,
    ) {
        match self.methods.get_mut(self.current.load(Ordering::Relaxed)) {
            Some(Some(method)) => method.select(layer, queries, store, ctx, team, rows),
            _ => rows.all(),
        }
    }

    fn changed(&mut self, layer: usize, kv_head: usize, from: usize) {
        for method in self.methods.iter_mut().flatten() {
            method.changed(layer, kv_head, from);
        }
    }

    fn truncate(&mut self, position: u32) {
        for method in self.methods.iter_mut().flatten() {
            method.truncate(position);
        }
    }
}

/// Several selectors that go on from one reading of a context, so that it is read once.
pub(super) struct Compared<'a> {
    model: &'a Model,
    session: Session,
    current: Arc<AtomicUsize>,
    pub(super) names: Vec<String>,
}

impl<'a> Compared<'a> {
    pub(super) fn new(
        model: &'a Model,
        methods: Vec<Method>,
        context: usize,
    ) -> Result<Self, BenchError> {
        Self::reading(model, methods, context, None)
    }

    /// The same with another way to read the context.
    fn reading(
        model: &'a Model,
        methods: Vec<Method>,
        context: usize,
        prefill: Option<Box<dyn Prefill>>,
    ) -> Result<Self, BenchError> {
        let current = Arc::new(AtomicUsize::new(0));
        let names = methods.iter().map(|m| m.name.clone()).collect();
        let methods = methods.into_iter().map(|m| m.selector).collect();
        let switch = Switch {
            methods,
            current: Arc::clone(&current),
        };
        let session = model.session(model.policy(context, Some(Box::new(switch)), prefill)?);
        Ok(Self {
            model,
            session,
            current,
            names,
        })
    }

    /// Forgets what was read and reads `tokens`.
    fn read(&mut self, tokens: &[u32]) -> Result<(), LmError> {
        self.session.truncate(0)?;
        self.session.prefill(tokens, &NoProgress)
    }

    /// Lets method number `method` go on after the first `length` tokens.
    fn go_on(&mut self, method: usize, length: usize) -> Result<&mut Session, LmError> {
        self.session.truncate(length)?;
        self.current.store(method, Ordering::Relaxed);
        Ok(&mut self.session)
    }

    /// For each method: whether the recall model says the answer, and which part of its
    /// attention reached it.
    pub(super) fn recall(&mut self, prompt: &RecallPrompt) -> Result<Vec<(bool, f64)>, BenchError> {
        let name = &self.model.name;
        let Some((&question, context)) = prompt.tokens.split_last() else {
            return Ok(Vec::new());
        };
        self.read(context).map_err(failed(name))?;
        let mut found = Vec::with_capacity(self.names.len());
        for method in 0..self.names.len() {
            let session = self.go_on(method, context.len()).map_err(failed(name))?;
            session.step(question).map_err(failed(name))?;
            found.push(answered(session.logits(), prompt.answer));
        }
        Ok(found)
    }

    /// For each method: the mean of `-ln p` over the last `count` tokens of each of `windows`,
    /// decoded one by one after a dense reading of those before.
    pub(super) fn losses(
        &mut self,
        windows: &[Vec<u32>],
        count: usize,
        progress: &dyn Progress,
    ) -> Result<Vec<f64>, BenchError> {
        let name = &self.model.name;
        let mut sums = vec![0.0; self.names.len()];
        for window in windows {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let (context, rest) = window.split_at(window.len() - count);
            self.read(context).map_err(failed(name))?;
            let first = log_probability(self.session.logits(), rest[0]);
            for (method, sum) in sums.iter_mut().enumerate() {
                let session = self.go_on(method, context.len()).map_err(failed(name))?;
                *sum -= first;
                for pair in rest.windows(2) {
                    session.step(pair[0]).map_err(failed(name))?;
                    *sum -= log_probability(session.logits(), pair[1]);
                }
            }
            progress.advance(1);
        }
        let tokens = (windows.len() * count).max(1) as f64;
        Ok(sums.into_iter().map(|sum| sum / tokens).collect())
    }
}

impl Compared<'_> {
    /// For each method: whether it answers a question about records exactly. What stands before
    /// the question is read densely, the question is read token by token.
    fn records(&mut self, records: &Records) -> Result<Vec<bool>, BenchError> {
        let name = &self.model.name;
        let before = records.prompt.len() - records.question;
        let (context, question) = records.prompt.split_at(before);
        self.read(context).map_err(failed(name))?;
        let mut found = Vec::with_capacity(self.names.len());
        for method in 0..self.names.len() {
            let session = self.go_on(method, before).map_err(failed(name))?;
            for &token in question {
                session.step(token).map_err(failed(name))?;
            }
            found.push(records.goes_on(session).map_err(failed(name))?);
        }
        Ok(found)
    }

    /// For each method: the share of questions about records in `prompts` texts of at most
    /// `length` tokens that it answers exactly.
    pub(super) fn all_records(
        &mut self,
        (length, prompts): (usize, usize),
        seed: u64,
        progress: &dyn Progress,
    ) -> Result<Vec<f64>, BenchError> {
        let mut right = vec![0.0; self.names.len()];
        let mut rng = StdRng::seed_from_u64(seed);
        progress.start("records", "prompts", Some(prompts as u64));
        for i in 0..prompts {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let depth = (i as f64 + 0.5) / prompts as f64;
            let records = Records::new(self.model, length, depth, &mut rng)?;
            for (right, found) in right.iter_mut().zip(self.records(&records)?) {
                *right += f64::from(u8::from(found)) / prompts as f64;
            }
            progress.advance(1);
        }
        progress.finish();
        Ok(right)
    }
}

/// Whether the recall model says `answer`, and which part of its attention reached it: a
/// token's logit is in proportion to the attention that values of that token got.
pub(super) fn answered(logits: &[f32], answer: u32) -> (bool, f64) {
    let best = keyfold_lm::decoding::argmax(logits);
    let all: f32 = logits.iter().map(|l| l.max(0.0)).sum();
    (
        best == answer,
        f64::from(logits[answer as usize].max(0.0) / all.max(f32::MIN_POSITIVE)),
    )
}

/// Recall over prompts at depths that are spread over the context: for each method, the share
/// of answers and the mean part of attention that reached them.
pub(super) fn recall_all(
    config: &RecallConfig,
    compared: &mut Compared,
    spec: PromptSpec,
    prompts: usize,
    seed: u64,
    progress: &dyn Progress,
) -> Result<Vec<(f64, f64)>, BenchError> {
    let mut sums = vec![(0.0, 0.0); compared.names.len()];
    for i in 0..prompts {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let depth = (i as f32 + 0.5) / prompts as f32;
        let prompt = config.prompt(&PromptSpec { depth, ..spec }, seed.wrapping_add(i as u64));
        let prompt = prompt.map_err(failed("recall prompt"))?;
        for (sum, (right, mass)) in sums.iter_mut().zip(compared.recall(&prompt)?) {
            sum.0 += f64::from(u8::from(right));
            sum.1 += mass;
        }
        progress.advance(1);
    }
    let n = prompts.max(1) as f64;
    Ok(sums
        .into_iter()
        .map(|(right, mass)| (right / n, mass / n))
        .collect())
}

/// The first windows of a text, each with the model's prefix.
pub(super) fn windows(
    model: &Model,
    tokens: &[u32],
    context: usize,
    count: usize,
) -> Result<Vec<Vec<u32>>, BenchError> {
    let prefix = model.prefix();
    let fresh = context.saturating_sub(prefix.len()).max(1);
    let cut = tokens.chunks_exact(fresh).take(count);
    let found: Vec<Vec<u32>> = cut.map(|w| [prefix.as_slice(), w].concat()).collect();
    if found.is_empty() {
        return Err(BenchError::data(
            "--data",
            format!(
                "a window needs {fresh} tokens; the text has {}",
                tokens.len()
            ),
        ));
    }
    Ok(found)
}

/// Perplexity of the second half of windows that are read as prompts under a policy.
pub(super) fn read_perplexity(
    model: &Model,
    tokens: &[u32],
    (context, windows): (usize, usize),
    policy: &dyn Fn() -> Result<Policy, BenchError>,
) -> Result<Perplexity, BenchError> {
    let options = PerplexityOptions {
        context,
        windows,
        protocol: Protocol::Prompt,
        prefix: model.prefix(),
    };
    let mut session = || {
        let policy = policy().map_err(|e| LmError::Input {
            what: e.to_string(),
        })?;
        Ok::<_, LmError>(model.session(policy))
    };
    perplexity(&mut session, tokens, &options, &NoProgress).map_err(failed(&model.name))
}

#[cfg(test)]
mod tests {
    use super::relative_error;

    #[test]
    fn errors_are_relative_to_the_exact() {
        assert!((relative_error(&[0.0, 3.0], &[4.0, 3.0]) - 0.8).abs() < 1e-9);
    }
}
