//! What pointer networks are measured against: the same two LSTMs with a fixed set of outputs.
//!
//! I. Sutskever, O. Vinyals and Q. Le, 2014, Sequence to Sequence Learning with Neural Networks.
//! Instead of attention the decoder has a row of weights for each place:
//!
//! ```text
//! p(place i is j) = softmax_j(W d_i + b)      j = 0 .. most points
//! ```
//!
//! So it knows no point beyond the most that it was made for, and reads the input through one
//! state alone.

use keyfold_kernels::learn::add_columns;
use keyfold_kernels::{Matrix, add_bias, matmul_nt, product};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::learn::{Gradient, Problem, score};
use super::{PointerConfig, PointerNetwork};
use crate::SequenceError;

/// An encoder and a decoder with one output for each place.
#[derive(Debug, Clone, PartialEq)]
pub struct FixedOutputs {
    /// The two LSTMs and their beginnings; its attention is left alone.
    network: PointerNetwork,
    /// `[most points + 1, H]`, and a bias for each.
    outputs: Vec<f32>,
    most: usize,
}

impl FixedOutputs {
    /// A network for up to `most` points, drawn evenly from `-range` to `range`.
    ///
    /// # Errors
    /// When a size makes no sense.
    pub fn init(
        config: PointerConfig,
        most: usize,
        range: f64,
        seed: u64,
    ) -> Result<Self, SequenceError> {
        let network = PointerNetwork::init(config, range, seed)?;
        let mut rng = StdRng::seed_from_u64(!seed);
        let draw = |_| rng.random_range(-range..range) as f32;
        Ok(Self {
            network,
            outputs: (0..(most + 1) * (config.hidden_size + 1))
                .map(draw)
                .collect(),
            most,
        })
    }

    /// All weights, to be changed by an optimiser: those of the LSTMs, then of the outputs.
    pub fn parts_mut(&mut self) -> [&mut [f32]; 2] {
        [&mut self.network.weights, &mut self.outputs]
    }

    /// Logits `[rows, most + 1]` of states of the decoder.
    fn logits(&self, states: &[f32]) -> Vec<f32> {
        let h = self.network.config.hidden_size;
        let (weights, bias) = self.outputs.split_at((self.most + 1) * h);
        let rows = states.len() / h;
        let mut out = vec![0.0; rows * (self.most + 1)];
        matmul_nt(&mut out, states, weights, rows, self.most + 1, h, 1);
        add_bias(&mut out, bias);
        out
    }

    fn check(&self, n: usize) -> Result<(), SequenceError> {
        if n <= self.most {
            return Ok(());
        }
        Err(SequenceError::Refused(format!(
            "a network with {} outputs cannot name one of {n} points",
            self.most
        )))
    }

    /// The loss of problems that have the same number of points, and its gradient by both
    /// [`parts_mut`](Self::parts_mut).
    ///
    /// # Errors
    /// As [`PointerNetwork::gradient`], or when there are more points than outputs.
    pub fn gradient(&self, problems: &[Problem]) -> Result<(Gradient, Vec<f32>), SequenceError> {
        let network = &self.network;
        let batch = network.batch(problems)?;
        self.check(batch.n)?;
        let h = network.config.hidden_size;
        let reading = network.read(&batch, problems.len());
        let writing = network.write(&batch, &reading);
        let width = self.most + 1;
        let mut scores = self.logits(&writing.hidden);
        let (mut loss, mut right) = (0.0, 0);
        for (scores, target) in scores.chunks_exact_mut(width).zip(&batch.targets) {
            let (of_row, is_right) = score(scores, *target);
            loss += of_row;
            right += usize::from(is_right);
        }
        let by_scores = Matrix::new(&scores, width);
        let weights = Matrix::new(&self.outputs[..width * h], h);
        let mut by_written = vec![0.0; writing.hidden.len()];
        product(&mut by_written, h, by_scores, weights, 1.0, false, 1);
        let mut by_outputs = vec![0.0; self.outputs.len()];
        let states = Matrix::new(&writing.hidden, h);
        product(&mut by_outputs, h, by_scores.t(), states, 1.0, false, 1);
        add_columns(&mut by_outputs[width * h..], &scores);
        let of_decoder = network
            .decoder()
            .backward(&writing, &batch.inputs, by_written, None);
        let of_encoder = network.encoder().backward(
            &reading,
            &batch.points,
            vec![0.0; reading.hidden.len()],
            Some((&of_decoder.first_hidden, &of_decoder.first_cell)),
        );
        let found = Gradient {
            loss,
            places: batch.targets.len(),
            right,
            by_weights: network.by_lstms(&of_encoder, &of_decoder),
        };
        Ok((found, by_outputs))
    }

    /// The answer that is written when every place is the likeliest, with places from 1.
    ///
    /// # Errors
    /// When there is no point or there are more than outputs.
    pub fn answer(&self, points: &[f32], longest: usize) -> Result<Vec<usize>, SequenceError> {
        let network = &self.network;
        let n = network.check_points(points)?;
        self.check(n)?;
        let encoded = network.encode(points)?;
        let (mut hidden, mut cell) = (encoded.hidden, encoded.cell);
        let mut places: Vec<usize> = Vec::new();
        while places.len() < longest {
            let input = network.input(points, places.last().copied());
            let tape = network.decoder().run(input, &[1], hidden, cell);
            hidden = tape.last_hidden().to_vec();
            cell = tape.last_cell().to_vec();
            let logits = self.logits(&hidden);
            let best = (0..=n)
                .max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
                .unwrap_or(0);
            if best == 0 {
                break;
            }
            places.push(best);
        }
        Ok(places)
    }
}
