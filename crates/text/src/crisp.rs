//! CRISP: a late-interaction model that is trained to be folded (Veneroso, Jayaram,
//! Rao, Hernández Ábrego, Hadian, Cer 2025: *CRISP: Clustering Multi-Vector
//! Representations for Denoising and Pruning*).
//!
//! For a user: an encoder whose store is 3 to 11 times smaller at about equal quality,
//! `keyfold train crisp`, then `keyfold index --model DIR --fold c8x32 --fold-queries`.
//!
//! ```text
//! C(X)   = means of the k-means clusters of the rows of X, k = kq of a query, kd of a document
//! S(q,d) = Σ_i max_j <C(q)_i, C(d)_j>                       Chamfer similarity
//! loss   = mean over queries q of -log softmax_d( S(q,d) / (|C(q)| · temperature) ) at q's document
//! ```
//!
//! over the batch's documents and the hard negatives. Clusters are found anew in every
//! forward pass, without a gradient; each member of a mean gets `1/|cluster|` of its
//! gradient. The publication leaves temperature and k-means open: 0.05 after the mean
//! over the query's vectors, and k-means++ seeded by the text (see
//! [`keyfold_kernels::fold`]), so that training and index cluster alike.
//!
//! The publication first trains the model without clusters (`fold = "none"`), then goes
//! on from there with them: a second run with `--model` of the first. A model that was
//! trained with clusters says so in `crisp.json`, and stores that fold otherwise are
//! refused.
//!
//! Cost of a step: two forward and backward passes of the encoder; clustering is some
//! percent of it.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use keyfold_core::{ModelFolder, atomic};
use keyfold_kernels::fold::Fold;
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::ops;
use keyfold_train::gradient::{GradientLearner, Loss, OptimConfig, Task};
use keyfold_train::order::{Batches, hold_out};
use keyfold_train::{LearnError, Report, RunConfig, TrainError, Validation};
use serde::{Deserialize, Serialize};

use crate::late::TRAINED_FOLD;
use crate::training::late::{LateBatch, LateText, LateTokenizer};
use crate::training::rows::{cross_entropy, normalize};
use crate::training::{LateModel, LateSettings, Pairs, Place, Ranking};

/// Settings of a training; the defaults are the publication's where it gives them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CrispConfig {
    /// How rows are folded in training: `none` (the first stage), `c4x8`, `c8x32`, `c25`,
    /// `c50`, or a baseline (`tail:8x32`, `space:2`).
    pub fold: String,
    /// Scales clusters to length one after averaging.
    pub normalise_centroids: bool,
    /// Divides the scores before the softmax.
    pub temperature: f64,
    /// Pairs in a batch: the positives of the others are negatives.
    pub batch_size: usize,
    /// Hard negatives of the data that are used for each query, at most.
    pub negatives: usize,
    /// Dropout as the model's config.json says; else none.
    pub dropout: bool,
    /// Share of the pairs that is held out for validation.
    pub hold_out: f64,
    /// Seed of everything random.
    pub seed: u64,
    /// How texts become rows.
    pub late: LateSettings,
    /// How gradients become weights.
    pub optim: OptimConfig,
    /// How the run is kept and watched.
    pub run: RunConfig,
}

impl Default for CrispConfig {
    fn default() -> Self {
        Self {
            fold: "c8x32".into(),
            normalise_centroids: false,
            temperature: 0.05,
            batch_size: 128,
            negatives: 1,
            dropout: true,
            hold_out: 0.02,
            seed: 0,
            late: LateSettings::default(),
            optim: OptimConfig {
                max_steps: 20_000,
                warmup_steps: 1_000,
                ..OptimConfig::default()
            },
            run: RunConfig::default(),
        }
    }
}

impl CrispConfig {
    fn fold(&self) -> Result<Option<Fold>, LearnError> {
        match self.fold.as_str() {
            "none" => Ok(None),
            spec => spec.parse().map(Some).map_err(LearnError::Data),
        }
    }
}

/// Pairs as tokens, and how they become a loss.
pub struct Crisp {
    queries: Vec<LateText>,
    documents: Vec<LateText>,
    negatives: Vec<Vec<LateText>>,
    /// For each pair the number of its document's text; equal texts have the same.
    texts: Vec<usize>,
    learn: Vec<usize>,
    held_out: Vec<usize>,
    batches: Batches,
    objective: Objective,
    /// Packs ids; its weights do not matter.
    packer: LateModel,
    seed: u64,
    dropout: bool,
}

/// What a loss needs to know.
#[derive(Debug, Clone, Copy)]
struct Objective {
    fold: Option<Fold>,
    normalise_centroids: bool,
    temperature: f64,
}

/// Texts of one step.
pub struct CrispBatch {
    queries: LateBatch,
    /// The document of query `i` is document `i`.
    documents: LateBatch,
    /// `[queries, documents]`: the same text as the query's document, so no negative.
    hidden: Vec<bool>,
    dropout: Option<u64>,
    objective: Objective,
}

impl CrispBatch {
    /// `S(q, d) / |C(q)|`, `[queries, documents]`.
    fn scores(&self, model: &LateModel) -> Tensor<2> {
        let objective = self.objective;
        // What is dropped differs between the sides.
        let documents_dropout = self.dropout.map(|seed| !seed);
        let queries = model.rows(&self.queries, self.dropout);
        let documents = model.rows(&self.documents, documents_dropout);
        let mut queries = queries.fold(objective.fold, true, &self.queries.seeds);
        let mut documents = documents.fold(objective.fold, false, &self.documents.seeds);
        if objective.normalise_centroids {
            queries.rows = normalize(queries.rows);
            documents.rows = normalize(documents.rows);
        }
        let counts = queries.counts();
        let scores = ops::chamfer(queries.side(), documents.side());
        scores / counts
    }
}

impl Crisp {
    fn new(
        pairs: &Pairs,
        tokenizer: &LateTokenizer,
        packer: LateModel,
        config: &CrispConfig,
    ) -> Result<Self, LearnError> {
        if !(config.temperature > 0.0 && config.temperature.is_finite()) {
            return Err(LearnError::Data(format!(
                "temperature is {}; it must be above 0",
                config.temperature
            )));
        }
        let mut numbers = std::collections::HashMap::new();
        let mut texts = Vec::new();
        let (mut queries, mut documents, mut negatives) = (Vec::new(), Vec::new(), Vec::new());
        for pair in &pairs.0 {
            let next = numbers.len();
            texts.push(*numbers.entry(pair.positive.as_str()).or_insert(next));
            queries.push(tokenizer.text(&pair.query, true)?);
            documents.push(tokenizer.text(&pair.positive, false)?);
            let hard = pair.negatives.iter().take(config.negatives);
            negatives.push(
                hard.map(|n| tokenizer.text(n, false))
                    .collect::<Result<_, _>>()?,
            );
        }
        let (learn, held_out) = hold_out(pairs.0.len(), config.hold_out, config.seed);
        if learn.len() < 2 {
            return Err(LearnError::Data(
                "one pair is left to learn from: there is no negative in it; give more data".into(),
            ));
        }
        Ok(Self {
            batches: Batches::new(learn.len(), config.batch_size, config.seed),
            objective: Objective {
                fold: config.fold()?,
                normalise_centroids: config.normalise_centroids,
                temperature: config.temperature,
            },
            queries,
            documents,
            negatives,
            texts,
            learn,
            held_out,
            packer,
            seed: config.seed,
            dropout: config.dropout,
        })
    }

    fn make(
        &self,
        chosen: &[usize],
        hard: bool,
        dropout: Option<u64>,
    ) -> Result<CrispBatch, LearnError> {
        let queries: Vec<&LateText> = chosen.iter().map(|i| &self.queries[*i]).collect();
        let mut documents: Vec<&LateText> = chosen.iter().map(|i| &self.documents[*i]).collect();
        if hard {
            documents.extend(chosen.iter().flat_map(|i| &self.negatives[*i]));
        }
        let same = |q: usize, d: usize| {
            d < chosen.len() && q != d && self.texts[chosen[q]] == self.texts[chosen[d]]
        };
        let columns = documents.len();
        let hidden = (0..chosen.len() * columns).map(|at| same(at / columns, at % columns));
        Ok(CrispBatch {
            hidden: hidden.collect(),
            queries: self.packer.batch(&queries)?,
            documents: self.packer.batch(&documents)?,
            dropout,
            objective: self.objective,
        })
    }
}

impl Task for Crisp {
    type Model = LateModel;
    type Batch = CrispBatch;

    fn batches_per_epoch(&self) -> u64 {
        self.batches.per_epoch()
    }

    fn batch(&mut self, number: u64) -> Result<CrispBatch, LearnError> {
        let chosen: Vec<usize> = {
            let places = self.batches.batch(number);
            places.iter().map(|p| self.learn[*p]).collect()
        };
        let dropout = self
            .dropout
            .then(|| keyfold_train::order::step_seed(self.seed, number));
        self.make(&chosen, true, dropout)
    }

    fn items(batch: &CrispBatch) -> u64 {
        batch.queries.seeds.len() as u64
    }

    fn loss(model: &LateModel, batch: CrispBatch) -> Loss {
        let logits = batch.scores(model).div_scalar(batch.objective.temperature);
        let targets: Vec<usize> = (0..batch.queries.seeds.len()).collect();
        cross_entropy(logits, &targets, &batch.hidden).into()
    }

    fn validate(&mut self, model: &LateModel) -> Result<Option<Validation>, LearnError> {
        // Queries and documents together are one batch: some hundred of each.
        let chosen = &self.held_out[..self.held_out.len().min(MOST_VALIDATED)];
        if chosen.len() < 2 {
            return Ok(None);
        }
        let batch = self.make(chosen, false, None)?;
        let scores = numbers(&batch.scores(model));
        let same = |i: usize, j: usize| self.texts[chosen[i]] == self.texts[chosen[j]];
        Ok(Some(Ranking::of(&scores, chosen.len(), same).validation()))
    }
}

/// Held-out pairs that are ranked at most.
const MOST_VALIDATED: usize = 256;

/// Trains a model on `pairs` that starts from the one in `folder`; writes it into
/// `place.out` in PyLate's layout unless the user stopped the run.
///
/// # Errors
/// When the model, the data or a setting does not fit, or the run fails.
pub fn train(
    folder: &ModelFolder,
    pairs: &Pairs,
    config: &CrispConfig,
    place: Place<'_>,
) -> Result<Report, TrainError> {
    pairs.require(2)?;
    let device = Device::flex().autodiff();
    let model = LateModel::load(folder, &config.late, config.seed, &device)?;
    let tokenizer = LateTokenizer::new(folder, &config.late, model.longest())?;
    let task = Crisp::new(pairs, &tokenizer, model.clone(), config)?;
    let mut learner = GradientLearner::new(task, model, &config.optim, &device, "pairs")?;
    let data = pairs.fingerprint();
    let settings = place.settings("crisp", config, &config.run, data, Some(folder))?;
    place.train(&mut learner, &settings, |learner, out| {
        learner.model().save(out, &config.late)?;
        save_fold(config, out)
    })
}

/// Writes down how rows were folded, if they were.
fn save_fold(config: &CrispConfig, out: &Path) -> Result<(), LearnError> {
    let Some(fold) = config.fold()? else {
        return Ok(());
    };
    let path = out.join(TRAINED_FOLD);
    let trained = serde_json::json!({
        "fold": fold.to_string(),
        "normalise_centroids": config.normalise_centroids,
    });
    atomic::write(&path, format!("{trained:#}\n").as_bytes()).map_err(LearnError::io(&path))
}
