//! The network of the built-in encoder: static token vectors, mixed lightly
//! with their neighbours and with the mean of the text.
//!
//! With `x⁰ₜ = E[idₜ]`, for every block
//!
//! ```text
//! u  = layer_norm(x)
//! c  = depthwise_conv(u)                      # kernel_size tokens around t
//! m  = mean of x over the text
//! x ← x + W_outer relu(W_inner c + W_context m + b_inner) + b_outer
//! ```
//!
//! and `y = W_output layer_norm(x) + b_output`. The mean is of `x`, not of `u`, so
//! that the length of a token's vector can say how much it counts for the text's
//! direction. There is no attention, so the
//! cost grows linearly with the text: about `blocks · 2 · hidden · inner`
//! multiply-adds a token.

use keyfold_kernels as kernels;
use serde::{Deserialize, Serialize};

/// Shape of the network, as its `config.json` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MixerConfig {
    /// Tokens that have a vector.
    pub vocab_size: usize,
    /// Numbers per token inside the network.
    pub hidden_size: usize,
    /// Mixing blocks.
    pub num_blocks: usize,
    /// Tokens that one block sees around each token; odd.
    pub kernel_size: usize,
    /// Numbers between the two linear layers of a block.
    pub intermediate_size: usize,
    /// Numbers of a key.
    pub output_size: usize,
    /// Longest text in tokens; the rest is not seen.
    pub max_length: usize,
}

pub(crate) const LAYER_NORM_EPS: f32 = 1e-5;

/// The weights of one block. Linear layers are `[outputs, inputs]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Block {
    pub(crate) norm_weight: Vec<f32>,
    pub(crate) norm_bias: Vec<f32>,
    /// `[kernel_size, hidden]`
    pub(crate) conv_weight: Vec<f32>,
    pub(crate) conv_bias: Vec<f32>,
    pub(crate) context_weight: Vec<f32>,
    pub(crate) inner_weight: Vec<f32>,
    pub(crate) inner_bias: Vec<f32>,
    pub(crate) outer_weight: Vec<f32>,
    pub(crate) outer_bias: Vec<f32>,
}

/// All weights but the token vectors.
#[derive(Debug, Clone)]
pub(crate) struct Mixer {
    pub(crate) config: MixerConfig,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm_weight: Vec<f32>,
    pub(crate) norm_bias: Vec<f32>,
    pub(crate) output_weight: Vec<f32>,
    pub(crate) output_bias: Vec<f32>,
}

/// What the backward pass needs of one block.
#[derive(Debug, Default)]
pub(crate) struct BlockTape {
    /// Input of the block.
    pub(crate) x: Vec<f32>,
    /// Its layer norm.
    pub(crate) u: Vec<f32>,
    /// Mean of `x` per text.
    pub(crate) mean: Vec<f32>,
    /// Output of the convolution.
    pub(crate) conv: Vec<f32>,
    /// After the rectifier.
    pub(crate) inner: Vec<f32>,
}

/// What the backward pass needs of a whole forward pass.
#[derive(Debug, Default)]
pub(crate) struct Tape {
    pub(crate) blocks: Vec<BlockTape>,
    /// Input of the last layer norm, and its output.
    pub(crate) x: Vec<f32>,
    pub(crate) z: Vec<f32>,
}

impl Mixer {
    /// Weights of the right lengths, all zero.
    pub(crate) fn zeros(config: &MixerConfig) -> Self {
        let (h, f) = (config.hidden_size, config.intermediate_size);
        let block = Block {
            norm_weight: vec![0.0; h],
            norm_bias: vec![0.0; h],
            conv_weight: vec![0.0; config.kernel_size * h],
            conv_bias: vec![0.0; h],
            context_weight: vec![0.0; f * h],
            inner_weight: vec![0.0; f * h],
            inner_bias: vec![0.0; f],
            outer_weight: vec![0.0; h * f],
            outer_bias: vec![0.0; h],
        };
        Self {
            config: config.clone(),
            blocks: vec![block; config.num_blocks],
            norm_weight: vec![0.0; h],
            norm_bias: vec![0.0; h],
            output_weight: vec![0.0; config.output_size * h],
            output_bias: vec![0.0; config.output_size],
        }
    }

    /// Every tensor with its name and shape, in a fixed order.
    pub(crate) fn tensors_mut(&mut self) -> Vec<(String, Vec<usize>, &mut Vec<f32>)> {
        let c = &self.config;
        let (h, f, k, o) = (
            c.hidden_size,
            c.intermediate_size,
            c.kernel_size,
            c.output_size,
        );
        let mut all = Vec::new();
        for (i, b) in self.blocks.iter_mut().enumerate() {
            let mut add = |name: &str, shape: &[usize], data| {
                all.push((format!("blocks.{i}.{name}"), shape.to_vec(), data));
            };
            add("norm.weight", &[h], &mut b.norm_weight);
            add("norm.bias", &[h], &mut b.norm_bias);
            add("conv.weight", &[k, h], &mut b.conv_weight);
            add("conv.bias", &[h], &mut b.conv_bias);
            add("context.weight", &[f, h], &mut b.context_weight);
            add("inner.weight", &[f, h], &mut b.inner_weight);
            add("inner.bias", &[f], &mut b.inner_bias);
            add("outer.weight", &[h, f], &mut b.outer_weight);
            add("outer.bias", &[h], &mut b.outer_bias);
        }
        let mut add = |name: &str, shape: &[usize], data| {
            all.push((name.to_owned(), shape.to_vec(), data));
        };
        add("norm.weight", &[h], &mut self.norm_weight);
        add("norm.bias", &[h], &mut self.norm_bias);
        add("output.weight", &[o, h], &mut self.output_weight);
        add("output.bias", &[o], &mut self.output_bias);
        all
    }

    /// Runs the token vectors `[tokens, hidden]` in `space.x` of several texts, whose
    /// first tokens stand at `starts` (with the end as last entry), and leaves
    /// `[tokens, output]` in `space.y`. Keeps what a backward pass needs when asked to.
    pub(crate) fn forward(&self, space: &mut Space, starts: &[usize], mut tape: Option<&mut Tape>) {
        let c = &self.config;
        let (h, f, o) = (c.hidden_size, c.intermediate_size, c.output_size);
        let n = space.x.len() / h;
        let texts = starts.len() - 1;
        space.conv.resize(n * h, 0.0);
        space.inner.resize(n * f, 0.0);
        space.context.resize(texts * f, 0.0);
        space.delta.resize(n * h, 0.0);
        space.y.resize(n * o, 0.0);
        for block in &self.blocks {
            space.normalize(&block.norm_weight, &block.norm_bias);
            space.mean_of_texts(starts, h);
            for text in starts.windows(2) {
                let range = text[0] * h..text[1] * h;
                kernels::depthwise_conv(
                    &mut space.conv[range.clone()],
                    &space.u[range],
                    &block.conv_weight,
                    &block.conv_bias,
                );
            }
            let (context, inner) = (&mut space.context, &mut space.inner);
            kernels::matmul_nt(context, &space.mean, &block.context_weight, texts, f, h, 1);
            kernels::add_bias(context, &block.inner_bias);
            kernels::matmul_nt(inner, &space.conv, &block.inner_weight, n, f, h, 1);
            for (text, context) in starts.windows(2).zip(context.chunks_exact(f)) {
                kernels::add_bias(&mut inner[text[0] * f..text[1] * f], context);
            }
            kernels::relu(inner);
            kernels::matmul_nt(&mut space.delta, inner, &block.outer_weight, n, h, f, 1);
            kernels::add_bias(&mut space.delta, &block.outer_bias);
            if let Some(tape) = tape.as_deref_mut() {
                tape.blocks.push(BlockTape {
                    x: space.x.clone(),
                    u: space.u.clone(),
                    mean: space.mean.clone(),
                    conv: space.conv.clone(),
                    inner: space.inner.clone(),
                });
            }
            kernels::add_assign(&mut space.x, &space.delta);
        }
        space.normalize(&self.norm_weight, &self.norm_bias);
        kernels::matmul_nt(&mut space.y, &space.u, &self.output_weight, n, o, h, 1);
        kernels::add_bias(&mut space.y, &self.output_bias);
        if let Some(tape) = tape {
            tape.x.clone_from(&space.x);
            tape.z.clone_from(&space.u);
        }
    }
}

/// Room for the numbers of a forward pass, kept between passes.
#[derive(Debug, Default)]
pub(crate) struct Space {
    /// The token vectors that go in, `[tokens, hidden]`.
    pub(crate) x: Vec<f32>,
    /// What comes out, `[tokens, output]`.
    pub(crate) y: Vec<f32>,
    u: Vec<f32>,
    mean: Vec<f32>,
    conv: Vec<f32>,
    context: Vec<f32>,
    inner: Vec<f32>,
    delta: Vec<f32>,
}

impl Space {
    pub(crate) fn with_input(x: Vec<f32>) -> Self {
        Self {
            x,
            ..Self::default()
        }
    }

    /// `u = layer_norm(x)`
    fn normalize(&mut self, weight: &[f32], bias: &[f32]) {
        self.u.clone_from(&self.x);
        kernels::layer_norm(
            &mut self.u,
            weight.len(),
            weight,
            Some(bias),
            LAYER_NORM_EPS,
        );
    }

    /// `mean` = mean row of `x` of each text; zero for a text without tokens.
    fn mean_of_texts(&mut self, starts: &[usize], dim: usize) {
        self.mean.clear();
        self.mean.resize((starts.len() - 1) * dim, 0.0);
        for (text, mean) in starts.windows(2).zip(self.mean.chunks_exact_mut(dim)) {
            for row in self.x[text[0] * dim..text[1] * dim].chunks_exact(dim) {
                kernels::add_assign(mean, row);
            }
            let scale = 1.0 / (text[1] - text[0]).max(1) as f32;
            mean.iter_mut().for_each(|x| *x *= scale);
        }
    }
}
