//! Safetensors files, one or several with an index.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyfold_kernels::blocks::BlockType;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::tensor::{FileBytes, Tensor, bytes_of};
use crate::error::{LmError, invalid, io, tensor as wrong_tensor};

/// `*.safetensors.index.json` of weights in several files.
#[derive(Deserialize)]
struct Index {
    /// Which file holds each tensor.
    weight_map: BTreeMap<String, String>,
}

/// The tensors of several files, as an index tells.
pub(crate) fn open_index(path: &Path) -> Result<BTreeMap<String, Tensor>, LmError> {
    let json = std::fs::read(path).map_err(|e| io(path, e))?;
    let index: Index = serde_json::from_slice(&json)
        .map_err(|e| invalid(path, format!("it is no index of weights: {e}")))?;
    let mut all = BTreeMap::new();
    let files: HashSet<&String> = index.weight_map.values().collect();
    for file in files {
        if file.contains(['/', '\\']) {
            return Err(invalid(
                path,
                format!("shard '{file}' is no plain file name"),
            ));
        }
        let shard = path.with_file_name(file);
        for (name, tensor) in open(&shard)? {
            if index.weight_map.get(&name) != Some(file) {
                let what = format!("is in this file, but '{}' does not say so", path.display());
                return Err(wrong_tensor(&shard, &name, what));
            }
            all.insert(name, tensor);
        }
    }
    match index
        .weight_map
        .iter()
        .find(|(name, _)| !all.contains_key(*name))
    {
        None => Ok(all),
        Some((name, file)) => {
            let shard: PathBuf = path.with_file_name(file);
            Err(wrong_tensor(
                &shard,
                name,
                format!("is missing; '{}' says it is here", path.display()),
            ))
        }
    }
}

/// The tensors of one file.
pub(crate) fn open(path: &Path) -> Result<BTreeMap<String, Tensor>, LmError> {
    read(path, FileBytes::open(path)?)
}

/// The tensors of what would be a file.
pub(super) fn read(path: &Path, file: Arc<FileBytes>) -> Result<BTreeMap<String, Tensor>, LmError> {
    let (header, metadata) = SafeTensors::read_metadata(&file).map_err(|e| {
        let what = format!(
            "it is no whole safetensors file ({e}); it is cut off or damaged, fetch it again \
             (a Git LFS pointer must be fetched first)"
        );
        invalid(path, what)
    })?;
    let start = 8 + header;
    refuse_duplicates(path, &file[8..start])?;
    let mut tensors = BTreeMap::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else {
            continue;
        };
        let kind = match info.dtype {
            Dtype::F32 => BlockType::F32,
            Dtype::F16 => BlockType::F16,
            Dtype::BF16 => BlockType::Bf16,
            // Masks and counters, which no weight is made of.
            Dtype::BOOL | Dtype::U8 | Dtype::I64 if super::names::is_buffer(&name) => continue,
            other => {
                let what = format!("is of type {other:?}; F32, F16 and BF16 are read");
                return Err(wrong_tensor(path, &name, what));
            }
        };
        let (from, to) = info.data_offsets;
        let range = start + from..start + to;
        let empty = info.shape.contains(&0) || info.shape.is_empty();
        if empty || bytes_of(kind, &info.shape) != Some(range.len()) || range.end > file.len() {
            let what = format!("has the shape {:?} in {} bytes", info.shape, to - from);
            return Err(wrong_tensor(path, &name, what));
        }
        let tensor = Tensor::new(kind, info.shape.clone(), Arc::clone(&file), range);
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// The library keeps the last of several tensors of a name.
fn refuse_duplicates(path: &Path, header: &[u8]) -> Result<(), LmError> {
    struct Names(Option<String>);

    impl<'de> Deserialize<'de> for Names {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Twice;
            impl<'de> Visitor<'de> for Twice {
                type Value = Names;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("an object")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                    let mut seen = HashSet::new();
                    let mut twice = None;
                    while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                        if !seen.insert(name.clone()) {
                            twice = Some(name);
                        }
                    }
                    Ok(Names(twice))
                }
            }
            deserializer.deserialize_map(Twice)
        }
    }

    match serde_json::from_slice(header) {
        Ok(Names(None)) => Ok(()),
        Ok(Names(Some(name))) => Err(wrong_tensor(path, &name, "is there twice")),
        Err(e) => Err(invalid(path, format!("its header is damaged: {e}"))),
    }
}
