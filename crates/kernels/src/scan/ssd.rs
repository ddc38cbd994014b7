//! The scan of Mamba-2: a matrix as state for every head, with one decay.
//!
//! A prompt is read in chunks of `q` tokens, each by matrix products. With
//! `l_i = Σ_{t<=i} Δ_t A` in the chunk, `X_i = Δ_i x_i` and `S` the state before it:
//!
//! ```text
//! M_ij = exp(l_i - l_j) (C_i · B_j) for i >= j, else 0
//! Y    = M X + exp(l) C Sᵀ
//! S    = exp(l_q) S + Xᵀ exp(l_q - l) B
//! ```
//!
//! `C_i · B_j` is the same for all heads of a group. A few tokens are read by the recurrence.

use std::ops::Range;

use super::tiles::{Left, Right, Tiles, add_products, cover, single_product, transpose};
use super::{Rows, Shared, share};
use crate::Team;
use crate::vector::{Eight, Vector, simd};

/// Tokens of a chunk that suit the caches of a processor.
pub const SSD_CHUNK: usize = 64;

/// Fewer tokens are read one by one.
const FEW: usize = 12;

/// What a scan of Mamba-2 reads: `L` tokens, `H` heads of `P` channels, `G` groups of heads,
/// `N` state numbers of each channel.
#[derive(Debug, Clone, Copy)]
pub struct Ssd<'a> {
    /// Input, `[L, H P]`.
    pub x: Rows<'a>,
    /// Length of the steps, at least 0, `[L, H]`.
    pub dt: Rows<'a>,
    /// Rate of the decay, at most 0, `[H]`.
    pub a: &'a [f32],
    /// What is written to the state, `[L, G N]`; head `h` is of group `h / (H / G)`.
    pub b: Rows<'a>,
    /// What is read from it, `[L, G N]`.
    pub c: Rows<'a>,
    /// How much of the input goes past it, `[H]` or `[H P]`.
    pub d: Option<&'a [f32]>,
    /// `G`.
    pub groups: usize,
}

/// Sizes of an [`Ssd`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SsdShape {
    pub(super) len: usize,
    pub(super) heads: usize,
    pub(super) width: usize,
    pub(super) groups: usize,
    pub(super) states: usize,
}

impl<'a> Ssd<'a> {
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

    #[track_caller]
    pub(super) fn shape(&self) -> SsdShape {
        let (len, heads, groups) = (self.x.len(), self.a.len(), self.groups);
        assert!(heads > 0 && groups > 0, "ssd_scan: no heads or no groups");
        assert!(
            heads.is_multiple_of(groups) && self.x.width().is_multiple_of(heads),
            "ssd_scan: heads divide into groups, and channels into heads"
        );
        assert!(
            self.b.width().is_multiple_of(groups),
            "ssd_scan: width of b"
        );
        assert_eq!(self.c.width(), self.b.width(), "ssd_scan: width of c");
        assert_eq!(self.dt.width(), heads, "ssd_scan: width of dt");
        assert!(
            self.dt.len() == len && self.b.len() == len && self.c.len() == len,
            "ssd_scan: a row of dt, b and c for each token"
        );
        let shape = SsdShape {
            len,
            heads,
            width: self.x.width() / heads,
            groups,
            states: self.b.width() / groups,
        };
        assert!(
            shape.width > 0 && shape.states > 0,
            "ssd_scan: no channels or no state"
        );
        if let Some(d) = self.d {
            assert!(
                d.len() == heads || d.len() == self.x.width(),
                "ssd_scan: length of d"
            );
        }
        shape
    }

    /// `x`, `b` and `c` of a head.
    pub(super) fn head(&self, shape: SsdShape, head: usize) -> [Rows<'a>; 3] {
        let group = head / (shape.heads / shape.groups);
        let states = group * shape.states..(group + 1) * shape.states;
        let channels = head * shape.width..(head + 1) * shape.width;
        [
            self.x.narrow(channels),
            self.b.narrow(states.clone()),
            self.c.narrow(states),
        ]
    }

    /// `d` of a head's channel.
    pub(super) fn skip(&self, shape: SsdShape, head: usize, channel: usize) -> f32 {
        match self.d {
            None => 0.0,
            Some(d) if d.len() == shape.heads => d[head],
            Some(d) => d[head * shape.width + channel],
        }
    }
}

/// Fills `out` `[L, H P]` and moves the state `[H, P, N]` (zeros before a text) on by `L`
/// tokens, `chunk` of them at a time; one token is a step of decoding. What the team's size
/// is does not matter to the result.
///
/// # Panics
/// When a shape does not fit or `chunk` is 0.
pub fn ssd_scan(inputs: &Ssd, chunk: usize, state: &mut [f32], out: &mut [f32], team: &Team) {
    let shape = inputs.shape();
    let per_head = shape.width * shape.states;
    assert!(chunk > 0, "ssd_scan: chunks of no tokens");
    assert_eq!(state.len(), shape.heads * per_head, "ssd_scan: state");
    assert_eq!(
        out.len(),
        shape.len * shape.heads * shape.width,
        "ssd_scan: length of out"
    );
    let (state, out) = (Shared::new(state), Shared::new(out));
    let parts = team.threads();
    team.run(|part| {
        let own = share(shape.heads, part, parts);
        // SAFETY: shares of heads do not overlap.
        let states = unsafe { state.slice(own.start * per_head, own.len() * per_head) };
        if shape.len < FEW {
            recur(inputs, states, &out, own);
        } else {
            chunks(inputs, chunk, states, &out, own);
        }
    });
}

/// Decays within a chunk.
#[derive(Debug, Default)]
pub(super) struct Decays {
    /// `Δ`.
    pub(super) steps: Vec<f32>,
    /// `l`; in `f64`, since differences of large sums are needed.
    sums: Vec<f64>,
    /// `exp(l_i)`.
    pub(super) from_start: Vec<f32>,
    /// `exp(l_q - l_i)`.
    pub(super) to_end: Vec<f32>,
    /// `exp(l_q)`.
    pub(super) whole: f32,
}

impl Decays {
    pub(super) fn fill(&mut self, dt: Rows, head: usize, rate: f32) {
        self.steps.clear();
        self.steps.extend((0..dt.len()).map(|t| dt.row(t)[head]));
        self.sums.clear();
        let mut sum = 0.0;
        for step in &self.steps {
            sum += f64::from(*step) * f64::from(rate);
            self.sums.push(sum);
        }
        self.from_start.clear();
        self.from_start.extend(self.sums.iter().map(|l| *l as f32));
        crate::exp(&mut self.from_start);
        self.to_end.clear();
        self.to_end
            .extend(self.sums.iter().map(|l| (sum - l) as f32));
        crate::exp(&mut self.to_end);
        self.whole = sum.exp() as f32;
    }

    /// `exp(l_i - l_j)` `[q, q]`, 0 above the diagonal. Differences above it are not even
    /// made: they may overflow.
    pub(super) fn between(&self, out: &mut [f32]) {
        let q = self.sums.len();
        for (i, row) in out.chunks_exact_mut(q).enumerate() {
            let (below, above) = row.split_at_mut(i + 1);
            let at = self.sums[i];
            for (x, l) in below.iter_mut().zip(&self.sums) {
                *x = (at - l) as f32;
            }
            crate::exp(below);
            above.fill(0.0);
        }
    }
}

simd! {
    fn chunks(inputs: &Ssd, chunk: usize, states: &mut [f32], out: &Shared, heads: Range<usize>) = chunks_body;
}

/// Prompts: chunk by chunk, head by head. `states` are those of the heads. A state lies
/// transposed meanwhile, `[N, P]`, so that rows of all right factors lie one after the other.
#[inline(always)]
pub(super) fn chunks_body<V: Eight>(
    inputs: &Ssd,
    chunk: usize,
    states: &mut [f32],
    out: &Shared,
    heads: Range<usize>,
) {
    let shape = inputs.shape();
    let SsdShape {
        len,
        width,
        states: n,
        ..
    } = shape;
    let per_group = shape.heads / shape.groups;
    let q = chunk.min(len);
    let (mut gram, mut m, mut xs) = (vec![0.0; q * q], vec![0.0; q * q], vec![0.0; q * width]);
    let (mut by_state, mut cs) = (vec![0.0; q * n], vec![0.0; q * n]);
    let mut turned = vec![0.0; states.len()];
    let mut decays = Decays::default();
    let per_head = width * n;
    for (to, from) in turned
        .chunks_exact_mut(per_head)
        .zip(states.chunks_exact(per_head))
    {
        transpose(to, from, n, width, n);
    }
    for first in (0..len).step_by(chunk) {
        let part = inputs.tokens(first..(first + chunk).min(len));
        let q = part.x.len();
        let (gram, m) = (&mut gram[..q * q], &mut m[..q * q]);
        let xs = &mut xs[..q * width];
        let mut group = usize::MAX;
        for (head, state) in heads.clone().zip(turned.chunks_exact_mut(per_head)) {
            let [x, b, c] = part.head(shape, head);
            if head / per_group != group {
                group = head / per_group;
                // Rows far apart would crowd in few places of the cache.
                transpose(&mut by_state[..q * n], b.numbers, b.step, q, n);
                scaled(&mut cs[..q * n], c, |_| 1.0);
                let mut products = Gram {
                    out: gram,
                    c: left(&cs, n),
                    b: right(&by_state, q),
                    q,
                    depth: n,
                };
                cover::<V, _>(&mut products, q, q);
            }
            decays.fill(part.dt, head, part.a[head]);
            decays.between(m);
            for (i, (m, gram)) in m.chunks_exact_mut(q).zip(gram.chunks_exact(q)).enumerate() {
                for ((m, g), dt) in m[..=i].iter_mut().zip(gram).zip(&decays.steps) {
                    *m *= g * dt;
                }
            }
            scaled(xs, x, |_| 1.0);
            let mut results = Results {
                out,
                at: first * shape.heads * width + head * width,
                step: shape.heads * width,
                m: left(m, q),
                x: right(xs, width),
                c: left(&cs, n),
                state: right(state, width),
                from_start: &decays.from_start,
                skip: match part.d {
                    None => Skip::None,
                    Some(d) if d.len() == shape.heads => Skip::Head(d[head]),
                    Some(d) => Skip::Channels(&d[head * width..][..width]),
                },
                depth: n,
            };
            cover::<V, _>(&mut results, q, width);
            for ((xs, dt), w) in xs
                .chunks_exact_mut(width)
                .zip(&decays.steps)
                .zip(&decays.to_end)
            {
                xs.iter_mut().for_each(|x| *x *= dt * w);
            }
            let mut written = Written {
                state,
                decay: decays.whole,
                b: left(&by_state, q),
                xs: right(xs, width),
                q,
                width,
            };
            cover::<V, _>(&mut written, n, width);
        }
    }
    for (to, from) in states
        .chunks_exact_mut(per_head)
        .zip(turned.chunks_exact(per_head))
    {
        transpose(to, from, width, n, width);
    }
}

/// A matrix with rows of `width` as a left factor.
fn left(numbers: &[f32], width: usize) -> Left<'_> {
    Left {
        numbers,
        row: width,
    }
}

fn right(numbers: &[f32], width: usize) -> Right<'_> {
    Right {
        numbers,
        row: width,
    }
}

/// `C · Bᵀ` up to the diagonal, whole tiles of it.
struct Gram<'a> {
    /// `[q, q]`.
    out: &'a mut [f32],
    c: Left<'a>,
    /// `[N, q]`.
    b: Right<'a>,
    q: usize,
    depth: usize,
}

impl Tiles for Gram<'_> {
    #[inline(always)]
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, column: usize) {
        let mut sums = [[V::splat(0.0); C]; R];
        add_products(&mut sums, (self.c, row), (self.b, column), self.depth);
        for (r, sums) in sums.iter().enumerate() {
            let out = &mut self.out[(row + r) * self.q + column..][..C * V::LEN];
            for (sum, out) in sums.iter().zip(out.chunks_exact_mut(V::LEN)) {
                sum.store(out);
            }
        }
    }

    #[inline(always)]
    fn single(&mut self, row: usize, column: usize) {
        self.out[row * self.q + column] =
            single_product((self.c, row), (self.b, column), self.depth);
    }

    #[inline(always)]
    fn first_row(&self, column: usize) -> usize {
        column
    }
}

/// What goes past the state of a head.
enum Skip<'a> {
    None,
    Head(f32),
    Channels(&'a [f32]),
}

/// `exp(l) C Sᵀ + M X + D X`.
struct Results<'a> {
    out: &'a Shared<'a>,
    /// Where the first row lies in the output, and how far apart rows are.
    at: usize,
    step: usize,
    /// With the length of each step in its columns.
    m: Left<'a>,
    x: Right<'a>,
    c: Left<'a>,
    /// `[N, P]`.
    state: Right<'a>,
    from_start: &'a [f32],
    skip: Skip<'a>,
    depth: usize,
}

impl Tiles for Results<'_> {
    #[inline(always)]
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, column: usize) {
        let mut sums = [[V::splat(0.0); C]; R];
        add_products(&mut sums, (self.c, row), (self.state, column), self.depth);
        for (r, sums) in sums.iter_mut().enumerate() {
            let factor = V::splat(self.from_start[row + r]);
            for sum in sums {
                *sum = sum.mul(factor);
            }
        }
        // Above the diagonal there is nothing.
        add_products(&mut sums, (self.m, row), (self.x, column), row + R);
        for (r, sums) in sums.iter().enumerate() {
            let x = &self.x.numbers[(row + r) * self.x.row + column..];
            // SAFETY: heads are shared out among threads, and this one is ours.
            let out = unsafe {
                self.out
                    .slice(self.at + (row + r) * self.step + column, C * V::LEN)
            };
            for (c, sum) in sums.iter().enumerate() {
                let x = V::load(&x[c * V::LEN..]);
                let sum = match self.skip {
                    Skip::None => *sum,
                    Skip::Head(d) => x.mul_add(V::splat(d), *sum),
                    Skip::Channels(d) => x.mul_add(V::load(&d[column + c * V::LEN..]), *sum),
                };
                sum.store(&mut out[c * V::LEN..]);
            }
        }
    }

    #[inline(always)]
    fn single(&mut self, row: usize, column: usize) {
        let read = single_product((self.c, row), (self.state, column), self.depth);
        let sum =
            read * self.from_start[row] + single_product((self.m, row), (self.x, column), row + 1);
        let d = match self.skip {
            Skip::None => 0.0,
            Skip::Head(d) => d,
            Skip::Channels(d) => d[column],
        };
        // SAFETY: as above.
        let out = unsafe { self.out.slice(self.at + row * self.step + column, 1) };
        out[0] = sum + d * self.x.numbers[row * self.x.row + column];
    }

    #[inline(always)]
    fn first_row(&self, _: usize) -> usize {
        0
    }
}

/// `S = exp(l_q) S + Bᵀ X`, with the state `[N, P]`.
struct Written<'a> {
    state: &'a mut [f32],
    decay: f32,
    /// `[N, q]`.
    b: Left<'a>,
    /// `X` times what is left of it at the end, `[q, P]`.
    xs: Right<'a>,
    q: usize,
    width: usize,
}

impl Tiles for Written<'_> {
    #[inline(always)]
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, column: usize) {
        let mut sums = [[V::splat(0.0); C]; R];
        let decay = V::splat(self.decay);
        for (r, sums) in sums.iter_mut().enumerate() {
            let state = &self.state[(row + r) * self.width + column..][..C * V::LEN];
            for (sum, state) in sums.iter_mut().zip(state.chunks_exact(V::LEN)) {
                *sum = V::load(state).mul(decay);
            }
        }
        add_products(&mut sums, (self.b, row), (self.xs, column), self.q);
        for (r, sums) in sums.iter().enumerate() {
            let state = &mut self.state[(row + r) * self.width + column..][..C * V::LEN];
            for (sum, state) in sums.iter().zip(state.chunks_exact_mut(V::LEN)) {
                sum.store(state);
            }
        }
    }

    #[inline(always)]
    fn single(&mut self, row: usize, column: usize) {
        let sum = single_product((self.b, row), (self.xs, column), self.q);
        let state = &mut self.state[row * self.width + column];
        *state = *state * self.decay + sum;
    }

    #[inline(always)]
    fn first_row(&self, _: usize) -> usize {
        0
    }
}

/// Rows times a factor each.
pub(super) fn scaled(out: &mut [f32], rows: Rows, factor: impl Fn(usize) -> f32) {
    for (t, out) in out.chunks_exact_mut(rows.width()).enumerate() {
        let factor = factor(t);
        for (out, x) in out.iter_mut().zip(rows.row(t)) {
            *out = factor * x;
        }
    }
}

simd! {
    fn recur(inputs: &Ssd, states: &mut [f32], out: &Shared, heads: Range<usize>) = recur_body;
}

/// Token by token. `states` are those of the heads.
#[inline(always)]
pub(super) fn recur_body<V: Eight>(
    inputs: &Ssd,
    states: &mut [f32],
    out: &Shared,
    heads: Range<usize>,
) {
    let shape = inputs.shape();
    let SsdShape {
        width, states: n, ..
    } = shape;
    for (head, state) in heads.zip(states.chunks_exact_mut(width * n)) {
        let [x, b, c] = inputs.head(shape, head);
        for t in 0..shape.len {
            let dt = inputs.dt.row(t)[head];
            let decay = (dt * inputs.a[head]).exp();
            let (b, c) = (b.row(t), c.row(t));
            // SAFETY: the head is ours alone by contract, and the part ends here.
            let out = unsafe { out.slice((t * shape.heads + head) * width, width) };
            let channels = out.iter_mut().zip(x.row(t)).enumerate();
            for ((p, (out, &x)), state) in channels.zip(state.chunks_exact_mut(n)) {
                let y = write_and_read::<V>(state, decay, dt * x, b, c);
                *out = y + inputs.skip(shape, head, p) * x;
            }
        }
    }
}

/// `state = decay state + x b`; gives `state · c`.
#[inline(always)]
fn write_and_read<V: Eight>(state: &mut [f32], decay: f32, x: f32, b: &[f32], c: &[f32]) -> f32 {
    let (whole, written) = (state.len() - state.len() % V::LEN, V::splat(x));
    let mut sum = V::splat(0.0);
    for i in (0..whole).step_by(V::LEN) {
        let s = V::load(&state[i..]).mul(V::splat(decay));
        let s = V::load(&b[i..]).mul_add(written, s);
        s.store(&mut state[i..]);
        sum = s.mul_add(V::load(&c[i..]), sum);
    }
    let mut y = sum.sum();
    for i in whole..state.len() {
        state[i] = state[i] * decay + x * b[i];
        y += state[i] * c[i];
    }
    y
}
