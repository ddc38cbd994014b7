//! How the store names files: by keys that stay right when a folder is moved
//! together with the store in it.
//!
//! The key of a file below the folder that holds the store is its path from
//! there; the key of any other file is its whole path. `/` stands between folders.

use std::path::{Component, Path, PathBuf};

/// The folder that holds the store in `store`.
pub(crate) fn base(store: &Path) -> PathBuf {
    match store.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The key of an absolute path without links, from an absolute base without
/// links; none if it is not UTF-8.
pub(crate) fn key(base: &Path, path: &Path) -> Option<String> {
    let text = path.strip_prefix(base).unwrap_or(path).to_str()?;
    match text {
        "" => Some(".".to_owned()),
        _ if std::path::MAIN_SEPARATOR == '/' => Some(text.to_owned()),
        _ => Some(text.replace(std::path::MAIN_SEPARATOR, "/")),
    }
}

/// The path that a key stands for.
pub(crate) fn path(base: &Path, key: &str) -> PathBuf {
    if key == "." {
        return base.to_owned();
    }
    // `join` takes an absolute key as it is.
    base.join(key)
}

/// Whether a key lies at or below the key of a folder or file.
pub(crate) fn is_below(key: &str, root: &str) -> bool {
    if root == "." {
        let first = Path::new(key).components().next();
        return matches!(first, Some(Component::Normal(_)));
    }
    match key.strip_prefix(root) {
        Some(rest) => rest.is_empty() || rest.starts_with('/') || root.ends_with('/'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn keys_lead_back_and_know_their_folders() {
        let base = Path::new("/home/a");
        for (full, expected) in [
            ("/home/a/b/c.md", "b/c.md"),
            ("/home/ab/c.md", "/home/ab/c.md"),
            ("/home/a", "."),
        ] {
            let k = key(base, Path::new(full)).unwrap();
            assert_eq!(k, expected);
            assert_eq!(path(base, &k), Path::new(full));
        }
        assert!(is_below("b/c.md", "."));
        assert!(!is_below("/home/ab/c.md", "."));
        assert!(is_below("b/c.md", "b") && is_below("b/c.md", "b/c.md"));
        assert!(!is_below("bc/d", "b"));
        assert!(is_below("/x/y", "/x") && is_below("/x/y", "/"));
    }
}
