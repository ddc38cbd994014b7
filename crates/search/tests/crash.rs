//! A process that indexes is killed at random moments, or finds the disk full:
//! the store is as it was at its last commit, nothing in it is torn, and the next
//! run finishes the work.
//!
//! `KEYFOLD_CRASH_RUNS` sets the number of kills (24 by default).

#![allow(clippy::unwrap_used)] // also in the helpers of tests

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Words, all_passages, assert_whole, text, write_old};
use keyfold_core::NoProgress;
use keyfold_data::{FileEntry, ReadOptions};
use keyfold_search::SearchError;
use keyfold_search::index::{IndexOptions, update};
use keyfold_search::store::{Snapshot, check};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const FOLDER: &str = "KEYFOLD_CRASH_FOLDER";
/// Files of the folder.
const FILES: usize = 40;

fn options() -> IndexOptions {
    IndexOptions {
        // Every file is a commit, and several are merged in every run.
        commit_every: Duration::ZERO,
        memory: 100_000,
        threads: 2,
        ..IndexOptions::default()
    }
}

/// What the child process does; not a test of its own.
#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn child_indexes() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    let store = folder.join(".keyfold");
    match update(&store, &[folder], &Words::new(), &options(), &NoProgress) {
        Ok(_) => println!("child: finished"),
        Err(e) => println!("child: {e}"),
    }
}

/// Starts [`child_indexes`], in a shell that first runs `prelude`.
fn start(folder: &Path, prelude: &str) -> Child {
    let program = std::env::current_exe().unwrap();
    Command::new("sh")
        .args(["-c", &format!("{prelude} exec \"$0\" \"$@\"")])
        .arg(program)
        .args(["child_indexes", "--exact", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn output(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// A folder whose files have versions.
struct Versions {
    folder: PathBuf,
    /// Version of each file on disk; none: there is no such file.
    on_disk: BTreeMap<usize, Option<usize>>,
    /// Version of each file at the last look into the store.
    in_store: BTreeMap<usize, Option<usize>>,
    clock: u64,
    /// Passages of the versions that were looked for.
    expected: BTreeMap<(usize, usize), Vec<String>>,
}

fn name(file: usize) -> String {
    format!("{file}.txt")
}

/// Text of a version, of a length that differs between versions.
fn content(file: usize, version: usize) -> String {
    format!(
        "file {file} version {version}\n\n{}",
        text(file + 1000 * version, 30 + (file + version) % 5 * 150)
    )
}

/// The passages that a version has.
fn expected_passages(file: usize, version: usize) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name(file));
    let text = content(file, version);
    std::fs::write(&path, &text).unwrap();
    let entry = FileEntry {
        path,
        size: text.len() as u64,
        modified: std::time::SystemTime::now(),
    };
    let document = keyfold_data::read(&entry, &ReadOptions::default()).unwrap();
    document.passages.into_iter().map(|p| p.text).collect()
}

impl Versions {
    fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            on_disk: BTreeMap::new(),
            in_store: BTreeMap::new(),
            clock: 0,
            expected: BTreeMap::new(),
        }
    }

    fn write(&mut self, file: usize, version: Option<usize>) {
        self.clock += 1;
        let path = self.folder.join(name(file));
        match version {
            Some(v) => write_old(&path, &content(file, v), self.clock),
            None => std::fs::remove_file(path).unwrap(),
        }
        self.on_disk.insert(file, version);
    }

    /// Changes, removes and adds about half of the files; how many.
    fn stir(&mut self, rng: &mut StdRng) -> usize {
        let count = rng.random_range(FILES / 4..FILES / 2);
        for _ in 0..count {
            let file = rng.random_range(0..FILES);
            match self.on_disk.get(&file).copied().flatten() {
                Some(_) if rng.random_bool(0.2) => self.write(file, None),
                Some(v) => self.write(file, Some(v + 1)),
                None => self.write(file, Some(self.clock as usize)),
            }
        }
        count
    }

    /// Looks into the store: every file has the version of the last look or that
    /// on disk, with all its passages; the latter if the run finished.
    fn verify(&mut self, finished: bool) {
        let store = self.folder.join(".keyfold");
        let snapshot = match Snapshot::open(&store) {
            Ok(snapshot) => snapshot,
            Err(SearchError::NoStore { .. }) if self.in_store.is_empty() && !finished => return,
            Err(e) => panic!("{e}"),
        };
        let report = check(&store, &NoProgress).unwrap();
        assert!(report.is_sound(), "{:?}", report.damaged);
        let mut passages: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (_, key, text) in all_passages(&snapshot) {
            passages.entry(key).or_default().push(text);
        }
        assert_eq!(assert_whole(&snapshot).len(), passages.len());
        for (&file, &disk) in &self.on_disk {
            let before = self.in_store.get(&file).copied().flatten();
            let found = passages.remove(&name(file)).map(|passages| {
                let version = passages[0].split_whitespace().nth(3).unwrap();
                let version = version.parse().unwrap();
                let expected = self.expected.entry((file, version));
                let expected = expected.or_insert_with(|| expected_passages(file, version));
                assert_eq!(&passages, expected, "file {file}");
                version
            });
            assert!(
                found == disk || (found == before && !finished),
                "file {file}: {found:?} in the store, {before:?} before, {disk:?} on disk"
            );
            self.in_store.insert(file, found);
        }
        assert!(passages.is_empty(), "{passages:?}");
    }
}

#[test]
fn killed_at_any_moment_the_store_is_at_its_last_commit() {
    let runs: usize = std::env::var("KEYFOLD_CRASH_RUNS").map_or(24, |n| n.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().canonicalize().unwrap();
    let mut rng = StdRng::seed_from_u64(runs as u64);
    let mut versions = Versions::new(&folder);
    (0..FILES).for_each(|file| versions.write(file, Some(0)));

    // How long a whole run takes here and now.
    let begun = Instant::now();
    let trial = tempfile::tempdir().unwrap();
    (0..FILES).for_each(|f| write_old(&trial.path().join(name(f)), &content(f, 0), 1));
    assert!(output(start(trial.path(), "")).contains("child: finished"));
    let whole = begun.elapsed();

    let (mut killed, mut progressed) = (0, 0);
    let mut generation = 0;
    let mut work = FILES;
    for _ in 0..runs {
        let mut child = start(&folder, "");
        let share = work as f64 / FILES as f64;
        std::thread::sleep(whole.mul_f64(share * rng.random_range(0.0..0.8)));
        child.kill().unwrap();
        let finished = output(child).contains("child: finished");
        killed += usize::from(!finished);
        versions.verify(finished);
        if let Ok(snapshot) = Snapshot::open(&folder.join(".keyfold")) {
            assert!(snapshot.generation() >= generation, "a commit was lost");
            progressed += usize::from(!finished && snapshot.generation() > generation);
            generation = snapshot.generation();
        }
        work = versions.stir(&mut rng);
    }
    assert!(
        killed > runs / 4 && progressed > 0,
        "{killed} killed, {progressed} after a commit"
    );

    let said = output(start(&folder, ""));
    assert!(said.contains("child: finished"), "{said}");
    versions.verify(true);
    // Nothing of the killed runs is left behind.
    let snapshot = Snapshot::open(&folder.join(".keyfold")).unwrap();
    let segments = common::files_below(&folder.join(".keyfold/segments"));
    assert!(
        segments.len() <= snapshot.segments().len() + 1,
        "{segments:?}"
    );
    let lexical = common::files_below(&folder.join(".keyfold/lexical"));
    assert!(
        lexical.len() <= 7 * snapshot.searcher().segment_readers().len(),
        "{lexical:?}"
    );
}

/// A limit on the size of files stands for a full disk: writing past it fails
/// with an error of the system, at a different place for each limit.
#[test]
#[cfg(unix)]
fn with_the_disk_full_the_store_is_at_its_last_commit() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().canonicalize().unwrap();
    let mut versions = Versions::new(&folder);
    (0..8).for_each(|file| versions.write(file, Some(0)));
    assert!(output(start(&folder, "")).contains("child: finished"));
    versions.verify(true);
    let mut full = 0;
    for (round, blocks) in [0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96]
        .into_iter()
        .enumerate()
    {
        (8 * round..8 * round + 12).for_each(|file| versions.write(file, Some(round + 1)));
        // The signal that would end the process is ignored, so that the write fails.
        let prelude = format!("trap '' XFSZ; ulimit -f {blocks};");
        let said = output(start(&folder, &prelude));
        let finished = said.contains("child: finished");
        if !finished {
            full += 1;
            assert!(
                said.contains("cannot write") && said.contains("Make room"),
                "{said}"
            );
            assert!(said.contains(".keyfold"), "no file is named: {said}");
        }
        versions.verify(finished);
        let left: Vec<_> = common::files_below(&folder.join(".keyfold"))
            .into_iter()
            .filter(|f| f.extension().is_some_and(|e| e == "tmp" || e == "temp"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    assert!(full >= 4, "the limit was met {full} times");
    assert!(output(start(&folder, "")).contains("child: finished"));
    versions.verify(true);
}
