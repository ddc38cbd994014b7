//! One file written by `torch.save` (`pytorch_model.bin`): since PyTorch 1.6 a
//! zip archive with a pickle (`data.pkl`) and one entry per storage, before that
//! four pickles and the storages one after the other.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use zip::{CompressionMethod, ZipArchive};

use super::numbers::{Kind, to_f32};
use super::pickle::{Pickle, Scalar, TensorPlan};
use super::{WeightsError, invalid, io};

/// What an old file holds at its very beginning, as a pickled number of 10 bytes.
const OLD_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// A file of `torch.save` that holds a dictionary with tensors; nothing in it is run.
pub struct TorchFile {
    path: PathBuf,
    tensors: HashMap<String, TensorPlan>,
    scalars: Vec<(String, Scalar)>,
    storages: Storages,
}

/// Where the numbers are.
enum Storages {
    Zip {
        archive: Mutex<ZipArchive<BufReader<File>>>,
        /// What stands before the names of the entries.
        folder: String,
    },
    /// First byte of each storage.
    Plain {
        file: Mutex<File>,
        starts: HashMap<String, u64>,
    },
}

impl TorchFile {
    /// Opens a file and reads what it says of its tensors.
    ///
    /// # Errors
    /// When it cannot be read, is none of `torch.save`, or damaged.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let mut file = File::open(path).map_err(|e| io(path, e))?;
        let mut first = Vec::new();
        Read::by_ref(&mut file)
            .take(OLD_MAGIC.len() as u64)
            .read_to_end(&mut first)
            .and_then(|_| file.seek(SeekFrom::Start(0)))
            .map_err(|e| io(path, e))?;
        if first == OLD_MAGIC {
            Self::open_old(path, file)
        } else {
            Self::open_zip(path, file)
        }
    }

    fn open_zip(path: &Path, file: File) -> Result<Self, WeightsError> {
        let damaged = |e: zip::result::ZipError| {
            invalid(
                path,
                format!("it is not a file of torch.save, or damaged: {e}"),
            )
        };
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
        let pickle = archive
            .file_names()
            .flatten()
            .find(|name| name == "data.pkl" || name.ends_with("/data.pkl"))
            .map(std::borrow::Cow::into_owned)
            .ok_or_else(|| invalid(path, "it holds no data.pkl; it is not of torch.save"))?;
        let folder = pickle.trim_end_matches("data.pkl").to_owned();
        if let Ok(mut order) = archive.by_name(&format!("{folder}byteorder")) {
            let mut text = String::new();
            Read::by_ref(&mut order)
                .take(16)
                .read_to_string(&mut text)
                .map_err(|e| io(path, e))?;
            if text != "little" {
                return Err(invalid(
                    path,
                    "it was written on a big-endian machine; save it again as safetensors",
                ));
            }
        }
        let (tensors, scalars) = {
            let entry = archive.by_name(&pickle).map_err(damaged)?;
            Pickle::read(&mut BufReader::new(entry))
                .and_then(|p| Ok((p.tensors()?, p.scalars())))
                .map_err(|e| invalid(path, format!("its pickle is damaged: {e}")))?
        };
        Ok(Self {
            path: path.to_owned(),
            tensors,
            scalars,
            storages: Storages::Zip {
                archive: Mutex::new(archive),
                folder,
            },
        })
    }

    fn open_old(path: &Path, file: File) -> Result<Self, WeightsError> {
        let len = file.metadata().map_err(|e| io(path, e))?.len();
        let damaged = |e: String| invalid(path, format!("its pickle is damaged: {e}"));
        let mut input = BufReader::new(file);
        // The magic number, the version of the format, facts on the writer.
        for _ in 0..3 {
            Pickle::read(&mut input).map_err(damaged)?;
        }
        let (tensors, scalars) = Pickle::read(&mut input)
            .and_then(|p| Ok((p.tensors()?, p.scalars())))
            .map_err(damaged)?;
        let keys = Pickle::read(&mut input)
            .map_err(damaged)?
            .texts()
            .ok_or_else(|| damaged("it has no list of storages".to_owned()))?;

        let sizes: HashMap<&str, usize> = tensors
            .values()
            .filter_map(|t| Some((t.storage.as_str(), element_size(&t.class)?)))
            .collect();
        let mut starts = HashMap::new();
        for key in keys {
            let mut count = [0; 8];
            input.read_exact(&mut count).map_err(|e| io(path, e))?;
            let start = input.stream_position().map_err(|e| io(path, e))?;
            let size = *sizes.get(key.as_str()).ok_or_else(|| {
                damaged(format!("storage '{key}' is of a kind that is not known"))
            })?;
            let end = u64::from_le_bytes(count)
                .checked_mul(size as u64)
                .and_then(|bytes| bytes.checked_add(start))
                .filter(|end| *end <= len)
                .ok_or_else(|| damaged(format!("storage '{key}' is cut off")))?;
            input.seek(SeekFrom::Start(end)).map_err(|e| io(path, e))?;
            starts.insert(key, start);
        }
        Ok(Self {
            path: path.to_owned(),
            tensors,
            scalars,
            storages: Storages::Plain {
                file: Mutex::new(input.into_inner()),
                starts,
            },
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors.
    pub fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// Whole numbers and texts that stand beside the tensors, by name.
    pub fn scalars(&self) -> Vec<(String, Scalar)> {
        self.scalars.clone()
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.shape)
    }

    /// The numbers of a tensor as `f32`, row-major.
    ///
    /// # Errors
    /// When it is not there, damaged, or of no known type.
    pub fn read(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let fail = |what: String| invalid(&self.path, format!("tensor '{name}' {what}"));
        let plan = self
            .tensors
            .get(name)
            .ok_or_else(|| fail("is not there".to_owned()))?;
        let kind = match plan.class.as_str() {
            "FloatStorage" => Kind::F32,
            "HalfStorage" => Kind::F16,
            "BFloat16Storage" => Kind::Bf16,
            "DoubleStorage" => Kind::F64,
            "LongStorage" => Kind::I64,
            other => {
                return Err(fail(format!(
                    "is stored as {other}; weights must be floats"
                )));
            }
        };
        let count = reach(plan)
            .ok_or_else(|| fail("reaches out of the storage that holds it".to_owned()))?;
        let first = plan.offset * kind.size();
        let bytes = self
            .storage(plan, first + count * kind.size())
            .map_err(fail)?;
        let numbers = to_f32(kind, &bytes[first..]);
        Ok(row_major(plan, numbers))
    }

    /// The first `len` bytes of a storage.
    fn storage(&self, plan: &TensorPlan, len: usize) -> Result<Vec<u8>, String> {
        let key = &plan.storage;
        let cut_off = || format!("lies in storage '{key}', which is missing or cut off");
        let mut bytes = Vec::new();
        match &self.storages {
            Storages::Zip { archive, folder } => {
                let mut archive = archive.lock().unwrap_or_else(|e| e.into_inner());
                let entry = archive
                    .by_name(&format!("{folder}data/{key}"))
                    .map_err(|_| cut_off())?;
                if entry.compression() != CompressionMethod::Stored {
                    return Err("is compressed, which torch.save never does".to_owned());
                }
                // One byte more, so that the end of the entry is met and its
                // checksum compared.
                entry
                    .take(len as u64 + 1)
                    .read_to_end(&mut bytes)
                    .map_err(|e| e.to_string())?;
                bytes.truncate(len);
            }
            Storages::Plain { file, starts } => {
                let start = *starts.get(key).ok_or_else(cut_off)?;
                let mut file = file.lock().unwrap_or_else(|e| e.into_inner());
                file.seek(SeekFrom::Start(start))
                    .and_then(|_| (&mut *file).take(len as u64).read_to_end(&mut bytes))
                    .map_err(|e| e.to_string())?;
            }
        }
        if bytes.len() < len {
            return Err(cut_off());
        }
        Ok(bytes)
    }
}

/// Bytes of one element of a storage, by PyTorch's class.
fn element_size(class: &str) -> Option<usize> {
    Some(match class {
        "ByteStorage" | "CharStorage" | "BoolStorage" => 1,
        "ShortStorage" | "HalfStorage" | "BFloat16Storage" => 2,
        "IntStorage" | "FloatStorage" => 4,
        "LongStorage" | "DoubleStorage" => 8,
        _ => return None,
    })
}

/// Elements from the tensor's first to its last in the storage; `None` when they
/// are not all inside, or are more than the storage has (a repeated element).
fn reach(plan: &TensorPlan) -> Option<usize> {
    if plan.shape.len() != plan.strides.len() {
        return None;
    }
    if plan.shape.contains(&0) {
        return Some(0);
    }
    let mut last = 0usize;
    let mut count = 1usize;
    for (&size, &stride) in plan.shape.iter().zip(&plan.strides) {
        last = last.checked_add((size - 1).checked_mul(stride)?)?;
        count = count.checked_mul(size)?;
    }
    let reach = last.checked_add(1)?;
    let inside = plan.offset.checked_add(reach)? <= plan.storage_len;
    // The bytes of a storage that fits in memory can be counted.
    let countable = plan.storage_len < usize::MAX / 16;
    (inside && countable && count <= plan.storage_len).then_some(reach)
}

/// Puts the elements of a tensor whose strides are not those of a row-major one
/// (a transposed matrix) in order.
fn row_major(plan: &TensorPlan, numbers: Vec<f32>) -> Vec<f32> {
    let count: usize = plan.shape.iter().product();
    let mut expected = 1;
    let in_order = plan.shape.iter().zip(&plan.strides).rev().all(|(&n, &s)| {
        let fits = n == 1 || s == expected;
        expected *= n;
        fits
    });
    if in_order {
        return numbers;
    }
    (0..count)
        .map(|i| {
            let mut rest = i;
            let places = plan.shape.iter().zip(&plan.strides).rev();
            let at: usize = places
                .map(|(&size, &stride)| {
                    let place = rest % size;
                    rest /= size;
                    place * stride
                })
                .sum();
            numbers[at]
        })
        .collect()
}
