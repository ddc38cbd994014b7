//! Layers of Mamba with a gradient of their own, in the place of a [small
//! transformer](crate::small_transformer).
//!
//! A. Gu and T. Dao, 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces.
//! A block is `out = x + Mamba(RMS(x))`, and a last norm follows all blocks; with `Di = 2 · width`
//! channels, `N = 16` numbers of a state and `R = width / 16`, the authors' defaults:
//!
//! ```text
//! x, z = W_in u                  x = silu(conv(x))
//! δ, B, C = W_x x                Δ = softplus(W_dt δ + b_dt)      A = -exp(A_log)
//! out = W_out (scan(x, Δ, A, B, C, D) silu(z))
//! ```
//!
//! Shapes: states `[sequences · length, width]`. Cost of a step: six times the weights for each token.
//! Without a tensor framework for the reason that the small transformer has none; the layer of
//! `keyfold-nn`, which has one, is held against the same fixture.

use std::ops::Range;

use keyfold_kernels as kernels;
use keyfold_kernels::Team;
use keyfold_kernels::learn::{rms_backward, rms_forward, silu_mul_backward};
use keyfold_kernels::scan::{CausalConv, Rows, Selective, selective_scan, selective_scan_backward};
use rand::Rng;
use rand::rngs::StdRng;

use crate::InspectError;
use crate::small_transformer::{Layout, Linear, draw};

const EPSILON: f32 = 1e-5;

/// Sizes of the blocks; the authors' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MambaConfig {
    /// Numbers of a state.
    pub d_model: usize,
    /// `N`.
    pub d_state: usize,
    /// Width of the convolution.
    pub d_conv: usize,
    /// `Di / d_model`.
    pub expand: usize,
    /// `R`.
    pub dt_rank: usize,
    /// Number of blocks.
    pub n_layer: usize,
}

impl MambaConfig {
    pub(crate) fn new(d_model: usize, n_layer: usize) -> Result<Self, InspectError> {
        match d_model * n_layer {
            0 => Err(InspectError::settings(
                "Mamba needs states and layers, each at least 1",
            )),
            _ => Ok(Self {
                d_model,
                d_state: 16,
                d_conv: 4,
                expand: 2,
                dt_rank: d_model.div_ceil(16),
                n_layer,
            }),
        }
    }

    /// `Di`.
    fn channels(&self) -> usize {
        self.expand * self.d_model
    }
}

/// The part of a block that mixes tokens.
#[derive(Debug, Clone)]
struct Mixer {
    config: MambaConfig,
    in_proj: Linear,
    /// `[Di, d_conv]`
    conv: Range<usize>,
    conv_bias: Range<usize>,
    x_proj: Linear,
    dt_proj: Linear,
    /// `[Di, N]`
    a_log: Range<usize>,
    d: Range<usize>,
    out_proj: Linear,
}

/// What a mixer keeps for its gradient.
struct MixerTrace {
    /// What it reads.
    u: Vec<f32>,
    /// `x` and `z`, `[tokens, 2 Di]`.
    xz: Vec<f32>,
    /// After the convolution, before and after its `silu`, `[tokens, Di]`.
    mixed: Vec<f32>,
    x: Vec<f32>,
    /// `δ`, `B`, `C`, `[tokens, R + 2 N]`.
    chosen: Vec<f32>,
    low: Vec<f32>,
    /// Before and after softplus, `[tokens, Di]`.
    raw: Vec<f32>,
    dt: Vec<f32>,
    /// After the scan, and with the gate.
    y: Vec<f32>,
    gated: Vec<f32>,
}

impl Mixer {
    fn new(config: MambaConfig, layout: &mut Layout) -> Self {
        let (d, di) = (config.d_model, config.channels());
        let (n, rank) = (config.d_state, config.dt_rank);
        Self {
            config,
            in_proj: Linear::without_bias(layout, d, 2 * di),
            conv: layout.take(di * config.d_conv),
            conv_bias: layout.take(di),
            x_proj: Linear::without_bias(layout, di, rank + 2 * n),
            dt_proj: Linear::new(layout, rank, di),
            a_log: layout.take(di * n),
            d: layout.take(di),
            out_proj: Linear::without_bias(layout, di, d),
        }
    }

    /// As the authors draw them: steps between 0.001 and 0.1, rates 1 to `N`.
    fn init(&self, weights: &mut [f32], rng: &mut StdRng) {
        let (n, width) = (self.config.d_state, self.config.d_conv);
        self.in_proj.init(weights, rng);
        draw(rng, width, &mut weights[self.conv.clone()]);
        draw(rng, width, &mut weights[self.conv_bias.clone()]);
        self.x_proj.init(weights, rng);
        self.dt_proj.init(weights, rng);
        for b in &mut weights[self.dt_proj.b.clone()] {
            let dt: f32 = rng.random_range(1e-3f32.ln()..0.1f32.ln()).exp();
            *b = dt + (-(-dt).exp_m1()).ln();
        }
        for (i, a) in weights[self.a_log.clone()].iter_mut().enumerate() {
            *a = ((i % n + 1) as f32).ln();
        }
        weights[self.d.clone()].fill(1.0);
        self.out_proj.init(weights, rng);
        let deep = 1.0 / (self.config.n_layer as f32).sqrt();
        let out = &mut weights[self.out_proj.w.clone()];
        out.iter_mut().for_each(|w| *w *= deep);
    }

    fn convolution(&self, weights: &[f32]) -> CausalConv {
        let bias = weights[self.conv_bias.clone()].to_vec();
        CausalConv::new(&weights[self.conv.clone()], bias)
    }

    /// `A`, `[N, Di]`.
    fn rates(&self, weights: &[f32]) -> Vec<f32> {
        let (di, n) = (self.config.channels(), self.config.d_state);
        let a_log = &weights[self.a_log.clone()];
        let turned = (0..n * di).map(|i| -a_log[i % di * n + i / di].exp());
        turned.collect()
    }

    /// What the scan of one sequence reads.
    fn reads<'a>(
        &self,
        kept: &'a MixerTrace,
        a: &'a [f32],
        d: &'a [f32],
        tokens: Range<usize>,
    ) -> Selective<'a> {
        let (di, n, rank) = (d.len(), self.config.d_state, self.config.dt_rank);
        let step = rank + 2 * n;
        let all = Selective {
            x: Rows::new(&kept.x, di),
            dt: Rows::new(&kept.dt, di),
            a,
            b: Rows::columns(&kept.chosen, step, rank..rank + n),
            c: Rows::columns(&kept.chosen, step, rank + n..step),
            d: Some(d),
        };
        all.tokens(tokens)
    }

    fn forward(&self, weights: &[f32], u: Vec<f32>, length: usize) -> (MixerTrace, Vec<f32>) {
        let (di, n, rank) = (
            self.config.channels(),
            self.config.d_state,
            self.config.dt_rank,
        );
        let team = Team::new(1);
        let tokens = u.len() / self.config.d_model;
        let xz = self.in_proj.forward(weights, &u);
        let convolution = self.convolution(weights);
        let mut mixed = vec![0.0; tokens * di];
        let rows = Rows::columns(&xz, 2 * di, 0..di);
        for (i, out) in mixed.chunks_exact_mut(length * di).enumerate() {
            let rows = rows.part(i * length..(i + 1) * length);
            let mut before = vec![0.0; convolution.state_len()];
            convolution.forward(rows, &mut before, out, false, &team);
        }
        let mut x = mixed.clone();
        kernels::silu(&mut x);
        let chosen = self.x_proj.forward(weights, &x);
        let low: Vec<f32> = chosen
            .chunks_exact(rank + 2 * n)
            .flat_map(|row| &row[..rank])
            .copied()
            .collect();
        let raw = self.dt_proj.forward(weights, &low);
        let mut dt = raw.clone();
        kernels::softplus(&mut dt);
        let mut kept = MixerTrace {
            u,
            xz,
            mixed,
            x,
            chosen,
            low,
            raw,
            dt,
            y: Vec::new(),
            gated: Vec::new(),
        };
        let (a, d) = (self.rates(weights), &weights[self.d.clone()]);
        let mut y = vec![0.0; tokens * di];
        for (i, out) in y.chunks_exact_mut(length * di).enumerate() {
            let reads = self.reads(&kept, &a, d, i * length..(i + 1) * length);
            selective_scan(&reads, None, &mut vec![0.0; n * di], out, &team);
        }
        kept.gated = gates(&kept.xz, di);
        kernels::silu_mul(&mut kept.gated, &y);
        kept.y = y;
        let out = self.out_proj.forward(weights, &kept.gated);
        (kept, out)
    }

    /// The gradient of what the mixer reads; adds those of the weights.
    fn backward(
        &self,
        weights: &[f32],
        kept: &MixerTrace,
        d: &[f32],
        length: usize,
        gradient: &mut [f32],
    ) -> Vec<f32> {
        let (di, n, rank) = (
            self.config.channels(),
            self.config.d_state,
            self.config.dt_rank,
        );
        let team = Team::new(1);
        let d_gated = self.out_proj.backward(weights, &kept.gated, d, gradient);
        let (mut dz, mut dy) = (gates(&kept.xz, di), kept.y.clone());
        silu_mul_backward(&mut dz, &mut dy, &d_gated);

        let tokens = dy.len() / di;
        let step = rank + 2 * n;
        let (a, skip) = (self.rates(weights), &weights[self.d.clone()]);
        let (mut dx, mut d_raw) = (Vec::new(), Vec::new());
        let mut d_chosen = vec![0.0; tokens * step];
        for (i, dy) in dy.chunks_exact(length * di).enumerate() {
            let at = i * length..(i + 1) * length;
            let reads = self.reads(kept, &a, skip, at.clone());
            let (state, mut d_state) = (vec![0.0; n * di], vec![0.0; n * di]);
            let more = selective_scan_backward(&reads, &state, dy, &mut d_state, &team);
            dx.extend(more.x);
            d_raw.extend(more.dt);
            let rows = d_chosen[at.start * step..at.end * step].chunks_exact_mut(step);
            for (t, row) in rows.enumerate() {
                row[rank..rank + n].copy_from_slice(&more.b[t * n..][..n]);
                row[rank + n..].copy_from_slice(&more.c[t * n..][..n]);
            }
            let d_log = &mut gradient[self.a_log.clone()];
            for (i, (d, a)) in more.a.iter().zip(&a).enumerate() {
                d_log[i % di * n + i / di] += d * a;
            }
            kernels::add_assign(&mut gradient[self.d.clone()], &more.d);
        }
        let mut slope = kept.raw.clone();
        kernels::sigmoid(&mut slope);
        d_raw.iter_mut().zip(&slope).for_each(|(d, s)| *d *= s);
        let d_low = self.dt_proj.backward(weights, &kept.low, &d_raw, gradient);
        let rows = d_chosen.chunks_exact_mut(step);
        rows.zip(d_low.chunks_exact(rank))
            .for_each(|(row, low)| row[..rank].copy_from_slice(low));
        let more = self.x_proj.backward(weights, &kept.x, &d_chosen, gradient);
        kernels::add_assign(&mut dx, &more);

        // `silu(x)` is `silu(x) · 1`.
        let (mut d_mixed, mut one) = (kept.mixed.clone(), vec![1.0; kept.mixed.len()]);
        silu_mul_backward(&mut d_mixed, &mut one, &dx);
        let convolution = self.convolution(weights);
        let x = Rows::columns(&kept.xz, 2 * di, 0..di);
        let mut d_xz = vec![0.0; kept.xz.len()];
        for (i, d_mixed) in d_mixed.chunks_exact(length * di).enumerate() {
            let at = i * length..(i + 1) * length;
            let more = convolution.backward(x.part(at.clone()), d_mixed);
            let d_conv = &mut gradient[self.conv.clone()];
            let width = self.config.d_conv;
            for (i, d) in more.weight.iter().enumerate() {
                d_conv[i % di * width + i / di] += d;
            }
            kernels::add_assign(&mut gradient[self.conv_bias.clone()], &more.bias);
            let rows = d_xz[2 * di * at.start..2 * di * at.end].chunks_exact_mut(2 * di);
            for ((row, x), z) in rows
                .zip(more.x.chunks_exact(di))
                .zip(dz[di * at.start..].chunks_exact(di))
            {
                row[..di].copy_from_slice(x);
                row[di..].copy_from_slice(z);
            }
        }
        self.in_proj.backward(weights, &kept.u, &d_xz, gradient)
    }
}

/// `z` of every token.
fn gates(xz: &[f32], di: usize) -> Vec<f32> {
    let rows = xz.chunks_exact(2 * di);
    rows.flat_map(|row| &row[di..]).copied().collect()
}

/// A norm by the root of the mean square.
#[derive(Debug, Clone)]
struct Norm(Range<usize>);

impl Norm {
    /// The scales, and what comes out.
    fn forward(&self, weights: &[f32], x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let w = &weights[self.0.clone()];
        let mut scales = vec![0.0; x.len() / w.len()];
        let mut out = vec![0.0; x.len()];
        rms_forward(x, w, EPSILON, &mut scales, &mut out);
        (scales, out)
    }

    fn backward(
        &self,
        weights: &[f32],
        x: &[f32],
        scales: &[f32],
        d: &mut [f32],
        gradient: &mut [f32],
    ) {
        let w = &weights[self.0.clone()];
        let mut dw = vec![0.0; w.len()];
        rms_backward(d, x, scales, w, &mut dw);
        kernels::add_assign(&mut gradient[self.0.clone()], &dw);
    }
}

/// Blocks of Mamba one after the other, and the last norm; the weights lie with the model.
#[derive(Debug, Clone)]
pub(crate) struct MambaBlocks {
    blocks: Vec<(Norm, Mixer)>,
    last: Norm,
}

/// What a block keeps for its gradient.
struct BlockTrace {
    input: Vec<f32>,
    scales: Vec<f32>,
    mixer: MixerTrace,
}

/// What a forward pass keeps for its gradient.
pub(crate) struct MambaTrace {
    blocks: Vec<BlockTrace>,
    /// After the last block, before its norm.
    end: Vec<f32>,
    scales: Vec<f32>,
    /// States after the last norm.
    pub(crate) out: Vec<f32>,
}

impl MambaTrace {
    /// States before every block.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = &[f32]> {
        self.blocks.iter().map(|block| &block.input[..])
    }
}

impl MambaBlocks {
    pub(crate) fn new(config: MambaConfig, layout: &mut Layout) -> Self {
        let block = |layout: &mut Layout| {
            let norm = Norm(layout.take(config.d_model));
            (norm, Mixer::new(config, layout))
        };
        let blocks = (0..config.n_layer).map(|_| block(layout)).collect();
        Self {
            blocks,
            last: Norm(layout.take(config.d_model)),
        }
    }

    pub(crate) fn init(&self, weights: &mut [f32], rng: &mut StdRng) {
        for (norm, mixer) in &self.blocks {
            weights[norm.0.clone()].fill(1.0);
            mixer.init(weights, rng);
        }
        weights[self.last.0.clone()].fill(1.0);
    }

    /// Sends states of sequences of `length` tokens through all blocks.
    pub(crate) fn forward(&self, weights: &[f32], mut x: Vec<f32>, length: usize) -> MambaTrace {
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (norm, mixer) in &self.blocks {
            let (scales, u) = norm.forward(weights, &x);
            let (kept, mut out) = mixer.forward(weights, u, length);
            kernels::add_assign(&mut out, &x);
            blocks.push(BlockTrace {
                input: x,
                scales,
                mixer: kept,
            });
            x = out;
        }
        let (scales, out) = self.last.forward(weights, &x);
        MambaTrace {
            blocks,
            end: x,
            scales,
            out,
        }
    }

    /// The gradient of the states before the first block, from that after the last norm; adds those
    /// of the weights to `gradient`.
    pub(crate) fn backward(
        &self,
        weights: &[f32],
        trace: &MambaTrace,
        mut d: Vec<f32>,
        length: usize,
        gradient: &mut [f32],
    ) -> Vec<f32> {
        let (end, scales) = (&trace.end, &trace.scales);
        self.last.backward(weights, end, scales, &mut d, gradient);
        for ((norm, mixer), kept) in self.blocks.iter().zip(&trace.blocks).rev() {
            let mut more = mixer.backward(weights, &kept.mixer, &d, length, gradient);
            norm.backward(weights, &kept.input, &kept.scales, &mut more, gradient);
            kernels::add_assign(&mut d, &more);
        }
        d
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rand::SeedableRng;
    use safetensors::SafeTensors;

    use super::*;
    use crate::small_transformer::tests::gradients_match;

    /// Weights and results of parity/mixers.py.
    fn tensor(file: &str, name: &str) -> Vec<f32> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nn/tests/fixtures/mixers");
        let bytes = std::fs::read(folder.join(file)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = file.tensor(name).unwrap().data().chunks_exact(4);
        let number = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
        numbers.map(number).collect()
    }

    fn close(found: &[f32], want: &[f32], tolerance: f32, name: &str) {
        assert_eq!(found.len(), want.len(), "{name}");
        let most = want.iter().fold(1.0f32, |m, x| m.max(x.abs()));
        for (i, (a, b)) in found.iter().zip(want).enumerate() {
            assert!((a - b).abs() < tolerance * most, "{name}[{i}]: {a} {b}");
        }
    }

    #[test]
    fn a_layer_and_its_gradients_are_those_of_transformers() {
        let config = MambaConfig {
            d_state: 3,
            dt_rank: 2,
            ..MambaConfig::new(8, 1).unwrap()
        };
        let mut layout = Layout::default();
        let mixer = Mixer::new(config, &mut layout);
        let parts = [
            ("in_proj.weight", &mixer.in_proj.w),
            ("conv1d.weight", &mixer.conv),
            ("conv1d.bias", &mixer.conv_bias),
            ("x_proj.weight", &mixer.x_proj.w),
            ("dt_proj.weight", &mixer.dt_proj.w),
            ("dt_proj.bias", &mixer.dt_proj.b),
            ("A_log", &mixer.a_log),
            ("D", &mixer.d),
            ("out_proj.weight", &mixer.out_proj.w),
        ];
        let mut weights = layout.zeros();
        for (name, at) in &parts {
            let numbers = tensor("model.safetensors", &format!("mamba.{name}"));
            weights[(*at).clone()].copy_from_slice(&numbers);
        }
        let want = |name: &str| tensor("expected.safetensors", name);
        let (u, factors) = (want("u"), want("factors"));
        let (mut out, mut d_u) = (Vec::new(), Vec::new());
        let mut gradient = layout.zeros();
        // Texts of 1, 3, 5 and 257 tokens.
        for at in [0..1, 1..4, 4..9, 9..266] {
            let (length, at) = (at.len(), 8 * at.start..8 * at.end);
            let (kept, y) = mixer.forward(&weights, u[at.clone()].to_vec(), length);
            let d = mixer.backward(&weights, &kept, &factors[at], length, &mut gradient);
            out.extend(y);
            d_u.extend(d);
        }
        close(&out, &want("mamba.out"), 1e-5, "out");
        close(&d_u, &want("mamba.gradient.u"), 2e-5, "u");
        for (name, at) in &parts {
            let found = &gradient[(*at).clone()];
            close(found, &want(&format!("mamba.gradient.{name}")), 5e-5, name);
        }
    }

    #[test]
    fn gradients_of_blocks_are_those_of_differences() {
        let config = MambaConfig::new(6, 2).unwrap();
        let (length, sequences) = (5, 2);
        let mut layout = Layout::default();
        let blocks = MambaBlocks::new(config, &mut layout);
        let mut weights = layout.zeros();
        let mut rng = StdRng::seed_from_u64(3);
        blocks.init(&mut weights, &mut rng);
        let mut numbers =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
        let (x, c) = (
            numbers(length * sequences * 6),
            numbers(length * sequences * 6),
        );
        let loss = |weights: &[f32], x: &[f32]| -> f64 {
            let out = blocks.forward(weights, x.to_vec(), length).out;
            let pairs = out.iter().zip(&c);
            pairs.map(|(o, c)| f64::from(*o) * f64::from(*c)).sum()
        };
        let mut gradient = vec![0.0; weights.len()];
        let trace = blocks.forward(&weights, x.clone(), length);
        let d_x = blocks.backward(&weights, &trace, c.clone(), length, &mut gradient);
        gradients_match((&weights, &gradient), (&x, &d_x), &loss);
    }
}
