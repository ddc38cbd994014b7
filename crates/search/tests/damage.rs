//! Any damage to any file of a store is noticed by `check`, which names the
//! file, and searching a damaged store gives an error or the right answer: no
//! panic, no wrong passage.

#![allow(clippy::unwrap_used)] // also in the helpers of tests

mod common;

use std::path::{Path, PathBuf};

use common::{Words, assert_whole, text, write_old};
use keyfold_core::NoProgress;
use keyfold_search::SearchError;
use keyfold_search::index::{IndexOptions, update};
use keyfold_search::store::{CheckReport, Snapshot, check};
use tantivy::Term;
use tantivy::collector::TopDocs;
use tantivy::query::{PhraseQuery, Query, RangeQuery, TermQuery};
use tantivy::schema::IndexRecordOption;

/// A store with several segments, deleted files and files with a new time.
fn store() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let store = root.join(".keyfold");
    let write = |i: usize, seed: usize, time| {
        write_old(
            &root.join(format!("{i}.md")),
            &format!("# Title {i}\n\n{}", text(seed, 60)),
            time,
        );
    };
    let index = || {
        let options = IndexOptions::default();
        update(
            &store,
            std::slice::from_ref(&root),
            &Words::new(),
            &options,
            &NoProgress,
        )
        .unwrap();
    };
    (0..20).for_each(|i| write(i, i, 1));
    index();
    (20..24).for_each(|i| write(i, i, 1));
    (0..3).for_each(|i| write(i, 100 + i, 2));
    common::set_time(&root.join("7.md"), 3);
    std::fs::remove_file(root.join("5.md")).unwrap();
    index();
    (dir, store)
}

/// Everything that a search can read of a store.
fn read_all(store: &Path) -> Result<String, SearchError> {
    let mut out = String::new();
    let snapshot = Snapshot::open(store)?;
    for record in snapshot.files()? {
        out.push_str(&format!("{record:?}\n"));
    }
    for segment in snapshot.segments() {
        for local in 0..segment.passages() as u32 {
            let rows = segment.rows(local)?;
            let id = segment.passage_id(local)?;
            let codes = segment.codes(rows.clone())?;
            let packed = segment.packed(rows)?;
            let live = segment.is_live(local);
            let passage = if live { snapshot.passage(id)? } else { None };
            out.push_str(&format!("{id} {live} {codes:?} {packed:?} {passage:?}\n"));
        }
        for centroid in 0..segment.codebook().count() as u16 {
            out.push_str(&format!("{:?}\n", segment.postings(centroid)?));
        }
        out.push_str(&format!("{:?}\n", segment.codebook()));
    }
    match lexical(&snapshot) {
        Ok(hits) => out.push_str(&hits),
        // Damage is an error here too, in tantivy's words.
        Err(e) => {
            return Err(SearchError::Lexical {
                store: store.to_owned(),
                source: e,
            });
        }
    }
    Ok(out)
}

fn lexical(snapshot: &Snapshot) -> tantivy::Result<String> {
    let f = snapshot.fields();
    let word = |field, text: &str| Term::from_field_text(field, text);
    let term = |t| Box::new(TermQuery::new(t, IndexRecordOption::WithFreqs)) as Box<dyn Query>;
    let phrase = vec![word(f.body, "word1"), word(f.body, "word2")];
    let from = std::ops::Bound::Included(Term::from_field_i64(f.modified, 0));
    let queries = [
        term(word(f.body, "word17")),
        term(word(f.headings, "titl")),
        term(word(f.name, "md")),
        term(word(f.path, "3.md")),
        term(word(f.format, "Markdown")),
        Box::new(PhraseQuery::new(phrase)),
        Box::new(RangeQuery::new(from, std::ops::Bound::Unbounded)),
    ];
    let mut out = String::new();
    for query in queries {
        let top = TopDocs::with_limit(50).order_by_score();
        for (score, address) in snapshot.searcher().search(&query, &top)? {
            let reader = snapshot.searcher().segment_reader(address.segment_ord);
            let id = reader.fast_fields().u64("passage")?.first(address.doc_id);
            out.push_str(&format!("{score} {id:?}\n"));
        }
    }
    Ok(out)
}

/// Files whose bytes mean nothing to the store: the lock counts by being locked,
/// and the other one speaks to git.
fn is_harmless(path: &Path) -> bool {
    ["write.lock", ".gitignore"]
        .iter()
        .any(|name| path.ends_with(name))
}

fn assert_names(report: Result<CheckReport, SearchError>, path: &Path, what: &str) {
    if is_harmless(path) {
        assert!(report.unwrap().is_sound(), "{what}");
        return;
    }
    match report {
        Ok(report) => assert!(
            report.damaged.iter().any(|d| d.path == path),
            "{what} in {path:?}: {:?}",
            report.damaged
        ),
        Err(e) => panic!("{what} in {path:?}: {e}"),
    }
}

fn assert_right_or_error(store: &Path, right: &str, what: &str) {
    // Every error will do; what it says is the business of other tests.
    if let Ok(read) = read_all(store) {
        assert!(read == right, "{what}: a search reads something else");
    }
}

/// Some positions of a file: all ends, and others spread over it.
fn positions(length: usize) -> Vec<usize> {
    let spread = (0..40).map(|i| (i * 7919 + i * i * 104_729) % length.max(1));
    let mut all: Vec<usize> = (0..length.min(32))
        .chain(length.saturating_sub(40)..length)
        .chain(spread)
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn every_changed_byte_is_detected_or_harmless() {
    let (_dir, store) = store();
    let right = read_all(&store).unwrap();
    assert!(check(&store, &NoProgress).unwrap().is_sound());
    let mut kinds = std::collections::BTreeSet::new();
    for path in common::files_below(&store) {
        kinds.insert(path.extension().map(|e| e.to_string_lossy().into_owned()));
        let good = std::fs::read(&path).unwrap();
        for (n, at) in positions(good.len()).into_iter().enumerate() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (n % 8);
            std::fs::write(&path, &bad).unwrap();
            let what = format!("byte {at} of {} in {}", good.len(), path.display());
            assert_names(check(&store, &NoProgress), &path, &what);
            assert_right_or_error(&store, &right, &what);
        }
        std::fs::write(&path, &good).unwrap();
    }
    for kind in [
        "kfs",
        "kfc",
        "idx",
        "pos",
        "term",
        "store",
        "fast",
        "fieldnorm",
        "del",
    ] {
        assert!(
            kinds.contains(&Some(kind.to_owned())),
            "no file of kind {kind}: {kinds:?}"
        );
    }
    assert_eq!(read_all(&store).unwrap(), right);
}

#[test]
fn a_file_that_is_cut_or_gone_or_another_one_is_named() {
    let (_dir, store) = store();
    let right = read_all(&store).unwrap();
    let files = common::files_below(&store);
    for path in &files {
        let good = std::fs::read(path).unwrap();
        for length in [0, 1, good.len() / 2, good.len().saturating_sub(1)] {
            std::fs::write(path, &good[..length]).unwrap();
            let what = format!("cut to {length}");
            assert_names(check(&store, &NoProgress), path, &what);
            assert_right_or_error(&store, &right, &what);
        }
        // Another file of the same kind, sound in itself.
        let twin = files
            .iter()
            .find(|f| *f != path && f.extension() == path.extension());
        if let (Some(twin), true) = (twin, path.extension().is_some_and(|e| e == "kfs")) {
            std::fs::copy(twin, path).unwrap();
            assert_names(check(&store, &NoProgress), path, "another file");
            assert_right_or_error(&store, &right, "another file");
        }
        std::fs::remove_file(path).unwrap();
        if path.ends_with("manifest") {
            assert!(matches!(
                check(&store, &NoProgress),
                Err(SearchError::NoStore { .. })
            ));
        } else {
            assert_names(check(&store, &NoProgress), path, "gone");
        }
        assert_right_or_error(&store, &right, "gone");
        std::fs::write(path, &good).unwrap();
    }
}

#[test]
fn a_damaged_store_can_be_made_anew() {
    let (dir, store) = store();
    let root = dir.path().canonicalize().unwrap();
    let before = assert_whole(&Snapshot::open(&store).unwrap());
    let mut damaged = vec![store.join("manifest")];
    damaged.extend(common::files_below(&store.join("segments")));
    damaged.extend(common::files_below(&store.join("lexical")));
    for path in damaged {
        let Ok(mut bytes) = std::fs::read(&path) else {
            continue; // of an earlier round
        };
        let middle = bytes.len() / 2;
        bytes[middle] ^= 255;
        std::fs::write(&path, &bytes).unwrap();
        let rebuild = IndexOptions {
            rebuild: true,
            ..IndexOptions::default()
        };
        update(
            &store,
            std::slice::from_ref(&root),
            &Words::new(),
            &rebuild,
            &NoProgress,
        )
        .unwrap();
        assert!(check(&store, &NoProgress).unwrap().is_sound());
        assert_eq!(assert_whole(&Snapshot::open(&store).unwrap()), before);
    }
}
