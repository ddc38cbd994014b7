//! One tensor of a `.safetensors` file as rows.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use safetensors::tensor::{Dtype, Metadata};

use super::binary::{self, Layout};
use super::npy::choose;
use super::numbers::Kind;
use super::{RowsError, Source};

/// The longest header that is read; real ones are below 1 MB.
const LONGEST_HEADER: u64 = 100_000_000;

/// The tensor `wanted`, or the only one that has two axes.
pub(super) fn open(mut file: File, name: &str, wanted: Option<&str>) -> Result<Source, RowsError> {
    let io = |source| RowsError::io(name, source);
    let damaged = |what: String| RowsError::format(name, what);
    let len = file.metadata().map_err(io)?.len();
    let mut first = [0; 8];
    let header_len = match file.read_exact(&mut first) {
        Ok(()) => u64::from_le_bytes(first),
        Err(_) => return Err(damaged("it is too short for safetensors".to_owned())),
    };
    if header_len > LONGEST_HEADER || header_len > len - 8 {
        return Err(damaged(
            "its header does not fit in the file; it is cut off or not safetensors".to_owned(),
        ));
    }
    let mut header = vec![0; header_len as usize];
    file.read_exact(&mut header).map_err(io)?;
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|e| damaged(format!("its header is damaged: {e}")))?;
    let start = 8 + header_len;
    if start.saturating_add(header.data_len() as u64) > len {
        return Err(damaged(format!("it is cut off: it has {len} bytes")));
    }
    let mut names: Vec<String> = header.offset_keys();
    if wanted.is_none() {
        names.retain(|n| header.info(n).is_some_and(|info| info.shape.len() == 2));
    }
    let tensor = &names[choose(&names, wanted, "tensor", name)?];
    let Some(info) = header.info(tensor) else {
        return Err(damaged(format!("it has no tensor '{tensor}'")));
    };
    let &[rows, width] = &info.shape[..] else {
        return Err(damaged(format!(
            "tensor '{tensor}' has the shape {:?}, no table of rows",
            info.shape
        )));
    };
    let Some(kind) = kind(info.dtype) else {
        return Err(damaged(format!(
            "tensor '{tensor}' is of type {:?}, which is not read",
            info.dtype
        )));
    };
    file.seek(SeekFrom::Start(start + info.data_offsets.0 as u64))
        .map_err(io)?;
    let layout = Layout {
        kind,
        big_endian: false,
        by_columns: false,
        rows,
        width,
    };
    binary::open(Box::new(BufReader::new(file)), layout, name)
}

fn kind(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F64 => Kind::F64,
        Dtype::F32 => Kind::F32,
        Dtype::F16 => Kind::F16,
        Dtype::BF16 => Kind::Bf16,
        Dtype::I64 => Kind::I64,
        Dtype::I32 => Kind::I32,
        Dtype::I16 => Kind::I16,
        Dtype::I8 => Kind::I8,
        Dtype::U64 => Kind::U64,
        Dtype::U32 => Kind::U32,
        Dtype::U16 => Kind::U16,
        Dtype::U8 => Kind::U8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}
