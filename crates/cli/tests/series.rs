//! `keyfold series forecast`, `keyfold train tsm2`, `keyfold image classify` and `keyfold train vim2`.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{Notes, keyfold};
use serde_json::Value;

/// Days of two columns, an hour a row.
fn table(rows: usize) -> String {
    let mut text = String::from("date,load,wind\n");
    for t in 0..rows {
        let turn = std::f64::consts::TAU * t as f64 / 24.0;
        let (day, hour) = (1 + t / 24, t % 24);
        text += &format!(
            "2024-01-{day:02} {hour:02}:00,{:.4},{:.4}\n",
            50.0 + 10.0 * turn.sin(),
            5.0 + (turn * 2.0).cos()
        );
    }
    text
}

const TINY: [&str; 18] = [
    "--quiet",
    "--json",
    "--set",
    "model.seq_len=48",
    "--set",
    "model.pred_len=12",
    "--set",
    "model.d_model=8",
    "--set",
    "model.d_state=4",
    "--set",
    "model.num_layers=1",
    "--set",
    "batch_size=8",
    "--set",
    "optim.max_steps=12",
    "--set",
    "optim.learning_rate=5e-3",
];

#[test]
fn a_table_is_forecast_at_once() {
    let notes = Notes::new();
    notes.write("load.csv", &table(600));
    let args = ["series", "forecast", "load.csv", "--horizon", "6"];
    let told = notes.run(&[&args[..], &["--json", "--svg", "load.svg"]].concat());
    let told = told.json();
    assert_eq!(told["method"], "linear");
    let rows = told["forecast"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    assert_eq!(rows[0]["time"], "2024-01-26 00:00");
    for (ahead, row) in rows.iter().enumerate() {
        let turn = std::f64::consts::TAU * ahead as f64 / 24.0;
        let load = row["values"]["load"].as_f64().unwrap();
        assert!((load - 50.0 - 10.0 * turn.sin()).abs() < 0.2, "{row}");
    }
    let errors = &told["held_out"];
    let mse = |of: &str| errors[of]["mse"].as_f64().unwrap();
    assert!(mse("linear") < 0.01 * mse("last_value"), "{errors}");
    let svg = std::fs::read_to_string(notes.file("load.svg")).unwrap();
    assert_eq!(svg.matches("<polyline").count(), 4);

    assert!(told.get("constant").is_none());
    let text = notes.run(&args).ok();
    assert!(
        text.contains("2024-01-26 05:00") && text.contains("last value"),
        "{text}"
    );
    notes
        .run(&[&args[..], &["--out", "next.csv"]].concat())
        .ok();
    let csv = std::fs::read_to_string(notes.file("next.csv")).unwrap();
    assert!(
        csv.starts_with("time,load,wind\n2024-01-26 00:00,"),
        "{csv}"
    );
    assert_eq!(csv.lines().count(), 7);
}

#[test]
fn what_is_no_series_is_refused_by_name() {
    let notes = Notes::new();
    let forecast = |text: &str, more: &[&str]| {
        notes.write("bad.csv", text);
        notes.run(&[&["series", "forecast", "bad.csv"][..], more].concat())
    };
    forecast("t,a\nx,1\ny,NaN\n", &[]).fails(1, &["bad.csv", "row 2", "'a'", "--fill"]);
    forecast("t,a\nx,1\ny,1,2\n", &[]).fails(1, &["row 2 has 3 cells, the header 2"]);
    forecast(&table(30), &[]).fails(1, &["30 rows", "--horizon"]);
    forecast("", &[]).fails(1, &["bad.csv"]);
    forecast(&table(30), &["--ignore", "sun"]).fails(1, &["no column 'sun', but: date, load"]);
    forecast(&table(30), &["--model", "nowhere"]).fails(1, &["nowhere"]);
    notes
        .run(&["series", "forecast", "no.csv"])
        .fails(1, &["no.csv"]);
    forecast(&table(30), &["--explain"]).fails(2, &["--model"]);
}

#[test]
fn a_forecaster_is_trained_and_asked() {
    let notes = Notes::new();
    notes.write("load.csv", &table(400));
    let train = ["train", "tsm2", "--data", "load.csv", "--out", "model"];
    let report = notes.run(&[&train[..], &TINY].concat()).json();
    assert_eq!(report["steps"], 12);
    let args = ["series", "forecast", "load.csv", "--model", "model"];
    let told = notes.run(&[&args[..], &["--json", "--explain", "--horizon", "3"]].concat());
    let told = told.json();
    assert_eq!(told["forecast"].as_array().unwrap().len(), 3);
    let sum: f64 = told["averages"][0]["theta"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_f64)
        .sum();
    assert!((sum - 1.0).abs() < 1e-5, "shares of a softmax");
    assert_eq!(told["influence"].as_array().unwrap().len(), 2);
    notes
        .run(&[&args[..], &["--horizon", "13"]].concat())
        .fails(2, &["--horizon 13", "12 rows"]);
    notes.write("other.csv", &table(400).replace("wind", "rain"));
    notes
        .run(&["series", "forecast", "other.csv", "--model", "model"])
        .fails(1, &["no column 'wind', but: load, rain"]);
    // A run is gone on with by its own settings alone.
    notes
        .run(&[&train[..], &TINY].concat())
        .fails(1, &["holds a training already"]);
}

/// A table with more cells in every row.
fn with_cells(table: &str, names: &str, cells: &str) -> String {
    let mut lines = table.lines();
    let mut text = format!("{},{names}\n", lines.next().unwrap());
    for line in lines {
        text += &format!("{line},{cells}\n");
    }
    text
}

#[test]
fn a_column_that_does_not_change_is_told_and_stays() {
    let notes = Notes::new();
    notes.write("load.csv", &with_cells(&table(400), "valve", "7"));
    let args = ["series", "forecast", "load.csv", "--horizon", "3"];
    let told = notes.run(&[&args[..], &["--json"]].concat()).json();
    assert_eq!(told["constant"], serde_json::json!(["valve"]));
    for row in told["forecast"].as_array().unwrap() {
        let valve = row["values"]["valve"].as_f64().unwrap();
        assert!((valve - 7.0).abs() < 1e-3, "{row}");
    }
    let text = notes.run(&args).ok();
    assert!(text.contains("valve holds one number"), "{text}");
}

#[test]
fn what_is_ignored_is_ignored_in_the_coming_rows_too() {
    let notes = Notes::new();
    notes.write(
        "load.csv",
        &with_cells(&table(300), "holiday,note", "0,word"),
    );
    let train = [
        "train",
        "tsm2",
        "--data",
        "load.csv",
        "--out",
        "model",
        "--ignore",
        "note",
        "--set",
        "future=[\"holiday\"]",
    ];
    notes.run(&[&train[..], &TINY].concat()).json();
    let args = [
        "series", "forecast", "load.csv", "--model", "model", "--ignore", "note", "--future",
        "next.csv", "--json",
    ];
    for columns in ["holiday\n", "holiday,note\n"] {
        let row = columns.replace("holiday", "1").replace("note", "word");
        notes.write("next.csv", &format!("{columns}{}", row.repeat(12)));
        let told = notes.run(&args).json();
        assert_eq!(told["forecast"].as_array().unwrap().len(), 12);
    }
}

#[test]
fn pictures_are_learned_and_told() {
    let notes = Notes::new();
    for (class, ink) in [("dark", 20u8), ("light", 220)] {
        std::fs::create_dir_all(notes.file(&format!("pictures/{class}"))).unwrap();
        for i in 0..6u8 {
            let path = notes.file(&format!("pictures/{class}/{i}.png"));
            std::fs::write(path, png(ink + i)).unwrap();
        }
    }
    let args = [
        "train", "vim2", "--data", "pictures", "--out", "model", "--quiet", "--json",
    ];
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/vim2-small.toml");
    let recipe = [
        "--recipe",
        small.to_str().unwrap(),
        "--set",
        "optim.max_steps=25",
    ];
    let more = [
        "model.image_size=16",
        "batch_size=4",
        "optim.warmup_steps=2",
    ];
    let more: Vec<&str> = more.iter().flat_map(|set| ["--set", set]).collect();
    let report = notes.run(&[&args[..], &recipe, &more[..]].concat()).json();
    assert_eq!(report["steps"], 25);
    let told = notes.run(&[
        "image",
        "classify",
        "pictures/dark/0.png",
        "pictures/light/5.png",
        "--model",
        "model",
        "--json",
    ]);
    let told = told.json();
    assert_eq!(told[0]["class"], "dark");
    assert_eq!(told[1]["class"], "light");
    notes.write("no.png", "no picture");
    notes
        .run(&["image", "classify", "no.png", "--model", "model"])
        .fails(1, &["no.png", "PNG and JPEG"]);
    keyfold(Path::new("."), &["image", "classify"]).fails(2, &["PICTURE"]);
}

/// A grey PNG of 8 by 8 points, its data stored without compression.
fn png(grey: u8) -> Vec<u8> {
    let mut rows = Vec::new();
    for _ in 0..8 {
        rows.push(0);
        rows.extend([grey; 8]);
    }
    let mut data = vec![0x78, 0x01, 1];
    let length = rows.len() as u16;
    data.extend(length.to_le_bytes());
    data.extend((!length).to_le_bytes());
    data.extend(&rows);
    let (mut a, mut b) = (1u32, 0u32);
    for byte in &rows {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    data.extend(((b << 16) | a).to_be_bytes());
    let mut all = b"\x89PNG\r\n\x1a\n".to_vec();
    let header = [0, 0, 0, 8, 0, 0, 0, 8, 8, 0, 0, 0, 0];
    for (kind, body) in [(b"IHDR", &header[..]), (b"IDAT", &data), (b"IEND", &[])] {
        let checked = [&kind[..], body].concat();
        all.extend((body.len() as u32).to_be_bytes());
        all.extend(&checked);
        all.extend(crc(&checked).to_be_bytes());
    }
    all
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            };
        }
    }
    !crc
}
