//! Finding files: ripgrep's walk (`ignore` crate), with what is met and not
//! given out reported instead of dropped.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use ignore::overrides::{Override, OverrideBuilder};
use ignore::types::{Types, TypesBuilder};
use ignore::{Match, WalkBuilder};

use crate::error::Problem;
use crate::{FileEntry, ReadOptions, WalkError};

/// The folder in which a store lies; never walked into.
const STORE_FOLDER: &str = ".keyfold";

/// Which files the walk gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkOptions {
    /// Globs as in `rg --glob`: the syntax of .gitignore, relative to the root being
    /// walked; a file must match one of them, `!` in front excludes, the last match
    /// decides, and a match beats ignore files. Empty: all files.
    pub globs: Vec<String>,
    /// File types by ripgrep's names (`rust`, `py`, `markdown`, ...); a file must be
    /// of one of them. Empty: all types.
    pub types: Vec<String>,
    /// Also files and folders whose name starts with a dot. Off by default.
    pub hidden: bool,
    /// Obey .gitignore, .ignore, .git/info/exclude and git's global excludes, also
    /// outside git repositories. On by default.
    pub ignore_files: bool,
    /// Follow symbolic links found on the way (a root that is a link is always
    /// followed). Off by default; loops are reported, not entered.
    pub follow_links: bool,
    /// Larger files are reported as skipped. Bytes; default as in [`ReadOptions`].
    pub max_file_size: u64,
}

impl Default for WalkOptions {
    fn default() -> Self {
        Self {
            globs: Vec::new(),
            types: Vec::new(),
            hidden: false,
            ignore_files: true,
            follow_links: false,
            max_file_size: ReadOptions::default().max_file_size,
        }
    }
}

/// A glob or type name that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The glob does not parse.
    #[error(
        "glob \"{glob}\": {why} (write it as in .gitignore, for example \"*.md\" or \"!old/**\")"
    )]
    Glob {
        /// As the user wrote it.
        glob: String,
        /// What the parser says.
        why: String,
    },
    /// No such file type.
    #[error(
        "unknown file type \"{0}\" (use one of ripgrep's names, such as rust, py, markdown, or a glob)"
    )]
    Type(String),
}

/// Says whether a path passes globs and types, with the same meaning as in
/// [`WalkOptions`]. For filtering paths that were found before.
#[derive(Debug, Clone)]
pub struct PathFilter {
    globs: Override,
    types: Types,
}

impl PathFilter {
    /// A filter for paths below `root`, or for paths relative to it; with an empty
    /// root, paths are taken as they are.
    ///
    /// # Errors
    /// A glob that does not parse, an unknown type.
    pub fn new(root: &Path, globs: &[String], types: &[String]) -> Result<Self, FilterError> {
        let mut overrides = OverrideBuilder::new(root);
        for glob in globs {
            overrides
                .add(glob)
                .map_err(|error| glob_error(glob, &error))?;
        }
        let globs = overrides
            .build()
            .map_err(|error| glob_error(&globs.join(", "), &error))?;
        let mut builder = TypesBuilder::new();
        builder.add_defaults();
        for name in types {
            builder.select(name);
        }
        let types = builder.build().map_err(|error| match error {
            ignore::Error::UnrecognizedFileType(name) => FilterError::Type(name),
            other => FilterError::Type(other.to_string()),
        })?;
        Ok(Self { globs, types })
    }

    /// True if a walk with these globs and types would give the file (ignore files
    /// and hidden names aside).
    pub fn passes(&self, path: &Path) -> bool {
        // The walk would not enter an excluded folder.
        let excluded = |folder: &Path| self.globs.matched(folder, true).is_ignore();
        let mut folders = path.ancestors().skip(1);
        if folders.any(|folder| folder != Path::new("") && excluded(folder)) {
            return false;
        }
        match self.globs.matched(path, false) {
            Match::Ignore(_) => false,
            Match::Whitelist(_) => true,
            Match::None => !self.types.matched(path, false).is_ignore(),
        }
    }
}

fn glob_error(glob: &str, error: &ignore::Error) -> FilterError {
    let why = match error {
        ignore::Error::Glob { err, .. } => err.clone(),
        other => other.to_string(),
    };
    FilterError::Glob {
        glob: glob.to_string(),
        why,
    }
}

/// The files below `roots`, in a stable order (root by root, by name within each
/// folder). A root that is a file is given whatever the globs and ignore files say,
/// as ripgrep does. Overlapping roots give their common files once per root.
///
/// What is met and cannot be given is an `Err` item and the walk goes on: pipes,
/// sockets, devices and files over the size limit (skipped, never opened), folders
/// that cannot be listed, roots that do not exist, link loops (failed).
///
/// # Errors
/// A glob or type that means nothing; nothing is walked then.
pub fn walk(roots: &[PathBuf], options: &WalkOptions) -> Result<Walk, FilterError> {
    let walks = roots
        .iter()
        .map(|root| walk_root(root, options))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Walk {
        entries: walks.into_iter().flatten(),
        max_file_size: options.max_file_size,
    })
}

fn walk_root(root: &Path, options: &WalkOptions) -> Result<ignore::Walk, FilterError> {
    let filter = PathFilter::new(root, &options.globs, &options.types)?;
    // A lone "-" would mean standard input to the walker.
    let start = if root == Path::new("-") {
        Path::new("./-")
    } else {
        root
    };
    Ok(WalkBuilder::new(start)
        .hidden(!options.hidden)
        .parents(options.ignore_files)
        .ignore(options.ignore_files)
        .git_ignore(options.ignore_files)
        .git_global(options.ignore_files)
        .git_exclude(options.ignore_files)
        .require_git(false)
        .follow_links(options.follow_links)
        .overrides(filter.globs)
        .types(filter.types)
        .sort_by_file_name(OsStr::cmp)
        .filter_entry(|entry| entry.file_name() != STORE_FOLDER)
        .build())
}

/// The iterator of [`walk`].
pub struct Walk {
    entries: std::iter::Flatten<std::vec::IntoIter<ignore::Walk>>,
    max_file_size: u64,
}

impl Iterator for Walk {
    type Item = Result<FileEntry, WalkError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.entries.next()? {
                Err(error) => return Some(Err(walk_error(&error))),
                Ok(entry) => {
                    if let Some(item) = self.item(&entry) {
                        return Some(item);
                    }
                }
            }
        }
    }
}

impl Walk {
    /// None: a folder, or a link that is not followed.
    fn item(&self, entry: &ignore::DirEntry) -> Option<Result<FileEntry, WalkError>> {
        let is_root = entry.depth() == 0;
        let metadata = if is_root {
            // A root that is a link is followed.
            fs::metadata(entry.path())
        } else {
            match entry.metadata() {
                Ok(metadata) => Ok(metadata),
                Err(error) => return Some(Err(walk_error(&error))),
            }
        };
        let metadata = match metadata {
            Ok(metadata) => metadata,
            Err(error) => return Some(Err(Problem::io(&error).at(entry.path()))),
        };
        if metadata.is_dir() || metadata.is_symlink() {
            return None;
        }
        let checked = crate::read::check_metadata(&metadata, self.max_file_size);
        Some(match checked {
            Err(problem) => Err(problem.at(entry.path())),
            Ok(()) => Ok(FileEntry {
                path: entry.path().to_path_buf(),
                size: metadata.len(),
                modified: metadata.modified().unwrap_or(std::time::UNIX_EPOCH),
            }),
        })
    }
}

fn walk_error(error: &ignore::Error) -> WalkError {
    let (path, inner) = innermost(error, Path::new(""));
    match inner {
        ignore::Error::Loop { ancestor, child } => Problem::fail(
            format!("is a link to {}, which holds it", ancestor.display()),
            "remove the link, or do not follow links",
        )
        .at(child),
        ignore::Error::Io(error) => Problem::io(error).at(path),
        other => Problem::fail(other.to_string(), "check the ignore files").at(path),
    }
}

/// The path that the error carries, and what is wrong with it.
fn innermost<'e>(error: &'e ignore::Error, path: &'e Path) -> (&'e Path, &'e ignore::Error) {
    match error {
        ignore::Error::WithPath { path, err } => innermost(err, path),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => {
            innermost(err, path)
        }
        ignore::Error::Partial(errors) if errors.len() == 1 => innermost(&errors[0], path),
        other => (path, other),
    }
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
