//! Tables of numbers over time.

use std::path::Path;

use csv::{ReaderBuilder, StringRecord};

use crate::SignalError;

/// Columns of numbers over the rows of a table, the oldest row first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Series {
    /// The columns' names.
    pub names: Vec<String>,
    /// The numbers of each column.
    pub columns: Vec<Vec<f64>>,
    /// What the column of times says of each row; empty without one.
    pub times: Vec<String>,
}

impl Series {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.columns.first().map_or(0, Vec::len)
    }

    /// The columns of these names, in this order.
    ///
    /// # Errors
    /// When one is not there; `what` says what has the names.
    pub fn select(&self, names: &[String], what: &str) -> Result<Self, SignalError> {
        let columns = names.iter().map(|name| {
            let place = self.names.iter().position(|n| n == name);
            let place = place.ok_or_else(|| {
                SignalError::Unfit(format!(
                    "{what} has no column '{name}', but: {}",
                    self.names.join(", ")
                ))
            })?;
            Ok::<_, SignalError>(self.columns[place].clone())
        });
        Ok(Self {
            names: names.to_vec(),
            columns: columns.collect::<Result<_, _>>()?,
            times: self.times.clone(),
        })
    }

    /// The columns that hold one number throughout: nothing can be learned of them.
    pub fn still(&self) -> Vec<&str> {
        let columns = self.names.iter().zip(&self.columns);
        let still = columns.filter(|(_, column)| column.windows(2).all(|pair| pair[0] == pair[1]));
        still.map(|(name, _)| name.as_str()).collect()
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn part(&self, rows: std::ops::Range<usize>) -> Self {
        let columns = self.columns.iter();
        Self {
            names: self.names.clone(),
            columns: columns.map(|c| c[rows.clone()].to_vec()).collect(),
            times: match self.times.is_empty() {
                true => Vec::new(),
                false => self.times[rows].to_vec(),
            },
        }
    }
}

/// How a table is read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeriesOptions {
    /// The column with times; found when not said: the first column, if its first cell is no number.
    pub time: Option<String>,
    /// Columns that are left out.
    pub ignore: Vec<String>,
    /// Columns of `ignore` need not be there.
    pub may_lack: bool,
    /// A cell without a number takes the one above it.
    pub fill: bool,
}

/// Reads a table with a header: cells between commas, semicolons or tabulators.
///
/// # Errors
/// When the file cannot be read, a row has another number of cells than the header, a cell holds
/// no finite number, or no column of numbers is left.
pub fn read_series(path: &Path, options: &SeriesOptions) -> Result<Series, SignalError> {
    let text = std::fs::read(path).map_err(|source| SignalError::Io {
        path: path.to_owned(),
        source,
    })?;
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let table = |what: String| SignalError::Table {
        path: path.to_owned(),
        what,
    };
    let mut reader = ReaderBuilder::new()
        .delimiter(delimiter(text))
        .trim(csv::Trim::All)
        .from_reader(text);
    let header = reader.headers().map_err(|e| table(e.to_string()))?.clone();
    let mut rows = Vec::new();
    for row in reader.records() {
        rows.push(row.map_err(|e| table(wrong_row(&e)))?);
    }
    let Some(first) = rows.first() else {
        return Err(table("the table has no row under its header".into()));
    };
    if header.iter().all(|cell| cell.parse::<f64>().is_ok()) {
        return Err(table(
            "the first line holds numbers; it must name the columns".into(),
        ));
    }
    let time = time_column(&header, first, options, &table)?;
    if !options.may_lack {
        for name in &options.ignore {
            position(&header, name, &table)?;
        }
    }
    let mut series = Series::default();
    if let Some(time) = time {
        series.times = rows.iter().map(|row| row[time].to_owned()).collect();
    }
    for (place, name) in header.iter().enumerate() {
        if Some(place) == time || options.ignore.iter().any(|i| i == name) {
            continue;
        }
        if series.names.iter().any(|n| n == name) {
            return Err(table(format!("two columns are called '{name}'")));
        }
        series
            .columns
            .push(column(path, &rows, place, name, options.fill)?);
        series.names.push(name.to_owned());
    }
    match series.columns.is_empty() {
        true => Err(table("no column of numbers is left".into())),
        false => Ok(series),
    }
}

/// The one of comma, semicolon and tabulator that is most in the first line.
fn delimiter(text: &[u8]) -> u8 {
    let line = text.split(|b| *b == b'\n').next().unwrap_or_default();
    let count = |wanted: &u8| line.iter().filter(|b| *b == wanted).count();
    *[b'\t', b';', b',']
        .iter()
        .max_by_key(|b| count(b))
        .unwrap_or(&b',')
}

/// Rows count from 1, the header not counted.
fn wrong_row(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths {
            pos,
            expected_len,
            len,
        } => {
            let row = pos.as_ref().map_or(0, csv::Position::record);
            format!("row {row} has {len} cells, the header {expected_len}")
        }
        _ => error.to_string(),
    }
}

fn position(
    header: &StringRecord,
    name: &str,
    table: &impl Fn(String) -> SignalError,
) -> Result<usize, SignalError> {
    header.iter().position(|cell| cell == name).ok_or_else(|| {
        let known: Vec<&str> = header.iter().collect();
        table(format!(
            "it has no column '{name}', but: {}",
            known.join(", ")
        ))
    })
}

fn time_column(
    header: &StringRecord,
    first: &StringRecord,
    options: &SeriesOptions,
    table: &impl Fn(String) -> SignalError,
) -> Result<Option<usize>, SignalError> {
    if let Some(name) = &options.time {
        return position(header, name, table).map(Some);
    }
    let cell = first.get(0).unwrap_or_default();
    Ok((!cell.is_empty() && cell.parse::<f64>().is_err()).then_some(0))
}

fn column(
    path: &Path,
    rows: &[StringRecord],
    place: usize,
    name: &str,
    fill: bool,
) -> Result<Vec<f64>, SignalError> {
    let mut numbers: Vec<f64> = Vec::with_capacity(rows.len());
    for (row, cells) in rows.iter().enumerate() {
        let cell = &cells[place];
        let number = cell.parse::<f64>().ok().filter(|x| x.is_finite());
        let missing = ["", "na", "n/a", "nan", "null", "?"];
        let missing = missing.contains(&cell.to_ascii_lowercase().as_str());
        match (number, numbers.last()) {
            (Some(number), _) => numbers.push(number),
            (None, Some(&above)) if fill && missing => numbers.push(above),
            _ => {
                let found = match missing {
                    true => "no number stands there".to_owned(),
                    false => {
                        let cell: String = cell.chars().take(40).collect();
                        format!("'{cell}' is no finite number")
                    }
                };
                return Err(SignalError::Cell {
                    path: path.to_owned(),
                    row: row + 1,
                    column: name.to_owned(),
                    found,
                });
            }
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str, options: &SeriesOptions) -> Result<Series, SignalError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.csv");
        std::fs::write(&path, text).unwrap();
        read_series(&path, options)
    }

    fn refused(text: &str) -> String {
        read(text, &SeriesOptions::default())
            .unwrap_err()
            .to_string()
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_has_a_finite_number_in_each_cell(
            text in "[ab1-3eE,;\t\"\n .-]{0,40}", fill: bool,
        ) {
            let options = SeriesOptions { fill, ..SeriesOptions::default() };
            if let Ok(series) = read(&text, &options) {
                prop_assert_eq!(series.names.len(), series.columns.len());
                for column in &series.columns {
                    prop_assert_eq!(column.len(), series.rows());
                    prop_assert!(column.iter().all(|x| x.is_finite()));
                }
            }
        }
    }

    #[test]
    fn a_table_is_read_with_its_times() {
        let text = "date;a;b\n2016-07-01;1;-2.5\n2016-07-02;1e3;4\n";
        let series = read(text, &SeriesOptions::default()).unwrap();
        assert_eq!(series.names, ["a", "b"]);
        assert_eq!(series.columns, [vec![1.0, 1000.0], vec![-2.5, 4.0]]);
        assert_eq!(series.times, ["2016-07-01", "2016-07-02"]);
        let tail = series.part(1..2);
        assert_eq!(
            (tail.rows(), &tail.times[..]),
            (1, &["2016-07-02".to_owned()][..])
        );
        let swapped = series.select(&["b".into(), "a".into()], "it").unwrap();
        assert_eq!(swapped.columns[1], [1.0, 1000.0]);
    }

    #[test]
    fn what_is_no_number_is_refused_by_row_and_column() {
        assert!(refused("a,b\n1,2\n3,x\n").contains("row 2, column 'b': 'x'"));
        assert!(refused("a,b\n1,2\n3,\n").contains("row 2, column 'b': no number"));
        assert!(refused("a,b\n1,2\nNaN,2\n").contains("row 2, column 'a'"));
        assert!(refused("a,b\n1,2\n1,inf\n").contains("row 2, column 'b'"));
        assert!(refused("a,b\n1,2\n1\n").contains("row 2 has 1 cells, the header 2"));
        assert!(refused("a,b\n").contains("no row"));
        assert!(refused("1,2\n3,4\n").contains("name the columns"));
        assert!(refused("t,a,a\nx,1,2\n").contains("two columns are called 'a'"));
        assert!(refused("t\nx\n").contains("no column of numbers"));
    }

    #[test]
    fn missing_cells_are_filled_where_asked_for() {
        let fill = SeriesOptions {
            fill: true,
            ..SeriesOptions::default()
        };
        let series = read("a,b\n1,2\n,nan\n3,4\n", &fill).unwrap();
        assert_eq!(series.columns, [vec![1.0, 1.0, 3.0], vec![2.0, 2.0, 4.0]]);
        assert!(read("a,b\n1,\n", &fill).is_err(), "nothing stands above");
        assert!(read("a,b\n1,2\n3,word\n", &fill).is_err());
    }

    #[test]
    fn columns_are_left_out_by_name() {
        let options = SeriesOptions {
            time: Some("when".into()),
            ignore: vec!["note".into()],
            ..SeriesOptions::default()
        };
        let series = read("a,note,when\n1,hello,5\n2,world,6\n", &options).unwrap();
        assert_eq!(series.names, ["a"]);
        assert_eq!(series.times, ["5", "6"]);
        let unknown = SeriesOptions {
            ignore: vec!["nothing".into()],
            ..SeriesOptions::default()
        };
        let error = read("a,b\n1,2\n", &unknown).unwrap_err().to_string();
        assert!(error.contains("no column 'nothing', but: a, b"), "{error}");
        let lenient = SeriesOptions {
            may_lack: true,
            ..options
        };
        let series = read("a,when\n1,5\n", &lenient).unwrap();
        assert_eq!(series.names, ["a"]);
        let series = read("a,when,note\n1,5,hello\n", &lenient).unwrap();
        assert_eq!(series.names, ["a"]);
    }

    #[test]
    fn columns_that_do_not_change_are_found() {
        let series = read("a,b,c\n1,7,7\n2,7,7\n2,7,8\n", &SeriesOptions::default()).unwrap();
        assert_eq!(series.still(), ["b"]);
    }
}
