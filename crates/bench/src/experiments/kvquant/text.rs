//! Perplexity of the user's model: as it is, and with outliers put into channels of its keys
//! that change nothing else.

use std::path::Path;
use std::sync::Arc;

use keyfold_core::NoProgress;
use keyfold_kernels::Team;
use keyfold_kernels::blocks::Activations;
use keyfold_lm::linear::Linear;
use keyfold_lm::model::LinearName;
use keyfold_lm::session::{AttentionInputs, Observer};
use keyfold_lm::store::kvquant::KvQuantStore;
use keyfold_lm::store::{CacheType, DenseStore};
use keyfold_lm::{Decoder, ModelFile, Policy};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::experiments::long_context::answers::{Way, answers};
use crate::experiments::long_context::{Model, read_perplexity, windows};
use crate::{Scale, plot};

/// How many times large the outlier channels become, and which part of the channels they are.
const TIMES: f32 = 8.0;
const PART: f64 = 0.02;

/// Before and after rotary embedding.
struct Both {
    before: Statistics,
    after: Statistics,
}

impl Observer for Both {
    fn attention(&mut self, seen: &AttentionInputs) {
        let of = [
            (&mut self.before, seen.keys_before),
            (&mut self.after, seen.keys),
        ];
        for (statistics, keys) in of {
            // What is not finite would show in the perplexity.
            let _ = statistics.observe(seen.layer, keys, seen.values, None, None);
        }
    }
}

/// A plain store whose rows went through integers, token by token: how caches are mostly
/// quantised.
#[derive(Clone)]
struct PerToken {
    store: DenseStore,
    bits: u8,
    width: usize,
}

impl KvStore for PerToken {
    fn append(&mut self, layer: usize, positions: &[u32], keys: &[f32], values: &[f32]) {
        let (mut keys, mut values) = (keys.to_vec(), values.to_vec());
        round_rows(&mut keys, self.width, self.bits);
        round_rows(&mut values, self.width, self.bits);
        self.store.append(layer, positions, &keys, &values);
    }
    fn len(&self, layer: usize, kv_head: usize) -> usize {
        self.store.len(layer, kv_head)
    }
    fn positions(&self, layer: usize, kv_head: usize) -> &[u32] {
        self.store.positions(layer, kv_head)
    }
    fn dot(
        &self,
        layer: usize,
        kv_head: usize,
        queries: &[f32],
        rows: keyfold_lm::roles::RowSet,
        out: &mut [f32],
    ) {
        self.store.dot(layer, kv_head, queries, rows, out);
    }
    fn mix(
        &self,
        layer: usize,
        kv_head: usize,
        weights: &[f32],
        rows: keyfold_lm::roles::RowSet,
        out: &mut [f32],
    ) {
        self.store.mix(layer, kv_head, weights, rows, out);
    }
    fn read(
        &self,
        layer: usize,
        kv_head: usize,
        rows: std::ops::Range<usize>,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        self.store.read(layer, kv_head, rows, keys, values);
    }
    fn keep(&mut self, layer: usize, kv_head: usize, keep: &[u32]) {
        self.store.keep(layer, kv_head, keep);
    }
    fn write(&mut self, layer: usize, kv_head: usize, rows: &[u32], keys: &[f32], values: &[f32]) {
        self.store.write(layer, kv_head, rows, keys, values);
    }
    fn truncate(&mut self, position: u32) {
        self.store.truncate(position);
    }
    fn bytes(&self) -> u64 {
        self.store.bytes()
    }
    fn row_bytes(&self) -> (u64, u64) {
        self.store.row_bytes()
    }
    fn fork(&self) -> Box<dyn KvStore> {
        Box::new(self.clone())
    }
    fn tag(&self) -> u32 {
        u32::MAX
    }
    fn save(&self, layer: usize, kv_head: usize) -> (Vec<u32>, Vec<u8>) {
        self.store.save(layer, kv_head)
    }
    fn restore(&mut self, layer: usize, kv_head: usize, positions: &[u32], bytes: &[u8]) -> bool {
        self.store.restore(layer, kv_head, positions, bytes)
    }
}

/// A weight matrix some of whose rows were multiplied.
struct Rescaled {
    weight: Vec<f32>,
    cols: usize,
}

impl Linear for Rescaled {
    fn rows(&self) -> usize {
        self.weight.len() / self.cols
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn apply(&self, x: &mut Activations, out: &mut [f32], _decoding: bool, team: &Team) {
        let (n, rows) = (x.rows(), self.rows());
        let threads = team.threads();
        keyfold_kernels::matmul_nt(out, x.values(), &self.weight, n, rows, self.cols, threads);
    }
    fn bytes_read(&self) -> u64 {
        4 * self.weight.len() as u64
    }
}

/// The model with a few pairs of channels of its keys [`TIMES`] as large and those of its
/// queries as much smaller: every score stays what it was.
fn with_outliers(model: &Model, seed: u64) -> Result<Model, BenchError> {
    let name = model.name.as_str();
    let file = ModelFile::open(Path::new(name)).map_err(failed(name))?;
    let mut decoder = Decoder::load(&file).map_err(failed(name))?;
    let dims = model.dims();
    let (interleaved, half) = {
        let rope = decoder.config().rope();
        let turned = rope.map_or(dims.head_dim, |r| r.dims);
        (rope.is_some_and(|r| r.interleaved), turned / 2)
    };
    let mut rng = StdRng::seed_from_u64(seed);
    let pairs = dims.kv_heads * dims.head_dim / 2;
    let count = ((pairs as f64 * PART).round() as usize).max(1);
    for layer in 0..dims.layers {
        let chosen: Vec<(usize, usize)> = (0..count)
            .map(|_| {
                (
                    rng.random_range(0..dims.kv_heads),
                    rng.random_range(0..half),
                )
            })
            .collect();
        for (which, heads, factor) in [
            (LinearName::K, dims.kv_heads, TIMES),
            (LinearName::Q, dims.heads, 1.0 / TIMES),
        ] {
            let path = format!("model.layers.{layer}.{}.weight", which.path());
            let tensor = file.tensor(&path).map_err(failed(name))?;
            let (mut weight, cols) = (tensor.to_f32(), tensor.row_len());
            let mut done = std::collections::HashSet::new();
            for &(kv_head, pair) in chosen.iter().filter(|c| done.insert(**c)) {
                let (a, b) = match interleaved {
                    true => (2 * pair, 2 * pair + 1),
                    false => (pair, pair + half),
                };
                let group = heads / dims.kv_heads;
                for head in kv_head * group..(kv_head + 1) * group {
                    for channel in [a, b] {
                        let row = head * dims.head_dim + channel;
                        let row = &mut weight[row * cols..(row + 1) * cols];
                        row.iter_mut().for_each(|w| *w *= factor);
                    }
                }
            }
            let by = Box::new(Rescaled { weight, cols });
            decoder.replace(layer, which, by).map_err(failed(name))?;
        }
    }
    Ok(model.replaced(Arc::new(decoder)))
}

pub(super) fn perplexities(
    options: &BenchOptions,
    model: &Model,
    tokens: &[u32],
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let tables_of = Tables::new(options, model, tokens)?;
    let name = "as it is";
    let plain = perplexity(options, model, name, &tables_of, progress, tables, findings)?;
    let said = side_by_side(options, model, &tables_of, progress, tables, findings)?;
    let outliers = &tables_of.outliers;
    let text = tables_of.measured;
    let whole = whole::tokens(options, model, text, outliers, progress, tables, findings)?;
    let config = model.decoder.config();
    if config.qkv_bias || config.qk_norm {
        findings.push("outliers are not put into models with biases or norms of keys.".to_owned());
        return Ok(json!({ "plain": plain, "answers": said, "whole_tokens": whole }));
    }
    let changed = with_outliers(model, options.seed)?;
    let tables_of = Tables::new(options, &changed, tokens)?;
    let name = "with outlier channels";
    let outliers = perplexity(
        options, &changed, name, &tables_of, progress, tables, findings,
    )?;
    Ok(json!({ "plain": plain, "answers": said, "whole_tokens": whole, "outliers": outliers }))
}

/// Records and chat answers from caches of all kinds.
fn side_by_side(
    options: &BenchOptions,
    model: &Model,
    tables_of: &Tables,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let mut ways = Vec::new();
    for kind in [CacheType::Q8_0, CacheType::Q4_0] {
        let policy = move |_| Ok(Policy::of(&model.decoder, dense(model, kind)?));
        ways.push(Way::new(kind.blocks().name(), model, policy));
    }
    for bits in BITS {
        let policy = move |_| {
            let config = config(bits, Datatype::Nuq, true);
            let store = KvQuantStore::new(model.decoder.config(), config, &tables_of.outliers);
            let store: Box<dyn KvStore> = Box::new(store.map_err(failed("kvquant"))?);
            Ok(Policy::of(&model.decoder, store))
        };
        let name = format!("KVQuant, {bits} bits and 1 % outliers");
        ways.push(Way::new(name, model, policy));
    }
    answers(options, model, ways, progress, tables, findings)
}

pub(super) fn dense(model: &Model, kind: CacheType) -> Result<Box<dyn KvStore>, BenchError> {
    let store = DenseStore::new(model.dims(), kind, 0);
    let store = store.ok_or_else(|| BenchError::data(&model.name, "rows do not fit the heads"))?;
    Ok(Box::new(store))
}

/// Calibrations on the end of a text, whose beginning is measured.
struct Tables<'a> {
    measured: &'a [u32],
    /// Of keys after rotary embedding, and before it, without outliers and with them.
    after: Calibration,
    before: Calibration,
    outliers: Calibration,
}

impl<'a> Tables<'a> {
    fn new(options: &BenchOptions, model: &Model, tokens: &'a [u32]) -> Result<Self, BenchError> {
        let blocks = match options.scale {
            Scale::Smoke => 1,
            Scale::Small => 6,
            Scale::Full => 32,
        };
        let (dims, context) = (model.dims(), model.context(512));
        let interleaved = (model.decoder.config().rope()).is_some_and(|r| r.interleaved);
        let mut both = Both {
            before: Statistics::new(dims, 1, interleaved),
            after: Statistics::new(dims, 1, false),
        };
        let end = tokens.len().saturating_sub(blocks * 512);
        let (measured, rest) = tokens.split_at(end.max(tokens.len() / 2));
        for window in windows(model, rest, context, blocks)? {
            both.before.begin_sequence();
            both.after.begin_sequence();
            let mut session = model.session(model.policy(window.len(), None, None)?);
            let read = session.observe(&window, &NoProgress, &mut both);
            read.map_err(failed(&model.name))?;
        }
        let calibrate = |statistics: &Statistics, outliers| {
            let threads = options.thread_count();
            calibrated(statistics, outliers, Weighting::default(), threads)
        };
        Ok(Self {
            measured,
            after: calibrate(&both.after, false)?,
            before: calibrate(&both.before, false)?,
            outliers: calibrate(&both.before, true)?,
        })
    }
}

/// Perplexities of one model in all caches.
#[allow(clippy::too_many_arguments)]
fn perplexity(
    options: &BenchOptions,
    model: &Model,
    which: &str,
    tables_of: &Tables,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (wanted, count) = match options.scale {
        Scale::Smoke => (256, 1),
        Scale::Small => (1024, 2),
        Scale::Full => (2048, 20),
    };
    let (dims, context) = (model.dims(), model.context(wanted));
    let read = |store: &dyn Fn() -> Result<Box<dyn KvStore>, BenchError>| {
        let policy = || -> Result<Policy, BenchError> { Ok(Policy::of(&model.decoder, store()?)) };
        Ok::<f64, BenchError>(
            read_perplexity(model, tables_of.measured, (context, count), &policy)?.perplexity,
        )
    };
    let ways = [
        "integers for each token",
        "integers for each channel of keys",
        "and keys before rotary embedding",
        "and fitted tables",
        "and 1 % outliers",
        "and Q-Norm",
    ];
    progress.start(which, "caches", Some(3 + 3 * ways.len() as u64));
    let mut plain = Vec::new();
    for kind in [CacheType::F16, CacheType::Q8_0, CacheType::Q4_0] {
        plain.push(read(&|| dense(model, kind))?);
        progress.advance(1);
    }
    let title = format!(
        "perplexity of {} {which}, second half of {count} windows of {context} tokens; f16 {:.4}, q8_0 {:.4}, q4_0 {:.4}",
        model.name, plain[0], plain[1], plain[2]
    );
    let mut table = Table::new(&title, &["kept as", "4 bits", "3 bits", "2 bits"]);
    let mut found = Vec::new();
    for (way, name) in ways.iter().enumerate() {
        let mut row = [0.0; 3];
        for (cell, bits) in row.iter_mut().zip(BITS) {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let store = || -> Result<Box<dyn KvStore>, BenchError> {
                let datatype = if way < 3 {
                    Datatype::Int
                } else {
                    Datatype::Nuq
                };
                let mut config = config(bits, datatype, way >= 4);
                config.norm = Some(way == 5);
                let store = match way {
                    0 => {
                        let store = DenseStore::new(dims, CacheType::F32, 0);
                        let store =
                            store.ok_or_else(|| BenchError::data(&model.name, "no store"))?;
                        let width = dims.kv_heads * dims.head_dim;
                        return Ok(Box::new(PerToken { store, bits, width }));
                    }
                    1 => KvQuantStore::after_rope(dims, config, &tables_of.after),
                    2 | 3 => KvQuantStore::new(model.decoder.config(), config, &tables_of.before),
                    _ => KvQuantStore::new(model.decoder.config(), config, &tables_of.outliers),
                };
                Ok(Box::new(store.map_err(failed("kvquant"))?))
            };
            *cell = read(&store)?;
            progress.advance(1);
        }
        let [four, three, two] = row.map(plot::shown);
        table.row([(*name).to_owned(), four, three, two]);
        found.push(row);
    }
    progress.finish();
    tables.push(table);
    let (f16, ours) = (plain[0], found[4]);
    findings.push(format!(
        "claim: 3 bits with 1 % outliers lose less than 0.1 of perplexity (LLaMA-7B, Wikitext-2: 5.75 against 5.68). {which} \
         they lose {:.3} ({:.1} %): {}; 4 bits lose {:.3}, 2 bits {:.3} ({:.3} with Q-Norm).",
        ours[1] - f16, 100.0 * (ours[1] / f16 - 1.0), holds(ours[1] - f16 < 0.1), ours[0] - f16, ours[2] - f16,
        found[5][2] - f16,
    ));
    let at_three = |way: usize| found[way][1];
    findings.push(format!(
        "{which}, at 3 bits: channels of keys instead of tokens {:+.2}, keys before rotary embedding {:+.2}, fitted tables {:+.2}, \
         outliers {:+.2}; every part helps: {}. q4_0 lies between 4 and 3 bits: {}.",
        at_three(1) - at_three(0), at_three(2) - at_three(1), at_three(3) - at_three(2), at_three(4) - at_three(3),
        holds((0..4).all(|way| at_three(way + 1) < at_three(way))),
        holds(plain[2] > ours[0] && plain[2] < ours[1]),
    ));
    Ok(json!({"f16": f16, "q8_0": plain[1], "q4_0": plain[2], "ways": ways, "perplexity": found}))
}
