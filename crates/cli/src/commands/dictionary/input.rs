//! Rows of numbers that the user names.

use std::fs::File;
use std::io::{self, Read, Seek};
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
            return Ok(self.stream(None)?);
        }
        if self.width.is_some() {
            return Err(wrong_use(
                "--width is for bare numbers on standard input, '-'",
            ));
        }
        Ok(RowReader::open(path, &self.options())?)
    }

    /// Standard input, or a file that is read on as it grows.
    fn stream(&self, growing: Option<&Path>) -> Result<RowReader, RowsError> {
        let format = match self.width {
            Some(width) => StreamFormat::Floats {
                width: width as usize,
            },
            None => StreamFormat::Detect,
        };
        let Some(path) = growing else {
            let input = Box::new(io::stdin());
            return RowReader::stream(input, "standard input", format, &self.options());
        };
        let name = path.display().to_string();
        let file = File::open(path).map_err(|source| RowsError::Io {
            name: name.clone(),
            source,
        })?;
        RowReader::stream(Box::new(Growing(file)), &name, format, &self.options())
    }
}

/// A file that others write on: at its end, more is waited for.
struct Growing(File);

impl Read for Growing {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.0.read(out)?;
            if count > 0 || out.is_empty() {
                return Ok(count);
            }
            if self.0.metadata()?.len() < self.0.stream_position()? {
                return Err(io::Error::other("it became shorter while it was watched"));
            }
            std::thread::sleep(SILENCE);
        }
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
        match path == Path::new("-") {
            true => Ok(Self::stream(args, None)),
            false => Ok(Self::File(Box::new(args.open(path)?))),
        }
    }

    /// A file whose rows never end: at its end, more is waited for.
    pub(super) fn watch(args: &RowArgs, path: &Path) -> anyhow::Result<Self> {
        let ending = path.extension().and_then(|e| e.to_str());
        if args.width.is_none() && !matches!(ending, Some("csv" | "tsv" | "txt")) {
            return Err(wrong_use(format!(
                "{}: --watch reads .csv and .tsv as they grow, or bare 32-bit floats with --width",
                path.display()
            )));
        }
        // Now, and not in a thread: a file that is not there is no stream that is silent.
        File::open(path).map_err(|e| wrong_use(format!("cannot read {}: {e}", path.display())))?;
        Ok(Self::stream(args, Some(path.to_owned())))
    }

    fn stream(args: &RowArgs, growing: Option<PathBuf>) -> Self {
        // Reading waits for a stream, so it has a thread of its own, which hands over row by
        // row: no row waits there for others.
        let (sender, rows) = mpsc::sync_channel(TOGETHER);
        let args = args.clone();
        std::thread::spawn(move || {
            let mut reader = match args.stream(growing.as_deref()) {
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
        Self::Stream { rows, failed: None }
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_growing_file_is_read_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.csv");
        std::fs::write(&path, "1,2\n3,").unwrap();
        let mut growing = Growing(File::open(&path).unwrap());
        let mut read = [0; 64];
        assert_eq!(growing.read(&mut read).unwrap(), 6);
        let mut file = File::options().append(true).open(&path).unwrap();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(SILENCE);
            file.write_all(b"4\n").unwrap();
        });
        assert_eq!(growing.read(&mut read).unwrap(), 2);
        assert_eq!(&read[..2], b"4\n");
        writer.join().unwrap();
        std::fs::write(&path, "1").unwrap();
        assert!(growing.read(&mut read).is_err());
    }
}
