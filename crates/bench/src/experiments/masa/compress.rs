//! Models that are trained, compressed without further training.

use std::path::Path;
use std::sync::Arc;

use keyfold_compress::masa::{MasaConfig, Shared};
use keyfold_core::{NoProgress, Progress};
use keyfold_kernels::Team;
use keyfold_lm::model::LinearName;
use keyfold_lm::perplexity::{PerplexityOptions, Protocol, perplexity};
use keyfold_lm::shared_weights::{Calibration, save, share};
use keyfold_lm::store::CacheType;
use keyfold_lm::{Decoder, LmError, ModelFile, Policy, Session};
use keyfold_nn::Llama;
use serde_json::{Value, json};

use super::super::long_context::{failed, given_text};
use super::{Data, Sizes, config, mean};
use crate::report::Table;
use crate::{BenchError, BenchOptions, Scale};

/// How a trained model is made smaller.
const WAYS: [(&str, Option<usize>, bool); 3] = [
    ("MASA: atoms and pairs", None, true),
    ("atoms alone", None, false),
    ("low rank in each matrix, whitened", Some(0), true),
];

/// Perplexities of a model and of what it is compressed to.
struct Source<'a> {
    file: &'a ModelFile,
    names: &'a [LinearName],
    groups: usize,
    calibrated: &'a [u32],
    tokens: &'a [u32],
    options: PerplexityOptions,
    team: Arc<Team>,
}

/// The table, its values, and for each kept share the perplexity of every way.
type Compared = (Table, Vec<Value>, Vec<(f64, Vec<f64>)>);

impl Source<'_> {
    fn perplexity(&self, file: &ModelFile) -> Result<f64, LmError> {
        let decoder = Arc::new(Decoder::load(file)?);
        let mut session = || {
            let policy = Policy::dense(&decoder, CacheType::F16, self.options.context)?;
            Ok::<_, LmError>(Session::new(
                Arc::clone(&decoder),
                policy,
                Arc::clone(&self.team),
            ))
        };
        let found = perplexity(&mut session, self.tokens, &self.options, &NoProgress)?;
        Ok(found.perplexity)
    }

    fn run(
        &self,
        title: &str,
        keeps: &[f64],
        progress: &dyn Progress,
    ) -> Result<Compared, LmError> {
        let seen = Calibration::read(self.file, self.calibrated, self.names, &self.team, progress)?;
        let dense = self.perplexity(self.file)?;
        let mut table = Table::new(
            &format!("{title}; whole {dense:.3}"),
            &[
                "kept, %",
                "way",
                "really kept, %",
                "perplexity",
                "error of outputs, %",
            ],
        );
        let (mut values, mut all) = (Vec::new(), vec![(1.0, vec![dense])]);
        progress.start(
            "compressing",
            "models",
            Some((keeps.len() * WAYS.len()) as u64),
        );
        for &keep in keeps {
            let mut of_keep = Vec::new();
            for (name, atoms, residual) in WAYS {
                if progress.cancelled() {
                    return Err(LmError::Stopped);
                }
                let config = MasaConfig {
                    groups: self.groups,
                    keep,
                    atoms,
                    residual,
                };
                let made = share(self.file, self.names, &config, Some(&seen), &NoProgress)?;
                let folder = tempfile::tempdir().map_err(|e| LmError::Input {
                    what: format!("no temporary folder: {e}"),
                })?;
                save(self.file, self.names, &made, folder.path())?;
                let perplexity = self.perplexity(&ModelFile::open(folder.path())?)?;
                let before: usize = made
                    .iter()
                    .map(|p| p.layers.len() * p.shape[0] * p.shape[1])
                    .sum();
                let after: usize = made.iter().map(Shared::numbers).sum();
                let errors: Vec<f64> = made.iter().flat_map(|p| p.output_errors.clone()).collect();
                let kept = after as f64 / before as f64;
                table.row([
                    format!("{:.1}", 100.0 * keep),
                    name.to_owned(),
                    format!("{:.1}", 100.0 * kept),
                    format!("{perplexity:.3}"),
                    format!("{:.1}", 100.0 * mean(&errors)),
                ]);
                values.push(json!({
                    "keep": keep, "way": name, "kept": kept, "perplexity": perplexity,
                    "output_error": mean(&errors),
                }));
                of_keep.push(perplexity);
                progress.advance(1);
            }
            all.push((keep, of_keep));
        }
        progress.finish();
        Ok((table, values, all))
    }
}

/// A sentence about the ways at each share.
fn finding(model: &str, all: &[(f64, Vec<f64>)]) -> String {
    let dense = all[0].1[0];
    let each = all[1..].iter().map(|(keep, of)| {
        format!(
            "{:.0} % kept: {:.2} (atoms alone {:.2}, low rank {:.2})",
            100.0 * keep,
            of[0],
            of[1],
            of[2]
        )
    });
    let better = all[1..].iter().all(|(_, of)| of[0] < of[2]);
    format!(
        "{model}, compressed without training, whole {dense:.2}; MASA with {}. The paper (Llama-3.2-1B): 11.57 \
         whole, 12.61 with 80 % kept, low rank 15.08; MASA below low rank here: {}.",
        each.collect::<Vec<_>>().join(", "),
        if better {
            "at every share"
        } else {
            "not at every share"
        }
    )
}

const QKV: [LinearName; 3] = [LinearName::Q, LinearName::K, LinearName::V];

/// The dense model that was trained here.
pub(super) fn small(
    options: &BenchOptions,
    sizes: &Sizes,
    dense: &Llama,
    data: &Data,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let folder = tempfile::tempdir().map_err(|e| BenchError::data("masa", e.to_string()))?;
    let saved = dense.save(&config(sizes), folder.path());
    saved.map_err(|e| BenchError::data("masa", e.to_string()))?;
    let name = "the small model";
    let file = ModelFile::open(folder.path()).map_err(failed(name))?;
    let bytes = |text: &[u8], most: usize| -> Vec<u32> {
        text.iter().take(most).map(|b| u32::from(*b)).collect()
    };
    let windows = if options.scale == Scale::Smoke {
        2
    } else {
        100
    };
    let source = Source {
        file: &file,
        names: &QKV,
        groups: 1,
        calibrated: &bytes(data.learned, 512),
        tokens: &bytes(data.held, 20_000),
        options: PerplexityOptions {
            context: 2 * (sizes.length / 2),
            windows,
            protocol: Protocol::Prompt,
            prefix: Vec::new(),
        },
        team: Arc::new(Team::new(options.thread_count())),
    };
    let keeps: &[f64] = if options.scale == Scale::Smoke {
        &[0.5]
    } else {
        &[0.8, 0.7, 0.5, 1.0 / 3.0]
    };
    let title = "perplexity by bytes of the small dense model, queries, keys and values compressed";
    let (table, values, all) = source.run(title, keeps, progress).map_err(failed(name))?;
    tables.push(table);
    findings.push(finding("The small model", &all));
    Ok(json!(values))
}

/// The user's model.
pub(super) fn given(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let Some((model, tokens)) = given_text(options)? else {
        findings.push(
            "a published model needs --model FILE and --data TEXT; none was compressed.".into(),
        );
        return Ok(Value::Null);
    };
    let file = ModelFile::open(Path::new(&model.name)).map_err(failed(&model.name))?;
    let (calibrated, windows, keeps): (usize, usize, &[f64]) = match options.scale {
        Scale::Smoke => (256, 1, &[0.8]),
        Scale::Small => (2048, 4, &[0.9, 0.8, 0.7]),
        Scale::Full => (8192, 16, &[0.9, 0.8, 0.7, 0.5, 1.0 / 3.0]),
    };
    let cut = calibrated.min(tokens.len() / 2);
    let context = model.context(512);
    let source = Source {
        file: &file,
        names: &QKV,
        groups: 4,
        calibrated: &tokens[..cut],
        tokens: &tokens[cut..],
        options: PerplexityOptions {
            context,
            windows,
            protocol: Protocol::Prompt,
            prefix: model.prefix(),
        },
        team: Arc::clone(&model.team),
    };
    let title = format!(
        "perplexity of {}, queries, keys and values compressed in 4 groups, calibrated on {cut} tokens",
        model.name
    );
    let (table, values, all) = source
        .run(&title, keeps, progress)
        .map_err(failed(&model.name))?;
    tables.push(table);
    findings.push(finding(&model.name, &all));
    Ok(json!(values))
}
