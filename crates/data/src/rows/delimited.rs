//! Tables in text: CSV, TSV, and numbers between semicolons or blanks.

use std::io::{BufRead, BufReader, Read};

use csv::{ByteRecord, ReaderBuilder};

use super::{RowOptions, Rows, RowsError};

/// What a column is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Number,
    Label,
    Ignored,
}

/// A table that is read row by row.
pub(super) struct Delimited {
    input: csv::Reader<Box<dyn BufRead + Send>>,
    roles: Vec<Role>,
    names: Vec<String>,
    /// The first row, where it is no header.
    waiting: Option<ByteRecord>,
    record: ByteRecord,
}

impl Delimited {
    /// Reads the first row and finds out whether it is a header.
    pub(super) fn open(
        input: Box<dyn Read + Send>,
        name: &str,
        delimiter: Option<u8>,
        options: &RowOptions,
    ) -> Result<Self, RowsError> {
        let mut input = BufReader::with_capacity(1 << 16, input);
        skip_bom(&mut input).map_err(|source| RowsError::io(name, source))?;
        let delimiter = match delimiter {
            Some(delimiter) => delimiter,
            None => guess(&mut input).map_err(|source| RowsError::io(name, source))?,
        };
        let input: Box<dyn BufRead + Send> = Box::new(input);
        let mut table = Self {
            input: ReaderBuilder::new()
                .has_headers(false)
                .flexible(true)
                .delimiter(delimiter)
                .comment(Some(b'#'))
                .from_reader(input),
            roles: Vec::new(),
            names: Vec::new(),
            waiting: None,
            record: ByteRecord::new(),
        };
        let mut first = ByteRecord::new();
        if !table.read(&mut first, name)? {
            return Err(RowsError::Empty {
                name: name.to_owned(),
            });
        }
        let cells: Vec<String> = first.iter().map(text).collect();
        let named = |column: &String| cells.contains(column);
        let header = options.header.unwrap_or_else(|| {
            options
                .label
                .iter()
                .chain(&options.ignore)
                .any(|c| named(c) && number(c.as_bytes()).is_none())
                || cells.iter().all(|cell| number(cell.as_bytes()).is_none())
        });
        let header = header && !cells.is_empty();
        table.roles = roles(&cells, header, options, name)?;
        if table.width() == 0 {
            return Err(RowsError::format(name, "no column of numbers is left"));
        }
        if header {
            let kept = cells.iter().zip(&table.roles);
            let kept = kept.filter(|(_, role)| **role == Role::Number);
            table.names = kept.map(|(name, _)| name.clone()).collect();
        } else {
            table.waiting = Some(first);
        }
        Ok(table)
    }

    pub(super) fn width(&self) -> usize {
        self.roles.iter().filter(|r| **r == Role::Number).count()
    }

    pub(super) fn columns(&self) -> Vec<String> {
        self.names.clone()
    }

    /// Appends at most `most` rows; none at the end.
    pub(super) fn next(
        &mut self,
        most: usize,
        rows: &mut Rows,
        name: &str,
        before: u64,
    ) -> Result<(), RowsError> {
        let mut record = std::mem::take(&mut self.record);
        for row in 1..=most as u64 {
            match self.waiting.take() {
                Some(first) => record = first,
                None if !self.read(&mut record, name)? => break,
                None => {}
            }
            self.take(&record, rows, name, before + row)?;
        }
        self.record = record;
        Ok(())
    }

    fn take(
        &self,
        record: &ByteRecord,
        rows: &mut Rows,
        name: &str,
        row: u64,
    ) -> Result<(), RowsError> {
        if record.len() != self.roles.len() {
            return Err(RowsError::Width {
                name: name.to_owned(),
                row,
                expected: self.roles.len(),
                found: record.len(),
            });
        }
        let mut column = 0;
        for (cell, role) in record.iter().zip(&self.roles) {
            match role {
                Role::Ignored => continue,
                Role::Label => {
                    rows.labels.push(text(cell));
                    continue;
                }
                Role::Number => column += 1,
            }
            let Some(number) = number(cell) else {
                return Err(RowsError::NoNumber {
                    name: name.to_owned(),
                    row,
                    column: match self.names.get(column - 1) {
                        Some(name) => format!("'{name}'"),
                        None => column.to_string(),
                    },
                    found: text(cell).chars().take(40).collect(),
                });
            };
            rows.values.push(number);
        }
        Ok(())
    }

    /// The next record that is not blank.
    fn read(&mut self, record: &mut ByteRecord, name: &str) -> Result<bool, RowsError> {
        loop {
            match self.input.read_byte_record(record) {
                // A line of blanks is one cell of nothing, as at the end of many files.
                Ok(true)
                    if record.len() == 1
                        && record[0].trim_ascii().is_empty()
                        && self.roles.len() != 1 => {}
                Ok(more) => return Ok(more),
                Err(error) => {
                    let what = error.to_string();
                    return Err(match error.into_kind() {
                        csv::ErrorKind::Io(source) => RowsError::io(name, source),
                        _ => RowsError::format(name, what),
                    });
                }
            }
        }
    }
}

/// A cell as a number; an empty one and the usual words for nothing are NaN.
fn number(cell: &[u8]) -> Option<f32> {
    let cell = std::str::from_utf8(cell).ok()?.trim();
    match cell {
        "" | "NA" | "N/A" | "null" | "NULL" | "?" => Some(f32::NAN),
        _ => cell.parse().ok(),
    }
}

fn text(cell: &[u8]) -> String {
    String::from_utf8_lossy(cell).trim().to_owned()
}

/// What each column is read as.
fn roles(
    cells: &[String],
    header: bool,
    options: &RowOptions,
    name: &str,
) -> Result<Vec<Role>, RowsError> {
    let find = |column: &str| -> Result<usize, RowsError> {
        let by_name = cells.iter().position(|c| header && c == column);
        let by_number = || {
            let number: usize = column.parse().ok()?;
            (1..=cells.len()).contains(&number).then(|| number - 1)
        };
        by_name.or_else(by_number).ok_or_else(|| {
            let known = match header {
                true => format!("but: {}", cells.join(", ")),
                false => format!(
                    "its {} columns have no names, but numbers from 1",
                    cells.len()
                ),
            };
            RowsError::format(name, format!("it has no column '{column}', {known}"))
        })
    };
    let mut roles = vec![Role::Number; cells.len()];
    for column in &options.ignore {
        roles[find(column)?] = Role::Ignored;
    }
    if let Some(label) = &options.label {
        roles[find(label)?] = Role::Label;
    }
    Ok(roles)
}

/// What stands between the cells of the first line that is no comment: the one of
/// tabulator, semicolon and comma that is there most, else a blank.
fn guess<R: Read>(input: &mut BufReader<R>) -> std::io::Result<u8> {
    let start = input.fill_buf()?;
    let line = start
        .split(|b| *b == b'\n')
        .find(|line| !line.trim_ascii().is_empty() && !line.starts_with(b"#"))
        .unwrap_or_default()
        .trim_ascii();
    let count = |b: u8| line.iter().filter(|x| **x == b).count();
    let best = [b',', b'\t', b';']
        .into_iter()
        .rev()
        .max_by_key(|b| count(*b));
    // Names of columns may hold blanks, so numbers alone stand between blanks.
    let numbers = |line: &[u8]| {
        let cells = line.split(u8::is_ascii_whitespace);
        let mut cells = cells.filter(|cell| !cell.is_empty());
        cells.all(|cell| number(cell).is_some())
    };
    Ok(match best {
        Some(best) if count(best) > 0 => best,
        _ if line.contains(&b' ') && numbers(line) => b' ',
        _ => b',',
    })
}

fn skip_bom<R: Read>(input: &mut BufReader<R>) -> std::io::Result<()> {
    if input.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    Ok(())
}
