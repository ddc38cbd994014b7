//! The files of a model beside its weights, which training hands on unchanged.

use std::path::Path;
use std::sync::Arc;

use keyfold_core::{ModelFolder, ModelFolderError, atomic};

use super::BertConfig;
use crate::ModelError;

pub(super) const CONFIG: &str = "config.json";

/// What a tokenizer may have.
const TOKENIZER: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "sentence_bert_config.json",
];

/// Names and bytes.
#[derive(Debug, Clone)]
pub(super) struct Files(Arc<Vec<(&'static str, Vec<u8>)>>);

impl Files {
    pub(super) fn of_config(config: &BertConfig) -> Self {
        let text = serde_json::to_string_pretty(config).unwrap_or_default();
        Self(Arc::new(vec![(CONFIG, text.into_bytes())]))
    }

    pub(super) fn read(folder: &ModelFolder) -> Result<Self, ModelFolderError> {
        let mut files = Vec::new();
        for name in [CONFIG].into_iter().chain(TOKENIZER) {
            if let Some(bytes) = folder.read_optional(name)? {
                files.push((name, bytes));
            }
        }
        Ok(Self(Arc::new(files)))
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), ModelError> {
        std::fs::create_dir_all(folder).map_err(|source| ModelError::Write {
            path: folder.to_owned(),
            source,
        })?;
        for (name, bytes) in self.0.iter() {
            let path = folder.join(name);
            atomic::write(&path, bytes).map_err(|source| ModelError::Write { path, source })?;
        }
        Ok(())
    }
}
