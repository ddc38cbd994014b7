//! Training of pointer networks on points that are drawn at random, with exact teachers, or on
//! examples of a task of the user's own.
//!
//! Every step draws its own problems, so nothing is learned by heart and no data is needed. Of each
//! block of problems the number of points is drawn first. Of examples those of a block have as many
//! points as one that is drawn among all.

use std::path::Path;

use keyfold_core::Progress;
use keyfold_kernels::add_assign;
use keyfold_kernels::learn::{AdamStep, adamw};
use keyfold_sequence::pointer::beam::Task;
use keyfold_sequence::pointer::learn::{Gradient, Problem, clip};
use keyfold_sequence::pointer::{INIT_RANGE, PointerConfig, PointerNetwork};
use keyfold_train::order::step_seed;
use keyfold_train::{
    Decay, LearnError, Learner, Place, Report, RunConfig, Schedule, Step, TrainError, Validation,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::examples::Examples;
use super::{Points, RouteModel, Worth, in_place, sorted, target, truth, worth};
use crate::{InspectError, state};

/// Problems that go through the network together.
const BLOCK: usize = 32;

/// Problems of a validation.
const VALIDATION: usize = 256;

/// The most points of a problem to learn tours from: its teacher is exact.
const MOST_TOUR: usize = 12;

/// The most points of a problem to learn from.
const MOST: usize = 500;

/// The rule by which gradients change weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// Stochastic gradient descent, as in the paper.
    Sgd,
    /// Adam (Kingma and Ba 2015).
    Adam,
}

/// How a network is trained; the defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PointerTraining {
    /// `hull`, `delaunay`, `tour`, `sort` (numbers), or `custom` (examples).
    pub task: String,
    /// The least and the most points of a problem; of `custom` the examples say it.
    pub points: [usize; 2],
    /// Hidden numbers of both LSTMs.
    pub hidden_size: usize,
    /// Weights are drawn evenly from minus this to this; small networks need more than the
    /// paper's to begin to point soon.
    pub init_range: f64,
    /// Problems of a step.
    pub batch_size: usize,
    /// Steps in all.
    pub steps: u64,
    /// The rule.
    pub optimizer: Optimizer,
    /// The largest learning rate.
    pub learning_rate: f64,
    /// Steps over which it rises.
    pub warmup_steps: u64,
    /// How it falls afterwards.
    pub decay: Decay,
    /// The gradient of all weights together is at most this long; 0 for any length.
    pub max_grad_norm: f64,
    /// Seed of weights and problems.
    pub seed: u64,
    /// How the run is kept and watched.
    pub run: RunConfig,
}

impl Default for PointerTraining {
    fn default() -> Self {
        Self {
            task: Task::Hull.name().to_owned(),
            points: [5, 50],
            hidden_size: 256,
            init_range: INIT_RANGE,
            batch_size: 128,
            // A million problems, ten times.
            steps: 78_125,
            optimizer: Optimizer::Sgd,
            learning_rate: 1.0,
            warmup_steps: 0,
            decay: Decay::Constant,
            max_grad_norm: 2.0,
            seed: 0,
            run: RunConfig::default(),
        }
    }
}

impl PointerTraining {
    fn task(&self) -> Result<Task, LearnError> {
        self.task.parse().map_err(LearnError::Data)
    }

    fn check(&self, examples: Option<&Examples>) -> Result<Task, LearnError> {
        let task = self.task()?;
        let wrong = |what: String| Err(LearnError::Data(what));
        match (task, examples) {
            (Task::Custom, None) => {
                return wrong("the task custom is learned from examples; give some".into());
            }
            (Task::Custom, Some(_)) | (_, None) => {}
            (_, Some(_)) => {
                return wrong(format!(
                    "examples are for the task custom; those of {task} are drawn at random"
                ));
            }
        }
        let (fewest, most) = match task {
            Task::Tour => (3, MOST_TOUR),
            Task::Hull | Task::Delaunay => (3, MOST),
            Task::Sort => (1, MOST),
            Task::Custom => (0, usize::MAX),
        };
        let [least, largest] = self.points;
        if least < fewest || largest < least || largest > most {
            return wrong(format!(
                "points is [{least}, {largest}]; the least must be {fewest} or more, and the most at least \
                 that and, for a {task}, at most {most}"
            ));
        }
        if self.batch_size == 0 || self.batch_size > 1 << 16 {
            return wrong(format!(
                "batch_size is {}; it must be from 1 to 65536",
                self.batch_size
            ));
        }
        for (name, value) in [
            ("learning_rate", self.learning_rate),
            ("max_grad_norm", self.max_grad_norm),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return wrong(format!("{name} is {value}; it must be 0 or more"));
            }
        }
        Ok(task)
    }
}

/// A problem of `n` points, drawn evenly from the unit square, and its answer.
///
/// # Errors
/// When `n` is below three.
pub fn draw(n: usize, task: Task, rng: &mut StdRng) -> Result<(Points, Vec<usize>), InspectError> {
    let points = (0..n).map(|_| [0; 2].map(|_: u8| f64::from(rng.random::<f32>())));
    let points = Points::new(points.collect())?;
    let answer = truth(&points, task, 0)?;
    Ok((points, answer))
}

/// A problem with what its answer is measured by.
struct Exercise {
    problem: Problem,
    /// Points in a plane and their true answer.
    plane: Option<(Points, Vec<usize>)>,
}

impl Exercise {
    /// One of `n` points.
    fn drawn(n: usize, task: Task, rng: &mut StdRng) -> Result<Self, LearnError> {
        if task == Task::Sort {
            let points: Vec<f32> = (0..n).map(|_| rng.random()).collect();
            let target = target(&sorted(&points), task);
            let problem = Problem { points, target };
            return Ok(Self {
                problem,
                plane: None,
            });
        }
        let (points, answer) = draw(n, task, rng).map_err(learn_error)?;
        let problem = Problem {
            points: points.for_network(),
            target: target(&answer, task),
        };
        Ok(Self {
            problem,
            plane: Some((points, answer)),
        })
    }

    /// What places (from 1, as the network writes them) are worth.
    fn worth(&self, task: Task, written: &[usize]) -> Worth {
        let Some((points, answer)) = &self.plane else {
            return in_place(written, &self.problem.target);
        };
        let mut places: Vec<usize> = written.iter().map(|place| place - 1).collect();
        if task != Task::Delaunay && places.len() > 1 && places.first() == places.last() {
            places.pop();
        }
        worth(points, task, &places, answer)
    }
}

fn learn_error(e: impl std::fmt::Display) -> LearnError {
    LearnError::Data(e.to_string())
}

/// A training as a [`Learner`].
pub struct PointerLearner {
    config: PointerTraining,
    task: Task,
    schedule: Schedule,
    network: PointerNetwork,
    /// Moments of Adam.
    first: Vec<f32>,
    second: Vec<f32>,
    /// Problems that are never learned from.
    held_out: Vec<Exercise>,
    /// Where they are not drawn.
    examples: Option<Examples>,
}

impl PointerLearner {
    /// A learner that begins at random weights; with examples for the task `custom`.
    ///
    /// # Errors
    /// When a setting makes no sense, or examples are missing or for another task.
    pub fn new(config: &PointerTraining, examples: Option<Examples>) -> Result<Self, LearnError> {
        let task = config.check(examples.as_ref())?;
        let mut config = config.clone();
        let input_size = match (task, &examples) {
            (Task::Sort, _) => 1,
            (_, Some(examples)) => {
                config.points = examples.points();
                examples.width
            }
            (_, None) => 2,
        };
        let sizes = PointerConfig {
            input_size,
            hidden_size: config.hidden_size,
        };
        let network =
            PointerNetwork::init(sizes, config.init_range, config.seed).map_err(learn_error)?;
        let weights = network.weights().len();
        // Steps count from 1.
        let mut rng = StdRng::seed_from_u64(step_seed(config.seed, 0));
        let [least, most] = config.points;
        let held_out: Vec<Exercise> = match &examples {
            Some(examples) => {
                let each = examples.held_out.iter().take(VALIDATION).cloned();
                let each = each.map(|problem| Exercise {
                    problem,
                    plane: None,
                });
                each.collect()
            }
            None => (0..VALIDATION)
                .map(|_| Exercise::drawn(rng.random_range(least..=most), task, &mut rng))
                .collect::<Result<_, _>>()?,
        };
        Ok(Self {
            task,
            schedule: Schedule {
                learning_rate: config.learning_rate,
                warmup_steps: config.warmup_steps.min(config.steps),
                decay: config.decay,
                steps: config.steps,
            },
            network,
            first: vec![0.0; weights],
            second: vec![0.0; weights],
            held_out,
            examples,
            config,
        })
    }

    /// The model as it is.
    pub fn model(&self) -> RouteModel {
        RouteModel {
            task: self.task,
            points: self.config.points,
            network: self.network.clone(),
        }
    }

    /// The gradient of a block of problems of step `number`.
    fn block(&self, number: u64, block: usize, size: usize) -> Result<Gradient, LearnError> {
        let seed = step_seed(step_seed(self.config.seed, number), block as u64 + 1);
        let mut rng = StdRng::seed_from_u64(seed);
        let problems = match &self.examples {
            Some(examples) => {
                let alike = examples.alike(rng.random_range(0..examples.len()));
                let each = (0..size).map(|_| alike[rng.random_range(0..alike.len())].clone());
                each.collect()
            }
            None => {
                let [least, most] = self.config.points;
                let n = rng.random_range(least..=most);
                let each = (0..size).map(|_| Exercise::drawn(n, self.task, &mut rng));
                let each = each.map(|exercise| Ok(exercise?.problem));
                each.collect::<Result<Vec<_>, LearnError>>()?
            }
        };
        self.network.gradient(&problems).map_err(learn_error)
    }

    /// The gradient of the mean over all places of a step. Blocks are added in their order, so
    /// that it does not depend on the number of threads.
    fn gradient(&self, number: u64) -> Result<(f64, Gradient), LearnError> {
        let size = self.config.batch_size;
        let blocks: Vec<Gradient> = (0..size.div_ceil(BLOCK))
            .into_par_iter()
            .map(|block| self.block(number, block, BLOCK.min(size - block * BLOCK)))
            .collect::<Result<_, _>>()?;
        let mut blocks = blocks.into_iter();
        let mut all = blocks
            .next()
            .ok_or_else(|| learn_error("a step has no problems"))?;
        for block in blocks {
            add_assign(&mut all.by_weights, &block.by_weights);
            all.loss += block.loss;
            all.places += block.places;
            all.right += block.right;
        }
        let factor = 1.0 / all.places as f32;
        all.by_weights.iter_mut().for_each(|g| *g *= factor);
        Ok((all.loss / all.places as f64, all))
    }

    fn update(&mut self, gradient: &[f32], rate: f64, number: u64) {
        let weights = self.network.weights_mut();
        match self.config.optimizer {
            Optimizer::Sgd => keyfold_kernels::axpy(weights, -rate as f32, gradient),
            Optimizer::Adam => {
                let step = AdamStep {
                    rate: rate as f32,
                    beta_1: 0.9,
                    beta_2: 0.999,
                    epsilon: 1e-8,
                    weight_decay: 0.0,
                    number: u32::try_from(number).unwrap_or(u32::MAX),
                };
                adamw(weights, gradient, &mut self.first, &mut self.second, step);
            }
        }
    }
}

impl Learner for PointerLearner {
    fn steps(&self) -> u64 {
        self.schedule.steps
    }

    fn unit(&self) -> &'static str {
        "problems"
    }

    fn step(&mut self, number: u64) -> Result<Step, LearnError> {
        let learning_rate = self.schedule.at(number);
        let (loss, mut gradient) = self.gradient(number)?;
        if loss.is_finite() {
            clip(&mut gradient.by_weights, self.config.max_grad_norm as f32);
            self.update(&gradient.by_weights, learning_rate, number);
        }
        Ok(Step {
            loss,
            parts: Vec::new(),
            items: self.config.batch_size as u64,
            learning_rate,
        })
    }

    /// The loss of problems that are never learned from decides; what their answers are worth
    /// stands beside it.
    fn validate(&mut self) -> Result<Option<Validation>, LearnError> {
        let (task, network) = (self.task, &self.network);
        let each = self.held_out.par_iter().map(|exercise| {
            let problem = &exercise.problem;
            let loss = network
                .gradient(std::slice::from_ref(problem))
                .map_err(learn_error)?;
            let found = network
                .answer(&problem.points, task, 1, true)
                .map_err(learn_error)?;
            let worth = exercise.worth(task, &found.places);
            Ok((loss.loss, loss.places, worth))
        });
        let each = each.collect::<Result<Vec<_>, LearnError>>()?;
        let places: usize = each.iter().map(|e| e.1).sum();
        let count = each.len() as f64;
        let right = each.iter().filter(|e| e.2.right).count() as f64;
        let valid: Vec<f64> = each.iter().filter_map(|e| e.2.share).collect();
        let name = match task {
            Task::Hull => "area",
            Task::Delaunay => "triangles",
            Task::Tour => "length_by_best",
            Task::Sort | Task::Custom => "places",
        };
        Ok(Some(Validation {
            loss: each.iter().map(|e| e.0).sum::<f64>() / places as f64,
            measures: vec![
                ("right", right / count),
                (
                    "valid",
                    each.iter().filter(|e| e.2.valid).count() as f64 / count,
                ),
                (name, valid.iter().sum::<f64>() / valid.len().max(1) as f64),
            ],
        }))
    }

    fn save(&self, folder: &Path) -> Result<(), LearnError> {
        let parts = [
            ("weights", self.network.weights()),
            ("first", &self.first[..]),
            ("second", &self.second[..]),
        ];
        state::save(folder, &parts)
    }

    fn load(&mut self, folder: &Path) -> Result<(), LearnError> {
        let mut parts = [
            ("weights", self.network.weights_mut()),
            ("first", &mut self.first[..]),
            ("second", &mut self.second[..]),
        ];
        state::load(folder, &mut parts)
    }
}

/// Trains a network in the run's folder and leaves it there as a model folder; with examples for
/// the task `custom`.
///
/// # Errors
/// When the settings make no sense or the run fails.
pub fn train(
    config: &PointerTraining,
    examples: Option<Examples>,
    place: Place<'_>,
) -> Result<Report, TrainError> {
    let data = match &examples {
        None => json!({}),
        Some(examples) => json!({"examples": examples.len(), "hash": examples.fingerprint}),
    };
    let mut learner = PointerLearner::new(config, examples)?;
    let settings = place.settings("pointer-networks", config, &config.run, data, None)?;
    place.train(&mut learner, &settings, |learner, out| {
        learner.model().save(out).map_err(learn_error)
    })
}

/// Trains a network without a folder, for experiments; nothing when the user stops it.
///
/// # Errors
/// When the settings make no sense.
pub fn train_in_memory(
    config: &PointerTraining,
    progress: &dyn Progress,
) -> Result<Option<RouteModel>, LearnError> {
    let mut learner = PointerLearner::new(config, None)?;
    for number in 1..=learner.steps() {
        if progress.cancelled() {
            return Ok(None);
        }
        learner.step(number)?;
        progress.advance(1);
    }
    Ok(Some(learner.model()))
}
