//! One file in, its passages out.

pub(crate) mod archive;
mod code;
mod html;
mod json;
mod mail;
mod markdown;
mod notebook;
mod office;
mod pdf;
mod rst;
mod table;
mod text;
mod vectors;

use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use pdf::pdf_worker_main;
pub use vectors::read_vectors;

use archive::Archive;

use crate::chunk::ChunkOptions;
use crate::decode::Source;
use crate::error::Problem;
use crate::flow::Flow;
use crate::languages;
use crate::{FileEntry, Format, Notice, Passage, ReadError};

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
    /// must then run [`pdf_worker_main`]. None (default): PDF files are read in this
    /// process, without `pdf_timeout` and `pdf_max_memory`, and a panic of their parser is
    /// caught but passes through the process's panic hook.
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
    /// Parts that could not be read (pages of a PDF), one line each.
    pub warnings: Vec<Notice>,
}

/// Reads a file.
///
/// # Errors
/// Skipped: no regular file, empty, over `max_file_size`, no text, no supported
/// format. Failed: cannot be read, damaged, or over a limit of the options.
pub fn read(entry: &FileEntry, options: &ReadOptions) -> Result<Document, ReadError> {
    let read = || read_path(&entry.path, options);
    // The parsers are other people's work and meet anything; a panic of theirs must not
    // end a run over many files.
    let result = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(Problem::fail(
            "broke its reader",
            "report it with the file, if you can",
        ))
    });
    result.map_err(|problem| problem.at(&entry.path))
}

fn read_path(path: &Path, options: &ReadOptions) -> Result<Document, Problem> {
    let bytes = load(path, options.max_file_size)?;
    if bytes.is_empty() {
        return Err(Problem::skip("is empty", ""));
    }
    let format = Format::detect(path, &bytes)?;
    let (passages, warnings) = match format {
        Format::Pdf | Format::Docx | Format::Odt | Format::Epub => {
            let mut flow = Flow::new(None, options);
            read_packed(path, &bytes, format, &mut flow)?;
            flow.finish()
        }
        Format::Email | Format::Mbox => {
            let source = Source::of_bytes(&bytes);
            let mut flow = Flow::new(Some(&source), options);
            match format {
                Format::Mbox => mail::read_mbox(&bytes, &mut flow),
                _ => mail::read_mail(&bytes, &mut flow),
            }?;
            flow.finish()
        }
        _ => {
            let declared = match format {
                Format::Html => html::declared_encoding(&bytes),
                _ => None,
            };
            let source = Source::decode(&bytes, declared)?;
            let mut flow = Flow::new(Some(&source), options);
            read_text(&source.text, format, &mut flow)?;
            flow.finish()
        }
    }?;
    if passages.is_empty() {
        return Err(match format {
            Format::Pdf => {
                Problem::skip("holds no text, perhaps pictures of it", "run OCR over it")
            }
            _ => Problem::skip("holds no text", ""),
        });
    }
    let notice = |why| Notice {
        path: path.to_path_buf(),
        why,
        what_to_do: String::new(),
    };
    Ok(Document {
        passages,
        format,
        content_hash: blake3::hash(&bytes).to_hex().to_string(),
        warnings: warnings.into_iter().map(notice).collect(),
    })
}

fn read_packed(path: &Path, bytes: &[u8], format: Format, flow: &mut Flow) -> Result<(), Problem> {
    if format == Format::Pdf {
        return pdf::read(path, bytes, flow);
    }
    let mut archive = Archive::open(bytes, flow.options())?;
    match format {
        Format::Odt => office::odt::read(&mut archive, flow),
        Format::Epub => office::epub::read(&mut archive, flow),
        _ => office::docx::read(&mut archive, flow),
    }
}

fn read_text(text: &str, format: Format, flow: &mut Flow) -> Result<(), Problem> {
    match format {
        Format::Markdown => markdown::read(text, flow),
        Format::Html => html::read(text, 0, 0, flow),
        Format::ReStructuredText => rst::read(text, flow),
        Format::Csv => table::read(text, table::delimiter(text), flow),
        Format::Tsv => table::read(text, b'\t', flow),
        Format::Json => json::read(text, flow),
        Format::JsonLines => json::read_lines(text, flow),
        Format::Notebook => notebook::read(text, flow),
        Format::Code(language) => match languages::by_name(language) {
            Some(language) => code::read(text, language, flow),
            None => text::read(text, flow),
        },
        _ => text::read(text, flow),
    }
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
