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

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use half::f16;
use keyfold_core::{Encoder, Progress, Role, atomic};
use keyfold_kernels as kernels;
use keyfold_kernels::fold::{Fold, Groups};
use rand::rngs::StdRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use crate::SentenceEncoder;
use crate::builtin::words;

use super::adam::{Moments, Step};
use super::gradient::{self, Pass};
use super::{DistillConfig, DistillError, Learning, Rates, Shard, Student, schedule};

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

/// Pairs as tokens, and the teacher's vectors of length one for both sides.
pub struct RankingPairs {
    /// Token ids of each query.
    pub queries: Vec<Vec<u32>>,
    /// Token ids of each document.
    pub documents: Vec<Vec<u32>>,
    /// `[pairs, dim]`
    pub query_vectors: Vec<f32>,
    /// `[pairs, dim]`
    pub document_vectors: Vec<f32>,
}

impl RankingPairs {
    /// Lets the teacher read both sides of `pairs` (query, document), or takes what it said in an earlier run from
    /// `cache`.
    pub(super) fn make(
        reader: &Tokenizer,
        teacher: &SentenceEncoder,
        pairs: &[(&str, &str)],
        cache: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, DistillError> {
        let sides = pairs
            .iter()
            .flat_map(|&(query, document)| [query, document]);
        let texts: Vec<&str> = sides.collect();
        let mut ids = Vec::with_capacity(texts.len());
        for text in &texts {
            let pieces = words::pieces(reader, text);
            ids.push(pieces.map_err(|what| DistillError::Config { what })?);
        }
        let vectors = teacher_vectors(teacher, &texts, cache, progress)?;
        let dim = vectors.len() / texts.len().max(1);
        let side = |side: usize| {
            let rows = vectors.chunks_exact(dim.max(1)).skip(side).step_by(2);
            rows.flatten().copied().collect()
        };
        let mut sides = [Vec::new(), Vec::new()];
        for (number, ids) in ids.into_iter().enumerate() {
            sides[number % 2].push(ids);
        }
        let [queries, documents] = sides;
        Ok(Self {
            queries,
            documents,
            query_vectors: side(0),
            document_vectors: side(1),
        })
    }

    fn dim(&self) -> usize {
        self.query_vectors.len() / self.queries.len().max(1)
    }

    fn vector<'a>(&self, of: &'a [f32], pair: usize) -> &'a [f32] {
        let dim = self.dim();
        &of[pair * dim..(pair + 1) * dim]
    }

    /// The pairs of a pool whose documents are nearest to that of its first pair, which
    /// comes first.
    fn near(&self, pool: &[usize], count: usize) -> Vec<usize> {
        let first = self.vector(&self.document_vectors, pool[0]);
        let mut all: Vec<(f32, usize)> = pool
            .iter()
            .map(|&pair| {
                let vector = self.vector(&self.document_vectors, pair);
                (kernels::dot(first, vector), pair)
            })
            .collect();
        all[1..].sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        all.truncate(count);
        all.into_iter().map(|(_, pair)| pair).collect()
    }

    /// `<T(q), T(d)>` of some pairs' queries and documents, `[pairs, pairs]`.
    fn teacher_scores(&self, pairs: &[usize]) -> Vec<f32> {
        let rows = |of: &[f32]| -> Vec<f32> {
            let rows = pairs.iter().flat_map(|&pair| self.vector(of, pair));
            rows.copied().collect()
        };
        let (queries, documents) = (rows(&self.query_vectors), rows(&self.document_vectors));
        let n = pairs.len();
        let mut scores = vec![0.0; n * n];
        kernels::matmul_nt(&mut scores, &queries, &documents, n, n, self.dim(), 1);
        scores
    }
}

/// The teacher's vectors of texts, `[texts, dim]`, of length one. `cache` keeps them.
fn teacher_vectors(
    teacher: &SentenceEncoder,
    texts: &[&str],
    cache: &Path,
    progress: &dyn Progress,
) -> Result<Vec<f32>, DistillError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(teacher.identity().hash.as_bytes());
    for text in texts {
        hasher.update(blake3::hash(text.as_bytes()).as_bytes());
    }
    let key = hasher.finalize().to_hex().to_string();
    if let Some(vectors) = read_vectors(cache, &key) {
        progress.note(&format!(
            "using the teacher's vectors in {}",
            cache.display()
        ));
        return Ok(vectors);
    }
    let mut vectors: Vec<f16> = Vec::new();
    progress.start("teacher reads", "texts", Some(texts.len() as u64));
    for chunk in texts.chunks(TEXTS) {
        if progress.cancelled() {
            return Err(DistillError::Cancelled);
        }
        for mut text in teacher
            .encode(chunk, Role::Document)?
            .into_iter()
            .map(|v| v.as_slice().to_vec())
        {
            let dim = text.len();
            kernels::normalize_rows(&mut text, dim);
            vectors.extend(text.into_iter().map(f16::from_f32));
        }
        progress.advance(chunk.len() as u64);
    }
    progress.finish();
    let dim = vectors.len() / texts.len().max(1);
    let bytes: Vec<u8> = vectors.iter().flat_map(|x| x.to_le_bytes()).collect();
    let written = TensorView::new(Dtype::F16, vec![texts.len(), dim], &bytes)
        .and_then(|view| {
            let metadata = HashMap::from([("key".to_owned(), key)]);
            safetensors::serialize([("vectors", view)], Some(metadata))
        })
        .map_err(std::io::Error::other)
        .and_then(|bytes| atomic::write(cache, &bytes));
    written.map_err(super::io(cache))?;
    Ok(vectors.into_iter().map(f16::to_f32).collect())
}

/// What [`teacher_vectors`] has kept of the same texts.
fn read_vectors(path: &Path, key: &str) -> Option<Vec<f32>> {
    let bytes = std::fs::read(path).ok()?;
    let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
    if header.metadata().as_ref()?.get("key")? != key {
        return None;
    }
    let file = SafeTensors::deserialize(&bytes).ok()?;
    let halves = file.tensor("vectors").ok()?.data().chunks_exact(2);
    Some(
        halves
            .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect(),
    )
}

/// Texts that the teacher reads at a time.
const TEXTS: usize = 256;
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
        let (dq, dd, lengths) = scores.backward(student, &queries.keys, &folded.keys, &slopes);
        let dd = folded.backward(&documents.keys, &dd);
        let mut shards = queries.backward(student, &dq, self.threads);
        shards.extend(documents.backward(student, &dd, self.threads));
        StepGradients {
            loss,
            shards,
            lengths,
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

/// Keys of texts one after the other.
struct Keys {
    dim: usize,
    /// `[keys, dim]`, of length one.
    rows: Vec<f32>,
    /// First key of every text, and the end.
    starts: Vec<usize>,
    /// The token of each key; nothing for folded ones.
    ids: Vec<u32>,
}

impl Keys {
    fn row(&self, number: usize) -> &[f32] {
        &self.rows[number * self.dim..(number + 1) * self.dim]
    }

    fn texts(&self) -> usize {
        self.starts.len() - 1
    }
}

/// Texts that went through the student, and their keys.
struct Read {
    parts: Vec<Part>,
    keys: Keys,
}

/// Texts that one thread read.
struct Part {
    ids: Vec<u32>,
    starts: Vec<usize>,
    pass: Pass,
    /// The key of each token, where it has one.
    key: Vec<Option<usize>>,
}

impl Read {
    fn new(student: &Student, texts: &[&[u32]], is_key: &[bool], threads: usize) -> Self {
        let (h, o) = (
            student.mixer.config.hidden_size,
            student.mixer.config.output_size,
        );
        let read = |texts: &[&[u32]]| {
            let ids: Vec<u32> = texts.iter().flat_map(|t| t.iter().copied()).collect();
            let mut starts = vec![0];
            for text in texts {
                starts.push(starts[starts.len() - 1] + text.len());
            }
            let rows = ids.iter().map(|&id| id as usize * h);
            let x: Vec<f32> = rows
                .flat_map(|at| student.table[at..at + h].iter().copied())
                .collect();
            let pass = gradient::forward(&student.mixer, x, &starts);
            Part {
                key: vec![None; ids.len()],
                ids,
                starts,
                pass,
            }
        };
        let mut parts = shared(texts, threads, read);
        let mut keys = Keys {
            dim: o,
            rows: Vec::new(),
            starts: vec![0],
            ids: Vec::new(),
        };
        for part in &mut parts {
            for text in part.starts.windows(2) {
                for token in text[0]..text[1] {
                    if is_key[part.ids[token] as usize] {
                        part.key[token] = Some(keys.ids.len());
                        keys.ids.push(part.ids[token]);
                        keys.rows
                            .extend_from_slice(&part.pass.y[token * o..(token + 1) * o]);
                    }
                }
                keys.starts.push(keys.ids.len());
            }
        }
        kernels::normalize_rows(&mut keys.rows, o);
        Self { parts, keys }
    }

    /// Gradients of weights and token vectors from those of the keys.
    fn backward(&self, student: &Student, slopes: &[f32], threads: usize) -> Vec<Shard> {
        let o = self.keys.dim;
        let back = |parts: &[Part]| -> Vec<Shard> {
            let part = |part: &Part| {
                let mut dy = vec![0.0; part.pass.y.len()];
                for (token, key) in part.key.iter().enumerate() {
                    let Some(key) = *key else { continue };
                    let range = token * o..(token + 1) * o;
                    let slope = &slopes[key * o..(key + 1) * o];
                    let norm = kernels::norm(&part.pass.y[range.clone()]);
                    unit_backward(&mut dy[range], slope, self.keys.row(key), norm);
                }
                let (mixer, tokens) =
                    gradient::backward(&student.mixer, &part.pass.tape, &part.starts, &dy);
                Shard {
                    ids: part.ids.clone(),
                    mixer,
                    tokens,
                    loss: 0.0,
                    count: 0,
                }
            };
            parts.iter().map(part).collect()
        };
        shared(&self.parts, threads, back)
            .into_iter()
            .flatten()
            .collect()
    }
}

/// Gradient by `y` of a loss whose gradient by `unit = y / |y|` is `slope`.
fn unit_backward(out: &mut [f32], slope: &[f32], unit: &[f32], norm: f32) {
    let along = kernels::dot(slope, unit);
    let scale = 1.0 / norm.max(1e-6);
    for ((out, g), u) in out.iter_mut().zip(slope).zip(unit) {
        *out = (g - along * u) * scale;
    }
}

/// `work` on a share of `all` in each thread, in order.
fn shared<T: Sync, R: Send>(all: &[T], threads: usize, work: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    let share = all.len().div_ceil(crate::run::thread_count(threads)).max(1);
    std::thread::scope(|scope| {
        let handles: Vec<_> = all
            .chunks(share)
            .map(|some| scope.spawn(|| work(some)))
            .collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, R>| {
            handle
                .join()
                .unwrap_or_else(|e| std::panic::resume_unwind(e))
        };
        handles.into_iter().map(join).collect()
    })
}

/// Keys of documents as a folded store has them.
struct Folded {
    keys: Keys,
    /// The folded key of each key, and the length of the mean that it is of times its members.
    of: Vec<(usize, f32)>,
}

impl Folded {
    fn new(keys: &Keys, fold: Option<Fold>, seed: u64) -> Self {
        let dim = keys.dim;
        let mut folded = Keys {
            dim,
            rows: Vec::new(),
            starts: vec![0],
            ids: Vec::new(),
        };
        let mut of = Vec::with_capacity(keys.ids.len());
        for (number, text) in keys.starts.windows(2).enumerate() {
            let rows = &keys.rows[text[0] * dim..text[1] * dim];
            let groups = match fold {
                Some(fold) => fold.groups(rows, dim, false, seed ^ number as u64),
                None => Groups::new((0..(text[1] - text[0]) as u32).collect()),
            };
            let first = folded.rows.len() / dim;
            let mut sums = groups.sums(rows, dim);
            // A row that is dropped has no part in any group, nor a gradient.
            of.extend(groups.of_rows().map(|group| match group {
                Some(group) => (
                    first + group,
                    kernels::norm(&sums[group * dim..(group + 1) * dim]),
                ),
                None => (usize::MAX, 0.0),
            }));
            kernels::normalize_rows(&mut sums, dim);
            folded.rows.extend(sums);
            folded.starts.push(folded.rows.len() / dim);
        }
        Self { keys: folded, of }
    }

    /// Gradient by the keys from that by the folded keys.
    fn backward(&self, keys: &Keys, slopes: &[f32]) -> Vec<f32> {
        let dim = keys.dim;
        let mut out = vec![0.0; keys.rows.len()];
        for (&(group, norm), out) in self.of.iter().zip(out.chunks_exact_mut(dim)) {
            if group != usize::MAX {
                let slope = &slopes[group * dim..(group + 1) * dim];
                unit_backward(out, slope, self.keys.row(group), norm);
            }
        }
        out
    }
}

/// Scores of queries and documents, and which key of a document each query key found.
struct Scores {
    /// `[queries, documents]`
    values: Vec<f32>,
    /// `[query keys, documents]`: the key found and its product.
    found: Vec<(u32, f32)>,
    /// Sum of the lengths of each query's keys.
    lengths: Vec<f32>,
}

impl Scores {
    fn new(student: &Student, queries: &Keys, documents: &Keys, threads: usize) -> Self {
        let (texts, dim) = (documents.texts(), documents.dim);
        let keys = documents.rows.len() / dim;
        let numbers: Vec<usize> = (0..queries.ids.len()).collect();
        let find = |numbers: &[usize]| {
            let rows = &queries.rows[numbers[0] * dim..(numbers[0] + numbers.len()) * dim];
            let mut products = vec![0.0; numbers.len() * keys];
            let n = numbers.len();
            kernels::matmul_nt(&mut products, rows, &documents.rows, n, keys, dim, 1);
            let mut found = Vec::with_capacity(n * texts);
            for number in 0..n {
                let row = &products[number * keys..(number + 1) * keys];
                for text in documents.starts.windows(2) {
                    let best = (text[0]..text[1]).max_by(|&a, &b| row[a].total_cmp(&row[b]));
                    // A document without keys is found by nothing.
                    found.push(best.map_or((u32::MAX, 0.0), |b| (b as u32, row[b])));
                }
            }
            found
        };
        let found: Vec<(u32, f32)> = shared(&numbers, threads, find).concat();
        let mut values = vec![0.0; queries.texts() * texts];
        let mut lengths = vec![0.0; queries.texts()];
        for (query, text) in queries.starts.windows(2).enumerate() {
            let values = &mut values[query * texts..(query + 1) * texts];
            for key in text[0]..text[1] {
                let length = student.query_weight[queries.ids[key] as usize];
                lengths[query] += length;
                let found = &found[key * texts..(key + 1) * texts];
                for (value, (_, product)) in values.iter_mut().zip(found) {
                    *value += length * product;
                }
            }
            let scale = 1.0 / lengths[query].max(f32::MIN_POSITIVE);
            values.iter_mut().for_each(|x| *x *= scale);
        }
        Self {
            values,
            found,
            lengths,
        }
    }

    /// Gradients by query keys, document keys and lengths of query keys from those by the scores.
    #[allow(
        clippy::type_complexity,
        reason = "three gradients, taken apart at once"
    )]
    fn backward(
        &self,
        student: &Student,
        queries: &Keys,
        documents: &Keys,
        slopes: &[f32],
    ) -> (Vec<f32>, Vec<f32>, BTreeMap<u32, f32>) {
        let (texts, dim) = (documents.texts(), documents.dim);
        let mut dq = vec![0.0; queries.rows.len()];
        let mut dd = vec![0.0; documents.rows.len()];
        let mut lengths = BTreeMap::new();
        for (query, text) in queries.starts.windows(2).enumerate() {
            let scale = 1.0 / self.lengths[query].max(f32::MIN_POSITIVE);
            for key in text[0]..text[1] {
                let id = queries.ids[key];
                let share = scale * student.query_weight[id as usize];
                let mut by_length = 0.0;
                for document in 0..texts {
                    let (best, product) = self.found[key * texts + document];
                    let slope = slopes[query * texts + document];
                    by_length += slope * scale * (product - self.values[query * texts + document]);
                    if best == u32::MAX {
                        continue;
                    }
                    let at = best as usize * dim;
                    let out = &mut dq[key * dim..(key + 1) * dim];
                    kernels::axpy(out, slope * share, &documents.rows[at..at + dim]);
                    kernels::axpy(&mut dd[at..at + dim], slope * share, queries.row(key));
                }
                *lengths.entry(id).or_insert(0.0) += by_length;
            }
        }
        (dq, dd, lengths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::mixer::{Mixer, MixerConfig};
    use keyfold_core::NoProgress;

    /// Words of queries; word `i` of documents is token `WORDS + i` and means the same.
    const WORDS: usize = 12;

    fn student(seed: u64) -> Student {
        let config = MixerConfig {
            vocab_size: 2 * WORDS,
            hidden_size: 8,
            num_blocks: 1,
            kernel_size: 3,
            intermediate_size: 5,
            output_size: 6,
            max_length: 9,
        };
        let mut rng = StdRng::seed_from_u64(seed);
        let mut mixer = Mixer::zeros(&config);
        for (_, _, data) in mixer.tensors_mut() {
            data.iter_mut()
                .for_each(|x| *x = rng.random_range(-0.7..0.7));
        }
        let numbers = config.vocab_size * config.hidden_size;
        Student {
            table: (0..numbers).map(|_| rng.random_range(-1.0..1.0)).collect(),
            query_weight: (0..config.vocab_size)
                .map(|_| rng.random_range(0.3..1.0))
                .collect(),
            mixer,
            held_out_cosine: 0.0,
        }
    }

    /// A query of two words and a document of the same words and a third, in another order.
    fn pairs(count: usize) -> RankingPairs {
        let mut rng = StdRng::seed_from_u64(3);
        let mut all = RankingPairs {
            queries: Vec::new(),
            documents: Vec::new(),
            query_vectors: Vec::new(),
            document_vectors: Vec::new(),
        };
        for _ in 0..count {
            let words = index::sample(&mut rng, WORDS, 3).into_vec();
            let token = |&word: &usize| (WORDS + word) as u32;
            all.queries
                .push(words[..2].iter().map(|&w| w as u32).collect());
            all.documents.push(words.iter().rev().map(token).collect());
            for (vectors, said) in [
                (&mut all.query_vectors, &words[..2]),
                (&mut all.document_vectors, &words[..]),
            ] {
                let scale = 1.0 / (said.len() as f32).sqrt();
                vectors.extend((0..WORDS).map(|w| if said.contains(&w) { scale } else { 0.0 }));
            }
        }
        all
    }

    fn config(fold: &str) -> DistillConfig {
        DistillConfig {
            threads: 2,
            ranking: RankingConfig {
                fold: fold.into(),
                batch_size: 8,
                pool: 16,
                steps: 150,
                warmup_steps: 10,
                learning_rate: 1e-2,
                table_learning_rate: 2e-2,
                temperature: 0.2,
                teacher_temperature: 0.2,
                ..RankingConfig::default()
            },
            ..DistillConfig::default()
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let (pairs, is_key) = (pairs(5), vec![true; 2 * WORDS]);
        let config = config("none").ranking;
        let stage = Stage {
            pairs: &pairs,
            is_key: &is_key,
            config: &config,
            threads: 2,
        };
        let chosen = [0, 1, 2, 3, 4];
        for fold in [None, Some(Fold::Space(2)), Some(Fold::Ward(2))] {
            let loss = |s: &Student| stage.gradients(s, &chosen, fold, 1).loss;
            let mut start = student(1);
            let found = stage.gradients(&start, &chosen, fold, 1);
            let step = 2e-3;
            let check = |name: &str, up: f64, down: f64, ours: f32| {
                let differences = (up - down) / f64::from(2.0 * step);
                assert!(
                    (differences - f64::from(ours)).abs() < 2e-2 * (1.0 + differences.abs()),
                    "{fold:?} {name}: {differences} by differences, {ours} by backward"
                );
            };
            let h = start.mixer.config.hidden_size;
            let mut table = vec![0.0; start.table.len()];
            for shard in &found.shards {
                for (id, row) in shard.ids.iter().zip(shard.tokens.chunks_exact(h)) {
                    kernels::add_assign(&mut table[*id as usize * h..][..h], row);
                }
            }
            let moved = |at: usize, by: f32| {
                let mut moved = student(1);
                moved.table[at] += by;
                loss(&moved)
            };
            for (at, &ours) in table.iter().enumerate().step_by(5) {
                check("table", moved(at, step), moved(at, -step), ours);
            }
            for (&id, &ours) in &found.lengths {
                let moved = |by: f32| {
                    let mut moved = student(1);
                    moved.query_weight[id as usize] += by;
                    loss(&moved)
                };
                check("length", moved(step), moved(-step), ours);
            }
            let tensors = start.mixer.tensors_mut().len();
            for tensor in 0..tensors {
                let mut sum = 0.0;
                for shard in &found.shards {
                    sum += shard.mixer.clone().tensors_mut()[tensor].2[0];
                }
                let moved = |by: f32| {
                    let mut moved = student(1);
                    moved.mixer.tensors_mut()[tensor].2[0] += by;
                    loss(&moved)
                };
                let name = start.mixer.tensors_mut()[tensor].0.clone();
                check(&name, moved(step), moved(-step), sum);
            }
        }
    }

    #[test]
    fn a_student_learns_to_find_what_belongs_together() {
        let (pairs, is_key) = (pairs(400), vec![true; 2 * WORDS]);
        for fold in ["none", "c2x2"] {
            let learn = || {
                let mut student = student(2);
                let report = rank(&mut student, &pairs, &is_key, &config(fold), &NoProgress);
                (report.unwrap(), student)
            };
            let (report, student) = learn();
            assert!(report.before < 0.6, "{fold}: {report:?}");
            assert!(report.after > 0.85, "{fold}: {report:?}");
            // The same seed gives the same weights.
            let (again, other) = learn();
            assert_eq!(report, again);
            assert_eq!(student.table, other.table);
        }
    }

    #[test]
    fn settings_without_sense_are_refused() {
        let (pairs, is_key) = (pairs(8), vec![true; 2 * WORDS]);
        let refuse = |change: &dyn Fn(&mut RankingConfig)| {
            let mut config = config("none");
            change(&mut config.ranking);
            rank(&mut student(0), &pairs, &is_key, &config, &NoProgress)
                .unwrap_err()
                .to_string()
        };
        assert!(refuse(&|c| c.temperature = 0.0).contains("temperature is 0"));
        assert!(refuse(&|c| c.batch_size = 1).contains("batch_size"));
        assert!(refuse(&|c| c.fold = "c0".into()).contains('0'));
    }
}
