//! Adam with decoupled weight decay (Loshchilov and Hutter 2019, Decoupled
//! Weight Decay Regularization).

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// The two running means of one tensor.
pub(super) struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

/// What is the same for all tensors of a step.
#[derive(Clone, Copy)]
pub(super) struct Step {
    /// Counted from 1.
    pub(super) number: i32,
    pub(super) learning_rate: f32,
    pub(super) weight_decay: f32,
    /// Factor on the gradient (clipping, averaging).
    pub(super) scale: f32,
}

impl Moments {
    pub(super) fn new(len: usize) -> Self {
        Self {
            first: vec![0.0; len],
            second: vec![0.0; len],
        }
    }

    /// Moves `weights[at..]` against `gradient`.
    pub(super) fn update(&mut self, weights: &mut [f32], at: usize, gradient: &[f32], step: Step) {
        let correct1 = 1.0 / (1.0 - BETA1.powi(step.number));
        let correct2 = 1.0 / (1.0 - BETA2.powi(step.number));
        let range = at..at + gradient.len();
        let weights = weights[range.clone()].iter_mut().zip(gradient);
        let moments = self.first[range.clone()]
            .iter_mut()
            .zip(&mut self.second[range]);
        for ((w, g), (m, v)) in weights.zip(moments) {
            let g = g * step.scale;
            *m += (1.0 - BETA1) * (g - *m);
            *v += (1.0 - BETA2) * (g * g - *v);
            let direction = *m * correct1 / ((*v * correct2).sqrt() + EPSILON);
            *w -= step.learning_rate * (direction + step.weight_decay * *w);
        }
    }
}
