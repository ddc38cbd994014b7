//! A transformer, or Mamba in its place, that is trained to learn in context.
//!
//! Tokens are `[0, x]` and `[y, 0 .. 0]` in turn, of `d + 1` numbers; a linear layer and a learned
//! vector per place make states of them, and a linear read-out at every `x` predicts the `y` after
//! it. Trained on fresh sequences by the squared error of all predictions, the first among them.

mod body;
mod saved;

use keyfold_core::Progress;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Sequence, Task};
use crate::InspectError;
use crate::small_transformer::{Adam, Layout, Linear, by_parts, draw, train_steps, warm_cosine};
use body::{Body, BodyTrace};

/// Sequences whose gradient is made together; of one size whatever the number of threads is, so
/// that it changes no bit.
const PART: usize = 16;

/// What reads a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SequenceModel {
    /// Blocks of attention and an MLP.
    #[default]
    Transformer,
    /// Blocks of Mamba.
    Mamba,
}

/// Settings; names are those of the authors' code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnerConfig {
    /// What is learned from.
    pub task: Task,
    /// What reads a sequence.
    #[serde(default)]
    pub model: SequenceModel,
    /// Number of blocks.
    pub n_layers: usize,
    /// Heads of a layer of attention.
    pub n_heads: usize,
    /// Numbers of a state; a head has `hidden_size / n_heads²` of them, as in the authors' code.
    pub hidden_size: usize,
    /// Sequences of a step.
    pub batch_size: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Steps.
    pub steps: usize,
    /// Seed of weights and sequences.
    pub seed: u64,
}

impl LearnerConfig {
    /// The small model of the laboratory. Its learning rate suits 64 numbers of a state: with a
    /// third of it as many steps end at a higher error.
    pub fn small(task: Task, n_layers: usize, steps: usize, seed: u64) -> Self {
        Self {
            task,
            model: SequenceModel::Transformer,
            n_layers,
            n_heads: 4,
            hidden_size: 64,
            batch_size: 64,
            learning_rate: 3e-3,
            steps,
            seed,
        }
    }

    fn check(&self) -> Result<(), InspectError> {
        self.task.check()?;
        if self.batch_size == 0 || self.steps == 0 || self.learning_rate <= 0.0 {
            return Err(InspectError::settings(
                "batch_size, steps and learning_rate must be above 0",
            ));
        }
        Ok(())
    }
}

/// A model for sequences of a task.
#[derive(Debug, Clone)]
pub struct Learner {
    config: LearnerConfig,
    input: Linear,
    places: std::ops::Range<usize>,
    body: Body,
    readout: Linear,
    weights: Vec<f32>,
}

impl Learner {
    /// Weights drawn evenly from `±1/√fan_in`, biases by their own length.
    ///
    /// # Errors
    /// When a setting makes no sense.
    pub fn new(config: LearnerConfig) -> Result<Self, InspectError> {
        config.check()?;
        let mut layout = Layout::default();
        let max_len = 2 * (config.task.n + 1);
        let width = config.hidden_size;
        let input = Linear::new(&mut layout, config.task.d + 1, width);
        let places = layout.take(max_len * width);
        let body = Body::new(&config, &mut layout)?;
        let readout = Linear::new(&mut layout, width, 1);
        let mut weights = layout.zeros();
        let mut rng = StdRng::seed_from_u64(config.seed);
        input.init(&mut weights, &mut rng);
        draw(&mut rng, max_len, &mut weights[places.clone()]);
        body.init(&mut weights, &mut rng);
        readout.init(&mut weights, &mut rng);
        Ok(Self {
            config,
            input,
            places,
            body,
            readout,
            weights,
        })
    }

    /// The settings.
    pub fn config(&self) -> &LearnerConfig {
        &self.config
    }

    /// Number of weights.
    pub fn weight_count(&self) -> usize {
        self.weights.len()
    }

    /// Tokens of sequences but the last `y`, one after the other, and their number in each.
    fn tokens(&self, sequences: &[Sequence]) -> (Vec<f32>, usize) {
        let width = self.config.task.d + 1;
        let length = 2 * sequences.first().map_or(1, |s| s.y.len()) - 1;
        let mut out = vec![0.0; sequences.len() * length * width];
        for (tokens, sequence) in out.chunks_exact_mut(length * width).zip(sequences) {
            for (i, (x, y)) in sequence.pairs().enumerate() {
                let token = &mut tokens[2 * i * width..][..width];
                token[1..]
                    .iter_mut()
                    .zip(x)
                    .for_each(|(t, x)| *t = *x as f32);
                if 2 * i + 1 < length {
                    tokens[(2 * i + 1) * width] = y as f32;
                }
            }
        }
        (out, length)
    }

    fn forward(&self, tokens: &[f32], length: usize) -> (BodyTrace<'_>, Vec<f32>) {
        let width = self.config.hidden_size;
        let mut x = self.input.forward(&self.weights, tokens);
        let places = &self.weights[self.places.clone()][..length * width];
        x.chunks_exact_mut(places.len())
            .for_each(|x| keyfold_kernels::add_assign(x, places));
        let trace = self.body.forward(&self.weights, x, length);
        let y = self.readout.forward(&self.weights, trace.out());
        (trace, y)
    }

    /// What is predicted for each `y`, one list per sequence.
    ///
    /// # Errors
    /// When a sequence has other numbers or more pairs than the model was made for, or sequences
    /// differ in length.
    pub fn predict(&self, sequences: &[Sequence]) -> Result<Vec<Vec<f64>>, InspectError> {
        self.check(sequences)?;
        let told = |part: &[Sequence]| {
            let (tokens, length) = self.tokens(part);
            let (_, y) = self.forward(&tokens, length);
            let of = |y: &[f32]| y.iter().step_by(2).map(|y| f64::from(*y)).collect();
            y.chunks_exact(length).map(of).collect::<Vec<Vec<f64>>>()
        };
        Ok(sequences.par_chunks(PART).flat_map_iter(told).collect())
    }

    fn check(&self, sequences: &[Sequence]) -> Result<(), InspectError> {
        let Some(first) = sequences.first() else {
            return Err(InspectError::Empty {
                what: "sequences".to_owned(),
            });
        };
        let fits = |s: &Sequence| s.d == self.config.task.d && s.y.len() == first.y.len();
        // One place more than was trained has a vector, but never learned it.
        let known = 1..=self.config.task.n;
        match sequences.iter().all(fits) && known.contains(&first.y.len()) {
            true => Ok(()),
            false => Err(InspectError::settings(format!(
                "this model reads sequences of one length, at most {} pairs, with x of {} numbers",
                self.config.task.n, self.config.task.d
            ))),
        }
    }

    /// States before the first block and after each, at all places up to that of pair `pair`'s
    /// `x`: `[layers + 1]` of `[sequences, 2 · pair + 1, hidden_size]`.
    ///
    /// # Errors
    /// As [`predict`](Self::predict), and when there is no such pair.
    pub fn hidden(
        &self,
        sequences: &[Sequence],
        pair: usize,
    ) -> Result<Vec<Vec<f32>>, InspectError> {
        self.check(sequences)?;
        if pair >= sequences[0].y.len() {
            return Err(InspectError::settings(format!(
                "there is no pair {pair} in sequences of {}",
                sequences[0].y.len()
            )));
        }
        let width = self.config.hidden_size;
        let mut out = vec![Vec::new(); self.config.n_layers + 1];
        for part in sequences.chunks(PART) {
            let (tokens, length) = self.tokens(part);
            let (trace, _) = self.forward(&tokens, length);
            let mut keep = |layer: usize, states: &[f32]| {
                for sequence in 0..part.len() {
                    let at = sequence * length * width;
                    out[layer].extend_from_slice(&states[at..at + (2 * pair + 1) * width]);
                }
            };
            for (layer, states) in trace.inputs().into_iter().enumerate() {
                keep(layer, states);
            }
            keep(self.config.n_layers, trace.out());
        }
        Ok(out)
    }

    /// The mean squared error over a part, and its gradient times the part's share of `total`
    /// predictions.
    fn gradient(&self, part: &[Sequence], total: usize) -> (f64, Vec<f32>) {
        let (tokens, length) = self.tokens(part);
        let (trace, y) = self.forward(&tokens, length);
        let mut gradient = vec![0.0; self.weights.len()];
        let (mut loss, mut dy) = (0.0, vec![0.0; y.len()]);
        for (at, sequence) in part.iter().enumerate() {
            for (i, truth) in sequence.y.iter().enumerate() {
                let place = at * length + 2 * i;
                let error = f64::from(y[place]) - truth;
                loss += error * error;
                dy[place] = (2.0 * error / total as f64) as f32;
            }
        }
        let readout = &self.readout;
        let d = readout.backward(&self.weights, trace.out(), &dy, &mut gradient);
        let d = trace.backward(&self.weights, d, length, &mut gradient);
        let width = self.config.hidden_size;
        let places = &mut gradient[self.places.clone()][..length * width];
        d.chunks_exact(length * width)
            .for_each(|d| keyfold_kernels::add_assign(places, d));
        self.input
            .backward(&self.weights, &tokens, &d, &mut gradient);
        (loss, gradient)
    }

    /// Trains on fresh sequences; gives the mean squared error of each hundredth of the steps.
    ///
    /// # Errors
    /// When the user asked to stop.
    pub fn train(&mut self, progress: &dyn Progress) -> Result<Vec<f64>, InspectError> {
        let config = self.config.clone();
        let mut adam = Adam::new(self.weights.len(), (0.9, 0.98), 1e-9);
        train_steps(
            "learning in context",
            "error",
            config.steps,
            progress,
            |step| {
                // Other sequences than any seed of a test gives.
                let seed = keyfold_core::seed_of(&format!("in context {} {step}", config.seed));
                let batch = config.task.sample(config.batch_size, seed);
                let total = batch.len() * config.task.n;
                let (loss, gradient) = by_parts(&batch, PART, |part| self.gradient(part, total));
                let rate = warm_cosine(step, config.steps, config.learning_rate);
                adam.step(&mut self.weights, &gradient, rate);
                Ok(loss / total as f64)
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_context::Distribution;
    use keyfold_core::NoProgress;

    fn task() -> Task {
        Task {
            d: 2,
            n: 4,
            x: Distribution::default(),
            w: Distribution::default(),
            noise: 0.0,
        }
    }

    #[test]
    fn training_makes_the_error_smaller_and_repeats_itself() {
        let config = LearnerConfig {
            hidden_size: 16,
            n_heads: 2,
            ..LearnerConfig::small(task(), 1, 300, 5)
        };
        for (model, n_layers) in [(SequenceModel::Transformer, 1), (SequenceModel::Mamba, 2)] {
            let config = LearnerConfig {
                model,
                n_layers,
                ..config.clone()
            };
            let mut model = Learner::new(config.clone()).unwrap();
            let curve = model.train(&NoProgress).unwrap();
            let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
            let (first, last) = (mean(&curve[..10]), mean(&curve[90..]));
            assert!(last < 0.8 * first, "{curve:?}");
            let mut again = Learner::new(config).unwrap();
            again.train(&NoProgress).unwrap();
            assert_eq!(model.weights, again.weights);
        }
    }

    #[test]
    fn a_model_comes_back_from_its_file_and_a_damaged_one_does_not() {
        for model in [SequenceModel::Transformer, SequenceModel::Mamba] {
            let config = LearnerConfig {
                model,
                ..LearnerConfig::small(task(), 2, 1, 5)
            };
            let model = Learner::new(config).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model.safetensors");
            model.save(&path).unwrap();
            let again = Learner::load(&path).unwrap();
            assert_eq!(
                (&again.config, &again.weights),
                (&model.config, &model.weights)
            );
            let bytes = std::fs::read(&path).unwrap();
            let mut changed = bytes.clone();
            *changed.last_mut().unwrap() ^= 1;
            for damaged in [&changed[..], &bytes[..bytes.len() - 8], b"no file"] {
                std::fs::write(&path, damaged).unwrap();
                assert!(Learner::load(&path).is_err());
            }
        }
    }

    #[test]
    fn a_prediction_does_not_see_what_it_predicts() {
        for model in [SequenceModel::Transformer, SequenceModel::Mamba] {
            let config = LearnerConfig {
                model,
                ..LearnerConfig::small(task(), 2, 1, 5)
            };
            let model = Learner::new(config).unwrap();
            let mut sequences = task().sample(3, 1);
            let before = model.predict(&sequences).unwrap();
            sequences[1].y[2] += 1.0;
            let after = model.predict(&sequences).unwrap();
            assert_eq!(before[1][..3], after[1][..3]);
            assert_ne!(before[1][3], after[1][3]);
            assert_eq!(before[2], after[2]);
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let mut config = LearnerConfig::small(task(), 1, 1, 0);
        config.hidden_size = 40;
        let error = Learner::new(config).unwrap_err().to_string();
        assert!(error.contains("n_heads²"), "{error}");
        let model = Learner::new(LearnerConfig::small(task(), 1, 1, 0)).unwrap();
        let long = Task { n: 5, ..task() }.sample(1, 0);
        assert!(model.predict(&long).is_err());
    }
}
