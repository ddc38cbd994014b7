//! The piece of a file that can be found.

use std::ops::Range;
use std::path::PathBuf;
use std::time::SystemTime;

/// A part of a file that is indexed and found as one: a few paragraphs, a
/// function, a table row, about 180 tokens.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Passage {
    /// The text as a person reads it. Line ends are `\n`, and there are no other control
    /// characters but tabs, so that it may be printed on a terminal.
    pub text: String,
    /// Headings above it, outermost first (chapter, section, or enclosing function).
    pub headings: Vec<String>,
    /// Lines of the file, first and one past the last, counted from 1; empty where
    /// the format has no lines (PDF, DOCX, EPUB).
    pub lines: Range<u32>,
    /// Page (PDF), chapter (EPUB), row (tables), element (a list in JSON), line (JSON
    /// Lines) or message (mbox), counted from 1.
    pub part: Option<u32>,
    /// Bytes of the file, as it is stored, that it came from; empty where the format is
    /// packed. They may hold more than the text: marks of the format, or all of a cell,
    /// row or mail of which this is a part.
    pub bytes: Range<u64>,
}

impl Passage {
    /// What encoders and the lexical index see: the heading trail and the text,
    /// and where in it the text starts.
    pub fn searchable(&self) -> (String, usize) {
        if self.headings.is_empty() {
            return (self.text.clone(), 0);
        }
        let mut all = self.headings.join(" > ");
        all.push('\n');
        let start = all.len();
        all.push_str(&self.text);
        (all, start)
    }
}

/// A file that the walk found; nothing of it has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Last change, as the file system says.
    pub modified: SystemTime,
}
