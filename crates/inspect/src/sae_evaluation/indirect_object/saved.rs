//! The small model in files.
//!
//! A folder holds `config.json` (sizes, words, and the checksum of the weights),
//! `model.safetensors`, and `task.jsonl`: prompts with attributes and counterfactuals, as
//! `keyfold model inspect` reads them.

use std::ops::Range;
use std::path::Path;

use keyfold_core::atomic;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{ATTRIBUTES, NAMES, Prompt, SmallModel, SmallModelConfig, vocabulary};
use crate::{InspectError, weights};

const FORMAT: &str = "keyfold-indirect-object-1";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
/// The file of the task in the folder.
pub(super) const TASK: &str = "task.jsonl";

/// The largest sizes that are read.
const MOST: usize = 1 << 12;

#[derive(Serialize, Deserialize)]
struct Config {
    format: String,
    d_model: usize,
    heads: usize,
    layers: usize,
    words: Vec<String>,
    /// blake3 of the file with the weights.
    weights: String,
}

impl SmallModel {
    /// Whether a folder holds such a model, sound or not.
    pub fn is_at(folder: &Path) -> bool {
        #[derive(Deserialize)]
        struct Kind {
            format: String,
        }
        let bytes = std::fs::read(folder.join(CONFIG)).unwrap_or_default();
        let kind: Result<Kind, _> = serde_json::from_slice(&bytes);
        kind.is_ok_and(|kind| kind.format.starts_with("keyfold-indirect-object"))
    }

    /// Reads a folder of [`save`](Self::save).
    ///
    /// # Errors
    /// When a file is missing, damaged or of another kind.
    pub fn load(folder: &Path) -> Result<Self, InspectError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|e| InspectError::io(&path, e))
        };
        let (config, bytes) = (read(CONFIG)?, read(WEIGHTS)?);
        let path = folder.join(CONFIG);
        let wrong = |what: String| InspectError::format(&path, what);
        let config: Config = serde_json::from_slice(&config).map_err(|e| wrong(e.to_string()))?;
        if config.format != FORMAT {
            return Err(wrong(format!(
                "its format is '{}' and not {FORMAT}; 'keyfold train indirect-object' makes such folders",
                config.format
            )));
        }
        if config.weights != blake3::hash(&bytes).to_hex().as_str() {
            return Err(InspectError::format(
                &folder.join(WEIGHTS),
                "its checksum is not the one in config.json: it is damaged, or of another model",
            ));
        }
        if config.words != vocabulary() {
            return Err(wrong("its words are not those of the task".to_owned()));
        }
        if config.d_model.max(config.heads).max(config.layers) > MOST {
            return Err(wrong(format!("it has a size above {MOST}")));
        }
        let path = folder.join(WEIGHTS);
        let wrong = |what: String| InspectError::format(&path, what);
        let file = weights::parse(&path, &bytes)?;
        // Before numbers are drawn: a wrong size must not ask for endless memory.
        let d = config.d_model;
        let block = 4 * d * d + 4 * d;
        if file.tensors().len() != 3 + 4 * config.layers || block * config.layers * 4 > bytes.len()
        {
            return Err(wrong(
                "its tensors are not those that config.json tells of".to_owned(),
            ));
        }
        let sizes = SmallModelConfig {
            d_model: d,
            heads: config.heads,
            layers: config.layers,
            ..SmallModelConfig::default()
        };
        let mut model = Self::new(sizes)
            .map_err(|e| InspectError::format(&folder.join(CONFIG), e.to_string()))?;
        for (name, shape, range) in model.tensors() {
            let numbers = weights::shaped(&path, &file, &name, &shape)?;
            model.weights[range].copy_from_slice(&numbers);
        }
        Ok(model)
    }

    /// Writes the model into a folder, which is made.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), InspectError> {
        std::fs::create_dir_all(folder).map_err(|e| InspectError::io(folder, e))?;
        let path = folder.join(WEIGHTS);
        let tensors: Vec<_> = (self.tensors().into_iter())
            .map(|(name, shape, range)| (name, shape, &self.weights[range]))
            .collect();
        let file = weights::to_bytes(&path, &tensors, None)?;
        atomic::write(&path, &file).map_err(|e| InspectError::io(&path, e))?;
        let config = Config {
            format: FORMAT.to_owned(),
            d_model: self.config.d_model,
            heads: self.config.heads,
            layers: self.config.layers,
            words: vocabulary().into_iter().map(str::to_owned).collect(),
            weights: blake3::hash(&file).to_hex().to_string(),
        };
        let path = folder.join(CONFIG);
        let text = serde_json::to_vec_pretty(&config)
            .map_err(|e| InspectError::format(&path, e.to_string()))?;
        atomic::write(&path, &text).map_err(|e| InspectError::io(&path, e))
    }

    /// Name, shape and place of each tensor.
    fn tensors(&self) -> Vec<(String, Vec<usize>, Range<usize>)> {
        let d = self.config.d_model;
        let rows = |range: &Range<usize>| vec![range.len() / d, d];
        let mut all = vec![
            (
                "embed.weight".to_owned(),
                rows(&self.embedding),
                self.embedding.clone(),
            ),
            (
                "pos_embed.weight".to_owned(),
                rows(&self.places),
                self.places.clone(),
            ),
            (
                "unembed.weight".to_owned(),
                rows(&self.unembedding),
                self.unembedding.clone(),
            ),
        ];
        for layer in 0..self.config.layers {
            let (qkv, out, _, _) = self.blocks.parts(layer);
            for (name, part) in [("qkv", qkv), ("out", out)] {
                let name = format!("blocks.{layer}.attn.{name}");
                all.push((format!("{name}.weight"), rows(&part.w), part.w.clone()));
                all.push((format!("{name}.bias"), vec![part.b.len()], part.b.clone()));
            }
        }
        all
    }
}

/// Writes prompts with a counterfactual of each attribute, as `keyfold model inspect` reads them.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write_task(path: &Path, prompts: &[Prompt], seed: u64) -> Result<(), InspectError> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut text = String::new();
    for prompt in prompts {
        let mut changes = Map::new();
        for (at, name) in ATTRIBUTES.into_iter().enumerate() {
            let other = prompt.counterfactual(at, &mut rng);
            let change = json!({
                "prompt": other.words().join(" "),
                "answer": NAMES[other.io],
                "value": other.value(at),
            });
            changes.insert(name.to_owned(), change);
        }
        let named = ATTRIBUTES.into_iter().enumerate();
        let values: Map<String, Value> = named
            .map(|(at, name)| (name.to_owned(), prompt.value(at).into()))
            .collect();
        let line = json!({
            "prompt": prompt.words().join(" "),
            "answer": NAMES[prompt.io],
            "wrong": NAMES[prompt.s],
            "attributes": values,
            "counterfactuals": changes,
        });
        text.push_str(&line.to_string());
        text.push('\n');
    }
    atomic::write(path, text.as_bytes()).map_err(|e| InspectError::io(path, e))
}
