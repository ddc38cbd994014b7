//! What there is to do: the files that were found against those that the store
//! knows.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use keyfold_core::{EncoderIdentity, Progress};
use keyfold_data::{ChunkOptions, FileEntry, ReadError, Summary, WalkOptions, walk};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::IndexOptions;
use crate::codebook::Bits;
use crate::error::SearchError;
use crate::fold::Folding;
use crate::store::{Known, KnownFile, base, is_below, key, nanoseconds, path};

/// How the files of a store were walked and cut; the store remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) walk: WalkOptions,
    pub(super) chunk: ChunkOptions,
}

/// [`Settings`] as they are stored.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct StoredSettings {
    globs: Vec<String>,
    types: Vec<String>,
    hidden: bool,
    ignore_files: bool,
    follow_links: bool,
    max_file_size: u64,
    target_tokens: usize,
    max_tokens: usize,
}

impl Default for StoredSettings {
    fn default() -> Self {
        Self::from(&Settings {
            walk: WalkOptions::default(),
            chunk: ChunkOptions::default(),
        })
    }
}

impl From<&Settings> for StoredSettings {
    fn from(s: &Settings) -> Self {
        let (walk, chunk) = (s.walk.clone(), &s.chunk);
        Self {
            globs: walk.globs,
            types: walk.types,
            hidden: walk.hidden,
            ignore_files: walk.ignore_files,
            follow_links: walk.follow_links,
            max_file_size: walk.max_file_size,
            target_tokens: chunk.target_tokens,
            max_tokens: chunk.max_tokens,
        }
    }
}

impl Settings {
    pub(super) fn to_json(&self) -> serde_json::Value {
        serde_json::json!(StoredSettings::from(self))
    }

    /// What a store remembers; the default where it remembers nothing.
    fn from_json(value: &serde_json::Value) -> Self {
        let s: StoredSettings = serde_json::from_value(value.clone()).unwrap_or_default();
        Self {
            walk: WalkOptions {
                globs: s.globs,
                types: s.types,
                hidden: s.hidden,
                ignore_files: s.ignore_files,
                follow_links: s.follow_links,
                max_file_size: s.max_file_size,
            },
            chunk: ChunkOptions {
                target_tokens: s.target_tokens,
                max_tokens: s.max_tokens,
            },
        }
    }
}

/// What a store holds before it is brought up to date.
pub(super) struct Stored {
    known: Option<Known>,
}

impl Stored {
    /// Reads what the store in `store` holds, if there is one. For a rebuild a
    /// damaged store is as good as none.
    pub(super) fn read(store: &Path, rebuild: bool) -> Result<Self, SearchError> {
        match Known::read(store) {
            Ok(known) => Ok(Self { known: Some(known) }),
            Err(SearchError::NoStore { .. }) => Ok(Self { known: None }),
            Err(e @ SearchError::NotAStore { .. }) => Err(e),
            Err(_) if rebuild => Ok(Self { known: None }),
            Err(e) => Err(e),
        }
    }

    /// Whether there is no store yet.
    pub(super) fn is_new(&self) -> bool {
        self.known.is_none()
    }

    pub(super) fn bits(&self) -> Option<Bits> {
        self.known.as_ref().map(|k| k.manifest.bits)
    }

    pub(super) fn fold(&self) -> Option<Folding> {
        self.known.as_ref().map(|k| k.manifest.fold)
    }

    pub(super) fn files(&self) -> &HashMap<String, KnownFile> {
        static NONE: std::sync::LazyLock<HashMap<String, KnownFile>> =
            std::sync::LazyLock::new(HashMap::new);
        self.known.as_ref().map_or(&NONE, |k| &k.files)
    }

    fn roots(&self) -> &[String] {
        self.known.as_ref().map_or(&[], |k| &k.manifest.roots)
    }

    /// Refuses what does not go with the store, before anything is done.
    pub(super) fn require(
        &self,
        store: &Path,
        encoder: &EncoderIdentity,
        options: &IndexOptions,
    ) -> Result<(), SearchError> {
        let Some(known) = self.known.as_ref().filter(|_| !options.rebuild) else {
            return Ok(());
        };
        known.require(store, encoder, options.bits, options.fold)?;
        let stored = Settings::from_json(&known.manifest.options).chunk;
        match &options.chunk {
            Some(chunk) if *chunk != stored && !known.files.is_empty() => {
                Err(SearchError::OtherOption {
                    store: store.to_owned(),
                    option: "--passage-tokens",
                    stored: stored.target_tokens.to_string(),
                    given: chunk.target_tokens.to_string(),
                })
            }
            _ => Ok(()),
        }
    }

    /// How to walk and cut now.
    pub(super) fn settings(&self, options: &IndexOptions) -> Settings {
        let nothing = serde_json::Value::Null;
        let stored = self
            .known
            .as_ref()
            .map_or(&nothing, |k| &k.manifest.options);
        let stored = Settings::from_json(stored);
        Settings {
            walk: options.walk.clone().unwrap_or(stored.walk),
            chunk: options.chunk.clone().unwrap_or(stored.chunk),
        }
    }

    /// Whether the store remembers these roots and settings already.
    pub(super) fn remembers(&self, roots: &Roots, settings: &Settings) -> bool {
        self.known.as_ref().is_some_and(|k| {
            k.manifest.roots == roots.all && k.manifest.options == settings.to_json()
        })
    }
}

/// Which folders and files are walked now, and all that the store remembers.
pub(super) struct Roots {
    /// Keys of those that are walked now.
    walked: Vec<String>,
    /// Their paths, without links.
    paths: Vec<PathBuf>,
    /// Keys of all.
    all: Vec<String>,
}

impl Roots {
    /// Finds the roots; one that is not there is an error.
    pub(super) fn new(
        store: &Path,
        given: &[PathBuf],
        stored: &Stored,
        walk: &WalkOptions,
    ) -> Result<Self, SearchError> {
        let base = base(store);
        if given.is_empty() && stored.roots().is_empty() {
            return Err(SearchError::NoStore {
                store: store.to_owned(),
            });
        }
        let remembered: Vec<PathBuf> = stored.roots().iter().map(|k| path(&base, k)).collect();
        let given = if given.is_empty() { &remembered } else { given };
        let mut walked = Vec::new();
        for root in given {
            let failed = |source| SearchError::Root {
                path: root.clone(),
                source,
            };
            let full = root.canonicalize().map_err(failed)?;
            let mut key = key(&base, &full).ok_or_else(|| {
                failed(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "its name is not UTF-8",
                ))
            })?;
            // Globs are about paths below the root that they were given for.
            if !walk.globs.is_empty()
                && let Some(above) = stored.roots().iter().find(|r| is_below(&key, r))
            {
                key.clone_from(above);
            }
            walked.push(key);
        }
        let walked = outermost(walked);
        let all = outermost([stored.roots(), &walked].concat());
        Ok(Self {
            paths: walked.iter().map(|k| path(&base, k)).collect(),
            walked,
            all,
        })
    }

    /// Keys of all roots of the store.
    pub(super) fn all(&self) -> &[String] {
        &self.all
    }

    fn cover(&self, key: &str) -> bool {
        self.walked.iter().any(|root| is_below(key, root))
    }
}

/// Roots that lie below no other, each once.
fn outermost(roots: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for root in &roots {
        let covered = |other: &String| other != root && is_below(root, other);
        if !roots.iter().any(covered) && !kept.contains(root) {
            kept.push(root.clone());
        }
    }
    kept
}

/// What the walk found.
pub(super) struct Found {
    files: Vec<(String, FileEntry)>,
    /// What was met and cannot be given.
    errors: Vec<ReadError>,
    /// Keys of folders and files of which nothing is known now.
    unknown: Vec<String>,
    pub(super) cancelled: bool,
}

impl Found {
    pub(super) fn count_errors(&self, summary: &mut Summary) {
        self.errors.iter().for_each(|e| summary.count_error(e));
    }
}

/// Walks the roots.
pub(super) fn find(
    store: &Path,
    roots: &Roots,
    options: &WalkOptions,
    progress: &dyn Progress,
) -> Result<Found, SearchError> {
    let base = base(store);
    let mut found = Found {
        files: Vec::new(),
        errors: Vec::new(),
        unknown: Vec::new(),
        cancelled: false,
    };
    let mut seen = HashSet::new();
    progress.start("looking for files", "files", None);
    for item in walk(&roots.paths, options)? {
        if progress.cancelled() {
            found.cancelled = true;
            break;
        }
        match item {
            Ok(entry) if entry.path.starts_with(store) => {}
            Ok(entry) => match key(&base, &entry.path) {
                Some(key) => {
                    if seen.insert(key.clone()) {
                        progress.advance(1);
                        found.files.push((key, entry));
                    }
                }
                None => progress.note(&format!(
                    "{}: its name is not UTF-8 (rename it to index it)",
                    entry.path.display()
                )),
            },
            Err(error) => {
                progress.note(&error.to_string());
                let notice = error.notice();
                if let ReadError::Failed(_) = &error {
                    if let Some(root) = roots.paths.iter().find(|r| **r == notice.path) {
                        return Err(SearchError::Root {
                            path: root.clone(),
                            source: io::Error::other(notice.why.clone()),
                        });
                    }
                    found.unknown.extend(key(&base, &notice.path));
                }
                found.errors.push(error);
            }
        }
    }
    progress.finish();
    Ok(found)
}

/// A file to read.
pub(super) struct Task {
    pub(super) key: String,
    pub(super) entry: FileEntry,
    /// The hash of the content that the store has, if the size is the same.
    pub(super) hash: Option<[u8; 32]>,
}

/// What there is to do.
#[derive(Default)]
pub(super) struct Plan {
    /// Files to read, or to compare by hash.
    pub(super) tasks: Vec<Task>,
    /// Keys of files to remove.
    pub(super) remove: Vec<String>,
    /// Files that are as the store knows them.
    pub(super) unchanged: u64,
    /// New or changed files that cannot be opened, and why. The store keeps what
    /// it has of them, and they are tried again the next time.
    pub(super) closed: Vec<(PathBuf, io::Error)>,
}

impl Plan {
    /// With `retry`, what the store knows and could not read is read again.
    pub(super) fn new(
        found: &Found,
        roots: &Roots,
        known: &HashMap<String, KnownFile>,
        retry: bool,
    ) -> Self {
        let mut plan = Self::default();
        let mut seen = HashSet::new();
        for (key, entry) in &found.files {
            seen.insert(key.as_str());
            let before = known.get(key).filter(|k| k.size == entry.size);
            // Only what was read has a hash.
            let before = before.filter(|k| !retry || k.hash.is_some());
            if before.is_some_and(|k| k.modified == nanoseconds(entry.modified)) {
                plan.unchanged += 1;
                continue;
            }
            match File::open(&entry.path) {
                Err(e) => plan.closed.push((entry.path.clone(), e)),
                Ok(_) => plan.tasks.push(Task {
                    key: key.clone(),
                    entry: entry.clone(),
                    hash: before.and_then(|k| k.hash),
                }),
            }
        }
        let gone = |key: &&String| {
            !seen.contains(key.as_str())
                && roots.cover(key)
                && !found.unknown.iter().any(|u| is_below(key, u))
        };
        plan.remove = known.keys().filter(gone).cloned().collect();
        plan.remove.sort();
        plan
    }

    /// Says which files cannot be opened, and counts them.
    pub(super) fn report_closed(&self, summary: &mut Summary, progress: &dyn Progress) {
        for (path, error) in &self.closed {
            progress.note(&format!("{}: cannot be read: {error}", path.display()));
            summary.failed += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.remove.is_empty()
    }

    /// Puts the tasks into a random order, so that the first of them are a fair
    /// sample of all.
    pub(super) fn shuffle(&mut self, seed: u64) {
        self.tasks.shuffle(&mut StdRng::seed_from_u64(seed));
    }

    /// Bytes of all files to read.
    pub(super) fn bytes(&self) -> u64 {
        self.tasks.iter().map(|t| t.entry.size).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_remembered_and_old_stores_get_the_default() {
        let mut s = Settings::from_json(&serde_json::Value::Null);
        assert_eq!(s.walk, WalkOptions::default());
        s.walk.globs.push("*.md".into());
        s.walk.hidden = true;
        s.chunk.target_tokens = 99;
        assert_eq!(Settings::from_json(&s.to_json()), s);
    }

    #[test]
    fn roots_within_roots_are_one() {
        let roots = |list: &[&str]| outermost(list.iter().map(|s| (*s).to_owned()).collect());
        assert_eq!(roots(&["a/b", "a", "c", "a"]), ["a", "c"]);
        assert_eq!(roots(&["a/b", "."]), ["."]);
        assert_eq!(roots(&["ab", "a"]), ["ab", "a"]);
    }

    #[test]
    fn what_cannot_be_seen_is_not_taken_for_gone() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        std::fs::write(base.join("new"), "x").unwrap();
        let entry = |name: &str| {
            let entry = FileEntry {
                path: base.join(name),
                size: 1,
                modified: std::time::UNIX_EPOCH,
            };
            (name.to_owned(), entry)
        };
        let known = |modified| KnownFile::for_tests(1, modified);
        let store = HashMap::from([
            ("same".to_owned(), known(0)),
            ("closed/file".to_owned(), known(0)),
            ("closedness".to_owned(), known(0)),
            ("gone".to_owned(), known(0)),
            ("changed but locked".to_owned(), known(1)),
            ("/elsewhere".to_owned(), known(0)),
        ]);
        let found = Found {
            files: vec![entry("same"), entry("new"), entry("changed but locked")],
            errors: Vec::new(),
            unknown: vec!["closed".to_owned()],
            cancelled: false,
        };
        let roots = Roots {
            walked: vec![".".to_owned()],
            paths: vec![base.to_owned()],
            all: vec![".".to_owned()],
        };
        let plan = Plan::new(&found, &roots, &store, false);
        let tasks: Vec<&str> = plan.tasks.iter().map(|t| &*t.key).collect();
        assert_eq!(tasks, ["new"]);
        assert_eq!(plan.remove, ["closedness", "gone"]);
        assert_eq!(plan.unchanged, 1);
        // There is no such file, which stands for one that cannot be opened.
        assert_eq!(plan.closed.len(), 1);
        assert!(plan.closed[0].0.ends_with("changed but locked"));

        // What has no hash was not read, and is tried again when asked to.
        std::fs::write(base.join("same"), "x").unwrap();
        let plan = Plan::new(&found, &roots, &store, true);
        let tasks: Vec<&str> = plan.tasks.iter().map(|t| &*t.key).collect();
        assert_eq!(tasks, ["same", "new"]);
    }
}
