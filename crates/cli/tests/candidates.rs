//! Ways to find candidates, from the command line.

mod common;

use common::Notes;

const QUERY: [&str; 5] = ["search", "boat in the wind", "--mode", "meaning", "--json"];

#[test]
fn every_way_gives_the_same_hits_on_a_small_store() {
    let notes = Notes::new();
    let exact = notes.run(&[&QUERY[..], &["--exhaustive"]].concat()).json();
    for way in ["auto", "fde", "centroids", "plaid", "warp", "exhaustive"] {
        let found = notes.run(&[&QUERY[..], &["--candidates", way]].concat());
        assert_eq!(found.json()["hits"], exact["hits"], "{way}");
    }
    let read = notes.run(&[&QUERY[..], &["--low-memory"]].concat());
    assert_eq!(read.json()["hits"], exact["hits"]);
    notes
        .run(&["search", "boat", "--candidates", "guessing"])
        .fails(2, &["guessing", "centroids"]);
    for options in [
        &["plaid", "--plaid", "next-plaid", "--threshold", "-1"][..],
        &["plaid", "--nprobe", "4", "--full-scores", "4096"],
        &[
            "warp",
            "--nprobe",
            "8",
            "--t-prime",
            "5000",
            "--bound",
            "64",
        ],
        &["centroids", "--nprobe", "4"],
    ] {
        let found = notes.run(&[&QUERY[..], &["--candidates"], options].concat());
        assert_eq!(found.json()["hits"], exact["hits"], "{options:?}");
    }
    for (options, said) in [
        (
            &["auto", "--nprobe", "4"][..],
            "--candidates centroids, plaid or warp",
        ),
        (&["warp", "--threshold", "0.4"], "--candidates plaid"),
        (&["plaid", "--bound", "64"], "--candidates warp"),
        (&["plaid", "--nprobe", "0"], "--nprobe"),
        (&["plaid", "--threshold", "1.5"], "between -1 and 1"),
        (
            &["plaid", "--plaid", "fast-plaid", "--threshold", "0.4"],
            "next-plaid",
        ),
    ] {
        let refused = notes.run(&[&QUERY[..], &["--candidates"], options].concat());
        refused.fails(2, &[said]);
    }
}

#[test]
fn encodings_are_made_kept_changed_and_removed_on_request() {
    let notes = Notes::new();
    let fde = |args: &[&str]| {
        let report = notes
            .run(&[&["index", ".", "--json"], args].concat())
            .json();
        report["fde"].as_str().map(str::to_owned)
    };
    assert_eq!(fde(&[]), None);
    let default = fde(&["--fde"]).unwrap();
    assert!(default.contains("reps=20,simhash=5,proj=16"), "{default}");
    let another = notes.run(&["index", ".", "--fde=reps=4,simhash=3,proj=8"]);
    assert_eq!(another.code, 0, "{}", another.stderr);
    for part in ["encoded anew", &default, "reps=4,simhash=3,proj=8"] {
        assert!(another.stderr.contains(part), "{}", another.stderr);
    }
    let same = notes.run(&["index", ".", "--fde=reps=4,simhash=3,proj=8"]);
    assert!(!same.stderr.contains("anew"), "{}", same.stderr);
    let small = fde(&[]).unwrap();
    assert!(small.contains("reps=4,simhash=3,proj=8"), "{small}");
    // Kept by later runs, and by one that asks for no particular ones.
    assert_eq!(fde(&[]).as_deref(), Some(&*small));
    assert_eq!(fde(&["--fde"]).as_deref(), Some(&*small));
    notes.run(&["check"]).ok();
    assert_eq!(fde(&["--fde=none"]), None);
    for (bad, part) in [
        ("planes=3", "simhash=5"),
        ("simhash=30", "at most 16"),
        ("proj=4096", "at most"),
    ] {
        let bad = format!("--fde={bad}");
        notes.run(&["index", ".", &bad]).fails(2, &[part]);
    }
    // So few passages are all scored: encodings are not needed.
    notes
        .run(&[&QUERY[..], &["--candidates", "fde", "--no-update"]].concat())
        .json();
}

#[test]
fn tuning_is_told_kept_and_forgotten() {
    let notes = Notes::new();
    notes.run(&["index", "."]).ok();
    let report = notes
        .run(&["tune", ".", "--fde", "--queries", "5", "--json"])
        .json();
    assert!(report["trials"].as_array().unwrap().len() > 2);
    assert!(report["chosen"]["recall"].as_f64().unwrap() >= 0.98);
    let table = notes.run(&["tune", ".", "--queries", "5"]).ok();
    assert!(
        table.contains("exhaustive") && table.contains("chosen"),
        "{table}"
    );
    notes.run(&QUERY).json();
    notes.run(&["check"]).ok();
    notes.run(&["tune", ".", "--forget"]).ok();
    notes
        .run(&["tune", ".", "--recall", "1.5"])
        .fails(2, &["0.98"]);
    notes
        .run(&["tune", ".", "--forget", "--fde"])
        .fails(2, &["--fde"]);
    std::fs::create_dir(notes.file("elsewhere")).unwrap();
    let none = notes.file("elsewhere/none");
    notes
        .run(&["tune", "--store", none.to_str().unwrap()])
        .fails(1, &["no store"]);
}
