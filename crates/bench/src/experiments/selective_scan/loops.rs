//! The scan of Mamba in the order in which small programs compute it, one number after the
//! other, to compare with. Channels are shared by threads, and each walks through all tokens.
//!
//! Exponentials are those of the standard library. Step sizes come after their softplus, as our
//! own scan has them.

use std::ops::Range;

use keyfold_kernels::scan::Selective;

/// What a loop reads, with the rates as these programs store them.
pub(super) struct Plain<'a> {
    inputs: &'a Selective<'a>,
    /// `[channels, states]`.
    a: Vec<f32>,
    tokens: usize,
    channels: usize,
    states: usize,
}

/// Gives `[tokens, own channels]`.
pub(super) type Loop = fn(&Plain, Range<usize>) -> Vec<f32>;

/// By whose order.
pub(super) const LOOPS: [(&str, Loop); 2] = [
    ("loops as in llama.cpp", by_channel),
    ("loops as in mamba.c", by_matrix),
];

impl<'a> Plain<'a> {
    pub(super) fn new(inputs: &'a Selective<'a>) -> Self {
        let (channels, states) = (inputs.x.width(), inputs.b.width());
        let at = |i: usize| inputs.a[i % states * channels + i / states];
        Self {
            inputs,
            a: (0..channels * states).map(at).collect(),
            tokens: inputs.x.len(),
            channels,
            states,
        }
    }

    /// The results of each thread's channels.
    pub(super) fn run(&self, work: Loop, threads: usize) -> Vec<(Range<usize>, Vec<f32>)> {
        let share = |part: usize| self.channels * part / threads;
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..threads)
                .map(|part| {
                    let own = share(part)..share(part + 1);
                    let job = own.clone();
                    (own, scope.spawn(move || work(self, job)))
                })
                .collect();
            let ended = started.into_iter();
            ended
                .map(|(own, job)| (own, job.join().unwrap_or_default()))
                .collect()
        })
    }

    /// How far results are from `[tokens, channels]` at most; infinite where some are missing.
    pub(super) fn distance(&self, found: &[(Range<usize>, Vec<f32>)], others: &[f32]) -> f32 {
        let mut far = 0.0f32;
        for (own, found) in found {
            if found.len() != self.tokens * own.len() {
                return f32::INFINITY;
            }
            let rows = found.chunks_exact(own.len().max(1));
            for (row, others) in rows.zip(others.chunks_exact(self.channels)) {
                let pairs = row.iter().zip(&others[own.clone()]);
                far = pairs.fold(far, |far, (a, b)| far.max((a - b).abs()));
            }
        }
        far
    }

    /// What goes past the state.
    fn skip(&self, channel: usize) -> f32 {
        self.inputs.d.map_or(0.0, |d| d[channel])
    }
}

/// Token after token, in it channel after channel, in it one state number after the other.
fn by_channel(plain: &Plain, own: Range<usize>) -> Vec<f32> {
    let n = plain.states;
    let mut state = vec![0.0f32; own.len() * n];
    let mut out = Vec::with_capacity(plain.tokens * own.len());
    for t in 0..plain.tokens {
        let (b, c) = (plain.inputs.b.row(t), plain.inputs.c.row(t));
        let (xs, dts) = (plain.inputs.x.row(t), plain.inputs.dt.row(t));
        for (channel, state) in own.clone().zip(state.chunks_exact_mut(n)) {
            let (x, dt) = (xs[channel], dts[channel]);
            let written = x * dt;
            let a = &plain.a[channel * n..][..n];
            let mut y = plain.skip(channel) * x;
            for (((h, a), b), c) in state.iter_mut().zip(a).zip(b).zip(c) {
                *h = *h * (dt * a).exp() + b * written;
                y += *h * c;
            }
            out.push(y);
        }
    }
    out
}

/// Token after token, each step of the formula for all channels before the next one.
fn by_matrix(plain: &Plain, own: Range<usize>) -> Vec<f32> {
    let n = plain.states;
    let numbers = own.len() * n;
    let rates = &plain.a[own.start * n..][..numbers];
    let [mut state, mut decay, mut write] = [(); 3].map(|()| vec![0.0f32; numbers]);
    let mut out = Vec::with_capacity(plain.tokens * own.len());
    for t in 0..plain.tokens {
        let (b, c) = (plain.inputs.b.row(t), plain.inputs.c.row(t));
        let x = &plain.inputs.x.row(t)[own.clone()];
        let dt = &plain.inputs.dt.row(t)[own.clone()];
        let decays = decay.chunks_exact_mut(n).zip(rates.chunks_exact(n));
        for ((decay, rates), dt) in decays.zip(dt) {
            let each = decay.iter_mut().zip(rates);
            each.for_each(|(decay, rate)| *decay = (dt * rate).exp());
        }
        for ((write, x), dt) in write.chunks_exact_mut(n).zip(x).zip(dt) {
            let each = write.iter_mut().zip(b);
            each.for_each(|(write, b)| *write = dt * b * x);
        }
        for ((h, decay), write) in state.iter_mut().zip(&decay).zip(&write) {
            *h = *h * decay + write;
        }
        for ((channel, state), x) in own.clone().zip(state.chunks_exact(n)).zip(x) {
            let read: f32 = state.iter().zip(c).map(|(h, c)| h * c).sum();
            out.push(read + plain.skip(channel) * x);
        }
    }
    out
}
