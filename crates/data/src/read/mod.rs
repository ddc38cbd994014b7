//! One file in, its passages out.

pub(crate) mod archive;
mod code;
mod html;
mod json;
mod markdown;
mod notebook;
mod rst;
mod table;
mod text;

use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::chunk::ChunkOptions;
use crate::decode::Source;
use crate::error::Problem;
use crate::flow::Flow;
use crate::languages;
use crate::{FileEntry, Format, Passage, ReadError};

/// The limits of reading. Whatever a file holds, reading it ends, and takes memory
/// in the order of the larger of `max_file_size` and `max_unpacked_size`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOptions {
    /// The size of passages.
    pub chunk: ChunkOptions,
    /// Larger files are skipped. Bytes; default 64 MiB.
    pub max_file_size: u64,
    /// What a packed file (DOCX, EPUB, PDF, mail) may unpack to in all, and how
    /// much text the passages of any one file may hold. Bytes; default 256 MiB.
    pub max_unpacked_size: u64,
    /// A file of more passages fails. Default 1,000,000.
    pub max_passages_per_file: usize,
    /// A program that reads PDF files in a process of its own, where a hang, a crash
    /// or a memory bomb harms nobody: it is started as `WORKER __read-pdf FILE` and
    /// must then run the worker. None (default): PDF files are read in this
    /// process, without `pdf_timeout` and `pdf_max_memory`.
    pub pdf_worker: Option<PathBuf>,
    /// After this time the PDF worker is ended and the file fails. Default 30 s.
    pub pdf_timeout: Duration,
    /// Address space of the PDF worker. Bytes; default 1 GiB.
    pub pdf_max_memory: u64,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            chunk: ChunkOptions::default(),
            max_file_size: 64 << 20,
            max_unpacked_size: 256 << 20,
            max_passages_per_file: 1_000_000,
            pdf_worker: None,
            pdf_timeout: Duration::from_secs(30),
            pdf_max_memory: 1 << 30,
        }
    }
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its passages in the order of the file; at least one.
    pub passages: Vec<Passage>,
    /// What it was read as.
    pub format: Format,
    /// BLAKE3 of the file's bytes, 64 hexadecimal digits; the same as
    /// [`content_hash`] gives.
    pub content_hash: String,
}

/// Reads a file.
///
/// # Errors
/// Skipped: no regular file, empty, over `max_file_size`, no text, no supported
/// format. Failed: cannot be read, damaged, or over a limit of the options.
pub fn read(entry: &FileEntry, options: &ReadOptions) -> Result<Document, ReadError> {
    read_path(&entry.path, options).map_err(|problem| problem.at(&entry.path))
}

fn read_path(path: &Path, options: &ReadOptions) -> Result<Document, Problem> {
    let bytes = load(path, options.max_file_size)?;
    if bytes.is_empty() {
        return Err(Problem::skip("is empty", ""));
    }
    let format = Format::detect(path, &bytes)?;
    let passages = read_bytes(&bytes, format, options)?;
    if passages.is_empty() {
        return Err(Problem::skip("holds no text", ""));
    }
    Ok(Document {
        passages,
        format,
        content_hash: blake3::hash(&bytes).to_hex().to_string(),
    })
}

fn read_bytes(
    bytes: &[u8],
    format: Format,
    options: &ReadOptions,
) -> Result<Vec<Passage>, Problem> {
    let declared = match format {
        Format::Html => html::declared_encoding(bytes),
        _ => None,
    };
    let source = Source::decode_declared(bytes, declared)?;
    let mut flow = Flow::new(Some(&source), options);
    let text: &str = &source.text;
    match format {
        Format::Markdown => markdown::read(text, &mut flow),
        Format::Html => html::read(text, 0, &mut flow),
        Format::ReStructuredText => rst::read(text, &mut flow),
        Format::Csv => table::read(text, table::delimiter(text), &mut flow),
        Format::Tsv => table::read(text, b'\t', &mut flow),
        Format::Json => json::read(text, &mut flow),
        Format::JsonLines => json::read_lines(text, &mut flow),
        Format::Notebook => notebook::read(text, &mut flow),
        Format::Code(language) => match languages::by_name(language) {
            Some(language) => code::read(text, language, &mut flow),
            None => text::read(text, &mut flow),
        },
        _ => text::read(text, &mut flow),
    }?;
    flow.finish()
}

/// BLAKE3 of a file's bytes as 64 hexadecimal digits, in constant memory. Says
/// whether a file changed at the cost of reading it once.
///
/// # Errors
/// Skipped: no regular file. Failed: cannot be read.
pub fn content_hash(path: &Path) -> Result<String, ReadError> {
    let hash = || {
        let (file, _) = open(path, u64::MAX)?;
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_reader(file)
            .map_err(|error| Problem::io(&error))?;
        Ok(hasher.finalize().to_hex().to_string())
    };
    hash().map_err(|problem: Problem| problem.at(path))
}

fn load(path: &Path, max_file_size: u64) -> Result<Vec<u8>, Problem> {
    let (file, size) = open(path, max_file_size)?;
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    // The file may have grown since.
    file.take(max_file_size.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Problem::io(&error))?;
    if bytes.len() as u64 > max_file_size {
        return Err(too_large(max_file_size));
    }
    Ok(bytes)
}

/// Opens regular files only: opening a pipe would wait for its writer.
fn open(path: &Path, max_file_size: u64) -> Result<(File, u64), Problem> {
    let metadata = std::fs::metadata(path).map_err(|error| Problem::io(&error))?;
    check_metadata(&metadata, max_file_size)?;
    let file = File::open(path).map_err(|error| Problem::io(&error))?;
    Ok((file, metadata.len()))
}

pub(crate) fn check_metadata(metadata: &Metadata, max_file_size: u64) -> Result<(), Problem> {
    if let Some(kind) = irregular(metadata) {
        return Err(Problem::skip(format!("is a {kind}"), ""));
    }
    if metadata.len() > max_file_size {
        return Err(too_large(max_file_size));
    }
    Ok(())
}

fn too_large(max_file_size: u64) -> Problem {
    Problem::skip(
        format!("is larger than {max_file_size} bytes"),
        "raise --max-file-size to read it",
    )
}

/// What the path is, if it is no regular file.
fn irregular(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() {
        return None;
    }
    if kind.is_dir() {
        return Some("folder");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return Some("pipe");
        }
        if kind.is_socket() {
            return Some("socket");
        }
        if kind.is_block_device() || kind.is_char_device() {
            return Some("device");
        }
    }
    Some("special file")
}

/// Counts what became of files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Files that gave passages.
    pub read: usize,
    /// Files that are not for reading.
    pub skipped: usize,
    /// Files that should have been read and could not be.
    pub failed: usize,
}

impl Summary {
    /// Counts one result of [`read`](read()).
    pub fn count<T>(&mut self, result: &Result<T, ReadError>) {
        match result {
            Ok(_) => self.read += 1,
            Err(error) => self.count_error(error),
        }
    }

    /// Counts an error, also one of the walk.
    pub fn count_error(&mut self, error: &ReadError) {
        match error {
            ReadError::Skipped(_) => self.skipped += 1,
            ReadError::Failed(_) => self.failed += 1,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary {
            read,
            skipped,
            failed,
        } = self;
        write!(f, "{read} read, {skipped} skipped, {failed} failed")
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
