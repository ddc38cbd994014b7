//! Rows of numbers, for methods that learn from vectors.
//!
//! Reads `.npy` and `.npz` (NumPy), CSV and TSV, `.safetensors`, Parquet, and streams
//! of CSV or of bare `f32` on standard input; [`RowReader`] a few rows at a time, so that
//! a stream needs no end, [`read_rows`] all of them. Every number becomes `f32`. What is no row
//! of finite numbers is refused by file, row and column ([`RowsError`]), where rows and
//! columns count from 1 and a header is no row.

mod binary;
mod delimited;
mod error;
mod labels;
mod npy;
mod numbers;
mod parquet_file;
mod tensor;
mod write;

#[cfg(test)]
mod rows_tests;

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

pub use error::RowsError;
pub use labels::{class_numbers, read_labels};
pub use npy::token_vectors;
pub use write::{npy_bytes, write_csv, write_npy, write_rows, write_safetensors};

use binary::Binary;
use delimited::Delimited;
use parquet_file::ParquetFile;

/// Rows of numbers, row-major `[rows, width]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rows {
    /// Numbers of a row.
    pub width: usize,
    /// All numbers, row-major.
    pub values: Vec<f32>,
    /// Names of the columns; empty where the file has none.
    pub columns: Arc<[String]>,
    /// What the label column says, one for each row; empty without one.
    pub labels: Vec<String>,
}

impl Rows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len().checked_div(self.width).unwrap_or(0)
    }

    /// True when there is no row.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The rows in order.
    pub fn iter(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.width.max(1))
    }
}

/// What to do with a row that holds NaN, an infinity or an empty cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missing {
    /// Stop with an error that names row and column.
    #[default]
    Refuse,
    /// Leave the row out and count it ([`RowReader::skipped`]).
    Skip,
}

/// How rows are read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowOptions {
    /// The column with labels, of tables: its name, or its number from 1.
    pub label: Option<String>,
    /// Columns of tables that are left out, by name or number from 1.
    pub ignore: Vec<String>,
    /// Whether a table begins with names; found out when not said.
    pub header: Option<bool>,
    /// The tensor of a `.safetensors` file, or array of an `.npz` file; needed where
    /// there are several.
    pub tensor: Option<String>,
    /// Rows with numbers that are none.
    pub missing: Missing,
}

/// What a stream without a name holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StreamFormat {
    /// `.npy` by its first bytes, else a table.
    #[default]
    Detect,
    /// Bare `f32`, little-endian, this many to a row.
    Floats {
        /// Numbers of a row.
        width: usize,
    },
}

/// Reads rows a few at a time.
pub struct RowReader {
    source: Source,
    /// What errors call the input.
    name: String,
    missing: Missing,
    columns: Arc<[String]>,
    /// Rows read so far, with those left out.
    row: u64,
    skipped: u64,
}

enum Source {
    Binary(Binary),
    Delimited(Box<Delimited>),
    Parquet(Box<ParquetFile>),
    Memory {
        values: Vec<f32>,
        width: usize,
        at: usize,
    },
}

impl RowReader {
    /// Opens a file by its name's ending (`npy`, `npz`, `safetensors`,
    /// `parquet`, `csv`, `tsv`, `txt`); others by their first bytes.
    ///
    /// # Errors
    /// When the file cannot be read or is no table of numbers.
    pub fn open(path: &Path, options: &RowOptions) -> Result<Self, RowsError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|source| RowsError::io(&name, source))?;
        let kind = file
            .metadata()
            .map_err(|source| RowsError::io(&name, source))?;
        if kind.is_dir() {
            return Err(RowsError::format(
                &name,
                "it is a folder; name a file with rows",
            ));
        }
        let ending = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default();
        let source = match ending.to_ascii_lowercase().as_str() {
            "npz" => npy::open_npz(file, &name, options.tensor.as_deref())?,
            "safetensors" => tensor::open(file, &name, options.tensor.as_deref())?,
            "tsv" => return Self::table(Box::new(file), name, Some(b'\t'), options),
            "csv" | "txt" => return Self::table(Box::new(file), name, None, options),
            "parquet" => {
                let file = ParquetFile::open(file, &name, options)?;
                let columns = file.columns().into();
                return Ok(Self::new(
                    Source::Parquet(Box::new(file)),
                    name,
                    options,
                    columns,
                ));
            }
            _ => return Self::stream(Box::new(file), &name, StreamFormat::Detect, options),
        };
        Ok(Self::new(source, name, options, Arc::default()))
    }

    /// Reads a stream that has no file name, as standard input; `name` is what errors
    /// call it.
    ///
    /// # Errors
    /// When its beginning is no table of numbers.
    pub fn stream(
        input: Box<dyn Read + Send>,
        name: &str,
        format: StreamFormat,
        options: &RowOptions,
    ) -> Result<Self, RowsError> {
        let source = match format {
            StreamFormat::Floats { width: 0 } => {
                return Err(RowsError::format(name, "rows need at least one number"));
            }
            StreamFormat::Floats { width } => Source::Binary(Binary::endless(input, width)),
            StreamFormat::Detect => {
                let mut input = BufReader::with_capacity(1 << 16, input);
                let first = numbers::peek(&mut input, npy::MAGIC.len())
                    .map_err(|source| RowsError::io(name, source))?;
                if first != npy::MAGIC {
                    return Self::table(Box::new(input), name.to_owned(), None, options);
                }
                npy::open(Box::new(input), name)?
            }
        };
        Ok(Self::new(source, name.to_owned(), options, Arc::default()))
    }

    fn table(
        input: Box<dyn Read + Send>,
        name: String,
        delimiter: Option<u8>,
        options: &RowOptions,
    ) -> Result<Self, RowsError> {
        let table = Delimited::open(input, &name, delimiter, options)?;
        let columns = table.columns().into();
        Ok(Self::new(
            Source::Delimited(Box::new(table)),
            name,
            options,
            columns,
        ))
    }

    fn new(source: Source, name: String, options: &RowOptions, columns: Arc<[String]>) -> Self {
        Self {
            source,
            name,
            missing: options.missing,
            columns,
            row: 0,
            skipped: 0,
        }
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        match &self.source {
            Source::Binary(binary) => binary.width(),
            Source::Delimited(table) => table.width(),
            Source::Parquet(file) => file.width(),
            Source::Memory { width, .. } => *width,
        }
    }

    /// Names of the columns; empty where there are none.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// What errors call the input.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows that were left out, see [`Missing::Skip`].
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The next rows, at most `most` (at least one is asked for); nothing at the end.
    ///
    /// # Errors
    /// When a row is not finite numbers, has another width than the first, the input
    /// ends inside a row, or there was no row at all.
    pub fn next(&mut self, most: usize) -> Result<Option<Rows>, RowsError> {
        let most = most.max(1);
        loop {
            let mut rows = Rows {
                width: self.width(),
                columns: self.columns.clone(),
                ..Rows::default()
            };
            match &mut self.source {
                Source::Binary(binary) => {
                    binary.next(most, &mut rows.values, &self.name, self.row)?
                }
                Source::Delimited(table) => table.next(most, &mut rows, &self.name, self.row)?,
                Source::Parquet(file) => file.next(most, &mut rows, &self.name)?,
                Source::Memory { values, width, at } => {
                    let end = values.len().min(*at + most.saturating_mul(*width));
                    rows.values.extend_from_slice(&values[*at..end]);
                    *at = end;
                }
            }
            let read = rows.len() as u64;
            if read == 0 {
                return match self.row - self.skipped {
                    0 if self.skipped > 0 => Err(RowsError::format(
                        &self.name,
                        "every row holds numbers that are missing or not finite",
                    )),
                    0 => Err(RowsError::Empty {
                        name: self.name.clone(),
                    }),
                    _ => Ok(None),
                };
            }
            self.check(&mut rows)?;
            self.row += read;
            if !rows.is_empty() {
                return Ok(Some(rows));
            }
        }
    }

    /// Refuses rows that are not finite, or leaves them out.
    fn check(&mut self, rows: &mut Rows) -> Result<(), RowsError> {
        let Some(first) = rows.values.iter().position(|x| !x.is_finite()) else {
            return Ok(());
        };
        if self.missing == Missing::Refuse {
            let (row, column) = (first / rows.width, first % rows.width);
            return Err(RowsError::NotFinite {
                name: self.name.clone(),
                row: self.row + row as u64 + 1,
                column: match self.columns.get(column) {
                    Some(name) => format!("'{name}'"),
                    None => (column + 1).to_string(),
                },
                found: rows.values[first].to_string(),
            });
        }
        let whole: Vec<bool> = rows
            .iter()
            .map(|row| row.iter().all(|x| x.is_finite()))
            .collect();
        let kept = rows.iter().zip(&whole).filter(|(_, whole)| **whole);
        rows.values = kept.flat_map(|(row, _)| row.iter().copied()).collect();
        let mut at = whole.iter();
        rows.labels.retain(|_| at.next().is_none_or(|whole| *whole));
        self.skipped += whole.iter().filter(|whole| !**whole).count() as u64;
        Ok(())
    }

    /// All rows that are left.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn read_all(mut self) -> Result<Rows, RowsError> {
        let mut all = Rows {
            width: self.width(),
            columns: self.columns.clone(),
            ..Rows::default()
        };
        while let Some(rows) = self.next(1 << 14)? {
            all.values.extend(rows.values);
            all.labels.extend(rows.labels);
        }
        Ok(all)
    }
}

/// All rows of a file; see [`RowReader::open`].
///
/// # Errors
/// When the file is no table of finite numbers, or empty.
pub fn read_rows(path: &Path, options: &RowOptions) -> Result<Rows, RowsError> {
    RowReader::open(path, options)?.read_all()
}
