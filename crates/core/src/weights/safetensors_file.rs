//! One safetensors file: 8 bytes with the length of the header, a JSON header
//! with name, type, shape and place of every tensor, then the numbers.
//!
//! Tensors are read one at a time, so that a large file is never in memory twice.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use safetensors::tensor::{Dtype, Metadata};

use super::numbers;
use super::{WeightsError, invalid, io};

/// The longest header that is read; real ones are below 1 MB.
const LONGEST_HEADER: u64 = 100_000_000;

pub(super) struct SafetensorsFile {
    path: PathBuf,
    file: Mutex<File>,
    header: Metadata,
    /// Where the numbers begin.
    start: u64,
}

impl SafetensorsFile {
    pub(super) fn open(path: &Path) -> Result<Self, WeightsError> {
        let mut file = File::open(path).map_err(|e| io(path, e))?;
        let len = file.metadata().map_err(|e| io(path, e))?.len();
        let mut first = [0u8; 8];
        if len < 8 {
            return Err(invalid(
                path,
                format!("{len} bytes are too few for safetensors"),
            ));
        }
        file.read_exact(&mut first).map_err(|e| io(path, e))?;
        let header_len = u64::from_le_bytes(first);
        if header_len > LONGEST_HEADER || header_len > len - 8 {
            return Err(invalid(
                path,
                "its header does not fit in the file; it is cut off or not safetensors \
                 (a Git LFS pointer must be fetched first)",
            ));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(|e| io(path, e))?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|e| invalid(path, format!("its header is damaged: {e}")))?;
        let start = 8 + header_len;
        let needed = start.saturating_add(header.data_len() as u64);
        if needed > len {
            return Err(invalid(
                path,
                format!("it is cut off: {len} bytes of {needed}; fetch it again"),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(file),
            header,
            start,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.header.info(name)?.shape)
    }

    /// The numbers of a tensor as `f32`.
    pub(super) fn read(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let info = self
            .header
            .info(name)
            .ok_or_else(|| invalid(&self.path, format!("it has no tensor '{name}'")))?;
        let kind = match info.dtype {
            Dtype::F64 => numbers::Kind::F64,
            Dtype::F32 => numbers::Kind::F32,
            Dtype::F16 => numbers::Kind::F16,
            Dtype::BF16 => numbers::Kind::Bf16,
            other => {
                return Err(invalid(
                    &self.path,
                    format!(
                        "tensor '{name}' is of type {other:?}; weights must be F64, F32, F16 or BF16"
                    ),
                ));
            }
        };
        let (from, to) = info.data_offsets;
        // A poisoned lock only means that another read failed; the file is whole.
        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        file.seek(SeekFrom::Start(self.start + from as u64))
            .and_then(|_| numbers::read(kind, &mut *file, (to - from) / kind.size()))
            .map_err(|e| io(&self.path, e))
    }
}
