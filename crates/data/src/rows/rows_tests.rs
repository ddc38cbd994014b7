#![allow(clippy::unwrap_used)]

use std::io::Cursor;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/rows")
        .join(name)
}

fn table(add: f32) -> Vec<f32> {
    (0..15u8).map(|i| f32::from(i) + add).collect()
}

/// The rows of a text, `most` at a time.
fn read(text: &str, options: &RowOptions, most: usize) -> Result<Rows, RowsError> {
    let input = Box::new(Cursor::new(text.as_bytes().to_vec()));
    let mut reader = RowReader::stream(input, "standard input", StreamFormat::Detect, options)?;
    let mut all = Rows {
        width: reader.width(),
        columns: reader.columns().into(),
        ..Rows::default()
    };
    while let Some(rows) = reader.next(most)? {
        assert!(rows.len() <= most);
        all.values.extend(rows.values);
        all.labels.extend(rows.labels);
    }
    Ok(all)
}

fn error(text: &str) -> String {
    read(text, &RowOptions::default(), 2)
        .unwrap_err()
        .to_string()
}

#[test]
fn arrays_of_every_type_order_and_version_are_the_same_rows() {
    for name in ["f4.npy", "f8-fortran.npy", "f2.npy", "f4-big.npy"] {
        let rows = read_rows(&fixture(name), &RowOptions::default()).unwrap();
        assert_eq!((rows.width, rows.values), (3, table(0.5)), "{name}");
    }
    for name in ["i2-big.npy", "i8.npy", "u1.npy"] {
        let rows = read_rows(&fixture(name), &RowOptions::default()).unwrap();
        assert_eq!(rows.values, table(0.0), "{name}");
    }
}

#[test]
fn one_of_several_arrays_must_be_named() {
    let of = |tensor: &str| RowOptions {
        tensor: Some(tensor.to_owned()),
        ..RowOptions::default()
    };
    for (file, tensors) in [
        ("two.npz", ["table", "other"]),
        ("two.safetensors", ["table", "half"]),
    ] {
        let open = read_rows(&fixture(file), &RowOptions::default())
            .unwrap_err()
            .to_string();
        for tensor in tensors {
            assert!(open.contains(tensor), "{open}");
            let rows = read_rows(&fixture(file), &of(tensor)).unwrap();
            let add = if tensor == "other" { 0.0 } else { 0.5 };
            assert_eq!(rows.values, table(add), "{file} {tensor}");
        }
        let wrong = read_rows(&fixture(file), &of("nothing"))
            .unwrap_err()
            .to_string();
        assert!(
            wrong.contains("'nothing'") && wrong.contains("table"),
            "{wrong}"
        );
    }
    let flat = read_rows(&fixture("two.safetensors"), &of("bias")).unwrap_err();
    assert!(flat.to_string().contains("[3]"), "{flat}");
}

#[test]
fn parquet_gives_columns_lists_and_labels() {
    let mut options = RowOptions {
        label: Some("kind".into()),
        missing: Missing::Skip,
        ..RowOptions::default()
    };
    let mut reader = RowReader::open(&fixture("plain.parquet"), &options).unwrap();
    assert_eq!(reader.columns(), ["c0", "c1", "c2"]);
    let mut values = Vec::new();
    let mut labels = Vec::new();
    while let Some(rows) = reader.next(3).unwrap() {
        values.extend(rows.values);
        labels.extend(rows.labels);
    }
    assert_eq!((reader.skipped(), values), (1, table(0.5)[3..].to_vec()));
    assert_eq!(labels, ["dog", "cat", "öl", ""]);
    options.missing = Missing::Refuse;
    let error = read_rows(&fixture("plain.parquet"), &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("row 1, column 'c2'"), "{error}");
    options.label = None;
    let error = read_rows(&fixture("plain.parquet"), &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("'kind'"), "{error}");

    let vector = RowOptions {
        tensor: Some("vector".into()),
        ..RowOptions::default()
    };
    let rows = read_rows(&fixture("lists.parquet"), &vector).unwrap();
    assert_eq!((rows.width, rows.values), (3, table(0.5)));
}

#[test]
fn a_table_is_understood_with_and_without_names() {
    let text = "a,b,kind\n1,2,cat\n3,4.5,dog\n\n-1e-3, 5 ,cat\n";
    let options = RowOptions {
        label: Some("kind".into()),
        ..RowOptions::default()
    };
    for most in 1..4 {
        let rows = read(text, &options, most).unwrap();
        assert_eq!(rows.values, [1.0, 2.0, 3.0, 4.5, -1e-3, 5.0]);
        assert_eq!(rows.labels, ["cat", "dog", "cat"]);
        assert_eq!(&*rows.columns, ["a", "b"]);
    }
    for text in [
        "1\t2\n3\t4",
        "1;2\r\n3;4\r\n",
        "# note\n1 2\n3 4\n",
        "\u{feff}1,2\n3,4",
    ] {
        let rows = read(text, &RowOptions::default(), 9).unwrap();
        assert_eq!(
            (rows.width, rows.values.as_slice()),
            (2, &[1.0, 2.0, 3.0, 4.0][..]),
            "{text}"
        );
        assert!(rows.columns.is_empty());
    }
    let by_number = RowOptions {
        label: Some("3".into()),
        ignore: vec!["1".into()],
        ..RowOptions::default()
    };
    let rows = read("7,1,x\n8,2,y\n", &by_number, 9).unwrap();
    assert_eq!(
        (rows.values, rows.labels),
        (vec![1.0, 2.0], vec!["x".into(), "y".into()])
    );
}

#[test]
fn what_is_no_row_of_numbers_is_refused_by_row_and_column() {
    for (text, parts) in [
        ("a,b\n1,2\n3,x\n", &["row 2", "'b'", "'x'"][..]),
        ("1,2\n3,4\n5,NaN\n", &["row 3", "column 2", "NaN"]),
        ("1,2\n,4\n", &["row 2", "column 1"]),
        ("1,2\n1e99,4\n", &["row 2", "column 1", "inf"]),
        ("1,2\n3,4\n5,6\n7\n", &["row 4", "1 columns", "2"]),
        ("a,b\n1,2\n1,2,3\n", &["row 2", "3 columns", "2"]),
        ("", &["no rows"]),
        ("a,b\n", &["no rows"]),
        ("\n\n", &["no rows"]),
    ] {
        let error = error(text);
        for part in parts.iter().chain(&["standard input"]) {
            assert!(error.contains(part), "no '{part}' in: {error}");
        }
    }
    let skip = RowOptions {
        missing: Missing::Skip,
        label: Some("c".into()),
        ..RowOptions::default()
    };
    let rows = read("a,c\n1,x\nnan,y\n3,z\n", &skip, 2).unwrap();
    assert_eq!(
        (rows.values, rows.labels),
        (vec![1.0, 3.0], vec!["x".into(), "z".into()])
    );
    let error = read("a,c\nnan,y\n", &skip, 2).unwrap_err().to_string();
    assert!(error.contains("every row"), "{error}");
    let error = read("a,b\n1,2\n", &skip, 2).unwrap_err().to_string();
    assert!(
        error.contains("no column 'c'") && error.contains("a, b"),
        "{error}"
    );
}

#[test]
fn bare_floats_must_be_whole_rows() {
    let bytes: Vec<u8> = table(0.5).iter().flat_map(|x| x.to_le_bytes()).collect();
    let open = |bytes: &[u8], width| {
        let input = Box::new(Cursor::new(bytes.to_vec()));
        RowReader::stream(
            input,
            "standard input",
            StreamFormat::Floats { width },
            &RowOptions::default(),
        )
    };
    let rows = open(&bytes, 3).unwrap().read_all().unwrap();
    assert_eq!((rows.len(), rows.values), (5, table(0.5)));
    let error = open(&bytes, 4).unwrap().read_all().unwrap_err().to_string();
    assert!(error.contains("row 4"), "{error}");
    assert!(matches!(
        open(&[], 3).unwrap().read_all(),
        Err(RowsError::Empty { .. })
    ));
    assert!(open(&bytes, 0).is_err());
}

#[test]
fn labels_of_their_own_file_get_class_numbers() {
    let texts = read_labels(&fixture("labels-text.npy")).unwrap();
    assert_eq!(texts, ["cat", "dog", "cat", "öl", "dog"]);
    let numbers = read_labels(&fixture("labels-number.npy")).unwrap();
    assert_eq!(numbers, ["10", "2", "2", "10", "3"]);
    let (places, classes) = class_numbers(&numbers);
    assert_eq!(
        (places, classes),
        (
            vec![2, 0, 0, 2, 1],
            vec!["2".into(), "3".into(), "10".into()]
        )
    );
    let (places, classes) = class_numbers(&texts);
    assert_eq!((places, classes.len()), (vec![0, 1, 0, 2, 1], 3));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("labels.txt");
    std::fs::write(&path, "a\nb\na\n").unwrap();
    assert_eq!(read_labels(&path).unwrap(), ["a", "b", "a"]);
    std::fs::write(&path, "a\n\na\n").unwrap();
    assert!(
        read_labels(&path)
            .unwrap_err()
            .to_string()
            .contains("row 2")
    );
    assert!(
        read_labels(&fixture("f4.npy"))
            .unwrap_err()
            .to_string()
            .contains("[5, 3]")
    );
}

proptest! {
    // Files are synced, which takes its time.
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn what_is_written_is_read_again(
        width in 1usize..5,
        numbers in prop::collection::vec(any::<f32>().prop_filter("finite", |x| x.is_finite()), 4..40),
    ) {
        let numbers = &numbers[..numbers.len() / width * width];
        let folder = tempfile::tempdir().unwrap();
        for ending in ["npy", "csv", "tsv", "safetensors"] {
            let path = folder.path().join(format!("rows.{ending}"));
            write_rows(&path, numbers, width).unwrap();
            let rows = read_rows(&path, &RowOptions::default()).unwrap();
            prop_assert_eq!((rows.width, &rows.values[..]), (width, numbers), "{}", ending);
        }
        let names: Vec<String> = (0..width).map(|j| format!("column {j}")).collect();
        let path = folder.path().join("named.csv");
        write_csv(&path, numbers, width, &names).unwrap();
        let rows = read_rows(&path, &RowOptions::default()).unwrap();
        prop_assert_eq!((&*rows.columns, &rows.values[..]), (&names[..], numbers));
    }

    #[test]
    fn damaged_files_end_in_an_error_or_in_rows(
        which in 0usize..5,
        at in 0f64..1.0,
        byte: u8,
        cut: bool,
    ) {
        let name = ["f8-fortran.npy", "two.npz", "two.safetensors", "plain.parquet", "lists.parquet"][which];
        let mut bytes = std::fs::read(fixture(name)).unwrap();
        let at = (at * bytes.len() as f64) as usize;
        match cut {
            true => bytes.truncate(at),
            false => bytes[at] = byte,
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let options = RowOptions {
            tensor: (which != 3).then(|| ["", "table", "table", "", "vector"][which].to_owned()).filter(|t| !t.is_empty()),
            ..RowOptions::default()
        };
        if let Ok(rows) = read_rows(&path, &options) {
            prop_assert!(rows.values.iter().all(|x| x.is_finite()));
        }
    }
}
