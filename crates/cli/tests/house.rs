//! Help, completions, manual pages and the list of systems.

// Helpers that cannot do their work fail the test that calls them.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::keyfold;
use serde_json::Value;

fn run(args: &[&str]) -> common::Run {
    keyfold(Path::new("."), args)
}

/// The names of all commands, from the program's own help.
fn commands() -> Vec<String> {
    let help = run(&["--help"]).ok();
    let list = help.split("Commands:\n").nth(1).unwrap();
    list.lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  "))
        // What goes on from the line above stands further in.
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_explains_itself() {
    let commands = commands();
    for expected in [
        "search",
        "index",
        "check",
        "systems",
        "bench",
        "model",
        "completions",
        "man",
    ] {
        assert!(
            commands.iter().any(|c| c == expected),
            "no command {expected}"
        );
    }
    for command in &commands {
        let help = run(&[command, "--help"]).ok();
        assert!(
            help.contains(&format!("Usage: keyfold {command}")),
            "{help}"
        );
        assert!(help.contains("--json"), "{command} has no --json");
    }
    assert!(
        !commands.iter().any(|c| c.starts_with("__")),
        "inner commands are hidden"
    );
}

#[test]
fn wrong_use_has_its_own_exit_code() {
    run(&["frobnicate"]).fails(2, &["frobnicate"]);
    run(&["systems", "--frobnicate"]).fails(2, &["--frobnicate"]);
    run(&["--threads", "0", "systems"]).fails(2, &["--threads"]);
    run(&[]).fails(2, &["Usage: keyfold"]);
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]).ok();
        assert!(script.contains("systems"), "{shell}");
    }
}

#[test]
fn manual_pages_are_written() {
    let page = run(&["man"]).ok();
    assert!(page.contains(".TH keyfold 1"), "{page}");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man1");
    run(&["man", "--out", out.to_str().unwrap()]).ok();
    for command in commands() {
        let page = std::fs::read_to_string(out.join(format!("keyfold-{command}.1"))).unwrap();
        assert!(page.contains("SYNOPSIS"), "{command}");
    }
}

#[test]
fn systems_are_listed_for_people_and_for_programs() {
    let table = run(&["systems"]).ok();
    assert!(table.contains("62 entries from 61 works"), "{table}");
    assert!(!table.contains('\u{1b}'), "no colour in a pipe");
    assert!(
        run(&["systems", "--color", "always"])
            .ok()
            .contains('\u{1b}')
    );

    let all = run(&["systems", "--json"]).json();
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 62);
    for system in all {
        for field in ["slug", "title", "authors", "experiment", "claim", "state"] {
            assert!(system[field].is_string(), "{field} in {system}");
        }
    }
    let of_state = |state: &str| {
        let list = run(&["systems", "--state", state, "--json"]).json();
        list.as_array().map_or(0, Vec::len)
    };
    assert_eq!(of_state("planned") + of_state("ready"), 62);

    let one = run(&["systems", "muvera", "--json"]).json();
    assert_eq!(one[0]["slug"], Value::from("muvera"));
    let details = run(&["systems", "pointer-networks"]).ok();
    assert!(
        details.contains("Vinyals") && details.contains("keyfold bench"),
        "{details}"
    );
    run(&["systems", "no-such"]).fails(2, &["no-such", "keyfold systems"]);
}

#[test]
fn a_reader_that_stops_early_is_no_error() {
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_keyfold"))
        .args(["systems", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Nobody reads: the pipe is closed before the program can fill it.
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn an_experiment_prints_a_table_and_writes_a_report() {
    let list = run(&["bench", "--json"]).json();
    let names: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["name"].as_str().unwrap())
        .collect();
    for expected in ["machine", "search", "scale"] {
        assert!(names.contains(&expected), "{names:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("reports");
    let table = run(&[
        "bench",
        "search",
        "--scale",
        "smoke",
        "--out",
        out.to_str().unwrap(),
    ])
    .ok();
    assert!(table.contains("|---"), "{table}");
    let report = std::fs::read_to_string(out.join("search.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["name"], "search");
    assert!(
        std::fs::read_to_string(out.join("search.svg"))
            .unwrap()
            .contains("<svg")
    );
}
