//! What can go wrong with the files and the input of a language model.

use std::path::{Path, PathBuf};

use keyfold_core::ModelFolderError;

/// Why a language model cannot be opened or used: which file, what in it, what is wrong.
#[derive(Debug, thiserror::Error)]
pub enum LmError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder of the model was not found or lacks a file.
    #[error(transparent)]
    Folder(#[from] ModelFolderError),
    /// A file is damaged, or not of a kind that is read.
    #[error("{path} is not usable: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// A field of a configuration, or a key of GGUF metadata.
    #[error("{path}: field '{field}' {what}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is wrong with it, as the end of a sentence.
        what: String,
    },
    /// A tensor has another type, shape or place than it must have.
    #[error("{path}: tensor '{tensor}' {what}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it, as the end of a sentence.
        what: String,
    },
    /// The tensors of a file are not those of its architecture.
    #[error(
        "{path} does not hold the tensors of {architecture}: {}",
        listed(missing, extra)
    )]
    Tensors {
        /// The file.
        path: PathBuf,
        /// The architecture.
        architecture: &'static str,
        /// What the model needs and the file lacks.
        missing: Vec<String>,
        /// What the file holds and the model would ignore.
        extra: Vec<String>,
    },
    /// The tokenizer of a model.
    #[error("the tokenizer of {path} is not usable: {what}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// The template that turns a conversation into a prompt.
    #[error("the chat template is not usable: {what}")]
    Template {
        /// What is wrong, where.
        what: String,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A setting of how tokens are picked is out of its range.
    #[error(transparent)]
    Decoding(#[from] crate::decoding::DecodingError),
    /// The user asked to stop.
    #[error("stopped")]
    Stopped,
    /// What the caller asked for cannot be done.
    #[error("{what}")]
    Input {
        /// What is wrong and what to do.
        what: String,
    },
}

/// How many names an error lists of each kind.
const LISTED: usize = 5;

fn listed(missing: &[String], extra: &[String]) -> String {
    let list = |what: &str, names: &[String]| {
        let shown = names.iter().take(LISTED).map(|n| format!("'{n}'"));
        let shown = shown.collect::<Vec<_>>().join(", ");
        match names.len().saturating_sub(LISTED) {
            _ if names.is_empty() => None,
            0 => Some(format!("{what} {shown}")),
            more => Some(format!("{what} {shown} and {more} more")),
        }
    };
    let parts = [list("it lacks", missing), list("it has the unknown", extra)];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

pub(crate) fn io(path: &Path, source: std::io::Error) -> LmError {
    LmError::Io {
        path: path.to_owned(),
        source,
    }
}

pub(crate) fn invalid(path: &Path, what: impl Into<String>) -> LmError {
    LmError::Invalid {
        path: path.to_owned(),
        what: what.into(),
    }
}

pub(crate) fn field(path: &Path, field: &str, what: impl Into<String>) -> LmError {
    LmError::Field {
        path: path.to_owned(),
        field: field.to_owned(),
        what: what.into(),
    }
}

pub(crate) fn tensor(path: &Path, tensor: &str, what: impl Into<String>) -> LmError {
    LmError::Tensor {
        path: path.to_owned(),
        tensor: tensor.to_owned(),
        what: what.into(),
    }
}
