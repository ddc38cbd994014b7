//! The scan of Mamba: a state of `N` numbers for every channel, with a decay of their own.
//!
//! Lanes are channels. Some tokens at a time are worked on, so that their `Δ`, `Δ x` and
//! results stay in the first cache; within them a state number is carried through all
//! tokens in a register. The exponential does not wait for it, so the multiply-add units
//! set the speed: one exponential for each token, channel and state number.

use std::ops::Range;

use super::{Rows, Shared, share};
use crate::Team;
use crate::activations::Silu;
use crate::vector::{Pair, Vector, simd};

/// Tokens that are worked on at a time.
pub(super) const BLOCK: usize = 64;

/// Channels that are worked on at a time: two registers, a line of the cache.
pub(super) const SLAB: usize = 16;

/// What a scan of Mamba reads: `L` tokens, `D` channels, `N` state numbers of each.
#[derive(Debug, Clone, Copy)]
pub struct Selective<'a> {
    /// Input, `[L, D]`.
    pub x: Rows<'a>,
    /// Length of the steps, at least 0, `[L, D]`.
    pub dt: Rows<'a>,
    /// Rate of the decay, at most 0, `[N, D]`.
    pub a: &'a [f32],
    /// What is written to the state, `[L, N]`.
    pub b: Rows<'a>,
    /// What is read from it, `[L, N]`.
    pub c: Rows<'a>,
    /// How much of the input goes past it, `[D]`.
    pub d: Option<&'a [f32]>,
}

impl<'a> Selective<'a> {
    /// Some of the tokens: of a padded sequence those that are no pads.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn tokens(&self, tokens: Range<usize>) -> Self {
        Self {
            x: self.x.part(tokens.clone()),
            dt: self.dt.part(tokens.clone()),
            b: self.b.part(tokens.clone()),
            c: self.c.part(tokens),
            ..*self
        }
    }

    /// `(L, D, N)`.
    #[track_caller]
    pub(super) fn shape(&self) -> (usize, usize, usize) {
        let (l, d, n) = (self.x.len(), self.x.width(), self.b.width());
        assert!(d > 0 && n > 0, "selective_scan: no channels or no state");
        assert_eq!(self.a.len(), n * d, "selective_scan: length of a");
        assert_eq!(self.c.width(), n, "selective_scan: width of c");
        assert_eq!(self.dt.width(), d, "selective_scan: width of dt");
        assert!(
            self.dt.len() == l && self.b.len() == l && self.c.len() == l,
            "selective_scan: a row of dt, b and c for each token"
        );
        if let Some(skip) = self.d {
            assert_eq!(skip.len(), d, "selective_scan: length of d");
        }
        (l, d, n)
    }
}

/// Fills `out` `[L, D]` and moves the state `[N, D]` (zeros before a text) on by `L` tokens;
/// one token is a step of decoding. With `gate` `[L, D]` results are multiplied by
/// `z sigmoid(z)`. What the team's size is does not matter to the result.
///
/// # Panics
/// When a shape does not fit.
pub fn selective_scan(
    inputs: &Selective,
    gate: Option<Rows>,
    state: &mut [f32],
    out: &mut [f32],
    team: &Team,
) {
    let (l, d, n) = inputs.shape();
    assert_eq!(state.len(), n * d, "selective_scan: length of state");
    assert_eq!(out.len(), l * d, "selective_scan: length of out");
    if let Some(gate) = gate {
        assert!(
            gate.len() == l && gate.width() == d,
            "selective_scan: shape of gate"
        );
    }
    let (state, out) = (Shared::new(state), Shared::new(out));
    let (slabs, parts) = (d.div_ceil(SLAB), team.threads());
    team.run(|part| {
        let own = share(slabs, part, parts);
        scan_slabs(inputs, gate, &state, &out, own);
    });
}

simd! {
    fn scan_slabs(inputs: &Selective, gate: Option<Rows>, state: &Shared, out: &Shared, slabs: Range<usize>) = scan_slabs_body;
}

/// All tokens of some slabs of channels. Nobody else works on these.
#[inline(always)]
pub(super) fn scan_slabs_body<V: Vector>(
    inputs: &Selective,
    gate: Option<Rows>,
    state: &Shared,
    out: &Shared,
    slabs: Range<usize>,
) {
    let (l, d, n) = inputs.shape();
    let mut tokens = TokenBlock::new(n);
    let mut lanes = LaneBlock::new();
    let mut sums = [0.0; BLOCK * SLAB];
    for first in (0..l).step_by(BLOCK) {
        let len = BLOCK.min(l - first);
        tokens.fill(inputs, first, len);
        for slab in slabs.clone() {
            let channels = slab * SLAB..(slab * SLAB + SLAB).min(d);
            lanes.fill(inputs, first, len, &channels);
            let sums = &mut sums[..len * SLAB];
            skip(sums, inputs, first, &channels);
            for i in 0..n {
                // SAFETY: the slab is ours alone by contract, and the part ends here.
                let h = unsafe { state.slice(i * d + channels.start, channels.len()) };
                let rate = Pair::<V>::load(&padded(&inputs.a[i * d..], &channels))
                    .mul(Pair::splat(std::f32::consts::LOG2_E));
                let last = carry::<Pair<V>>(
                    rate,
                    Pair::load(&padded(h, &(0..channels.len()))),
                    &lanes,
                    tokens.of_state(i, len),
                    sums,
                );
                let mut new = [0.0; SLAB];
                last.store(&mut new);
                h.copy_from_slice(&new[..channels.len()]);
            }
            if let Some(gate) = gate {
                let gate = lanes.stage(gate, first, len, &channels);
                crate::math::map::<Silu, Pair<V>>(gate);
                for (sum, gate) in sums.chunks_exact_mut(SLAB).zip(gate.chunks_exact(SLAB)) {
                    Pair::<V>::load(sum).mul(Pair::load(gate)).store(sum);
                }
            }
            for (t, sums) in sums.chunks_exact(SLAB).enumerate() {
                let at = (first + t) * d + channels.start;
                // SAFETY: as above.
                let out = unsafe { out.slice(at, channels.len()) };
                out.copy_from_slice(&sums[..channels.len()]);
            }
        }
    }
}

/// Carries a state number through the tokens of a block; gives it after the last.
#[inline(always)]
fn carry<V: Vector>(
    rate: V,
    mut h: V,
    lanes: &LaneBlock,
    (b, c): (&[f32], &[f32]),
    sums: &mut [f32],
) -> V {
    let dt = lanes.dt.chunks_exact(SLAB);
    let dx = lanes.dx.chunks_exact(SLAB);
    let sums = sums.chunks_exact_mut(SLAB);
    for ((((sum, dt), dx), &b), &c) in sums.zip(dt).zip(dx).zip(b).zip(c) {
        let decay = exp2(V::load(dt).mul(rate));
        h = h.mul(decay);
        h = V::load(dx).mul_add(V::splat(b), h);
        h.mul_add(V::splat(c), V::load(sum)).store(sum);
    }
    h
}

/// `2^y` for `y` of at most 127, relative error below 3e-7; `2^-126` below -126.
#[inline(always)]
pub(super) fn exp2<V: Vector>(y: V) -> V {
    // Adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let y = V::splat(-126.0).max(y);
    let shifted = y.add(V::splat(ROUND));
    let r = y.sub(shifted.sub(V::splat(ROUND)));
    // Cephes' polynomial for |r| <= 1/2.
    let mut p = V::splat(1.535_336_2e-4);
    for c in [
        1.339_887_4e-3,
        9.618_437e-3,
        5.550_332_5e-2,
        2.402_264_8e-1,
        6.931_472e-1,
        1.0,
    ] {
        p = p.mul_add(r, V::splat(c));
    }
    p.mul(shifted.shift_bits(127, 23))
}

/// `b` and `c` of a block, by state number.
pub(super) struct TokenBlock {
    /// `[N, BLOCK]` each.
    b: Vec<f32>,
    c: Vec<f32>,
}

impl TokenBlock {
    pub(super) fn new(n: usize) -> Self {
        Self {
            b: vec![0.0; n * BLOCK],
            c: vec![0.0; n * BLOCK],
        }
    }

    #[inline(always)]
    pub(super) fn fill(&mut self, inputs: &Selective, first: usize, len: usize) {
        for t in 0..len {
            let (b, c) = (inputs.b.row(first + t), inputs.c.row(first + t));
            for (n, (&b, &c)) in b.iter().zip(c).enumerate() {
                self.b[n * BLOCK + t] = b;
                self.c[n * BLOCK + t] = c;
            }
        }
    }

    #[inline(always)]
    pub(super) fn of_state(&self, n: usize, len: usize) -> (&[f32], &[f32]) {
        let range = n * BLOCK..n * BLOCK + len;
        (&self.b[range.clone()], &self.c[range])
    }
}

/// `Δ` and `Δ x` of a block and a slab; lanes beyond the last channel hold 0.
pub(super) struct LaneBlock {
    pub(super) dt: [f32; BLOCK * SLAB],
    pub(super) dx: [f32; BLOCK * SLAB],
    staged: [f32; BLOCK * SLAB],
}

impl LaneBlock {
    pub(super) fn new() -> Self {
        Self {
            dt: [0.0; BLOCK * SLAB],
            dx: [0.0; BLOCK * SLAB],
            staged: [0.0; BLOCK * SLAB],
        }
    }

    #[inline(always)]
    pub(super) fn fill(
        &mut self,
        inputs: &Selective,
        first: usize,
        len: usize,
        channels: &Range<usize>,
    ) {
        let lanes = self
            .dt
            .chunks_exact_mut(SLAB)
            .zip(self.dx.chunks_exact_mut(SLAB));
        for (t, (dt, dx)) in lanes.take(len).enumerate() {
            dt.copy_from_slice(&padded(inputs.dt.row(first + t), channels));
            let x = padded(inputs.x.row(first + t), channels);
            for ((dx, dt), x) in dx.iter_mut().zip(&*dt).zip(x) {
                *dx = dt * x;
            }
        }
    }

    /// What was staged last.
    #[inline(always)]
    pub(super) fn staged(&self) -> &[f32] {
        &self.staged
    }

    /// Some columns of other rows.
    #[inline(always)]
    pub(super) fn stage(
        &mut self,
        rows: Rows,
        first: usize,
        len: usize,
        channels: &Range<usize>,
    ) -> &mut [f32] {
        for (t, staged) in self.staged.chunks_exact_mut(SLAB).take(len).enumerate() {
            staged.copy_from_slice(&padded(rows.row(first + t), channels));
        }
        &mut self.staged[..len * SLAB]
    }
}

/// What goes past the state.
#[inline(always)]
fn skip(sums: &mut [f32], inputs: &Selective, first: usize, channels: &Range<usize>) {
    let Some(d) = inputs.d else {
        sums.fill(0.0);
        return;
    };
    let d = padded(d, channels);
    for (t, sums) in sums.chunks_exact_mut(SLAB).enumerate() {
        let x = padded(inputs.x.row(first + t), channels);
        for ((sum, x), d) in sums.iter_mut().zip(x).zip(d) {
            *sum = x * d;
        }
    }
}

/// Some numbers of a row, zeros behind them.
#[inline(always)]
pub(super) fn padded(row: &[f32], channels: &Range<usize>) -> [f32; SLAB] {
    let row = &row[channels.clone()];
    match row.first_chunk::<SLAB>() {
        Some(all) => *all,
        None => std::array::from_fn(|i| row.get(i).copied().unwrap_or(0.0)),
    }
}
