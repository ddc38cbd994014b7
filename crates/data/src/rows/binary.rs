//! Rows of numbers of one type, one after the other.

use std::io::{ErrorKind, Read};

use super::numbers::Kind;
use super::{RowsError, Source};

/// Bytes that are read at a time.
const BLOCK: usize = 1 << 20;

/// A stream of rows.
pub(super) struct Binary {
    input: Box<dyn Read + Send>,
    kind: Kind,
    big_endian: bool,
    width: usize,
    /// Rows that are still to come; unknown of a stream without an end.
    left: Option<u64>,
    bytes: Vec<u8>,
}

/// How an array lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) kind: Kind,
    pub(super) big_endian: bool,
    /// Columns first, as Fortran has it.
    pub(super) by_columns: bool,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl Binary {
    /// Bare `f32` until the stream ends.
    pub(super) fn endless(input: Box<dyn Read + Send>, width: usize) -> Self {
        Self {
            input,
            kind: Kind::F32,
            big_endian: false,
            width,
            left: None,
            bytes: Vec::new(),
        }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Appends at most `most` rows to `out`; none at the end.
    pub(super) fn next(
        &mut self,
        most: usize,
        out: &mut Vec<f32>,
        name: &str,
        row: u64,
    ) -> Result<(), RowsError> {
        let row_bytes = self.width.saturating_mul(self.kind.size());
        let together = (BLOCK / row_bytes).max(1).min(most);
        let rows = match self.left {
            Some(left) => together.min(usize::try_from(left).unwrap_or(usize::MAX)),
            None => together,
        };
        if rows == 0 {
            return Ok(());
        }
        // By `take`, so that a width that no memory holds ends with the file.
        self.bytes.clear();
        let wanted = rows.saturating_mul(row_bytes);
        let got = (&mut self.input)
            .take(wanted as u64)
            .read_to_end(&mut self.bytes)
            .map_err(|source| RowsError::io(name, source))?;
        if got < wanted && (self.left.is_some() || got % row_bytes != 0) {
            let row = row + (got / row_bytes) as u64 + 1;
            return Err(RowsError::format(
                name,
                format!(
                    "it ends inside row {row} (rows of {row_bytes} bytes); it is cut off, or of another width"
                ),
            ));
        }
        self.kind.decode(self.big_endian, &self.bytes, out);
        if let Some(left) = &mut self.left {
            *left -= rows as u64;
        }
        Ok(())
    }
}

/// Rows that lie in `input` as `layout` says.
pub(super) fn open(
    input: Box<dyn Read + Send>,
    layout: Layout,
    name: &str,
) -> Result<Source, RowsError> {
    let Layout {
        kind,
        big_endian,
        by_columns,
        rows,
        width,
    } = layout;
    if width == 0 {
        return Err(RowsError::format(name, "its rows hold no numbers"));
    }
    // A single row or column is the same either way.
    if !by_columns || rows <= 1 || width == 1 {
        return Ok(Source::Binary(Binary {
            input,
            kind,
            big_endian,
            width,
            left: Some(rows as u64),
            bytes: Vec::new(),
        }));
    }
    let cut_off = || RowsError::format(name, "it is cut off");
    let wanted = rows
        .checked_mul(width)
        .and_then(|n| n.checked_mul(kind.size()))
        .ok_or_else(cut_off)?;
    let mut bytes = Vec::new();
    match input.take(wanted as u64).read_to_end(&mut bytes) {
        Ok(got) if got == wanted => {}
        Ok(_) => return Err(cut_off()),
        Err(source) if source.kind() == ErrorKind::UnexpectedEof => return Err(cut_off()),
        Err(source) => return Err(RowsError::io(name, source)),
    }
    let mut columns = Vec::with_capacity(rows * width);
    kind.decode(big_endian, &bytes, &mut columns);
    let mut values = vec![0.0; rows * width];
    for (j, column) in columns.chunks_exact(rows).enumerate() {
        for (i, &x) in column.iter().enumerate() {
            values[i * width + j] = x;
        }
    }
    Ok(Source::Memory {
        values,
        width,
        at: 0,
    })
}
