//! Gradients of the scan of Mamba.
//!
//! With `G` the gradient of the output and `g` that of the state, from the last token back:
//!
//! ```text
//! g += G_t C_t        dC_t = Σ_c G_t h_t        s = g h_{t-1} exp(Δ_t A)
//! dA += s Δ_t         dΔ_t = Σ_n s A + x_t Σ_n g B_t
//! dx_t = Δ_t Σ_n g B_t + D G_t                  dB_t = Σ_c g Δ_t x_t
//! g = exp(Δ_t A) g
//! ```
//!
//! Nothing is kept from the forward scan: states at the beginning of every block are made
//! once more, and those within a block when it is its turn.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::selective::{BLOCK, LaneBlock, SLAB, Selective, TokenBlock, exp2, padded};
use super::{Rows, Shared, SharedGradients, share};
use crate::Team;
use crate::vector::{Pair, Vector, simd};

/// Gradients of what a [`Selective`] reads, in its shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectiveGradients {
    /// Of the input, `[L, D]`.
    pub x: Vec<f32>,
    /// Of the steps, `[L, D]`.
    pub dt: Vec<f32>,
    /// Of the rates, `[N, D]`.
    pub a: Vec<f32>,
    /// `[L, N]`.
    pub b: Vec<f32>,
    /// `[L, N]`.
    pub c: Vec<f32>,
    /// `[D]`, zeros where nothing goes past the state.
    pub d: Vec<f32>,
}

/// Gradients from `dout` `[L, D]`, that of the output before a gate. `state` is the one
/// before the first token; `dstate` `[N, D]` holds the gradient of the state after the last
/// (zeros if nothing reads it) and afterwards that of `state`.
///
/// # Panics
/// When a shape does not fit.
pub fn selective_scan_backward(
    inputs: &Selective,
    state: &[f32],
    dout: &[f32],
    dstate: &mut [f32],
    team: &Team,
) -> SelectiveGradients {
    let (l, d, n) = inputs.shape();
    assert_eq!(state.len(), n * d, "selective_scan_backward: state");
    assert_eq!(dstate.len(), n * d, "selective_scan_backward: dstate");
    assert_eq!(dout.len(), l * d, "selective_scan_backward: dout");
    let mut out = SelectiveGradients {
        x: vec![0.0; l * d],
        dt: vec![0.0; l * d],
        a: vec![0.0; n * d],
        b: vec![0.0; l * n],
        c: vec![0.0; l * n],
        d: vec![0.0; d],
    };
    let (slabs, parts) = (d.div_ceil(SLAB), team.threads());
    // All channels share b and c: each thread has sums of its own.
    let sums: Vec<Mutex<[Vec<f32>; 2]>> = (0..parts).map(|_| Mutex::default()).collect();
    let shared = SharedGradients {
        x: Shared::new(&mut out.x),
        dt: Shared::new(&mut out.dt),
        a: Shared::new(&mut out.a),
        d: Shared::new(&mut out.d),
        state: Shared::new(dstate),
    };
    let dout = Rows::new(dout, d);
    team.run(|part| {
        let own = share(slabs, part, parts);
        let mut own_sums = [vec![0.0; l * n], vec![0.0; l * n]];
        backward_slabs(inputs, state, dout, &shared, &mut own_sums, own);
        *sums[part].lock().unwrap_or_else(PoisonError::into_inner) = own_sums;
    });
    for sums in sums {
        let [b, c] = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
        crate::add_assign(&mut out.b, &b);
        crate::add_assign(&mut out.c, &c);
    }
    out
}

simd! {
    fn backward_slabs(inputs: &Selective, state: &[f32], dout: Rows, out: &SharedGradients, sums: &mut [Vec<f32>; 2], slabs: Range<usize>) = backward_slabs_body;
}

/// All tokens of some slabs of channels. Nobody else works on these.
#[inline(always)]
pub(super) fn backward_slabs_body<V: Vector>(
    inputs: &Selective,
    state: &[f32],
    dout: Rows,
    out: &SharedGradients,
    sums: &mut [Vec<f32>; 2],
    slabs: Range<usize>,
) {
    let (l, d, n) = inputs.shape();
    let mut work = Work::new(n, l.min(BLOCK));
    // States before every block: [blocks, slabs, N, SLAB].
    let starts = starts::<V>(inputs, state, &mut work, slabs.clone());
    for first in (0..l).step_by(BLOCK).rev() {
        let len = BLOCK.min(l - first);
        work.tokens.fill(inputs, first, len);
        work.db.fill(0.0);
        work.dc.fill(0.0);
        for (place, slab) in slabs.clone().enumerate() {
            let channels = slab * SLAB..(slab * SLAB + SLAB).min(d);
            work.lanes.fill(inputs, first, len, &channels);
            work.lanes.stage(dout, first, len, &channels);
            work.sb[..len * SLAB].fill(0.0);
            work.sa[..len * SLAB].fill(0.0);
            let begin = (first / BLOCK * slabs.len() + place) * n;
            for i in 0..n {
                let start = &starts[(begin + i) * SLAB..][..SLAB];
                // SAFETY: the slab is ours alone by contract, and the parts end here.
                let [da, dh] = unsafe {
                    [&out.a, &out.state].map(|x| x.slice(i * d + channels.start, channels.len()))
                };
                let rate = padded(&inputs.a[i * d..], &channels);
                back::<Pair<V>>(&mut work, i, len, &rate, start, da, dh);
            }
            work.finish(inputs, dout, out, first, len, &channels);
        }
        for (sums, lanes) in sums.iter_mut().zip([&work.db, &work.dc]) {
            for t in 0..len {
                for i in 0..n {
                    let lanes = &lanes[(i * work.block + t) * SLAB..][..SLAB];
                    sums[(first + t) * n + i] = Pair::<V>::load(lanes).sum();
                }
            }
        }
    }
}

/// Room for a block.
struct Work {
    tokens: TokenBlock,
    lanes: LaneBlock,
    /// Tokens of the longest block: all of a short text.
    block: usize,
    /// States before each token and decays, `[BLOCK, SLAB]`.
    h: [f32; BLOCK * SLAB],
    decay: [f32; BLOCK * SLAB],
    /// `Σ_n g B` and `Σ_n s A`.
    sb: [f32; BLOCK * SLAB],
    sa: [f32; BLOCK * SLAB],
    /// Gradients of b and c, `[N, block, SLAB]`.
    db: Vec<f32>,
    dc: Vec<f32>,
}

impl Work {
    fn new(n: usize, block: usize) -> Self {
        Self {
            tokens: TokenBlock::new(n),
            lanes: LaneBlock::new(),
            block,
            h: [0.0; BLOCK * SLAB],
            decay: [0.0; BLOCK * SLAB],
            sb: [0.0; BLOCK * SLAB],
            sa: [0.0; BLOCK * SLAB],
            db: vec![0.0; n * block * SLAB],
            dc: vec![0.0; n * block * SLAB],
        }
    }

    /// Writes the gradients of x, dt and d for a slab.
    #[inline(always)]
    fn finish(
        &self,
        inputs: &Selective,
        dout: Rows,
        out: &SharedGradients,
        first: usize,
        len: usize,
        channels: &Range<usize>,
    ) {
        let d = inputs.x.width();
        let width = channels.len();
        let skip = inputs.d.map_or([0.0; SLAB], |d| padded(d, channels));
        // SAFETY: the slab is ours alone by contract, and the parts end here.
        let dd = unsafe { out.d.slice(channels.start, width) };
        for t in 0..len {
            let at = (first + t) * d + channels.start;
            let x = padded(inputs.x.row(first + t), channels);
            let dy = padded(dout.row(first + t), channels);
            // SAFETY: as above.
            let [dx, ddt] = unsafe { [&out.x, &out.dt].map(|o| o.slice(at, width)) };
            for c in 0..width {
                let lane = t * SLAB + c;
                dx[c] = self.lanes.dt[lane] * self.sb[lane] + skip[c] * dy[c];
                ddt[c] = self.sa[lane] + x[c] * self.sb[lane];
                if inputs.d.is_some() {
                    dd[c] += dy[c] * x[c];
                }
            }
        }
    }
}

/// States before every block.
#[inline(always)]
fn starts<V: Vector>(
    inputs: &Selective,
    state: &[f32],
    work: &mut Work,
    slabs: Range<usize>,
) -> Vec<f32> {
    let (l, d, n) = inputs.shape();
    let row = slabs.len() * n * SLAB;
    let mut all = vec![0.0; l.div_ceil(BLOCK) * row];
    for (place, slab) in slabs.enumerate() {
        let channels = slab * SLAB..(slab * SLAB + SLAB).min(d);
        for i in 0..n {
            let h = padded(&state[i * d..], &channels);
            let at = (place * n + i) * SLAB;
            // There is no block in an empty text.
            if let Some(first) = all.get_mut(at..at + SLAB) {
                first.copy_from_slice(&h);
            }
        }
        for first in (0..l.saturating_sub(BLOCK)).step_by(BLOCK) {
            work.tokens.fill(inputs, first, BLOCK);
            work.lanes.fill(inputs, first, BLOCK, &channels);
            for i in 0..n {
                let at = first / BLOCK * row + (place * n + i) * SLAB;
                let rate = padded(&inputs.a[i * d..], &channels);
                let h = forward::<Pair<V>>(work, i, BLOCK, &rate, &all[at..][..SLAB]);
                h.store(&mut all[at + row..]);
            }
        }
    }
    all
}

/// Carries a state number through a block and notes it before each token, and the decays.
#[inline(always)]
fn forward<V: Vector>(work: &mut Work, n: usize, len: usize, rate: &[f32], start: &[f32]) -> V {
    let rate = V::load(rate).mul(V::splat(std::f32::consts::LOG2_E));
    let mut h = V::load(start);
    let (b, _) = work.tokens.of_state(n, len);
    for (t, &b) in b.iter().enumerate() {
        let lane = t * SLAB;
        h.store(&mut work.h[lane..]);
        let decay = exp2(V::load(&work.lanes.dt[lane..]).mul(rate));
        decay.store(&mut work.decay[lane..]);
        h = h.mul(decay);
        h = V::load(&work.lanes.dx[lane..]).mul_add(V::splat(b), h);
    }
    h
}

/// Goes back through a block with one state number.
#[inline(always)]
fn back<V: Vector>(
    work: &mut Work,
    n: usize,
    len: usize,
    rate: &[f32],
    start: &[f32],
    da: &mut [f32],
    dh: &mut [f32],
) {
    forward::<V>(work, n, len, rate, start);
    let rate = V::load(rate);
    let width = dh.len();
    let mut g = V::load(&padded(dh, &(0..width)));
    let mut sum_a = V::load(&padded(da, &(0..width)));
    let (b, c) = work.tokens.of_state(n, len);
    for t in (0..len).rev() {
        let lane = t * SLAB;
        let (b, c) = (V::splat(b[t]), V::splat(c[t]));
        let dy = V::load(&work.lanes.staged()[lane..]);
        let (dt, dx) = (
            V::load(&work.lanes.dt[lane..]),
            V::load(&work.lanes.dx[lane..]),
        );
        let (before, decay) = (V::load(&work.h[lane..]), V::load(&work.decay[lane..]));
        let after = dx.mul_add(b, before.mul(decay));
        g = dy.mul_add(c, g);
        let own = (n * work.block + t) * SLAB;
        add::<V>(&mut work.dc[own..], dy.mul(after));
        add::<V>(&mut work.db[own..], g.mul(dx));
        add::<V>(&mut work.sb[lane..], g.mul(b));
        g = g.mul(decay);
        let s = g.mul(before);
        add::<V>(&mut work.sa[lane..], s.mul(rate));
        sum_a = s.mul_add(dt, sum_a);
    }
    let mut all = [0.0; SLAB];
    g.store(&mut all);
    dh.copy_from_slice(&all[..width]);
    sum_a.store(&mut all);
    da.copy_from_slice(&all[..width]);
}

#[inline(always)]
fn add<V: Vector>(to: &mut [f32], x: V) {
    V::load(to).add(x).store(to);
}
