//! A document whose rows were made elsewhere: a `.npy` file `[vectors, numbers]`.

use std::path::Path;

use keyfold_core::Vectors;

use super::{Document, ReadOptions, load};
use crate::error::Problem;
use crate::rows::token_vectors;
use crate::{FileEntry, Format, Passage, ReadError};

/// Reads the rows of a document, each of `dim` numbers. It has one passage, whose text is
/// the name of the file without `.npy`.
///
/// # Errors
/// Skipped: no `.npy` file, no regular file, empty, over `max_file_size`. Failed: cannot
/// be read, cut off, no two axes, another type than float32 and float16, rows of another
/// length than `dim`, or numbers that are not finite.
pub fn read_vectors(
    entry: &FileEntry,
    dim: usize,
    options: &ReadOptions,
) -> Result<(Document, Vectors), ReadError> {
    read_path(&entry.path, dim, options).map_err(|problem| problem.at(&entry.path))
}

fn read_path(
    path: &Path,
    dim: usize,
    options: &ReadOptions,
) -> Result<(Document, Vectors), Problem> {
    let is_npy = |ending: &std::ffi::OsStr| ending.eq_ignore_ascii_case("npy");
    if !path.extension().is_some_and(is_npy) {
        return Err(Problem::skip(
            "is no .npy file, and the store holds token vectors",
            "",
        ));
    }
    let bytes = load(path, options.max_file_size)?;
    if bytes.is_empty() {
        return Err(Problem::skip("is empty", ""));
    }
    let content_hash = blake3::hash(&bytes).to_hex().to_string();
    let failed = |what: String| Problem::fail(what, "save it again: [vectors, numbers], float32");
    let rows = token_vectors(bytes, NAME).map_err(|e| {
        let said = e.to_string();
        failed(
            said.strip_prefix(NAME_AND_COLON)
                .unwrap_or(&said)
                .to_owned(),
        )
    })?;
    if rows.dim() != dim {
        return Err(failed(format!(
            "has vectors of {} numbers, and the store has vectors of {dim}",
            rows.dim()
        )));
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let document = Document {
        passages: vec![Passage {
            text: name.replace(char::is_control, " "),
            headings: Vec::new(),
            lines: 0..0,
            part: None,
            bytes: 0..0,
        }],
        format: Format::Vectors,
        content_hash,
        warnings: Vec::new(),
    };
    Ok((document, rows))
}

/// What errors call the file here; its path is put before them later.
const NAME: &str = "the file";
const NAME_AND_COLON: &str = "the file: ";

#[cfg(test)]
#[path = "vectors_tests.rs"]
mod tests;
