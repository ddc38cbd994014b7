//! Model files: a folder in the Hugging Face layout, one safetensors file beside its
//! `config.json`, or a GGUF file.
//!
//! Weights stay in the files, which are mapped into memory, so that a model opens in
//! milliseconds. Opening checks that all tensors of the architecture are there, in the
//! right shapes, and no others: what opens can be computed with. Every tensor has one
//! [canonical name](Config::tensors), that of Hugging Face's Llama, whatever the file calls
//! it.

mod gguf;
mod gguf_writer;
mod names;
mod repeated;
pub(crate) mod safetensors;
mod shared;
mod tensor;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyfold_core::ModelFolder;

use crate::chat::ChatTemplate;
use crate::config::{Architecture, Config};
use crate::error::{LmError, invalid, tensor as wrong_tensor};
use crate::tokenizer::Tokenizer;

pub use gguf::Gguf;
pub(crate) use gguf_writer::type_number;
use names::View;
#[cfg(test)]
pub(crate) use shared::expand;
pub(crate) use shared::{group_name, pair_name};
pub(crate) use tensor::FileBytes;
pub use tensor::Tensor;

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A model on disk: what it is, and its weights by canonical name.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    config: Config,
    tensors: BTreeMap<String, Entry>,
    notes: Vec<String>,
    kind: Kind,
}

/// A canonical tensor, and the one of the file that it lies in.
#[derive(Debug)]
struct Entry {
    stored: Tensor,
    view: View,
    /// What the file calls it.
    name: String,
}

#[derive(Debug)]
enum Kind {
    Folder(ModelFolder),
    Gguf(Gguf),
}

impl ModelFile {
    /// Opens a folder, a safetensors file or a GGUF file.
    pub fn open(path: &Path) -> Result<Self, LmError> {
        if path.is_dir() {
            return Self::open_folder(path);
        }
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => {
                let folder = path.parent().unwrap_or(Path::new("."));
                let tensors = safetensors::open(path)?;
                Self::from_folder(folder, path, tensors)
            }
            Some("gguf") => Self::from_gguf(Gguf::open(path)?),
            _ if !path.exists() => Err(crate::error::io(
                path,
                std::io::Error::from(std::io::ErrorKind::NotFound),
            )),
            _ => Err(invalid(
                path,
                "models are folders with config.json and model.safetensors, or GGUF files",
            )),
        }
    }

    fn open_folder(folder: &Path) -> Result<Self, LmError> {
        let (one, index) = (folder.join(WEIGHTS), folder.join(INDEX));
        if one.is_file() {
            let tensors = safetensors::open(&one)?;
            return Self::from_folder(folder, &one, tensors);
        }
        if index.is_file() {
            let tensors = safetensors::open_index(&index)?;
            return Self::from_folder(folder, &index, tensors);
        }
        let mut ggufs: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(|e| crate::error::io(folder, e))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "gguf"))
            .collect();
        ggufs.sort();
        match &ggufs[..] {
            [only] => Self::from_gguf(Gguf::open(only)?),
            [] => Err(invalid(
                folder,
                format!(
                    "it holds neither {WEIGHTS} nor a GGUF file (other weights must be converted)"
                ),
            )),
            [first, ..] => Err(invalid(
                folder,
                format!(
                    "it holds {} GGUF files; name one, such as {}",
                    ggufs.len(),
                    first.display()
                ),
            )),
        }
    }

    /// A model from the bytes of a GGUF file; `name` is what errors call it.
    pub fn from_gguf_bytes(name: &str, bytes: Vec<u8>) -> Result<Self, LmError> {
        Self::from_gguf(Gguf::from_bytes(Path::new(name), bytes)?)
    }

    /// A model from the bytes of `config.json` and a safetensors file; `name` is what
    /// errors call it.
    pub fn from_safetensors_bytes(
        name: &str,
        config: &[u8],
        bytes: Vec<u8>,
    ) -> Result<Self, LmError> {
        let path = Path::new(name);
        let tensors = safetensors::read(path, Arc::new(FileBytes::Memory(bytes)))?;
        let config = Config::from_json(&path.with_file_name("config.json"), config, None)?;
        Self::from_tensors(
            path.parent().unwrap_or(Path::new(".")),
            path,
            config,
            tensors,
        )
    }

    fn from_folder(
        folder: &Path,
        path: &Path,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<Self, LmError> {
        let found = ModelFolder {
            name: folder.display().to_string(),
            path: folder.to_owned(),
        };
        let json = found.read("config.json", "it describes the model")?;
        let generation = found.read_optional("generation_config.json")?;
        let config = Config::from_json(&found.file("config.json"), &json, generation.as_deref())?;
        Self::from_tensors(folder, path, config, tensors)
    }

    fn from_tensors(
        folder: &Path,
        path: &Path,
        config: Config,
        mut stored: BTreeMap<String, Tensor>,
    ) -> Result<Self, LmError> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in shared::expand(path, &mut stored, || config.tensors())? {
            let parts = vec![(name.clone(), View::Whole)];
            add(path, &mut tensors, &name, &tensor, parts)?;
        }
        for (name, tensor) in stored {
            if names::is_buffer(&name) {
                continue;
            }
            let parts = match config.architecture {
                Architecture::Gpt2 => names::gpt2(&name, tensor.shape(), &config),
                _ => vec![(name.clone(), View::Whole)],
            };
            add(path, &mut tensors, &name, &tensor, parts)?;
        }
        let mut notes = Vec::new();
        if config.tie_word_embeddings {
            notes.extend(drop_tied(path, &mut tensors));
        }
        let folder = ModelFolder {
            name: folder.display().to_string(),
            path: folder.to_owned(),
        };
        Self {
            path: path.to_owned(),
            config,
            tensors,
            notes,
            kind: Kind::Folder(folder),
        }
        .checked()
    }

    fn from_gguf(file: Gguf) -> Result<Self, LmError> {
        let config = Config::from_gguf(&file)?;
        let mut tensors = BTreeMap::new();
        let of_layers = |name: &&str| name.starts_with(shared::PREFIX);
        let own = file.names().filter(of_layers);
        let mut own = own
            .filter_map(|name| Some((name.to_owned(), file.tensor(name)?.clone())))
            .collect();
        for (name, tensor) in shared::expand(file.path(), &mut own, || config.tensors())? {
            let parts = vec![(name.clone(), View::Whole)];
            add(file.path(), &mut tensors, &name, &tensor, parts)?;
        }
        let rest = file.names().filter(|name| !of_layers(name));
        for name in rest.filter(|name| *name != "rope_freqs.weight") {
            if let Some(tensor) = file.tensor(name) {
                let parts = names::gguf(name, &config);
                add(file.path(), &mut tensors, name, tensor, parts)?;
            }
        }
        Self {
            path: file.path().to_owned(),
            config,
            tensors,
            notes: Vec::new(),
            kind: Kind::Gguf(file),
        }
        .checked()
    }

    /// Refuses missing and unknown tensors, and those of another shape.
    fn checked(self) -> Result<Self, LmError> {
        let needed = self.config.tensors();
        let missing: Vec<String> = needed
            .iter()
            .filter(|(name, _)| !self.has(name))
            .map(|(name, _)| name.clone())
            .collect();
        let known: std::collections::HashSet<&str> =
            needed.iter().map(|(name, _)| &**name).collect();
        let extra: Vec<String> = self
            .names()
            .filter(|n| !known.contains(n))
            .map(str::to_owned)
            .collect();
        if !missing.is_empty() || !extra.is_empty() {
            return Err(LmError::Tensors {
                path: self.path,
                architecture: self.config.architecture.name(),
                missing,
                extra,
            });
        }
        for (name, shape) in &needed {
            self.check_shape(name, shape)?;
        }
        Ok(self)
    }

    fn check_shape(&self, name: &str, shape: &[usize]) -> Result<(), LmError> {
        let entry = self.entry(name)?;
        let found = entry.view.shape(entry.stored.shape());
        if found == shape {
            return Ok(());
        }
        let what = format!("is {found:?}; the configuration asks for {shape:?}");
        Err(wrong_tensor(&self.path, name, what))
    }

    fn entry(&self, name: &str) -> Result<&Entry, LmError> {
        self.tensors
            .get(name)
            .ok_or_else(|| wrong_tensor(&self.path, name, "is missing"))
    }

    /// The file that errors name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the model is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the user should know, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Canonical names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this canonical name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor by canonical name. Those of GPT-2 in safetensors are transposed in memory,
    /// all others stay in the file.
    pub fn tensor(&self, name: &str) -> Result<Tensor, LmError> {
        let entry = self.entry(name)?;
        Ok(entry.view.of(&entry.stored))
    }

    /// A tensor by canonical name, of which the caller expects a shape.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<Tensor, LmError> {
        self.check_shape(name, shape)?;
        self.tensor(name)
    }

    /// The GGUF file, where it is one.
    pub(crate) fn gguf(&self) -> Option<&Gguf> {
        match &self.kind {
            Kind::Folder(_) => None,
            Kind::Gguf(file) => Some(file),
        }
    }

    /// What the file calls canonical tensors that have one of its own each.
    pub(crate) fn stored_names(&self, names: &[String]) -> Result<Vec<String>, LmError> {
        let each = names.iter().map(|name| {
            let entry = self.entry(name)?;
            match entry.view {
                View::Whole => Ok(entry.name.clone()),
                _ => Err(wrong_tensor(
                    &self.path,
                    name,
                    "lies in one tensor with others, which cannot be shared",
                )),
            }
        });
        each.collect()
    }

    /// All tensors by the names of the file; what layers share is whole.
    pub(crate) fn stored_tensors(&self) -> BTreeMap<String, Tensor> {
        let entries = self.tensors.values();
        entries
            .map(|e| (e.name.clone(), e.stored.clone()))
            .collect()
    }

    /// Refuses weights that are NaN or infinite. Reads all of them once.
    pub fn check_finite(&self) -> Result<(), LmError> {
        for (name, entry) in &self.tensors {
            if let Some(odd) = entry.stored.find_not_finite() {
                let what = format!("holds {odd}; the file is damaged");
                return Err(wrong_tensor(&self.path, name, what));
            }
        }
        Ok(())
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer, LmError> {
        match &self.kind {
            Kind::Folder(folder) => Tokenizer::from_folder(folder),
            Kind::Gguf(file) => Tokenizer::from_gguf(file),
        }
    }

    /// How the model wants a conversation to be written, if it was made for them.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, LmError> {
        match &self.kind {
            Kind::Folder(folder) => ChatTemplate::from_folder(folder),
            Kind::Gguf(file) => ChatTemplate::from_gguf(file),
        }
    }
}

/// Enters a tensor of the file under its canonical names.
fn add(
    path: &Path,
    tensors: &mut BTreeMap<String, Entry>,
    name: &str,
    stored: &Tensor,
    parts: Vec<(String, View)>,
) -> Result<(), LmError> {
    for (canonical, view) in parts {
        let end = match &view {
            View::Whole => 0,
            View::Rows(range) | View::Columns(range) => range.end,
        };
        let room = match &view {
            View::Columns(_) => stored.row_len(),
            _ => stored.shape()[0],
        };
        // A vector in blocks has no parts.
        let whole = stored.shape().len() > 1 || stored.kind().block_len() == 1;
        if end > room || !(whole || view == View::Whole) {
            let what = format!("is {:?}, too small for its parts", stored.shape());
            return Err(wrong_tensor(path, name, what));
        }
        let entry = Entry {
            stored: stored.clone(),
            view,
            name: name.to_owned(),
        };
        if tensors.insert(canonical.clone(), entry).is_some() {
            return Err(wrong_tensor(path, &canonical, "is there under two names"));
        }
    }
    Ok(())
}

/// Drops the output matrix of a model that says it is the embedding; says so where it is another.
fn drop_tied(path: &Path, tensors: &mut BTreeMap<String, Entry>) -> Option<String> {
    let head = tensors.remove("lm_head.weight")?.stored;
    let embedding = &tensors.get("model.embed_tokens.weight")?.stored;
    if head.kind() == embedding.kind() && head.bytes() == embedding.bytes() {
        return None;
    }
    Some(format!(
        "{}: the configuration says that the output matrix is the embedding \
         (tie_word_embeddings), yet there is a different lm_head.weight; the embedding is used",
        path.display()
    ))
}
