//! The loss of the distillation and its gradient, written out by hand.
//!
//! For a token with the teacher's key `t` (length one) and the student's raw
//! output `y`, the loss is `1 - t·y/|y|`, averaged over the tokens that become
//! keys. Its gradient is `∂/∂y = -(t - (t·ŷ) ŷ) / |y|` with `ŷ = y/|y|`; from
//! there the chain rule goes back through [`Mixer::forward`].

use keyfold_kernels as kernels;

use crate::builtin::mixer::{Block, BlockTape, LAYER_NORM_EPS, Mixer, Space, Tape};

/// What one forward and backward pass over some texts gives.
pub(super) struct Gradient {
    /// Sum of the losses of the tokens that count.
    pub(super) loss: f64,
    /// Gradient of that sum with respect to every weight.
    pub(super) mixer: Mixer,
    /// Gradient with respect to the token vectors of the input, `[tokens, hidden]`.
    pub(super) tokens: Vec<f32>,
}

/// Loss and gradient for texts whose token vectors are `x` `[tokens, hidden]`.
/// `targets` is `[tokens, output]`, its rows of length one; a row of zeros does
/// not count.
pub(super) fn gradient(mixer: &Mixer, x: Vec<f32>, starts: &[usize], targets: &[f32]) -> Gradient {
    let Pass { tape, mut y } = forward(mixer, x, starts);
    let loss = loss_gradient(&mut y, targets, mixer.config.output_size);
    let (mixer, tokens) = backward(mixer, &tape, starts, &y);
    Gradient {
        loss,
        mixer,
        tokens,
    }
}

/// A forward pass that a backward pass can follow.
pub(super) struct Pass {
    pub(super) tape: Tape,
    /// Raw outputs, `[tokens, output]`.
    pub(super) y: Vec<f32>,
}

/// Runs the token vectors `x` `[tokens, hidden]` of the texts that begin at `starts`.
pub(super) fn forward(mixer: &Mixer, x: Vec<f32>, starts: &[usize]) -> Pass {
    let mut tape = Tape::default();
    let mut space = Space::with_input(x);
    mixer.forward(&mut space, starts, Some(&mut tape));
    Pass { tape, y: space.y }
}

/// The gradients of the weights and of the token vectors `[tokens, hidden]`, from that of the
/// raw outputs.
pub(super) fn backward(
    mixer: &Mixer,
    tape: &Tape,
    starts: &[usize],
    dy: &[f32],
) -> (Mixer, Vec<f32>) {
    let c = &mixer.config;
    let (h, o) = (c.hidden_size, c.output_size);
    let n = tape.x.len() / h;
    let mut grad = Mixer::zeros(c);
    grad.output_weight = product_tn(dy, &tape.z, n, o, h);
    grad.output_bias = column_sums(dy, o);
    let mut dz = vec![0.0; n * h];
    kernels::matmul_nn(&mut dz, dy, &mixer.output_weight, n, h, o, 1);
    let mut dx = layer_norm_backward(
        &dz,
        &tape.x,
        &mixer.norm_weight,
        &mut grad.norm_weight,
        &mut grad.norm_bias,
    );
    let blocks = mixer.blocks.iter().zip(&mut grad.blocks).zip(&tape.blocks);
    for ((block, grad), tape) in blocks.rev() {
        block_backward(block, grad, tape, starts, &mut dx);
    }
    (grad, dx)
}

/// Turns outputs into the gradient of the loss, in place; gives the loss.
fn loss_gradient(y: &mut [f32], targets: &[f32], dim: usize) -> f64 {
    let mut loss = 0.0;
    for (y, t) in y.chunks_exact_mut(dim).zip(targets.chunks_exact(dim)) {
        if t.iter().all(|&x| x == 0.0) {
            y.fill(0.0);
            continue;
        }
        let norm = kernels::norm(y).max(1e-6);
        let cosine = kernels::dot(y, t) / norm;
        loss += f64::from(1.0 - cosine);
        for (y, t) in y.iter_mut().zip(t) {
            *y = -(t - cosine * *y / norm) / norm;
        }
    }
    loss
}

/// Adds what the block passes back to `dx`, the gradient of its output, which so
/// becomes the gradient of its input.
fn block_backward(
    block: &Block,
    grad: &mut Block,
    tape: &BlockTape,
    starts: &[usize],
    dx: &mut [f32],
) {
    let h = block.norm_weight.len();
    let f = block.inner_bias.len();
    let n = dx.len() / h;
    let texts = starts.len() - 1;

    grad.outer_weight = product_tn(dx, &tape.inner, n, h, f);
    grad.outer_bias = column_sums(dx, h);
    let mut da = vec![0.0; n * f];
    kernels::matmul_nn(&mut da, dx, &block.outer_weight, n, f, h, 1);
    for (d, a) in da.iter_mut().zip(&tape.inner) {
        if *a <= 0.0 {
            *d = 0.0;
        }
    }
    grad.inner_weight = product_tn(&da, &tape.conv, n, f, h);
    grad.inner_bias = column_sums(&da, f);
    let mut dconv = vec![0.0; n * h];
    kernels::matmul_nn(&mut dconv, &da, &block.inner_weight, n, h, f, 1);

    // The context row of a text reaches all of its tokens.
    let dcontext: Vec<f32> = starts
        .windows(2)
        .flat_map(|t| column_sums(&da[t[0] * f..t[1] * f], f))
        .collect();
    grad.context_weight = product_tn(&dcontext, &tape.mean, texts, f, h);
    let mut dmean = vec![0.0; texts * h];
    kernels::matmul_nn(&mut dmean, &dcontext, &block.context_weight, texts, h, f, 1);

    let mut du = vec![0.0; n * h];
    for (text, dmean) in starts.windows(2).zip(dmean.chunks_exact_mut(h)) {
        let range = text[0] * h..text[1] * h;
        conv_backward(
            &dconv[range.clone()],
            &tape.u[range.clone()],
            &block.conv_weight,
            h,
            &mut du[range.clone()],
            &mut grad.conv_weight,
        );
        let scale = 1.0 / (text[1] - text[0]).max(1) as f32;
        dmean.iter_mut().for_each(|x| *x *= scale);
        kernels::add_bias(&mut dx[range], dmean);
    }
    grad.conv_bias = column_sums(&dconv, h);
    let back = layer_norm_backward(
        &du,
        &tape.x,
        &block.norm_weight,
        &mut grad.norm_weight,
        &mut grad.norm_bias,
    );
    kernels::add_assign(dx, &back);
}

/// `a[rows, m]ᵀ · b[rows, n]`.
fn product_tn(a: &[f32], b: &[f32], rows: usize, m: usize, n: usize) -> Vec<f32> {
    let mut transposed = vec![0.0; a.len()];
    for (r, row) in a.chunks_exact(m).enumerate() {
        for (i, &x) in row.iter().enumerate() {
            transposed[i * rows + r] = x;
        }
    }
    let mut out = vec![0.0; m * n];
    kernels::matmul_nn(&mut out, &transposed, b, m, n, rows, 1);
    out
}

fn column_sums(rows: &[f32], dim: usize) -> Vec<f32> {
    let mut sums = vec![0.0; dim];
    for row in rows.chunks_exact(dim) {
        kernels::add_assign(&mut sums, row);
    }
    sums
}

/// Gradient of a layer norm's input `x` from that of its output; adds to the
/// gradients of its weight and bias.
fn layer_norm_backward(
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) -> Vec<f32> {
    let dim = weight.len();
    let mut dx = vec![0.0; x.len()];
    let mut hat = vec![0.0; dim];
    let mut dhat = vec![0.0; dim];
    let rows = dy.chunks_exact(dim).zip(x.chunks_exact(dim));
    for ((dy, x), dx) in rows.zip(dx.chunks_exact_mut(dim)) {
        let mean = x.iter().sum::<f32>() / dim as f32;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / dim as f32;
        let scale = 1.0 / (variance + LAYER_NORM_EPS).sqrt();
        let (mut sum, mut along) = (0.0, 0.0);
        for i in 0..dim {
            hat[i] = (x[i] - mean) * scale;
            dhat[i] = dy[i] * weight[i];
            sum += dhat[i];
            along += dhat[i] * hat[i];
            dweight[i] += dy[i] * hat[i];
            dbias[i] += dy[i];
        }
        let (sum, along) = (sum / dim as f32, along / dim as f32);
        for i in 0..dim {
            dx[i] = scale * (dhat[i] - sum - hat[i] * along);
        }
    }
    dx
}

/// Adds the gradients of a depthwise convolution's input and weight.
fn conv_backward(
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    channels: usize,
    dx: &mut [f32],
    dweight: &mut [f32],
) {
    let kernel = weight.len() / channels;
    let half = kernel / 2;
    let time = x.len() / channels;
    for t in 0..time {
        let dy = &dy[t * channels..(t + 1) * channels];
        for k in half.saturating_sub(t)..kernel.min(time + half - t) {
            let at = (t + k - half) * channels;
            let w = &weight[k * channels..(k + 1) * channels];
            let dw = &mut dweight[k * channels..(k + 1) * channels];
            let x = &x[at..at + channels];
            let dx = &mut dx[at..at + channels];
            for c in 0..channels {
                dx[c] += dy[c] * w[c];
                dw[c] += dy[c] * x[c];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::mixer::MixerConfig;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    /// The gradient against finite differences, for every tensor.
    #[test]
    fn gradient_equals_finite_differences() {
        let config = MixerConfig {
            vocab_size: 1,
            hidden_size: 6,
            num_blocks: 2,
            kernel_size: 3,
            intermediate_size: 5,
            output_size: 4,
            max_length: 9,
        };
        let mut rng = StdRng::seed_from_u64(1);
        let mut mixer = Mixer::zeros(&config);
        for (_, _, data) in mixer.tensors_mut() {
            data.iter_mut()
                .for_each(|x| *x = rng.random_range(-0.7..0.7));
        }
        let starts = [0, 4, 4, 7];
        let x: Vec<f32> = (0..7 * 6).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut targets: Vec<f32> = (0..7 * 4).map(|_| rng.random_range(-1.0..1.0)).collect();
        kernels::normalize_rows(&mut targets, 4);
        targets[4..8].fill(0.0); // a token that does not count
        let loss = |mixer: &Mixer, x: &[f32]| gradient(mixer, x.to_vec(), &starts, &targets).loss;
        let mut found = gradient(&mixer, x.clone(), &starts, &targets);

        let step = 1e-2;
        let check = |name: &str, i: usize, up: f64, down: f64, analytic: f32| {
            let numeric = (up - down) / (2.0 * f64::from(step));
            assert!(
                (numeric - f64::from(analytic)).abs() < 4e-3 * (1.0 + numeric.abs()),
                "{name}[{i}]: {numeric} by differences, {analytic} by backward"
            );
        };
        for i in 0..x.len() {
            let (mut up, mut down) = (x.clone(), x.clone());
            up[i] += step;
            down[i] -= step;
            check(
                "x",
                i,
                loss(&mixer, &up),
                loss(&mixer, &down),
                found.tokens[i],
            );
        }
        let analytic: Vec<(String, Vec<f32>)> = found
            .mixer
            .tensors_mut()
            .into_iter()
            .map(|(name, _, data)| (name, data.clone()))
            .collect();
        for (t, (name, values)) in analytic.iter().enumerate() {
            for (i, &value) in values.iter().enumerate() {
                let moved = |by: f32| {
                    let mut other = mixer.clone();
                    other.tensors_mut()[t].2[i] += by;
                    loss(&other, &x)
                };
                check(name, i, moved(step), moved(-step), value);
            }
        }
    }
}
