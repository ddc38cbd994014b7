//! The second stage of the built-in encoder: it learns to rank pairs as its teacher does, with
//! its keys folded.
//!
//! A step takes pairs whose texts are near each other for the teacher `T`, so that telling them
//! apart says something. With `w` the lengths of a query's keys and `C` the documents' keys, folded
//! in a share of the steps (Veneroso et al. 2025, *CRISP: Clustering Multi-Vector Representations
//! for Denoising and Pruning*):
//!
//! ```text
//! S(q, d) = Σᵢ wᵢ maxⱼ <qᵢ, C(d)ⱼ> / Σᵢ wᵢ
//! pT(d|q) = softmax over d of <T(q), T(d)> / teacher_temperature
//! p(d|q)  = softmax over d of S(q, d) / temperature
//! loss    = mean over q of  KL(pT || p) - pair_loss · log p(q's document | q)
//! ```
//!
//! The first part is distillation (Hinton, Vinyals, Dean 2015, *Distilling the Knowledge in a Neural
//! Network*), the second contrast with the other documents of the step. Table, mixer and the
//! lengths of query keys learn.

mod pairs;
mod scores;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use keyfold_core::Progress;
use keyfold_kernels::fold::Fold;
use rand::rngs::StdRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::adam::{Moments, Step};
use super::{DistillConfig, DistillError, Learning, Rates, Shard, Student, schedule};
pub use pairs::RankingPairs;
use scores::{Folded, Read, Scores};

/// How a student learns to rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RankingConfig {
    /// How documents' keys are folded, as `keyfold index --fold` has it; `none` for all keys.
    pub fold: String,
    /// Share of the steps in which they are folded.
    pub fold_share: f64,
    /// Pairs of a step.
    pub batch_size: usize,
    /// Pairs among which those of a step are the nearest to one of them.
    pub pool: usize,
    /// Divides the student's scores.
    pub temperature: f32,
    /// Divides the teacher's.
    pub teacher_temperature: f32,
    /// Weight of telling the pair's own document from others, beside the teacher's ranking.
    pub pair_loss: f32,
    /// Longest text in tokens while learning.
    pub max_length: usize,
    /// Training steps.
    pub steps: usize,
    /// Peak learning rate of the mixer.
    pub learning_rate: f32,
    /// Peak learning rate of the token table.
    pub table_learning_rate: f32,
    /// Peak learning rate of the lengths of query keys.
    pub query_learning_rate: f32,
    /// Steps over which the learning rate rises; then it falls as a half cosine.
    pub warmup_steps: usize,
}

impl Default for RankingConfig {
    fn default() -> Self {
        Self {
            fold: "c8x32".into(),
            fold_share: 0.5,
            batch_size: 64,
            pool: 4096,
            temperature: 0.05,
            teacher_temperature: 0.05,
            pair_loss: 0.3,
            max_length: 128,
            steps: 2_000,
            learning_rate: 5e-4,
            table_learning_rate: 1e-3,
            query_learning_rate: 2e-3,
            warmup_steps: 100,
        }
    }
}

impl RankingConfig {
    fn fold(&self) -> Result<Option<Fold>, DistillError> {
        match self.fold.as_str() {
            "none" => Ok(None),
            spec => spec
                .parse()
                .map(Some)
                .map_err(|what| DistillError::Config { what }),
        }
    }

    fn check(&self) -> Result<(), DistillError> {
        let wrong = |what: String| Err(DistillError::Config { what });
        for (name, value) in [
            ("temperature", self.temperature),
            ("teacher_temperature", self.teacher_temperature),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return wrong(format!("{name} is {value}; it must be above 0"));
            }
        }
        if self.batch_size < 2 || self.max_length == 0 {
            return wrong("batch_size must be at least 2, and max_length at least 1".into());
        }
        self.fold().map(|_| ())
    }
}

/// Pairs of which every so many are held out.
const HOLD_OUT: usize = 50;
/// Held-out pairs that are ranked at most.
const MOST_RANKED: usize = 512;

/// How well held-out queries find their document among all held-out ones: the mean of one over
/// its rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RankingReport {
    /// Pairs that were learned from.
    pub pairs: usize,
    /// By the student before.
    pub before: f64,
    /// By the student as it is now.
    pub after: f64,
    /// By the teacher.
    pub teacher: f64,
}

/// Teaches a student to rank as `config.ranking` says. `is_key` says which token ids become keys.
///
/// # Errors
/// When a setting makes no sense, there are too few pairs, the loss stops being a number, or the
/// user stops it.
pub fn rank(
    student: &mut Student,
    pairs: &RankingPairs,
    is_key: &[bool],
    config: &DistillConfig,
    progress: &dyn Progress,
) -> Result<RankingReport, DistillError> {
    let (seed, threads) = (config.seed, config.threads);
    let config = &config.ranking;
    config.check()?;
    let (held_out, learn): (Vec<usize>, Vec<usize>) =
        (0..pairs.queries.len()).partition(|pair| pair % HOLD_OUT == HOLD_OUT - 1);
    if learn.len() < 2 {
        return Err(DistillError::NoText);
    }
    let fold = config.fold()?;
    let held_out = &held_out[..held_out.len().min(MOST_RANKED)];
    let stage = Stage {
        pairs,
        is_key,
        config,
        threads,
    };
    let before = stage.found(student, held_out);
    let mut learning = Learning::new(student);
    let mut lengths = Moments::new(student.query_weight.len());
    let mut rng = StdRng::seed_from_u64(seed);
    progress.start("student ranks", "steps", Some(config.steps as u64));
    for number in 1..=config.steps {
        if progress.cancelled() {
            return Err(DistillError::Cancelled);
        }
        let pool = index::sample(&mut rng, learn.len(), config.pool.clamp(2, learn.len()));
        let pool: Vec<usize> = pool.into_iter().map(|i| learn[i]).collect();
        let chosen = pairs.near(&pool, config.batch_size);
        let folded = fold.filter(|_| rng.random::<f64>() < config.fold_share);
        let found = stage.gradients(student, &chosen, folded, rng.random());
        let factor = schedule(number, config.warmup_steps, config.steps);
        let rates = Rates {
            mixer: factor * config.learning_rate,
            table: factor * config.table_learning_rate,
            weight_decay: 0.0,
        };
        if !(found.loss.is_finite() && learning.step(student, found.shards, rates, number, 1.0)) {
            return Err(DistillError::NotFinite { step: number });
        }
        let step = Step {
            number: number as i32,
            learning_rate: factor * config.query_learning_rate,
            weight_decay: 0.0,
            scale: 1.0,
        };
        for (id, slope) in found.lengths {
            let id = id as usize;
            lengths.update(&mut student.query_weight, id, &[slope], step);
            student.query_weight[id] = student.query_weight[id].max(0.0);
        }
        progress.advance(1);
    }
    progress.finish();
    Ok(RankingReport {
        pairs: learn.len(),
        before,
        after: stage.found(student, held_out),
        teacher: mean_reciprocal_rank(&pairs.teacher_scores(held_out), held_out.len()),
    })
}

/// The mean over rows of one over the rank of the number on the diagonal.
fn mean_reciprocal_rank(scores: &[f32], n: usize) -> f64 {
    let rank = |(i, row): (usize, &[f32])| row.iter().filter(|&&s| s > row[i]).count() + 1;
    let ranks = scores.chunks_exact(n.max(1)).enumerate().map(rank);
    ranks.map(|rank| 1.0 / rank as f64).sum::<f64>() / n.max(1) as f64
}

/// What stays the same over the steps.
struct Stage<'a> {
    pairs: &'a RankingPairs,
    is_key: &'a [bool],
    config: &'a RankingConfig,
    threads: usize,
}

/// Gradients of a step.
struct StepGradients {
    loss: f64,
    shards: Vec<Shard>,
    /// Of the lengths of query keys, by token.
    lengths: BTreeMap<u32, f32>,
}

impl Stage<'_> {
    fn read(&self, student: &Student, of: &[Vec<u32>], chosen: &[usize]) -> Read {
        let longest = self.config.max_length;
        let texts: Vec<&[u32]> = chosen
            .iter()
            .map(|&pair| &of[pair][..of[pair].len().min(longest)])
            .collect();
        Read::new(student, &texts, self.is_key, self.threads)
    }

    /// Mean reciprocal rank of some pairs among themselves.
    fn found(&self, student: &Student, chosen: &[usize]) -> f64 {
        let queries = self.read(student, &self.pairs.queries, chosen);
        let documents = self.read(student, &self.pairs.documents, chosen);
        let scores = Scores::new(student, &queries.keys, &documents.keys, self.threads);
        mean_reciprocal_rank(&scores.values, chosen.len())
    }

    fn gradients(
        &self,
        student: &Student,
        chosen: &[usize],
        fold: Option<Fold>,
        seed: u64,
    ) -> StepGradients {
        let n = chosen.len();
        let queries = self.read(student, &self.pairs.queries, chosen);
        let documents = self.read(student, &self.pairs.documents, chosen);
        let folded = Folded::new(&documents.keys, fold, seed);
        let scores = Scores::new(student, &queries.keys, &folded.keys, self.threads);
        let (loss, slopes) = self.loss(&scores.values, &self.pairs.teacher_scores(chosen), n);
        let found = scores.backward(student, &queries.keys, &folded.keys, &slopes);
        let by_documents = folded.backward(&documents.keys, &found.documents);
        let mut shards = queries.backward(student, &found.queries, self.threads);
        shards.extend(documents.backward(student, &by_documents, self.threads));
        StepGradients {
            loss,
            shards,
            lengths: found.lengths,
        }
    }

    /// The loss of scores `[n, n]`, and its gradient by them.
    fn loss(&self, scores: &[f32], teacher: &[f32], n: usize) -> (f64, Vec<f32>) {
        let c = self.config;
        let mut slopes = vec![0.0; n * n];
        let mut loss = 0.0;
        let rows = scores.chunks_exact(n).zip(teacher.chunks_exact(n));
        for (i, ((scores, teacher), slopes)) in rows.zip(slopes.chunks_exact_mut(n)).enumerate() {
            let ours = log_softmax(scores, c.temperature);
            let theirs = log_softmax(teacher, c.teacher_temperature);
            for (j, slope) in slopes.iter_mut().enumerate() {
                let (p, wanted) = (ours[j].exp(), theirs[j].exp());
                loss += f64::from(wanted * (theirs[j] - ours[j]));
                let own = if i == j { 1.0 } else { 0.0 };
                *slope = (p - wanted + c.pair_loss * (p - own)) / (c.temperature * n as f32);
            }
            loss -= f64::from(c.pair_loss * ours[i]);
        }
        (loss / n as f64, slopes)
    }
}

fn log_softmax(scores: &[f32], temperature: f32) -> Vec<f32> {
    let scaled: Vec<f32> = scores.iter().map(|s| s / temperature).collect();
    let most = scaled.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = scaled.iter().map(|s| (s - most).exp()).sum();
    let norm = most + sum.ln();
    scaled.into_iter().map(|s| s - norm).collect()
}
