//! Folders of the fixtures, whole or damaged.

use std::fs;
use std::path::{Path, PathBuf};

use keyfold_core::{Encoder, Role};
use keyfold_text::{LoadError, LoadOptions, load};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

pub(crate) fn open(folder: &Path) -> Result<Box<dyn Encoder>, LoadError> {
    load(folder.to_str().unwrap(), &LoadOptions { threads: 1 })
}

/// A copy of a fixture that a test may damage.
pub(crate) fn copy(name: &str) -> TempDir {
    fn copy_into(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy_into(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy_into(&fixture(name), dir.path());
    dir
}

pub(crate) fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(file);
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// The error of a folder that must not load.
#[track_caller]
pub(crate) fn error(folder: &Path) -> String {
    match open(folder) {
        Ok(_) => panic!("{} loads", folder.display()),
        Err(e) => e.to_string(),
    }
}

#[track_caller]
pub(crate) fn assert_error(folder: &Path, parts: &[&str]) {
    let error = error(folder);
    for part in parts {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
}

pub(crate) fn rows(encoder: &dyn Encoder, text: &str, role: Role) -> usize {
    encoder.encode(&[text], role).unwrap()[0].rows()
}
