//! Bad input: the message says what, where and what next, and nothing changes.

mod common;

use std::path::Path;

use common::{Notes, contents};

/// A store of the notes, and the notes.
fn indexed() -> Notes {
    let notes = Notes::new();
    notes.run(&["index", "."]).ok();
    notes
}

#[test]
fn a_path_that_is_not_there() {
    let notes = Notes::new();
    for command in [
        &["search", "x", "no/such"][..],
        &["index", "no/such"],
        &["check", "no/such"],
    ] {
        notes
            .run(command)
            .fails(2, &["no/such", "check the spelling"]);
    }
    // One wrong path of several: nothing is read.
    notes
        .run(&["index", "trips", "no/such"])
        .fails(2, &["no/such"]);
    assert!(!notes.file(".keyfold").exists());
    assert!(!notes.file("trips/.keyfold").exists());
}

#[test]
fn an_empty_query() {
    let notes = Notes::new();
    for query in ["", "  \n"] {
        notes
            .run(&["search", query])
            .fails(2, &["query is empty", "keyfold search"]);
    }
    assert!(!notes.file(".keyfold").exists());
}

#[test]
fn options_that_mean_nothing() {
    let notes = indexed();
    let before = contents(notes.path());
    for (options, said) in [
        (&["--sparse-weight", "1.5"][..], "between 0 and 1"),
        (&["--k1", "-1"], "0 or more"),
        (&["--k1", "NaN"], "finite"),
        (&["--feedback-k", "0"], "--feedback-k"),
        (
            &["--feedback", "vector", "--mode", "lexical"],
            "--mode lexical",
        ),
        (
            &["--feedback", "rm3", "--mode", "meaning"],
            "--mode meaning",
        ),
        (&["--feedback", "none,rm3"], "do not go together"),
        (
            &["--fuse", "after", "--mode", "meaning"],
            "leave out --mode",
        ),
        (&["--fuse", "rank,after"], "before,after"),
        (&["--fuse", "both,after"], "both"),
    ] {
        let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        // Numbers below 0 look like options unless they are tied to theirs.
        let options = match &options[..] {
            [name, value] => vec![format!("{name}={value}")],
            _ => options,
        };
        let views: Vec<&str> = options.iter().map(String::as_str).collect();
        notes
            .run(&[&["search", "boat"], &views[..]].concat())
            .fails(2, &[said]);
    }
    let no_model = notes.run(&["search", "boat", "--sparse", "no/model"]);
    no_model.fails(1, &["no/model", "not a folder"]);
    let no_model = notes.run(&["search", "boat", "--rerank", "no/model"]);
    no_model.fails(1, &["no/model", "not a folder"]);
    notes
        .run(&["search", "boat", "--calls", "5"])
        .fails(2, &["--rerank"]);
    for (args, parts) in [
        (&["search", "x", "-k", "0"][..], &["--limit", "0"][..]),
        (&["search", "x", "--mode", "magic"], &["magic", "lexical"]),
        (
            &["search", "x", "--since", "someday"],
            &["someday", "2024-05-01"],
        ),
        (&["search", "x", "--glob", "a["], &["a["]),
        (&["search", "x", "--type", "nonsense"], &["nonsense"]),
        (&["index", ".", "--bits", "3"], &["3"]),
        (&["index", ".", "--memory", "much"], &["much"]),
        (&["index", ".", "--type", "nonsense"], &["nonsense"]),
    ] {
        notes.run(args).fails(2, parts);
    }
    assert_eq!(contents(notes.path()), before);
}

#[test]
fn a_folder_that_is_no_store() {
    let notes = Notes::new();
    let before = contents(notes.path());
    for command in [
        &["search", "x", "--store", "trips"][..],
        &["index", "code", "--store", "trips"],
        &["check", "--store", "trips"],
    ] {
        notes
            .run(command)
            .fails(1, &["trips", "not a Keyfold store", "--store"]);
    }
    assert_eq!(contents(notes.path()), before);
}

#[test]
fn a_store_that_is_not_there_yet() {
    let notes = Notes::new();
    notes
        .run(&["check"])
        .fails(1, &["no store", "keyfold index"]);
    notes
        .run(&["search", "x", "--no-update"])
        .fails(1, &["no store", "keyfold index"]);
    notes
        .run(&["check", "--store", "elsewhere"])
        .fails(1, &["elsewhere", "keyfold index"]);
    assert!(!notes.file(".keyfold").exists());
    assert!(!notes.file("elsewhere").exists());
}

#[test]
fn a_store_of_another_model() {
    let notes = indexed();
    let before = contents(notes.path());
    notes
        .run(&["search", "x", "--model", "no-such-model"])
        .fails(1, &["no-such-model", "config.json"]);
    assert_eq!(contents(notes.path()), before);
}

#[test]
fn a_store_of_another_version() {
    let notes = indexed();
    // The format number stands behind the magic; the checksum must fit again.
    let manifest = notes.file(".keyfold/manifest");
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes[8] = 99;
    let end = bytes.len() - 32;
    let checksum = blake3::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(checksum.as_bytes());
    std::fs::write(&manifest, bytes).unwrap();

    let before = contents(notes.path());
    for command in [&["search", "x"][..], &["index", "."], &["check"]] {
        notes
            .run(command)
            .fails(1, &[".keyfold", "99", "--rebuild"]);
    }
    assert_eq!(contents(notes.path()), before);
    notes.run(&["index", ".", "--rebuild"]).ok();
    assert_eq!(notes.find("tomatoes", &["-k", "1"]), ["garden.md"]);
}

#[test]
fn a_damaged_store() {
    let notes = indexed();
    let segments = notes.file(".keyfold/segments");
    let segment = std::fs::read_dir(&segments)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(&segment, bytes).unwrap();
    let name = segment.file_name().unwrap().to_str().unwrap().to_owned();

    let run = notes.run(&["check"]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stdout.contains(&name), "{}", run.stdout);
    assert!(run.stderr.contains("--rebuild"), "{}", run.stderr);
    let report = notes.run(&["check", "--json"]);
    assert_eq!(report.code, 1);
    let report: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!(report["damaged"].as_array().unwrap().len(), 1, "{report}");

    notes.run(&["index", ".", "--rebuild"]).ok();
    notes.run(&["check"]).ok();
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written() {
    use std::os::unix::fs::PermissionsExt;
    let notes = Notes::new();
    let set = |mode| {
        std::fs::set_permissions(notes.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(0o555);
    let writable = std::fs::write(notes.file("probe"), "").is_ok();
    if !writable {
        // Root may write anywhere, so there is nothing to see then.
        notes
            .run(&["search", "tomatoes"])
            .fails(1, &[".keyfold", "--store"]);
    }
    set(0o755);
}

#[test]
fn a_store_in_a_file() {
    let notes = Notes::new();
    notes
        .run(&["index", ".", "--store", "garden.md"])
        .fails(1, &["garden.md", "--store"]);
    assert_eq!(
        std::fs::read_to_string(notes.file("garden.md")).unwrap(),
        common::GARDEN
    );
}

#[test]
fn bench_and_model_name_what_they_do_not_know() {
    let here = Path::new(".");
    common::keyfold(here, &["bench", "no-such"]).fails(2, &["no-such", "keyfold bench"]);
    common::keyfold(here, &["model", "show", "no-such"]).fails(1, &["no-such"]);
}
