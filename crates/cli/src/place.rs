//! Where the store of a path is, and which part of it the path means.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::failure::wrong_use;

/// The folder in which a store lies, inside the folder that it indexes.
pub(crate) const STORE_FOLDER: &str = ".keyfold";

/// A path that the user named, and the store that answers for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The path, absolute, without symbolic links.
    pub(crate) path: PathBuf,
    /// The folder of the store, which need not exist yet.
    pub(crate) store: PathBuf,
}

/// Finds the store of `path`: `store` if given, else that of the nearest folder
/// upwards that has one, else the one that the path's own folder will get.
pub(crate) fn locate(path: &Path, store: Option<&Path>) -> anyhow::Result<Place> {
    let absolute = canonical(path)?;
    let store = match store {
        Some(store) => store.to_owned(),
        None => nearest(&absolute),
    };
    Ok(Place {
        path: absolute,
        store,
    })
}

/// The path as the system knows it; a path that is not there is wrong use.
pub(crate) fn canonical(path: &Path) -> anyhow::Result<PathBuf> {
    match path.canonicalize() {
        Ok(absolute) => Ok(absolute),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(wrong_use(format!(
            "there is no file or folder {}; check the spelling",
            path.display()
        ))),
        Err(e) => Err(e).with_context(|| format!("cannot open {}", path.display())),
    }
}

fn nearest(path: &Path) -> PathBuf {
    let folder = match path.parent() {
        Some(parent) if !path.is_dir() => parent,
        _ => path,
    };
    folder
        .ancestors()
        .map(|ancestor| ancestor.join(STORE_FOLDER))
        .find(|store| store.is_dir())
        .unwrap_or_else(|| folder.join(STORE_FOLDER))
}

/// The name of an absolute path in a store, as in
/// [`StoredPassage::key`](keyfold_search::store::StoredPassage::key).
pub(crate) fn key(store: &Path, path: &Path) -> String {
    let store = store.canonicalize().unwrap_or_else(|_| store.to_owned());
    let relative = store.parent().and_then(|base| path.strip_prefix(base).ok());
    match relative.unwrap_or(path).to_string_lossy() {
        here if here.is_empty() => ".".to_owned(),
        key => key.replace(std::path::MAIN_SEPARATOR, "/"),
    }
}

/// A path as short as it can be typed here: without the working folder in front.
pub(crate) fn shown(path: &Path) -> PathBuf {
    match here().and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned)) {
        Some(relative) if relative != Path::new("") => relative,
        _ => path.to_owned(),
    }
}

/// A line that begins with a path, with that path as in [`shown`].
pub(crate) fn without_here(line: &str) -> String {
    let here = here().map(|here| format!("{}{}", here.display(), std::path::MAIN_SEPARATOR));
    let short = here.and_then(|here| line.strip_prefix(&here).map(str::to_owned));
    short.unwrap_or_else(|| line.to_owned())
}

fn here() -> Option<PathBuf> {
    std::env::current_dir()
        .and_then(|here| here.canonicalize())
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_store_upwards_answers() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let deep = root.join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("note.md"), "x").unwrap();

        // No store yet: the folder gets its own, a file that of its folder.
        assert_eq!(nearest(&deep), deep.join(STORE_FOLDER));
        assert_eq!(nearest(&deep.join("note.md")), deep.join(STORE_FOLDER));

        std::fs::create_dir(root.join(STORE_FOLDER)).unwrap();
        assert_eq!(locate(&deep, None).unwrap().store, root.join(STORE_FOLDER));
        assert_eq!(
            locate(&deep.join("note.md"), None).unwrap().store,
            root.join(STORE_FOLDER)
        );

        let other = Path::new("elsewhere");
        assert_eq!(locate(&deep, Some(other)).unwrap().store, other);
    }

    #[test]
    fn paths_are_shown_as_short_as_they_can_be_typed() {
        let here = here().unwrap();
        assert_eq!(shown(&here.join("a/b.md")), Path::new("a/b.md"));
        assert_eq!(shown(&here), here);
        assert_eq!(shown(Path::new("/else/where")), Path::new("/else/where"));
        let line = format!("{}: is empty", here.join("b.md").display());
        assert_eq!(without_here(&line), "b.md: is empty");
        assert_eq!(without_here("c.md: is empty"), "c.md: is empty");
    }

    #[test]
    fn a_missing_path_is_wrong_use() {
        let error = locate(Path::new("no/such/folder"), None).unwrap_err();
        assert!(error.is::<crate::failure::WrongUse>(), "{error}");
        assert!(error.to_string().contains("no/such/folder"), "{error}");
    }
}
