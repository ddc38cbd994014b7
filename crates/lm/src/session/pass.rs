//! One pass of tokens through all layers.

use super::{AttentionInputs, HookPoint, Observer, Policy, Session, Site, keep_row};
use crate::attention::{DecodeAttention, OwnRows};
use crate::model::{Angles, LinearName, MlpBuffers};
use crate::roles::{Dims, Rows, StepCtx};
use keyfold_kernels::blocks::Activations;
use std::time::Instant;

/// How many rows of logits are made at once when those of every token are wanted.
const LOGIT_ROWS: usize = 32;

/// Takes the place of a token and the logits after it.
pub(super) type EachLogits<'a> = &'a mut dyn FnMut(usize, &[f32]);

/// What is wanted of the tokens that are read.
pub(super) enum Want<'a> {
    /// The logits of the last.
    Last,
    /// The logits of every one: its place in the chunk, and they.
    Each(EachLogits<'a>),
}

/// How the tokens of a pass see each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// They follow each other and are kept.
    Prompt,
    /// There is one, and it is kept.
    Decode,
    /// Each is tried as the next; none is kept.
    Candidates,
}

/// Keys and values of candidates in one layer, `[candidates, kv_heads, head_dim]`.
#[derive(Default)]
pub(super) struct Tried {
    pub(super) keys: Vec<f32>,
    /// As the store wants them.
    pub(super) kept: Vec<f32>,
    pub(super) values: Vec<f32>,
    /// As the store would hand them out.
    read: Vec<f32>,
}

/// Everything a pass needs room for; grown once.
#[derive(Default)]
pub(super) struct Buffers {
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
    rows: Rows,
    pub(super) logits: Vec<f32>,
    pub(super) hidden: Vec<f32>,
    /// By layer.
    pub(super) tried: Vec<Tried>,
    /// How many candidates may be taken.
    pub(super) candidates: usize,
}

impl Session {
    /// Sends tokens through all layers.
    pub(super) fn pass<'o>(
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
        b.candidates = if pass == Pass::Candidates { n } else { 0 };
        b.h.resize(n * dims.hidden, 0.0);
        self.decoder.embed(tokens, &b.positions, &mut b.h);
        let length = self.planned.max(first as usize + n);
        self.decoder.angles(&b.positions, length, &mut b.angles);
        b.ctx.position = first;
        b.tried.resize_with(dims.layers, Tried::default);
        for layer in 0..dims.layers {
            let at = |site| HookPoint { layer, site };
            let mut show = |site, rows: &mut [f32]| {
                if let Some(observer) = observer.as_deref_mut() {
                    observer.at(at(site), rows);
                }
            };
            show(Site::ResidPre, &mut self.b.h);
            self.attention(layer, pass, observer.as_deref_mut());
            let (decoder, team, b) = (&self.decoder, &self.team, &mut self.b);
            let decoding = pass != Pass::Prompt;
            let (attended, added) = (&mut b.attended, &mut b.added);
            if let Some(observer) = observer.as_deref_mut() {
                // Numbers that change must be rounded anew.
                let mut heads = attended.values().to_vec();
                observer.at(at(Site::Z), &mut heads);
                attended.set(&heads, dims.heads * dims.head_dim);
            }
            decoder.linear(layer, LinearName::O, attended, added, decoding, team);
            let mut show = |site, rows: &mut [f32]| {
                if let Some(observer) = observer.as_deref_mut() {
                    observer.at(at(site), rows);
                }
            };
            show(Site::AttnOut, added);
            keyfold_kernels::add_assign(&mut b.h, &b.added);
            show(Site::ResidMid, &mut b.h);
            decoder.normed(layer, true, &b.h, &mut b.x, team);
            decoder.mlp(layer, &mut b.x, &mut b.mlp, &mut b.added, decoding, team);
            show(Site::MlpOut, &mut b.added);
            keyfold_kernels::add_assign(&mut b.h, &b.added);
            show(Site::ResidPost, &mut b.h);
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
        let each = matches!(want, Some(Want::Each(_)));
        let all = self.keep_hidden || pass == Pass::Candidates || each;
        if want.is_none() && !all {
            return;
        }
        let from = if all { 0 } else { n - 1 };
        decoder.final_norm(&b.h[from * hidden..n * hidden], &mut b.x, team);
        b.hidden.clear();
        b.hidden.extend_from_slice(b.x.values());
        match want {
            None => {}
            Some(Want::Last) => {
                if pass != Pass::Candidates {
                    b.x.set(&b.hidden[b.hidden.len() - hidden..], hidden);
                }
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
                let last = b.logits.len() / vocab - 1;
                keep_row(&mut b.logits, last, vocab);
            }
        }
        if !self.keep_hidden && pass != Pass::Candidates {
            let last = b.hidden.len() / hidden - 1;
            keep_row(&mut b.hidden, last, hidden);
        }
    }

    /// Fills `b.attended` with the attention of a layer.
    fn attention(
        &mut self,
        layer: usize,
        pass: Pass,
        mut observer: Option<&mut (dyn Observer + '_)>,
    ) {
        self.project(layer, pass != Pass::Prompt, observer.as_deref_mut());
        let start = Instant::now();
        let (decoder, team, b) = (&self.decoder, &self.team, &mut self.b);
        let dims = decoder.config().dims;
        let Policy::Roles { store, .. } = &mut self.policy else {
            if let Policy::Whole(whole) = &mut self.policy {
                let n = b.positions.len();
                let out = b.attended.fill(n, dims.heads * dims.head_dim);
                let decoding = pass != Pass::Prompt;
                let bytes =
                    whole.attend(layer, &b.q, &b.k, &b.v, &b.positions, decoding, team, out);
                if decoding {
                    self.report.row_bytes += bytes;
                    self.report.attention_time += start.elapsed();
                }
            }
            return;
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
        self.keep(layer, pass, before);
        if pass == Pass::Prompt {
            self.read_prompt(layer);
        } else {
            self.read_rows(layer, pass);
            self.report.attention_time += start.elapsed();
        }
    }

    /// Queries, keys and values of a layer, before rotary embedding.
    fn project(
        &mut self,
        layer: usize,
        decoding: bool,
        observer: Option<&mut (dyn Observer + '_)>,
    ) {
        let (decoder, team, b) = (&self.decoder, &self.team, &mut self.b);
        decoder.normed(layer, false, &b.h, &mut b.x, team);
        let names = [LinearName::Q, LinearName::K, LinearName::V];
        let outs = [&mut b.q, &mut b.k, &mut b.v];
        decoder.linears(layer, names, &mut b.x, outs, decoding, team);
        if let Some(observer) = observer {
            for (site, rows) in [
                (Site::Q, &mut b.q),
                (Site::K, &mut b.k),
                (Site::V, &mut b.v),
            ] {
                observer.at(HookPoint { layer, site }, rows);
            }
        }
        decoder.head_norms(layer, &mut b.q, &mut b.k);
    }

    /// Puts the rows of a layer into the store; those of candidates beside it.
    fn keep(&mut self, layer: usize, pass: Pass, before: bool) {
        let b = &mut self.b;
        let Policy::Roles {
            store, selector, ..
        } = &mut self.policy
        else {
            return;
        };
        let kept = if before { &b.k_before } else { &b.k };
        if pass == Pass::Candidates {
            let tried = &mut b.tried[layer];
            tried.keys.clone_from(&b.k);
            tried.kept.clone_from(kept);
            tried.values.clone_from(&b.v);
            tried.read.clone_from(&b.v);
            store.present_values(layer, &mut tried.read);
            return;
        }
        store.append(layer, &b.positions, kept, &b.v);
        if let Some(selector) = selector {
            selector.on_append(layer, &b.positions, &b.k);
        }
    }

    /// Attention of a chunk of a prompt.
    fn read_prompt(&mut self, layer: usize) {
        let (team, b) = (&self.team, &mut self.b);
        let dims = self.decoder.config().dims;
        let Policy::Roles {
            store,
            evictor,
            prefill,
            ..
        } = &mut self.policy
        else {
            return;
        };
        let out = b
            .attended
            .fill(b.positions.len(), dims.heads * dims.head_dim);
        let mut none = Vec::new();
        let mass = if evictor.as_ref().is_some_and(|e| e.needs().attention_mass) {
            self.mass.resize_with(dims.layers, Vec::new);
            grow_mass(&mut self.mass[layer], dims.kv_heads, store.len(layer, 0))
        } else {
            &mut none
        };
        prefill.attend(layer, &b.q, &b.positions, &**store, team, out, mass);
    }

    /// Attention of a token that is written, or of candidates for it, to the rows that the
    /// selector chose. Candidates read what the likeliest of them, the first, chooses.
    fn read_rows(&mut self, layer: usize, pass: Pass) {
        let (team, b) = (&self.team, &mut self.b);
        let config = self.decoder.config();
        let dims = config.dims;
        let Policy::Roles {
            store, selector, ..
        } = &mut self.policy
        else {
            return;
        };
        let store = &**store;
        b.rows.all();
        if let Some(selector) = selector {
            let queries = &b.q[..dims.heads * dims.head_dim];
            b.ctx.bytes_read = 0;
            selector.select(layer, queries, store, &mut b.ctx, team, &mut b.rows);
            self.report.selector_bytes += b.ctx.bytes_read;
        }
        let (n, tried) = (b.positions.len(), &b.tried[layer]);
        let own = (pass == Pass::Candidates).then_some(OwnRows {
            keys: &tried.keys,
            values: &tried.read,
        });
        group(&b.q, n, &dims, &mut b.grouped);
        b.grouped_out.resize(b.grouped.len(), 0.0);
        let read = b.attention.attend(
            layer,
            &dims,
            &b.grouped,
            b.ctx.position,
            config.sliding_window[layer],
            store,
            &b.rows,
            own,
            team,
            &mut b.grouped_out,
        );
        let out = b.attended.fill(n, dims.heads * dims.head_dim);
        ungroup(&b.grouped_out, n, &dims, out);
        let (key, value) = store.row_bytes();
        self.report.row_bytes += read * (key + value);
    }
}

/// Makes room for rows that came since the last chunk.
fn grow_mass(mass: &mut Vec<f32>, kv_heads: usize, rows: usize) -> &mut [f32] {
    let old = mass.len() / kv_heads;
    if rows > old {
        let mut grown = vec![0.0; kv_heads * rows];
        for head in 0..kv_heads {
            let from = &mass[head * old..(head + 1) * old];
            grown[head * rows..head * rows + old].copy_from_slice(from);
        }
        *mass = grown;
    }
    mass
}

/// `[n, heads, head_dim]` to `[heads, n, head_dim]`: the rows of a head, and so those of a KV
/// head, follow each other.
fn group(q: &[f32], n: usize, dims: &Dims, out: &mut Vec<f32>) {
    let d = dims.head_dim;
    out.clear();
    for head in 0..dims.heads {
        for token in 0..n {
            let at = (token * dims.heads + head) * d;
            out.extend_from_slice(&q[at..at + d]);
        }
    }
}

/// The way back of [`group`].
fn ungroup(grouped: &[f32], n: usize, dims: &Dims, out: &mut [f32]) {
    let d = dims.head_dim;
    for (i, from) in grouped.chunks_exact(d).enumerate() {
        let (head, token) = (i / n, i % n);
        out[(token * dims.heads + head) * d..][..d].copy_from_slice(from);
    }
}
