//! Why a file gives no passages, in one line.

use std::fmt;
use std::path::{Path, PathBuf};

/// What is wrong with one file and what can be done about it. Renders as
/// `path: why (what to do)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, in plain words.
    pub why: String,
    /// What the user can do; empty where nothing needs doing.
    pub what_to_do: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)?;
        if self.what_to_do.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", self.what_to_do)
    }
}

/// A file gave no passages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The file is fine, but not for reading: no text, empty, too large, a pipe.
    #[error("{0}")]
    Skipped(Notice),
    /// The file should have been read and could not be: damaged, unreadable, or
    /// it met a limit while being unpacked.
    #[error("{0}")]
    Failed(Notice),
}

impl ReadError {
    /// The file, the reason and the advice.
    pub fn notice(&self) -> &Notice {
        match self {
            ReadError::Skipped(notice) | ReadError::Failed(notice) => notice,
        }
    }
}

/// A path that the walk met and gives no [`FileEntry`](crate::FileEntry) for. It
/// is the same two cases as for a file that is read, so it is the same type.
///
/// A `Failed` one may be a folder; nothing is known then about what lies below it.
pub type WalkError = ReadError;

/// A reason without its path, as the readers make it; [`Problem::at`] adds the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    Skip(String, String),
    Fail(String, String),
}

impl Problem {
    pub(crate) fn skip(why: impl Into<String>, what_to_do: impl Into<String>) -> Self {
        Problem::Skip(why.into(), what_to_do.into())
    }

    pub(crate) fn fail(why: impl Into<String>, what_to_do: impl Into<String>) -> Self {
        Problem::Fail(why.into(), what_to_do.into())
    }

    /// An error of the file system while reading.
    pub(crate) fn io(error: &std::io::Error) -> Self {
        let what_to_do = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "give yourself the right to read it",
            std::io::ErrorKind::NotFound => "it is gone, or the path is misspelt",
            _ => "check the disk",
        };
        Problem::fail(format!("cannot be read: {error}"), what_to_do)
    }

    pub(crate) fn at(self, path: &Path) -> ReadError {
        let notice = |why: String, what_to_do: String| Notice {
            path: path.to_path_buf(),
            why: one_line(&why),
            what_to_do: one_line(&what_to_do),
        };
        match self {
            Problem::Skip(why, what_to_do) => ReadError::Skipped(notice(why, what_to_do)),
            Problem::Fail(why, what_to_do) => ReadError::Failed(notice(why, what_to_do)),
        }
    }
}

/// Messages of other libraries may hold line breaks or quote the file at length.
fn one_line(text: &str) -> String {
    let mut line: String = text
        .chars()
        .take(300)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_with_path_and_advice() {
        let error = Problem::fail("torn\nin two\x1b", "mend it").at(Path::new("a/b.pdf"));
        assert_eq!(error.to_string(), "a/b.pdf: torn in two (mend it)");
        assert!(matches!(error, ReadError::Failed(_)));
        let error = Problem::skip("empty", "").at(Path::new("c"));
        assert_eq!(error.to_string(), "c: empty");
        assert_eq!(error.notice().path, Path::new("c"));
    }
}
