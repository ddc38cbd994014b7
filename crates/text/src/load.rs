//! From a name to an encoder.

use std::fs::File;
use std::path::Path;

use keyfold_core::{Encoder, EncoderIdentity, ModelFolder, SparseEncoder};
use serde::Deserialize;

use crate::backbone::Backbone;
use crate::builtin::{self, BUILTIN, TokenMixerEncoder};
use crate::by_word::ByWordEncoder;
use crate::colberter::{self, ColberterEncoder, ColberterOptions, ColberterTerms};
use crate::error::{LoadError, invalid, io};
use crate::late::{LateInteractionEncoder, Layout};
use crate::paragraph_vector::{CodeEncoder, ParagraphVectors};
use crate::sentence::SentenceEncoder;
use crate::sparse::SparseTextEncoder;
use crate::tokenize::TextTokenizer;
use keyfold_core::weights::{Weights, join};

/// How an encoder is set up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Threads that encode; 0 means as many as the machine has.
    pub threads: usize,
}

/// Loads the encoder that `name` stands for: `builtin`, a folder, or a hub name
/// (`org/model`) in the local hub cache. What the folder holds decides what
/// kind of encoder it is. Options of a ColBERTer model may follow after a `#` (see
/// [`ColberterOptions`]).
///
/// # Errors
/// When there is no such model, or a file of it is missing, damaged, or of a
/// kind that is not known; the error names the file.
pub fn load(name: &str, options: &LoadOptions) -> Result<Box<dyn Encoder>, LoadError> {
    let (name, chosen) = split_options(name);
    if name == BUILTIN {
        let encoder = Box::new(builtin::load(options.threads)?);
        return by_word(encoder, Path::new(BUILTIN), chosen);
    }
    let folder = ModelFolder::find(name)?;
    if let Some(encoder) = colberter(&folder, chosen, options)? {
        return Ok(Box::new(encoder));
    }
    let config: Option<ModelType> = folder.json_optional("config.json")?;
    if ParagraphVectors::is_in(&folder.path) {
        let model = ParagraphVectors::load(&folder)?;
        return match chosen {
            Some(options) => Err(no_options(&folder.path, options)),
            None => Ok(Box::new(CodeEncoder::new(model, options.threads))),
        };
    }
    if config.is_some_and(|c| c.model_type == builtin::MODEL_TYPE) {
        let encoder = TokenMixerEncoder::load(&folder, options.threads)?;
        return by_word(Box::new(encoder), &folder.path, chosen);
    }
    match Layout::of(&folder)? {
        Some(layout) => {
            let encoder = LateInteractionEncoder::load_layout(&folder, layout, options)?;
            by_word(Box::new(encoder), &folder.path, chosen)
        }
        None => match chosen {
            Some(options) => Err(no_options(&folder.path, options)),
            None => Ok(Box::new(SentenceEncoder::load(&folder, options)?)),
        },
    }
}

/// A model with one vector for each token, by whole words if its options say so.
fn by_word(
    encoder: Box<dyn Encoder>,
    path: &Path,
    chosen: Option<&str>,
) -> Result<Box<dyn Encoder>, LoadError> {
    let Some(text) = chosen else {
        return Ok(encoder);
    };
    let options: ColberterOptions = text.parse().map_err(|what: String| invalid(path, what))?;
    if options.keep_stopwords || options.truncate {
        return Err(no_options(path, text));
    }
    Ok(match options.words {
        Some(words) => Box::new(ByWordEncoder::new(encoder, words)),
        None => encoder,
    })
}

/// Loads the model that weighs terms that `name` stands for: a folder, or a hub name
/// in the local hub cache, with options as for [`load`].
///
/// # Errors
/// As [`load`]; also when the model does not weigh terms.
pub fn load_sparse(name: &str, options: &LoadOptions) -> Result<Box<dyn SparseEncoder>, LoadError> {
    let (plain, chosen) = split_options(name);
    let folder = ModelFolder::find(plain)?;
    if let (Some(options), false) = (chosen, is_colberter(&folder)?) {
        return Err(no_options(&folder.path, options));
    }
    Ok(match colberter(&folder, chosen, options)? {
        Some(model) => Box::new(ColberterTerms::new(model, &folder.path)?),
        None => Box::new(SparseTextEncoder::load(plain, options)?),
    })
}

/// Loads the ColBERTer model that `name` stands for, with options as for [`load`];
/// none if it stands for another kind of model.
///
/// # Errors
/// As [`load`].
pub fn load_colberter(
    name: &str,
    options: &LoadOptions,
) -> Result<Option<ColberterEncoder>, LoadError> {
    let (name, chosen) = split_options(name);
    if name == BUILTIN {
        return Ok(None);
    }
    colberter(&ModelFolder::find(name)?, chosen, options)
}

/// A model's name and the options after its `#`, as [`load`] takes them; a folder may
/// have a `#` in its name.
pub fn split_options(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once('#') {
        Some((plain, options)) if !Path::new(name).is_dir() => (plain, Some(options)),
        _ => (name, None),
    }
}

fn is_colberter(folder: &ModelFolder) -> Result<bool, LoadError> {
    let config: Option<ModelType> = folder.json_optional("config.json")?;
    Ok(config.is_some_and(|c| c.model_type == colberter::MODEL_TYPE))
}

/// The error of options that a model does not have.
fn no_options(model: &Path, options: &str) -> LoadError {
    let what = format!(
        "it does not have the options '{options}': models with one vector for each token have \
         words (--words), and only ColBERTer models keep-stopwords and truncate too"
    );
    invalid(model, what)
}

/// The ColBERTer model in a folder; none if it holds another kind of model.
fn colberter(
    folder: &ModelFolder,
    chosen: Option<&str>,
    options: &LoadOptions,
) -> Result<Option<ColberterEncoder>, LoadError> {
    if !is_colberter(folder)? {
        return Ok(None);
    }
    let chosen: ColberterOptions = match chosen {
        None => ColberterOptions::default(),
        Some(text) => text
            .parse()
            .map_err(|what: String| invalid(&folder.path, what))?,
    };
    ColberterEncoder::load(folder, chosen, options).map(Some)
}

/// The field of `config.json` that says what kind of model a folder holds.
#[derive(Debug, Deserialize)]
struct ModelType {
    #[serde(default)]
    model_type: String,
}

/// A backbone with its tokenizer.
pub(crate) struct Transformer {
    pub(crate) backbone: Backbone,
    pub(crate) tokenizer: TextTokenizer,
    /// Most tokens of a text, special ones included.
    pub(crate) longest: usize,
}

/// `sentence_bert_config.json`.
#[derive(Debug, Default, Deserialize)]
struct TransformerConfig {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

/// Old folders name the file after the backbone.
const TRANSFORMER_CONFIGS: [&str; 6] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
];

impl Transformer {
    /// Loads what is in `subfolder` (empty for the folder itself) of a model.
    /// `lowercase` makes texts lower case even where the configuration does not.
    /// The names of the files read are added to `names`.
    pub(crate) fn load(
        folder: &ModelFolder,
        subfolder: &str,
        lowercase: bool,
        names: &mut Vec<String>,
    ) -> Result<Self, LoadError> {
        let mut config = TransformerConfig::default();
        for file in TRANSFORMER_CONFIGS {
            let file = join(subfolder, file);
            if let Some(found) = folder.json_optional(&file)? {
                config = found;
                names.push(file);
                break;
            }
        }
        let mut weights = Weights::open(folder, subfolder)?;
        let backbone = Backbone::load(folder, subfolder, &mut weights)?;
        let tokenizer = TextTokenizer::load(folder, subfolder, lowercase || config.do_lower_case)?;
        tokenizer.require(&backbone, &weights)?;
        let asked = config.max_seq_length.or(tokenizer.longest());
        // A word between two special tokens.
        if let Some(asked) = asked
            && asked < 3
        {
            return Err(invalid(
                &folder.file(&join(subfolder, TRANSFORMER_CONFIGS[0])),
                format!(
                    "the longest text (max_seq_length) is {asked} tokens; it must be at least 3"
                ),
            ));
        }
        let longest = asked.map_or(backbone.longest(), |n| n.min(backbone.longest()));
        names.push(join(subfolder, "config.json"));
        names.extend_from_slice(tokenizer.names());
        names.extend_from_slice(weights.names());
        Ok(Self {
            backbone,
            tokenizer,
            longest,
        })
    }
}

/// Who an encoder is: `files` (relative to the folder, missing ones skipped) are
/// what changes its output.
pub(crate) fn identity(
    folder: &ModelFolder,
    mut files: Vec<String>,
    dim: usize,
) -> Result<EncoderIdentity, LoadError> {
    files.sort();
    files.dedup();
    let mut hasher = blake3::Hasher::new();
    for name in files {
        let path = folder.file(&name);
        if let Some(hash) = hash_file(&path)? {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(hash.as_bytes());
        }
    }
    Ok(EncoderIdentity {
        name: folder.name.clone(),
        hash: hasher.finalize().to_hex().to_string(),
        dim,
    })
}

fn hash_file(path: &Path) -> Result<Option<blake3::Hash>, LoadError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(path, e)),
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(|e| io(path, e))?;
    Ok(Some(hasher.finalize()))
}
