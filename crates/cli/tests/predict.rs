//! `keyfold predict`: rows and texts, from a file to what is told of them.
#![allow(clippy::unwrap_used)]

mod common;

use common::Notes;

/// A table of three kinds of flowers, names of columns above; `from` to `end` of its rows.
fn flowers(notes: &Notes, name: &str, rows: std::ops::Range<usize>) {
    let mut text = String::from("length,width,kind,height\n");
    for i in rows {
        let kind = i % 3;
        // Numbers that look random, and are the same everywhere.
        let noise = |k: usize| ((i * 7919 + k * 104_729) % 1000) as f64 / 1000.0;
        let (a, b, c) = (
            kind as f64 + 0.6 * noise(1),
            2.0 - kind as f64 + 0.6 * noise(2),
            10.0 * noise(3),
        );
        let kind = ["daisy", "rose", "tulip"][kind];
        text += &format!("{a:.4},{b:.4},{kind},{c:.4}\n");
    }
    notes.write(name, &text);
}

#[test]
fn every_method_learns_a_table_and_tells_another_with_its_columns_in_any_order() {
    let notes = Notes::new();
    flowers(&notes, "learn.csv", 0..120);
    flowers(&notes, "tell.csv", 120..180);
    // The same rows with the columns turned around, and without the label.
    let table = std::fs::read_to_string(notes.file("tell.csv")).unwrap();
    let turned: String = table
        .lines()
        .map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            format!("{},{},{}\n", cells[3], cells[1], cells[0])
        })
        .collect();
    notes.write("turned.csv", &turned);
    let cases: [(&str, &[&str]); 6] = [
        ("auto", &[]),
        ("naive-bayes", &["--set", "variances=per-class"]),
        ("logistic", &["--set", "c=3"]),
        ("supervised-dictionary", &["--set", "n_components=3"]),
        (
            "supervised-dictionary",
            &["--set", "n_components=2", "--covariates", "height"],
        ),
        (
            "key-value-bottleneck",
            &["--scale", "standard", "--set", "epochs=50"],
        ),
    ];
    for (i, (method, more)) in cases.into_iter().enumerate() {
        let model = format!("model-{i}");
        let fit = ["predict", "fit", "learn.csv", "--label", "kind", "--quiet"];
        let fit = [&fit[..], &["--method", method, "--out", &model], more].concat();
        let told = notes.run(&[&fit[..], &["--json"]].concat()).json();
        assert_eq!(told["classes"][2], "tulip", "{method}");
        assert!(told["accuracy_on_these_rows"].as_f64().unwrap() > 0.9);
        assert!(told["calibration"]["temperature"].as_f64().unwrap() > 0.0);
        let score = ["predict", "score", &model, "tell.csv", "--json", "--quiet"];
        let score = notes.run(&score).json();
        assert!(
            score["accuracy"].as_f64().unwrap() > 0.9,
            "{method} {score}"
        );
        assert_eq!(score["confusion"].as_array().unwrap().len(), 3);
        let apply = ["predict", "apply", &model, "tell.csv", "--json", "--quiet"];
        let straight = notes.run(&apply).json();
        let apply = [
            "predict",
            "apply",
            &model,
            "turned.csv",
            "--json",
            "--quiet",
        ];
        assert_eq!(notes.run(&apply).json(), straight, "{method}");
        let p = &straight[0]["probabilities"];
        let sum: f64 = p
            .as_object()
            .unwrap()
            .values()
            .map(|p| p.as_f64().unwrap())
            .sum();
        assert!((sum - 1.0).abs() < 1e-9);
    }
    let table = [
        "predict", "apply", "model-2", "tell.csv", "--all", "--out", "told.csv",
    ];
    notes.run(&table).ok();
    let told = std::fs::read_to_string(notes.file("told.csv")).unwrap();
    assert!(
        told.starts_with("name,class,probability,daisy,rose,tulip\n1,daisy,"),
        "{told}"
    );
    let explained = ["predict", "apply", "model-5", "tell.csv", "--explain"];
    assert!(notes.run(&explained).ok().contains("pairs)"));
}

#[test]
fn the_same_command_writes_the_same_model() {
    let notes = Notes::new();
    flowers(&notes, "learn.csv", 0..60);
    for out in ["a", "b"] {
        let fit = [
            "predict",
            "fit",
            "learn.csv",
            "--label",
            "kind",
            "--seed",
            "3",
        ];
        let method = [
            "--method",
            "supervised-dictionary",
            "--set",
            "n_components=2",
        ];
        notes
            .run(&[&fit[..], &method, &["--out", out]].concat())
            .ok();
    }
    for name in ["model.safetensors", "config.json"] {
        let read = |folder: &str| std::fs::read(notes.file(&format!("{folder}/{name}"))).unwrap();
        assert_eq!(read("a"), read("b"), "{name}");
    }
}

#[test]
fn a_table_of_keys_and_values_learns_a_class_that_comes_later() {
    let notes = Notes::new();
    flowers(&notes, "all.csv", 0..180);
    let all = std::fs::read_to_string(notes.file("all.csv")).unwrap();
    let part = |keep: &[&str]| -> String {
        let kept =
            |line: &&str| line.starts_with("length") || keep.iter().any(|k| line.contains(k));
        all.lines()
            .filter(kept)
            .map(|line| format!("{line}\n"))
            .collect()
    };
    notes.write("two.csv", &part(&["daisy", "rose"]));
    notes.write("third.csv", &part(&["tulip"]));
    let keys = part(&["daisy", "rose", "tulip"]);
    let keys: String = (keys.lines())
        .map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            format!("{},{},{}\n", cells[0], cells[1], cells[3])
        })
        .collect();
    notes.write("keys.csv", &keys);
    let fit = [
        "predict", "fit", "two.csv", "--label", "kind", "--out", "table",
    ];
    let method = ["--method", "key-value-bottleneck", "--keys", "keys.csv"];
    let set = ["--scale", "standard", "--set", "epochs=100"];
    notes.run(&[&fit[..], &method, &set].concat()).ok();
    let more = [
        "predict",
        "fit",
        "third.csv",
        "--label",
        "kind",
        "--out",
        "table",
        "--continue",
    ];
    let told = notes.run(&[&more[..], &["--json"]].concat()).json();
    assert_eq!(told["classes"].as_array().unwrap().len(), 3);
    let score = notes
        .run(&["predict", "score", "table", "all.csv", "--json"])
        .json();
    assert!(score["accuracy"].as_f64().unwrap() > 0.85, "{score}");
}

#[test]
fn numbers_are_told_and_attacked() {
    let notes = Notes::new();
    let mut text = String::from("a,b,price\n");
    for i in 0..160 {
        let (a, b) = ((i * 37 % 100) as f64 / 50.0, (i * 61 % 100) as f64 / 50.0);
        text += &format!("{a},{b},{}\n", 3.0 * a - b + 5.0);
    }
    notes.write("houses.csv", &text);
    let fit = [
        "predict",
        "fit",
        "houses.csv",
        "--label",
        "price",
        "--out",
        "houses",
    ];
    let method = [
        "--method",
        "cs-bottleneck",
        "--set",
        "epochs=60",
        "--set",
        "hidden=16",
    ];
    let sweep = ["--beta-sweep", "0,0.1", "--json"];
    let plane = notes.run(&[&fit[..], &method, &sweep].concat()).json();
    assert_eq!(plane["plane"].as_array().unwrap().len(), 2);
    let score = [
        "predict",
        "score",
        "houses",
        "houses.csv",
        "--attack",
        "0.3",
        "--json",
    ];
    let score = notes.run(&score).json();
    let rmse = score["standing"]["rmse"].as_f64().unwrap();
    assert!(rmse < 0.6, "{score}");
    assert!(score["attacked_rmse"].as_f64().unwrap() > rmse);
    let told = notes
        .run(&["predict", "apply", "houses", "houses.csv", "--json"])
        .json();
    assert_eq!(told.as_array().unwrap().len(), 160);
    notes.write("words.csv", "a,b,price\n1,2,cheap\n2,1,dear\n");
    let fit = [
        "predict",
        "fit",
        "words.csv",
        "--label",
        "price",
        "--out",
        "x",
    ];
    let run = notes.run(&[&fit[..], &["--method", "cs-bottleneck"]].concat());
    run.fails(2, &["'cheap'", "no number"]);
}

#[test]
fn texts_are_told_by_their_folders() {
    let notes = Notes::new();
    for i in 0..12 {
        let sea =
            format!("The boat {i} sails before the wind, its anchor aboard and its mast high.");
        let farm =
            format!("Row {i} of the garden grows cabbage and tomato beside the green beans.");
        notes.write(&format!("texts/sea/{i}.md"), &sea);
        notes.write(&format!("texts/farm/{i}.txt"), &farm);
    }
    notes.write("new/a.txt", "A mast and an anchor in the wind.");
    notes.write("new/b.txt", "Cabbage, beans and a tomato.");
    let fit = [
        "predict",
        "fit",
        "texts",
        "--method",
        "naive-bayes",
        "--out",
        "model",
    ];
    let told = notes.run(&[&fit[..], &["--json"]].concat()).json();
    assert_eq!(told["rows"], 24);
    assert!(told["calibration"]["accuracy"].as_f64().unwrap() > 0.9);
    let told = notes
        .run(&["predict", "apply", "model", "new", "--json"])
        .json();
    assert!(told[0]["name"].as_str().unwrap().ends_with("a.txt"));
    assert_eq!(
        (&told[0]["class"], &told[1]["class"]),
        (&"sea".into(), &"farm".into())
    );
    let score = notes.run(&["predict", "score", "model", "texts"]).ok();
    assert!(score.contains("accuracy"), "{score}");
    notes.write("rows.csv", "1,2\n3,4\n");
    let mixed = notes.run(&["predict", "apply", "model", "rows.csv"]);
    mixed.fails(2, &["fitted on texts"]);
}

#[test]
fn what_cannot_be_learned_is_refused_by_name() {
    let notes = Notes::new();
    flowers(&notes, "learn.csv", 0..30);
    notes.write("one.csv", "a,kind\n1,x\n2,x\n3,x\n");
    notes.write("hole.csv", "a,kind\n1,x\nnan,y\n3,x\n");
    notes.write("empty.csv", "");
    let fit = |more: &[&str]| notes.run(&[&["predict", "fit"], more].concat());
    let kind = ["--label", "kind", "--out", "m"];
    let with =
        |file: &'static str, more: &[&'static str]| fit(&[&[file], &kind[..], more].concat());
    with("one.csv", &["--method", "logistic"]).fails(1, &["'x'", "two classes"]);
    with("hole.csv", &["--method", "logistic"]).fails(1, &["hole.csv", "row 2"]);
    with("empty.csv", &["--method", "logistic"]).fails(1, &["empty.csv"]);
    with("absent.csv", &[]).fails(2, &["absent.csv"]);
    with("learn.csv", &["--set", "sharpness=1"]).fails(2, &["sharpness"]);
    with("learn.csv", &["--budgets", "10,500"]).fails(2, &["500"]);
    let atoms = [
        "--method",
        "supervised-dictionary",
        "--set",
        "n_components=9",
    ];
    with("learn.csv", &atoms).fails(2, &["n_components", "9"]);
    with("learn.csv", &["--continue"]).fails(2, &["no model"]);
    fit(&["learn.csv", "--ignore", "kind", "--out", "m"]).fails(2, &["--label"]);
    with("learn.csv", &["--method", "naive-bayes"]).ok();
    notes.write("narrow.csv", "length\n1\n");
    let apply = notes.run(&["predict", "apply", "m", "narrow.csv"]);
    apply.fails(2, &["'width'"]);
    let path = notes.file("m/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    notes
        .run(&["predict", "apply", "m", "learn.csv"])
        .fails(1, &["checksum"]);
}

#[test]
fn label_budgets_are_a_table() {
    let notes = Notes::new();
    flowers(&notes, "learn.csv", 0..150);
    let fit = [
        "predict",
        "fit",
        "learn.csv",
        "--label",
        "kind",
        "--out",
        "m",
    ];
    let budgets = ["--budgets", "6,12,60", "--repeats", "3"];
    let told = notes
        .run(&[&fit[..], &budgets, &["--json"]].concat())
        .json();
    let points = told["curve"]["points"].as_array().unwrap();
    assert_eq!(points.len(), 3);
    assert_eq!(points[0]["naive_bayes"].as_array().unwrap().len(), 3);
    let shown = notes.run(&[&fit[..], &budgets].concat()).ok();
    assert!(
        shown.contains("naive Bayes") && shown.contains("temperature"),
        "{shown}"
    );
}
