//! Rows written as NumPy, CSV or safetensors files, each whole or absent.

use std::io::{self, Write};
use std::path::Path;

use keyfold_core::atomic;
use safetensors::tensor::{Dtype, TensorView};

use super::RowsError;

/// Writes rows of `width` numbers by the ending of `path`: `npy`, `csv`, `tsv` or
/// `safetensors` (a tensor `rows`).
///
/// # Errors
/// When the ending is another, or the file cannot be written.
///
/// # Panics
/// When `values` is no whole number of rows.
pub fn write_rows(path: &Path, values: &[f32], width: usize) -> Result<(), RowsError> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("npy") => write_npy(path, values, width),
        Some("csv" | "tsv") => write_csv(path, values, width, &[]),
        Some("safetensors") => write_safetensors(path, &[("rows", values, width)]),
        _ => Err(RowsError::format(
            &path.display().to_string(),
            "rows are written as .npy, .csv, .tsv or .safetensors; choose one of these endings",
        )),
    }
}

/// Writes a `.npy` array `[rows, width]` of `f32`.
///
/// # Errors
/// When the file cannot be written.
///
/// # Panics
/// When `values` is no whole number of rows.
pub fn write_npy(path: &Path, values: &[f32], width: usize) -> Result<(), RowsError> {
    let written = atomic::write(path, &npy_bytes(values, width));
    written.map_err(|source| RowsError::io(&path.display().to_string(), source))
}

/// The bytes of a `.npy` array `[rows, width]` of `f32`.
///
/// # Panics
/// When `values` is no whole number of rows.
pub fn npy_bytes(values: &[f32], width: usize) -> Vec<u8> {
    let rows = rows_of(values, width);
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    // Magic bytes, version, length and header fill blocks of 64 bytes; a line end is last.
    let pad = (64 - (10 + header.len() + 1) % 64) % 64;
    header.extend(std::iter::repeat_n(' ', pad));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    bytes
}

/// Writes a table with names of the columns, where there are some; tabulators stand
/// between the cells of a `.tsv` file, else commas.
///
/// # Errors
/// When the file cannot be written.
///
/// # Panics
/// When `values` is no whole number of rows.
pub fn write_csv(
    path: &Path,
    values: &[f32],
    width: usize,
    columns: &[String],
) -> Result<(), RowsError> {
    rows_of(values, width);
    let delimiter = match path.extension().is_some_and(|e| e == "tsv") {
        true => b'\t',
        false => b',',
    };
    let written = atomic::write_with(path, |out| {
        let mut table = csv::WriterBuilder::new()
            .delimiter(delimiter)
            .from_writer(out);
        if !columns.is_empty() {
            table.write_record(columns).map_err(io::Error::other)?;
        }
        for row in values.chunks_exact(width.max(1)) {
            let cells = row.iter().map(f32::to_string);
            table.write_record(cells).map_err(io::Error::other)?;
        }
        table.flush()
    });
    written.map_err(|source| RowsError::io(&path.display().to_string(), source))
}

/// Writes tensors `[rows, width]` of `f32` by name.
///
/// # Errors
/// When the file cannot be written.
///
/// # Panics
/// When a tensor is no whole number of rows.
pub fn write_safetensors(path: &Path, tensors: &[(&str, &[f32], usize)]) -> Result<(), RowsError> {
    let name = path.display().to_string();
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, values, _)| values.iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let mut views = Vec::new();
    for ((tensor, values, width), bytes) in tensors.iter().zip(&bytes) {
        let shape = vec![rows_of(values, *width), *width];
        let view = TensorView::new(Dtype::F32, shape, bytes)
            .map_err(|e| RowsError::format(&name, e.to_string()))?;
        views.push((*tensor, view));
    }
    let bytes =
        safetensors::serialize(views, None).map_err(|e| RowsError::format(&name, e.to_string()))?;
    let written = atomic::write_with(path, |out| out.write_all(&bytes));
    written.map_err(|source| RowsError::io(&name, source))
}

fn rows_of(values: &[f32], width: usize) -> usize {
    let rows = values.len().checked_div(width).unwrap_or(0);
    assert_eq!(rows * width, values.len(), "values are no whole rows");
    rows
}
