//! A look-up table between a frozen encoder and the classes, that learns classes one after
//! another without forgetting.
//!
//! Träuble et al.: Discrete Key-Value Bottleneck (ICML 2023). A row is cut or projected into
//! `C` heads of `k` numbers. Each head looks up the nearest of the `J` keys of its codebook,
//! and the mean of the values found there, one for each class, is the score:
//!
//! `s(x) = 1/C Σ_c Σ_{j ∈ nearest(R_cᵀx)} V[c, j]`
//!
//! Or a decoder with weights ([`Decoder`]) makes the score of all values found, side by side.
//!
//! Keys are placed once, without labels ([`fit_keys`](KeyValueBottleneck::fit_keys)), by
//! moving averages, and stay. Learning ([`partial_fit`](KeyValueBottleneck::partial_fit))
//! moves only the values that the rows look up, so that what other rows have learned stays
//! where it is. Keys that no row has ever looked up are not found when telling.
//!
//! Cost of a look-up: `C · J · k` multiplications a row; done once for each row, since the
//! keys stay: a pass of learning is `C` rows of values gathered and scattered.

mod config;
mod decoder;
mod keys;
mod saved;
#[cfg(test)]
mod tests;
mod values;

use keyfold_core::Progress;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use crate::{Classifier, Labels, PredictError, Table};
use config::{check, setting};
use decoder::Network;
use keys::Keys;
use values::{Moments, Values};

pub use config::{Decoder, InitMode, KeyValueBottleneckConfig, Optimizer, Split};

/// Rows that a decoder with weights reads together.
const ROWS: usize = 1024;

/// A table of keys and values.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyValueBottleneck {
    config: KeyValueBottleneckConfig,
    columns: usize,
    classes: Vec<String>,
    /// No labels but these may be learned.
    fixed: bool,
    /// `[columns, codebooks · key_dim]`, none when rows are cut.
    projection: Option<Vec<f32>>,
    keys: Keys,
    values: Values,
    /// A decoder with weights.
    network: Option<Box<Network>>,
    moments: Moments,
    /// What learned rows have looked up, `[rows, codebooks · topk]`.
    learned: Vec<u32>,
    /// Steps of drawing orders so far, so that each call draws another.
    calls: u64,
}

/// Why a row is told what it is told.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Explanation {
    /// Scores of the classes.
    pub scores: Vec<f64>,
    /// The pairs that were found, by what they say for the class told, most first.
    pub votes: Vec<Vote>,
    /// The learned rows (in the order in which they were learned) that looked up most of
    /// the same pairs, and how many; most first.
    pub rows: Vec<(usize, usize)>,
}

/// What a pair says.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Vote {
    /// The codebook.
    pub codebook: usize,
    /// The pair.
    pub pair: usize,
    /// The class that its value is greatest for.
    pub class: String,
    /// Its value for the class that the row is told; with a decoder that has weights, what the score
    /// loses when the value becomes 0.
    pub value: f32,
    /// Squared distance from the head to the key.
    pub distance: f32,
    /// Rows that it was learned from.
    pub count: u32,
}

impl KeyValueBottleneck {
    /// Places keys by the rows, then learns their classes.
    pub fn fit(
        x: &Table,
        labels: &Labels,
        config: &KeyValueBottleneckConfig,
        progress: &dyn Progress,
    ) -> Result<Self, PredictError> {
        labels.check(x.rows())?;
        let mut model = Self::new(x.columns(), config)?;
        model.fit_keys(x, progress)?;
        model.partial_fit(x, labels, progress)?;
        Ok(model)
    }

    /// A table that knows nothing yet.
    pub fn new(columns: usize, config: &KeyValueBottleneckConfig) -> Result<Self, PredictError> {
        check(config, columns)?;
        let mut rng = SmallRng::seed_from_u64(config.seed);
        let (c, k) = (config.num_codebooks, config.dim_keys);
        let projection = match config.splitting_mode {
            Split::Chunk => None,
            Split::RandomProjection => {
                let mut all: Vec<f32> = (0..columns * c * k).map(|_| normal(&mut rng)).collect();
                let width = c * k;
                for column in 0..width {
                    let squares: f32 = (0..columns).map(|i| all[i * width + column].powi(2)).sum();
                    let scale = 1.0 / squares.sqrt().max(1e-12);
                    (0..columns).for_each(|i| all[i * width + column] *= scale);
                }
                Some(all)
            }
            Split::LearnedProjection => {
                let bound = 1.0 / (columns as f32).sqrt();
                let draw = |_| rng.random_range(-bound..bound);
                Some((0..columns * c * k).map(draw).collect())
            }
        };
        let keys = Keys::random(config, &mut rng);
        Ok(Self {
            config: *config,
            columns,
            classes: Vec::new(),
            fixed: false,
            projection,
            keys,
            values: Values::new(c, config.key_value_pairs_per_codebook),
            network: None,
            moments: Moments::default(),
            learned: Vec::new(),
            calls: 0,
        })
    }

    /// Says which classes there will ever be; others are then refused.
    pub fn with_classes(mut self, classes: &[String]) -> Self {
        self.grow(classes);
        self.fixed = true;
        self
    }

    /// Replaces projection and keys (`[codebooks, pairs, key_dim]`) by given ones. The projection is
    /// `[codebooks, columns, key_dim]`, a learned one `[key_dim · codebooks, columns]`, as the authors
    /// keep them.
    pub fn with_keys(
        mut self,
        projection: Option<&[f32]>,
        keys: &[f32],
    ) -> Result<Self, PredictError> {
        if let (Some(there), Some(given)) = (&mut self.projection, projection) {
            if there.len() != given.len() {
                return Err(setting("projection", "has another shape".into()));
            }
            let k = self.config.dim_keys;
            *there = match self.config.splitting_mode {
                Split::LearnedProjection => turned(given, self.columns, k),
                _ => interleaved(given, self.columns, k),
            };
        }
        self.keys.replace(keys)?;
        Ok(self)
    }

    /// Places the keys by rows of any kind, without labels: passes of moving averages.
    pub fn fit_keys(&mut self, x: &Table, progress: &dyn Progress) -> Result<(), PredictError> {
        if !self.learned.is_empty() {
            return Err(PredictError::NotReady(
                "keys cannot be placed anew once rows were learned; begin with a new table",
            ));
        }
        let heads = self.heads(x)?;
        let mut rng = SmallRng::seed_from_u64(self.config.seed ^ 0x6b65);
        self.keys.place(&heads, &self.config, &mut rng, progress)
    }

    /// Learns the classes of more rows. Labels may bring new classes.
    pub fn partial_fit(
        &mut self,
        x: &Table,
        labels: &Labels,
        progress: &dyn Progress,
    ) -> Result<(), PredictError> {
        if !self.keys.placed {
            return Err(PredictError::NotReady(
                "the keys are not placed yet; call fit_keys with rows (labels are not needed)",
            ));
        }
        labels.check_count(x.rows())?;
        let mut present = labels.codes().to_vec();
        present.sort_unstable();
        present.dedup();
        let present: Vec<String> = (present.into_iter())
            .map(|code| labels.classes()[code].clone())
            .collect();
        if self.fixed {
            Labels::among(&self.classes, &present)?;
        } else {
            self.grow(&present);
        }
        let names: Vec<&str> = (0..x.rows()).map(|i| labels.name(i)).collect();
        let labels = Labels::among(&self.classes, &names)?;
        let found = self.keys.look_up(&self.heads(x)?, self.config.topk, false);
        self.calls += 1;
        let seed = self.config.seed ^ self.calls.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.values.learn(
            &found,
            labels.codes(),
            &self.config,
            (&mut self.moments, &mut self.network),
            seed,
            progress,
        )?;
        self.keys.count(&found, self.config.topk);
        self.learned.extend(found);
        Ok(())
    }

    /// Takes a class out: its scores are gone, those of the others stay.
    pub fn forget(&mut self, class: &str) -> Result<(), PredictError> {
        let known = Labels::among(&self.classes, &[class])?;
        let place = known.codes()[0];
        match &mut self.network {
            None => self.values.remove(place),
            Some(network) => network.layers.remove(place),
        }
        self.classes.remove(place);
        self.moments = Moments::default();
        Ok(())
    }

    /// Adds what another table with the same keys has learned.
    pub fn merge(&mut self, other: &Self) -> Result<(), PredictError> {
        let same = self.projection == other.projection && self.keys.same_places(&other.keys);
        if self.network.is_some() || other.network.is_some() {
            return Err(setting(
                "merge",
                "what two tables learned adds up for decoder=codebook-voting-logits alone".into(),
            ));
        }
        if !same || self.config.topk != other.config.topk {
            return Err(setting(
                "merge",
                "the tables have other keys; only tables that began with the same placed keys \
                 can be merged"
                    .into(),
            ));
        }
        self.grow(&other.classes);
        let places: Vec<usize> = Labels::among(&self.classes, &other.classes)?
            .codes()
            .to_vec();
        self.values.add(&other.values, &places);
        self.keys.add_counts(&other.keys);
        self.learned.extend(&other.learned);
        Ok(())
    }

    /// Which pairs told the class of a row, and which learned rows fill them.
    pub fn explain(&self, row: &[f64], rows: usize) -> Result<Explanation, PredictError> {
        let x = Table::new(self.columns, row.to_vec())?;
        let scores = self.logits(&x)?;
        let class = self.decide(&scores);
        let heads = self.heads(&x)?;
        let topk = self.config.topk;
        let found = self.keys.look_up(&heads, topk, true);
        let mut votes: Vec<Vote> = (found.iter().enumerate())
            .map(|(place, &pair)| {
                let (codebook, pair) = (place / topk, pair as usize);
                let value = self.said(&found, codebook, pair);
                let best = (0..value.len()).max_by(|&a, &b| value[a].total_cmp(&value[b]));
                Vote {
                    codebook,
                    pair,
                    class: best.map_or(String::new(), |b| self.classes[b].clone()),
                    value: value[class],
                    distance: self.keys.distance(&heads, codebook, pair),
                    count: self.keys.counts[codebook * self.keys.pairs + pair],
                }
            })
            .collect();
        votes.sort_by(|a, b| b.value.total_cmp(&a.value));
        let same = |learned: &[u32]| learned.iter().zip(&found).filter(|(a, b)| a == b).count();
        let mut near: Vec<(usize, usize)> = (self.learned.chunks_exact(found.len()))
            .map(same)
            .enumerate()
            .collect();
        near.sort_by_key(|&(row, same)| (std::cmp::Reverse(same), row));
        near.truncate(rows);
        Ok(Explanation {
            scores,
            votes,
            rows: near,
        })
    }

    /// What a pair that was found says of each class.
    fn said(&self, found: &[u32], codebook: usize, pair: usize) -> Vec<f32> {
        let Some(network) = &self.network else {
            return self.values.row(codebook, pair).to_vec();
        };
        let mut values = self.values.of(found);
        let whole = network.scores(&values);
        let width = self.values.width;
        values[codebook * width..][..width].fill(0.0);
        let without = network.scores(&values);
        whole.iter().zip(&without).map(|(a, b)| a - b).collect()
    }

    /// The settings.
    pub fn config(&self) -> &KeyValueBottleneckConfig {
        &self.config
    }

    /// Keys, `[codebooks, pairs, key_dim]`.
    pub fn keys(&self) -> &[f32] {
        &self.keys.keys
    }

    /// Values, `[codebooks, pairs, classes]`, or `dim_values` of a decoder with weights.
    pub fn values(&self) -> &[f32] {
        &self.values.numbers
    }

    /// For each pair the number of rows it was learned from, `[codebooks, pairs]`.
    pub fn counts(&self) -> &[u32] {
        &self.keys.counts
    }

    /// Share of the pairs that no learned row has looked up.
    pub fn unused(&self) -> f64 {
        let unused = self.keys.counts.iter().filter(|n| **n == 0).count();
        unused as f64 / self.keys.counts.len() as f64
    }

    /// The pairs that rows look up, `[rows, codebooks, topk]`; `learned`: only those that
    /// learned rows have looked up.
    pub fn look_up(&self, x: &Table, learned: bool) -> Result<Vec<u32>, PredictError> {
        Ok(self
            .keys
            .look_up(&self.heads(x)?, self.config.topk, learned))
    }

    /// Heads of rows, `[rows, codebooks · key_dim]`.
    fn heads(&self, x: &Table) -> Result<Vec<f32>, PredictError> {
        x.expect_columns(self.columns)?;
        let rows = x.to_f32();
        let Some(projection) = &self.projection else {
            return Ok(rows);
        };
        let width = projection.len() / self.columns;
        let mut heads = vec![0.0; x.rows() * width];
        keyfold_kernels::matmul_nn(
            &mut heads,
            &rows,
            projection,
            x.rows(),
            width,
            self.columns,
            rayon::current_num_threads(),
        );
        Ok(heads)
    }

    fn grow(&mut self, classes: &[String]) {
        let new: Vec<String> = (classes.iter())
            .filter(|c| !self.classes.contains(c))
            .cloned()
            .collect();
        if new.is_empty() {
            return;
        }
        self.classes.extend(new);
        let config = self.config;
        let seed = config.seed ^ 0x7661_6c75 ^ self.classes.len() as u64;
        if config.decoder == Decoder::CodebookVotingLogits {
            self.values
                .grow(self.classes.len(), config.init_values, seed);
            self.moments = Moments::default();
            return;
        }
        let mut rng = SmallRng::seed_from_u64(seed);
        if self.network.is_none() {
            let width = match config.dim_values {
                0 => self.classes.len(),
                width => width,
            };
            self.values.grow(width, config.init_values, seed);
            self.network = Network::new(&config, width, &mut rng);
        }
        if let Some(network) = &mut self.network {
            network.layers.grow(self.classes.len(), &mut rng);
        }
    }
}

impl Classifier for KeyValueBottleneck {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn logits(&self, x: &Table) -> Result<Vec<f64>, PredictError> {
        let heads = self.heads(x)?;
        if self.learned.is_empty() {
            return Err(PredictError::NotReady(
                "the table has learned no rows; call fit or partial_fit first",
            ));
        }
        let found = self.keys.look_up(&heads, self.config.topk, true);
        let per_row = self.config.num_codebooks * self.config.topk;
        let Some(network) = &self.network else {
            return Ok(self.values.scores(&found, per_row));
        };
        // Some rows at a time: all of their values lie side by side.
        let values = |found: &[u32]| -> Vec<f32> {
            let rows = found.par_chunks(per_row);
            rows.flat_map_iter(|found| self.values.of(found)).collect()
        };
        let parts = found.chunks(per_row * ROWS);
        let scores = parts.flat_map(|found| network.scores(&values(found)));
        Ok(scores.map(f64::from).collect())
    }
}

fn normal(rng: &mut SmallRng) -> f32 {
    keyfold_core::normal(|| rng.random()) as f32
}

/// `[k · books, columns]` as `[columns, books · k]`.
fn turned(given: &[f32], columns: usize, k: usize) -> Vec<f32> {
    let books = given.len() / (columns * k).max(1);
    let mut all = Vec::with_capacity(given.len());
    for i in 0..columns {
        for c in 0..books {
            all.extend((0..k).map(|x| given[(x * books + c) * columns + i]));
        }
    }
    all
}

/// `[books, columns, k]` as `[columns, books · k]`.
fn interleaved(given: &[f32], columns: usize, k: usize) -> Vec<f32> {
    let books = given.len() / (columns * k).max(1);
    let mut all = Vec::with_capacity(given.len());
    for i in 0..columns {
        for c in 0..books {
            all.extend(&given[(c * columns + i) * k..][..k]);
        }
    }
    all
}
