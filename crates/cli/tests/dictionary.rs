//! `keyfold dictionary`: from rows to atoms, codes and rows again.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Notes, command};

/// Rows of 4 numbers: multiples of two directions, as CSV with a label.
fn rows(notes: &Notes, name: &str, count: usize) -> Vec<Vec<f64>> {
    let mut text = String::from("a,b,c,d,kind\n");
    let mut all = Vec::new();
    for i in 0..count {
        let size = 1.0 + (i * 7 % 11) as f64 / 4.0;
        let (row, kind) = match i % 2 {
            0 => ([size, size, 0.0, 0.0], "left"),
            _ => ([0.0, 0.0, size, -size], "right"),
        };
        text.push_str(&format!(
            "{},{},{},{},{kind}\n",
            row[0], row[1], row[2], row[3]
        ));
        all.push(row.to_vec());
    }
    notes.write(name, &text);
    all
}

#[test]
fn every_method_learns_codes_and_gives_rows_back() {
    let notes = Notes::new();
    let all = rows(&notes, "rows.csv", 200);
    for (method, more) in [
        (
            "frank-wolfe",
            &[
                "--set",
                "center=false",
                "--set",
                "transform_n_nonzero_coefs=1",
            ][..],
        ),
        (
            "online",
            &[
                "--set",
                "alpha=0.01",
                "--components",
                "2",
                "--epochs",
                "5",
                "--set",
                "batch_size=20",
            ],
        ),
        ("ksvd", &["--components", "2"]),
        ("mod", &["--components", "2"]),
    ] {
        let fit = [
            "dictionary",
            "fit",
            "rows.csv",
            "--ignore",
            "kind",
            "--method",
            method,
            "--out",
            method,
            "--json",
        ];
        let told = notes.run(&[&fit[..], more].concat()).json();
        assert_eq!(told["method"], method);
        let error = told["relative_error"].as_f64().unwrap();
        assert!(error < 0.02, "{method} loses {error}");
        let encode = [
            "dictionary",
            "encode",
            method,
            "rows.csv",
            "--ignore",
            "kind",
            "--out",
            "codes.csv",
        ];
        notes.run(&encode).ok();
        notes
            .run(&[
                "dictionary",
                "decode",
                method,
                "codes.csv",
                "--out",
                "again.csv",
            ])
            .ok();
        let again = std::fs::read_to_string(notes.file("again.csv")).unwrap();
        for (line, row) in again.lines().zip(&all) {
            let line: Vec<f64> = line.split(',').map(|x| x.parse().unwrap()).collect();
            let near = line.iter().zip(row).all(|(x, y)| (x - y).abs() < 0.2);
            assert!(near, "{method}: {line:?} {row:?}");
        }
    }
    // Parts of rows that are not negative.
    let bad = [
        "dictionary",
        "fit",
        "rows.csv",
        "--ignore",
        "kind",
        "--method",
        "nmf",
        "--out",
        "nmf",
    ];
    notes.run(&bad).fails(1, &["row 2", "column 4", "negative"]);
    let shown = notes
        .run(&[
            "dictionary",
            "show",
            "ksvd",
            "--data",
            "rows.csv",
            "--ignore",
            "kind",
            "--json",
        ])
        .json();
    assert_eq!(shown["n_components"], 2);
    let used: u64 = (0..2)
        .map(|i| shown["atoms"][i]["rows"].as_u64().unwrap())
        .sum();
    assert_eq!(used, 200);
    let text = notes.run(&["dictionary", "show", "ksvd"]).ok();
    assert!(text.contains("2 atoms of 4 numbers"), "{text}");
    notes
        .run(&["dictionary", "show", "ksvd", "--out", "atoms.svg"])
        .ok();
    let svg = std::fs::read_to_string(notes.file("atoms.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("h1v1h-1z"));
}

#[test]
fn a_stream_is_learned_from_and_continued() {
    let notes = Notes::new();
    rows(&notes, "rows.csv", 205);
    let text = std::fs::read_to_string(notes.file("rows.csv")).unwrap();
    let plain: Vec<String> = text
        .lines()
        .skip(1)
        .map(|l| l.rsplit_once(',').unwrap().0.to_owned())
        .collect();
    let feed = |lines: &[String], args: &[&str]| {
        let output = command(notes.path(), args)
            .write_stdin(lines.join("\n"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let fit = ["dictionary", "fit", "-", "--method", "frank-wolfe", "--out"];
    feed(&plain, &[&fit[..], &["whole"]].concat());
    feed(&plain[..77], &[&fit[..], &["cut"]].concat());
    feed(&plain[77..], &[&fit[..], &["cut", "--resume"]].concat());
    let part = |folder: &str, what: &str| {
        let path = std::fs::read_dir(notes.file(folder))
            .unwrap()
            .map(|e| e.unwrap().path());
        let mut found = path.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with(what));
        std::fs::read(found.next().unwrap()).unwrap()
    };
    for what in ["dictionary", "state"] {
        assert_eq!(part("whole", what), part("cut", what), "the same bits");
    }
    notes
        .run(&[&fit[..], &["whole"]].concat())
        .fails(2, &["whole", "--resume"]);
    notes
        .run(&[&fit[..], &["none", "--resume"]].concat())
        .fails(2, &["none", "no dictionary"]);

    // Bare numbers, coded as they come.
    let floats: Vec<u8> = [1f32, 1.0, 0.0, 0.0]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let output = command(
        notes.path(),
        &[
            "dictionary",
            "encode",
            "whole",
            "-",
            "--width",
            "4",
            "--json",
        ],
    )
    .write_stdin(floats)
    .output()
    .unwrap();
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["atoms"].as_array().unwrap().len(), 1);
}

#[test]
fn a_sparse_autoencoder_is_trained_and_written_as_others_read_it() {
    let notes = Notes::new();
    rows(&notes, "rows.csv", 256);
    let fit = [
        "dictionary",
        "fit",
        "rows.csv",
        "--ignore",
        "kind",
        "--method",
        "sae",
        "--components",
        "8",
        "--out",
        "sae",
        "--epochs",
        "40",
        "--set",
        "k=1",
        "--set",
        "batch_size=64",
        "--set",
        "lr=0.01",
    ];
    notes.run(&fit).ok();
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(notes.file("sae/cfg.json")).unwrap()).unwrap();
    assert_eq!(
        (config["architecture"].as_str(), config["d_sae"].as_u64()),
        (Some("topk"), Some(8))
    );
    assert!(notes.file("sae/sae_weights.safetensors").is_file());
    let resumed = [
        "dictionary",
        "fit",
        "rows.csv",
        "--ignore",
        "kind",
        "--method",
        "sae",
        "--out",
        "sae",
        "--resume",
        "--json",
    ];
    let told = notes.run(&resumed).json();
    assert_eq!(told["steps"], 164);
    notes
        .run(&[
            "dictionary",
            "encode",
            "sae",
            "rows.csv",
            "--ignore",
            "kind",
            "--out",
            "codes.npy",
        ])
        .ok();
    notes
        .run(&[
            "dictionary",
            "decode",
            "sae",
            "codes.npy",
            "--out",
            "again.npy",
        ])
        .ok();
    assert!(notes.file("again.npy").is_file());
}

#[test]
fn wrong_use_and_bad_rows_are_refused_by_name() {
    let notes = Notes::new();
    rows(&notes, "rows.csv", 20);
    notes.write("broken.csv", "1,2\n3,nan\n");
    notes.write("ragged.csv", "1,2\n3\n");
    notes.write("empty.csv", "");
    let fit = |data: &str, more: &[&str]| {
        let args = ["dictionary", "fit", data, "--out", "new"];
        notes.run(&[&args[..], more].concat())
    };
    fit("broken.csv", &[]).fails(1, &["broken.csv", "row 2, column 2", "NaN"]);
    fit("ragged.csv", &[]).fails(1, &["ragged.csv", "row 2", "1 columns"]);
    fit("empty.csv", &[]).fails(1, &["empty.csv", "no rows"]);
    fit("rows.csv", &[]).fails(1, &["row 1", "kind", "left"]);
    let plain = ["--ignore", "kind"];
    fit("rows.csv", &[&plain[..], &["--set", "alhpa=1"]].concat()).fails(2, &["alhpa", "alpha"]);
    fit(
        "rows.csv",
        &[
            &plain[..],
            &["--method", "frank-wolfe", "--components", "9"],
        ]
        .concat(),
    )
    .fails(1, &["9 atoms of 4"]);
    fit(
        "rows.csv",
        &[&plain[..], &["--method", "ksvd", "--components", "30"]].concat(),
    )
    .fails(1, &["30 atoms", "20 rows"]);
    fit("rows.csv", &[&plain[..], &["--patch", "3x3"]].concat()).fails(2, &["9 numbers", "4"]);
    fit("-", &["--epochs", "2"]).fails(2, &["standard input"]);
    fit("-", &[]).fails(1, &["standard input", "no rows"]);
    fit("-", &["--watch"]).fails(2, &["--watch", "one file"]);
    fit("rows.csv", &["--watch", "--method", "ksvd"]).fails(2, &["--watch", "streams"]);
    fit("none.csv", &["--watch"]).fails(2, &["none.csv"]);
    fit("rows.npy", &["--watch"]).fails(2, &["rows.npy", "--width"]);
    assert!(
        !notes.file("new").exists(),
        "nothing is written by what failed"
    );
    notes
        .run(&["dictionary", "show", "code"])
        .fails(1, &["code", "SAELens"]);
}

#[test]
fn rows_of_another_width_are_refused_even_if_their_numbers_would_fit() {
    let notes = Notes::new();
    notes.write("two.csv", &"1,2\n3,1\n0,4\n2,2\n".repeat(5));
    // As many numbers as three rows of two.
    notes.write("three.csv", "1,2,3\n4,5,6\n");
    let fit = ["dictionary", "fit", "two.csv", "--out", "d"];
    notes.run(&fit).ok();
    let told = ["3 columns", "rows of 2"];
    notes
        .run(&["dictionary", "encode", "d", "three.csv"])
        .fails(1, &told);
    notes
        .run(&["dictionary", "show", "d", "--data", "three.csv"])
        .fails(1, &told);
    notes
        .run(&["dictionary", "fit", "three.csv", "--out", "d", "--resume"])
        .fails(1, &told);
    notes
        .run(&["dictionary", "fit", "two.csv", "three.csv", "--out", "e"])
        .fails(2, &["three.csv", "3 numbers", "2"]);
}

#[test]
fn rows_are_coded_by_the_coder_that_is_named() {
    let notes = Notes::new();
    rows(&notes, "rows.csv", 60);
    let ignore = ["--ignore", "kind"];
    let fit = [
        "dictionary",
        "fit",
        "rows.csv",
        "--method",
        "mod",
        "--components",
        "2",
        "--out",
        "d",
    ];
    notes.run(&[&fit[..], &ignore].concat()).ok();
    let encode = |coder: &str| {
        let args = [
            "dictionary",
            "encode",
            "d",
            "rows.csv",
            "--json",
            "--coder",
            coder,
        ];
        notes.run(&[&args[..], &ignore].concat())
    };
    for coder in [
        "omp:1",
        "lasso-lars:0.01",
        "lasso-cd:0.01",
        "threshold:0.01",
        "hard-threshold:0.01",
        "top-k:1",
    ] {
        let text = encode(coder).ok();
        assert_eq!(text.lines().count(), 60, "{coder}");
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(
            first["atoms"].as_array().unwrap().len(),
            1,
            "{coder}: {first}"
        );
    }
    assert_eq!(encode("top-k:2").ok().lines().count(), 60);
    encode("top-k:3").fails(1, &["k is 3", "2 atoms"]);
    encode("lars").fails(2, &["'lars' is no coder", "omp:8"]);
}

#[test]
fn a_transcoder_and_other_layouts_are_written() {
    let notes = Notes::new();
    rows(&notes, "rows.csv", 128);
    // What is to be told: sums and differences of the columns.
    let mut told = String::new();
    for line in std::fs::read_to_string(notes.file("rows.csv"))
        .unwrap()
        .lines()
        .skip(1)
    {
        let x: Vec<f64> = line
            .split(',')
            .take(4)
            .map(|x| x.parse().unwrap())
            .collect();
        told.push_str(&format!("{},{}\n", x[0] + x[1], x[2] - x[3]));
    }
    notes.write("told.csv", &told);
    notes.write("short.csv", "1,2\n");
    let fit = |out: &str, more: &[&str]| {
        let args = [
            "dictionary",
            "fit",
            "rows.csv",
            "--method",
            "sae",
            "--components",
            "8",
            "--ignore",
            "kind",
            "--epochs",
            "60",
            "--set",
            "batch_size=32",
            "--set",
            "lr=0.02",
            "--out",
            out,
        ];
        notes.run(&[&args[..], more].concat())
    };
    let told = fit("t", &["--targets", "told.csv", "--set", "k=2", "--json"]);
    // Rows of the targets have no column 'kind'.
    told.fails(1, &["told.csv", "kind"]);
    notes.write(
        "told.csv",
        &format!(
            "a,b,kind\n{}",
            std::fs::read_to_string(notes.file("told.csv"))
                .unwrap()
                .replace('\n', ",x\n")
        ),
    );
    let told = fit("t", &["--targets", "told.csv", "--set", "k=2", "--json"]).json();
    assert_eq!(
        (told["n_features"].as_u64(), told["steps"].as_u64()),
        (Some(2), Some(240))
    );
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(notes.file("t/cfg.json")).unwrap()).unwrap();
    assert_eq!(config["d_in"], 4);
    notes
        .run(&[
            "dictionary",
            "encode",
            "t",
            "rows.csv",
            "--ignore",
            "kind",
            "--out",
            "codes.npy",
        ])
        .ok();
    notes
        .run(&[
            "dictionary",
            "decode",
            "t",
            "codes.npy",
            "--out",
            "again.csv",
        ])
        .ok();
    let again = std::fs::read_to_string(notes.file("again.csv")).unwrap();
    let target = std::fs::read_to_string(notes.file("told.csv")).unwrap();
    let (mut error, mut size) = (0.0, 0.0);
    for (got, want) in again.lines().zip(target.lines().skip(1)) {
        for (got, want) in got.split(',').zip(want.split(',')) {
            let (got, want): (f64, f64) = (got.parse().unwrap(), want.parse().unwrap());
            error += (got - want).powi(2);
            size += want * want;
        }
    }
    assert!(error < 0.1 * size, "{error} of {size}");
    fit("s", &["--targets", "short.csv"]).fails(1, &["short.csv"]);
    // The gradient of a metric: as many numbers as a row has.
    fit("s", &["--gradients", "told.csv"]).fails(1, &["4", "2"]);
    fit("s", &["--gradients", "told.csv", "--targets", "told.csv"]).fails(2, &["--targets"]);
    fit("s", &["--set", "architecture=attribution"]).fails(2, &["--gradients"]);
    let targets = ["--targets", "told.csv", "--set", "k=2"];
    fit("s", &[&targets[..], &["--skip-missing"]].concat()).fails(2, &["--skip-missing"]);
    fit("s", &[&targets[..], &["--patch", "2x2"]].concat()).fails(2, &["2x2"]);

    fit("sparsify", &["--layout", "sparsify", "--set", "k=2"]).ok();
    assert!(notes.file("sparsify/sae.safetensors").is_file());
    fit(
        "openai",
        &["--layout", "openai", "--set", "architecture=standard"],
    )
    .ok();
    for path in ["sparsify", "openai", "openai/autoencoder.pt"] {
        let shown = notes.run(&["dictionary", "show", path, "--json"]).json();
        assert_eq!(
            (shown["n_components"].as_u64(), shown["n_features"].as_u64()),
            (Some(8), Some(4))
        );
    }
    fit("none", &["--layout", "openai", "--set", "k=2"]).fails(1, &["OpenAI"]);
    assert!(!notes.file("none").exists());
    let plain = [
        "dictionary",
        "fit",
        "rows.csv",
        "--ignore",
        "kind",
        "--out",
        "p",
        "--layout",
        "openai",
    ];
    notes.run(&plain).fails(2, &["--method sae"]);
}
