//! A depthwise convolution along each text of a packed batch, with silu after it or not.

use std::sync::Arc;

use burn::tensor::Tensor;
use keyfold_kernels::scan::{CausalConv, CausalConvGradients, Rows};
use keyfold_kernels::{self as kernels, Team, learn};
use rayon::prelude::*;

use super::operator::{Array, Operator, apply, cut, sum};

/// How a depthwise convolution lies about a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// How many later positions it sees: 0 is causal, `K / 2` looks to both sides alike.
    pub ahead: usize,
    /// Whether its result goes through `x sigmoid(x)`.
    pub silu: bool,
}

/// `bias[c] + Σ_k weight[c, k] x[t + k - (K - 1 - ahead), c]` within each text, zeros beyond its
/// ends: `x` is `[rows, channels]`, `weight` `[channels, K]`, `bias` `[channels]`. `starts` has
/// the first row of each text and, at its end, the number of rows.
///
/// # Panics
/// When shapes do not fit, `starts` falls or does not end with the rows, or `ahead` is not
/// below `K`.
pub fn depthwise_conv(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    starts: &[usize],
    shape: ConvShape,
) -> Tensor<2> {
    assert_eq!(
        starts.last(),
        Some(&x.dims()[0]),
        "starts end with the rows"
    );
    assert!(shape.ahead < weight.dims()[1], "a weight for each position");
    let conv = Conv {
        starts: starts.into(),
        shape,
    };
    apply(conv, [x.into(), weight.into(), bias.into()])
}

#[derive(Clone, Debug)]
struct Conv {
    starts: Arc<[usize]>,
    shape: ConvShape,
}

#[derive(Clone, Debug)]
struct Saved {
    x: Array,
    weight: Array,
    bias: Array,
    /// What went into silu.
    inner: Option<Array>,
}

impl Conv {
    /// A text's results: those of the causal convolution, `ahead` positions later.
    fn text(&self, conv: &CausalConv, x: &[f32], out: &mut [f32]) {
        let channels = conv.channels();
        let more = self.shape.ahead * channels;
        let mut state = vec![0.0; conv.state_len()];
        let team = Team::new(1);
        if more == 0 {
            let x = Rows::new(x, channels);
            conv.forward(x, &mut state, out, false, &team);
            return;
        }
        let mut longer = x.to_vec();
        longer.resize(x.len() + more, 0.0);
        let mut found = vec![0.0; longer.len()];
        let x = Rows::new(&longer, channels);
        conv.forward(x, &mut state, &mut found, false, &team);
        out.copy_from_slice(&found[more..]);
    }

    fn text_backward(&self, conv: &CausalConv, x: &[f32], g: &[f32]) -> CausalConvGradients {
        let channels = conv.channels();
        let more = self.shape.ahead * channels;
        if more == 0 {
            return conv.backward(Rows::new(x, channels), g);
        }
        let mut longer = x.to_vec();
        longer.resize(x.len() + more, 0.0);
        let mut later = vec![0.0; more];
        later.extend_from_slice(g);
        let mut found = conv.backward(Rows::new(&longer, channels), &later);
        // The zeros behind the text are none that anything stands for.
        found.x.truncate(x.len());
        found
    }
}

impl Operator<3> for Conv {
    type Saved = Saved;

    fn forward(&self, [x, weight, bias]: [Array; 3]) -> (Array, Saved) {
        let [rows, channels] = x.sizes();
        let conv = CausalConv::new(weight.numbers(), bias.numbers().to_vec());
        let mut out = vec![0.0; rows * channels];
        let outs = cut(
            &mut out,
            self.starts.windows(2).map(|t| (t[1] - t[0]) * channels),
        );
        self.starts
            .par_windows(2)
            .zip(outs)
            .filter(|(_, out)| !out.is_empty())
            .for_each(|(t, out)| {
                let x = &x.numbers()[t[0] * channels..t[1] * channels];
                self.text(&conv, x, out);
            });
        let mut inner = None;
        if self.shape.silu {
            inner = Some(Array::new(out.clone(), [rows, channels]));
            out.par_chunks_mut(1 << 13).for_each(kernels::silu);
        }
        let saved = Saved {
            x,
            weight,
            bias,
            inner,
        };
        (Array::new(out, [rows, channels]), saved)
    }

    fn backward(&self, saved: Saved, g: Array, _: [bool; 3]) -> [Option<Array>; 3] {
        let [rows, channels] = saved.x.sizes();
        let width = saved.weight.sizes()[1];
        let conv = CausalConv::new(saved.weight.numbers(), saved.bias.numbers().to_vec());
        let g = match saved.inner {
            None => g,
            Some(mut inner) => {
                inner
                    .numbers_mut()
                    .par_chunks_mut(1 << 13)
                    .zip(g.numbers().par_chunks(1 << 13))
                    .for_each(|(x, g)| {
                        // The gradient of silu(x) · 1.
                        let mut ones = vec![1.0; x.len()];
                        learn::silu_mul_backward(x, &mut ones, g);
                    });
                inner
            }
        };
        let found: Vec<CausalConvGradients> = self
            .starts
            .par_windows(2)
            .filter(|t| t[0] < t[1])
            .map(|t| {
                let part = t[0] * channels..t[1] * channels;
                let (x, g) = (&saved.x.numbers()[part.clone()], &g.numbers()[part]);
                self.text_backward(&conv, x, g)
            })
            .collect();
        let (mut dx, mut weights, mut biases) = (Vec::new(), Vec::new(), Vec::new());
        for text in found {
            dx.extend_from_slice(&text.x);
            weights.push(text.weight);
            biases.push(text.bias);
        }
        // By position here, by channel outside.
        let by_position = sum(weights, width * channels);
        let weight = (0..width * channels)
            .map(|i| by_position[i % width * channels + i / width])
            .collect();
        [
            Some(Array::new(dx, [rows, channels])),
            Some(Array::new(weight, [channels, width])),
            Some(Array::new(sum(biases, channels), [channels])),
        ]
    }
}
