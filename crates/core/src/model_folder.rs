//! Folders that hold a model, in the Hugging Face layout (`config.json`,
//! `model.safetensors`, `tokenizer.json`), and where they are found.

use std::path::{Path, PathBuf};

/// A folder with a model in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    /// What the user called it.
    pub name: String,
    /// Where its files are.
    pub path: PathBuf,
}

/// Why a model was not found or a file of it is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ModelFolderError {
    /// Neither a folder nor a model in the hub cache.
    #[error(
        "no model '{name}': it is not a folder, and the hub cache {cache} does not hold it. \
         Give a folder with config.json and model.safetensors, or fetch it once with \
         'huggingface-cli download {name}'"
    )]
    NotFound {
        /// What the user asked for.
        name: String,
        /// The cache that was searched.
        cache: PathBuf,
    },
    /// A file that the model needs is not there.
    #[error("model folder {folder} has no {file}: {why}")]
    MissingFile {
        /// The model's folder.
        folder: PathBuf,
        /// The file.
        file: String,
        /// What it is needed for.
        why: String,
    },
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} is not usable: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
}

impl ModelFolder {
    /// Finds a model by folder, or by hub name (`org/name`) in the local hub
    /// cache that other programs fill. Nothing is downloaded.
    pub fn find(name: &str) -> Result<Self, ModelFolderError> {
        Self::find_in(name, &hub_cache())
    }

    /// [`ModelFolder::find`] with an explicit hub cache folder.
    pub fn find_in(name: &str, cache: &Path) -> Result<Self, ModelFolderError> {
        let path = PathBuf::from(name);
        if path.is_dir() {
            return Ok(Self {
                name: name.to_owned(),
                path,
            });
        }
        match snapshot(name, cache) {
            Some(path) => Ok(Self {
                name: name.to_owned(),
                path,
            }),
            None => Err(ModelFolderError::NotFound {
                name: name.to_owned(),
                cache: cache.to_owned(),
            }),
        }
    }

    /// Path of a file of the model, whether it is there or not.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads a file that may be missing.
    pub fn read_optional(&self, name: &str) -> Result<Option<Vec<u8>>, ModelFolderError> {
        let path = self.file(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ModelFolderError::Io { path, source }),
        }
    }

    /// Reads a file that must be there; `why` says what it is needed for.
    pub fn read(&self, name: &str, why: &str) -> Result<Vec<u8>, ModelFolderError> {
        self.read_optional(name)?
            .ok_or_else(|| ModelFolderError::MissingFile {
                folder: self.path.clone(),
                file: name.to_owned(),
                why: why.to_owned(),
            })
    }

    /// Reads and parses a JSON file that may be missing.
    pub fn json_optional<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, ModelFolderError> {
        let Some(bytes) = self.read_optional(name)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| ModelFolderError::Invalid {
                path: self.file(name),
                what: e.to_string(),
            })
    }

    /// Reads and parses a JSON file that must be there; `why` says what it is needed for.
    pub fn json<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
        why: &str,
    ) -> Result<T, ModelFolderError> {
        self.json_optional(name)?
            .ok_or_else(|| ModelFolderError::MissingFile {
                folder: self.path.clone(),
                file: name.to_owned(),
                why: why.to_owned(),
            })
    }
}

/// The cache folder that Hugging Face programs share, by their rules:
/// `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`.
pub fn hub_cache() -> PathBuf {
    if let Some(dir) = std::env::var_os("HF_HUB_CACHE") {
        return dir.into();
    }
    if let Some(dir) = std::env::var_os("HF_HOME") {
        return PathBuf::from(dir).join("hub");
    }
    let home = std::env::home_dir().unwrap_or_default();
    home.join(".cache/huggingface/hub")
}

/// `cache/models--ORG--NAME/snapshots/REV`, REV from `refs/main`, else any.
fn snapshot(name: &str, cache: &Path) -> Option<PathBuf> {
    let (org, model) = name.split_once('/')?;
    if [org, model]
        .iter()
        .any(|s| s.is_empty() || s.contains(['/', '\\']) || *s == "..")
    {
        return None;
    }
    let folder = cache.join(format!("models--{org}--{model}"));
    let snapshots = folder.join("snapshots");
    if let Ok(revision) = std::fs::read_to_string(folder.join("refs/main")) {
        let path = snapshots.join(revision.trim());
        if path.is_dir() {
            return Some(path);
        }
    }
    let mut all: Vec<_> = std::fs::read_dir(snapshots)
        .ok()?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.is_dir())
        .collect();
    all.sort();
    all.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_folders_and_hub_names_and_says_what_to_do_otherwise() {
        let cache = tempfile::tempdir().unwrap();
        let snapshot = cache.path().join("models--org--tiny/snapshots/abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(cache.path().join("models--org--tiny/refs")).unwrap();
        std::fs::write(cache.path().join("models--org--tiny/refs/main"), "abc\n").unwrap();

        let by_name = ModelFolder::find_in("org/tiny", cache.path()).unwrap();
        assert_eq!(by_name.path, snapshot);
        let by_path = ModelFolder::find_in(snapshot.to_str().unwrap(), cache.path()).unwrap();
        assert_eq!(by_path.path, snapshot);

        for absent in ["org/other", "nothing", "../..", "a/b/c"] {
            let e = ModelFolder::find_in(&format!("{absent}-x"), cache.path()).unwrap_err();
            assert!(e.to_string().contains("huggingface-cli download"), "{e}");
        }
        let e = by_name
            .read("config.json", "the shape of the model")
            .unwrap_err();
        assert!(e.to_string().contains("config.json"), "{e}");
    }
}
