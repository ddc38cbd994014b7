//! Pointer networks: answers that are positions of the input.
//!
//! O. Vinyals, M. Fortunato and N. Jaitly, 2015, Pointer Networks. One LSTM reads `n` points, a
//! second, which begins with the last state of the first, writes places of points one after the
//! other. Attention is the answer itself:
//!
//! ```text
//! e_1 .. e_n = encoder(x_1 .. x_n)           e_0 a learned vector, which stands for the end
//! d_i        = decoder(x of the place before; a learned vector at first)
//! u_ij       = v · tanh(W1 e_j + W2 d_i)     j = 0 .. n
//! p(place i is j) = softmax_j(u_ij)
//! ```
//!
//! So one network serves inputs of every length, and its answers grow with them. The loss is the
//! mean of `-log p` over the places of the answer and its end. `H` hidden numbers, `k` places:
//! time `O((n + k) H² + n k H)`, memory `O((n + k) H + n k)`.
//!
//! Tensor names and layouts are those of the replication by G. Chaperon (PyTorch's LSTM,
//! gates in the order i, f, g, o; `W1` and `W2` stand to the right), whose `e_0` is the first
//! hidden state of the encoder as well.
//!
//! - [`PointerNetwork`]: weights, one problem at a time,
//! - [`learn`]: the loss of many problems and its gradient,
//! - [`beam`]: the likeliest answer that keeps to the rules of a task,
//! - [`fixed`]: the same without pointers, to compare with.

pub mod beam;
pub mod fixed;
pub mod learn;
mod lstm;

use std::ops::Range;

use keyfold_kernels::{Matrix, matmul_nt, product};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::SequenceError;
use lstm::Lstm;

/// Sizes of a network; the defaults are the paper's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointerConfig {
    /// Numbers of a point.
    pub input_size: usize,
    /// `H`.
    pub hidden_size: usize,
}

impl Default for PointerConfig {
    fn default() -> Self {
        Self {
            input_size: 2,
            hidden_size: 256,
        }
    }
}

/// Weights of the paper are drawn evenly from `-INIT_RANGE` to `INIT_RANGE`.
pub const INIT_RANGE: f64 = 0.08;

/// A tensor of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    EncoderInput,
    EncoderHidden,
    EncoderInputBias,
    EncoderHiddenBias,
    DecoderInput,
    DecoderHidden,
    DecoderInputBias,
    DecoderHiddenBias,
    W1,
    W2,
    V,
    Start,
    End,
    FirstCell,
}

const PARTS: [(Part, &str); 14] = [
    (Part::EncoderInput, "encoder.weight_ih_l0"),
    (Part::EncoderHidden, "encoder.weight_hh_l0"),
    (Part::EncoderInputBias, "encoder.bias_ih_l0"),
    (Part::EncoderHiddenBias, "encoder.bias_hh_l0"),
    (Part::DecoderInput, "decoder.weight_ih_l0"),
    (Part::DecoderHidden, "decoder.weight_hh_l0"),
    (Part::DecoderInputBias, "decoder.bias_ih_l0"),
    (Part::DecoderHiddenBias, "decoder.bias_hh_l0"),
    (Part::W1, "attention.W1"),
    (Part::W2, "attention.W2"),
    (Part::V, "attention.v"),
    (Part::Start, "start_symbol"),
    (Part::End, "end_symbol"),
    (Part::FirstCell, "encoder_c_0"),
];

impl PointerConfig {
    fn shape(&self, part: Part) -> Vec<usize> {
        let (d, h) = (self.input_size, self.hidden_size);
        match part {
            Part::EncoderInput | Part::DecoderInput => vec![4 * h, d],
            Part::EncoderHidden | Part::DecoderHidden => vec![4 * h, h],
            Part::EncoderInputBias
            | Part::EncoderHiddenBias
            | Part::DecoderInputBias
            | Part::DecoderHiddenBias => vec![4 * h],
            Part::W1 | Part::W2 => vec![h, h],
            Part::V | Part::End | Part::FirstCell => vec![h],
            Part::Start => vec![d],
        }
    }

    /// Where a tensor lies among all numbers.
    fn range(&self, part: Part) -> Range<usize> {
        let mut from = 0;
        for (each, _) in PARTS {
            let count: usize = self.shape(each).iter().product();
            if each == part {
                return from..from + count;
            }
            from += count;
        }
        from..from
    }

    /// Numbers of a network.
    pub fn weights(&self) -> usize {
        let counts = PARTS.iter().map(|(part, _)| self.range(*part).len());
        counts.sum()
    }

    fn check(&self) -> Result<(), SequenceError> {
        let sizes = [
            ("input_size", self.input_size),
            ("hidden_size", self.hidden_size),
        ];
        for (name, size) in sizes {
            if size == 0 || size > 1 << 14 {
                return Err(SequenceError::Refused(format!(
                    "{name} is {size}; it must be from 1 to {}",
                    1 << 14
                )));
            }
        }
        Ok(())
    }
}

/// A tensor by its name.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedPart<'a> {
    /// As in the replication.
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its numbers, row-major.
    pub numbers: &'a [f32],
}

/// A network.
#[derive(Debug, Clone, PartialEq)]
pub struct PointerNetwork {
    config: PointerConfig,
    weights: Vec<f32>,
}

/// What the encoder made of one problem.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// `W1 e_j` of the end and of every point, `[n + 1, H]`.
    keys: Vec<f32>,
    /// The last state.
    hidden: Vec<f32>,
    cell: Vec<f32>,
}

impl PointerNetwork {
    /// A network whose numbers are drawn evenly from `-range` to `range` (see [`INIT_RANGE`]).
    ///
    /// # Errors
    /// When a size is 0 or beyond reason, or the range is no number above 0.
    pub fn init(config: PointerConfig, range: f64, seed: u64) -> Result<Self, SequenceError> {
        config.check()?;
        if !(range > 0.0 && range < 1e3) {
            return Err(SequenceError::Refused(format!(
                "weights cannot be drawn from -{range} to {range}; the range must be above 0"
            )));
        }
        let mut rng = StdRng::seed_from_u64(seed);
        let draw = |_| rng.random_range(-range..range) as f32;
        Ok(Self {
            config,
            weights: (0..config.weights()).map(draw).collect(),
        })
    }

    /// A network whose tensors `tensor` gives by name and shape.
    ///
    /// # Errors
    /// Those of `tensor`, and when a size makes no sense or a tensor has another size.
    pub fn with<E: From<SequenceError>>(
        config: PointerConfig,
        mut tensor: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        config.check()?;
        // It grows with what is there: sizes may come from a file.
        let mut weights = Vec::new();
        for (part, name) in PARTS {
            let shape = config.shape(part);
            let numbers = tensor(name, &shape)?;
            let count: usize = shape.iter().product();
            crate::matrix_mixers::shape(name, &numbers, count, 1)?;
            weights.extend(numbers);
        }
        Ok(Self { config, weights })
    }

    /// Its sizes.
    pub fn config(&self) -> PointerConfig {
        self.config
    }

    /// Its tensors.
    pub fn tensors(&self) -> Vec<NamedPart<'_>> {
        let each = |(part, name)| NamedPart {
            name,
            shape: self.config.shape(part),
            numbers: self.part(part),
        };
        PARTS.map(each).into()
    }

    /// All numbers, in the order of [`tensors`](Self::tensors).
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// All numbers, to be changed by an optimiser.
    pub fn weights_mut(&mut self) -> &mut [f32] {
        &mut self.weights
    }

    fn part(&self, part: Part) -> &[f32] {
        &self.weights[self.config.range(part)]
    }

    fn encoder(&self) -> Lstm<'_> {
        Lstm {
            input_size: self.config.input_size,
            hidden_size: self.config.hidden_size,
            weight_ih: self.part(Part::EncoderInput),
            weight_hh: self.part(Part::EncoderHidden),
            bias_ih: self.part(Part::EncoderInputBias),
            bias_hh: self.part(Part::EncoderHiddenBias),
        }
    }

    fn decoder(&self) -> Lstm<'_> {
        Lstm {
            input_size: self.config.input_size,
            hidden_size: self.config.hidden_size,
            weight_ih: self.part(Part::DecoderInput),
            weight_hh: self.part(Part::DecoderHidden),
            bias_ih: self.part(Part::DecoderInputBias),
            bias_hh: self.part(Part::DecoderHiddenBias),
        }
    }

    /// Reads the points of one problem, `[n, input_size]`.
    ///
    /// # Errors
    /// When there is no point, a part of one, or a number that is not finite.
    pub fn encode(&self, points: &[f32]) -> Result<Encoded, SequenceError> {
        let n = self.check_points(points)?;
        let h = self.config.hidden_size;
        let tape = self.encoder().run(
            points,
            &vec![1; n],
            self.part(Part::End).to_vec(),
            self.part(Part::FirstCell).to_vec(),
        );
        let mut keys = vec![0.0; (n + 1) * h];
        let w1 = Matrix::new(self.part(Part::W1), h);
        let (end, rest) = keys.split_at_mut(h);
        product(
            end,
            h,
            Matrix::new(self.part(Part::End), h),
            w1,
            1.0,
            false,
            1,
        );
        product(rest, h, Matrix::new(&tape.hidden, h), w1, 1.0, false, 1);
        Ok(Encoded {
            keys,
            hidden: tape.last_hidden().to_vec(),
            cell: tape.last_cell().to_vec(),
        })
    }

    fn check_points(&self, points: &[f32]) -> Result<usize, SequenceError> {
        let d = self.config.input_size;
        let n = points.len() / d;
        crate::matrix_mixers::shape("the points", points, n, d)?;
        match points.iter().position(|x| !x.is_finite()) {
            Some(at) => Err(SequenceError::NotFinite {
                what: "the points",
                row: at / d,
                value: f64::from(points[at]),
            }),
            None => Ok(n),
        }
    }

    /// Logits `[steps, n + 1]` of the answer `target` (places from 1, without the end): row `i` is
    /// what the network thinks of place `i`, told the places before it; the last row is about the
    /// end.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), or when a place is 0 or none of the points.
    pub fn logits(&self, points: &[f32], target: &[usize]) -> Result<Vec<f32>, SequenceError> {
        let encoded = self.encode(points)?;
        let n = points.len() / self.config.input_size;
        check_target(target, n)?;
        let mut state = State::of(&encoded, 1);
        let mut all = Vec::with_capacity((target.len() + 1) * (n + 1));
        for i in 0..=target.len() {
            let before = i.checked_sub(1).map(|i| target[i]);
            let input = self.input(points, before).to_vec();
            all.extend(self.step(&encoded, &input, &mut state));
        }
        Ok(all)
    }

    /// What the decoder reads after a place.
    fn input<'a>(&'a self, points: &'a [f32], place: Option<usize>) -> &'a [f32] {
        let d = self.config.input_size;
        match place {
            Some(place) => &points[(place - 1) * d..place * d],
            None => self.part(Part::Start),
        }
    }

    /// One step of the decoder for several answers at once: logits `[answers, n + 1]`.
    fn step(&self, encoded: &Encoded, inputs: &[f32], state: &mut State) -> Vec<f32> {
        let h = self.config.hidden_size;
        let answers = inputs.len() / self.config.input_size;
        let tape = self.decoder().run(
            inputs,
            &[answers],
            std::mem::take(&mut state.hidden),
            std::mem::take(&mut state.cell),
        );
        state.hidden = tape.last_hidden().to_vec();
        state.cell = tape.last_cell().to_vec();
        let mut queries = vec![0.0; answers * h];
        let w2 = Matrix::new(self.part(Part::W2), h);
        product(
            &mut queries,
            h,
            Matrix::new(&state.hidden, h),
            w2,
            1.0,
            false,
            1,
        );
        let places = encoded.keys.len() / h;
        let mut out = vec![0.0; answers * places];
        let mut sums = vec![0.0; encoded.keys.len()];
        for (query, out) in queries.chunks_exact(h).zip(out.chunks_exact_mut(places)) {
            sums.copy_from_slice(&encoded.keys);
            keyfold_kernels::add_bias(&mut sums, query);
            keyfold_kernels::tanh(&mut sums);
            matmul_nt(out, &sums, self.part(Part::V), places, 1, h, 1);
        }
        out
    }
}

/// State of the decoder for several answers.
#[derive(Debug, Clone, PartialEq)]
struct State {
    hidden: Vec<f32>,
    cell: Vec<f32>,
}

impl State {
    /// The first, for so many answers.
    fn of(encoded: &Encoded, answers: usize) -> Self {
        Self {
            hidden: encoded.hidden.repeat(answers),
            cell: encoded.cell.repeat(answers),
        }
    }

    /// Those of some answers, one after the other.
    fn pick(&self, answers: &[usize], h: usize) -> Self {
        let rows = |numbers: &[f32]| -> Vec<f32> {
            let each = answers.iter().flat_map(|a| &numbers[a * h..(a + 1) * h]);
            each.copied().collect()
        };
        Self {
            hidden: rows(&self.hidden),
            cell: rows(&self.cell),
        }
    }
}

fn check_target(target: &[usize], n: usize) -> Result<(), SequenceError> {
    match target.iter().find(|place| **place == 0 || **place > n) {
        Some(place) => Err(SequenceError::Refused(format!(
            "an answer names point {place}; points are 1 to {n}"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
