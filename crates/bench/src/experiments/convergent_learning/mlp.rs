//! A network of two hidden layers of rectified units, trained on classes.

use keyfold_kernels as kernels;
use keyfold_kernels::Matrix;
use keyfold_kernels::learn::{AdamStep, adamw, add_columns};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Units of a hidden layer.
pub(super) const HIDDEN: usize = 64;

/// Pictures of a step.
const BATCH: usize = 100;

/// Inputs and outputs of each layer.
fn sizes(inputs: usize, classes: usize) -> [(usize, usize); 3] {
    [(inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, classes)]
}

pub(super) struct Mlp {
    sizes: [(usize, usize); 3],
    /// By layer: `[outputs, inputs]`, then biases.
    weights: Vec<Vec<f32>>,
    rng: StdRng,
}

impl Mlp {
    pub(super) fn new(inputs: usize, classes: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let sizes = sizes(inputs, classes);
        let layer = |(inputs, outputs): (usize, usize)| {
            // Even numbers, as Glorot and Bengio draw them: how much trained networks share
            // depends on their range.
            let bound = (6.0 / (inputs + outputs) as f32).sqrt();
            let mut w: Vec<f32> = (0..inputs * outputs)
                .map(|_| rng.random_range(-bound..bound))
                .collect();
            w.extend(vec![0.0; outputs]);
            w
        };
        Self {
            weights: sizes.map(layer).to_vec(),
            sizes,
            rng,
        }
    }

    fn layer(&self, layer: usize, x: &[f32]) -> Vec<f32> {
        let (inputs, outputs) = self.sizes[layer];
        let (w, b) = self.weights[layer].split_at(inputs * outputs);
        let n = x.len() / inputs;
        let mut y = vec![0.0; n * outputs];
        kernels::matmul_nt(&mut y, x, w, n, outputs, inputs, 1);
        kernels::add_bias(&mut y, b);
        y
    }

    /// Both hidden layers and the scores of the classes.
    pub(super) fn forward(&self, x: &[f32]) -> [Vec<f32>; 3] {
        let mut first = self.layer(0, x);
        kernels::relu(&mut first);
        let mut second = self.layer(1, &first);
        kernels::relu(&mut second);
        let scores = self.layer(2, &second);
        [first, second, scores]
    }

    pub(super) fn accuracy(&self, x: &[f32], labels: &[usize]) -> f64 {
        let [.., scores] = self.forward(x);
        let best = scores.chunks_exact(self.sizes[2].1).map(|row| {
            let found = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            found.map_or(0, |(i, _)| i)
        });
        let right = best
            .zip(labels)
            .filter(|(found, label)| found == *label)
            .count();
        right as f64 / labels.len() as f64
    }

    /// Adam at 0.002 on the cross-entropy.
    pub(super) fn train(&mut self, x: &[f32], labels: &[usize], epochs: usize) {
        let inputs = self.sizes[0].0;
        let mut moments: Vec<[Vec<f32>; 2]> = self
            .weights
            .iter()
            .map(|w| [vec![0.0; w.len()], vec![0.0; w.len()]])
            .collect();
        let mut order: Vec<usize> = (0..labels.len()).collect();
        let mut number = 0;
        for _ in 0..epochs {
            order.shuffle(&mut self.rng);
            for rows in order.chunks(BATCH) {
                let part: Vec<f32> = rows
                    .iter()
                    .flat_map(|&i| x[i * inputs..][..inputs].iter().copied())
                    .collect();
                let classes: Vec<usize> = rows.iter().map(|&i| labels[i]).collect();
                let gradients = self.gradient(&part, &classes);
                number += 1;
                let step = AdamStep {
                    rate: 2e-3,
                    beta_1: 0.9,
                    beta_2: 0.999,
                    epsilon: 1e-8,
                    weight_decay: 0.0,
                    number,
                };
                let all = self.weights.iter_mut().zip(&gradients).zip(&mut moments);
                for ((w, g), [first, second]) in all {
                    adamw(w, g, first, second, step);
                }
            }
        }
    }

    fn gradient(&self, x: &[f32], labels: &[usize]) -> Vec<Vec<f32>> {
        let [first, second, mut d] = self.forward(x);
        let classes = self.sizes[2].1;
        kernels::softmax_rows(&mut d, classes);
        for (row, label) in d.chunks_exact_mut(classes).zip(labels) {
            row[*label] -= 1.0;
        }
        d.iter_mut().for_each(|d| *d /= labels.len() as f32);
        let mut out = vec![Vec::new(); 3];
        for (layer, input) in [(2, &second[..]), (1, &first[..]), (0, x)] {
            let (inputs, outputs) = self.sizes[layer];
            let mut gradient = vec![0.0; self.weights[layer].len()];
            let (dw, db) = gradient.split_at_mut(inputs * outputs);
            let dy = Matrix::new(&d, outputs);
            kernels::product(
                dw,
                inputs,
                dy.t(),
                Matrix::new(input, inputs),
                1.0,
                false,
                1,
            );
            add_columns(db, &d);
            out[layer] = gradient;
            if layer > 0 {
                let w = Matrix::new(&self.weights[layer][..inputs * outputs], inputs);
                let mut dx = vec![0.0; input.len()];
                kernels::product(&mut dx, inputs, dy, w, 1.0, false, 1);
                // What was not above 0 passes nothing on.
                dx.iter_mut()
                    .zip(input)
                    .filter(|(_, x)| **x <= 0.0)
                    .for_each(|(d, _)| *d = 0.0);
                d = dx;
            }
        }
        out
    }
}
