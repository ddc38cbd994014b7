//! The numbers of a checkpoint, by tensor name.
//!
//! Reads `model.safetensors` and, where there is none, PyTorch's
//! `pytorch_model.bin`; each as one file or as shards with an index
//! (`model.safetensors.index.json`); else the one checkpoint of a training program
//! (`*.ckpt`) in the folder. Numbers in half precision become `f32`.

mod arrays;
mod numbers;
mod pickle;
mod safetensors_file;
mod torch_file;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::{ModelFolder, ModelFolderError};

pub use arrays::{Array, PickledArrays};
pub use pickle::Scalar;
use safetensors_file::SafetensorsFile;
pub use torch_file::TorchFile;

/// Why the numbers of a checkpoint could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The folder or one of its files is missing or not usable.
    #[error(transparent)]
    Folder(#[from] ModelFolderError),
    /// A tensor that the model needs is not in its weights.
    #[error("{path} has no tensor '{name}'; the file is incomplete or of another architecture")]
    MissingTensor {
        /// The file (or index of files) with the weights.
        path: PathBuf,
        /// The tensor's name, without the prefix of the checkpoint.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error(
        "tensor '{name}' of {path} has the shape {found:?}, but the configuration asks for \
         {expected:?}; the weights and config.json do not belong together"
    )]
    WrongShape {
        /// The file with the weights.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// What the configuration asks for.
        expected: Vec<usize>,
        /// What the file holds.
        found: Vec<usize>,
    },
}

fn invalid(path: &Path, what: impl Into<String>) -> WeightsError {
    WeightsError::Folder(ModelFolderError::Invalid {
        path: path.to_owned(),
        what: what.into(),
    })
}

fn io(path: &Path, source: std::io::Error) -> WeightsError {
    WeightsError::Folder(ModelFolderError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Names of the file with the weights, in the order in which they are looked for.
const FILES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// The tensors of one checkpoint.
pub struct Weights {
    /// The file that an error names: the single file, or the index of the shards.
    path: PathBuf,
    files: Vec<TensorFile>,
    /// Tensor name, in today's spelling, to the file that holds it and its name there.
    index: HashMap<String, (usize, String)>,
    /// What stands before every name in this checkpoint (`bert.`).
    prefix: String,
    /// The files read, relative to the model's folder.
    names: Vec<String>,
}

#[derive(serde::Deserialize)]
struct ShardIndex {
    weight_map: HashMap<String, String>,
}

impl ShardIndex {
    /// The shards, relative to the model's folder.
    fn names(self, path: &Path, subfolder: &str) -> Result<Vec<String>, WeightsError> {
        let mut shards: Vec<String> = self.weight_map.into_values().collect();
        shards.sort();
        shards.dedup();
        if let Some(odd) = shards.iter().find(|s| s.contains(['/', '\\'])) {
            return Err(invalid(
                path,
                format!("shard '{odd}' is not a plain file name"),
            ));
        }
        Ok(shards.iter().map(|s| join(subfolder, s)).collect())
    }
}

/// One file with tensors.
enum TensorFile {
    Safetensors(SafetensorsFile),
    Torch(TorchFile),
}

impl TensorFile {
    fn open(path: &Path) -> Result<Self, WeightsError> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => SafetensorsFile::open(path).map(Self::Safetensors),
            _ => TorchFile::open(path).map(Self::Torch),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Safetensors(f) => f.path(),
            Self::Torch(f) => f.path(),
        }
    }

    fn names(&self) -> Vec<String> {
        match self {
            Self::Safetensors(f) => f.names(),
            Self::Torch(f) => f.names(),
        }
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        match self {
            Self::Safetensors(f) => f.shape(name),
            Self::Torch(f) => f.shape(name),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        match self {
            Self::Safetensors(f) => f.read(name),
            Self::Torch(f) => f.read(name),
        }
    }
}

impl Weights {
    /// Opens the checkpoint in `subfolder` (empty for the folder itself) of a model.
    pub fn open(folder: &ModelFolder, subfolder: &str) -> Result<Self, WeightsError> {
        for file in FILES {
            let single = join(subfolder, file);
            if folder.file(&single).is_file() {
                return Self::from_files(folder, folder.file(&single), vec![single]);
            }
            let index = join(subfolder, &format!("{file}.index.json"));
            if let Some(shards) = folder.json_optional::<ShardIndex>(&index)? {
                let path = folder.file(&index);
                let names = shards.names(&path, subfolder)?;
                return Self::from_files(folder, path, names);
            }
        }
        if let [only] = &checkpoints(&folder.file(subfolder))[..] {
            let single = join(subfolder, only);
            return Self::from_files(folder, folder.file(&single), vec![single]);
        }
        Err(ModelFolderError::MissingFile {
            folder: folder.file(subfolder),
            file: FILES[0].to_owned(),
            why: "it holds the weights of the model".to_owned(),
        }
        .into())
    }

    fn from_files(
        folder: &ModelFolder,
        path: PathBuf,
        names: Vec<String>,
    ) -> Result<Self, WeightsError> {
        let mut files = Vec::new();
        let mut index = HashMap::new();
        for name in &names {
            let file = TensorFile::open(&folder.file(name))?;
            for tensor in file.names() {
                index.insert(todays_name(&tensor), (files.len(), tensor));
            }
            files.push(file);
        }
        Ok(Self {
            path,
            files,
            index,
            prefix: String::new(),
            names,
        })
    }

    /// The files that hold the weights, relative to the model's folder.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The file that errors name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Finds out what stands before every name, by a tensor that every
    /// checkpoint of the architecture has.
    pub fn find_prefix(&mut self, known: &str) -> Result<(), WeightsError> {
        let mut prefixes: Vec<&str> = self
            .index
            .keys()
            .filter_map(|name| name.strip_suffix(known))
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
            .collect();
        // The shortest, so that a model that holds a second one gives the outer.
        prefixes.sort_by_key(|p| (p.len(), p.to_string()));
        match prefixes.first() {
            Some(&prefix) => {
                self.prefix = prefix.to_owned();
                Ok(())
            }
            None => Err(self.missing(known)),
        }
    }

    /// True when the checkpoint has this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.index.contains_key(&self.full_name(name))
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Result<&[usize], WeightsError> {
        let (file, there) = self.find(name)?;
        file.shape(there).ok_or_else(|| self.missing(name))
    }

    /// A tensor's numbers, row-major; refuses another shape than `shape`, NaN and infinity.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let found = self.shape(name)?;
        let (file, there) = self.find(name)?;
        if found != shape {
            return Err(WeightsError::WrongShape {
                path: file.path().to_owned(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: found.to_vec(),
            });
        }
        let numbers = file.read(there)?;
        if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
            return Err(invalid(
                file.path(),
                format!(
                    "tensor '{name}' holds {} at place {at}; the file is damaged",
                    numbers[at]
                ),
            ));
        }
        Ok(numbers)
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn find(&self, name: &str) -> Result<(&TensorFile, &str), WeightsError> {
        let (file, there) = self
            .index
            .get(&self.full_name(name))
            .ok_or_else(|| self.missing(name))?;
        Ok((&self.files[*file], there))
    }

    fn missing(&self, name: &str) -> WeightsError {
        WeightsError::MissingTensor {
            path: self.path.clone(),
            name: name.to_owned(),
        }
    }
}

/// Names of the files in a folder that training programs write (PyTorch Lightning).
fn checkpoints(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.ends_with(".ckpt")).collect()
}

/// Early checkpoints call the weight and bias of a layer norm gamma and beta.
fn todays_name(name: &str) -> String {
    if let Some(stem) = name.strip_suffix("LayerNorm.gamma") {
        return format!("{stem}LayerNorm.weight");
    }
    if let Some(stem) = name.strip_suffix("LayerNorm.beta") {
        return format!("{stem}LayerNorm.bias");
    }
    name.to_owned()
}

/// `subfolder/name`, or `name` in the folder itself.
pub fn join(subfolder: &str, name: &str) -> String {
    if subfolder.is_empty() {
        name.to_owned()
    } else {
        format!("{subfolder}/{name}")
    }
}
