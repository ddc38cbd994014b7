//! The loss of many problems and its gradient.
//!
//! Problems of one number of points go through the network together, the longest answers first,
//! so that every step is one matrix of the answers that have not ended (`lstm`).

use keyfold_kernels::learn::add_columns;
use keyfold_kernels::{Matrix, add_assign, add_bias, axpy, dot, matmul_nt, product, tanh};

use super::lstm::{LstmGradient, Tape};
use super::{Part, PointerNetwork, check_target};
use crate::SequenceError;

/// Points with their answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// `[n, input_size]`.
    pub points: Vec<f32>,
    /// Places from 1, without the end.
    pub target: Vec<usize>,
}

/// The loss of some problems, as sums, and its gradient by every weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradient {
    /// The sum of `-log p` over the places of all answers and their ends.
    pub loss: f64,
    /// How many places and ends there are.
    pub places: usize,
    /// How many of them were the likeliest.
    pub right: usize,
    /// The gradient of the sum, in the order of [`PointerNetwork::weights`].
    pub by_weights: Vec<f32>,
}

/// Problems of one number of points, as the network reads them.
pub(super) struct Batch {
    pub(super) n: usize,
    /// `[n, problems, input_size]`.
    pub(super) points: Vec<f32>,
    /// What the decoder reads, the steps one after the other.
    pub(super) inputs: Vec<f32>,
    /// Answers that have not ended, by step.
    counts: Vec<usize>,
    /// The right place of every row.
    pub(super) targets: Vec<usize>,
}

impl PointerNetwork {
    /// The loss of problems that have the same number of points.
    ///
    /// # Errors
    /// When there is no problem, one has no points or another number of them than the first, or
    /// an answer names no point.
    pub fn gradient(&self, problems: &[Problem]) -> Result<Gradient, SequenceError> {
        let batch = self.batch(problems)?;
        let h = self.config.hidden_size;
        let reading = self.read(&batch, problems.len());
        let writing = self.write(&batch, &reading);
        let attention = self.attention(&batch, &reading.hidden, &writing.hidden);

        let w1 = Matrix::new(self.part(Part::W1), h);
        let w2 = Matrix::new(self.part(Part::W2), h);
        let back = |gradient: &[f32], matrix: Matrix| {
            let mut out = vec![0.0; gradient.len()];
            product(
                &mut out,
                h,
                Matrix::new(gradient, h),
                matrix.t(),
                1.0,
                false,
                1,
            );
            out
        };
        let by_written = back(&attention.by_queries, w2);
        let of_decoder = self
            .decoder()
            .backward(&writing, &batch.inputs, by_written, None);
        let by_read = back(&attention.by_keys, w1);
        let of_encoder = self.encoder().backward(
            &reading,
            &batch.points,
            by_read,
            Some((&of_decoder.first_hidden, &of_decoder.first_cell)),
        );

        let mut all = self.by_lstms(&of_encoder, &of_decoder);
        let mut put = |part: Part, gradient: &[f32]| {
            add_assign(&mut all[self.config.range(part)], gradient);
        };
        put(Part::V, &attention.by_v);
        put(Part::End, &back(&attention.by_end_key, w1));
        let outer = |rows: &[f32], gradient: &[f32]| {
            let mut out = vec![0.0; h * h];
            let (rows, gradient) = (Matrix::new(rows, h), Matrix::new(gradient, h));
            product(&mut out, h, rows.t(), gradient, 1.0, false, 1);
            out
        };
        put(Part::W1, &outer(&reading.hidden, &attention.by_keys));
        put(
            Part::W1,
            &outer(self.part(Part::End), &attention.by_end_key),
        );
        put(Part::W2, &outer(&writing.hidden, &attention.by_queries));
        Ok(Gradient {
            loss: attention.loss,
            places: batch.targets.len(),
            right: attention.right,
            by_weights: all,
        })
    }

    /// Runs the encoder over the points of `count` problems.
    pub(super) fn read(&self, batch: &Batch, count: usize) -> Tape {
        self.encoder().run(
            &batch.points,
            &vec![count; batch.n],
            self.part(Part::End).repeat(count),
            self.part(Part::FirstCell).repeat(count),
        )
    }

    /// Runs the decoder over the answers.
    pub(super) fn write(&self, batch: &Batch, reading: &Tape) -> Tape {
        self.decoder().run(
            &batch.inputs,
            &batch.counts,
            reading.last_hidden().to_vec(),
            reading.last_cell().to_vec(),
        )
    }

    /// The gradient by the weights of both LSTMs and by their beginnings.
    pub(super) fn by_lstms(&self, encoder: &LstmGradient, decoder: &LstmGradient) -> Vec<f32> {
        let mut all = vec![0.0; self.weights.len()];
        for (part, gradient) in [
            (Part::EncoderInput, &encoder.weight_ih),
            (Part::EncoderHidden, &encoder.weight_hh),
            (Part::EncoderInputBias, &encoder.bias),
            (Part::EncoderHiddenBias, &encoder.bias),
            (Part::DecoderInput, &decoder.weight_ih),
            (Part::DecoderHidden, &decoder.weight_hh),
            (Part::DecoderInputBias, &decoder.bias),
            (Part::DecoderHiddenBias, &decoder.bias),
        ] {
            all[self.config.range(part)].copy_from_slice(gradient);
        }
        for (part, rows) in [
            (Part::Start, &decoder.first_input),
            (Part::FirstCell, &encoder.first_cell),
            (Part::End, &encoder.first_hidden),
        ] {
            add_columns(&mut all[self.config.range(part)], rows);
        }
        all
    }

    pub(super) fn batch(&self, problems: &[Problem]) -> Result<Batch, SequenceError> {
        let d = self.config.input_size;
        let n = match problems.first() {
            None => return Err(SequenceError::Refused("there are no problems".into())),
            Some(first) => self.check_points(&first.points)?,
        };
        for problem in problems {
            crate::matrix_mixers::shape("a problem's points", &problem.points, n, d)?;
            check_target(&problem.target, n)?;
        }
        let mut order: Vec<&Problem> = problems.iter().collect();
        order.sort_by_key(|p| std::cmp::Reverse(p.target.len()));
        let longest = order.first().map_or(0, |p| p.target.len());
        let mut batch = Batch {
            n,
            points: Vec::with_capacity(problems.len() * n * d),
            inputs: Vec::new(),
            counts: Vec::new(),
            targets: Vec::new(),
        };
        for place in 0..n {
            for problem in &order {
                let point = &problem.points[place * d..(place + 1) * d];
                batch.points.extend_from_slice(point);
            }
        }
        for step in 0..=longest {
            let going = order.iter().take_while(|p| p.target.len() >= step);
            let mut count = 0;
            for problem in going {
                let before = step.checked_sub(1).map(|i| problem.target[i]);
                let input = self.input(&problem.points, before);
                batch.inputs.extend_from_slice(input);
                batch
                    .targets
                    .push(problem.target.get(step).copied().unwrap_or(0));
                count += 1;
            }
            batch.counts.push(count);
        }
        Ok(batch)
    }

    /// Loss of all rows, and gradients by keys and queries.
    fn attention(&self, batch: &Batch, read: &[f32], written: &[f32]) -> Attention {
        let h = self.config.hidden_size;
        let count = batch.counts[0];
        let project = |rows: &[f32], part: Part| {
            let mut out = vec![0.0; rows.len()];
            let matrix = Matrix::new(self.part(part), h);
            product(&mut out, h, Matrix::new(rows, h), matrix, 1.0, false, 1);
            out
        };
        let keys = project(read, Part::W1);
        let end_key = project(self.part(Part::End), Part::W1);
        let queries = project(written, Part::W2);
        let v = self.part(Part::V);
        let mut found = Attention {
            loss: 0.0,
            right: 0,
            by_keys: vec![0.0; keys.len()],
            by_end_key: vec![0.0; h],
            by_queries: vec![0.0; queries.len()],
            by_v: vec![0.0; h],
        };
        let places = batch.n + 1;
        let mut sums = vec![0.0; places * h];
        let mut scores = vec![0.0; places];
        let mut row = 0;
        for &going in &batch.counts {
            for problem in 0..going {
                let key_of = |place: usize| ((place - 1) * count + problem) * h;
                sums[..h].copy_from_slice(&end_key);
                for place in 1..places {
                    let from = key_of(place);
                    sums[place * h..(place + 1) * h].copy_from_slice(&keys[from..from + h]);
                }
                add_bias(&mut sums, &queries[row * h..(row + 1) * h]);
                tanh(&mut sums);
                matmul_nt(&mut scores, &sums, v, places, 1, h, 1);
                let (loss, right) = score(&mut scores, batch.targets[row]);
                found.loss += loss;
                found.right += usize::from(right);
                let by_query = &mut found.by_queries[row * h..(row + 1) * h];
                for (place, by_score) in scores.iter().enumerate() {
                    let tanhs = &mut sums[place * h..(place + 1) * h];
                    axpy(&mut found.by_v, *by_score, tanhs);
                    for (t, v) in tanhs.iter_mut().zip(v) {
                        *t = by_score * v * (1.0 - *t * *t);
                    }
                    add_assign(by_query, tanhs);
                    let by_key = match place {
                        0 => &mut found.by_end_key[..],
                        _ => &mut found.by_keys[key_of(place)..key_of(place) + h],
                    };
                    add_assign(by_key, tanhs);
                }
                row += 1;
            }
        }
        found
    }
}

struct Attention {
    loss: f64,
    right: usize,
    by_keys: Vec<f32>,
    by_end_key: Vec<f32>,
    by_queries: Vec<f32>,
    by_v: Vec<f32>,
}

/// The loss of a row and whether its target is the likeliest; the scores become their gradient,
/// `softmax - 1 at the target`.
pub(super) fn score(scores: &mut [f32], target: usize) -> (f64, bool) {
    let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let right = scores[target] == greatest;
    let total: f64 = scores.iter().map(|s| f64::from(s - greatest).exp()).sum();
    let loss = total.ln() - f64::from(scores[target] - greatest);
    for score in scores.iter_mut() {
        *score = (f64::from(*score - greatest).exp() / total) as f32;
    }
    scores[target] -= 1.0;
    (loss, right)
}

/// Makes a gradient over all weights at most `longest` long (0 for any length); gives its length
/// before that.
pub fn clip(gradient: &mut [f32], longest: f32) -> f32 {
    let norm = dot(gradient, gradient).sqrt();
    if longest > 0.0 && norm > longest {
        let factor = longest / norm;
        gradient.iter_mut().for_each(|g| *g *= factor);
    }
    norm
}
