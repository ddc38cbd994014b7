//! The tensors of a Mamba model by the names of its authors, whatever file they are in.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use keyfold_core::ModelFolder;
use keyfold_core::weights::Weights;

use super::model::Numbers;
use crate::Tensor;
use crate::error::{LmError, invalid, tensor as wrong_tensor};
use crate::file::{Gguf, safetensors};

/// Tensors of a file.
pub(super) struct Tensors {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    used: std::cell::RefCell<HashSet<String>>,
}

impl Tensors {
    /// From a folder with safetensors or `pytorch_model.bin`, of which those that the model
    /// needs are read.
    pub(super) fn from_folder(
        folder: &Path,
        needed: &[(String, Vec<usize>)],
    ) -> Result<Self, LmError> {
        let (one, index) = (
            folder.join("model.safetensors"),
            folder.join("model.safetensors.index.json"),
        );
        if one.is_file() {
            return Ok(Self::new(one.clone(), safetensors::open(&one)?));
        }
        if index.is_file() {
            return Ok(Self::new(index.clone(), safetensors::open_index(&index)?));
        }
        let found = ModelFolder {
            name: folder.display().to_string(),
            path: folder.to_owned(),
        };
        let weights = Weights::open(&found, "").map_err(|e| invalid(folder, e.to_string()))?;
        let mut tensors = BTreeMap::new();
        let damaged = |e: keyfold_core::weights::WeightsError| invalid(folder, e.to_string());
        for name in needed.iter().flat_map(|(name, _)| spellings(name)) {
            if weights.has(&name) {
                let shape = weights.shape(&name).map_err(damaged)?.to_vec();
                let numbers = weights.tensor(&name, &shape).map_err(damaged)?;
                if let Some(tensor) = Tensor::from_f32(shape, &numbers) {
                    tensors.insert(name, tensor);
                }
            }
        }
        Ok(Self::new(weights.path().to_owned(), tensors))
    }

    /// From memory.
    pub(super) fn from_numbers(numbers: Numbers) -> Self {
        let tensors = numbers.into_iter().filter_map(|(name, (shape, numbers))| {
            Some((name, Tensor::from_f32(shape, &numbers)?))
        });
        Self::new(PathBuf::from("memory"), tensors.collect())
    }

    /// From a GGUF file.
    pub(super) fn from_gguf(file: &Gguf) -> Self {
        let named = file.names().filter_map(|name| {
            let tensor = file.tensor(name)?.clone();
            Some((authors_name(name)?, tensor))
        });
        Self::new(file.path().to_owned(), named.collect())
    }

    fn new(path: PathBuf, tensors: BTreeMap<String, Tensor>) -> Self {
        Self {
            path,
            tensors,
            used: Default::default(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn find(&self, name: &str) -> Option<(&String, &Tensor)> {
        spellings(name).find_map(|s| self.tensors.get_key_value(&s))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// A tensor of a shape, but for sides of length 1.
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, LmError> {
        let Some((stored, tensor)) = self.find(name) else {
            let what = "is missing; the file is incomplete or of another architecture";
            return Err(wrong_tensor(&self.path, name, what));
        };
        // Files differ in sides of length 1, and cut a vector into groups or not.
        let real =
            |shape: &[usize]| -> Vec<usize> { shape.iter().copied().filter(|&n| n != 1).collect() };
        let (found, wanted) = (real(tensor.shape()), real(shape));
        let same = match wanted[..] {
            [] | [_] => found.iter().product::<usize>() == wanted.iter().product::<usize>(),
            _ => found == wanted,
        };
        if !same {
            let what = format!(
                "is {:?}; the configuration asks for {shape:?}",
                tensor.shape()
            );
            return Err(wrong_tensor(&self.path, stored, what));
        }
        self.used.borrow_mut().insert(stored.clone());
        Ok(tensor.clone())
    }

    /// A matrix that is multiplied as it lies: its rows are those of the shape.
    pub(super) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Tensor, LmError> {
        let tensor = self.get(name, &shape)?;
        match [tensor.rows(), tensor.row_len()] == shape {
            true => Ok(tensor),
            false => {
                let what = format!(
                    "is {:?}; the configuration asks for {shape:?}",
                    tensor.shape()
                );
                Err(wrong_tensor(&self.path, name, what))
            }
        }
    }

    /// A tensor's numbers, which must be finite.
    pub(super) fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LmError> {
        let numbers = self.get(name, shape)?.to_f32();
        match numbers.iter().find(|x| !x.is_finite()) {
            None => Ok(numbers),
            Some(odd) => {
                let what = format!("holds {odd}; the file is damaged");
                Err(wrong_tensor(&self.path, name, what))
            }
        }
    }

    /// Refuses tensors that were not asked for: the model would be another.
    pub(super) fn refuse_others(
        &self,
        architecture: &'static str,
        allowed: &str,
    ) -> Result<(), LmError> {
        let used = self.used.borrow();
        let extra: Vec<String> = self
            .tensors
            .keys()
            .filter(|name| !used.contains(*name) && name.as_str() != allowed)
            .cloned()
            .collect();
        if extra.is_empty() {
            return Ok(());
        }
        Err(LmError::Tensors {
            path: self.path.clone(),
            architecture,
            missing: Vec::new(),
            extra,
        })
    }

    /// First bytes of every tensor with its name, for a fingerprint.
    pub(super) fn heads(&self) -> String {
        let mut text = String::new();
        for (name, tensor) in &self.tensors {
            text.push_str(name);
            let bytes = tensor.bytes();
            text.extend(bytes[..bytes.len().min(64)].iter().map(|&b| char::from(b)));
        }
        text
    }
}

/// How files spell a name: with and without what stands before it, and Transformers' word
/// for the embedding.
fn spellings(name: &str) -> impl Iterator<Item = String> {
    let other = name.replace("embedding.", "embeddings.");
    [
        format!("backbone.{name}"),
        format!("backbone.{other}"),
        name.to_owned(),
        other,
    ]
    .into_iter()
}

/// The authors' name of a GGUF tensor.
fn authors_name(name: &str) -> Option<String> {
    let whole = match name {
        "token_embd.weight" => "embedding.weight",
        "output_norm.weight" => "norm_f.weight",
        "output.weight" => "lm_head.weight",
        _ => {
            let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
            let rest = match rest {
                "attn_norm.weight" => "norm.weight",
                "ssm_in.weight" => "mixer.in_proj.weight",
                "ssm_conv1d.weight" => "mixer.conv1d.weight",
                "ssm_conv1d.bias" => "mixer.conv1d.bias",
                "ssm_x.weight" => "mixer.x_proj.weight",
                "ssm_dt.weight" => "mixer.dt_proj.weight",
                "ssm_dt.bias" => "mixer.dt_bias",
                "ssm_a" => "mixer.A",
                "ssm_d" => "mixer.D",
                "ssm_norm.weight" => "mixer.norm.weight",
                "ssm_out.weight" => "mixer.out_proj.weight",
                other => return Some(format!("layers.{layer}.{other}")),
            };
            return Some(format!("layers.{layer}.{rest}"));
        }
    };
    Some(whole.to_owned())
}
