//! The list of parts of a sentence-transformers or PyLate folder (`modules.json`).

use keyfold_core::ModelFolder;
use serde::Deserialize;

use crate::error::{LoadError, invalid};

pub(crate) const MODULES: &str = "modules.json";

/// A part of the model, in the order in which they run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Module {
    /// The backbone with its tokenizer.
    Transformer { path: String },
    /// From token vectors to one vector.
    Pooling { path: String },
    /// A linear layer with an activation.
    Dense { path: String },
    /// Scaling to length one.
    Normalize,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    class: String,
}

/// Reads `modules.json`, if the folder has one.
pub(crate) fn read(folder: &ModelFolder) -> Result<Option<Vec<Module>>, LoadError> {
    let Some(entries) = folder.json_optional::<Vec<Entry>>(MODULES)? else {
        return Ok(None);
    };
    let path = folder.file(MODULES);
    let mut modules = Vec::new();
    for entry in entries {
        if entry.path.split(['/', '\\']).any(|part| part == "..")
            || std::path::Path::new(&entry.path).is_absolute()
        {
            return Err(invalid(
                &path,
                format!("the path '{}' leads out of the model's folder", entry.path),
            ));
        }
        let class = entry.class.rsplit('.').next().unwrap_or_default();
        modules.push(match class {
            "Transformer" => Module::Transformer { path: entry.path },
            "Pooling" => Module::Pooling { path: entry.path },
            "Dense" => Module::Dense { path: entry.path },
            "Normalize" => Module::Normalize,
            // Does nothing when a model is used.
            "Dropout" => continue,
            _ => {
                return Err(invalid(
                    &path,
                    format!(
                        "the module type '{}' is not known; known are Transformer, Pooling, \
                         Dense, Normalize and Dropout",
                        entry.class
                    ),
                ));
            }
        });
    }
    match modules.first() {
        Some(Module::Transformer { .. }) => Ok(Some(modules)),
        _ => Err(invalid(&path, "its first module must be a Transformer")),
    }
}
