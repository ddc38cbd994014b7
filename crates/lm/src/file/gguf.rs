//! GGUF, the file format of llama.cpp (Gerganov and others, 2023): metadata, then the
//! description of every tensor, then the tensors.
//!
//! ```text
//! "GGUF"  version u32 (2 or 3)  tensors u64  metadata entries u64
//! entry:  key string, type u32, value     string: length u64, bytes
//!         array: type u32, count u64, values
//! tensor: name string, dimensions u32, sizes u64 each (fastest first), type u32, offset u64
//! data:   from the next multiple of general.alignment (32) on; offsets count from there
//! ```
//!
//! All little-endian. Whatever the bytes are, reading ends, and takes memory in
//! proportion to the file at most: counts and lengths are compared with what is left of
//! it before anything is allocated.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyfold_kernels::blocks::BlockType;

use super::tensor::{FileBytes, Tensor, bytes_of};
use crate::config::Field;
use crate::error::{LmError, field, invalid, tensor as wrong_tensor};

/// Dimensions of a tensor at most, as in ggml.
const MOST_DIMENSIONS: u32 = 4;
/// A list that is read as a field of the configuration has an entry per layer at most.
const LONGEST_FIELD: usize = 4_096;
const DEFAULT_ALIGNMENT: u64 = 32;

/// A GGUF file: its metadata and where its tensors are.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    pub(super) file: Arc<FileBytes>,
    metadata: HashMap<String, Value>,
    /// Where the metadata stand in the file, and how many entries they are.
    pub(super) entries: (Range<usize>, usize),
    pub(super) alignment: usize,
    pub(super) tensors: HashMap<String, Tensor>,
}

/// A value of the metadata.
#[derive(Debug, Clone)]
enum Value {
    One(Field),
    /// A list that stays in the file: type and number of its items, and where they are.
    List(u32, usize, Range<usize>),
}

/// Types of metadata values.
mod kind {
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const F64: u32 = 12;
}

/// The block type of a number in the file, or the name of one that is not read.
fn block_type(number: u32) -> Result<BlockType, String> {
    Ok(match number {
        0 => BlockType::F32,
        1 => BlockType::F16,
        2 => BlockType::Q4_0,
        3 => BlockType::Q4_1,
        6 => BlockType::Q5_0,
        7 => BlockType::Q5_1,
        8 => BlockType::Q8_0,
        12 => BlockType::Q4K,
        13 => BlockType::Q5K,
        14 => BlockType::Q6K,
        30 => BlockType::Bf16,
        other => {
            let name = match other {
                10 => "Q2_K",
                11 => "Q3_K",
                16 => "IQ2_XXS",
                17 => "IQ2_XS",
                18 => "IQ3_XXS",
                19 => "IQ1_S",
                20 => "IQ4_NL",
                21 => "IQ3_S",
                22 => "IQ2_S",
                23 => "IQ4_XS",
                24..=27 => "an integer type",
                28 => "F64",
                29 => "IQ1_M",
                34 => "TQ1_0",
                35 => "TQ2_0",
                39 => "MXFP4",
                _ => return Err(format!("of the unknown type {other}")),
            };
            return Err(format!("of type {name}"));
        }
    })
}

impl Gguf {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Self, LmError> {
        Self::read(path, FileBytes::open(path)?)
    }

    /// Reads what would be a file; `path` is what errors call it.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, LmError> {
        Self::read(path, Arc::new(FileBytes::Memory(bytes)))
    }

    fn read(path: &Path, file: Arc<FileBytes>) -> Result<Self, LmError> {
        let mut reader = Reader {
            path,
            bytes: &file,
            at: 0,
        };
        let (tensors, count) = reader.counts()?;
        let from = reader.at;
        let metadata = reader.metadata(count)?;
        let entries = (from..reader.at, count);
        let tensors = reader.tensors(tensors)?;
        let alignment = reader.alignment(&metadata)?;
        let start = (reader.at as u64).next_multiple_of(alignment);
        let tensors = place(path, &file, tensors, start)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            metadata,
            entries,
            alignment: alignment as usize,
            tensors,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor by its name in the file.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensor(name).map(Tensor::shape)
    }

    /// A value of the metadata, for configurations.
    pub(crate) fn field(&self, key: &str) -> Result<Option<Field>, LmError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::One(one)) => Ok(Some(one.clone())),
            Some(Value::List(_, count, _)) if *count > LONGEST_FIELD => Err(field(
                &self.path,
                key,
                format!("has {count} entries, too many"),
            )),
            Some(Value::List(kind, count, range)) => {
                let mut reader = self.reader(range);
                let items = (0..*count).map(|_| reader.value(key, *kind));
                items.collect::<Result<_, _>>().map(Field::List).map(Some)
            }
        }
    }

    /// A list of texts; none where it is absent.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, LmError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::List(kind::STRING, count, range)) => {
                let mut reader = self.reader(range);
                let texts = (0..*count).map(|_| reader.text(key));
                texts.collect::<Result<_, _>>().map(Some)
            }
            Some(_) => Err(field(&self.path, key, "must be a list of texts")),
        }
    }

    /// A list of numbers; none where it is absent.
    pub(crate) fn numbers(&self, key: &str) -> Result<Option<Vec<f32>>, LmError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::List(kind, count, range)) if *kind != kind::STRING => {
                let mut reader = self.reader(range);
                let number = |_| match reader.value(key, *kind)? {
                    Field::Whole(n) => Ok(n as f32),
                    Field::Number(x) => Ok(x as f32),
                    _ => Err(field(&self.path, key, "must be a list of numbers")),
                };
                (0..*count).map(number).collect::<Result<_, _>>().map(Some)
            }
            Some(_) => Err(field(&self.path, key, "must be a list of numbers")),
        }
    }

    fn reader(&self, range: &Range<usize>) -> Reader<'_> {
        Reader {
            path: &self.path,
            bytes: &self.file[..range.end],
            at: range.start,
        }
    }
}

/// A tensor as the file describes it; `offset` counts from the start of the data.
struct Described {
    name: String,
    kind: BlockType,
    shape: Vec<usize>,
    len: usize,
    offset: u64,
}

/// Finds the bytes of every tensor and refuses those that overlap or lie outside.
fn place(
    path: &Path,
    file: &Arc<FileBytes>,
    mut described: Vec<Described>,
    start: u64,
) -> Result<HashMap<String, Tensor>, LmError> {
    described.sort_by_key(|t| t.offset);
    let mut tensors = HashMap::with_capacity(described.len());
    let mut free = start;
    for t in described {
        let wrong = |what: String| wrong_tensor(path, &t.name, what);
        let from = start.checked_add(t.offset);
        let span = from.and_then(|from| Some((from, from.checked_add(t.len as u64)?)));
        let (from, to) = span.ok_or_else(|| wrong("lies outside of every file".to_owned()))?;
        if to > file.len() as u64 {
            let what = format!(
                "ends at byte {to} of a file of {}; the file is cut off, fetch it again",
                file.len()
            );
            return Err(wrong(what));
        }
        if from < free {
            return Err(wrong("begins inside of another tensor".to_owned()));
        }
        free = to;
        let range = from as usize..to as usize;
        let tensor = Tensor::new(t.kind, t.shape, Arc::clone(file), range);
        if tensors.insert(t.name.clone(), tensor).is_some() {
            return Err(wrong_tensor(path, &t.name, "is there twice"));
        }
    }
    Ok(tensors)
}

/// A place in the file.
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], LmError> {
        if len > self.left() {
            let what = format!(
                "it ends after {} bytes, in the middle of its header; it is cut off or damaged, \
                 fetch it again",
                self.bytes.len()
            );
            return Err(invalid(self.path, what));
        }
        let bytes = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LmError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, LmError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, LmError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count of items that take `least` bytes each at least, so that no more can be left.
    fn count(&mut self, what: &str, least: usize) -> Result<usize, LmError> {
        let count = self.u64()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.left() / least => Ok(count),
            _ => {
                let what =
                    format!("it claims {count} {what}, more than it has room for; it is damaged");
                Err(invalid(self.path, what))
            }
        }
    }

    /// A text; `of` says whose.
    fn text(&mut self, of: &str) -> Result<&'a str, LmError> {
        let len = self.count(&format!("bytes in a text of '{of}'"), 1)?;
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes)
            .map_err(|_| field(self.path, of, "holds a text that is not UTF-8"))
    }

    /// Magic number and version; gives the number of tensors and metadata entries.
    fn counts(&mut self) -> Result<(usize, usize), LmError> {
        if self.bytes.get(..4) != Some(b"GGUF") {
            return Err(invalid(
                self.path,
                "it does not begin as a GGUF file does (a Git LFS pointer must be fetched first)",
            ));
        }
        self.at = 4;
        match self.u32()? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 2 | 3) => {
                return Err(invalid(self.path, "it is for big-endian machines"));
            }
            version => {
                let what = format!("it has version {version}; versions 2 and 3 are read");
                return Err(invalid(self.path, what));
            }
        }
        // Name, dimensions, type and offset; key, type and a byte.
        let tensors = self.count("tensors", 8 + 4 + 4 + 8)?;
        let entries = self.count("metadata entries", 8 + 4 + 1)?;
        Ok((tensors, entries))
    }

    fn metadata(&mut self, entries: usize) -> Result<HashMap<String, Value>, LmError> {
        let mut metadata = HashMap::new();
        for _ in 0..entries {
            let key = self.text("a metadata key")?.to_owned();
            let kind = self.u32()?;
            let value = match kind {
                kind::ARRAY => self.list(&key)?,
                _ => Value::One(self.value(&key, kind)?),
            };
            if metadata.insert(key.clone(), value).is_some() {
                return Err(field(self.path, &key, "is there twice"));
            }
        }
        Ok(metadata)
    }

    /// Bytes that a value of a type takes; none for texts.
    fn size_of(&self, key: &str, kind: u32) -> Result<Option<usize>, LmError> {
        Ok(Some(match kind {
            0 | 1 | kind::BOOL => 1,
            2 | 3 => 2,
            4 | 5 | kind::F32 => 4,
            10 | 11 | kind::F64 => 8,
            kind::STRING => return Ok(None),
            kind::ARRAY => {
                return Err(field(
                    self.path,
                    key,
                    "is a list of lists, which is not read",
                ));
            }
            other => {
                return Err(field(
                    self.path,
                    key,
                    format!("is of the unknown type {other}"),
                ));
            }
        }))
    }

    /// Skips a list, having seen that all of it is there.
    fn list(&mut self, key: &str) -> Result<Value, LmError> {
        let kind = self.u32()?;
        let size = self.size_of(key, kind)?;
        let count = self.count(&format!("entries of '{key}'"), size.unwrap_or(8))?;
        let start = self.at;
        match size {
            Some(size) => {
                self.take(size * count)?;
            }
            None => {
                for _ in 0..count {
                    let len = self.count(&format!("bytes in a text of '{key}'"), 1)?;
                    self.take(len)?;
                }
            }
        }
        Ok(Value::List(kind, count, start..self.at))
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Field, LmError> {
        Ok(match kind {
            0 => Field::Whole(u8::from_le_bytes(self.array()?).into()),
            1 => Field::Whole(i8::from_le_bytes(self.array()?).into()),
            2 => Field::Whole(u16::from_le_bytes(self.array()?).into()),
            3 => Field::Whole(i16::from_le_bytes(self.array()?).into()),
            4 => Field::Whole(self.u32()?.into()),
            5 => Field::Whole(i32::from_le_bytes(self.array()?).into()),
            kind::F32 => Field::Number(f32::from_le_bytes(self.array()?).into()),
            kind::BOOL => Field::Flag(self.array::<1>()? != [0]),
            kind::STRING => Field::Text(self.text(key)?.to_owned()),
            10 => Field::Whole(self.u64()?.into()),
            11 => Field::Whole(i64::from_le_bytes(self.array()?).into()),
            kind::F64 => Field::Number(f64::from_le_bytes(self.array()?)),
            _ => {
                self.size_of(key, kind)?;
                Field::Other
            }
        })
    }

    fn tensors(&mut self, count: usize) -> Result<Vec<Described>, LmError> {
        (0..count).map(|_| self.tensor()).collect()
    }

    fn tensor(&mut self) -> Result<Described, LmError> {
        let name = self.text("the name of a tensor")?.to_owned();
        let dimensions = self.u32()?;
        if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
            let what = format!("has {dimensions} dimensions; 1 to {MOST_DIMENSIONS} are possible");
            return Err(wrong_tensor(self.path, &name, what));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            let size = self.u64()?;
            match usize::try_from(size) {
                Ok(size) if size > 0 => shape.push(size),
                _ => {
                    return Err(wrong_tensor(
                        self.path,
                        &name,
                        format!("has the size {size}"),
                    ));
                }
            }
        }
        shape.reverse();
        let kind = block_type(self.u32()?).map_err(|what| {
            let what = format!(
                "is {what}; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K are read"
            );
            wrong_tensor(self.path, &name, what)
        })?;
        let offset = self.u64()?;
        let Some(len) = bytes_of(kind, &shape) else {
            let what = format!(
                "has the shape {shape:?}, which is no whole number of blocks of {}",
                kind.block_len()
            );
            return Err(wrong_tensor(self.path, &name, what));
        };
        Ok(Described {
            name,
            kind,
            shape,
            len,
            offset,
        })
    }

    /// Tensors begin at multiples of it.
    fn alignment(&self, metadata: &HashMap<String, Value>) -> Result<u64, LmError> {
        const KEY: &str = "general.alignment";
        let alignment = match metadata.get(KEY) {
            None => DEFAULT_ALIGNMENT,
            Some(Value::One(Field::Whole(n))) if (1..1 << 20).contains(n) => *n as u64,
            Some(_) => return Err(field(self.path, KEY, "must be a number of bytes")),
        };
        if !alignment.is_power_of_two() {
            return Err(field(
                self.path,
                KEY,
                format!("is {alignment}; it must be a power of two"),
            ));
        }
        Ok(alignment)
    }
}
