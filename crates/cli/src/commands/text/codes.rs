//! Codes and vectors of texts, in files.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, bail};
use keyfold_core::{ModelFolder, atomic};
use keyfold_data::{ReadOptions, WalkOptions, read, walk};
use keyfold_text::paragraph_vector::{Embedded, ParagraphVectors};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::failure::wrong_use;
use crate::place;

/// What the metadata of a file of codes says.
const FORMAT: &str = "keyfold-codes-1";

/// A text with what it is called.
pub(in crate::commands) struct Named {
    pub(in crate::commands) name: String,
    pub(in crate::commands) text: String,
}

/// What the user named: a file or folder by its contents (of JSON Lines each line with a
/// field `text`), anything else as a text.
pub(super) fn named(arguments: &[String], options: &ReadOptions) -> anyhow::Result<Vec<Named>> {
    let mut all = Vec::new();
    for argument in arguments {
        let path = Path::new(argument);
        if !path.exists() {
            all.push(Named {
                name: argument.clone(),
                text: argument.clone(),
            });
        } else if path.extension().is_some_and(|e| e == "jsonl") {
            json_lines(path, &mut all)?;
        } else {
            for entry in walk(&[path.to_owned()], &WalkOptions::default())? {
                let entry = entry?;
                let document = read(&entry, options)?;
                let passages = document.passages.into_iter().map(|p| p.searchable().0);
                all.push(Named {
                    name: place::shown(&entry.path).display().to_string(),
                    text: passages.collect::<Vec<String>>().join("\n"),
                });
            }
        }
    }
    Ok(all)
}

/// Appends the texts of a file of JSON Lines, by their `id` or line.
pub(in crate::commands) fn json_lines(path: &Path, all: &mut Vec<Named>) -> anyhow::Result<()> {
    let content =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    for (number, line) in (1..).zip(content.lines()) {
        let row: serde_json::Value = serde_json::from_str(line)
            .with_context(|| format!("{} line {number} is not JSON", path.display()))?;
        let Some(text) = row["text"].as_str() else {
            bail!("{} line {number} has no field 'text'", path.display());
        };
        let id = match &row["id"] {
            serde_json::Value::Null => format!("{}:{number}", path.display()),
            serde_json::Value::String(id) => id.clone(),
            id => id.to_string(),
        };
        all.push(Named {
            name: id,
            text: text.to_owned(),
        });
    }
    Ok(())
}

/// Loads a model of binary paragraph vectors.
pub(super) fn model(name: &str) -> anyhow::Result<ParagraphVectors> {
    Ok(ParagraphVectors::load(&ModelFolder::find(name)?)?)
}

/// A file of codes: safetensors with `codes [texts, bytes]`, `real [texts, dim]` where the
/// model has real vectors, and in its metadata the names of the texts and the model's hash.
pub(super) struct Codes {
    pub(super) names: Vec<String>,
    /// Bytes of a code.
    pub(super) width: usize,
    pub(super) codes: Vec<u8>,
    /// Length of a real vector; 0 without.
    pub(super) dim: usize,
    pub(super) reals: Vec<f32>,
    pub(super) model: String,
}

impl Codes {
    pub(super) fn new(names: Vec<String>, all: Vec<Embedded>, model: &ParagraphVectors) -> Self {
        let dim = all
            .first()
            .and_then(|e| e.real.as_ref())
            .map_or(0, Vec::len);
        Self {
            names,
            width: model.config().bits / 8,
            codes: all.iter().flat_map(|e| e.code.iter().copied()).collect(),
            dim,
            reals: all.into_iter().filter_map(|e| e.real).flatten().collect(),
            model: model.identity().hash.clone(),
        }
    }

    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let reals: Vec<u8> = self.reals.iter().flat_map(|x| x.to_le_bytes()).collect();
        let rows = self.names.len();
        let mut tensors = vec![(
            "codes",
            TensorView::new(Dtype::U8, vec![rows, self.width], &self.codes)?,
        )];
        if self.dim > 0 {
            let view = TensorView::new(Dtype::F32, vec![rows, self.dim], &reals)?;
            tensors.push(("real", view));
        }
        let metadata = HashMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("model".to_owned(), self.model.clone()),
            ("names".to_owned(), serde_json::to_string(&self.names)?),
        ]);
        let bytes = safetensors::serialize(tensors, Some(metadata))?;
        atomic::write(path, &bytes).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads a file of [`Codes::write`] that `model` made.
    pub(super) fn read(path: &Path, model: &ParagraphVectors) -> anyhow::Result<Self> {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = Self::parse(&bytes).with_context(|| {
            format!(
                "{} is no whole file of codes; write it with 'keyfold text embed --out'",
                path.display()
            )
        })?;
        if file.model != model.identity().hash || file.width != model.config().bits / 8 {
            return Err(wrong_use(format!(
                "the codes in {} are of another model, with which they cannot be compared; name \
                 that model, or embed the texts again",
                path.display()
            )));
        }
        Ok(file)
    }

    fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let fields = metadata.metadata().as_ref();
        let field = |name: &str| {
            fields
                .and_then(|all| all.get(name))
                .map_or("", String::as_str)
        };
        if field("format") != FORMAT {
            bail!("its metadata does not say '{FORMAT}'");
        }
        let names: Vec<String> = serde_json::from_str(field("names"))?;
        let tensors = SafeTensors::deserialize(bytes)?;
        let part = |name: &str, dtype: Dtype| -> anyhow::Result<(usize, Vec<u8>)> {
            let Ok(tensor) = tensors.tensor(name) else {
                return Ok((0, Vec::new()));
            };
            match tensor.shape() {
                &[rows, dim] if rows == names.len() && tensor.dtype() == dtype => {
                    Ok((dim, tensor.data().to_vec()))
                }
                _ => bail!("the shape of '{name}' does not fit"),
            }
        };
        let (width, codes) = part("codes", Dtype::U8)?;
        let (dim, reals) = part("real", Dtype::F32)?;
        let reals = reals.as_chunks::<4>().0.iter();
        Ok(Self {
            width,
            codes,
            dim,
            reals: reals.map(|b| f32::from_le_bytes(*b)).collect(),
            model: field("model").to_owned(),
            names,
        })
    }
}

/// Codes as words of 64 bits, each padded with zeros.
pub(super) fn to_words(codes: &[u8], width: usize) -> Vec<u64> {
    let word = |eight: &[u8]| {
        let mut bytes = [0; 8];
        bytes[..eight.len()].copy_from_slice(eight);
        u64::from_le_bytes(bytes)
    };
    let codes = codes.chunks(width.max(1));
    codes.flat_map(|code| code.chunks(8).map(word)).collect()
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
