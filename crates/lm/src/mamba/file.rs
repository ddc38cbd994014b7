//! A Mamba model on disk.

use std::path::{Path, PathBuf};

use keyfold_core::ModelFolder;

use super::config::MambaConfig;
use super::model::{MambaLm, tensor_shapes};
use super::tensors::Tensors;
use crate::Tokenizer;
use crate::config::Fields;
use crate::error::{LmError, io};
use crate::file::Gguf;

/// The tokenizer of the models that their authors published, whose folders hold none.
const TOKENIZER: &str = "EleutherAI/gpt-neox-20b";

/// A folder with `config.json` and weights, or a GGUF file.
pub struct MambaFile {
    path: PathBuf,
    config: MambaConfig,
    kind: Kind,
}

enum Kind {
    Folder(ModelFolder),
    Gguf(Gguf),
}

impl MambaFile {
    /// Whether a path holds a model that is read here. What cannot be read at all is left to
    /// whoever opens it.
    pub fn is_mamba(path: &Path) -> bool {
        if path.is_dir() {
            return match std::fs::read(path.join("config.json")) {
                Ok(json) => MambaConfig::is_mamba(&json),
                Err(_) => only_gguf(path).is_some_and(|gguf| Self::is_mamba(&gguf)),
            };
        }
        if path.extension().is_none_or(|e| e != "gguf") {
            return false;
        }
        let Ok(file) = Gguf::open(path) else {
            return false;
        };
        let name = Fields::gguf(&file).text("general.architecture");
        matches!(name, Ok(Some(name)) if name == "mamba" || name == "mamba2")
    }

    /// Opens a model.
    ///
    /// # Errors
    /// When it cannot be read or its configuration is not known.
    pub fn open(path: &Path) -> Result<Self, LmError> {
        if path.is_file() {
            return Self::from_gguf(path);
        }
        let json_path = path.join("config.json");
        if !json_path.exists()
            && let Some(gguf) = only_gguf(path)
        {
            return Self::from_gguf(&gguf);
        }
        let json = std::fs::read(&json_path).map_err(|e| io(&json_path, e))?;
        let folder = ModelFolder {
            name: path.display().to_string(),
            path: path.to_owned(),
        };
        Ok(Self {
            path: path.to_owned(),
            config: MambaConfig::from_json(&json_path, &json)?,
            kind: Kind::Folder(folder),
        })
    }

    fn from_gguf(path: &Path) -> Result<Self, LmError> {
        let file = Gguf::open(path)?;
        Ok(Self {
            path: path.to_owned(),
            config: MambaConfig::from_gguf(&file)?,
            kind: Kind::Gguf(file),
        })
    }

    /// What the model is.
    pub fn config(&self) -> &MambaConfig {
        &self.config
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model.
    ///
    /// # Errors
    /// When a tensor is missing, of another shape, unknown, or not finite.
    pub fn load(&self) -> Result<MambaLm, LmError> {
        let tensors = match &self.kind {
            Kind::Folder(folder) => {
                Tensors::from_folder(&folder.path, &tensor_shapes(&self.config))?
            }
            Kind::Gguf(file) => Tensors::from_gguf(file),
        };
        MambaLm::new(self.config.clone(), &tensors)
    }

    /// Its tokenizer. The authors' folders hold none; theirs is looked for in the hub's cache.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn tokenizer(&self) -> Result<Tokenizer, LmError> {
        let folder = match &self.kind {
            Kind::Gguf(file) => return Tokenizer::from_gguf(file),
            Kind::Folder(folder) => folder,
        };
        if folder.file("tokenizer.json").is_file() {
            return Tokenizer::from_folder(folder);
        }
        match ModelFolder::find(TOKENIZER) {
            Ok(other) => Tokenizer::from_folder(&other),
            Err(_) => Err(LmError::Tokenizer {
                path: folder.path.clone(),
                what: format!(
                    "there is no tokenizer.json; put that of {TOKENIZER} beside the weights, or \
                     fetch it once with 'huggingface-cli download {TOKENIZER} tokenizer.json'"
                ),
            }),
        }
    }
}

/// The one GGUF file of a folder.
fn only_gguf(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let mut found = entries
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "gguf"));
    found.next().filter(|_| found.next().is_none())
}
