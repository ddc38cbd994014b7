//! What a late-interaction checkpoint says about markers, lengths, expansion
//! and skipped words, in each of the published layouts.

use keyfold_core::{ModelFolder, ModelFolderError};
use serde::Deserialize;

use crate::error::{LoadError, invalid};
use crate::modules::{self, Module};
use crate::sentence::{Prompts, SENTENCE_CONFIG};

const METADATA: &str = "artifact.metadata";
/// Where XTR keeps its linear head.
const XTR_HEAD: &str = "2_Dense";

/// The published layouts of late-interaction checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `modules.json` with linear heads, fields in `config_sentence_transformers.json`.
    PyLate,
    /// One file with `bert.*` and `linear.weight`, fields in `artifact.metadata`.
    Stanford,
    /// A T5 encoder with a linear head in a folder of its own and no fields.
    Xtr,
}

/// The part of config.json that tells the layouts apart.
#[derive(Debug, Default, Deserialize)]
struct Config {
    #[serde(default)]
    model_type: Option<String>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
}

/// The fields of `config_sentence_transformers.json` that PyLate adds.
#[derive(Debug, Default, Deserialize)]
struct PyLateConfig {
    query_prefix: Option<String>,
    document_prefix: Option<String>,
    query_length: Option<usize>,
    document_length: Option<usize>,
    attend_to_expansion_tokens: Option<bool>,
    do_query_expansion: Option<bool>,
    skiplist_words: Option<Vec<String>>,
    similarity_fn_name: Option<String>,
    model_type: Option<String>,
}

impl PyLateConfig {
    fn is_late(&self) -> bool {
        self.query_prefix.is_some()
            || self.document_prefix.is_some()
            || self.query_length.is_some()
            || self.document_length.is_some()
            || self.skiplist_words.is_some()
            || self.do_query_expansion.is_some()
            || self.attend_to_expansion_tokens.is_some()
            || self.similarity_fn_name.as_deref() == Some("MaxSim")
            || self.model_type.as_deref() == Some("ColBERT")
    }
}

/// `artifact.metadata` of the Stanford code.
#[derive(Debug, Default, Deserialize)]
struct Metadata {
    query_token_id: Option<String>,
    doc_token_id: Option<String>,
    query_maxlen: Option<usize>,
    doc_maxlen: Option<usize>,
    attend_to_mask_tokens: Option<bool>,
    mask_punctuation: Option<bool>,
}

/// How texts become tokens and which rows stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The marker token of each side; empty for none.
    pub(crate) query_marker: String,
    pub(crate) document_marker: String,
    /// Tokens of a text on each side, marker and special tokens included.
    pub(crate) query_length: usize,
    pub(crate) document_length: usize,
    /// Whether queries are filled up with mask tokens; `None` when the files do
    /// not say.
    pub(crate) expand: Option<bool>,
    /// Whether those can be attended to.
    pub(crate) attend: bool,
    /// Tokens whose rows are left out of documents.
    pub(crate) skip: Vec<String>,
    /// What is put before every text.
    pub(crate) prompt: String,
    /// Whether texts are lower-cased whatever the tokenizer says.
    pub(crate) lowercase: bool,
    /// Folder of the backbone.
    pub(crate) transformer: String,
    /// Folders of the linear heads, in order; none for the Stanford layout.
    pub(crate) heads: Vec<String>,
    /// The files read, relative to the model's folder.
    pub(crate) names: Vec<String>,
}

impl Layout {
    /// The layout of a folder, or `None` when it is no late-interaction model.
    pub(crate) fn of(folder: &ModelFolder) -> Result<Option<Self>, LoadError> {
        let config: Config = folder.json_optional("config.json")?.unwrap_or_default();
        let list = modules::read(folder)?;
        let fields: PyLateConfig = folder.json_optional(SENTENCE_CONFIG)?.unwrap_or_default();
        let stanford = config
            .architectures
            .iter()
            .flatten()
            .any(|name| name.starts_with("HF_ColBERT"));
        let t5 = config.model_type.as_deref() == Some("t5");
        // Heads without pooling work on tokens.
        let token_heads = list.as_ref().is_some_and(|list| {
            let is_head = |m: &Module| matches!(m, Module::Dense { .. });
            let is_pooling = |m: &Module| matches!(m, Module::Pooling { .. });
            list.iter().any(is_head) && !list.iter().any(is_pooling)
        });
        Ok(if fields.is_late() {
            Some(Self::PyLate)
        } else if stanford {
            Some(Self::Stanford)
        } else if t5
            && (token_heads
                || list.is_none() && folder.file(XTR_HEAD).join("config.json").is_file())
        {
            Some(Self::Xtr)
        } else if token_heads {
            Some(Self::PyLate)
        } else {
            None
        })
    }
}

impl Settings {
    /// Reads the files of a layout and fills in what they leave out.
    pub(crate) fn read(folder: &ModelFolder, layout: Layout) -> Result<Self, LoadError> {
        match layout {
            Layout::PyLate => Self::pylate(folder),
            Layout::Stanford => Self::stanford(folder),
            Layout::Xtr => Self::xtr(folder),
        }
    }

    fn pylate(folder: &ModelFolder) -> Result<Self, LoadError> {
        let fields: PyLateConfig = folder.json_optional(SENTENCE_CONFIG)?.unwrap_or_default();
        let prompts: Prompts = folder.json_optional(SENTENCE_CONFIG)?.unwrap_or_default();
        let (transformer, heads) = parts(folder)?;
        let or = |field: Option<String>, usual: &str| field.unwrap_or_else(|| usual.to_owned());
        Self {
            query_marker: or(fields.query_prefix, "[Q] "),
            document_marker: or(fields.document_prefix, "[D] "),
            query_length: fields.query_length.unwrap_or(32),
            document_length: fields.document_length.unwrap_or(180),
            expand: fields.do_query_expansion,
            attend: fields.attend_to_expansion_tokens.unwrap_or(false),
            skip: fields.skiplist_words.unwrap_or_else(punctuation),
            prompt: prompts.default_prompt(),
            lowercase: false,
            transformer,
            heads,
            names: vec![SENTENCE_CONFIG.to_owned(), modules::MODULES.to_owned()],
        }
        .checked(folder, SENTENCE_CONFIG)
    }

    fn stanford(folder: &ModelFolder) -> Result<Self, LoadError> {
        let fields: Metadata = folder.json_optional(METADATA)?.unwrap_or_default();
        let or = |field: Option<String>, usual: &str| field.unwrap_or_else(|| usual.to_owned());
        Self {
            query_marker: or(fields.query_token_id, "[unused0]"),
            document_marker: or(fields.doc_token_id, "[unused1]"),
            query_length: fields.query_maxlen.unwrap_or(32),
            document_length: fields.doc_maxlen.unwrap_or(180),
            expand: Some(true),
            attend: fields.attend_to_mask_tokens.unwrap_or(false),
            skip: match fields.mask_punctuation {
                Some(false) => Vec::new(),
                _ => punctuation(),
            },
            prompt: String::new(),
            lowercase: false,
            transformer: String::new(),
            heads: Vec::new(),
            names: vec![METADATA.to_owned()],
        }
        .checked(folder, METADATA)
    }

    fn xtr(folder: &ModelFolder) -> Result<Self, LoadError> {
        let (transformer, heads) = match modules::read(folder)? {
            Some(_) => parts(folder)?,
            None => (String::new(), vec![XTR_HEAD.to_owned()]),
        };
        Ok(Self {
            query_marker: String::new(),
            document_marker: String::new(),
            query_length: 32,
            document_length: 512,
            expand: Some(false),
            attend: false,
            skip: Vec::new(),
            prompt: String::new(),
            lowercase: true,
            transformer,
            heads,
            names: vec![modules::MODULES.to_owned()],
        })
    }

    fn checked(self, folder: &ModelFolder, file: &str) -> Result<Self, LoadError> {
        // A marker, the special tokens at both ends, and one word.
        const LEAST: usize = 4;
        for (name, length) in [
            ("query", self.query_length),
            ("document", self.document_length),
        ] {
            if length < LEAST {
                return Err(invalid(
                    &folder.file(file),
                    format!("the {name} length is {length}; it must be at least {LEAST}"),
                ));
            }
        }
        Ok(self)
    }
}

/// Folders of the backbone and of the linear heads, from `modules.json`.
fn parts(folder: &ModelFolder) -> Result<(String, Vec<String>), LoadError> {
    let missing = |file: &str, why: &str| {
        LoadError::from(ModelFolderError::MissingFile {
            folder: folder.path.clone(),
            file: file.to_owned(),
            why: why.to_owned(),
        })
    };
    let list = modules::read(folder)?.ok_or_else(|| {
        missing(
            modules::MODULES,
            "it lists the linear heads of a late-interaction model",
        )
    })?;
    let mut transformer = String::new();
    let mut heads = Vec::new();
    for module in list {
        match module {
            Module::Transformer { path } => transformer = path,
            Module::Dense { path } => heads.push(path),
            // PyLate passes over them.
            Module::Pooling { .. } | Module::Normalize => {}
        }
    }
    if heads.is_empty() {
        return Err(missing(
            "1_Dense",
            "modules.json lists no Dense, the linear head that makes token vectors",
        ));
    }
    Ok((transformer, heads))
}

/// The 32 punctuation marks of ASCII.
pub(crate) fn punctuation() -> Vec<String> {
    (0u8..128)
        .map(char::from)
        .filter(char::is_ascii_punctuation)
        .map(String::from)
        .collect()
}
