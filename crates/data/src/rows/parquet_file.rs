//! Columns of numbers of a Parquet file: plain ones, or one whose cells are lists of
//! numbers of one length, as embeddings are kept. One row group is in memory at a time.

use std::fs::File;

use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};

use super::{RowOptions, Rows, RowsError};

pub(super) struct ParquetFile {
    file: SerializedFileReader<File>,
    /// Places of the columns with numbers.
    numbers: Vec<usize>,
    label: Option<usize>,
    names: Vec<String>,
    width: usize,
    /// The row group that is read next.
    group: usize,
    /// Rows of the last group that were not yet asked for.
    waiting: Rows,
    at: usize,
}

impl ParquetFile {
    pub(super) fn open(file: File, name: &str, options: &RowOptions) -> Result<Self, RowsError> {
        let file = SerializedFileReader::new(file).map_err(|e| damaged(name, &e))?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let all = schema.columns();
        // The first part of a path is the column, the others are the inside of lists.
        let title = |i: usize| all[i].path().parts().first().map_or("", String::as_str);
        let find = |column: &String| {
            (0..all.len()).find(|i| title(*i) == column).ok_or_else(|| {
                let known: Vec<&str> = (0..all.len()).map(title).collect();
                RowsError::format(
                    name,
                    format!("it has no column '{column}', but: {}", known.join(", ")),
                )
            })
        };
        let ignored: Vec<usize> = options.ignore.iter().map(find).collect::<Result<_, _>>()?;
        let label = options.label.as_ref().map(find).transpose()?;
        let mut numbers: Vec<usize> = (0..all.len())
            .filter(|i| !ignored.contains(i) && Some(*i) != label)
            .collect();
        if let Some(tensor) = &options.tensor {
            let wanted = find(tensor)?;
            numbers.retain(|i| *i == wanted);
        }
        for &i in &numbers {
            let kind = all[i].physical_type();
            if matches!(
                kind,
                Type::BYTE_ARRAY | Type::FIXED_LEN_BYTE_ARRAY | Type::INT96
            ) {
                return Err(RowsError::format(
                    name,
                    format!(
                        "column '{}' is of type {kind}, no number; leave it out, or name it as the label",
                        title(i)
                    ),
                ));
            }
            let lists = all[i].max_rep_level() > 0;
            if all[i].max_rep_level() > 1 || lists && numbers.len() > 1 {
                return Err(RowsError::format(
                    name,
                    format!(
                        "column '{}' holds lists; name that column alone as the one to read",
                        title(i)
                    ),
                ));
            }
        }
        if numbers.is_empty() {
            return Err(RowsError::format(name, "no column of numbers is left"));
        }
        let names = numbers.iter().map(|i| title(*i).to_owned()).collect();
        let mut opened = Self {
            file,
            width: numbers.len(),
            numbers,
            label,
            names,
            group: 0,
            waiting: Rows::default(),
            at: 0,
        };
        if opened.has_lists() {
            opened.names.clear();
            // The width is that of the first list.
            opened.load(name)?;
            opened.width = opened.waiting.width.max(1);
        }
        Ok(opened)
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn columns(&self) -> Vec<String> {
        self.names.clone()
    }

    fn has_lists(&self) -> bool {
        let schema = self.file.metadata().file_metadata().schema_descr();
        self.numbers
            .iter()
            .any(|i| schema.column(*i).max_rep_level() > 0)
    }

    /// Appends at most `most` rows; none at the end.
    pub(super) fn next(
        &mut self,
        most: usize,
        rows: &mut Rows,
        name: &str,
    ) -> Result<(), RowsError> {
        while self.at == self.waiting.len() && self.group < self.file.num_row_groups() {
            self.load(name)?;
        }
        let end = self.waiting.len().min(self.at.saturating_add(most));
        let width = self.waiting.width;
        rows.values
            .extend_from_slice(&self.waiting.values[self.at * width..end * width]);
        if self.label.is_some() {
            rows.labels
                .extend_from_slice(&self.waiting.labels[self.at..end]);
        }
        self.at = end;
        Ok(())
    }

    /// Takes up the next row group.
    fn load(&mut self, name: &str) -> Result<(), RowsError> {
        let fail = |e: ParquetError| damaged(name, &e);
        self.waiting = Rows {
            width: self.width,
            ..Rows::default()
        };
        self.at = 0;
        if self.group >= self.file.num_row_groups() {
            return Ok(());
        }
        let group = self.file.get_row_group(self.group).map_err(fail)?;
        self.group += 1;
        let count = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let first = self.group == 1;
        if self.has_lists() {
            let cells = read(&*group, self.numbers[0], count).map_err(fail)?;
            let lengths = cells.list_lengths();
            let expected = match first {
                true => lengths.first().copied().unwrap_or(0),
                false => self.width,
            };
            if let Some(row) = lengths.iter().position(|n| *n != expected || *n == 0) {
                return Err(RowsError::Width {
                    name: name.to_owned(),
                    row: row as u64 + 1,
                    expected,
                    found: lengths[row],
                });
            }
            self.waiting.width = expected;
            self.waiting.values = cells.filled(f32::NAN);
        } else {
            let width = self.width;
            self.waiting.values = vec![f32::NAN; count * width];
            for (j, &column) in self.numbers.iter().enumerate() {
                let cells = read(&*group, column, count).map_err(fail)?;
                for (i, x) in cells.filled(f32::NAN).into_iter().take(count).enumerate() {
                    self.waiting.values[i * width + j] = x;
                }
            }
        }
        if let Some(label) = self.label {
            self.waiting.labels = texts(&*group, label, count).map_err(fail)?;
            self.waiting.labels.resize(count, String::new());
        }
        Ok(())
    }
}

fn damaged(name: &str, error: &ParquetError) -> RowsError {
    RowsError::format(name, format!("it cannot be read as Parquet: {error}"))
}

/// What a column holds, with the levels that tell where cells are empty and lists begin.
struct Cells<T> {
    values: Vec<T>,
    levels: Vec<i16>,
    begins: Vec<i16>,
    /// The level of a cell that is there.
    full: i16,
}

impl<T: Clone> Cells<T> {
    /// What stands in every cell, `empty` where nothing does.
    fn filled(self, empty: T) -> Vec<T> {
        if self.full == 0 {
            return self.values;
        }
        let mut values = self.values.into_iter();
        let mut cell = |level: &i16| match *level == self.full {
            true => values.next().unwrap_or_else(|| empty.clone()),
            false => empty.clone(),
        };
        self.levels.iter().map(&mut cell).collect()
    }

    /// Length of each list without the elements that are missing; 0 for one that is missing.
    fn list_lengths(&self) -> Vec<usize> {
        let mut lengths: Vec<usize> = Vec::new();
        for (begin, level) in self.begins.iter().zip(&self.levels) {
            if *begin == 0 {
                lengths.push(0);
            }
            let there = usize::from(*level == self.full);
            if let Some(last) = lengths.last_mut() {
                *last += there;
            }
        }
        lengths
    }
}

fn cells<D: DataType, T>(
    mut reader: ColumnReaderImpl<D>,
    full: i16,
    count: usize,
    convert: impl Fn(D::T) -> T,
) -> Result<Cells<T>, ParquetError> {
    let (mut values, mut levels, mut begins) = (Vec::new(), Vec::new(), Vec::new());
    let mut left = count;
    while left > 0 {
        let (records, ..) =
            reader.read_records(left, Some(&mut levels), Some(&mut begins), &mut values)?;
        if records == 0 {
            break;
        }
        left -= records;
    }
    Ok(Cells {
        values: values.into_iter().map(convert).collect(),
        levels,
        begins,
        full,
    })
}

/// The level of a cell that is there.
fn full(group: &dyn RowGroupReader, column: usize) -> i16 {
    group
        .metadata()
        .column(column)
        .column_descr()
        .max_def_level()
}

fn read(
    group: &dyn RowGroupReader,
    column: usize,
    count: usize,
) -> Result<Cells<f32>, ParquetError> {
    let full = full(group, column);
    match group.get_column_reader(column)? {
        ColumnReader::BoolColumnReader(r) => cells(r, full, count, |x| f32::from(u8::from(x))),
        ColumnReader::Int32ColumnReader(r) => cells(r, full, count, |x| x as f32),
        ColumnReader::Int64ColumnReader(r) => cells(r, full, count, |x| x as f32),
        ColumnReader::FloatColumnReader(r) => cells(r, full, count, |x| x),
        ColumnReader::DoubleColumnReader(r) => cells(r, full, count, |x| x as f32),
        _ => Err(ParquetError::General("a column of no numbers".to_owned())),
    }
}

/// The cells of a label column as texts; empty where there is none.
fn texts(
    group: &dyn RowGroupReader,
    column: usize,
    count: usize,
) -> Result<Vec<String>, ParquetError> {
    let text = |x: ByteArray| String::from_utf8_lossy(x.data()).into_owned();
    if let ColumnReader::ByteArrayColumnReader(r) = group.get_column_reader(column)? {
        return Ok(cells(r, full(group, column), count, text)?.filled(String::new()));
    }
    let numbers = read(group, column, count)?.filled(f32::NAN);
    Ok(numbers.iter().map(f32::to_string).collect())
}
