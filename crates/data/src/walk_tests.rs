use super::*;

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

/// Names of the given files relative to the root, and the errors as text.
fn names(root: &Path, options: &WalkOptions) -> (Vec<String>, Vec<WalkError>) {
    let (mut files, mut errors) = (Vec::new(), Vec::new());
    for item in walk(&[root.to_path_buf()], options).unwrap() {
        match item {
            Ok(entry) => {
                let name = entry.path.strip_prefix(root).unwrap();
                files.push(name.to_string_lossy().replace('\\', "/"));
            }
            Err(error) => errors.push(error),
        }
    }
    (files, errors)
}

fn globs(globs: &[&str]) -> WalkOptions {
    WalkOptions {
        globs: globs.iter().map(ToString::to_string).collect(),
        ..WalkOptions::default()
    }
}

#[test]
fn ignore_files_count_outside_git_and_stores_are_never_entered() {
    let folder = tree(&[
        (".gitignore", "target\n*.log\n"),
        ("a.txt", "a"),
        ("b.log", "b"),
        ("target/c.txt", "c"),
        ("sub/d.md", "d"),
        (".hidden/e.txt", "e"),
        (".keyfold/f.txt", "f"),
        ("sub/.keyfold/g.txt", "g"),
    ]);
    let (files, errors) = names(folder.path(), &WalkOptions::default());
    assert_eq!(files, ["a.txt", "sub/d.md"]);
    assert_eq!(errors, []);

    let all = WalkOptions {
        hidden: true,
        ignore_files: false,
        ..WalkOptions::default()
    };
    let (files, _) = names(folder.path(), &all);
    let expected = [
        ".gitignore",
        ".hidden/e.txt",
        "a.txt",
        "b.log",
        "sub/d.md",
        "target/c.txt",
    ];
    assert_eq!(files, expected);
}

#[test]
fn globs_and_types_choose_as_in_ripgrep() {
    let folder = tree(&[
        ("a.md", ""),
        ("a.rs", "x"),
        ("docs/b.md", "x"),
        ("docs/old/c.md", "x"),
        ("src/d.rs", "x"),
    ]);
    let found = |options: &WalkOptions| names(folder.path(), options).0;
    assert_eq!(found(&globs(&["*.rs"])), ["a.rs", "src/d.rs"]);
    assert_eq!(found(&globs(&["docs/**", "!docs/old"])), ["docs/b.md"]);
    assert_eq!(found(&globs(&["!*.md"])), ["a.rs", "src/d.rs"]);
    let rust = WalkOptions {
        types: vec!["rust".to_string()],
        ..WalkOptions::default()
    };
    assert_eq!(found(&rust), ["a.rs", "src/d.rs"]);
}

#[test]
fn the_filter_agrees_with_the_walk() {
    let folder = tree(&[
        ("a.md", "x"),
        ("a.rs", "x"),
        ("docs/b.md", "x"),
        ("docs/old/c.md", "x"),
        ("src/d.rs", "x"),
        ("src/deep/e.py", "x"),
    ]);
    let everything = names(folder.path(), &WalkOptions::default()).0;
    let cases: [(&[&str], &[&str]); 8] = [
        (&[], &[]),
        (&["*.rs"], &[]),
        (&["docs/**", "!docs/old"], &[]),
        (&["!src"], &[]),
        (&["/src/*"], &[]),
        (&[], &["rust", "py"]),
        (&["*.md"], &["rust"]),
        (&["!a.*"], &["markdown"]),
    ];
    for (case, types) in cases {
        let options = WalkOptions {
            types: types.iter().map(ToString::to_string).collect(),
            ..globs(case)
        };
        let (walked, _) = names(folder.path(), &options);
        for root in [Path::new(""), folder.path()] {
            let filter = PathFilter::new(root, &options.globs, &options.types).unwrap();
            let filtered: Vec<_> = everything
                .iter()
                .filter(|name| filter.passes(&root.join(name)))
                .cloned()
                .collect();
            assert_eq!(filtered, walked, "{case:?} {types:?} from {root:?}");
        }
    }
}

#[test]
fn bad_globs_and_types_say_what_is_wrong() {
    let error = walk(&[PathBuf::from(".")], &globs(&["a{b"])).err().unwrap();
    assert!(error.to_string().starts_with("glob \"a{b\": "), "{error}");
    let options = WalkOptions {
        types: vec!["klingon".to_string()],
        ..WalkOptions::default()
    };
    let error = walk(&[PathBuf::from(".")], &options).err().unwrap();
    assert_eq!(error, FilterError::Type("klingon".to_string()));
}

#[test]
fn roots_may_be_files_and_missing_ones_are_reported() {
    let folder = tree(&[(".gitignore", "*.log"), ("b.log", "b")]);
    let file = folder.path().join("b.log");
    let missing = folder.path().join("missing");
    let items: Vec<_> = walk(&[file.clone(), missing.clone()], &WalkOptions::default())
        .unwrap()
        .collect();
    assert_eq!(items.len(), 2);
    assert_eq!(items[0].as_ref().unwrap().path, file);
    assert_eq!(items[0].as_ref().unwrap().size, 1);
    let Err(WalkError::Failed(notice)) = &items[1] else {
        panic!("{items:?}")
    };
    assert_eq!(notice.path, missing);
}

#[test]
fn large_files_are_reported_with_the_options_name() {
    let folder = tree(&[("big.txt", "0123456789"), ("small.txt", "x")]);
    let options = WalkOptions {
        max_file_size: 9,
        ..WalkOptions::default()
    };
    let (files, errors) = names(folder.path(), &options);
    assert_eq!(files, ["small.txt"]);
    assert!(matches!(&errors[..], [WalkError::Skipped(notice)]
        if notice.path.ends_with("big.txt") && notice.to_string().contains("max-file-size")));
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    #[test]
    fn pipes_and_sockets_are_skipped_without_being_opened() {
        let folder = tree(&[("a.txt", "a")]);
        let made = std::process::Command::new("mkfifo")
            .arg(folder.path().join("pipe"))
            .status()
            .unwrap();
        assert!(made.success());
        let _listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let (files, errors) = names(folder.path(), &WalkOptions::default());
        assert_eq!(files, ["a.txt"]);
        let lines: Vec<_> = errors.iter().map(|e| e.notice().why.as_str()).collect();
        assert_eq!(lines, ["is a pipe", "is a socket"]);
        assert!(errors.iter().all(|e| matches!(e, WalkError::Skipped(_))));
    }

    #[test]
    fn link_loops_end_and_links_are_followed_only_on_request() {
        let folder = tree(&[("sub/a.txt", "a")]);
        symlink("..", folder.path().join("sub/loop")).unwrap();
        symlink("sub/a.txt", folder.path().join("link.txt")).unwrap();
        symlink("nowhere", folder.path().join("dangling")).unwrap();
        let (files, errors) = names(folder.path(), &WalkOptions::default());
        assert_eq!(files, ["sub/a.txt"]);
        assert_eq!(errors, []);

        let follow = WalkOptions {
            follow_links: true,
            ..WalkOptions::default()
        };
        let (files, errors) = names(folder.path(), &follow);
        assert_eq!(files, ["link.txt", "sub/a.txt"]);
        let paths: Vec<_> = errors
            .iter()
            .map(|e| e.notice().path.strip_prefix(folder.path()).unwrap())
            .collect();
        assert_eq!(paths, [Path::new("dangling"), Path::new("sub/loop")]);
    }

    #[test]
    fn a_locked_folder_is_reported_and_the_walk_goes_on() {
        let folder = tree(&[("locked/a.txt", "a"), ("z.txt", "z")]);
        let locked = folder.path().join("locked");
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
        let readable = fs::read_dir(&locked).is_ok();
        let (files, errors) = names(folder.path(), &WalkOptions::default());
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).unwrap();
        if readable {
            return; // root may read everything
        }
        assert_eq!(files, ["z.txt"]);
        assert!(matches!(&errors[..], [WalkError::Failed(n)] if n.path.ends_with("locked")));
    }
}
