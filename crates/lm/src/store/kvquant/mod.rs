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
//! is no integer for values too; a row that is written anew ([`KvStore::write`]) takes the
//! thresholds of its values from its own head alone.

mod calibration;
mod head;
mod quantizer;
mod rotary;
mod sparse;
mod statistics;
mod tables;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use keyfold_kernels::axpy;
use keyfold_kernels::nuq::{
    Angles, GRANULE, KeyCodes, ValueCodes, dot_keys, fill_table, mix_values, read_keys,
    read_values, table_len,
};
use serde::{Deserialize, Serialize};

pub use calibration::{Calibration, model_hash};
pub use statistics::{CalibrationConfig, Statistics, Weighting};

use crate::config::Config;
use crate::refusal::Refusal;
use crate::roles::{Dims, KvStore, Needs, RowSet};
use head::{Head, Packed};
use quantizer::{KeyQuantizer, Outlier, Table, ValueQuantizer};
use rotary::Rotary;
use sparse::{Entry, MOST_CHANNELS};

const METHOD: &str = "kvquant";

/// Rows whose weights are scaled together.
const NEAR: usize = 256;

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
        let interleaved = rotary.rotation == keyfold_kernels::attention::Rotation::Interleaved;
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

/// Rows of one layer and KV head, to be read.
struct View<'a> {
    dim: usize,
    turns: bool,
    rotary: &'a Rotary,
    keys: KeyCodes<'a>,
    values: ValueCodes<'a>,
    head: &'a Head,
}

/// Queries that were turned back, and where to.
struct Turned {
    queries: Vec<f32>,
    block: Option<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl View<'_> {
    /// The run of granules from `granule` on, before `end`, that one block of angles reaches;
    /// the block, and the column of the first row.
    fn run(&self, granule: usize, end: usize) -> (usize, Option<(u32, usize)>) {
        if !self.turns {
            return (end.min(granule + 8), None);
        }
        let Some(start) = self.head.consecutive(granule) else {
            return (granule + 1, None);
        };
        let (block, column) = Rotary::place(start);
        let mut last = granule + 1;
        let mut next = start + GRANULE as u32;
        while last < end
            && Rotary::place(next).0 == block
            && self.head.consecutive(last) == Some(next)
        {
            last += 1;
            next += GRANULE as u32;
        }
        (last, Some((block, column)))
    }

    /// Calls `read(angles, column, queries)` with the queries and angles that fit a run.
    fn with_angles<R>(
        &self,
        granule: usize,
        place: Option<(u32, usize)>,
        queries: &[f32],
        turned: &mut Turned,
        read: impl FnOnce(Angles, usize, &[f32]) -> R,
    ) -> R {
        let Some((block, column)) = place else {
            if !self.turns {
                return read(Rotary::still(), 0, queries);
            }
            let first = self.head.sinks + granule * GRANULE;
            let end = self.head.positions.len().min(first + GRANULE);
            let positions = &self.head.positions[first..end];
            self.rotary
                .of_each(positions, &mut turned.cos, &mut turned.sin);
            let angles = Angles {
                cos: &turned.cos,
                sin: &turned.sin,
                stride: GRANULE,
            };
            return read(angles, 0, queries);
        };
        if turned.block != Some(block) {
            turned.queries.clear();
            turned.queries.extend_from_slice(queries);
            self.rotary.turn_back(block, &mut turned.queries, self.dim);
            turned.block = Some(block);
        }
        read(self.rotary.rests(), column, &turned.queries)
    }

    /// Products of the queries with all rows of the granules `granules` (counted from the
    /// first row of codes), `[g, granules * 8]`.
    fn scores(
        &self,
        granules: Range<usize>,
        place: Option<(u32, usize)>,
        queries: &[f32],
        turned: &mut Turned,
        out: &mut Vec<f32>,
    ) {
        let (rows, g) = (granules.len() * GRANULE, queries.len() / self.dim);
        out.clear();
        out.resize(g * rows, 0.0);
        self.with_angles(
            granules.start,
            place,
            queries,
            turned,
            |angles, column, queries| {
                dot_keys(self.keys, angles, granules.clone(), column, queries, out);
                for (i, granule) in granules.clone().enumerate() {
                    for &entry in self.head.key_outliers.of_granule(granule) {
                        let row = i * GRANULE + entry.row();
                        self.add_outlier(entry, angles, column + row, queries, row, rows, out);
                    }
                }
            },
        );
    }

    /// Adds an outlier of the row at `column` of the angles to the scores of `row`.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    fn add_outlier(
        &self,
        entry: Entry,
        angles: Angles,
        column: usize,
        queries: &[f32],
        row: usize,
        rows: usize,
        out: &mut [f32],
    ) {
        let (channel, residual) = (entry.channel(), entry.residual());
        let scores = out[row..].iter_mut().step_by(rows);
        let queries = queries.chunks_exact(self.dim);
        match self.partner(channel, angles) {
            None => scores
                .zip(queries)
                .for_each(|(s, q)| *s += residual * q[channel]),
            Some((pair, partner, sign)) => {
                let at = pair * angles.stride + column;
                let (own, other) = (residual * angles.cos[at], sign * residual * angles.sin[at]);
                scores
                    .zip(queries)
                    .for_each(|(s, q)| *s += own * q[channel] + other * q[partner]);
            }
        }
    }

    /// The pair of a channel, the other channel of it, and the sign with which turning brings
    /// a number there.
    fn partner(&self, channel: usize, angles: Angles) -> Option<(usize, usize, f32)> {
        let pairs = angles.pairs();
        if channel >= 2 * pairs {
            return None;
        }
        Some(match self.keys.rotation {
            keyfold_kernels::attention::Rotation::Half if channel < pairs => {
                (channel, channel + pairs, 1.0)
            }
            keyfold_kernels::attention::Rotation::Half => (channel - pairs, channel - pairs, -1.0),
            keyfold_kernels::attention::Rotation::Interleaved => {
                let sign = if channel % 2 == 0 { 1.0 } else { -1.0 };
                (channel / 2, channel ^ 1, sign)
            }
        })
    }

    /// A key that is kept in 16 bits, turned.
    fn sink_key(&self, row: usize, key: &mut Vec<f32>) {
        let half = &self.head.sink_keys[row * self.dim..][..self.dim];
        key.clear();
        key.extend(half.iter().map(|x| x.to_f32()));
        if self.turns {
            self.rotary.turn(self.head.positions[row], key);
        }
    }

    fn dot(&self, queries: &[f32], rows: RowSet, out: &mut [f32]) {
        let n = rows.len();
        let sinks = self.head.sinks;
        let mut turned = Turned {
            queries: Vec::new(),
            block: None,
            cos: Vec::new(),
            sin: Vec::new(),
        };
        let (mut scores, mut key) = (Vec::new(), Vec::new());
        // The i-th row of the set; ascending.
        let row_at = |i: usize| match rows {
            RowSet::Range(from, _) => from + i,
            RowSet::List(list) => list[i] as usize,
        };
        let mut i = 0;
        while i < n && row_at(i) < sinks {
            self.sink_key(row_at(i), &mut key);
            for (q, query) in queries.chunks_exact(self.dim).enumerate() {
                out[q * n + i] = keyfold_kernels::dot(query, &key);
            }
            i += 1;
        }
        let end = match rows {
            RowSet::Range(_, to) => to.saturating_sub(sinks).div_ceil(GRANULE),
            // Granules of a list are taken one by one.
            RowSet::List(_) => 0,
        };
        while i < n {
            let first = row_at(i) - sinks;
            let granule = first / GRANULE;
            let (last, place) = self.run(granule, end.max(granule + 1));
            self.scores(granule..last, place, queries, &mut turned, &mut scores);
            let width = (last - granule) * GRANULE;
            // Rows of the set that the run has.
            let mut count = 0;
            while i + count < n && row_at(i + count) - sinks < last * GRANULE {
                let at = row_at(i + count) - sinks - granule * GRANULE;
                for (q, scores) in scores.chunks_exact(width).enumerate() {
                    out[q * n + i + count] = scores[at];
                }
                count += 1;
            }
            i += count;
        }
    }

    fn mix(&self, weights: &[f32], rows: RowSet, out: &mut [f32]) {
        let n = rows.len();
        let (sinks, dim) = (self.head.sinks, self.dim);
        let row_at = |i: usize| match rows {
            RowSet::Range(from, _) => from + i,
            RowSet::List(list) => list[i] as usize,
        };
        let mut i = 0;
        let mut value = Vec::new();
        while i < n && row_at(i) < sinks {
            let half = &self.head.sink_values[row_at(i) * dim..][..dim];
            value.clear();
            value.extend(half.iter().map(|x| x.to_f32()));
            for (q, out) in out.chunks_exact_mut(dim).enumerate() {
                axpy(out, weights[q * n + i], &value);
            }
            i += 1;
        }
        let g = out.len() / dim;
        let mut scaled = vec![0.0; g * NEAR.min(n)];
        let mut list = Vec::new();
        while i < n {
            let count = NEAR.min(n - i);
            let scaled = &mut scaled[..g * count];
            let set = match rows {
                RowSet::Range(from, _) => RowSet::Range(from + i - sinks, from + i + count - sinks),
                RowSet::List(all) => {
                    list.clear();
                    list.extend(all[i..i + count].iter().map(|&r| r - sinks as u32));
                    RowSet::List(&list)
                }
            };
            let mut zeros = vec![0.0; g];
            for at in 0..count {
                let [scale, zero] = self.head.scales[row_at(i + at) - sinks].map(|x| x.to_f32());
                for (q, sum) in zeros.iter_mut().enumerate() {
                    let weight = weights[q * n + i + at];
                    scaled[q * count + at] = weight * scale;
                    *sum += weight * zero;
                }
            }
            mix_values(self.values, scaled, set, out);
            for (out, zero) in out.chunks_exact_mut(dim).zip(&zeros) {
                out.iter_mut().for_each(|x| *x += zero);
            }
            let mut add = |at: usize, entry: Entry| {
                let (channel, residual) = (entry.channel(), entry.residual());
                for (q, out) in out.chunks_exact_mut(dim).enumerate() {
                    out[channel] += weights[q * n + i + at] * residual;
                }
            };
            match set {
                RowSet::Range(from, to) => {
                    for granule in from / GRANULE..to.div_ceil(GRANULE) {
                        for &entry in self.head.value_outliers.of_granule(granule) {
                            let row = granule * GRANULE + entry.row();
                            if (from..to).contains(&row) {
                                add(row - from, entry);
                            }
                        }
                    }
                }
                RowSet::List(list) => {
                    for (at, &row) in list.iter().enumerate() {
                        let entries = self.head.value_outliers.of_row(row as usize);
                        entries.for_each(|entry| add(at, entry));
                    }
                }
            }
            i += count;
        }
    }

    fn read(&self, rows: Range<usize>, keys: &mut [f32], values: &mut [f32]) {
        let (sinks, dim) = (self.head.sinks, self.dim);
        let mut turned = Turned {
            queries: Vec::new(),
            block: None,
            cos: Vec::new(),
            sin: Vec::new(),
        };
        let mut key = Vec::new();
        let mut granule_keys = vec![0.0; GRANULE * dim];
        for row in rows.start..rows.end.min(sinks) {
            self.sink_key(row, &mut key);
            let to = (row - rows.start) * dim..(row - rows.start + 1) * dim;
            keys[to.clone()].copy_from_slice(&key);
            let half = &self.head.sink_values[row * dim..][..dim];
            let to = values[to].iter_mut();
            to.zip(half).for_each(|(to, x)| *to = x.to_f32());
        }
        let first = rows.start.max(sinks);
        if first >= rows.end {
            return;
        }
        let packed = first - sinks..rows.end - sinks;
        for granule in packed.start / GRANULE..packed.end.div_ceil(GRANULE) {
            self.granule_keys(granule, &mut turned, &mut granule_keys);
            for (r, from) in granule_keys.chunks_exact(dim).enumerate() {
                let row = granule * GRANULE + r;
                if packed.contains(&row) {
                    keys[(row + sinks - rows.start) * dim..][..dim].copy_from_slice(from);
                }
            }
        }
        let scales: Vec<[f32; 2]> = self.head.scales[packed.clone()]
            .iter()
            .map(|s| s.map(|x| x.to_f32()))
            .collect();
        let values = &mut values[(first - rows.start) * dim..];
        read_values(self.values, packed.start, &scales, values);
        for (i, row) in packed.enumerate() {
            for entry in self.head.value_outliers.of_row(row) {
                values[i * dim + entry.channel()] += entry.residual();
            }
        }
    }

    /// The eight keys of a granule, turned.
    fn granule_keys(&self, granule: usize, turned: &mut Turned, out: &mut [f32]) {
        let dim = self.dim;
        let (_, place) = self.run(granule, granule + 1);
        let none: &[f32] = &[];
        // Keys are turned by the whole angle: a block's first position too.
        self.with_angles(granule, place, none, turned, |angles, column, _| {
            read_keys(self.keys, angles, granule, column, out);
            for &entry in self.head.key_outliers.of_granule(granule) {
                let (channel, residual) = (entry.channel(), entry.residual());
                let row = &mut out[entry.row() * dim..][..dim];
                match self.partner(channel, angles) {
                    None => row[channel] += residual,
                    Some((pair, partner, sign)) => {
                        let at = pair * angles.stride + column + entry.row();
                        row[channel] += residual * angles.cos[at];
                        row[partner] += sign * residual * angles.sin[at];
                    }
                }
            }
        });
        if let Some((block, _)) = place {
            self.rotary.turn_on(block, out, dim);
        }
    }
}

impl KvStore for KvQuantStore {
    fn needs(&self) -> Needs {
        Needs {
            keys_before_rope: self.before_rope,
            ..Needs::default()
        }
    }

    fn append(&mut self, layer: usize, positions: &[u32], keys: &[f32], values: &[f32]) {
        let (dim, kv_heads, bits) = (self.dims.head_dim, self.dims.kv_heads, self.bits());
        let width = kv_heads * dim;
        if let Some(&last) = positions.last() {
            self.rotary.reach(last);
        }
        let layers = Arc::clone(&self.layers);
        let of_layer = &layers[layer];
        let mut work = std::mem::take(&mut self.work);
        work.key_codes.resize(width, 0);
        work.value_codes.resize(width, 0);
        let rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (&position, (keys, values)) in positions.iter().zip(rows) {
            let sink = (position as usize) < self.config.first_few_fp16
                && (0..kv_heads).all(|h| self.head(layer, h).packed() == 0);
            if sink {
                for kv_head in 0..kv_heads {
                    let span = kv_head * dim..(kv_head + 1) * dim;
                    let head = self.head_mut(layer, kv_head);
                    head.push_sink(position, &keys[span.clone()], &values[span]);
                }
                continue;
            }
            let w = &mut work;
            let (codes, outliers) = (&mut w.key_codes, &mut w.key_outliers);
            of_layer
                .keys
                .encode(0, keys, &mut w.scaled, codes, outliers);
            let (codes, outliers) = (&mut w.value_codes, &mut w.value_outliers);
            let scale = of_layer
                .values
                .encode(values, &mut w.scaled, codes, outliers);
            for kv_head in 0..kv_heads {
                let span = kv_head * dim..(kv_head + 1) * dim;
                let of_head = |all: &[Outlier]| -> Vec<Outlier> {
                    let own = all.iter().filter(|o| span.contains(&o.channel));
                    own.map(|o| Outlier {
                        channel: o.channel - span.start,
                        residual: o.residual,
                    })
                    .collect()
                };
                let (key_outliers, value_outliers) =
                    (of_head(&work.key_outliers), of_head(&work.value_outliers));
                self.head_mut(layer, kv_head).push(
                    position,
                    bits,
                    &work.key_codes[span.clone()],
                    &work.value_codes[span.clone()],
                    scale,
                    key_outliers,
                    value_outliers,
                );
            }
        }
        self.work = work;
    }

    fn len(&self, layer: usize, kv_head: usize) -> usize {
        self.head(layer, kv_head).positions.len()
    }

    fn positions(&self, layer: usize, kv_head: usize) -> &[u32] {
        &self.head(layer, kv_head).positions
    }

    fn dot(&self, layer: usize, kv_head: usize, queries: &[f32], rows: RowSet, out: &mut [f32]) {
        self.view(layer, kv_head).dot(queries, rows, out);
    }

    fn mix(&self, layer: usize, kv_head: usize, weights: &[f32], rows: RowSet, out: &mut [f32]) {
        self.view(layer, kv_head).mix(weights, rows, out);
    }

    fn read(
        &self,
        layer: usize,
        kv_head: usize,
        rows: Range<usize>,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        self.view(layer, kv_head).read(rows, keys, values);
    }

    fn keep(&mut self, layer: usize, kv_head: usize, keep: &[u32]) {
        let (bits, dim) = (self.bits(), self.dims.head_dim);
        self.head_mut(layer, kv_head)
            .rebuild(keep, bits, dim, |_| None);
    }

    fn write(&mut self, layer: usize, kv_head: usize, rows: &[u32], keys: &[f32], values: &[f32]) {
        let (bits, dim) = (self.bits(), self.dims.head_dim);
        let layers = Arc::clone(&self.layers);
        let of_layer = &layers[layer];
        let mut head = std::mem::take(self.head_mut(layer, kv_head));
        let turns = self.rotary.turns(layer);
        let mut key = Vec::new();
        let mut work = Work {
            key_codes: vec![0; dim],
            value_codes: vec![0; dim],
            ..Work::default()
        };
        let mut new: Vec<Option<Packed>> = Vec::new();
        new.resize_with(head.positions.len(), || None);
        for (i, &row) in rows.iter().enumerate() {
            let row = row as usize;
            key.clear();
            key.extend_from_slice(&keys[i * dim..(i + 1) * dim]);
            let value = &values[i * dim..(i + 1) * dim];
            if turns {
                self.rotary.undo(head.positions[row], &mut key);
            }
            if row < head.sinks {
                let half = |to: &mut half::f16, x: &f32| *to = half::f16::from_f32(*x);
                let to = head.sink_keys[row * dim..][..dim].iter_mut();
                to.zip(&key).for_each(|(to, x)| half(to, x));
                let to = head.sink_values[row * dim..][..dim].iter_mut();
                to.zip(value).for_each(|(to, x)| half(to, x));
                continue;
            }
            let w = &mut work;
            let (codes, outliers) = (&mut w.key_codes, &mut w.key_outliers);
            let first = kv_head * dim;
            of_layer
                .keys
                .encode(first, &key, &mut w.scaled, codes, outliers);
            let (codes, outliers) = (&mut w.value_codes, &mut w.value_outliers);
            let scale = of_layer
                .values
                .encode(value, &mut w.scaled, codes, outliers);
            new[row] = Some(Packed {
                keys: work.key_codes.clone(),
                values: work.value_codes.clone(),
                scale,
                key_outliers: work.key_outliers.clone(),
                value_outliers: work.value_outliers.clone(),
            });
        }
        let all: Vec<u32> = (0..head.positions.len() as u32).collect();
        head.rebuild(&all, bits, dim, |row| new[row].take());
        *self.head_mut(layer, kv_head) = head;
    }

    fn bias(&self, layer: usize, kv_head: usize) -> &[f32] {
        &self.head(layer, kv_head).bias
    }

    fn set_bias(&mut self, layer: usize, kv_head: usize, bias: Vec<f32>) {
        self.head_mut(layer, kv_head).bias = bias;
    }

    fn truncate(&mut self, position: u32) {
        let (bits, dim) = (self.bits(), self.dims.head_dim);
        for head in &mut self.heads {
            let rows = head.positions.partition_point(|&p| p < position);
            head.truncate(rows, bits, dim);
        }
    }

    fn bytes(&self) -> u64 {
        self.heads.iter().map(Head::bytes).sum()
    }

    fn row_bytes(&self) -> (u64, u64) {
        let codes = self.dims.head_dim as f64 * self.bits() as f64 / 8.0;
        let per_row = |of: fn(&Head) -> u64| {
            let rows: usize = self.heads.iter().map(Head::packed).sum();
            self.heads.iter().map(of).sum::<u64>() as f64 / rows.max(1) as f64
        };
        let keys = codes + per_row(|h| h.key_outliers.bytes());
        let values = codes + per_row(|h| h.value_outliers.bytes()) + 4.0;
        (keys.round() as u64, values.round() as u64)
    }

    fn fork(&self) -> Box<dyn KvStore> {
        Box::new(self.clone())
    }

    fn tag(&self) -> u32 {
        self.tag
    }

    fn save(&self, layer: usize, kv_head: usize) -> (Vec<u32>, Vec<u8>) {
        let head = self.head(layer, kv_head);
        (head.positions.clone(), head.save())
    }

    fn restore(&mut self, layer: usize, kv_head: usize, positions: &[u32], bytes: &[u8]) -> bool {
        if !positions.is_sorted_by(|a, b| a < b) {
            return false;
        }
        let (bits, dim) = (self.bits(), self.dims.head_dim);
        let Some(head) = Head::restore(positions, bytes, bits, dim) else {
            return false;
        };
        if let Some(&last) = positions.last() {
            self.rotary.reach(last);
        }
        *self.head_mut(layer, kv_head) = head;
        true
    }
}
