//! Training of ColBERTer: several losses at once, in stages.
//!
//! With `s(q,d)` the score of a pair, `v` the vectors of whole texts, `T` the teacher's
//! score, `d⁺` the text that belongs to `q` and `d⁻` one that does not:
//!
//! ```text
//! L_pair  = mean ( s(q,d⁺) - s(q,d⁻) - (T(q,d⁺) - T(q,d⁻)) )²        Margin-MSE
//! L_cls   = the same with <v_q, v_d> in the place of s
//! L_batch = KL( softmax_d T(q,d) ‖ softmax_d <v_q, v_d> )             all texts of the batch
//! L_gates = mean of the gates of the words of documents
//! loss    = pair L_pair + cls L_cls + in_batch L_batch + sparsity L_gates
//! ```
//!
//! Batches are topic-aware and balanced (Hofstätter, Lin, Yang, Lin, Hanbury 2021:
//! *Efficiently Teaching an Effective Dense Retriever with Balanced Topic Aware
//! Sampling*): the queries of a batch are of one topic (a cluster of the teacher's
//! vectors), and `d⁻` is drawn so that small and large margins come equally often.
//!
//! The publication trains in stages, which add to each other: 1, whole texts alone
//! (`L_cls` and `L_batch`); 2, words as well; 3, their gates too. A stage starts from the
//! model of the one before. The weights of the losses are not in the released code; the
//! defaults are those of the authors' training library. Its teacher is an ensemble of
//! cross-encoders; here it is one or more sentence encoders, whose scores are means.

mod config;
mod model;
mod sampling;
mod teacher;

use std::collections::{HashMap, HashSet};

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};
use keyfold_core::{Encoder, ModelFolder, Progress};
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::ops::Groups;
use keyfold_train::gradient::{GradientLearner, Loss, Task};
use keyfold_train::order::{hold_out, step_rng, step_seed};
use keyfold_train::{LearnError, Report, TrainError, Validation};
use rand::seq::SliceRandom;
use rand::{Rng, rngs::StdRng};

use super::words::{Words, words};
use crate::tokenize::TextTokenizer;
use crate::training::{Pairs, Place, Ranking, model_error};
pub use config::ColberterConfig;
pub use model::ColberterModel;
use model::{Encoded, Heads, WordBatch, WordText, backbone};
use sampling::{balanced, candidates, topics};
use teacher::Teacher;

/// Held-out pairs that are ranked at most.
const MOST_VALIDATED: usize = 256;

/// What a loss needs to know.
#[derive(Debug, Clone, Copy)]
struct Objective {
    pair: f64,
    cls: f64,
    in_batch: f64,
    sparsity: f64,
    words: bool,
    exact: bool,
}

/// Pairs as words, with the teacher's vectors, and how they become a loss.
pub struct Colberter {
    queries: Vec<WordText>,
    /// All different documents: those that belong to a query first.
    documents: Vec<WordText>,
    /// The document of each query.
    positive: Vec<usize>,
    teacher: Teacher,
    /// For each query documents that are no answer, with `T(q,d⁺) - T(q,d⁻)`, ascending.
    candidates: Vec<Vec<(usize, f32)>>,
    /// Queries of each topic.
    topics: Vec<Vec<usize>>,
    /// The topic of each query that is learned from, and its number.
    learn: Vec<(usize, usize)>,
    held_out: Vec<usize>,
    batch_size: usize,
    objective: Objective,
    /// Packs ids; its weights do not matter.
    packer: ColberterModel,
    seed: u64,
    dropout: bool,
}

impl Colberter {
    fn new(
        pairs: &Pairs,
        teachers: &[&dyn Encoder],
        tokenizer: &WordTokenizer,
        packer: ColberterModel,
        config: &ColberterConfig,
        progress: &dyn Progress,
    ) -> Result<Self, LearnError> {
        let mut numbers = HashMap::new();
        let mut texts: Vec<&str> = Vec::new();
        let mut number = |text: &str| -> usize {
            let next = numbers.len();
            *numbers.entry(text.to_owned()).or_insert(next)
        };
        let positive: Vec<usize> = pairs.0.iter().map(|p| number(&p.positive)).collect();
        let given: Vec<Vec<usize>> = pairs
            .0
            .iter()
            .map(|p| p.negatives.iter().map(|n| number(n)).collect())
            .collect();
        let all = pairs.0.iter().map(|p| p.positive.as_str());
        let all = all.chain(
            pairs
                .0
                .iter()
                .flat_map(|p| p.negatives.iter().map(String::as_str)),
        );
        let mut seen = HashSet::new();
        texts.extend(all.filter(|text| seen.insert(*text)));
        let queries: Vec<&str> = pairs.0.iter().map(|p| p.query.as_str()).collect();
        let teacher = Teacher::new(teachers, &queries, &texts, config.teacher_scale, progress)?;
        let (learn, held_out) = hold_out(pairs.0.len(), config.hold_out, config.seed);
        if learn.len() < 2 || texts.len() < 2 {
            return Err(LearnError::Data(
                "there is no text to tell an answer from; give pairs of different texts".into(),
            ));
        }
        let held: HashSet<usize> = held_out.iter().map(|i| positive[*i]).collect();
        let candidates = candidates(&teacher, &positive, &given, &held, texts.len());
        let topics = topics(&teacher, &learn, config.seed);
        let learn = topics
            .iter()
            .enumerate()
            .flat_map(|(topic, members)| members.iter().map(move |q| (topic, *q)))
            .collect();
        Ok(Self {
            queries: queries
                .iter()
                .map(|text| tokenizer.text(text, config.query_length))
                .collect::<Result<_, _>>()?,
            documents: texts
                .iter()
                .map(|text| tokenizer.text(text, config.document_length))
                .collect::<Result<_, _>>()?,
            positive,
            teacher,
            candidates,
            topics,
            learn,
            held_out,
            batch_size: config.batch_size.max(1),
            objective: Objective {
                pair: config.pair,
                cls: config.cls,
                in_batch: config.in_batch,
                sparsity: config.sparsity,
                words: config.has_words(),
                exact: config.compress_to_exact_mini_mode,
            },
            packer,
            seed: config.seed,
            dropout: config.dropout,
        })
    }

    /// Queries of one topic, and for each a document that is no answer.
    fn draw(&self, rng: &mut StdRng) -> (Vec<usize>, Vec<usize>) {
        let (topic, first) = self.learn[rng.random_range(0..self.learn.len())];
        let mut chosen = vec![first];
        let mut others: Vec<usize> = self.topics[topic]
            .iter()
            .copied()
            .filter(|q| *q != first)
            .collect();
        others.shuffle(rng);
        chosen.extend(others.into_iter().take(self.batch_size - 1));
        // A small topic is filled up with other queries.
        let most = self.batch_size.min(self.learn.len());
        while chosen.len() < most {
            let (_, query) = self.learn[rng.random_range(0..self.learn.len())];
            if !chosen.contains(&query) {
                chosen.push(query);
            }
        }
        let negatives = chosen.iter().map(|q| balanced(&self.candidates[*q], rng));
        let negatives = negatives.collect();
        (chosen, negatives)
    }

    fn pack<'a>(&self, texts: impl Iterator<Item = &'a WordText>) -> Result<WordBatch, LearnError> {
        let texts: Vec<&WordText> = texts.collect();
        let ids: Vec<&[u32]> = texts.iter().map(|t| t.ids.as_slice()).collect();
        let mut batch = WordBatch {
            packed: self.packer.bert_model.pack(&ids).map_err(model_error)?,
            groups: Groups {
                of_rows: Vec::new(),
                starts: vec![0],
                ids: Vec::new(),
            },
        };
        texts.into_iter().for_each(|text| batch.add(text));
        Ok(batch)
    }

    fn make(
        &self,
        queries: &[usize],
        negatives: &[usize],
        dropout: Option<u64>,
    ) -> Result<ColberterBatch, LearnError> {
        let positives = queries.iter().map(|q| self.positive[*q]);
        let documents: Vec<usize> = positives.chain(negatives.iter().copied()).collect();
        let mut teacher = vec![0.0; queries.len() * documents.len()];
        for (row, q) in teacher.chunks_exact_mut(documents.len()).zip(queries) {
            for (cell, d) in row.iter_mut().zip(&documents) {
                *cell = self.teacher.score(*q, *d);
            }
        }
        Ok(ColberterBatch {
            queries: self.pack(queries.iter().map(|q| &self.queries[*q]))?,
            documents: self.pack(documents.iter().map(|d| &self.documents[*d]))?,
            teacher,
            dropout,
            objective: self.objective,
        })
    }
}

/// Texts of one step.
pub struct ColberterBatch {
    queries: WordBatch,
    /// The answers, then in the same order the texts that are none.
    documents: WordBatch,
    /// `[queries, documents]`.
    teacher: Vec<f32>,
    dropout: Option<u64>,
    objective: Objective,
}

impl ColberterBatch {
    fn count(&self) -> usize {
        self.queries.packed.texts()
    }

    fn sides(&self, model: &ColberterModel) -> (Encoded, Encoded) {
        (
            model.encode(&self.queries, true, self.dropout),
            // What is dropped differs between the sides.
            model.encode(&self.documents, false, self.dropout.map(|seed| !seed)),
        )
    }
}

impl Task for Colberter {
    type Model = ColberterModel;
    type Batch = ColberterBatch;

    fn batches_per_epoch(&self) -> u64 {
        self.learn.len().div_ceil(self.batch_size) as u64
    }

    fn batch(&mut self, number: u64) -> Result<ColberterBatch, LearnError> {
        let (queries, negatives) = self.draw(&mut step_rng(self.seed, number));
        let dropout = self.dropout.then(|| step_seed(!self.seed, number));
        self.make(&queries, &negatives, dropout)
    }

    fn items(batch: &ColberterBatch) -> u64 {
        batch.count() as u64
    }

    fn loss(model: &ColberterModel, batch: ColberterBatch) -> Loss {
        let (q, d) = batch.sides(model);
        mixed_loss(model, &q, d, &batch.teacher, batch.objective)
    }
    fn validate(&mut self, model: &ColberterModel) -> Result<Option<Validation>, LearnError> {
        let chosen = &self.held_out[..self.held_out.len().min(MOST_VALIDATED)];
        if chosen.len() < 2 {
            return Ok(None);
        }
        let batch = self.make(chosen, &[], None)?;
        let (q, d) = batch.sides(model);
        let mut scores = q.whole.clone().matmul(d.whole.clone().transpose());
        if self.objective.words {
            scores = model.total(scores, &q, &d, self.objective.exact);
        }
        let same = |i: usize, j: usize| self.positive[chosen[i]] == self.positive[chosen[j]];
        let ranking = Ranking::of(&numbers(&scores), chosen.len(), same);
        let mut validation = ranking.validation();
        if let Some(gates) = &d.gates {
            let gates = numbers(gates);
            let shut = gates.iter().filter(|g| **g <= 0.0).count();
            validation
                .measures
                .push(("words removed", shut as f64 / gates.len().max(1) as f64));
        }
        Ok(Some(validation))
    }
}

/// The loss of what the model made of `n` queries, of their answers and, after those, of
/// `n` texts that are none; `teacher` is `[n, 2n]`.
fn mixed_loss(
    model: &ColberterModel,
    q: &Encoded,
    d: Encoded,
    teacher: &[f32],
    objective: Objective,
) -> Loss {
    let device = model.score_merger.val().device();
    let (n, columns) = (q.whole.dims()[0], d.whole.dims()[0]);
    let whole = q.whole.clone().matmul(d.whole.clone().transpose());
    let teacher = TensorData::new(teacher.to_vec(), [n, columns]);
    let teacher = Tensor::<2>::from_data(teacher, &device);
    let margin = margins(&teacher, n);
    let mut parts = vec![
        (
            "cls",
            objective.cls,
            squares(margins(&whole, n), margin.clone()),
        ),
        (
            "in_batch",
            objective.in_batch,
            divergence(teacher, whole.clone()),
        ),
    ];
    if objective.words {
        let total = model.total(whole, q, &d, objective.exact);
        parts.push(("pair", objective.pair, squares(margins(&total, n), margin)));
    }
    if let Some(gates) = d.gates {
        parts.push(("gates", objective.sparsity, gates.mean()));
    }
    // There are parts, so there is a mix.
    Loss::mix(parts).expect("a loss has parts")
}

/// `scores[i, i] - scores[i, n + i]`, `[n, 1]`.
fn margins(scores: &Tensor<2>, n: usize) -> Tensor<2> {
    let device = scores.device();
    let column = |shift: usize| {
        let places: Vec<i64> = (0..n).map(|i| (shift + i) as i64).collect();
        let places = Tensor::<2, Int>::from_data(TensorData::new(places, [n, 1]), &device);
        scores.clone().gather(1, places)
    };
    column(0) - column(n)
}

fn squares(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    (a - b).powi_scalar(2).mean()
}

/// `KL(softmax(goal) ‖ softmax(scores))`, mean over rows.
fn divergence(goal: Tensor<2>, scores: Tensor<2>) -> Tensor<1> {
    let rows = goal.dims()[0] as f64;
    let wanted = softmax(goal.clone(), 1);
    let far = log_softmax(goal, 1) - log_softmax(scores, 1);
    (wanted * far).sum().div_scalar(rows)
}

/// Turns texts into tokens and words as inference does it.
struct WordTokenizer {
    tokenizer: TextTokenizer,
    words: Option<Words>,
    longest: usize,
}

impl WordTokenizer {
    fn text(&self, text: &str, limit: usize) -> Result<WordText, LearnError> {
        let error = |e: keyfold_core::EncodeError| LearnError::Data(e.to_string());
        let tokens = self
            .tokenizer
            .raw_tokens(text, limit.min(self.longest), true)
            .map_err(error)?
            .map_err(|n| LearnError::Data(format!("a text has {n} tokens")))?;
        let mut word_of = vec![None; tokens.ids.len()];
        let mut ids = Vec::new();
        match self.words {
            Some(how) => {
                for (number, word) in (0..).zip(words(text, &tokens.spans, how).map_err(error)?) {
                    ids.push(word.id);
                    word.tokens
                        .iter()
                        .for_each(|row| word_of[*row] = Some(number));
                }
            }
            None => {
                word_of = (0..tokens.ids.len() as u32).map(Some).collect();
                ids.clone_from(&tokens.ids);
            }
        }
        Ok(WordText {
            ids: tokens.ids,
            word_of,
            words: ids,
        })
    }
}

/// Trains a model on `pairs` with the scores of `teachers`, from the model in `folder`;
/// writes it into `place.out` in the authors' layout unless the user stopped the run.
///
/// # Errors
/// When the model, the data or a setting does not fit, or the run fails.
pub fn train(
    folder: &ModelFolder,
    teachers: &[&dyn Encoder],
    pairs: &Pairs,
    config: &ColberterConfig,
    place: Place<'_>,
) -> Result<Report, TrainError> {
    pairs.require(4)?;
    let how = config.check()?;
    if teachers.is_empty() {
        return Err(TrainError::Config("name at least one teacher".into()));
    }
    let device = Device::flex().autodiff();
    let model = ColberterModel::load(folder, config, &device)?;
    let base = match Heads::of(folder)? {
        Some(_) => backbone(folder)?,
        None => folder.clone(),
    };
    let tokenizer = WordTokenizer {
        tokenizer: TextTokenizer::load(&base, "", false)
            .map_err(|e| LearnError::Data(e.to_string()))?,
        words: config.aggregate_unique_ids.then_some(how),
        longest: model.bert_model.longest(),
    };
    let task = Colberter::new(
        pairs,
        teachers,
        &tokenizer,
        model.clone(),
        config,
        place.progress,
    )?;
    let mut learner = GradientLearner::new(task, model, &config.optim, &device, "pairs")?;
    let mut data = pairs.fingerprint();
    let names = teachers.iter().map(|t| t.identity().hash.clone());
    data["teachers"] = names.collect::<Vec<_>>().into();
    let settings = place.settings("colberter", config, &config.run, data, Some(folder))?;
    place.train(&mut learner, &settings, |learner, out| {
        learner.model().save(out, config)
    })
}

#[cfg(test)]
mod tests;
