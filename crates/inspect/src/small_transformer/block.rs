//! One block: its weights among those of the model, forward and backward.

use std::ops::Range;

use keyfold_kernels as kernels;
use keyfold_kernels::Matrix;
use keyfold_kernels::learn::{add_columns, norm_backward, norm_forward};
use rand::rngs::StdRng;

use super::attention::{self, Heads};
use super::{BlockConfig, Layout, draw};

const EPSILON: f32 = 1e-5;

/// Changes numbers in place.
type Edit<'a> = &'a mut dyn FnMut(&mut [f32]);

/// A layer `y = x Wᵀ + b`; `w` is `[out, in]`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) w: Range<usize>,
    /// Empty where there is none.
    pub(crate) b: Range<usize>,
    outputs: usize,
}

impl Linear {
    pub(crate) fn new(layout: &mut Layout, inputs: usize, outputs: usize) -> Self {
        Self {
            w: layout.take(inputs * outputs),
            b: layout.take(outputs),
            outputs,
        }
    }

    pub(crate) fn without_bias(layout: &mut Layout, inputs: usize, outputs: usize) -> Self {
        Self {
            w: layout.take(inputs * outputs),
            b: layout.take(0),
            outputs,
        }
    }

    fn inputs(&self) -> usize {
        self.w.len() / self.outputs
    }

    pub(crate) fn init(&self, weights: &mut [f32], rng: &mut StdRng) {
        draw(rng, self.inputs(), &mut weights[self.w.clone()]);
        draw(rng, self.b.len(), &mut weights[self.b.clone()]);
    }

    pub(crate) fn forward(&self, weights: &[f32], x: &[f32]) -> Vec<f32> {
        let (outputs, inputs) = (self.outputs, self.inputs());
        let w = Matrix::new(&weights[self.w.clone()], inputs);
        let mut y = vec![0.0; x.len() / inputs * outputs];
        kernels::product(
            &mut y,
            outputs,
            Matrix::new(x, inputs),
            w.t(),
            1.0,
            false,
            1,
        );
        if !self.b.is_empty() {
            kernels::add_bias(&mut y, &weights[self.b.clone()]);
        }
        y
    }

    /// The gradient of `x`; adds those of the weights.
    pub(crate) fn backward(
        &self,
        weights: &[f32],
        x: &[f32],
        d: &[f32],
        gradient: &mut [f32],
    ) -> Vec<f32> {
        let (outputs, inputs) = (self.outputs, self.inputs());
        let (dy, x) = (Matrix::new(d, outputs), Matrix::new(x, inputs));
        let dw = &mut gradient[self.w.clone()];
        kernels::product(dw, inputs, dy.t(), x, 1.0, true, 1);
        if !self.b.is_empty() {
            add_columns(&mut gradient[self.b.clone()], d);
        }
        let w = Matrix::new(&weights[self.w.clone()], inputs);
        let mut dx = vec![0.0; d.len() / outputs * inputs];
        kernels::product(&mut dx, inputs, dy, w, 1.0, false, 1);
        dx
    }
}

/// A layer norm.
#[derive(Debug, Clone)]
struct Norm {
    w: Range<usize>,
    b: Range<usize>,
}

/// What a norm keeps.
struct Normed {
    normal: Vec<f32>,
    scales: Vec<f32>,
}

impl Norm {
    fn new(layout: &mut Layout, width: usize) -> Self {
        Self {
            w: layout.take(width),
            b: layout.take(width),
        }
    }

    fn forward(&self, weights: &[f32], mut x: Vec<f32>) -> (Normed, Vec<f32>) {
        let (w, b) = (&weights[self.w.clone()], &weights[self.b.clone()]);
        let mut scales = vec![0.0; x.len() / w.len()];
        let mut out = vec![0.0; x.len()];
        norm_forward(&mut x, w, b, EPSILON, &mut scales, &mut out);
        (Normed { normal: x, scales }, out)
    }

    fn backward(&self, weights: &[f32], kept: &Normed, d: &mut [f32], gradient: &mut [f32]) {
        let w = &weights[self.w.clone()];
        let (mut dw, mut db) = (vec![0.0; w.len()], vec![0.0; w.len()]);
        norm_backward(d, &kept.normal, &kept.scales, w, &mut dw, &mut db);
        kernels::add_assign(&mut gradient[self.w.clone()], &dw);
        kernels::add_assign(&mut gradient[self.b.clone()], &db);
    }
}

/// One block.
#[derive(Debug, Clone)]
pub(super) struct Block {
    norms: Option<(Norm, Norm)>,
    qkv: Linear,
    out: Linear,
    mlp: Option<(Linear, Linear)>,
}

/// What a block keeps for its gradient.
pub(crate) struct BlockTrace {
    /// States before the block.
    pub(crate) input: Vec<f32>,
    first: Option<Normed>,
    /// What attention reads.
    a: Vec<f32>,
    qkv: Vec<f32>,
    /// Attention weights `[sequences, heads, length, length]`.
    pub(crate) weights: Vec<f32>,
    /// Outputs of the heads `[tokens, heads · head_dim]`, as edited.
    pub(crate) heads: Vec<f32>,
    second: Option<Normed>,
    /// What the MLP reads.
    b: Vec<f32>,
    /// Before gelu, and the tanh inside it.
    up: Vec<f32>,
    tanh: Vec<f32>,
    active: Vec<f32>,
}

impl Block {
    pub(super) fn new(config: &BlockConfig, layout: &mut Layout) -> Self {
        let (width, inner) = (config.width, config.inner());
        let mut norm = || Norm::new(layout, width);
        let norms = config.norm.then(|| (norm(), norm()));
        Self {
            norms,
            qkv: Linear::new(layout, width, 3 * inner),
            out: Linear::new(layout, inner, width),
            mlp: (config.mlp > 0).then(|| {
                (
                    Linear::new(layout, width, config.mlp),
                    Linear::new(layout, config.mlp, width),
                )
            }),
        }
    }

    pub(super) fn parts(&self) -> (&Linear, &Linear, Option<&Linear>, Option<&Linear>) {
        let mlp = self.mlp.as_ref();
        (&self.qkv, &self.out, mlp.map(|m| &m.0), mlp.map(|m| &m.1))
    }

    pub(super) fn init(&self, config: &BlockConfig, weights: &mut [f32], rng: &mut StdRng) {
        if let Some((first, second)) = &self.norms {
            weights[first.w.clone()].fill(1.0);
            weights[second.w.clone()].fill(1.0);
        }
        draw(rng, config.width, &mut weights[self.qkv.w.clone()]);
        // Biases of queries, keys and values have a length of their own each.
        draw(rng, config.inner(), &mut weights[self.qkv.b.clone()]);
        self.out.init(weights, rng);
        if let Some((up, down)) = &self.mlp {
            up.init(weights, rng);
            down.init(weights, rng);
        }
    }

    pub(super) fn forward(
        &self,
        config: &BlockConfig,
        weights: &[f32],
        x: Vec<f32>,
        length: usize,
        edit: Option<Edit<'_>>,
    ) -> (BlockTrace, Vec<f32>) {
        let (first, a) = match &self.norms {
            Some((norm, _)) => {
                let (kept, out) = norm.forward(weights, x.clone());
                (Some(kept), out)
            }
            None => (None, x.clone()),
        };
        let qkv = self.qkv.forward(weights, &a);
        let (attention, mut heads) = attention::forward(Heads::new(config, length), &qkv);
        if let Some(edit) = edit {
            edit(&mut heads);
        }
        let mut sum = self.out.forward(weights, &heads);
        kernels::add_assign(&mut sum, &a);
        let (second, b) = match &self.norms {
            Some((_, norm)) => {
                let (kept, out) = norm.forward(weights, sum);
                (Some(kept), out)
            }
            None => (None, sum),
        };
        let mut trace = BlockTrace {
            input: x,
            first,
            a,
            qkv,
            weights: attention,
            heads,
            second,
            b,
            up: Vec::new(),
            tanh: Vec::new(),
            active: Vec::new(),
        };
        let Some((up, down)) = &self.mlp else {
            let out = trace.b.clone();
            return (trace, out);
        };
        trace.up = up.forward(weights, &trace.b);
        trace.tanh = trace.up.iter().map(|x| inner(*x)).collect();
        kernels::tanh(&mut trace.tanh);
        let gelu = |(x, t): (&f32, &f32)| 0.5 * x * (1.0 + t);
        trace.active = trace.up.iter().zip(&trace.tanh).map(gelu).collect();
        let mut out = down.forward(weights, &trace.active);
        kernels::add_assign(&mut out, &trace.b);
        (trace, out)
    }

    /// The gradient of the states before the block from that after it; adds those of the weights.
    pub(super) fn backward(
        &self,
        config: &BlockConfig,
        weights: &[f32],
        kept: &BlockTrace,
        d: Vec<f32>,
        length: usize,
        gradient: &mut [f32],
    ) -> Vec<f32> {
        let (mut d, d_heads) = self.backward_to_heads(weights, kept, d, gradient);
        let at = Heads::new(config, length);
        let d_qkv = attention::backward(at, &kept.qkv, &kept.weights, &d_heads);
        let more = self.qkv.backward(weights, &kept.a, &d_qkv, gradient);
        kernels::add_assign(&mut d, &more);
        if let (Some((norm, _)), Some(kept)) = (&self.norms, &kept.first) {
            norm.backward(weights, kept, &mut d, gradient);
        }
        d
    }

    /// The gradients of what attention adds to, and of the outputs of the heads.
    pub(super) fn backward_to_heads(
        &self,
        weights: &[f32],
        kept: &BlockTrace,
        mut d: Vec<f32>,
        gradient: &mut [f32],
    ) -> (Vec<f32>, Vec<f32>) {
        if let Some((up, down)) = &self.mlp {
            let mut inside = down.backward(weights, &kept.active, &d, gradient);
            for ((d, x), t) in inside.iter_mut().zip(&kept.up).zip(&kept.tanh) {
                *d *= gelu_slope(*x, *t);
            }
            let more = up.backward(weights, &kept.b, &inside, gradient);
            kernels::add_assign(&mut d, &more);
        }
        if let (Some((_, norm)), Some(kept)) = (&self.norms, &kept.second) {
            norm.backward(weights, kept, &mut d, gradient);
        }
        let d_heads = self.out.backward(weights, &kept.heads, &d, gradient);
        (d, d_heads)
    }
}

/// `√(2/π)`
const ROOT: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

/// What gelu's tanh is of.
fn inner(x: f32) -> f32 {
    ROOT * (x + CUBE * x * x * x)
}

fn gelu_slope(x: f32, tanh: f32) -> f32 {
    0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * ROOT * (1.0 + 3.0 * CUBE * x * x)
}
