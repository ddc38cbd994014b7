//! Definitions that learn to point at their entries.

use burn::tensor::Tensor;
use keyfold_core::EncodeError;
use keyfold_nn::Packed;
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::ops;
use keyfold_train::gradient::{Loss, Task};
use keyfold_train::order::{Batches, hold_out, step_seed};
use keyfold_train::{LearnError, Validation};

use super::{DefSentConfig, DefSentModel, Dictionary};
use crate::SentenceEncoder;
use crate::pooling::Pool;
use crate::training::model_error;

/// Definitions that are validated at once.
const VALIDATED: usize = 32;

/// A definition as tokens, and the class that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Example {
    pub(super) ids: Vec<u32>,
    pub(super) class: u32,
}

/// One example per definition; entry `i` is class `i`.
pub(super) fn of_entries(
    encoder: &SentenceEncoder,
    dictionary: &Dictionary,
) -> Result<Vec<Example>, EncodeError> {
    let entries = (0..).zip(dictionary.entries());
    let all = entries.flat_map(|(i, e)| e.definitions.iter().map(move |d| (i, d)));
    all.map(|(class, definition)| {
        let ids = encoder.ids(definition)?;
        Ok(Example { ids, class })
    })
    .collect()
}

/// One example per definition of an entry that is one token, whose id is the class
/// (Tsukagoshi, Sasano, Takeda 2021, *DefSent*).
pub(super) fn of_words(
    encoder: &SentenceEncoder,
    dictionary: &Dictionary,
) -> Result<Vec<Example>, EncodeError> {
    let mut all = Vec::new();
    for entry in dictionary.entries() {
        if let Some(class) = encoder.word_id(&entry.words)? {
            for definition in &entry.definitions {
                let ids = encoder.ids(definition)?;
                all.push(Example { ids, class });
            }
        }
    }
    Ok(all)
}

/// Examples, the frozen vectors of their classes, and the order in which they come.
pub(super) struct Definitions {
    learn: Vec<Example>,
    held_out: Vec<Example>,
    classes: Tensor<2>,
    batches: Batches,
    pool: Pool,
    /// Packs ids; its weights do not matter.
    packer: DefSentModel,
    dropout: bool,
    seed: u64,
}

/// Definitions of one step.
pub(super) struct Batch {
    packed: Packed,
    targets: Vec<u32>,
    classes: Tensor<2>,
    pool: Pool,
    dropout: Option<u64>,
}

impl Definitions {
    /// `classes` is `[classes, hidden]`, on the model's device.
    pub(super) fn new(
        examples: Vec<Example>,
        classes: Tensor<2>,
        packer: DefSentModel,
        config: &DefSentConfig,
    ) -> Self {
        let (learn, held_out) = hold_out(examples.len(), config.hold_out, config.seed);
        let take = |places: Vec<usize>| -> Vec<Example> {
            places.into_iter().map(|i| examples[i].clone()).collect()
        };
        Self {
            batches: Batches::new(learn.len(), config.batch_size, config.seed),
            learn: take(learn),
            held_out: take(held_out),
            classes,
            pool: config.pool,
            packer,
            dropout: config.dropout,
            seed: config.seed,
        }
    }

    fn make(&self, examples: &[&Example], dropout: Option<u64>) -> Result<Batch, LearnError> {
        let ids: Vec<&[u32]> = examples.iter().map(|e| e.ids.as_slice()).collect();
        Ok(Batch {
            packed: self.packer.bert().pack(&ids).map_err(model_error)?,
            targets: examples.iter().map(|e| e.class).collect(),
            classes: self.classes.clone(),
            pool: self.pool,
            dropout,
        })
    }
}

impl Task for Definitions {
    type Model = DefSentModel;
    type Batch = Batch;

    fn batches_per_epoch(&self) -> u64 {
        self.batches.per_epoch()
    }

    fn batch(&mut self, number: u64) -> Result<Batch, LearnError> {
        let places = self.batches.batch(number);
        let examples: Vec<&Example> = places.iter().map(|i| &self.learn[*i]).collect();
        let dropout = self.dropout.then(|| step_seed(self.seed, number));
        self.make(&examples, dropout)
    }

    fn items(batch: &Batch) -> u64 {
        batch.targets.len() as u64
    }

    fn loss(model: &DefSentModel, batch: Batch) -> Loss {
        let r = model.represent(&batch.packed, batch.pool, batch.dropout);
        ops::cross_entropy(r, batch.classes, &batch.targets).into()
    }

    fn validate(&mut self, model: &DefSentModel) -> Result<Option<Validation>, LearnError> {
        if self.held_out.is_empty() {
            return Ok(None);
        }
        let mut sum = 0.0;
        for examples in self.held_out.chunks(VALIDATED) {
            let examples: Vec<&Example> = examples.iter().collect();
            let batch = self.make(&examples, None)?;
            let loss = Self::loss(model, batch).total;
            let loss = numbers(&loss).first().copied().unwrap_or(f32::NAN);
            sum += f64::from(loss) * examples.len() as f64;
        }
        Ok(Some(Validation {
            loss: sum / self.held_out.len() as f64,
            measures: Vec::new(),
        }))
    }
}
