//! Training of ViM2 on pictures in folders of their classes.

use burn::tensor::{Device, Tensor, TensorData, activation};
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::random;
use keyfold_train::gradient::{GradientLearner, Loss, OptimConfig, Task};
use keyfold_train::order::{Batches, hold_out};
use keyfold_train::{Decay, LearnError, Place, Report, RunConfig, TrainError, Validation};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Classifier, Vim2, Vim2Config};
use crate::{Picture, Pictures, VisionError};

/// Pictures that are measured together.
const TOGETHER: usize = 16;

/// How a network is shaped and trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vim2Training {
    /// Its sizes.
    pub model: Vim2Config,
    /// Share of the pictures that the network never learns from.
    pub held_out: f64,
    /// Pictures of a micro-batch.
    pub batch_size: usize,
    /// Whether half of the pictures are mirrored.
    pub mirrored: bool,
    /// Learning rates, epochs, clipping.
    pub optim: OptimConfig,
    /// Seed of weights and order.
    pub seed: u64,
    /// How the run is kept and watched.
    pub run: RunConfig,
}

impl Default for Vim2Training {
    /// The paper's for ImageNet, without its warm-up, which counts in epochs.
    fn default() -> Self {
        Self {
            model: Vim2Config {
                num_classes: 0,
                ..Vim2Config::default()
            },
            held_out: 0.1,
            batch_size: 64,
            mirrored: true,
            optim: OptimConfig {
                learning_rate: 1e-3,
                weight_decay: 0.05,
                epochs: 300.0,
                decay: Decay::Cosine,
                accumulation: 16,
                ..OptimConfig::default()
            },
            seed: 0,
            run: RunConfig::default(),
        }
    }
}

struct Batch {
    pictures: Vec<Picture>,
    classes: Vec<usize>,
}

struct Learning<'a> {
    pictures: &'a Pictures,
    learned: Vec<usize>,
    held_out: Vec<usize>,
    order: Batches,
    mirrored: bool,
    seed: u64,
}

impl Task for Learning<'_> {
    type Model = Vim2;
    type Batch = Batch;

    fn batches_per_epoch(&self) -> u64 {
        self.order.per_epoch()
    }

    fn batch(&mut self, number: u64) -> Result<Batch, LearnError> {
        let seed = random::derive(self.seed, 1 + number);
        let chosen = self.order.batch(number).iter().zip(0..);
        let chosen = chosen.map(|(&place, i)| {
            let (picture, class) = &self.pictures.all[self.learned[place]];
            let turned = self.mirrored && random::unit(seed, i) < 0.5;
            let picture = if turned {
                mirrored(picture)
            } else {
                picture.clone()
            };
            (picture, *class)
        });
        let (pictures, classes) = chosen.unzip();
        Ok(Batch { pictures, classes })
    }

    fn items(batch: &Batch) -> u64 {
        batch.pictures.len() as u64
    }

    fn loss(model: &Vim2, batch: Batch) -> Loss {
        let pictures: Vec<&Picture> = batch.pictures.iter().collect();
        let logits = model.forward(&pictures);
        let [rows, classes] = logits.dims();
        let mut chosen = vec![0.0f32; rows * classes];
        for (row, class) in batch.classes.iter().enumerate() {
            chosen[row * classes + class] = -1.0 / rows as f32;
        }
        let chosen =
            Tensor::<2>::from_data(TensorData::new(chosen, [rows, classes]), &logits.device());
        (activation::log_softmax(logits, 1) * chosen).sum().into()
    }

    fn validate(&mut self, model: &Vim2) -> Result<Option<Validation>, LearnError> {
        let (mut loss, mut right) = (0.0, 0usize);
        for chosen in self.held_out.chunks(TOGETHER) {
            let of = |i: &usize| &self.pictures.all[*i];
            let pictures: Vec<&Picture> = chosen.iter().map(|i| &of(i).0).collect();
            let scores = activation::log_softmax(model.forward(&pictures), 1);
            let classes = scores.dims()[1];
            for (row, i) in numbers(&scores).chunks_exact(classes).zip(chosen) {
                let class = of(i).1;
                loss -= f64::from(row[class]);
                right += usize::from(row.iter().all(|x| *x <= row[class]));
            }
        }
        let count = self.held_out.len();
        Ok((count > 0).then(|| Validation {
            loss: loss / count as f64,
            measures: vec![("accuracy", right as f64 / count as f64)],
        }))
    }
}

/// Left to right.
fn mirrored(picture: &Picture) -> Picture {
    let rows = picture.numbers.chunks_exact(3 * picture.side);
    Picture {
        side: picture.side,
        numbers: rows
            .flat_map(|row| row.rchunks_exact(3).flatten().copied())
            .collect(),
    }
}

/// Trains a network in the run's folder and leaves it there as a model folder ([`Classifier`]).
///
/// # Errors
/// When the settings make no sense, pictures have another size, or the run fails.
pub fn train(
    pictures: &Pictures,
    config: &Vim2Training,
    place: Place<'_>,
) -> Result<Report, TrainError> {
    let mut sizes = config.model.clone();
    let classes = pictures.classes.len();
    if sizes.num_classes == 0 {
        sizes.num_classes = classes;
    }
    let unfit = |what: String| refused(VisionError::Unfit(what));
    if sizes.num_classes != classes {
        return Err(unfit(format!(
            "model.num_classes is {}; there are {classes} classes",
            sizes.num_classes
        )));
    }
    if config.batch_size == 0 || !(0.0..1.0).contains(&config.held_out) {
        return Err(unfit(
            "batch_size must be at least 1, and held_out at least 0 and below 1".into(),
        ));
    }
    if pictures
        .all
        .iter()
        .any(|(p, class)| p.side != sizes.image_size || *class >= classes)
    {
        return Err(unfit(format!(
            "pictures must have {} rows and columns, and a class",
            sizes.image_size
        )));
    }
    let device = Device::flex().autodiff();
    let model = Vim2::init(&sizes, config.seed, &device).map_err(refused)?;
    let (learned, held_out) = hold_out(pictures.all.len(), config.held_out, config.seed);
    let task = Learning {
        order: Batches::new(learned.len(), config.batch_size, config.seed),
        pictures,
        learned,
        held_out,
        mirrored: config.mirrored,
        seed: config.seed,
    };
    let mut learner = GradientLearner::new(task, model, &config.optim, &device, "pictures")?;
    let data = json!({ "pictures": pictures.all.len(), "blake3": checksum(pictures) });
    let settings = place.settings("vim2", config, &config.run, data, None)?;
    place.train(&mut learner, &settings, |learner, out| {
        Classifier::new(learner.model().clone(), pictures.classes.clone())
            .save(out)
            .map_err(|e| LearnError::Data(e.to_string()))
    })
}

fn checksum(pictures: &Pictures) -> String {
    let mut hasher = blake3::Hasher::new();
    for (picture, class) in &pictures.all {
        hasher.update(&class.to_le_bytes());
        picture.numbers.iter().for_each(|x| {
            hasher.update(&x.to_le_bytes());
        });
    }
    hasher.finalize().to_hex().to_string()
}

fn refused(e: VisionError) -> TrainError {
    TrainError::Learn(LearnError::Data(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_mirrored_point_by_point() {
        let picture = Picture {
            side: 2,
            numbers: (0..12).map(|x| x as f32).collect(),
        };
        let turned = mirrored(&picture);
        assert_eq!(
            turned.numbers,
            [3., 4., 5., 0., 1., 2., 9., 10., 11., 6., 7., 8.]
        );
    }
}
