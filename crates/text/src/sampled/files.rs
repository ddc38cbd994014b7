//! Model folders of word models: `config.json` with the settings and a checksum of
//! every other file, `vocabulary.tsv`, and `model.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use keyfold_core::weights::WeightsError;
use keyfold_core::{ModelFolder, atomic};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Table, Vocabulary};
use crate::error::{LoadError, invalid, io};

const CONFIG: &str = "config.json";
const WORDS: &str = "vocabulary.tsv";
const TENSORS: &str = "model.safetensors";

#[derive(Serialize, Deserialize)]
struct Config<C> {
    model_type: String,
    format_version: u32,
    settings: C,
    /// BLAKE3 (hex) by file.
    checksums: BTreeMap<String, String>,
}

/// The part of `config.json` that says whose it is.
#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    model_type: String,
}

/// What a folder is and which version of it is written here.
pub(crate) struct Format {
    pub(crate) model_type: &'static str,
    pub(crate) version: u32,
}

impl Format {
    /// Whether the folder holds a model of this kind.
    pub(crate) fn is(&self, folder: &Path) -> bool {
        let text = std::fs::read(folder.join(CONFIG)).unwrap_or_default();
        serde_json::from_slice::<Kind>(&text).is_ok_and(|k| k.model_type == self.model_type)
    }

    /// Writes a model; `config.json` comes last, so that a folder with one is whole.
    pub(crate) fn write<C: Serialize>(
        &self,
        folder: &Path,
        settings: &C,
        words: &Vocabulary,
        tensors: &[(&str, &Table)],
    ) -> Result<(), LoadError> {
        std::fs::create_dir_all(folder).map_err(|e| io(folder, e))?;
        let mut checksums = BTreeMap::new();
        let mut put = |name: &str, bytes: &[u8]| {
            checksums.insert(name.to_owned(), blake3::hash(bytes).to_hex().to_string());
            let path = folder.join(name);
            atomic::write(&path, bytes).map_err(|e| io(&path, e))
        };
        put(WORDS, words.to_text().as_bytes())?;
        put(TENSORS, &to_bytes(folder, tensors)?)?;
        let config = Config {
            model_type: self.model_type.to_owned(),
            format_version: self.version,
            settings,
            checksums,
        };
        let path = folder.join(CONFIG);
        let mut text =
            serde_json::to_vec_pretty(&config).map_err(|e| invalid(&path, e.to_string()))?;
        text.push(b'\n');
        atomic::write(&path, &text).map_err(|e| io(&path, e))
    }

    /// Reads a model, whose files must be whole.
    pub(crate) fn read<C: DeserializeOwned>(
        &self,
        folder: &ModelFolder,
    ) -> Result<Read<C>, LoadError> {
        let path = folder.file(CONFIG);
        let kind: Kind = folder.json(CONFIG, "the settings of the model")?;
        if kind.model_type != self.model_type {
            return Err(invalid(
                &path,
                format!(
                    "its model_type is '{}', not '{}'; give the folder of such a model",
                    kind.model_type, self.model_type
                ),
            ));
        }
        let config: Config<C> = folder.json(CONFIG, "the settings of the model")?;
        if config.format_version != self.version {
            return Err(invalid(
                &path,
                format!(
                    "it is of version {}, and this program reads version {}; train the model \
                     again, or use the program that made it",
                    config.format_version, self.version
                ),
            ));
        }
        let get = |name: &str| -> Result<Vec<u8>, LoadError> {
            let bytes = folder.read(name, "words and vectors of the model")?;
            let hash = blake3::hash(&bytes).to_hex().to_string();
            if config.checksums.get(name) != Some(&hash) {
                return Err(invalid(
                    &folder.file(name),
                    "its checksum is not the one in config.json: the file is damaged or of \
                     another model; copy the folder again",
                ));
            }
            Ok(bytes)
        };
        let path = folder.file(WORDS);
        let text = String::from_utf8(get(WORDS)?).map_err(|e| invalid(&path, e.to_string()))?;
        let words = Vocabulary::parse(&path, &text)?;
        let tensors = from_bytes(&folder.file(TENSORS), &get(TENSORS)?)?;
        let mut hash = blake3::Hasher::new();
        config.checksums.values().for_each(|c| {
            hash.update(c.as_bytes());
        });
        Ok(Read {
            settings: config.settings,
            words,
            tensors: Tensors {
                path: folder.file(TENSORS),
                tensors,
            },
            hash: hash.finalize().to_hex().to_string(),
        })
    }
}

/// A model as it was read.
pub(crate) struct Read<C> {
    pub(crate) settings: C,
    pub(crate) words: Vocabulary,
    pub(crate) tensors: Tensors,
    /// Of words and vectors.
    pub(crate) hash: String,
}

/// Shapes and numbers by name.
type ByName = BTreeMap<String, ([usize; 2], Vec<f32>)>;

/// Tensors of one file.
pub(crate) struct Tensors {
    path: std::path::PathBuf,
    tensors: ByName,
}

impl Tensors {
    /// Reads a file of [`write_tensors`].
    pub(crate) fn read(path: &Path) -> Result<Self, LoadError> {
        let bytes = std::fs::read(path).map_err(|e| io(path, e))?;
        Ok(Self {
            path: path.to_owned(),
            tensors: from_bytes(path, &bytes)?,
        })
    }

    /// Whether there is a tensor of this name.
    #[cfg(feature = "train")]
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of this name, which must have so many rows.
    pub(crate) fn take(&mut self, name: &str, rows: usize, dim: usize) -> Result<Table, LoadError> {
        let Some((shape, values)) = self.tensors.remove(name) else {
            return Err(WeightsError::MissingTensor {
                path: self.path.clone(),
                name: name.to_owned(),
            }
            .into());
        };
        if shape != [rows, dim] {
            return Err(WeightsError::WrongShape {
                path: self.path.clone(),
                name: name.to_owned(),
                expected: vec![rows, dim],
                found: shape.to_vec(),
            }
            .into());
        }
        if values.iter().any(|x| !x.is_finite()) {
            return Err(invalid(
                &self.path,
                format!("tensor '{name}' holds numbers that are not finite; train the model again"),
            ));
        }
        Ok(Table::new(dim, values))
    }
}

/// Writes tensors into a file.
pub(crate) fn write_tensors(path: &Path, tensors: &[(&str, &Table)]) -> Result<(), LoadError> {
    let bytes = to_bytes(path, tensors)?;
    std::fs::write(path, bytes).map_err(|e| io(path, e))
}

fn to_bytes(path: &Path, tensors: &[(&str, &Table)]) -> Result<Vec<u8>, LoadError> {
    let views = tensors
        .iter()
        .map(|(n, t)| view(n, t))
        .collect::<Result<Vec<_>, _>>();
    views
        .and_then(|views| safetensors::serialize(views, None))
        .map_err(|e| invalid(path, e.to_string()))
}

fn view<'a>(name: &str, table: &'a Table) -> Result<(String, TensorView<'a>), SafeTensorError> {
    let dim = table.dim.max(1);
    let shape = vec![table.values.len() / dim, dim];
    let bytes = bytemuck::cast_slice(&table.values);
    TensorView::new(Dtype::F32, shape, bytes).map(|view| (name.to_owned(), view))
}

fn from_bytes(path: &Path, bytes: &[u8]) -> Result<ByName, LoadError> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| invalid(path, e.to_string()))?;
    let mut all = BTreeMap::new();
    for (name, view) in file.tensors() {
        let shape: Result<[usize; 2], _> = view.shape().try_into();
        let (Ok(shape), Dtype::F32) = (shape, view.dtype()) else {
            return Err(invalid(
                path,
                format!("tensor '{name}' is no table of F32 numbers"),
            ));
        };
        let numbers = view.data().as_chunks::<4>().0;
        let values = numbers.iter().map(|b| f32::from_le_bytes(*b)).collect();
        all.insert(name, (shape, values));
    }
    Ok(all)
}
