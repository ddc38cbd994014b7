//! Codes and vectors of texts, in files.

use std::path::Path;

use anyhow::{Context, bail};
use keyfold_core::{ModelFolder, atomic};
use keyfold_data::{ReadOptions, WalkOptions, read, walk};
use keyfold_text::paragraph_vector::{Embedded, ParagraphVectors};

use crate::failure::wrong_use;
use crate::place;

/// A text with what it is called.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) text: String,
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

fn json_lines(path: &Path, all: &mut Vec<Named>) -> anyhow::Result<()> {
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
        let names = serde_json::to_string(&self.names)?;
        let mut header = serde_json::json!({
            "__metadata__": {"format": "keyfold-codes-1", "model": self.model, "names": names},
            "codes": {
                "dtype": "U8",
                "shape": [self.names.len(), self.width],
                "data_offsets": [0, self.codes.len()],
            },
        });
        let reals: Vec<u8> = self.reals.iter().flat_map(|x| x.to_le_bytes()).collect();
        if self.dim > 0 {
            header["real"] = serde_json::json!({
                "dtype": "F32",
                "shape": [self.names.len(), self.dim],
                "data_offsets": [self.codes.len(), self.codes.len() + reals.len()],
            });
        }
        let header = serde_json::to_vec(&header)?;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend([header, self.codes.clone(), reals].concat());
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
        let (len, rest) = bytes.split_first_chunk::<8>().context("it is cut off")?;
        let len = usize::try_from(u64::from_le_bytes(*len))?;
        let (header, data) = rest.split_at_checked(len).context("it is cut off")?;
        let header: serde_json::Value = serde_json::from_slice(header)?;
        let meta = &header["__metadata__"];
        if meta["format"] != "keyfold-codes-1" {
            bail!("its metadata does not say 'keyfold-codes-1'");
        }
        let names: Vec<String> =
            serde_json::from_str(meta["names"].as_str().context("it has no names")?)?;
        let part = |name: &str, size: usize| -> anyhow::Result<(usize, &[u8])> {
            let tensor = &header[name];
            if tensor.is_null() {
                return Ok((0, &[]));
            }
            let of: ([usize; 2], [usize; 2]) = (
                serde_json::from_value(tensor["shape"].clone())?,
                serde_json::from_value(tensor["data_offsets"].clone())?,
            );
            let ([rows, dim], [from, to]) = of;
            let whole = rows.checked_mul(dim).and_then(|n| n.checked_mul(size));
            let part = data.get(from..to).context("it is cut off")?;
            if rows != names.len() || whole != Some(part.len()) {
                bail!("the shape of '{name}' does not fit");
            }
            Ok((dim, part))
        };
        let (width, codes) = part("codes", 1)?;
        let (dim, reals) = part("real", 4)?;
        let reals = reals.as_chunks::<4>().0.iter();
        Ok(Self {
            width,
            codes: codes.to_vec(),
            dim,
            reals: reals.map(|b| f32::from_le_bytes(*b)).collect(),
            model: meta["model"].as_str().unwrap_or("").to_owned(),
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
