//! Which passages may be found: by path, format and time.
//!
//! A filter is decided once for every file, then holds for its passages. Both
//! retrievers look only at passages that it allows, so a filter that leaves
//! three passages still finds them.

use std::sync::Arc;
use std::time::SystemTime;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::error::SearchError;
use crate::store::{FileRecord, FileState, Snapshot, is_below, live_records, nanoseconds, section};

/// What a file must be like for its passages to be found; the default allows all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filters {
    /// Globs on the path, as in `.gitignore`: one without `/` is about the name
    /// at any depth, one that names a folder is about all below it, and one that
    /// begins with `!` excludes. Without a glob that includes, all is included.
    pub globs: Vec<String>,
    /// Formats, by the names that reading gave them (`markdown`, `pdf`); empty for all.
    pub formats: Vec<String>,
    /// A folder or file, as the store names it (see
    /// [`StoredPassage::key`](crate::store::StoredPassage::key)).
    pub below: Option<String>,
    /// Changed at this time or later.
    pub modified_since: Option<SystemTime>,
    /// Changed before this time.
    pub modified_before: Option<SystemTime>,
}

impl Filters {
    /// Whether everything is allowed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The passages that filters allow and that are live.
#[derive(Debug)]
pub struct Allowed {
    /// For every segment of the snapshot its allowed passages by place.
    by_segment: Vec<BitSet>,
    /// The same passages, and those without vectors, by id.
    by_id: Arc<BitSet>,
    /// How many have a place in a segment.
    count: usize,
}

impl Allowed {
    /// Decides `filters` for all files of a snapshot; none if they allow all.
    pub fn new(snapshot: &Snapshot, filters: &Filters) -> Result<Option<Self>, SearchError> {
        if filters.is_empty() {
            return Ok(None);
        }
        let matcher = Matcher::new(filters)?;
        let mut by_segment = Vec::new();
        let mut by_id = BitSet::default();
        let entries = &snapshot.manifest().segments;
        for (entry, file) in entries.iter().zip(snapshot.segment_files()) {
            let mut places = BitSet::default();
            for (number, record) in live_records(file, entry)? {
                if !matcher.allows(&record) {
                    continue;
                }
                let passages = file.passages_of(number)?;
                passages
                    .clone()
                    .for_each(|place| places.insert(place as usize));
                let range = passages.start as usize..passages.end as usize;
                let ids: &[u64] = file.part(section::IDS, range)?;
                ids.iter().for_each(|&id| by_id.insert(id as usize));
            }
            // As in `Snapshot::segments`.
            if entry.codebook.is_some() {
                by_segment.push(places);
            }
        }
        if by_id.len() as u64 == snapshot.passage_count() {
            // Retrievers are faster without a filter that lets all through.
            return Ok(None);
        }
        Ok(Some(Self {
            count: by_segment.iter().map(BitSet::len).sum(),
            by_segment,
            by_id: Arc::new(by_id),
        }))
    }

    /// Allows of `ids` those that `before` allows (all without it).
    pub(crate) fn only(
        snapshot: &Snapshot,
        before: Option<&Self>,
        ids: &[u64],
    ) -> Result<Self, SearchError> {
        let mut by_segment: Vec<BitSet> = Vec::new();
        by_segment.resize_with(snapshot.segments().len(), BitSet::default);
        let mut by_id = BitSet::default();
        for &id in ids {
            if before.is_some_and(|b| !b.by_id.contains(id as usize)) {
                continue;
            }
            by_id.insert(id as usize);
            for (segment, places) in snapshot.segments().iter().zip(&mut by_segment) {
                if let Some(place) = segment.find(id)?.filter(|&p| segment.is_live(p)) {
                    places.insert(place as usize);
                }
            }
        }
        Ok(Self {
            count: by_segment.iter().map(BitSet::len).sum(),
            by_segment,
            by_id: Arc::new(by_id),
        })
    }

    /// How many passages with a place in a segment are allowed.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether a passage of a segment of the snapshot is allowed.
    pub fn in_segment(&self, segment: usize, local: u32) -> bool {
        self.by_segment
            .get(segment)
            .is_some_and(|s| s.contains(local as usize))
    }

    /// The ids of the allowed passages.
    pub(crate) fn ids(&self) -> Arc<BitSet> {
        self.by_id.clone()
    }
}

/// Filters, ready to be asked about files.
struct Matcher {
    include: Option<GlobSet>,
    exclude: GlobSet,
    formats: Vec<String>,
    below: Option<String>,
    /// Nanoseconds since 1970.
    since: Option<i64>,
    before: Option<i64>,
}

impl Matcher {
    fn new(filters: &Filters) -> Result<Self, SearchError> {
        let (exclude, include): (Vec<&str>, Vec<&str>) =
            (filters.globs.iter().map(String::as_str)).partition(|g| g.starts_with('!'));
        Ok(Self {
            include: if include.is_empty() {
                None
            } else {
                Some(glob_set(&include)?)
            },
            exclude: glob_set(&exclude)?,
            formats: filters.formats.iter().map(|f| f.to_lowercase()).collect(),
            below: filters.below.clone(),
            since: filters.modified_since.map(nanoseconds),
            before: filters.modified_before.map(nanoseconds),
        })
    }

    fn allows(&self, record: &FileRecord) -> bool {
        let FileState::Read(format) = &record.state else {
            return false;
        };
        // Keys of files outside the store's folder are whole paths.
        let path = record.key.trim_start_matches('/');
        self.include
            .as_ref()
            .is_none_or(|globs| globs.is_match(path))
            && !self.exclude.is_match(path)
            && (self.formats.is_empty() || self.formats.contains(&format.to_lowercase()))
            && self
                .below
                .as_ref()
                .is_none_or(|root| is_below(&record.key, root))
            && self.since.is_none_or(|t| record.modified >= t)
            && self.before.is_none_or(|t| record.modified < t)
    }
}

/// The set that matches what any of the globs names, or what lies below it.
fn glob_set(globs: &[&str]) -> Result<GlobSet, SearchError> {
    let mut set = GlobSetBuilder::new();
    let invalid = |glob: &str, source| SearchError::Glob {
        glob: glob.to_owned(),
        source,
    };
    for &glob in globs {
        let plain = glob.strip_prefix('!').unwrap_or(glob);
        let plain = plain
            .strip_prefix("./")
            .unwrap_or(plain)
            .trim_end_matches('/');
        let from_root = plain.trim_start_matches('/');
        let pattern = if plain.contains('/') {
            from_root.to_owned()
        } else {
            format!("**/{plain}")
        };
        for pattern in [format!("{pattern}/**"), pattern] {
            let built = GlobBuilder::new(&pattern).literal_separator(true).build();
            set.add(built.map_err(|e| invalid(glob, e))?);
        }
    }
    set.build().map_err(|e| invalid(&globs.join(" "), e))
}

/// A set of small numbers.
#[derive(Debug, Default)]
pub(crate) struct BitSet {
    words: Vec<u64>,
}

impl BitSet {
    pub(crate) fn insert(&mut self, n: usize) {
        if n / 64 >= self.words.len() {
            self.words.resize(n / 64 + 1, 0);
        }
        self.words[n / 64] |= 1 << (n % 64);
    }

    pub(crate) fn contains(&self, n: usize) -> bool {
        self.words
            .get(n / 64)
            .is_some_and(|w| w >> (n % 64) & 1 == 1)
    }

    fn len(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(globs: &[&str], key: &str) -> bool {
        let filters = Filters {
            globs: globs.iter().map(|g| (*g).to_owned()).collect(),
            ..Filters::default()
        };
        let record = FileRecord {
            key: key.to_owned(),
            size: 0,
            modified: 5,
            hash: None,
            state: FileState::Read("markdown".to_owned()),
        };
        Matcher::new(&filters).unwrap().allows(&record)
    }

    #[test]
    fn globs_follow_gitignore() {
        for (globs, key, expected) in [
            (&["*.md"][..], "a/b/c.md", true),
            (&["*.md"], "a/b/c.rs", false),
            (&["a/*.md"], "a/c.md", true),
            (&["a/*.md"], "a/b/c.md", false),
            (&["a/*.md"], "x/a/c.md", false),
            (&["/c.md"], "a/c.md", false),
            (&["/c.md"], "c.md", true),
            (&["b"], "a/b/c.md", true),
            (&["./a/"], "a/b/c.md", true),
            (&["a/**/c.md"], "a/x/y/c.md", true),
            (&["!*.md"], "a/c.md", false),
            (&["!*.md"], "a/c.rs", true),
            (&["*.md", "!drafts"], "drafts/c.md", false),
            (&["*.md", "!drafts"], "c.md", true),
            (&["*.{md,rs}"], "c.rs", true),
            (&["home/*"], "/home/c.md", true),
            (&["//home/c.md"], "/home/c.md", true),
            (&[], "c", true),
        ] {
            assert_eq!(allows(globs, key), expected, "{globs:?} {key}");
        }
    }

    #[test]
    fn a_glob_that_is_none_is_named() {
        let filters = Filters {
            globs: vec!["a[".to_owned()],
            ..Filters::default()
        };
        let error = Matcher::new(&filters).err().unwrap().to_string();
        assert!(error.contains("'a['"), "{error}");
    }
}
