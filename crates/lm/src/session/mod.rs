//! Reading and writing with a model: a text so far, and what it keeps of it.

mod hooks;
mod pass;
mod policy;

pub use hooks::{HookPoint, Site};
pub use policy::Policy;

use crate::LmError;
use crate::model::Decoder;
use crate::roles::{Dims, KvStore, TokenKinds};
use keyfold_core::Progress;
use keyfold_kernels::Team;
use pass::{Buffers, EachLogits, Pass, Want};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Sees what a pass computes (calibration), and may change it (inspection).
pub trait Observer {
    /// Queries `[n, heads, head_dim]`, keys and values `[n, kv_heads, head_dim]` of a layer.
    fn attention(&mut self, _seen: &AttentionInputs) {}

    /// Numbers at a place, one row for each token of the pass; the pass goes on with what is left
    /// in them.
    fn at(&mut self, _point: HookPoint, _rows: &mut [f32]) {}
}

/// What an [`Observer`] sees.
pub struct AttentionInputs<'a> {
    /// The layer.
    pub layer: usize,
    /// Queries before rotary embedding.
    pub queries_before: &'a [f32],
    /// Keys before rotary embedding.
    pub keys_before: &'a [f32],
    /// Queries after rotary embedding.
    pub queries: &'a [f32],
    /// Keys after rotary embedding.
    pub keys: &'a [f32],
    /// Values.
    pub values: &'a [f32],
}

/// What a session has done so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Time for them.
    pub prompt_time: Duration,
    /// Tokens that were decoded.
    pub decoded_tokens: u64,
    /// Time for them.
    pub decode_time: Duration,
    /// Of that, time in attention.
    pub attention_time: Duration,
    /// Bytes of weights that decoding read.
    pub weight_bytes: u64,
    /// Bytes of cached rows that decoding read.
    pub row_bytes: u64,
    /// Bytes that selectors read to choose.
    pub selector_bytes: u64,
}

/// A text so far.
pub struct Session {
    decoder: Arc<Decoder>,
    team: Arc<Team>,
    policy: Policy,
    kinds: TokenKinds,
    tokens: Vec<u32>,
    /// Attention mass by layer, where an evictor asked for it.
    mass: Vec<Vec<f32>>,
    keep_hidden: bool,
    /// Length of the text when the prompt is read: some rotary scalings depend on it.
    planned: usize,
    report: Report,
    b: Buffers,
}

impl Session {
    /// An empty text.
    pub fn new(decoder: Arc<Decoder>, policy: Policy, team: Arc<Team>) -> Self {
        Self {
            decoder,
            team,
            policy,
            kinds: TokenKinds::default(),
            tokens: Vec::new(),
            mass: Vec::new(),
            keep_hidden: false,
            planned: 0,
            report: Report::default(),
            b: Buffers::default(),
        }
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The model.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// What was done so far.
    pub fn report(&self) -> Report {
        self.report
    }

    /// The roles.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Says which tokens of the prompt stand for images.
    pub fn set_kinds(&mut self, kinds: TokenKinds) {
        self.kinds = kinds;
    }

    /// Keeps the hidden states of all tokens of the last pass (after the final norm), not
    /// of the last token alone.
    pub fn keep_hidden(&mut self, keep: bool) {
        self.keep_hidden = keep;
    }

    /// Hidden states `[n, hidden]` of the last pass, after the final norm.
    pub fn hidden(&self) -> &[f32] {
        &self.b.hidden
    }

    /// Logits of the token after the last (of each candidate: `[k, vocab]`).
    pub fn logits(&self) -> &[f32] {
        &self.b.logits
    }

    /// The same, to be changed in place by a sampler, and the tokens so far.
    pub fn logits_and_tokens(&mut self) -> (&mut [f32], &[u32]) {
        (&mut self.b.logits, &self.tokens)
    }

    /// Bytes that the cache holds.
    pub fn cache_bytes(&self) -> u64 {
        match &self.policy {
            Policy::Roles { store, .. } => store.bytes(),
            Policy::Whole(whole) => whole.bytes(),
        }
    }

    /// Reads a prompt, in chunks. Afterwards [`logits`](Self::logits) are those of the token
    /// after it, and an evictor has done its work.
    ///
    /// # Errors
    /// When the prompt is empty, has a token that the model does not know, or does not fit
    /// in the context; or when the user asked to stop (what was read stays).
    pub fn prefill(&mut self, tokens: &[u32], progress: &dyn Progress) -> Result<(), LmError> {
        if let Policy::Roles {
            evictor: Some(_), ..
        } = &self.policy
        {
            let length = self.tokens.len() + tokens.len();
            let wrong = |what| LmError::Input { what };
            self.kinds.validate(length).map_err(wrong)?;
        }
        self.read(tokens, progress, None, None)?;
        self.evict();
        Ok(())
    }

    /// Reads a prompt and hands over the logits after every token of it (with the token's
    /// place in `tokens`).
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn score(
        &mut self,
        tokens: &[u32],
        progress: &dyn Progress,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), LmError> {
        self.read(tokens, progress, Some(each), None)
    }

    /// Reads a prompt and shows an observer what attention is computed from.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn observe(
        &mut self,
        tokens: &[u32],
        progress: &dyn Progress,
        observer: &mut dyn Observer,
    ) -> Result<(), LmError> {
        self.read(tokens, progress, None, Some(observer))
    }

    fn read<'o>(
        &mut self,
        tokens: &[u32],
        progress: &dyn Progress,
        mut each: Option<EachLogits>,
        mut observer: Option<&mut (dyn Observer + 'o)>,
    ) -> Result<(), LmError> {
        if tokens.is_empty() {
            return Err(LmError::Input {
                what: "the prompt is empty; give at least one token".into(),
            });
        }
        self.check(tokens)?;
        self.planned = self.tokens.len() + tokens.len();
        let chunk = match &self.policy {
            Policy::Roles { prefill, .. } => prefill.chunk().unwrap_or(tokens.len()),
            Policy::Whole(whole) => whole.chunk(),
        };
        progress.start("reading the prompt", "tokens", Some(tokens.len() as u64));
        let start = Instant::now();
        let mut hidden = Vec::new();
        let chunks = tokens.chunks(chunk.max(1));
        let last = chunks.len() - 1;
        for (i, part) in chunks.enumerate() {
            if progress.cancelled() {
                progress.finish();
                return Err(LmError::Stopped);
            }
            let first = i * chunk.max(1);
            let mut shift = each
                .as_deref_mut()
                .map(|each| move |at: usize, l: &[f32]| each(first + at, l));
            let want = match &mut shift {
                Some(each) => Some(Want::Each(each)),
                None => (i == last).then_some(Want::Last),
            };
            self.pass(part, Pass::Prompt, want, observer.as_deref_mut());
            if self.keep_hidden {
                hidden.extend_from_slice(&self.b.hidden);
            }
            self.report.prompt_tokens += part.len() as u64;
            progress.advance(part.len() as u64);
        }
        if self.keep_hidden {
            self.b.hidden = hidden;
        }
        self.report.prompt_time += start.elapsed();
        progress.finish();
        Ok(())
    }

    /// Reads one more token; [`logits`](Self::logits) are then those of the next.
    ///
    /// # Errors
    /// When the model does not know the token or the context is full.
    pub fn step(&mut self, token: u32) -> Result<(), LmError> {
        self.check(&[token])?;
        self.decode(&[token], Pass::Decode);
        self.report.decoded_tokens += 1;
        Ok(())
    }

    /// Tries each of a few tokens as the next: they read the same cache, which stays as it
    /// is. [`hidden`](Self::hidden) and [`logits`](Self::logits) then have a row for each.
    ///
    /// # Errors
    /// When the model does not know a token, the context is full, or the policy replaces
    /// the whole attention.
    pub fn candidates(&mut self, tokens: &[u32]) -> Result<(), LmError> {
        self.check(tokens)?;
        if matches!(self.policy, Policy::Whole(_)) {
            let what = "contrastive search needs a cache that several tokens can read; \
                        act-qkv changes its own with every token: choose another --select";
            return Err(LmError::Input { what: what.into() });
        }
        self.decode(tokens, Pass::Candidates);
        Ok(())
    }

    /// Takes one of the last [`candidates`](Self::candidates) as the next token; logits and
    /// hidden states are then its own.
    ///
    /// # Errors
    /// When there were no candidates or not so many.
    pub fn accept(&mut self, candidate: usize, token: u32) -> Result<(), LmError> {
        let Dims {
            kv_heads,
            head_dim,
            hidden,
            vocab,
            ..
        } = self.decoder.config().dims;
        let width = kv_heads * head_dim;
        let rows = candidate * width..(candidate + 1) * width;
        let Policy::Roles {
            store, selector, ..
        } = &mut self.policy
        else {
            return Err(LmError::Input {
                what: "there are no candidates".into(),
            });
        };
        if candidate >= self.b.candidates {
            return Err(LmError::Input {
                what: format!("there is no candidate {candidate}"),
            });
        }
        self.b.candidates = 0;
        let position = [self.tokens.len() as u32];
        for (layer, tried) in self.b.tried.iter().enumerate() {
            let (kept, values) = (&tried.kept[rows.clone()], &tried.values[rows.clone()]);
            store.append(layer, &position, kept, values);
            if let Some(selector) = selector {
                selector.on_append(layer, &position, &tried.keys[rows.clone()]);
            }
        }
        keep_row(&mut self.b.logits, candidate, vocab);
        keep_row(&mut self.b.hidden, candidate, hidden);
        self.tokens.push(token);
        self.report.decoded_tokens += 1;
        Ok(())
    }

    /// Forgets the tokens from `length` on.
    ///
    /// # Errors
    /// When the policy cannot go back.
    pub fn truncate(&mut self, length: usize) -> Result<(), LmError> {
        if length >= self.tokens.len() {
            return Ok(());
        }
        let Policy::Roles {
            store, selector, ..
        } = &mut self.policy
        else {
            return Err(LmError::Input {
                what: "act-qkv cannot go back in its text".into(),
            });
        };
        store.truncate(length as u32);
        if let Some(selector) = selector {
            selector.truncate(length as u32);
        }
        self.tokens.truncate(length);
        Ok(())
    }

    /// Reads the last `count` tokens once more with everything before them, and replaces
    /// their rows, which were computed from what a selector had left (TidalDecode's correction).
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn correct(&mut self, count: usize) -> Result<(), LmError> {
        let from = self.tokens.len().saturating_sub(count);
        let again = self.tokens[from..].to_vec();
        self.truncate(from)?;
        self.read(&again, &keyfold_core::NoProgress, None, None)
    }

    /// Does a correction that the selector asks for after `decoded` tokens.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn correct_if_due(&mut self, decoded: usize) -> Result<(), LmError> {
        let Policy::Roles {
            selector: Some(selector),
            ..
        } = &self.policy
        else {
            return Ok(());
        };
        match selector.due_correction(decoded) {
            Some(count) => self.correct(count),
            None => Ok(()),
        }
    }

    /// How many tokens the model's context has room for.
    pub fn context_left(&self) -> Option<usize> {
        match self.policy {
            Policy::Whole(_) => None,
            Policy::Roles { .. } => {
                let limit = self.decoder.config().context_limit()?;
                Some(limit.saturating_sub(self.tokens.len()))
            }
        }
    }

    /// A session that goes on from here by itself. `None` where the policy keeps more than rows.
    pub fn fork(&self) -> Option<Self> {
        let Policy::Roles {
            store,
            selector: None,
            evictor: None,
            ..
        } = &self.policy
        else {
            return None;
        };
        let policy = Policy::of(&self.decoder, store.fork());
        let mut fork = Self::new(Arc::clone(&self.decoder), policy, Arc::clone(&self.team));
        fork.tokens = self.tokens.clone();
        fork.keep_hidden = self.keep_hidden;
        fork.b.logits = self.b.logits.clone();
        fork.b.hidden = self.b.hidden.clone();
        Some(fork)
    }

    /// The store and the tokens, for a saved prompt; `None` where a method keeps more.
    pub(crate) fn saved_parts(&mut self) -> Option<(&mut dyn KvStore, &mut Vec<u32>)> {
        match &mut self.policy {
            Policy::Roles {
                store,
                evictor: None,
                ..
            } => Some((store.as_mut(), &mut self.tokens)),
            _ => None,
        }
    }

    /// Tells the selector that all rows of the store are new to it.
    pub(crate) fn rows_replaced(&mut self) {
        let dims = self.decoder.config().dims;
        if let Policy::Roles {
            selector: Some(selector),
            ..
        } = &mut self.policy
        {
            for layer in 0..dims.layers {
                (0..dims.kv_heads).for_each(|kv_head| selector.changed(layer, kv_head, 0));
            }
        }
    }

    /// Whether `tokens` can follow.
    fn check(&self, tokens: &[u32]) -> Result<(), LmError> {
        let config = self.decoder.config();
        if let Some(bad) = tokens.iter().find(|t| **t as usize >= config.dims.vocab) {
            let what = format!(
                "token {bad} is not one of the model's {}",
                config.dims.vocab
            );
            return Err(LmError::Input { what });
        }
        let length = self.tokens.len() + tokens.len();
        let unlimited = matches!(self.policy, Policy::Whole(_));
        match config.context_limit() {
            Some(limit) if length > limit && !unlimited => Err(LmError::Input {
                what: format!(
                    "{length} tokens do not fit in the model's context of {limit}; shorten the text, \
                     or use --select act-qkv, which reads beyond it"
                ),
            }),
            _ => Ok(()),
        }
    }

    fn decode(&mut self, tokens: &[u32], pass: Pass) {
        let start = Instant::now();
        self.pass(tokens, pass, Some(Want::Last), None);
        self.report.decode_time += start.elapsed();
        self.report.weight_bytes += self.decoder.weight_bytes();
    }

    /// Lets the evictor drop rows after the prompt.
    fn evict(&mut self) {
        let Policy::Roles {
            store,
            evictor: Some(evictor),
            ..
        } = &mut self.policy
        else {
            return;
        };
        let none = Vec::new();
        let dims = self.decoder.config().dims;
        for layer in 0..dims.layers {
            let mass = self.mass.get(layer).unwrap_or(&none);
            evictor.after_prefill(layer, mass, &self.kinds, store.as_mut());
        }
        self.mass.clear();
        self.rows_replaced();
    }
}

/// Keeps one row of a matrix.
fn keep_row(rows: &mut Vec<f32>, row: usize, width: usize) {
    rows.copy_within(row * width..(row + 1) * width, 0);
    rows.truncate(width);
}
