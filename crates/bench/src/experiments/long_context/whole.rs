//! Whole tokens that are written at long contexts when selectors choose what is read: the
//! user's model, or random weights of a published size. What stands before is read through a
//! narrow window, so that long contexts are there soon; what is written does not matter.

use std::sync::Arc;

use keyfold_core::Progress;
use keyfold_kernels::Team;
use keyfold_kernels::blocks::BlockType;
use keyfold_lm::block_mask::PowerConfig;
use keyfold_lm::decoding::argmax;
use keyfold_lm::prefill::dense::DensePrefill;
use keyfold_lm::select::Budget;
use keyfold_lm::select::double_sparsity::{DoubleSparsity, DoubleSparsityConfig};
use keyfold_lm::select::power::PowerSelect;
use keyfold_lm::select::rankings::Rankings;
use keyfold_lm::select::tidal::{Tidal, TidalConfig};
use keyfold_lm::session::Report;
use keyfold_lm::synthetic::{Geometry, write_random};
use keyfold_lm::{Decoder, ModelFile};
use serde_json::{Value, json};

use super::{Compared, Method, Model, failed};
use crate::plot;
use crate::report::{Table, reached};
use crate::{BenchError, BenchOptions, Scale};

/// The part of what bytes allow that is aimed at.
const AIM: f64 = 0.7;
/// Newest tokens that a token of the prompt sees.
const WINDOW: usize = 256;
/// Rows that a selector chooses.
const ROWS: usize = 256;
/// Tokens before those that are timed.
const WARM: usize = 2;

impl Model {
    /// Random weights of a published size.
    fn random(
        name: &str,
        geometry: &Geometry,
        kind: BlockType,
        options: &BenchOptions,
    ) -> Result<Self, BenchError> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("random.gguf");
        write_random(geometry, kind, options.seed, &path).map_err(failed(name))?;
        let file = ModelFile::open(&path).map_err(failed(name))?;
        Ok(Self {
            name: name.to_owned(),
            decoder: Arc::new(Decoder::load(&file).map_err(failed(name))?),
            team: Arc::new(Team::new(options.thread_count())),
            tokenizer: None,
            template: None,
            _folder: Some(folder),
        })
    }
}

/// What `count` tokens took.
struct Took {
    rate: f64,
    bytes: f64,
    attention: f64,
}

impl Took {
    fn new(before: Report, after: Report, count: usize) -> Self {
        let n = count as f64;
        let bytes = |r: Report| (r.weight_bytes + r.row_bytes + r.selector_bytes) as f64;
        let attention = after.attention_time.saturating_sub(before.attention_time);
        let all = after.decode_time.saturating_sub(before.decode_time);
        Self {
            rate: n / all.as_secs_f64(),
            bytes: (bytes(after) - bytes(before)) / n,
            attention: attention.as_secs_f64() / n,
        }
    }
}

/// Selectors at their authors' settings, after a dense reading.
fn methods(model: &Model, seed: u64) -> Result<Vec<Method>, BenchError> {
    let dims = model.dims();
    let config = DoubleSparsityConfig {
        heavy_const: Budget::Tokens(ROWS),
        ..DoubleSparsityConfig::default()
    };
    // Which channels are taken makes no difference to the time.
    let rankings = Rankings::random(&dims, seed);
    let sparse = DoubleSparsity::new(config, dims, &rankings).map_err(failed("double-sparse"))?;
    let config = TidalConfig {
        top_k: Budget::Tokens(ROWS),
        ..TidalConfig::for_layers(dims.layers)
    };
    let tidal = Tidal::new(config, dims).map_err(failed("tidal"))?;
    let power = PowerConfig::from(keyfold_core::block_mask::BlockMask::default());
    let power = PowerSelect::new(power, dims).map_err(failed("power"))?;
    Ok(vec![
        Method::dense(),
        Method::new("Double Sparsity", sparse),
        Method::new("TidalDecode", tidal),
        Method::new("PowerAttention", power),
    ])
}

/// Tokens a second at long contexts, beside those of all rows and what the bytes allow.
pub(in crate::experiments) fn selectors(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (contexts, count): (&[usize], usize) = match options.scale {
        Scale::Smoke => (&[600], 2),
        _ => (&[8000, 32_000], 32),
    };
    let model = match Model::given(options)? {
        Some(model) => model,
        None => {
            let (name, geometry) = match options.scale {
                Scale::Smoke => {
                    let tiny = Geometry {
                        layers: 6,
                        hidden: 256,
                        intermediate: 512,
                        heads: 4,
                        kv_heads: 2,
                        vocab: 512,
                        ..Geometry::smollm_135m()
                    };
                    ("tiny Q8_0", tiny)
                }
                _ => ("SmolLM-135M Q8_0", Geometry::smollm_135m()),
            };
            Model::random(name, &geometry, BlockType::Q8_0, options)?
        }
    };
    let title = format!(
        "tokens of {} written a second at long contexts, {} threads; {ROWS} rows, PowerAttention as its paper",
        model.name,
        model.team.threads()
    );
    let columns = [
        "context",
        "way",
        "tokens a second",
        "times all rows",
        "bytes allow",
        "of it, %",
        "attention, times",
    ];
    let mut table = Table::new(&title, &columns);
    let mut values = Vec::new();
    let limit =
        |context: &&usize| model.context(**context + count + WARM) == **context + count + WARM;
    let vocab = model.dims().vocab as u64;
    for &context in contexts.iter().filter(limit) {
        let token = |i: usize| (keyfold_nn::random::derive(options.seed, i as u64) % vocab) as u32;
        let prompt: Vec<u32> = (0..context).map(token).collect();
        let dims = model.dims();
        let prefill = DensePrefill::new(dims, vec![Some(WINDOW); dims.layers], 256);
        let room = context + count + WARM;
        let ways = methods(&model, options.seed)?;
        let mut compared = Compared::reading(&model, ways, room, Some(Box::new(prefill)))?;
        progress.start("long contexts", "ways", Some(compared.names.len() as u64));
        compared.read(&prompt).map_err(failed(&model.name))?;
        let mut all: Option<Took> = None;
        for method in 0..compared.names.len() {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let session = compared
                .go_on(method, context)
                .map_err(failed(&model.name))?;
            let mut before = session.report();
            for i in 0..WARM + count {
                if i == WARM {
                    before = session.report();
                }
                let next = argmax(session.logits());
                session.step(next).map_err(failed(&model.name))?;
            }
            let took = Took::new(before, session.report(), count);
            let name = &compared.names[method];
            let dense = all.as_ref().unwrap_or(&took);
            let (faster, allowed) = (took.rate / dense.rate, dense.bytes / took.bytes);
            let attention = dense.attention / took.attention;
            table.row([
                context.to_string(),
                name.clone(),
                plot::shown(took.rate),
                plot::shown(faster),
                plot::shown(allowed),
                format!("{:.0}", 100.0 * faster / allowed),
                plot::shown(attention),
            ]);
            values.push(json!({
                "context": context, "way": name, "written": took.rate, "times_all": faster, "allowed": allowed,
                "attention_times": attention,
            }));
            if method > 0 {
                findings.push(format!(
                    "{} at {context}, {name}: {faster:.2} times as many tokens a second as from all rows where bytes allow \
                     {allowed:.2} (aim {:.0} % of it: {}); attention alone {attention:.2} times.",
                    model.name, 100.0 * AIM, reached(faster >= AIM * allowed),
                ));
            }
            all.get_or_insert(took);
            progress.advance(1);
        }
        progress.finish();
    }
    if table.rows.is_empty() {
        findings.push(format!("{} reads no {} tokens.", model.name, contexts[0]));
        return Ok(Value::Null);
    }
    tables.push(table);
    Ok(json!(values))
}
