//! Rows of numbers that the user names.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use keyfold_data::rows::{Missing, RowOptions, RowReader, Rows, RowsError, StreamFormat};

use crate::failure::wrong_use;

/// How rows are read.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct RowArgs {
    /// Numbers of a row, of bare 32-bit floats on standard input
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    width: Option<u32>,
    /// The tensor of a .safetensors file, array of an .npz or column of lists of a Parquet file
    #[arg(long, value_name = "NAME")]
    tensor: Option<String>,
    /// A column of a table that is left out, by name or number from 1 (repeatable)
    #[arg(long, value_name = "COLUMN")]
    ignore: Vec<String>,
    /// Leave out rows with missing or infinite numbers, instead of refusing them
    #[arg(long)]
    pub(super) skip_missing: bool,
}

impl RowArgs {
    fn options(&self) -> RowOptions {
        RowOptions {
            tensor: self.tensor.clone(),
            ignore: self.ignore.clone(),
            missing: match self.skip_missing {
                true => Missing::Skip,
                false => Missing::Refuse,
            },
            ..RowOptions::default()
        }
    }

    /// Opens a file, or standard input for `-`.
    pub(super) fn open(&self, path: &Path) -> anyhow::Result<RowReader> {
        if path == Path::new("-") {
            return Ok(self.stream()?);
        }
        if self.width.is_some() {
            return Err(wrong_use(
                "--width is for bare numbers on standard input, '-'",
            ));
        }
        Ok(RowReader::open(path, &self.options())?)
    }

    fn stream(&self) -> Result<RowReader, RowsError> {
        let format = match self.width {
            Some(width) => StreamFormat::Floats {
                width: width as usize,
            },
            None => StreamFormat::Detect,
        };
        let input = Box::new(std::io::stdin());
        RowReader::stream(input, "standard input", format, &self.options())
    }
}

/// Rows that are taken together.
const TOGETHER: usize = 4096;

/// How long a stream may be silent before Ctrl-C is asked for.
const SILENCE: Duration = Duration::from_millis(100);

/// What comes next.
pub(super) enum Next {
    Rows(Rows),
    /// A stream is silent.
    Nothing,
    End,
}

/// The rows of a file as they are read, or of standard input as they come.
pub(super) enum Chunks {
    File(Box<RowReader>),
    Stream {
        rows: Receiver<Result<Rows, RowsError>>,
        /// What came while rows were put together.
        failed: Option<RowsError>,
    },
}

impl Chunks {
    /// Opens a file, or standard input for `-`.
    pub(super) fn open(args: &RowArgs, path: &Path) -> anyhow::Result<Self> {
        if path != Path::new("-") {
            return Ok(Self::File(Box::new(args.open(path)?)));
        }
        // Reading waits for a stream, so it has a thread of its own, which hands over row by
        // row: no row waits there for others.
        let (sender, rows) = mpsc::sync_channel(TOGETHER);
        let args = args.clone();
        std::thread::spawn(move || {
            let mut reader = match args.stream() {
                Ok(reader) => reader,
                Err(error) => return drop(sender.send(Err(error))),
            };
            loop {
                let row = match reader.next(1) {
                    Ok(Some(row)) => Ok(row),
                    Ok(None) => return,
                    Err(error) => Err(error),
                };
                let failed = row.is_err();
                if sender.send(row).is_err() || failed {
                    return;
                }
            }
        });
        Ok(Self::Stream { rows, failed: None })
    }

    /// Some rows, soon.
    pub(super) fn next(&mut self) -> Result<Next, RowsError> {
        let (rows, failed) = match self {
            Self::File(reader) => {
                return Ok(reader.next(TOGETHER)?.map_or(Next::End, Next::Rows));
            }
            Self::Stream { rows, failed } => (rows, failed),
        };
        if let Some(error) = failed.take() {
            return Err(error);
        }
        let mut together = match rows.recv_timeout(SILENCE) {
            Ok(first) => first?,
            Err(RecvTimeoutError::Timeout) => return Ok(Next::Nothing),
            Err(RecvTimeoutError::Disconnected) => return Ok(Next::End),
        };
        while together.len() < TOGETHER
            && let Ok(next) = rows.try_recv()
        {
            match next {
                Ok(row) => together.values.extend(row.values),
                Err(error) => {
                    *failed = Some(error);
                    break;
                }
            }
        }
        Ok(Next::Rows(together))
    }
}

/// `8x8` as height and width.
pub(super) fn patch(text: &str) -> Result<[usize; 2], String> {
    let sides = text.split_once('x').and_then(|(height, width)| {
        let sides = [height.parse().ok()?, width.parse().ok()?];
        (sides[0] > 0 && sides[1] > 0).then_some(sides)
    });
    sides.ok_or_else(|| "write height and width, as in 8x8".to_owned())
}

/// Refuses a patch that does not fill a row.
pub(super) fn check_patch(patch: Option<[usize; 2]>, width: usize) -> anyhow::Result<()> {
    match patch {
        Some([h, w]) if h * w != width => Err(wrong_use(format!(
            "a patch of {h}x{w} has {} numbers, but a row has {width}",
            h * w
        ))),
        _ => Ok(()),
    }
}

/// The data of a command: files, or `-` alone.
pub(super) fn check_data(data: &[PathBuf]) -> anyhow::Result<()> {
    let stream = |path: &PathBuf| path == Path::new("-");
    if data.len() > 1 && data.iter().any(stream) {
        return Err(wrong_use("standard input, '-', cannot be mixed with files"));
    }
    Ok(())
}
