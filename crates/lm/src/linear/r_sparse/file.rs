//! The file that holds a model's linear maps for R-Sparse.
//!
//! ```text
//! magic "KFRSPARS" | version u32 | bytes of the header u32 | header, JSON
//! the tensors of every map in the order of the header, each at the next multiple of 64:
//!   weights by channel [in, out] | scales [in] f32, where ρ < 1
//!   | down [rank, in], up [rank, out], where the rank is not 0 | bias [out] f32
//! CRC-32 of everything before
//! ```
//!
//! All little-endian. The file is bound to the weights it was made from. It is mapped into
//! memory, as model files are.

use super::{Parts, RSparseLinear, Split};
use crate::error::invalid;
use crate::file::FileBytes;
use crate::model::LinearName;
use crate::{Decoder, LmError, Tensor};
use keyfold_kernels::blocks::BlockType;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"KFRSPARS";
const VERSION: u32 = 2;
const ALIGNMENT: usize = 64;
const START: usize = 16;

/// What the file's name ends with.
pub const EXTENSION: &str = "r-sparse";

/// Where the file of a model lies unless the user says otherwise.
pub fn beside(model: &Path) -> PathBuf {
    if model.is_dir() {
        model.join("model").with_extension(EXTENSION)
    } else {
        model.with_extension(EXTENSION)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    /// [`Decoder::fingerprint`], in hexadecimal.
    model: String,
    /// Tokens of the calibration text.
    tokens: usize,
    linears: Vec<Entry>,
}

/// A map in the header.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    layer: usize,
    /// [`LinearName::path`].
    name: String,
    rho: f64,
    sparsity: f64,
    threshold: Option<f32>,
    cap: Option<usize>,
    inputs: usize,
    outputs: usize,
    rank: usize,
    /// Of the weights, of `down` and of `up`.
    kinds: [String; 3],
    bias: bool,
}

impl Entry {
    fn of(layer: usize, name: LinearName, split: &Split, parts: &Parts) -> Self {
        Self {
            layer,
            name: name.path().to_owned(),
            rho: split.rho,
            sparsity: split.sparsity,
            threshold: parts.threshold,
            cap: parts.cap,
            inputs: parts.weight.rows(),
            outputs: parts.weight.row_len(),
            rank: parts.down.as_ref().map_or(0, Tensor::rows),
            kinds: [Some(&parts.weight), parts.down.as_ref(), parts.up.as_ref()].map(|tensor| {
                tensor
                    .map_or(BlockType::F16, Tensor::kind)
                    .name()
                    .to_owned()
            }),
            bias: parts.bias.is_some(),
        }
    }

    fn linear(&self) -> Option<LinearName> {
        LinearName::ALL.into_iter().find(|n| n.path() == self.name)
    }

    fn split(&self) -> Split {
        Split {
            rho: self.rho,
            sparsity: self.sparsity,
        }
    }

    /// Kind and shape of its tensors, in order: weights, scales, down, up, bias.
    fn tensors(&self) -> Option<[(BlockType, [usize; 2]); 5]> {
        let kind = |name: &String| BlockType::ALL.into_iter().find(|k| k.name() == name);
        let [weight, down, up] = self.kinds.each_ref().map(kind);
        let scales = usize::from(self.split().scaled());
        Some([
            (weight?, [self.inputs, self.outputs]),
            (BlockType::F32, [scales, self.inputs]),
            (down?, [self.rank, self.inputs]),
            (up?, [self.rank, self.outputs]),
            (BlockType::F32, [usize::from(self.bias), self.outputs]),
        ])
    }
}

/// A map to be saved.
pub struct Folded {
    /// Its layer.
    pub layer: usize,
    /// Which one.
    pub name: LinearName,
    /// How it is split.
    pub split: Split,
    /// What it is made of.
    pub parts: Parts,
}

/// Writes the maps of the model with that [`fingerprint`](Decoder::fingerprint), calibrated
/// on so many tokens.
///
/// # Errors
/// When the file cannot be written.
pub fn save(path: &Path, model: u64, tokens: usize, maps: &[Folded]) -> Result<(), LmError> {
    let linears = maps
        .iter()
        .map(|m| Entry::of(m.layer, m.name, &m.split, &m.parts))
        .collect();
    let header = Header {
        model: format!("{model:016x}"),
        tokens,
        linears,
    };
    let written = keyfold_core::atomic::write_with(path, |out| {
        let header = serde_json::to_vec(&header)?;
        let mut out = Summed::new(out);
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&(header.len() as u32).to_le_bytes())?;
        out.write_all(&header)?;
        for map in maps {
            let parts = &map.parts;
            let floats = |numbers: &[f32]| -> Vec<u8> {
                numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
            };
            out.aligned(parts.weight.bytes())?;
            out.aligned(&floats(&parts.scales))?;
            for factor in [&parts.down, &parts.up] {
                out.aligned(factor.as_ref().map_or(&[], Tensor::bytes))?;
            }
            out.aligned(&floats(parts.bias.as_deref().unwrap_or_default()))?;
        }
        let crc = out.crc.finalize();
        out.to.write_all(&crc.to_le_bytes())
    });
    written.map_err(|source| LmError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Counts and sums up what is written.
struct Summed<W> {
    to: W,
    len: usize,
    crc: crc32fast::Hasher,
}

impl<W: Write> Summed<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            len: 0,
            crc: crc32fast::Hasher::new(),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.len += bytes.len();
        self.crc.update(bytes);
        self.to.write_all(bytes)
    }

    /// Writes a tensor at the next multiple of [`ALIGNMENT`]; one without bytes takes no room.
    fn aligned(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let gap = self.len.next_multiple_of(ALIGNMENT) - self.len;
        self.write_all(&[0; ALIGNMENT][..gap])?;
        self.write_all(bytes)
    }
}

/// The linear maps of a model, opened.
pub struct RSparseFile {
    path: PathBuf,
    model: u64,
    tokens: usize,
    maps: Vec<Folded>,
}

impl RSparseFile {
    /// Opens a file and checks all of it.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, of another version, or does not hold what its header says.
    pub fn open(path: &Path) -> Result<Self, LmError> {
        let bytes = FileBytes::open(path)?;
        let damaged = || invalid(path, "it is damaged; make it again: keyfold model sparsify");
        if bytes.len() < START + 4 || &bytes[..8] != MAGIC {
            return Err(invalid(path, "it holds no weights for r-sparse"));
        }
        let word = |at: usize| {
            let word = bytes[at..].first_chunk::<4>().copied();
            u32::from_le_bytes(word.unwrap_or_default())
        };
        if word(8) != VERSION {
            return Err(invalid(
                path,
                "it is of another version of keyfold; make it again: keyfold model sparsify",
            ));
        }
        let end = bytes.len() - 4;
        if crc32fast::hash(&bytes[..end]) != word(end) {
            return Err(damaged());
        }
        let from = START + word(12) as usize;
        let header = bytes[..end].get(START..from).ok_or_else(damaged)?;
        let header: Header = serde_json::from_slice(header)
            .map_err(|e| invalid(path, format!("its header is not understood: {e}")))?;
        let mut reader = Reader {
            file: &bytes,
            at: from,
            end,
        };
        let maps = header.linears.iter().map(|entry| {
            let map = reader.map(entry)?;
            entry.split().validate().ok()?;
            Some(map)
        });
        Ok(Self {
            path: path.to_owned(),
            model: u64::from_str_radix(&header.model, 16).map_err(|_| damaged())?,
            tokens: header.tokens,
            maps: maps.collect::<Option<_>>().ok_or_else(damaged)?,
        })
    }

    /// Its maps.
    pub fn maps(&self) -> &[Folded] {
        &self.maps
    }

    /// Tokens of the text that it was calibrated on.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Puts the maps in the place of the decoder's own.
    ///
    /// # Errors
    /// When the file was made of another model, or has parts that do not fit.
    pub fn put_into(&self, decoder: &mut Decoder) -> Result<(), LmError> {
        if decoder.fingerprint() != self.model {
            return Err(invalid(
                &self.path,
                "it was made of another model; make one of this: keyfold model sparsify",
            ));
        }
        let unfit = |e: LmError| invalid(&self.path, e.to_string());
        for map in &self.maps {
            if map.split.rho > 0.0 && map.parts.threshold.is_none() {
                let what = format!(
                    "{} of layer {} has no threshold",
                    map.name.path(),
                    map.layer
                );
                return Err(invalid(&self.path, what));
            }
            let linear = RSparseLinear::new(map.parts.clone()).map_err(unfit)?;
            decoder
                .replace(map.layer, map.name, Box::new(linear))
                .map_err(unfit)?;
        }
        Ok(())
    }
}

struct Reader<'a> {
    file: &'a Arc<FileBytes>,
    at: usize,
    end: usize,
}

impl Reader<'_> {
    /// The next tensor; none where it has no rows.
    fn tensor(&mut self, kind: BlockType, shape: [usize; 2]) -> Option<Option<Tensor>> {
        let len = kind.row_bytes(shape[1])?.checked_mul(shape[0])?;
        if len == 0 {
            return Some(None);
        }
        let from = self.at.next_multiple_of(ALIGNMENT);
        let to = from.checked_add(len).filter(|&to| to <= self.end)?;
        self.at = to;
        let file = Arc::clone(self.file);
        Some(Some(Tensor::new(kind, shape.to_vec(), file, from..to)))
    }

    fn map(&mut self, entry: &Entry) -> Option<Folded> {
        let mut read = Vec::with_capacity(5);
        for (kind, shape) in entry.tensors()? {
            read.push(self.tensor(kind, shape)?);
        }
        let mut read = read.into_iter();
        let mut next = || read.next().flatten();
        let (weight, scales, down, up, bias) = (next()?, next(), next(), next(), next());
        Some(Folded {
            layer: entry.layer,
            name: entry.linear()?,
            split: entry.split(),
            parts: Parts {
                weight,
                scales: scales.map_or_else(Vec::new, |s| s.to_f32()),
                threshold: entry.threshold,
                down,
                up,
                bias: bias.map(|b| b.to_f32()),
                cap: entry.cap,
            },
        })
    }
}
