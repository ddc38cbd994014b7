//! Learning by gradients: resumed and parallel runs make the same weights.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use keyfold_core::NoProgress;
use keyfold_train::gradient::{GradientLearner, Loss, OptimConfig, OptimizerKind, Task};
use keyfold_train::order::{Batches, step_rng};
use keyfold_train::{Decay, LearnError, Learner, RunConfig, Settings, TrainError, run};
use rand::Rng;

/// `y = x w`, with a weight that takes no part.
#[derive(Module, Debug)]
struct Linear {
    weight: Param<Tensor<2>>,
    unused: Param<Tensor<1>>,
}

const INPUTS: usize = 3;

fn device() -> Device {
    Device::flex().autodiff()
}

fn model() -> Linear {
    let device = device();
    let weight = Tensor::from_data([[0.5f32], [-0.2], [0.1]], &device);
    Linear {
        weight: Param::from_tensor(weight),
        unused: Param::from_tensor(Tensor::from_data([7.0f32], &device)),
    }
}

/// Learns the sum of three numbers from noisy examples.
struct Sums {
    examples: Vec<([f32; INPUTS], f32)>,
    batches: Batches,
}

impl Sums {
    fn new(batch_size: usize) -> Self {
        let mut rng = step_rng(1, 1);
        let examples = (0..64).map(|_| {
            let x: [f32; INPUTS] = rng.random();
            (x, x.iter().sum::<f32>() + 0.01 * rng.random::<f32>())
        });
        Self {
            examples: examples.collect(),
            batches: Batches::new(64, batch_size, 9),
        }
    }
}

impl Task for Sums {
    type Model = Linear;
    type Batch = Vec<([f32; INPUTS], f32)>;

    fn batches_per_epoch(&self) -> u64 {
        self.batches.per_epoch()
    }

    fn batch(&mut self, number: u64) -> Result<Self::Batch, LearnError> {
        let chosen = self.batches.batch(number).iter();
        Ok(chosen.map(|i| self.examples[*i]).collect())
    }

    fn items(batch: &Self::Batch) -> u64 {
        batch.len() as u64
    }

    fn loss(model: &Linear, batch: Self::Batch) -> Loss {
        let device = model.weight.val().device();
        let n = batch.len();
        let x: Vec<f32> = batch.iter().flat_map(|(x, _)| *x).collect();
        let y: Vec<f32> = batch.iter().map(|(_, y)| *y).collect();
        let x = Tensor::<2>::from_data(TensorData::new(x, [n, INPUTS]), &device);
        let y = Tensor::<2>::from_data(TensorData::new(y, [n, 1]), &device);
        let error = (x.matmul(model.weight.val()) - y).powi_scalar(2).mean();
        let size = model.weight.val().powi_scalar(2).sum();
        Loss::mix(vec![("error", 1.0, error), ("size", 1e-3, size)]).unwrap()
    }
}

fn config() -> OptimConfig {
    OptimConfig {
        learning_rate: 0.05,
        epochs: 4.0,
        warmup_steps: 3,
        decay: Decay::Cosine,
        ..OptimConfig::default()
    }
}

fn learner(batch_size: usize, config: &OptimConfig) -> GradientLearner<Sums> {
    GradientLearner::new(Sums::new(batch_size), model(), config, &device(), "sums").unwrap()
}

fn weights(learner: &GradientLearner<Sums>) -> Vec<f32> {
    learner
        .model()
        .weight
        .val()
        .into_data()
        .try_to_vec()
        .unwrap()
}

fn train(
    learner: &mut GradientLearner<Sums>,
    folder: &Path,
    resume: bool,
) -> Result<keyfold_train::Report, TrainError> {
    let settings = Settings {
        slug: "sums".into(),
        config: serde_json::json!({}),
        run: RunConfig {
            checkpoint_every: 5,
            validate_every: 0,
            ..RunConfig::default()
        },
        resume,
    };
    run(learner, &settings, folder, &NoProgress, &mut |_| {})
}

#[test]
fn a_resumed_run_ends_at_the_same_weights_bit_by_bit() {
    for optimizer in [
        OptimizerKind::AdamW,
        OptimizerKind::Adam,
        OptimizerKind::Sgd,
    ] {
        let config = OptimConfig {
            optimizer,
            ..config()
        };
        let mut through = learner(8, &config);
        let folder = tempfile::tempdir().unwrap();
        let report = train(&mut through, folder.path(), false).unwrap();
        assert_eq!(report.steps, 32);
        assert_ne!(weights(&through), weights(&learner(8, &config)));
        // As after a kill: only the checkpoints up to step 30 are there.
        std::fs::remove_dir_all(folder.path().join("checkpoints/32")).unwrap();
        let mut resumed = learner(8, &config);
        train(&mut resumed, folder.path(), true).unwrap();
        assert_eq!(weights(&resumed), weights(&through), "{optimizer:?}");
    }
}

#[test]
fn two_devices_make_the_steps_of_two_accumulated_micro_batches() {
    let two = OptimConfig {
        devices: 2,
        ..config()
    };
    let one = OptimConfig {
        accumulation: 2,
        ..config()
    };
    let (mut parallel, mut single) = (learner(8, &two), learner(8, &one));
    assert_eq!(parallel.steps(), 16);
    for number in 1..=16 {
        let a = parallel.step(number).unwrap();
        let b = single.step(number).unwrap();
        assert_eq!(a, b, "step {number}");
    }
    assert_eq!(weights(&parallel), weights(&single));
    // Means over equal micro-batches are the mean over one large batch.
    let mut large = learner(16, &config());
    for number in 1..=16 {
        large.step(number).unwrap();
    }
    for (a, b) in weights(&large).iter().zip(weights(&single)) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn it_learns_and_reports_the_parts_of_its_loss() {
    let config = OptimConfig {
        epochs: 60.0,
        weight_decay: 0.0,
        ..config()
    };
    let mut learner = learner(8, &config);
    let first = learner.step(1).unwrap();
    for number in 2..=learner.steps() {
        learner.step(number).unwrap();
    }
    let last = learner.step(learner.steps()).unwrap();
    assert!(
        last.loss < first.loss / 20.0,
        "{} {}",
        first.loss,
        last.loss
    );
    let names: Vec<&str> = last.parts.iter().map(|(n, _)| *n).collect();
    assert_eq!(names, ["error", "size"]);
    let mixed = last.parts[0].1 + 1e-3 * last.parts[1].1;
    assert!((mixed - last.loss).abs() < 1e-6);
    for weight in weights(&learner) {
        assert!((weight - 1.0).abs() < 0.05, "{weight}");
    }
}

#[test]
fn long_gradients_are_cut_as_a_whole() {
    let clipped = OptimConfig {
        optimizer: OptimizerKind::Sgd,
        momentum: 0.0,
        weight_decay: 0.0,
        max_grad_norm: 1e-3,
        learning_rate: 1.0,
        warmup_steps: 0,
        ..config()
    };
    let mut learner = learner(8, &clipped);
    let before = weights(&learner);
    let rate = learner.step(1).unwrap().learning_rate;
    let after = weights(&learner);
    let squares = after.iter().zip(&before).map(|(a, b)| (a - b).powi(2));
    let moved = squares.sum::<f32>().sqrt();
    assert!((f64::from(moved) - rate * 1e-3).abs() < 1e-5, "{moved}");
}

#[test]
fn a_loss_that_is_no_number_leaves_the_weights_alone() {
    let mut learner = learner(
        8,
        &OptimConfig {
            max_grad_norm: 0.0,
            ..config()
        },
    );
    let mut broken = Sums::new(8);
    broken.examples[0].1 = f32::NAN;
    let mut sick = GradientLearner::new(broken, model(), &config(), &device(), "sums").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let told = train(&mut sick, folder.path(), false)
        .unwrap_err()
        .to_string();
    assert!(told.contains("'error' is not a number"), "{told}");
    assert!(weights(&sick).iter().all(|w| w.is_finite()));
    learner.step(1).unwrap();
}

#[test]
fn settings_that_make_no_sense_and_foreign_checkpoints_are_told() {
    let refused = |config: OptimConfig| {
        let made = GradientLearner::new(Sums::new(8), model(), &config, &device(), "sums");
        made.map(|_| ()).unwrap_err().to_string()
    };
    let told = refused(OptimConfig {
        accumulation: 0,
        ..config()
    });
    assert!(told.contains("accumulation"), "{told}");
    let told = refused(OptimConfig {
        learning_rate: f64::NAN,
        ..config()
    });
    assert!(told.contains("learning_rate"), "{told}");
    let told = refused(OptimConfig {
        epochs: 0.01,
        ..config()
    });
    assert!(told.contains("no step to make"), "{told}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.bpk"), b"not a model").unwrap();
    let told = learner(8, &config())
        .load(folder.path())
        .unwrap_err()
        .to_string();
    assert!(told.contains("model.bpk"), "{told}");
}
