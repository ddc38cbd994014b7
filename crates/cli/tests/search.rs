//! The main job: a folder is read, searched, changed, and searched again.

mod common;

use std::path::Path;

use common::{BANK, Notes};
use serde_json::Value;

#[test]
fn the_right_file_comes_first_by_meaning_and_by_words() {
    let notes = Notes::new();
    for (query, expected) in [
        ("growing vegetables", "garden.md"),
        ("flowers in cold weather", "garden.md"),
        ("ocean vessel in bad weather", "trips/ship.md"),
        ("bank deposit profit", "code/bank.py"),
    ] {
        let found = notes.find(query, &["-k", "1", "--mode", "meaning"]);
        assert_eq!(found, [expected], "{query}");
    }
    assert_eq!(
        notes.find("savings account", &["-k", "1"]),
        ["code/bank.py"]
    );
    // Words alone find words alone.
    assert_eq!(notes.find("straw", &["--mode", "lexical"]), ["garden.md"]);
    let nothing = notes.run(&["search", "zeppelin", "--mode", "lexical"]);
    assert_eq!((nothing.code, nothing.stdout.as_str()), (1, ""));
}

#[test]
fn changes_are_found_by_the_next_search() {
    let notes = Notes::new();
    assert_eq!(notes.find("telescope", &["--mode", "lexical"]), [""; 0]);

    notes.write("stars.md", "The telescope shows the moons of Jupiter.\n");
    assert_eq!(
        notes.find("telescope", &["--mode", "lexical"]),
        ["stars.md"]
    );

    notes.write("stars.md", "The microscope shows the cells of an onion.\n");
    assert_eq!(notes.find("telescope", &["--mode", "lexical"]), [""; 0]);
    assert_eq!(
        notes.find("microscope", &["--mode", "lexical"]),
        ["stars.md"]
    );
    assert_eq!(
        notes.find("looking at tiny cells", &["-k", "1"]),
        ["stars.md"]
    );

    std::fs::remove_file(notes.file("stars.md")).unwrap();
    assert_eq!(notes.find("microscope", &["--mode", "lexical"]), [""; 0]);
    assert!(
        !notes
            .find("looking at tiny cells", &[])
            .contains(&"stars.md".to_owned())
    );
}

#[test]
fn without_update_the_store_is_searched_as_it_is() {
    let notes = Notes::new();
    notes.run(&["index", "."]).ok();
    notes.write("stars.md", "The telescope shows the moons of Jupiter.\n");
    let find = |more: &[&str]| notes.find("telescope", &[&["--mode", "lexical"], more].concat());
    assert_eq!(find(&["--no-update"]), [""; 0]);
    assert_eq!(find(&[]), ["stars.md"]);
}

#[test]
fn a_second_index_run_reads_only_what_changed() {
    let notes = Notes::new();
    let first = notes.run(&["index", ".", "--json"]).json();
    assert_eq!(first["read"], 3);
    let second = notes.run(&["index", ".", "--json"]).json();
    assert_eq!(second["read"], 0);
    assert_eq!(second["unchanged"], 3);
    notes.write("code/bank.py", &BANK.replace("interest", "dividend"));
    let third = notes.run(&["index", ".", "--json"]).json();
    assert_eq!(
        (&third["read"], &third["unchanged"]),
        (&Value::from(1), &Value::from(2))
    );
}

#[test]
fn a_hit_in_json_says_where_it_is_and_why() {
    let notes = Notes::new();
    let found = notes
        .run(&[
            "search",
            "water the tomatoes",
            "--json",
            "--explain",
            "-k",
            "2",
        ])
        .json();
    assert_eq!(found["query"], "water the tomatoes");
    let hits = found["hits"].as_array().unwrap();
    assert!(!hits.is_empty() && hits.len() <= 2);
    let best = &hits[0];
    assert_eq!(best["path"], "garden.md");
    assert!(best["score"].as_f64().unwrap() > 0.0);
    let text = best["text"].as_str().unwrap();
    assert!(text.contains("Water the tomatoes"), "{text}");
    assert_eq!(best["headings"][0], "Garden");

    // The lines are those of the file.
    let source = std::fs::read_to_string(notes.file("garden.md")).unwrap();
    let line = |i: usize| best["lines"][i].as_u64().unwrap() as usize;
    let lines: Vec<&str> = source.lines().collect();
    let shown = lines[line(0) - 1..line(1)].join("\n");
    assert!(shown.contains("Water the tomatoes"), "{shown}");

    // The matches are bytes of the text, and words of the query are among them.
    let matched: Vec<&str> = best["matches"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            let at = |end: &str| m[end].as_u64().unwrap() as usize;
            &text[at("start")..at("end")]
        })
        .collect();
    assert!(
        matched.iter().any(|m| m.contains("tomatoes")),
        "{matched:?}"
    );

    // Both retrievers found it, and the pairs of words say why.
    for retriever in ["lexical", "meaning"] {
        assert_eq!(best[retriever]["rank"], 1, "{best}");
        let met = best["explanation"].as_array().unwrap().iter().any(|pair| {
            let word = |side: &str| pair[side].as_str().unwrap_or("").to_lowercase();
            pair["retriever"] == retriever
                && word("query").contains("tomatoes")
                && word("passage").contains("tomatoes")
        });
        assert!(met, "{best}");
    }
}

#[test]
fn people_see_path_lines_headings_and_text() {
    let notes = Notes::new();
    let shown = notes.run(&["search", "water the tomatoes", "-k", "1"]).ok();
    let mut lines = shown.lines();
    let first = lines.next().unwrap();
    assert!(first.starts_with("garden.md:"), "{shown}");
    assert!(lines.next().unwrap().contains("Garden"), "{shown}");
    assert!(
        shown.contains("Water the tomatoes every morning"),
        "{shown}"
    );
    assert!(!shown.contains('\u{1b}'), "no colour in a pipe");

    let coloured = notes
        .run(&[
            "search",
            "water the tomatoes",
            "-k",
            "1",
            "--color",
            "always",
        ])
        .ok();
    assert!(
        coloured.contains("\u{1b}[1m"),
        "matches are bold: {coloured:?}"
    );
}

#[test]
fn explanations_are_shown() {
    let notes = Notes::new();
    let shown = notes
        .run(&["search", "tomatoes", "-k", "1", "--explain"])
        .ok();
    assert!(shown.contains("lexical: rank 1"), "{shown}");
    assert!(shown.contains("meaning: rank 1"), "{shown}");
    assert!(shown.contains("tomatoes = "), "{shown}");
}

#[test]
fn filters_narrow_the_search() {
    let notes = Notes::new();
    notes.run(&["index", "."]).ok();
    let all = notes.find("the", &["--mode", "meaning"]);
    assert_eq!(all.len(), 3, "{all:?}");
    assert_eq!(notes.find("the", &["--glob", "*.py"]), ["code/bank.py"]);
    assert_eq!(notes.find("the", &["--glob", "!*.md"]), ["code/bank.py"]);
    assert_eq!(notes.find("the", &["--type", "py"]), ["code/bank.py"]);
    assert_eq!(
        notes.find("the", &["--type", "md", "--glob", "trips/**"]),
        ["trips/ship.md"]
    );

    // A path below the store's folder is a filter too.
    assert_eq!(notes.find("the", &["trips"]), ["trips/ship.md"]);
    assert_eq!(notes.find("the", &["garden.md"]), ["garden.md"]);
    let deep = common::keyfold(
        &notes.file("trips"),
        &["search", "the", "-l", "--mode", "meaning"],
    );
    assert_eq!(deep.ok(), "ship.md\n");
    assert!(
        !notes.file("trips/.keyfold").exists(),
        "the store above answers"
    );

    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(40 * 86_400);
    let file = std::fs::File::options()
        .append(true)
        .open(notes.file("garden.md"))
        .unwrap();
    file.set_modified(old).unwrap();
    let recent = notes.find("the", &["--since", "7d"]);
    assert!(
        !recent.contains(&"garden.md".to_owned()) && recent.len() == 2,
        "{recent:?}"
    );
    assert_eq!(notes.find("the", &["--before", "7d"]), ["garden.md"]);
}

#[test]
fn ignored_and_hidden_files_are_left_out_unless_asked_for() {
    let notes = Notes::new();
    notes.write(".gitignore", "secret.md\n");
    notes.write("secret.md", "The treasure is under the oak.\n");
    notes.write(".hidden.md", "The treasure is in the cellar.\n");
    let find = |more: &[&str]| {
        let mut found = notes.find("treasure", &[&["--mode", "lexical"], more].concat());
        found.sort();
        found
    };
    assert_eq!(find(&[]), [""; 0]);
    assert_eq!(find(&["--no-ignore"]), ["secret.md"]);
    assert_eq!(
        find(&["--no-ignore", "--hidden"]),
        [".hidden.md", "secret.md"]
    );
}

#[test]
fn exhaustive_search_agrees_on_a_small_store() {
    let notes = Notes::new();
    let query = ["search", "boat in the wind", "--mode", "meaning", "--json"];
    let fast = notes.run(&query).json();
    let exact = notes.run(&[&query[..], &["--exhaustive"]].concat()).json();
    assert_eq!(fast["hits"], exact["hits"]);
}

#[test]
fn a_store_elsewhere_serves_several_folders() {
    let notes = Notes::new();
    let store = tempfile::tempdir().unwrap();
    let store = store.path().join("store");
    let store = store.to_str().unwrap();
    notes
        .run(&["index", "trips", "code", "--store", store])
        .ok();
    assert!(!notes.file(".keyfold").exists());
    let find = |query: &str| notes.find(query, &["--store", store, "--no-update", "-k", "1"]);
    assert_eq!(find("sail"), ["trips/ship.md"]);
    assert_eq!(find("savings"), ["code/bank.py"]);
    notes.run(&["check", "--store", store]).ok();
}

#[test]
fn what_is_skipped_is_said() {
    let notes = Notes::new();
    notes.write("empty.md", "");
    std::fs::write(notes.file("noise.bin"), [0u8, 159, 146, 150, 0, 1, 2, 3]).unwrap();
    let run = notes.run(&["index", "."]);
    assert!(run.stderr.contains("empty.md"), "{}", run.stderr);
    assert!(run.stderr.contains("noise.bin"), "{}", run.stderr);
    let summary = run.ok();
    assert!(
        summary.contains("read 3") && summary.contains("skipped 2"),
        "{summary}"
    );
    assert!(summary.contains("bytes per token"), "{summary}");

    let quiet = notes.run(&["index", ".", "--rebuild", "--quiet"]);
    assert_eq!(quiet.stderr, "");
    assert_eq!(quiet.code, 0);
}

#[test]
fn options_of_the_index_are_remembered() {
    let notes = Notes::new();
    notes.run(&["index", ".", "--glob", "*.md"]).ok();
    // The search brings the store up to date as it was made.
    assert_eq!(notes.find("interest", &["--mode", "lexical"]), [""; 0]);
}

#[test]
fn every_number_of_bits_serves() {
    for bits in ["2", "4", "8"] {
        let notes = Notes::new();
        let summary = notes.run(&["index", ".", "--bits", bits, "--json"]).json();
        assert_eq!(summary["bits"], bits.parse::<u64>().unwrap());
        assert_eq!(
            notes.find("vegetables", &["-k", "1"]),
            ["garden.md"],
            "{bits} bits"
        );
    }
}

#[test]
fn results_go_to_stdout_and_nothing_else_does() {
    let notes = Notes::new();
    let run = notes.run(&["search", "tomatoes", "--json", "--quiet"]);
    assert_eq!(run.stderr, "");
    run.json();
}

#[test]
fn a_store_that_another_process_writes_can_be_searched() {
    let notes = Notes::new();
    notes.run(&["index", "."]).ok();
    notes.write("stars.md", "The telescope shows the moons of Jupiter.\n");
    let lock = std::fs::File::open(notes.file(".keyfold/write.lock")).unwrap();
    lock.lock().unwrap();
    let run = notes.run(&["search", "tomatoes", "-k", "1", "-l"]);
    assert!(
        run.stderr.contains("as it is") && run.stderr.contains("wait"),
        "{}",
        run.stderr
    );
    assert_eq!(run.ok(), "garden.md\n");
    notes.run(&["index", "."]).fails(1, &["being written"]);
    drop(lock);
    assert_eq!(
        notes.find("telescope", &["--mode", "lexical"]),
        ["stars.md"]
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_done_and_the_next_run_goes_on() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let notes = Notes::new();
    let text = common::SHIP.repeat(40);
    for i in 0..400 {
        notes.write(&format!("many/{i}.txt"), &format!("Note {i}.\n\n{text}"));
    }
    let child = Command::new(env!("CARGO_BIN_EXE_keyfold"))
        .args(["index", ".", "--threads", "1"])
        .current_dir(notes.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !notes.file(".keyfold/write.lock").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never began");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(100));
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("stopping at the next safe point"), "{said}");
    assert!(said.contains("kept"), "{said}");

    notes.run(&["check"]).ok();
    let rest = notes.run(&["index", ".", "--json"]).json();
    let (read, unchanged) = (
        rest["read"].as_u64().unwrap(),
        rest["unchanged"].as_u64().unwrap(),
    );
    assert_eq!(read + unchanged, 403, "{rest}");
    assert!(read > 0, "it was stopped before the end");
    let found = notes.find("tomatoes", &["-k", "1", "--mode", "lexical"]);
    assert_eq!(found, ["garden.md"]);
}

/// A PDF file with one page per text.
fn pdf(pages: &[&str]) -> Vec<u8> {
    let kids: Vec<String> = (0..pages.len())
        .map(|i| format!("{} 0 R", 4 + 2 * i))
        .collect();
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        format!(
            "<< /Type /Pages /Kids [{}] /Count {} >>",
            kids.join(" "),
            pages.len()
        ),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
            .to_owned(),
    ];
    for (i, text) in pages.iter().enumerate() {
        objects.push(format!(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents {} 0 R \
             /Resources << /Font << /F1 3 0 R >> >> >>",
            5 + 2 * i
        ));
        let content = format!("BT /F1 12 Tf 50 700 Td ({text}) Tj ET");
        objects.push(format!(
            "<< /Length {} >>\nstream\n{content}\nendstream",
            content.len()
        ));
    }
    let mut bytes = b"%PDF-1.4\n".to_vec();
    let mut places = Vec::new();
    for (i, object) in objects.iter().enumerate() {
        places.push(bytes.len());
        bytes.extend(format!("{} 0 obj\n{object}\nendobj\n", i + 1).bytes());
    }
    let table = bytes.len();
    bytes.extend(format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1).bytes());
    for place in places {
        bytes.extend(format!("{place:010} 00000 n \n").bytes());
    }
    let size = objects.len() + 1;
    bytes.extend(
        format!("trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n").bytes(),
    );
    bytes
}

#[test]
fn pdf_files_are_found_by_page_and_damaged_ones_are_named() {
    let notes = Notes::new();
    let bytes = pdf(&[
        "The first page is about the harvest of apples.",
        "The second page is about the migration of storks.",
    ]);
    std::fs::write(notes.file("nature.pdf"), &bytes).unwrap();
    std::fs::write(notes.file("torn.pdf"), &bytes[..bytes.len() / 2]).unwrap();
    let run = notes.run(&["index", "."]);
    assert!(run.stderr.contains("torn.pdf"), "{}", run.stderr);
    assert!(run.ok().contains("failed 1"));
    let query = ["search", "stork migrations", "-k", "1", "--mode", "meaning"];
    let found = notes.run(&[&query[..], &["--json"]].concat()).json();
    let best = &found["hits"][0];
    assert_eq!(
        (&best["path"], &best["part"]),
        (&"nature.pdf".into(), &2.into()),
        "{found}"
    );
    assert_eq!(best["lines"], Value::Null);
    let shown = notes
        .run(&["search", "migration of storks", "-k", "1"])
        .ok();
    assert!(shown.starts_with("nature.pdf page 2"), "{shown}");
}

#[test]
fn a_higher_limit_lets_a_file_pass_that_failed_before() {
    let notes = Notes::new();
    // A row is a passage.
    notes.write(
        "zoo.csv",
        "animal,place\nlion,north\ngiraffe,east\nseal,west\n",
    );
    // Of a file that has just changed nobody can tell whether it changes again.
    let file = std::fs::File::options()
        .write(true)
        .open(notes.file("zoo.csv"));
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    file.unwrap().set_modified(hour_ago).unwrap();
    let index = |options: &[&str]| {
        let report = notes.run(&[&["index", ".", "--json"], options].concat());
        report.json()
    };
    let report = index(&["--max-passages-per-file", "2"]);
    assert_eq!(report["failed"], 1, "{report}");
    // It is remembered as it is, until a limit is given.
    let report = index(&[]);
    assert_eq!((&report["failed"], &report["read"]), (&0.into(), &0.into()));
    assert_eq!(notes.find("giraffe", &["--mode", "lexical"]), [""; 0]);
    let report = index(&["--max-passages-per-file", "100"]);
    assert_eq!((&report["failed"], &report["read"]), (&0.into(), &1.into()));
    assert_eq!(
        notes.find("giraffe", &["--mode", "lexical", "-k", "1"]),
        ["zoo.csv"]
    );
}

/// A tiny random model of those that the text encoders are tested with.
fn model(name: &str) -> String {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../text/tests/fixtures-scorers");
    text.join(name).display().to_string()
}

#[test]
fn feedback_and_mixing_change_the_list() {
    let notes = Notes::new();
    let search = |options: &[&str]| {
        let query = ["search", "boat in the wind", "--json"];
        notes.run(&[&query[..], options].concat()).json()
    };
    let plain = search(&[]);
    let scores = |found: &Value| -> Vec<f64> {
        let hits = found["hits"].as_array().unwrap().iter();
        hits.map(|h| h["score"].as_f64().unwrap()).collect()
    };
    for options in [
        &["--feedback", "vector", "--fuse", "before,after"][..],
        &["--feedback", "rm3,vector", "--fuse", "after"],
        &[
            "--feedback",
            "vector",
            "--feedback-by",
            "rocchio",
            "--fuse",
            "none",
        ],
        &[
            "--feedback",
            "vector",
            "--feedback-rows",
            "added",
            "--fuse",
            "before",
        ],
        &[
            "--mode",
            "lexical",
            "--k1",
            "0.9",
            "--b",
            "0.4",
            "--feedback",
            "rm3",
        ],
    ] {
        let found = search(options);
        assert_eq!(
            found["hits"][0]["path"], plain["hits"][0]["path"],
            "{options:?}"
        );
        assert_ne!(scores(&found), scores(&plain), "{options:?}");
    }
    let mixed = |when| search(&["--feedback", "vector", "--fuse", when])["hits"].clone();
    assert_eq!(mixed("both"), mixed("before,after"));
}

#[test]
fn learnt_weights_take_the_place_of_words() {
    let notes = Notes::new();
    let model = model("splade-bert");
    let query = ["search", "boat", "--mode", "lexical", "--sparse", &model];
    let found = notes.run(&[&query[..], &["--json"]].concat()).json();
    assert!(!found["hits"].as_array().unwrap().is_empty());
    assert!(notes.file(".keyfold/impacts").is_dir());
    // The weights are kept: the second search only reads them.
    let again = notes.run(&query);
    assert!(!again.stderr.contains("weigh terms"), "{}", again.stderr);
    // The store stays whole for everybody else.
    notes.run(&["check", "."]).ok();
}

#[test]
fn a_cross_encoder_makes_the_last_order() {
    let notes = Notes::new();
    let model = model("cross-bert");
    let search = |options: &[&str]| {
        let query = ["search", "boat in the wind", "--json", "--rerank", &model];
        notes.run(&[&query[..], options].concat())
    };
    let scores = |found: &Value| -> Vec<f64> {
        let hits = found["hits"].as_array().unwrap().iter();
        hits.map(|h| h["score"].as_f64().unwrap()).collect()
    };
    let all = scores(&search(&["--calls", "1000"]).json());
    assert!(all.is_sorted_by(|a, b| a >= b), "{all:?}");
    assert_eq!(scores(&search(&["--calls", "2"]).json()).len(), 2);
    // Without scores of anchor queries, the message says how to get them.
    let missing = search(&["--rerank-by", "cur"]);
    missing.fails(1, &["--anchor-queries FILE"]);
    notes.write(
        "queries.txt",
        "flowers\n\nmoney in the bank\nships and storms\n",
    );
    let given = [
        "--rerank-by",
        "cur",
        "--anchor-queries",
        "queries.txt",
        "--anchors",
        "1",
    ];
    let given: Vec<&str> = given
        .into_iter()
        .chain(["--glob", "!queries.txt"])
        .collect();
    let first = scores(&search(&given).json());
    assert!(notes.file(".keyfold/anchors").is_dir());
    // The budget is larger than the store: all is read, and the order is exact.
    assert_eq!(first[0], all[0]);
    let again = scores(&search(&["--rerank-by", "adacur", "--glob", "!queries.txt"]).json());
    assert_eq!(again, first);
    let odd = search(&["--rerank-by", "cur", "--anchors", "100"]);
    odd.fails(1, &["100 anchors", "--calls"]);
}

#[cfg(unix)]
#[test]
fn a_program_of_the_user_makes_the_last_order() {
    let notes = Notes::new();
    notes.write(
        "queries.txt",
        "flowers\nmoney in the bank\nships and storms\nroses\n",
    );
    // Long passages first.
    let program = "cmd:while read -r line; do echo ${#line}; done";
    let search = |program: &str, options: &[&str]| {
        let query = ["search", "boat in the wind", "--json", "--rerank", program];
        notes.run(&[&query[..], options, &["--glob", "!queries.txt"]].concat())
    };
    let found = search(program, &["--calls", "1000"]).json();
    let hits = found["hits"].as_array().unwrap();
    let lengths: Vec<usize> = hits
        .iter()
        .map(|h| h["text"].as_str().unwrap().len())
        .collect();
    assert!(lengths.len() > 2 && lengths[0] == lengths.iter().copied().max().unwrap());
    assert_eq!(found["rerank"]["calls"], hits.len());
    assert_eq!(found["rerank"]["model"], program);
    // Estimates are told with how far they are off.
    let cur = [
        "--rerank-by",
        "cur",
        "--anchors",
        "1",
        "--anchor-queries",
        "queries.txt",
    ];
    let found = search(program, &cur).json();
    assert!(found["rerank"]["relative_error"].as_f64().unwrap() < 2.0);
    // Four anchor queries are enough for two anchors without ridge, not for three.
    let pinv = |anchors: &'static str| {
        let how = [
            "--rerank-by",
            "cur",
            "--ridge",
            "none",
            "--anchors",
            anchors,
        ];
        search(program, &how)
    };
    assert!(pinv("2").json()["rerank"]["relative_error"].is_f64());
    pinv("3").fails(
        1,
        &["twice the 3 anchors", "--anchor-queries", "--ridge none"],
    );
    for wrong in ["0", "nan", "much"] {
        let ridge = ["--rerank-by", "cur", "--ridge", wrong];
        search(program, &ridge).fails(2, &["--ridge", "none"]);
    }
    let broken = search("cmd:echo no; cat", &[]);
    broken.fails(1, &["echo no; cat", "'no'", "one line with one number"]);
    search("cmd:", &[]).fails(2, &["cmd:"]);
    let slow = search("cmd:sleep 9", &["--rerank-timeout", "1"]);
    slow.fails(1, &["sleep 9", "--rerank-timeout"]);
}
