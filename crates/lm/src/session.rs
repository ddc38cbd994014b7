//! Reading and writing with a model: a text so far, and what it keeps of it.

use crate::LmError;
use crate::attention::{DecodeAttention, DensePrefill, OwnRows};
use crate::model::{Angles, Decoder, LinearName, MlpBuffers};
use crate::roles::{
    Dims, Evictor, KvStore, Prefill, Selector, StepCtx, TokenKinds, WholeAttention,
};
use crate::store::{CacheType, DenseStore};
use keyfold_core::Progress;
use keyfold_kernels::Team;
use keyfold_kernels::blocks::Activations;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many rows of logits are made at once when those of every token are wanted.
const LOGIT_ROWS: usize = 32;

/// One value of each role.
pub enum Policy {
    /// Roles that were chosen one by one.
    Roles {
        /// Layout and codec of the cache.
        store: Box<dyn KvStore>,
        /// What a decoded token reads; everything where there is none.
        selector: Option<Box<dyn Selector>>,
        /// Which rows survive the prompt.
        evictor: Option<Box<dyn Evictor>>,
        /// How a prompt is read.
        prefill: Box<dyn Prefill>,
    },
    /// A method that fills them all.
    Whole(Box<dyn WholeAttention>),
}

impl Policy {
    /// Reads everything, keeps everything.
    ///
    /// # Errors
    /// When the blocks of `cache` do not divide a head's vector.
    pub fn dense(decoder: &Decoder, cache: CacheType, context: usize) -> Result<Self, LmError> {
        let config = decoder.config();
        let store = DenseStore::new(config.dims, cache, context).ok_or_else(|| LmError::Input {
            what: format!(
                "heads of {} numbers cannot be kept in blocks of {}; choose another --cache",
                config.dims.head_dim,
                cache.blocks().block_len(),
            ),
        })?;
        Ok(Self::Roles {
            store: Box::new(store),
            selector: None,
            evictor: None,
            prefill: Box::new(DensePrefill::new(
                config.dims,
                config.sliding_window.clone(),
                256,
            )),
        })
    }
}

/// Sees what attention is computed from (calibration, inspection).
pub trait Observer {
    /// Queries `[n, heads, head_dim]`, keys and values `[n, kv_heads, head_dim]` of a layer.
    fn attention(&mut self, seen: &AttentionInputs);
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

/// Takes the place of a token and the logits after it.
type EachLogits<'a> = &'a mut dyn FnMut(usize, &[f32]);

/// What is wanted of the tokens that are read.
enum Want<'a> {
    /// The logits of the last.
    Last,
    /// The logits of every one: its place in the chunk, and they.
    Each(EachLogits<'a>),
}

/// How the tokens of a pass see each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// They follow each other and are kept.
    Prompt,
    /// There is one, and it is kept.
    Decode,
    /// Each is tried as the next; none is kept.
    Candidates,
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

/// Everything a pass needs room for; grown once.
#[derive(Default)]
struct Buffers {
    positions: Vec<u32>,
    h: Vec<f32>,
    x: Activations,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    q_before: Vec<f32>,
    k_before: Vec<f32>,
    grouped: Vec<f32>,
    grouped_out: Vec<f32>,
    attended: Activations,
    added: Vec<f32>,
    mlp: MlpBuffers,
    angles: Angles,
    attention: DecodeAttention,
    ctx: StepCtx,
    rows: crate::roles::Rows,
    logits: Vec<f32>,
    hidden: Vec<f32>,
    /// Keys and values of candidates by layer.
    own: Vec<(Vec<f32>, Vec<f32>)>,
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
        if self.b.own.is_empty() || self.b.own.iter().any(|(k, _)| k.len() < rows.end) {
            return Err(LmError::Input {
                what: format!("there is no candidate {candidate}"),
            });
        }
        let position = [self.tokens.len() as u32];
        for (layer, (keys, values)) in self.b.own.iter().enumerate() {
            let keys = &keys[rows.clone()];
            store.append(layer, &position, keys, &values[rows.clone()]);
            if let Some(selector) = selector {
                selector.on_append(layer, &position, keys);
            }
        }
        self.b
            .logits
            .copy_within(candidate * vocab..(candidate + 1) * vocab, 0);
        self.b.logits.truncate(vocab);
        self.b
            .hidden
            .copy_within(candidate * hidden..(candidate + 1) * hidden, 0);
        self.b.hidden.truncate(hidden);
        self.tokens.push(token);
        self.report.decoded_tokens += 1;
        Ok(())
    }

    /// Forgets the tokens from `length` on.
    ///
    /// # Errors
    /// When the policy cannot go back.
    pub fn truncate(&mut self, length: usize) -> Result<(), LmError> {
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
        let config = self.decoder.config();
        let policy = Policy::Roles {
            store: store.fork(),
            selector: None,
            evictor: None,
            prefill: Box::new(DensePrefill::new(
                config.dims,
                config.sliding_window.clone(),
                256,
            )),
        };
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
                selector: None,
                evictor: None,
                ..
            } => Some((store.as_mut(), &mut self.tokens)),
            _ => None,
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
            selector,
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
            if let Some(selector) = selector {
                (0..dims.kv_heads).for_each(|kv_head| selector.changed(layer, kv_head, 0));
            }
        }
        self.mass.clear();
    }

    /// Sends tokens through all layers.
    fn pass<'o>(
        &mut self,
        tokens: &[u32],
        pass: Pass,
        want: Option<Want>,
        mut observer: Option<&mut (dyn Observer + 'o)>,
    ) {
        let (n, dims) = (tokens.len(), self.decoder.config().dims);
        let first = self.tokens.len() as u32;
        let b = &mut self.b;
        b.positions.clear();
        match pass {
            Pass::Candidates => b.positions.resize(n, first),
            _ => b.positions.extend(first..first + n as u32),
        }
        b.h.resize(n * dims.hidden, 0.0);
        self.decoder.embed(tokens, &b.positions, &mut b.h);
        let length = self.planned.max(first as usize + n);
        self.decoder.angles(&b.positions, length, &mut b.angles);
        b.ctx.position = first;
        if pass == Pass::Candidates {
            b.own.resize_with(dims.layers, Default::default);
        }
        for layer in 0..dims.layers {
            self.attention(layer, pass, observer.as_deref_mut());
            let (decoder, team, b) = (&self.decoder, &self.team, &mut self.b);
            let decoding = pass != Pass::Prompt;
            decoder.linear(
                layer,
                LinearName::O,
                &mut b.attended,
                &mut b.added,
                decoding,
                team,
            );
            keyfold_kernels::add_assign(&mut b.h, &b.added);
            decoder.normed(layer, true, &b.h, &mut b.x, team);
            decoder.mlp(layer, &mut b.x, &mut b.mlp, &mut b.added, decoding, team);
            keyfold_kernels::add_assign(&mut b.h, &b.added);
        }
        if pass != Pass::Candidates {
            self.tokens.extend_from_slice(tokens);
        }
        self.finish(n, pass, want);
    }

    /// Final norm and logits.
    fn finish(&mut self, n: usize, pass: Pass, want: Option<Want>) {
        let (decoder, team, b) = (&self.decoder, &self.team, &mut self.b);
        let hidden = decoder.config().dims.hidden;
        let all =
            self.keep_hidden || pass == Pass::Candidates || matches!(want, Some(Want::Each(_)));
        let from = if all { 0 } else { n - 1 };
        if want.is_none() && !all {
            return;
        }
        decoder.final_norm(&b.h[from * hidden..n * hidden], &mut b.x, team);
        b.hidden.clear();
        b.hidden.extend_from_slice(b.x.values());
        match want {
            None => {}
            Some(Want::Last) => {
                let rows = if pass == Pass::Candidates {
                    0..n
                } else {
                    n - 1 - from..n - from
                };
                b.x.set(&b.hidden[rows.start * hidden..rows.end * hidden], hidden);
                decoder.logits(&mut b.x, &mut b.logits, team);
            }
            Some(Want::Each(each)) => {
                let vocab = decoder.config().dims.vocab;
                for (i, rows) in b.hidden.chunks(LOGIT_ROWS * hidden).enumerate() {
                    b.x.set(rows, hidden);
                    decoder.logits(&mut b.x, &mut b.logits, team);
                    for (j, logits) in b.logits.chunks_exact(vocab).enumerate() {
                        each(i * LOGIT_ROWS + j, logits);
                    }
                }
                let last = b.logits.len() - vocab;
                b.logits.copy_within(last.., 0);
                b.logits.truncate(vocab);
            }
        }
        if !self.keep_hidden && pass != Pass::Candidates {
            let last = b.hidden.len() - hidden;
            b.hidden.copy_within(last.., 0);
            b.hidden.truncate(hidden);
        }
    }

    /// Fills `b.attended` with the attention of a layer.
    fn attention(&mut self, layer: usize, pass: Pass, observer: Option<&mut (dyn Observer + '_)>) {
        let (decoder, team, b) = (&self.decoder, &self.team, &mut self.b);
        let dims = decoder.config().dims;
        let decoding = pass != Pass::Prompt;
        decoder.normed(layer, false, &b.h, &mut b.x, team);
        decoder.linear(layer, LinearName::Q, &mut b.x, &mut b.q, decoding, team);
        decoder.linear(layer, LinearName::K, &mut b.x, &mut b.k, decoding, team);
        decoder.linear(layer, LinearName::V, &mut b.x, &mut b.v, decoding, team);
        decoder.head_norms(layer, &mut b.q, &mut b.k);
        let start = Instant::now();
        let out = b
            .attended
            .fill(b.positions.len(), dims.heads * dims.head_dim);
        let (store, selector, evictor, prefill) = match &mut self.policy {
            Policy::Whole(whole) => {
                whole.attend(layer, &b.q, &b.k, &b.v, &b.positions, decoding, team, out);
                return;
            }
            Policy::Roles {
                store,
                selector,
                evictor,
                prefill,
            } => (store, selector, evictor, prefill),
        };
        let before = store.needs().keys_before_rope;
        if before || observer.is_some() {
            b.k_before.clone_from(&b.k);
            b.q_before.clone_from(&b.q);
        }
        decoder.rotate(layer, &mut b.q, &b.angles);
        decoder.rotate(layer, &mut b.k, &b.angles);
        if let Some(observer) = observer {
            observer.attention(&AttentionInputs {
                layer,
                queries_before: &b.q_before,
                keys_before: &b.k_before,
                queries: &b.q,
                keys: &b.k,
                values: &b.v,
            });
        }
        let kept = if before { &b.k_before } else { &b.k };
        if pass == Pass::Candidates {
            let (keys, values) = &mut b.own[layer];
            keys.clone_from(kept);
            values.clone_from(&b.v);
        } else {
            store.append(layer, &b.positions, kept, &b.v);
            if let Some(selector) = selector {
                selector.on_append(layer, &b.positions, &b.k);
            }
        }
        if pass == Pass::Prompt {
            let rows = store.len(layer, 0);
            let wanted = evictor.as_ref().is_some_and(|e| e.needs().attention_mass);
            if wanted {
                self.mass.resize_with(dims.layers, Vec::new);
            }
            let mut none = Vec::new();
            let mass = match wanted {
                true => grow_mass(&mut self.mass[layer], dims.kv_heads, rows),
                false => &mut none,
            };
            prefill.attend(layer, &b.q, &b.positions, store.as_ref(), team, out, mass);
            return;
        }
        let window = decoder.config().sliding_window[layer];
        let position = b.ctx.position;
        // Candidates choose by the likeliest of them; all read the same rows.
        b.rows.all();
        if let Some(selector) = selector {
            let queries = &b.q[..dims.heads * dims.head_dim];
            b.ctx.bytes_read = 0;
            selector.select(
                layer,
                queries,
                store.as_ref(),
                &mut b.ctx,
                team,
                &mut b.rows,
            );
            self.report.selector_bytes += b.ctx.bytes_read;
        }
        let n = b.positions.len();
        let read = if pass == Pass::Decode {
            b.attention.attend(
                layer,
                &dims,
                &b.q,
                position,
                window,
                store.as_ref(),
                &b.rows,
                None,
                team,
                out,
            )
        } else {
            group(&b.q, n, &dims, &mut b.grouped);
            b.grouped_out.resize(b.grouped.len(), 0.0);
            let own = OwnRows {
                keys: &b.own[layer].0,
                values: &b.own[layer].1,
            };
            let read = b.attention.attend(
                layer,
                &dims,
                &b.grouped,
                position,
                window,
                store.as_ref(),
                &b.rows,
                Some(own),
                team,
                &mut b.grouped_out,
            );
            ungroup(&b.grouped_out, n, &dims, out);
            read
        };
        let (key, value) = store.row_bytes();
        self.report.row_bytes += read * (key + value);
        self.report.attention_time += start.elapsed();
    }
}

/// Makes room for rows that came since the last chunk.
fn grow_mass(mass: &mut Vec<f32>, kv_heads: usize, rows: usize) -> &mut [f32] {
    let old = mass.len() / kv_heads;
    if rows > old {
        let mut grown = vec![0.0; kv_heads * rows];
        for head in 0..kv_heads {
            grown[head * rows..head * rows + old]
                .copy_from_slice(&mass[head * old..(head + 1) * old]);
        }
        *mass = grown;
    }
    mass
}

/// `[n, kv_heads, width]` to `[kv_heads, n, width]`, `width` being the heads of a group.
fn group(q: &[f32], n: usize, dims: &Dims, out: &mut Vec<f32>) {
    let width = dims.group() * dims.head_dim;
    out.clear();
    for kv_head in 0..dims.kv_heads {
        for token in 0..n {
            let at = (token * dims.kv_heads + kv_head) * width;
            out.extend_from_slice(&q[at..at + width]);
        }
    }
}

/// The way back of [`group`].
fn ungroup(grouped: &[f32], n: usize, dims: &Dims, out: &mut [f32]) {
    let width = dims.group() * dims.head_dim;
    for (i, from) in grouped.chunks_exact(width).enumerate() {
        let (kv_head, token) = (i / n, i % n);
        let at = (token * dims.kv_heads + kv_head) * width;
        out[at..at + width].copy_from_slice(from);
    }
}
