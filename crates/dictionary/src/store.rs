//! Dictionaries and the state of learners, in a folder.
//!
//! ```text
//! config.json                   format, version, method, settings, coder, checksums of:
//! dictionary-STEPS.safetensors  `components` [K, n], `mean` [n] where there is one
//! state-STEPS.safetensors       what the learner needs to go on, where it can
//! ```
//!
//! Numbers are written under the name of their step; replacing `config.json` makes them
//! count, then those before are removed. So a kill at any moment leaves the old dictionary or
//! the new one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use keyfold_core::atomic;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Coder, Dictionary, DictionaryError};

const FORMAT: &str = "keyfold-dictionary";
const VERSION: u32 = 1;
const CONFIG: &str = "config.json";

/// Numbers of a state, in their precision.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Numbers {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl Numbers {
    fn bytes(&self) -> (Dtype, usize, Vec<u8>) {
        match self {
            Self::F32(x) => (
                Dtype::F32,
                x.len(),
                x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ),
            Self::F64(x) => (
                Dtype::F64,
                x.len(),
                x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ),
        }
    }
}

/// What a learner needs to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    method: String,
    settings: Value,
    steps: u64,
    rows: u64,
    numbers: BTreeMap<String, Numbers>,
}

impl State {
    pub(crate) fn new(method: &str, settings: &impl Serialize, steps: u64, rows: u64) -> Self {
        Self {
            method: method.to_owned(),
            // Settings are plain structs, which always have a value.
            settings: serde_json::to_value(settings).unwrap_or_default(),
            steps,
            rows,
            numbers: BTreeMap::new(),
        }
    }

    /// A method that cannot go on, with the settings that it had.
    pub fn finished(method: &str, settings: &impl Serialize, rows: u64) -> Self {
        Self::new(method, settings, 0, rows)
    }

    pub(crate) fn with(mut self, name: &str, numbers: Numbers) -> Self {
        self.numbers.insert(name.to_owned(), numbers);
        self
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Config {
    format: String,
    version: u32,
    method: String,
    n_components: usize,
    n_features: usize,
    coder: Coder,
    settings: Value,
    steps: u64,
    rows: u64,
    /// Height and width of atoms that are patches of pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    patch: Option<[usize; 2]>,
    /// Checksum (BLAKE3) of every file.
    files: BTreeMap<String, String>,
}

/// What a folder holds.
#[derive(Debug, Clone)]
pub struct Saved {
    /// The dictionary.
    pub dictionary: Dictionary,
    /// Height and width of atoms that are patches of pictures.
    pub patch: Option<[usize; 2]>,
    config: Config,
    numbers: BTreeMap<String, Numbers>,
    folder: std::path::PathBuf,
}

impl Saved {
    /// The method that learned it: `frank-wolfe`, `online`, ...
    pub fn method(&self) -> &str {
        &self.config.method
    }

    /// The settings that it was learned with.
    pub fn config(&self) -> &Value {
        &self.config.settings
    }

    /// Batches that it was learned from.
    pub fn steps(&self) -> u64 {
        self.config.steps
    }

    /// Rows that it was learned from.
    pub fn rows(&self) -> u64 {
        self.config.rows
    }

    fn damaged(&self, what: impl Into<String>) -> DictionaryError {
        DictionaryError::format(&self.folder.join(CONFIG), what)
    }

    pub(crate) fn settings<T: DeserializeOwned>(&self, method: &str) -> Result<T, DictionaryError> {
        if self.config.method != method || self.numbers.is_empty() {
            return Err(self.damaged(format!(
                "it was learned by '{}', and has no state from which '{method}' could go on",
                self.config.method
            )));
        }
        serde_json::from_value(self.config.settings.clone())
            .map_err(|e| self.damaged(format!("its settings are damaged: {e}")))
    }

    pub(crate) fn f64s(&self, name: &str, len: usize) -> Result<Vec<f64>, DictionaryError> {
        match self.numbers.get(name) {
            Some(Numbers::F64(x)) if x.len() == len => Ok(x.clone()),
            _ => Err(self.damaged(format!("the state has no '{name}' of {len} numbers"))),
        }
    }

    pub(crate) fn f32s(&self, name: &str, len: usize) -> Result<Vec<f32>, DictionaryError> {
        match self.numbers.get(name) {
            Some(Numbers::F32(x)) if x.len() == len => Ok(x.clone()),
            _ => Err(self.damaged(format!("the state has no '{name}' of {len} numbers"))),
        }
    }

    /// Rows that were taken from the stream: those learned from, and those that wait for a batch.
    pub fn rows_taken(&self) -> u64 {
        let waiting = match self.numbers.get("waiting") {
            Some(Numbers::F32(x)) => x.len() / self.dictionary.width.max(1),
            _ => 0,
        };
        self.config.rows + waiting as u64
    }

    /// Rows that wait for a batch to fill.
    pub(crate) fn waiting(&self, width: usize) -> Result<Vec<f32>, DictionaryError> {
        match self.numbers.get("waiting") {
            Some(Numbers::F32(x)) if x.len().is_multiple_of(width) => Ok(x.clone()),
            _ => Err(self.damaged("the state has no rows that wait")),
        }
    }

    /// Reads a folder that [`Dictionary::save`] wrote.
    ///
    /// # Errors
    /// When it is none, was written by a later version, or a file is damaged.
    pub fn load(folder: &Path) -> Result<Self, DictionaryError> {
        let path = folder.join(CONFIG);
        let bytes = fs::read(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                DictionaryError::format(folder, "it is no dictionary: it has no config.json")
            }
            _ => DictionaryError::io(&path, source),
        })?;
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| DictionaryError::format(&path, format!("it is damaged: {e}")))?;
        if value["format"] != FORMAT {
            return Err(DictionaryError::format(
                &path,
                format!("it does not say '{FORMAT}'"),
            ));
        }
        if value["version"] != VERSION {
            return Err(DictionaryError::format(
                &path,
                format!(
                    "it is of version {}, but this program reads {VERSION}",
                    value["version"]
                ),
            ));
        }
        let config: Config = serde_json::from_value(value)
            .map_err(|e| DictionaryError::format(&path, format!("it is damaged: {e}")))?;
        let (mut dictionary, mut numbers) = (BTreeMap::new(), BTreeMap::new());
        for (name, checksum) in &config.files {
            let path = folder.join(name);
            if name.contains(['/', '\\']) {
                return Err(DictionaryError::format(&path, "it is no plain file name"));
            }
            let bytes = fs::read(&path).map_err(|source| DictionaryError::io(&path, source))?;
            if blake3::hash(&bytes).to_hex().as_str() != checksum {
                return Err(DictionaryError::format(
                    &path,
                    "its checksum is wrong; it is damaged, or was changed",
                ));
            }
            let tensors = tensors(&bytes).map_err(|what| DictionaryError::format(&path, what))?;
            match name.starts_with("state") {
                true => numbers = tensors,
                false => dictionary = tensors,
            }
        }
        let width = config.n_features;
        let mut take = |name: &str| match dictionary.remove(name) {
            Some(Numbers::F32(x)) => x,
            _ => Vec::new(),
        };
        let (components, mean) = (take("components"), take("mean"));
        if width == 0
            || components.len() != config.n_components * width
            || !(mean.is_empty() || mean.len() == width)
        {
            return Err(DictionaryError::format(
                &path,
                "its shape does not fit its numbers",
            ));
        }
        Ok(Self {
            dictionary: Dictionary {
                components,
                width,
                mean,
                coder: config.coder,
            },
            patch: config.patch,
            config,
            numbers,
            folder: folder.to_owned(),
        })
    }
}

fn tensors(bytes: &[u8]) -> Result<BTreeMap<String, Numbers>, String> {
    let all = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let mut tensors = BTreeMap::new();
    for (name, tensor) in all.tensors() {
        let data = tensor.data();
        let numbers = match tensor.dtype() {
            Dtype::F32 => Numbers::F32(
                data.as_chunks()
                    .0
                    .iter()
                    .map(|b| f32::from_le_bytes(*b))
                    .collect(),
            ),
            Dtype::F64 => Numbers::F64(
                data.as_chunks()
                    .0
                    .iter()
                    .map(|b| f64::from_le_bytes(*b))
                    .collect(),
            ),
            other => return Err(format!("tensor '{name}' is of type {other:?}")),
        };
        tensors.insert(name, numbers);
    }
    Ok(tensors)
}

fn write(path: &Path, tensors: &[(&str, Vec<usize>, &Numbers)]) -> Result<String, DictionaryError> {
    let parts: Vec<_> = tensors
        .iter()
        .map(|(name, shape, x)| (name, shape, x.bytes()))
        .collect();
    let mut views = Vec::new();
    for (name, shape, (dtype, _, bytes)) in &parts {
        let view = TensorView::new(*dtype, (*shape).clone(), bytes)
            .map_err(|e| DictionaryError::format(path, e.to_string()))?;
        views.push((**name, view));
    }
    let bytes = safetensors::serialize(views, None)
        .map_err(|e| DictionaryError::format(path, e.to_string()))?;
    atomic::write(path, &bytes).map_err(|source| DictionaryError::io(path, source))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

impl Dictionary {
    /// Writes a folder, with the state from which its learner can go on.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(
        &self,
        folder: &Path,
        state: &State,
        patch: Option<[usize; 2]>,
    ) -> Result<(), DictionaryError> {
        fs::create_dir_all(folder).map_err(|source| DictionaryError::io(folder, source))?;
        let before: Vec<String> = match Saved::load(folder) {
            Ok(saved) => saved.config.files.into_keys().collect(),
            Err(_) => Vec::new(),
        };
        // A name of its own for every content, so that the old files stay whole meanwhile.
        let mut number = state.steps;
        let name = |what: &str, number: u64| format!("{what}-{number}.safetensors");
        while before.contains(&name("dictionary", number)) {
            number += 1;
        }
        let mut files = BTreeMap::new();
        let components = Numbers::F32(self.components.clone());
        let mean = Numbers::F32(self.mean.clone());
        let mut tensors = vec![(
            "components",
            vec![self.n_components(), self.width],
            &components,
        )];
        if !self.mean.is_empty() {
            tensors.push(("mean", vec![self.width], &mean));
        }
        let file = name("dictionary", number);
        let checksum = write(&folder.join(&file), &tensors)?;
        files.insert(file, checksum);
        if !state.numbers.is_empty() {
            let tensors: Vec<_> = state
                .numbers
                .iter()
                .map(|(name, x)| (name.as_str(), vec![x.bytes().1], x))
                .collect();
            let file = name("state", number);
            let checksum = write(&folder.join(&file), &tensors)?;
            files.insert(file, checksum);
        }
        let config = Config {
            format: FORMAT.to_owned(),
            version: VERSION,
            method: state.method.clone(),
            n_components: self.n_components(),
            n_features: self.width,
            coder: self.coder,
            settings: state.settings.clone(),
            steps: state.steps,
            rows: state.rows,
            patch,
            files,
        };
        let path = folder.join(CONFIG);
        let text = serde_json::to_string_pretty(&config)
            .map_err(|e| DictionaryError::format(&path, e.to_string()))?;
        atomic::write(&path, format!("{text}\n").as_bytes())
            .map_err(|source| DictionaryError::io(&path, source))?;
        for old in before.iter().filter(|old| !config.files.contains_key(*old)) {
            // One that stays is not read, and is removed next time if it is in the way.
            let _ = fs::remove_file(folder.join(old));
        }
        Ok(())
    }
}
