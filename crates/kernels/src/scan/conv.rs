//! The depthwise convolution that looks back a few tokens.

use super::Rows;
use crate::Team;
use crate::vector::{Vector, simd};

/// `out_t[c] = bias[c] + Σ_k weight[k, c] x_{t-K+1+k}[c]`: the last of the `K` weights meets
/// the token itself, and what stands before the first token comes from the state.
#[derive(Debug, Clone, PartialEq)]
pub struct CausalConv {
    /// `[K, channels]`.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// Gradients of a [`CausalConv`].
#[derive(Debug, Clone, PartialEq)]
pub struct CausalConvGradients {
    /// Of the input, `[L, channels]`.
    pub x: Vec<f32>,
    /// Of the weight, `[K, channels]`.
    pub weight: Vec<f32>,
    /// Of the bias.
    pub bias: Vec<f32>,
}

impl CausalConv {
    /// From weights `[channels, K]`, as PyTorch stores them.
    ///
    /// # Panics
    /// When the weights are not `K` for each channel, or none.
    pub fn new(by_channel: &[f32], bias: Vec<f32>) -> Self {
        let channels = bias.len();
        assert!(channels > 0, "CausalConv: no channels");
        let width = crate::dot::assert_rows(by_channel.len(), channels, "CausalConv: weight");
        assert!(width > 0, "CausalConv: no weights");
        let weight = (0..width * channels)
            .map(|i| by_channel[i % channels * width + i / channels])
            .collect();
        Self { weight, bias }
    }

    /// How many channels.
    pub fn channels(&self) -> usize {
        self.bias.len()
    }

    /// `K`.
    pub fn width(&self) -> usize {
        self.weight.len() / self.bias.len()
    }

    /// Length of a state: the last `K - 1` inputs, `[K - 1, channels]`, zeros before a text.
    pub fn state_len(&self) -> usize {
        self.weight.len() - self.bias.len()
    }

    /// Fills `out` `[L, channels]` and moves the state on by `L` tokens (one token: a step of
    /// decoding). With `silu` the result goes through `x sigmoid(x)`.
    ///
    /// # Panics
    /// When a shape does not fit.
    pub fn forward(&self, x: Rows, state: &mut [f32], out: &mut [f32], silu: bool, team: &Team) {
        let channels = self.channels();
        assert_eq!(x.width(), channels, "CausalConv: width of x");
        assert_eq!(state.len(), self.state_len(), "CausalConv: state");
        assert_eq!(out.len(), x.len() * channels, "CausalConv: length of out");
        {
            let state = &*state;
            let rows = |first: usize, out: &mut [f32]| {
                conv_rows(out, x, state, &self.weight, &self.bias, first / channels);
                if silu {
                    crate::silu(out);
                }
            };
            if x.len() < 4 {
                rows(0, out);
            } else {
                team.split(out, channels, rows);
            }
        }
        self.advance(x, state);
    }

    /// Puts the last inputs into the state.
    fn advance(&self, x: Rows, state: &mut [f32]) {
        let (channels, kept) = (self.channels(), self.width() - 1);
        let new = x.len().min(kept);
        state.copy_within(new * channels.., 0);
        for (i, row) in (x.len() - new..x.len()).enumerate() {
            let at = (kept - new + i) * channels;
            state[at..at + channels].copy_from_slice(x.row(row));
        }
    }

    /// Gradients of the convolution alone (without silu) of one text, from those of its output.
    ///
    /// # Panics
    /// When a shape does not fit.
    pub fn backward(&self, x: Rows, dout: &[f32]) -> CausalConvGradients {
        let (channels, width) = (self.channels(), self.width());
        assert_eq!(x.width(), channels, "CausalConv: width of x");
        assert_eq!(dout.len(), x.len() * channels, "CausalConv: length of dout");
        let mut out = CausalConvGradients {
            x: vec![0.0; dout.len()],
            weight: vec![0.0; self.weight.len()],
            bias: vec![0.0; channels],
        };
        for (t, d) in dout.chunks_exact(channels).enumerate() {
            crate::add_assign(&mut out.bias, d);
            for k in (width - 1).saturating_sub(t)..width {
                let from = t + k + 1 - width;
                let x = x.row(from);
                let weight = &self.weight[k * channels..][..channels];
                let dweight = &mut out.weight[k * channels..][..channels];
                let dx = &mut out.x[from * channels..][..channels];
                for c in 0..channels {
                    dweight[c] += d[c] * x[c];
                    dx[c] += d[c] * weight[c];
                }
            }
        }
        out
    }
}

simd! {
    fn conv_rows(out: &mut [f32], x: Rows, state: &[f32], weight: &[f32], bias: &[f32], first: usize) = conv_rows_body;
}

/// Rows `first..` of the output.
#[inline(always)]
pub(super) fn conv_rows_body<V: Vector>(
    out: &mut [f32],
    x: Rows,
    state: &[f32],
    weight: &[f32],
    bias: &[f32],
    first: usize,
) {
    let channels = bias.len();
    let width = weight.len() / channels;
    let whole = channels - channels % V::LEN;
    for (i, out) in out.chunks_exact_mut(channels).enumerate() {
        let t = first + i;
        out.copy_from_slice(bias);
        for (k, weight) in weight.chunks_exact(channels).enumerate() {
            // Input t - K + 1 + k, counted from the first that the state holds.
            let at = t + k;
            let x = match at.checked_sub(width - 1) {
                Some(row) => x.row(row),
                None => &state[at * channels..][..channels],
            };
            for c in (0..whole).step_by(V::LEN) {
                let sum = V::load(&out[c..]);
                V::load(&weight[c..])
                    .mul_add(V::load(&x[c..]), sum)
                    .store(&mut out[c..]);
            }
            for c in whole..channels {
                out[c] += weight[c] * x[c];
            }
        }
    }
}
