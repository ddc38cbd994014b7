//! KVQuant: a cache of 2, 3 or 4 bits a number with nearly the text of a 16-bit one. Long
//! contexts take a quarter of the memory and less.
//!
//! Coleman Hooper, Sehoon Kim, Hiva Mohammadzadeh, Michael W. Mahoney, Yakun Sophia Shao,
//! Kurt Keutzer, Amir Gholami (2024): KVQuant: Towards 10 Million Context Length LLM
//! Inference with KV Cache Quantization.
//!
//! Keys are kept as they are before rotary embedding, where their outliers stay in the same
//! channels; they are turned when they are read. Thresholds of a key's channel are fixed
//! ([`Calibration`]), those of a token's values are found when it comes:
//!
//! ```text
//! z = (upper + lower) / 2     r = (upper - lower) / 2     x' = (x - z) / r
//! code(x) = place of the entry of the layer's table that is nearest to x'
//! read(x) = r entry + z       and for x outside of lower..upper exactly x, beside the codes
//! ```
//!
//! The table minimises `Σ F r² (x' - entry)²` over a text, `F` the square of the loss's
//! gradient in `x` ([`Statistics`]). The first tokens, which attention leans on, stay in 16
//! bits.
//!
//! With `b` bits, heads of `d` numbers and a share `ρ` of outliers a row of a head takes
//! `2 d b / 8 + 2 ρ d 4 + 4` bytes; products read the codes
//! ([`nuq`](keyfold_kernels::nuq)), so a dense row is never made while decoding.
//!
//! Where this differs from the authors' code: a prompt sees rows that went through the codes,
//! as their simulation has it and not their kernels; the tables of integers have a zero that
//! is no integer for values too; a row that is written anew ([`KvStore::write`](crate::roles::KvStore::write)) takes the
//! thresholds of its values from its own head alone.

mod calibration;
mod head;
mod quantizer;
mod rotary;
mod rows;
mod sparse;
mod statistics;
mod tables;
#[cfg(test)]
mod tests;
mod view;

use std::sync::Arc;

use keyfold_kernels::attention::Rotation;
use keyfold_kernels::nuq::{KeyCodes, MOST_CHANNELS, ValueCodes, fill_table, table_len};
use serde::{Deserialize, Serialize};

pub use calibration::{Calibration, model_hash};
pub use statistics::{CalibrationConfig, Statistics, Weighting};

use crate::config::Config;
use crate::refusal::Refusal;
use crate::roles::Dims;
use head::Head;
use quantizer::{KeyQuantizer, Outlier, Table, ValueQuantizer};
use rotary::Rotary;
use view::View;

const METHOD: &str = "kvquant";

/// Settings, by the names of the authors' options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KvQuantConfig {
    /// Bits of a code: 2, 3 or 4.
    pub abits: u8,
    /// Where the tables come from.
    pub datatype: Datatype,
    /// Share of numbers that are kept as codes alone; the others lie beside the codes too. 1
    /// for none. Must be that of the calibration.
    pub sparsity_threshold: f64,
    /// Whether a token has at most its share of numbers beside the codes, half of them at
    /// each end.
    pub cap_outliers: bool,
    /// First tokens that are kept in 16 bits.
    pub first_few_fp16: usize,
    /// Q-Norm: rounded numbers get the mean and the deviation of those before. None: at 2 bits.
    pub norm: Option<bool>,
}

impl Default for KvQuantConfig {
    fn default() -> Self {
        Self {
            abits: 3,
            datatype: Datatype::Nuq,
            sparsity_threshold: 0.99,
            cap_outliers: false,
            first_few_fp16: 1,
            norm: None,
        }
    }
}

/// Where tables come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Datatype {
    /// Fitted to a text.
    #[default]
    Nuq,
    /// Quantiles of the normal distribution.
    Nf,
    /// Even steps.
    Int,
}

impl KvQuantConfig {
    /// Refuses what is out of range or fits no head.
    pub fn validate(&self, dims: &Dims) -> Result<(), Refusal> {
        let refuse = |what: String| Err(Refusal::setting(METHOD, what));
        if !(2..=4).contains(&self.abits) {
            return refuse(format!("{} bits: there are 2, 3 and 4", self.abits));
        }
        check_threshold(self.sparsity_threshold)?;
        if !dims.head_dim.is_multiple_of(8) || dims.head_dim > MOST_CHANNELS {
            return refuse(format!(
                "heads of {} numbers: their codes are packed by eight; choose another --cache",
                dims.head_dim
            ));
        }
        if self.norm == Some(true) && self.datatype != Datatype::Nuq {
            return refuse("Q-Norm is made for fitted tables; leave it out".into());
        }
        Ok(())
    }

    /// Whether Q-Norm is used.
    pub fn normed(&self) -> bool {
        let nuq = self.datatype == Datatype::Nuq;
        self.norm.unwrap_or(nuq && self.abits == 2)
    }

    fn table(&self, fitted: &[calibration::Fitted; 3]) -> Table {
        let fitted = &fitted[usize::from(self.abits - 2)];
        match self.datatype {
            Datatype::Nuq => Table::new(&fitted.centroids, self.normed().then_some(fitted.norm)),
            Datatype::Nf => Table::new(&tables::normal_float(self.abits), None),
            Datatype::Int => Table::new(&tables::even(self.abits), None),
        }
    }
}

fn check_threshold(threshold: f64) -> Result<(), Refusal> {
    if threshold > 0.5 && threshold <= 1.0 {
        return Ok(());
    }
    let share = 1.0 - threshold;
    Err(Refusal::setting(
        METHOD,
        format!("a share of outliers of {share} is not between 0 and 0.5"),
    ))
}

/// How a layer's rows become codes and are read.
#[derive(Debug)]
struct Layer {
    keys: KeyQuantizer,
    values: ValueQuantizer,
    /// What the codes of keys stand for, `[kv_heads * head_dim, table_len]`.
    key_tables: Vec<f32>,
    /// What the codes of values stand for.
    value_table: Vec<f32>,
}

/// Keys and values as codes.
#[derive(Debug, Clone)]
pub struct KvQuantStore {
    dims: Dims,
    config: KvQuantConfig,
    layers: Arc<Vec<Layer>>,
    rotary: Rotary,
    /// Whether keys come before rotary embedding.
    before_rope: bool,
    /// `[layers, kv_heads]`.
    heads: Vec<Head>,
    /// Tells calibration and settings from others.
    tag: u32,
    work: Work,
}

/// Buffers of [`KvStore::append`].
#[derive(Debug, Clone, Default)]
struct Work {
    scaled: Vec<f32>,
    key_codes: Vec<u8>,
    value_codes: Vec<u8>,
    key_outliers: Vec<Outlier>,
    value_outliers: Vec<Outlier>,
}

impl KvQuantStore {
    /// An empty store for a model.
    ///
    /// # Errors
    /// When a setting is out of range, or the calibration is of other sizes or of another
    /// share of outliers.
    pub fn new(
        model: &Config,
        config: KvQuantConfig,
        calibration: &Calibration,
    ) -> Result<Self, Refusal> {
        let rotary = Rotary::new(model)?;
        Self::with(model.dims, config, calibration, rotary)
    }

    /// The same for keys after rotary embedding, which are read as they come: what the paper
    /// compares with. The calibration must be of such keys.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn after_rope(
        dims: Dims,
        config: KvQuantConfig,
        calibration: &Calibration,
    ) -> Result<Self, Refusal> {
        let none = Rotary::with(Vec::new(), 1.0, false, vec![false; dims.layers]);
        let mut store = Self::with(dims, config, calibration, none)?;
        store.before_rope = false;
        store.tag ^= 1;
        Ok(store)
    }

    /// An empty store as this one, from which keys are read as they came, unrotated (far keys
    /// of [`ActQkv`](crate::select::act_qkv::ActQkv)).
    pub fn unrotated(&self) -> Self {
        let layers = vec![false; self.dims.layers];
        // Channels stay in the order of the model's rotary pairs.
        let interleaved = self.rotary.rotation == Rotation::Interleaved;
        Self {
            rotary: Rotary::with(Vec::new(), 1.0, interleaved, layers),
            heads: vec![Head::default(); self.heads.len()],
            ..self.clone()
        }
    }

    /// The same for heads that turn as a model of the Llama family with this base does, to be
    /// measured without a model.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn rotating(
        dims: Dims,
        config: KvQuantConfig,
        calibration: &Calibration,
        theta: f32,
    ) -> Result<Self, Refusal> {
        let pairs = dims.head_dim / 2;
        let frequency = |i: usize| theta.powf(-(i as f32) / pairs as f32);
        let all = vec![true; dims.layers];
        let rotary = Rotary::with((0..pairs).map(frequency).collect(), 1.0, false, all);
        Self::with(dims, config, calibration, rotary)
    }

    fn with(
        dims: Dims,
        config: KvQuantConfig,
        calibration: &Calibration,
        rotary: Rotary,
    ) -> Result<Self, Refusal> {
        config.validate(&dims)?;
        calibration.check(&dims, &config)?;
        let interleaved = rotary.rotation == Rotation::Interleaved;
        let bits = u32::from(config.abits);
        let cap = config.cap_outliers.then_some(config.sparsity_threshold);
        let sparse = config.sparsity_threshold < 1.0;
        let layer = |of: &calibration::OfLayer| {
            let [upper, lower] = [&of.upper, &of.lower]
                .map(|t| calibration::channels(t, dims.head_dim, interleaved));
            let keys = KeyQuantizer::new(&upper, &lower, config.table(&of.keys), sparse, cap);
            let mut key_tables = vec![0.0; keys.width() * table_len(bits)];
            let channels = key_tables.chunks_exact_mut(table_len(bits));
            for (channel, to) in channels.enumerate() {
                let (range, zero) = (keys.range[channel], keys.zero[channel]);
                fill_table(to, bits, |i| keys.table.entries[i] * range + zero);
            }
            let table = config.table(&of.values);
            let mut value_table = vec![0.0; table_len(bits)];
            fill_table(&mut value_table, bits, |i| table.entries[i]);
            Layer {
                keys,
                values: ValueQuantizer::new(table, config.sparsity_threshold, config.cap_outliers),
                key_tables,
                value_table,
            }
        };
        let tag = calibration.tag(&config);
        Ok(Self {
            dims,
            layers: Arc::new(calibration.layers().iter().map(layer).collect()),
            rotary,
            before_rope: true,
            heads: vec![Head::default(); dims.layers * dims.kv_heads],
            config,
            tag,
            work: Work::default(),
        })
    }

    /// Its settings.
    pub fn config(&self) -> &KvQuantConfig {
        &self.config
    }

    /// Bytes of tables, thresholds and angles, which do not grow with the rows (those of
    /// angles by a hundredth of a row for each).
    pub fn table_bytes(&self) -> u64 {
        let layer = |l: &Layer| 4 * (l.key_tables.len() + l.value_table.len() + 4 * l.keys.width());
        let layers: usize = self.layers.iter().map(layer).sum();
        layers as u64 + self.rotary.bytes()
    }

    /// Numbers that lie beside the codes, of all keys and of all values, as shares.
    pub fn outlier_shares(&self) -> (f64, f64) {
        let numbers: usize =
            self.heads.iter().map(Head::packed).sum::<usize>() * self.dims.head_dim;
        let share = |of: fn(&Head) -> usize| {
            self.heads.iter().map(of).sum::<usize>() as f64 / numbers.max(1) as f64
        };
        (
            share(|h| h.key_outliers.len()),
            share(|h| h.value_outliers.len()),
        )
    }

    fn bits(&self) -> usize {
        usize::from(self.config.abits)
    }

    fn head(&self, layer: usize, kv_head: usize) -> &Head {
        &self.heads[layer * self.dims.kv_heads + kv_head]
    }

    fn head_mut(&mut self, layer: usize, kv_head: usize) -> &mut Head {
        &mut self.heads[layer * self.dims.kv_heads + kv_head]
    }

    fn view(&self, layer: usize, kv_head: usize) -> View<'_> {
        let (of_layer, head) = (&self.layers[layer], self.head(layer, kv_head));
        let (dim, bits) = (self.dims.head_dim, u32::from(self.config.abits));
        let per_head = dim * table_len(bits);
        View {
            dim,
            turns: self.rotary.turns(layer),
            rotary: &self.rotary,
            keys: KeyCodes {
                bits,
                dim,
                bytes: head.key_bytes(),
                tables: &of_layer.key_tables[kv_head * per_head..][..per_head],
                rotation: self.rotary.rotation,
            },
            values: ValueCodes {
                bits,
                dim,
                bytes: head.value_bytes(),
                table: &of_layer.value_table,
            },
            head,
        }
    }
}
