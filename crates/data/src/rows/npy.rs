//! Arrays of NumPy: `.npy` of versions 1 to 3, and one of them inside `.npz`.
//!
//! A file is the magic bytes, a version, the length of a header and the header, which is a
//! Python dictionary in text: `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.

use std::fs::File;
use std::io::{Cursor, Read};

use keyfold_core::Vectors;
use zip::ZipArchive;

use super::binary::{self, Layout};
use super::numbers::Kind;
use super::{RowOptions, RowReader, RowsError, Source, StreamFormat};

/// First bytes of an array.
pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// The longest header that is read; NumPy itself refuses from 10,000 on.
const LONGEST_HEADER: usize = 1 << 20;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// Type as NumPy spells it: `<f4`.
    pub(super) descr: String,
    pub(super) fortran_order: bool,
    pub(super) shape: Vec<usize>,
}

/// Reads magic bytes and header.
pub(super) fn header(input: &mut dyn Read, name: &str) -> Result<Header, RowsError> {
    let damaged = |what: &str| RowsError::format(name, format!("its .npy header {what}"));
    let mut read = |count: usize| -> Result<Vec<u8>, RowsError> {
        let mut bytes = vec![0; count];
        input
            .read_exact(&mut bytes)
            .map_err(|_| damaged("is cut off"))?;
        Ok(bytes)
    };
    let first = read(8)?;
    if &first[..6] != MAGIC {
        return Err(RowsError::format(
            name,
            "it is no .npy file, its first bytes are others",
        ));
    }
    let length = match first[6] {
        1 => read(2)?,
        2 | 3 => read(4)?,
        version => {
            return Err(damaged(&format!(
                "is of version {version}; 1 to 3 are known"
            )));
        }
    };
    let length = length.iter().rev().fold(0, |n, &b| n << 8 | usize::from(b));
    if length > LONGEST_HEADER {
        return Err(damaged("is too long to be one"));
    }
    let text = read(length)?;
    let text = String::from_utf8_lossy(&text);
    parse(&text).ok_or_else(|| {
        damaged("does not say type, order and shape; arrays of records are not read, save one plain array")
    })
}

fn parse(text: &str) -> Option<Header> {
    let after = |key: &str| -> Option<&str> {
        let at = ['\'', '"'].iter().find_map(|quote| {
            let key = format!("{quote}{key}{quote}");
            text.find(&key).map(|at| at + key.len())
        })?;
        text[at..]
            .trim_start()
            .strip_prefix(':')
            .map(str::trim_start)
    };
    let descr = after("descr")?;
    let quote = descr.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let descr = descr[1..].split(quote).next()?.to_owned();
    let fortran_order = after("fortran_order")?.starts_with("True");
    let shape = after("shape")?.strip_prefix('(')?.split(')').next()?;
    let numbers = shape.split(',').map(str::trim).filter(|n| !n.is_empty());
    let shape = numbers
        .map(|n| n.trim_end_matches('L').parse().ok())
        .collect::<Option<Vec<usize>>>()?;
    Some(Header {
        descr,
        fortran_order,
        shape,
    })
}

/// Type and whether it is big-endian.
pub(super) fn kind(descr: &str) -> Option<(Kind, bool)> {
    let big_endian = match descr.as_bytes().first()? {
        b'>' => true,
        b'<' | b'|' | b'=' => false,
        _ => return None,
    };
    let kind = match &descr[1..] {
        "f8" => Kind::F64,
        "f4" => Kind::F32,
        "f2" => Kind::F16,
        "i8" => Kind::I64,
        "i4" => Kind::I32,
        "i2" => Kind::I16,
        "i1" => Kind::I8,
        "u8" => Kind::U64,
        "u4" => Kind::U32,
        "u2" => Kind::U16,
        "u1" => Kind::U8,
        "b1" => Kind::Bool,
        _ => return None,
    };
    Some((kind, big_endian))
}

/// Rows of an array; one of a single axis is a column.
pub(super) fn open(mut input: Box<dyn Read + Send>, name: &str) -> Result<Source, RowsError> {
    let header = header(&mut *input, name)?;
    let Some((kind, big_endian)) = kind(&header.descr) else {
        return Err(RowsError::format(
            name,
            format!(
                "its type '{}' is no number; save it as float32",
                header.descr
            ),
        ));
    };
    let (rows, width) = match header.shape[..] {
        [rows, width] => (rows, width),
        [rows] => (rows, 1),
        _ => {
            return Err(RowsError::format(
                name,
                format!(
                    "its shape {:?} is no table of rows; reshape it to two axes",
                    header.shape
                ),
            ));
        }
    };
    let layout = Layout {
        kind,
        big_endian,
        by_columns: header.fortran_order,
        rows,
        width,
    };
    binary::open(input, layout, name)
}

/// The token vectors of a text from the bytes of an array `[vectors, numbers]` of float32 or
/// float16; `name` is what errors call them.
///
/// # Errors
/// When the bytes are no such array, more or fewer than it says, no vector at all, or
/// numbers that are not finite.
pub fn token_vectors(bytes: Vec<u8>, name: &str) -> Result<Vectors, RowsError> {
    let refused = |what: String| RowsError::format(name, what);
    let mut rest = &bytes[..];
    let header = header(&mut rest, name)?;
    let kind = kind(&header.descr).map(|(kind, _)| kind);
    let Some(kind @ (Kind::F32 | Kind::F16)) = kind else {
        return Err(refused(format!(
            "its numbers are of type '{}', and those of token vectors are float32 or float16",
            header.descr
        )));
    };
    let [rows, width] = header.shape[..] else {
        return Err(refused(format!(
            "its shape {:?} is not [vectors, numbers]",
            header.shape
        )));
    };
    if rows == 0 || width == 0 {
        return Err(refused(format!(
            "its shape {:?} holds no vector",
            header.shape
        )));
    }
    let wanted = rows
        .checked_mul(width)
        .and_then(|n| n.checked_mul(kind.size()));
    if wanted != Some(rest.len()) {
        return Err(refused(format!(
            "its shape {:?} does not go with {} bytes of numbers: it is cut off or damaged",
            header.shape,
            rest.len()
        )));
    }
    let (stream, options) = (StreamFormat::Detect, RowOptions::default());
    let all =
        RowReader::stream(Box::new(Cursor::new(bytes)), name, stream, &options)?.read_all()?;
    Vectors::new(all.width, all.values).map_err(|e| refused(e.to_string()))
}

/// The one array of an archive, or the one that is asked for.
pub(super) fn open_npz(file: File, name: &str, array: Option<&str>) -> Result<Source, RowsError> {
    let damaged = |e: zip::result::ZipError| {
        RowsError::format(name, format!("it is no .npz archive, or damaged: {e}"))
    };
    let mut archive = ZipArchive::new(file).map_err(damaged)?;
    let mut names: Vec<String> = Vec::new();
    for at in 0..archive.len() {
        let entry = archive.by_index(at).map_err(damaged)?;
        names.push(
            entry
                .name()
                .map_err(damaged)?
                .trim_end_matches(".npy")
                .to_owned(),
        );
    }
    let at = choose(&names, array, "array", name)?;
    let mut bytes = Vec::new();
    archive
        .by_index(at)
        .map_err(damaged)?
        .read_to_end(&mut bytes)
        .map_err(|source| RowsError::io(name, source))?;
    open(Box::new(Cursor::new(bytes)), name)
}

/// The place of `wanted` among `names`, or of the only one.
pub(super) fn choose(
    names: &[String],
    wanted: Option<&str>,
    what: &str,
    file: &str,
) -> Result<usize, RowsError> {
    let known = || names.join(", ");
    match wanted {
        Some(wanted) => names.iter().position(|n| n == wanted).ok_or_else(|| {
            RowsError::format(
                file,
                format!("it has no {what} '{wanted}', but: {}", known()),
            )
        }),
        None if names.len() == 1 => Ok(0),
        None if names.is_empty() => Err(RowsError::Empty {
            name: file.to_owned(),
        }),
        None => Err(RowsError::format(
            file,
            format!("it holds several {what}s, say which one: {}", known()),
        )),
    }
}
