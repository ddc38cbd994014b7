//! What a file is, by its name and its first bytes.

use std::fmt;
use std::path::Path;

use crate::error::Problem;
use crate::languages;

/// The format that a file was read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Paragraphs parted by blank lines.
    PlainText,
    /// Markdown.
    Markdown,
    /// HTML and XHTML.
    Html,
    /// reStructuredText.
    ReStructuredText,
    /// Source code or configuration, with the name of its language.
    Code(&'static str),
    /// Comma-separated values (also with semicolons).
    Csv,
    /// Tab-separated values.
    Tsv,
    /// One JSON value.
    Json,
    /// One JSON value a line.
    JsonLines,
    /// A Jupyter notebook.
    Notebook,
    /// PDF.
    Pdf,
    /// Word (Office Open XML).
    Docx,
    /// OpenDocument text.
    Odt,
    /// An electronic book.
    Epub,
    /// One mail.
    Email,
    /// A box of mails.
    Mbox,
    /// The rows of a document, made elsewhere (`.npy`); see
    /// [`read_vectors`](crate::read_vectors).
    Vectors,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::PlainText => "plain text",
            Format::Markdown => "Markdown",
            Format::Html => "HTML",
            Format::ReStructuredText => "reStructuredText",
            Format::Code(language) => language,
            Format::Csv => "CSV",
            Format::Tsv => "TSV",
            Format::Json => "JSON",
            Format::JsonLines => "JSON Lines",
            Format::Notebook => "Jupyter notebook",
            Format::Pdf => "PDF",
            Format::Docx => "DOCX",
            Format::Odt => "ODT",
            Format::Epub => "EPUB",
            Format::Email => "email",
            Format::Mbox => "mbox",
            Format::Vectors => "token vectors",
        })
    }
}

impl Format {
    /// Says what a file is. Signatures in the bytes count more than the name, since
    /// files are misnamed; among text formats the name decides.
    pub(crate) fn detect(path: &Path, bytes: &[u8]) -> Result<Format, Problem> {
        let head = &bytes[..bytes.len().min(1024)];
        let extension = extension(path);
        let pdf_mark = head.windows(5).any(|w| w == b"%PDF-");
        if head.starts_with(b"%PDF-") || (pdf_mark && !is_text(head)) {
            return Ok(Format::Pdf);
        }
        if head.starts_with(b"PK\x03\x04") {
            return crate::read::archive::detect(bytes);
        }
        if let Some((kind, what_to_do)) = signature(head) {
            return Err(Problem::skip(format!("is {kind}"), what_to_do));
        }
        if let Some(packed) = packed_by_name(&extension) {
            return Err(Problem::fail(
                format!("is named as {packed} and is none"),
                "it may be damaged; save it again",
            ));
        }
        Ok(text_by_name(path, &extension).unwrap_or_else(|| text_by_content(head)))
    }
}

fn extension(path: &Path) -> String {
    let extension = path.extension().unwrap_or_default();
    extension.to_string_lossy().to_ascii_lowercase()
}

/// The beginning of a file is UTF-8 (cut anywhere) without zero bytes.
fn is_text(head: &[u8]) -> bool {
    let cut_character = |error: std::str::Utf8Error| error.error_len().is_none();
    !head.contains(&0) && std::str::from_utf8(head).err().is_none_or(cut_character)
}

fn packed_by_name(extension: &str) -> Option<Format> {
    Some(match extension {
        "pdf" => Format::Pdf,
        "docx" | "docm" | "dotx" => Format::Docx,
        "odt" | "ott" => Format::Odt,
        "epub" => Format::Epub,
        _ => return None,
    })
}

fn text_by_name(path: &Path, extension: &str) -> Option<Format> {
    Some(match extension {
        "txt" | "text" | "log" => Format::PlainText,
        "md" | "markdown" | "mdown" | "mkd" | "mdx" | "qmd" | "rmd" => Format::Markdown,
        "html" | "htm" | "xhtml" => Format::Html,
        "rst" | "rest" => Format::ReStructuredText,
        "csv" => Format::Csv,
        "tsv" | "tab" => Format::Tsv,
        "json" | "geojson" | "webmanifest" => Format::Json,
        "jsonl" | "ndjson" | "jsonlines" => Format::JsonLines,
        "ipynb" => Format::Notebook,
        "eml" => Format::Email,
        "mbox" | "mbx" => Format::Mbox,
        _ => Format::Code(languages::by_path(path, extension)?.name),
    })
}

/// For names that say nothing.
fn text_by_content(head: &[u8]) -> Format {
    let start = String::from_utf8_lossy(head);
    let start = start.trim_start_matches('\u{feff}').trim_start();
    let lower = start
        .get(..start.len().min(64))
        .unwrap_or(start)
        .to_ascii_lowercase();
    if lower.starts_with("<!doctype html") || lower.starts_with("<html") {
        return Format::Html;
    }
    if let Some(language) = languages::by_shebang(start) {
        return Format::Code(language.name);
    }
    if begins_like_mbox(start) {
        return Format::Mbox;
    }
    if begins_like_mail(start) {
        return Format::Email;
    }
    Format::PlainText
}

/// `From someone@example.org Mon Jan  1 12:00:00 2024`
pub(crate) fn is_mbox_separator(line: &str) -> bool {
    let is_year = |word: &str| word.len() == 4 && word.bytes().all(|b| b.is_ascii_digit());
    let is_time = |word: &str| word.contains(':') && word.starts_with(|c: char| c.is_ascii_digit());
    line.strip_prefix("From ").is_some_and(|rest| {
        rest.split_whitespace().any(is_year) && rest.split_whitespace().any(is_time)
    })
}

/// A separator and a header.
fn begins_like_mbox(start: &str) -> bool {
    let mut lines = start.lines();
    let is_header = |line: &str| {
        let name = line.split_once(':').map_or("", |(name, _)| name);
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    lines.next().is_some_and(is_mbox_separator) && lines.next().is_some_and(is_header)
}

/// Begins with header lines, among them one that only mail has.
fn begins_like_mail(start: &str) -> bool {
    let mut is_mail = false;
    for line in start.lines() {
        if line.is_empty() {
            break;
        }
        if line.starts_with([' ', '\t']) {
            continue;
        }
        let Some((name, _)) = line.split_once(':') else {
            // The last line may be cut off.
            return is_mail && start.ends_with(line);
        };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return false;
        }
        let name = name.to_ascii_lowercase();
        let names = [
            "message-id",
            "received",
            "return-path",
            "delivered-to",
            "mime-version",
        ];
        is_mail |= names.contains(&name.as_str());
    }
    is_mail
}

/// Files that begin like this hold no text, or none that is read here.
fn signature(head: &[u8]) -> Option<(&'static str, &'static str)> {
    const UNPACK: &str = "unpack it to have its files read";
    let known: [(&[u8], &str, &str); 26] = [
        (b"PK\x05\x06", "an empty zip archive", ""),
        (b"\x89PNG", "a picture", ""),
        (b"\xff\xd8\xff", "a picture", ""),
        (b"GIF8", "a picture", ""),
        (b"II*\0", "a picture", ""),
        (b"MM\0*", "a picture", ""),
        (b"\0\0\x01\0", "a picture", ""),
        (b"8BPS", "a picture", ""),
        (b"OggS", "a sound or film", ""),
        (b"fLaC", "a sound", ""),
        (b"ID3", "a sound", ""),
        (b"RIFF", "a sound, picture or film", ""),
        (b"\x1aE\xdf\xa3", "a film", ""),
        (b"\x7fELF", "a program", ""),
        (b"\xcf\xfa\xed\xfe", "a program", ""),
        (b"\xca\xfe\xba\xbe", "a program", ""),
        (b"\0asm", "a program", ""),
        (b"SQLite format 3\0", "a database", "export it as CSV"),
        (b"\x1f\x8b", "compressed", UNPACK),
        (b"BZh", "compressed", UNPACK),
        (b"\xfd7zXZ\0", "compressed", UNPACK),
        (b"\x28\xb5\x2f\xfd", "compressed", UNPACK),
        (b"7z\xbc\xaf\x27\x1c", "compressed", UNPACK),
        (b"Rar!", "compressed", UNPACK),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
            "an old or encrypted office file",
            "save it as DOCX, ODT or PDF without a password",
        ),
        (b"{\\rtf", "RTF", "save it as DOCX, ODT or PDF"),
    ];
    // Marks made of letters may begin a text too.
    let is_text = is_text(head);
    known
        .into_iter()
        .find(|(mark, kind, _)| head.starts_with(mark) && (!is_text || *kind == "RTF"))
        .map(|(_, kind, what_to_do)| (kind, what_to_do))
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
