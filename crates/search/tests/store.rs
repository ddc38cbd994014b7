//! What a user relies on when folders are indexed again and again.

#![allow(clippy::unwrap_used)] // also in the helpers of tests

mod common;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Words, all_passages, assert_whole, passages_of, set_time, text, write_old};
use keyfold_core::{Encoder, NoProgress, Progress};
use keyfold_search::SearchError;
use keyfold_search::codebook::Bits;
use keyfold_search::index::{IndexOptions, IndexSummary, update};
use keyfold_search::store::{FileState, Snapshot, Writer, WriterOptions, check};

struct Folder {
    _dir: tempfile::TempDir,
    root: PathBuf,
    store: PathBuf,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        Self {
            store: root.join(".keyfold"),
            root,
            _dir: dir,
        }
    }

    fn with_files(n: usize) -> Self {
        let f = Self::new();
        for i in 0..n {
            f.write(&format!("{i}.txt"), &text(i, 40), 1);
        }
        f
    }

    fn write(&self, name: &str, text: &str, seconds: u64) {
        write_old(&self.root.join(name), text, seconds);
    }

    fn update(&self, encoder: &Words) -> IndexSummary {
        self.update_with(encoder, &IndexOptions::default())
    }

    fn update_with(&self, encoder: &Words, options: &IndexOptions) -> IndexSummary {
        update(
            &self.store,
            std::slice::from_ref(&self.root),
            encoder,
            options,
            &NoProgress,
        )
        .unwrap()
    }

    fn open(&self) -> Snapshot {
        Snapshot::open(&self.store).unwrap()
    }

    fn assert_sound(&self) {
        let report = check(&self.store, &NoProgress).unwrap();
        assert!(report.is_sound(), "{:?}", report.damaged);
    }
}

#[test]
fn indexes_a_folder_and_then_only_what_changed() {
    let f = Folder::new();
    f.write("a.txt", "the first file\n", 1);
    f.write("sub/b.txt", "the second file\n", 1);
    f.write("c.bin", "\0\0\0\0binary\0", 1);
    let encoder = Words::new();
    let done = f.update(&encoder);
    assert_eq!(
        (done.files.read, done.files.skipped, done.passages),
        (2, 1, 2)
    );
    let first = f.open();
    assert_eq!(assert_whole(&first), ["a.txt", "sub/b.txt"]);
    let stored = first.passage(all_passages(&first)[0].0).unwrap().unwrap();
    assert!(stored.path.is_file() && stored.path.starts_with(&f.root));

    // Nothing changed: nothing is read, encoded or written.
    let before = encoder.count();
    let done = f.update(&encoder);
    assert_eq!(
        (done.unchanged, done.files.read, done.files.skipped),
        (3, 0, 0)
    );
    assert_eq!(encoder.count(), before);
    assert_eq!(f.open().generation(), first.generation());

    // Another time, the same content: looked at, not encoded, and remembered.
    set_time(&f.root.join("a.txt"), 5);
    assert_eq!(f.update(&encoder).unchanged, 3);
    assert_eq!(encoder.count(), before);
    let touched = f.open().generation();
    assert_eq!(f.update(&encoder).unchanged, 3);
    assert_eq!(f.open().generation(), touched);

    // A change of content of the same length, a removal, a new file.
    f.write("a.txt", "the third file\n", 9);
    std::fs::remove_file(f.root.join("sub/b.txt")).unwrap();
    f.write("d.txt", "a fourth one\n", 9);
    let done = f.update(&encoder);
    assert_eq!((done.files.read, done.removed, done.unchanged), (2, 1, 1));
    assert_eq!(encoder.count(), before + 2);
    let now = f.open();
    assert_eq!(assert_whole(&now), ["a.txt", "d.txt"]);
    assert_eq!(passages_of(&now, "a.txt"), ["the third file"]);
    let skipped = now
        .files()
        .unwrap()
        .into_iter()
        .find(|r| r.key == "c.bin")
        .unwrap();
    assert!(
        matches!(skipped.state, FileState::Skipped(_)),
        "{skipped:?}"
    );
    f.assert_sound();

    // The reader of the first commit still sees the first commit.
    assert_eq!(assert_whole(&first), ["a.txt", "sub/b.txt"]);
    assert_eq!(passages_of(&first, "a.txt"), ["the first file"]);
}

#[test]
fn a_file_that_changes_within_a_tick_is_noticed() {
    let f = Folder::new();
    let path = f.root.join("a.txt");
    std::fs::write(&path, "one two\n").unwrap();
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    let encoder = Words::new();
    f.update(&encoder);
    std::fs::write(&path, "one ten\n").unwrap();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(time)
        .unwrap();
    f.update(&encoder);
    assert_eq!(passages_of(&f.open(), "a.txt"), ["one ten"]);
}

#[test]
fn the_result_does_not_depend_on_threads_and_survives_every_option() {
    let f = Folder::with_files(60);
    f.write("long.txt", &text(999, 30_000), 1);
    let mut seen = None;
    for threads in [1, 3] {
        for bits in [Bits::Two, Bits::Four, Bits::Eight] {
            let options = IndexOptions {
                threads,
                bits: Some(bits),
                rebuild: true,
                ..IndexOptions::default()
            };
            f.update_with(&Words::new(), &options);
            let snapshot = f.open();
            assert_eq!(snapshot.bits(), bits);
            let all = all_passages(&snapshot);
            assert!(all.len() > 150);
            assert_eq!(*seen.get_or_insert(all.clone()), all);
            if bits != Bits::Two {
                assert_eq!(assert_whole(&snapshot).len(), 61);
            }
            f.assert_sound();
        }
    }
}

#[test]
fn little_memory_gives_the_same_store() {
    let f = Folder::with_files(50);
    let options = IndexOptions {
        memory: 20_000,
        commit_every: std::time::Duration::ZERO,
        ..IndexOptions::default()
    };
    f.update_with(&Words::new(), &options);
    let snapshot = f.open();
    assert_eq!(assert_whole(&snapshot).len(), 50);
    assert!(snapshot.generation() > 50, "every file was a commit");
    assert!(
        snapshot.segments().len() < 10,
        "{}",
        snapshot.segments().len()
    );
    assert!(snapshot.searcher().segment_readers().len() < 10);
    f.assert_sound();
}

#[test]
fn many_small_changes_leave_few_segments_and_lose_nothing() {
    let f = Folder::with_files(12);
    let encoder = Words::new();
    f.update(&encoder);
    for round in 0..25 {
        f.write(
            &format!("{}.txt", round % 12),
            &text(1000 + round, 40),
            10 + round as u64,
        );
        f.write(&format!("new{round}.txt"), &text(2000 + round, 40), 1);
        let done = f.update(&encoder);
        assert_eq!(done.files.read, 2);
    }
    let snapshot = f.open();
    assert_eq!(assert_whole(&snapshot).len(), 37);
    assert!(snapshot.segments().len() <= 4, "{:?}", snapshot.segments());
    assert!(snapshot.searcher().segment_readers().len() <= 4);
    let last = passages_of(&snapshot, "0.txt").join(" ");
    assert!(text(1024, 40).starts_with(last.split(' ').next().unwrap()));
    f.assert_sound();
    // Old segments and codebooks are gone from the disk.
    let files = common::files_below(&f.store.join("segments"));
    assert!(files.len() <= 4, "{files:?}");
    assert_eq!(common::files_below(&f.store.join("codebooks")).len(), 1);
}

#[test]
fn a_store_that_outgrows_its_codebook_gets_a_new_one() {
    let f = Folder::with_files(2);
    let encoder = Words::new();
    f.update(&encoder);
    let small = f.open().segments()[0].codebook().count();
    for i in 0..300 {
        f.write(&format!("more{i}.txt"), &text(5000 + i, 100), 1);
    }
    f.update(&encoder);
    let snapshot = f.open();
    let grown = snapshot.segments()[0].codebook().count();
    assert!(grown > small, "{small} centroids, then {grown}");
    assert_eq!(snapshot.segments().len(), 1);
    assert_eq!(assert_whole(&snapshot).len(), 302);
    f.assert_sound();
}

#[test]
fn a_text_that_the_model_cannot_take_costs_only_its_file() {
    let f = Folder::with_files(20);
    f.write("bad.txt", &format!("{} POISON here\n", text(1, 2000)), 1);
    let mut encoder = Words::new();
    encoder.poison = Some("POISON");
    let done = f.update(&encoder);
    assert_eq!((done.files.read, done.files.failed), (20, 1));
    let snapshot = f.open();
    assert_eq!(assert_whole(&snapshot).len(), 20);
    let bad = snapshot
        .files()
        .unwrap()
        .into_iter()
        .find(|r| r.key == "bad.txt")
        .unwrap();
    assert!(matches!(&bad.state, FileState::Failed(why) if why.contains("poison")));
    assert_eq!(f.update(&encoder).unchanged, 21, "it is not tried again");
    f.assert_sound();

    // A model that can take nothing is an error, and changes nothing.
    let mut broken = Words::new();
    broken.poison = Some("word");
    for i in 0..20 {
        f.write(&format!("{i}.txt"), &text(100 + i, 40), 50);
    }
    let roots = [f.root.clone()];
    let e = update(
        &f.store,
        &roots,
        &broken,
        &IndexOptions::default(),
        &NoProgress,
    )
    .unwrap_err();
    assert!(matches!(e, SearchError::Encode(_)), "{e}");
    assert_eq!(f.open().generation(), snapshot.generation());
}

#[test]
fn texts_without_rows_and_folders_without_files_are_fine() {
    let f = Folder::new();
    let done = f.update(&Words::new());
    assert_eq!(done.passages, 0);
    let snapshot = f.open();
    assert!(snapshot.segments().is_empty() && snapshot.passage_count() == 0);
    assert!(snapshot.passage(0).unwrap().is_none());
    f.assert_sound();
    f.write("only.bin", "\0\0\0", 1);
    f.update(&Words::new());
    assert_eq!(f.open().files().unwrap().len(), 1);
    f.assert_sound();
    f.write("a.txt", "words at last", 1);
    f.update(&Words::new());
    assert_eq!(assert_whole(&f.open()), ["a.txt"]);
    std::fs::remove_file(f.root.join("a.txt")).unwrap();
    f.update(&Words::new());
    assert!(assert_whole(&f.open()).is_empty());
    f.assert_sound();
}

#[test]
fn another_model_or_number_of_bits_is_refused_and_changes_nothing() {
    let f = Folder::with_files(3);
    f.update(&Words::named("one"));
    let before = f.open().generation();
    let try_with = |encoder: &Words, options: &IndexOptions| {
        update(
            &f.store,
            std::slice::from_ref(&f.root),
            encoder,
            options,
            &NoProgress,
        )
    };
    let e = try_with(&Words::named("two"), &IndexOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("'one'") && e.contains("'two'") && e.contains("--rebuild"),
        "{e}"
    );
    // The same name with other weights: another --model would not help.
    let e = try_with(&Words::changed("one"), &IndexOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("other weights of model 'one'") && e.contains("--rebuild"),
        "{e}"
    );
    assert!(!e.contains("--model"), "{e}");
    let e = f
        .open()
        .require_encoder(Words::named("two").identity())
        .unwrap_err()
        .to_string();
    assert!(e.contains("'one'"), "{e}");
    let two = IndexOptions {
        bits: Some(Bits::Two),
        ..IndexOptions::default()
    };
    let e = try_with(&Words::named("one"), &two)
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("--bits 4") && e.contains("--rebuild --bits 2"),
        "{e}"
    );
    assert_eq!(f.open().generation(), before);
    let rebuild = IndexOptions {
        rebuild: true,
        ..two
    };
    try_with(&Words::named("two"), &rebuild).unwrap();
    assert_eq!(f.open().encoder().name, "two");
    assert_eq!(assert_whole(&f.open()).len(), 3);
}

#[test]
fn what_is_no_store_is_left_alone() {
    let f = Folder::with_files(1);
    let encoder = Words::new();
    let other = f.root.join("other");
    f.write("other/letter.txt", "dear reader", 1);
    let options = IndexOptions {
        rebuild: true,
        ..IndexOptions::default()
    };
    let roots = [f.root.clone()];
    let e = update(&other, &roots, &encoder, &options, &NoProgress).unwrap_err();
    assert!(matches!(&e, SearchError::NotAStore { .. }), "{e}");
    assert!(e.to_string().contains("letter.txt"), "{e}");
    assert!(matches!(
        Snapshot::open(&other),
        Err(SearchError::NotAStore { .. })
    ));
    assert!(matches!(
        check(&other, &NoProgress),
        Err(SearchError::NotAStore { .. })
    ));
    let file = other.join("letter.txt");
    let e = update(&file, &roots, &encoder, &options, &NoProgress).unwrap_err();
    assert!(matches!(&e, SearchError::NotAStore { .. }), "{e}");
    assert_eq!(common::files_below(&other), [file]);

    assert!(matches!(
        Snapshot::open(&f.store),
        Err(SearchError::NoStore { .. })
    ));
    let none: [PathBuf; 0] = [];
    let e = update(&f.store, &none, &encoder, &options, &NoProgress).unwrap_err();
    assert!(matches!(e, SearchError::NoStore { .. }), "{e}");
    assert!(!f.store.exists());
}

#[test]
fn a_root_that_is_gone_does_not_empty_the_store() {
    let f = Folder::new();
    let disk = f.root.join("disk");
    write_old(&disk.join("a.txt"), "on a disk", 1);
    let store = f.root.join("store");
    let encoder = Words::new();
    let options = IndexOptions::default();
    update(
        &store,
        std::slice::from_ref(&disk),
        &encoder,
        &options,
        &NoProgress,
    )
    .unwrap();
    std::fs::rename(&disk, f.root.join("unplugged")).unwrap();
    // Named, and remembered by the store.
    for roots in [vec![disk.clone()], vec![]] {
        let e = update(&store, &roots, &encoder, &options, &NoProgress).unwrap_err();
        assert!(
            matches!(&e, SearchError::Root { path, .. } if *path == disk),
            "{e}"
        );
    }
    assert_eq!(Snapshot::open(&store).unwrap().passage_count(), 1);

    // Another root leaves it alone too.
    write_old(&f.root.join("more/b.txt"), "elsewhere", 1);
    let more = [f.root.join("more")];
    update(&store, &more, &encoder, &options, &NoProgress).unwrap();
    let snapshot = Snapshot::open(&store).unwrap();
    assert_eq!(assert_whole(&snapshot), ["disk/a.txt", "more/b.txt"]);
    assert_eq!(snapshot.roots(), [disk.clone(), more[0].clone()]);

    // Plugged in again, empty: now the file is gone.
    std::fs::create_dir(&disk).unwrap();
    let done = update(&store, &[], &encoder, &options, &NoProgress).unwrap();
    assert_eq!((done.removed, done.unchanged), (1, 1));
}

#[test]
fn a_part_of_a_root_can_be_brought_up_to_date_alone() {
    let f = Folder::new();
    f.write("a/one.txt", "one", 1);
    f.write("b/two.txt", "two", 1);
    let encoder = Words::new();
    f.update(&encoder);
    f.write("a/one.txt", "uno", 2);
    f.write("b/two.txt", "dos", 2);
    let part = [f.root.join("a")];
    let options = IndexOptions::default();
    update(&f.store, &part, &encoder, &options, &NoProgress).unwrap();
    let snapshot = f.open();
    assert_eq!(passages_of(&snapshot, "a/one.txt"), ["uno"]);
    assert_eq!(passages_of(&snapshot, "b/two.txt"), ["two"]);
    assert_eq!(snapshot.roots(), std::slice::from_ref(&f.root));
}

#[test]
fn a_folder_can_move_with_its_store() {
    let f = Folder::new();
    let old = f.root.join("old");
    write_old(&old.join("a.txt"), "wherever I go", 1);
    let encoder = Words::new();
    let options = IndexOptions::default();
    let index = |folder: &Path| {
        update(
            &folder.join(".keyfold"),
            &[folder.to_owned()],
            &encoder,
            &options,
            &NoProgress,
        )
    };
    index(&old).unwrap();
    let new = f.root.join("new");
    std::fs::rename(&old, &new).unwrap();
    let done = index(&new).unwrap();
    assert_eq!((done.unchanged, done.files.read, done.removed), (1, 0, 0));
    let snapshot = Snapshot::open(&new.join(".keyfold")).unwrap();
    let id = all_passages(&snapshot)[0].0;
    assert_eq!(
        snapshot.passage(id).unwrap().unwrap().path,
        new.join("a.txt")
    );
}

#[test]
fn one_writer_at_a_time_and_readers_meanwhile() {
    let f = Folder::with_files(2);
    let encoder = Words::new();
    f.update(&encoder);
    let writer = Writer::open(&f.store, encoder.identity(), &WriterOptions::default()).unwrap();
    f.write("3.txt", "a third", 1);
    let roots = [f.root.clone()];
    let options = IndexOptions::default();
    let e = update(&f.store, &roots, &encoder, &options, &NoProgress).unwrap_err();
    let expected = format!("process {}", std::process::id());
    assert!(e.to_string().contains(&expected), "{e}");
    assert_eq!(f.open().passage_count(), 2);
    drop(writer);
    f.update(&encoder);
    assert_eq!(f.open().passage_count(), 3);
}

#[test]
fn readers_open_while_a_writer_commits_and_merges() {
    let f = Folder::with_files(40);
    let options = IndexOptions {
        commit_every: std::time::Duration::ZERO,
        ..IndexOptions::default()
    };
    let encoder = Words::new();
    f.update_with(&encoder, &options);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..3 {
                for i in 0..40 {
                    f.write(
                        &format!("{i}.txt"),
                        &text(i + 100 * round, 40),
                        100 + round as u64,
                    );
                }
                f.update_with(&encoder, &options);
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut generations = std::collections::BTreeSet::new();
        while !done.load(Ordering::Relaxed) {
            let snapshot = f.open();
            assert_eq!(assert_whole(&snapshot).len(), 40);
            generations.insert(snapshot.generation());
        }
        assert!(generations.len() > 3, "{generations:?}");
    });
    f.assert_sound();
}

/// Asks to stop after some bytes.
struct StopAfter {
    bytes: u64,
    done: AtomicU64,
    notes: Mutex<Vec<String>>,
}

impl Progress for StopAfter {
    fn start(&self, stage: &str, _: &str, _: Option<u64>) {
        if stage == "indexing" {
            self.done.store(0, Ordering::Relaxed);
        }
    }
    fn advance(&self, n: u64) {
        self.done.fetch_add(n, Ordering::Relaxed);
    }
    fn set_total(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, line: &str) {
        self.notes.lock().unwrap().push(line.to_owned());
    }
    fn cancelled(&self) -> bool {
        self.done.load(Ordering::Relaxed) > self.bytes
    }
}

#[test]
fn stopping_keeps_what_is_done_and_the_next_run_does_the_rest() {
    let f = Folder::with_files(400);
    let progress = StopAfter {
        bytes: 30_000,
        done: AtomicU64::new(0),
        notes: Mutex::default(),
    };
    let encoder = Words::new();
    let roots = [f.root.clone()];
    let options = IndexOptions::default();
    let done = update(&f.store, &roots, &encoder, &options, &progress).unwrap();
    assert!(done.cancelled);
    let kept = assert_whole(&f.open()).len();
    assert_eq!(kept, done.files.read);
    assert!((1..400).contains(&kept), "{kept}");
    f.assert_sound();
    let done = f.update(&encoder);
    assert_eq!((done.unchanged, done.files.read), (kept as u64, 400 - kept));
    assert_eq!(assert_whole(&f.open()).len(), 400);
}

#[test]
#[cfg(target_os = "linux")]
fn a_place_where_nothing_can_be_written_is_named() {
    let f = Folder::with_files(1);
    let roots = [f.root.clone()];
    let place = Path::new("/proc/keyfold-test/store");
    let e = update(
        place,
        &roots,
        &Words::new(),
        &IndexOptions::default(),
        &NoProgress,
    );
    let e = e.unwrap_err();
    assert!(matches!(e, SearchError::Write { .. }), "{e}");
    assert!(e.to_string().contains("/proc/keyfold-test/store"), "{e}");
}

#[test]
fn reading_writes_nothing() {
    let f = Folder::with_files(3);
    let encoder = Words::new();
    f.update(&encoder);
    let look = || {
        let files = common::files_below(&f.store).into_iter();
        let about = files.map(|path| {
            let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
            (std::fs::read(&path).unwrap(), path, modified)
        });
        about.collect::<Vec<_>>()
    };
    let before = look();
    assert_whole(&f.open());
    f.assert_sound();
    assert_eq!(f.update(&encoder).unchanged, 3);
    assert!(look() == before);
}

#[test]
#[cfg(target_os = "linux")]
fn names_that_are_not_text_are_left_out_and_said() {
    use std::os::unix::ffi::OsStrExt;
    let f = Folder::with_files(1);
    let odd = f.root.join(std::ffi::OsStr::from_bytes(b"caf\xe9.txt"));
    std::fs::write(odd, "au lait").unwrap();
    let progress = StopAfter {
        bytes: u64::MAX,
        done: AtomicU64::new(0),
        notes: Mutex::default(),
    };
    let roots = [f.root.clone()];
    let encoder = Words::new();
    let options = IndexOptions::default();
    update(&f.store, &roots, &encoder, &options, &progress).unwrap();
    assert_eq!(assert_whole(&f.open()), ["0.txt"]);
    let notes = progress.notes.into_inner().unwrap();
    assert!(notes.iter().any(|n| n.contains("not UTF-8")), "{notes:?}");
}
