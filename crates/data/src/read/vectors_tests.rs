use std::time::UNIX_EPOCH;

use super::*;

/// A `.npy` file with this header and these bytes.
fn npy(descr: &str, shape: &str, numbers: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(numbers);
    bytes
}

fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn read(name: &str, bytes: &[u8]) -> Result<(Document, Vectors), ReadError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let entry = FileEntry {
        path,
        size: bytes.len() as u64,
        modified: UNIX_EPOCH,
    };
    let options = ReadOptions {
        max_file_size: 4096,
        ..ReadOptions::default()
    };
    read_vectors(&entry, 2, &options)
}

#[test]
fn rows_come_with_the_name_of_their_file() {
    let numbers = [0.5, -2.0, 3.0, 0.25, 0.0, 1.0];
    let (document, rows) = read("d 7.npy", &npy("<f4", "(3, 2)", &floats(&numbers))).unwrap();
    assert_eq!((rows.dim(), rows.as_slice()), (2, &numbers[..]));
    assert_eq!(document.passages.len(), 1);
    assert_eq!(document.passages[0].text, "d 7");
    // 1 and -2 as half floats.
    let (_, halves) = read("h.NPY", &npy("<f2", "(1, 2)", &[0x00, 0x3c, 0x00, 0xc0])).unwrap();
    assert_eq!(halves.as_slice(), [1.0, -2.0]);
}

#[test]
fn what_holds_no_token_vectors_is_refused_and_says_why() {
    let row = floats(&[1.0, 2.0]);
    for (name, bytes, why) in [
        ("a.txt", row.clone(), "no .npy file"),
        ("a.npy", Vec::new(), "is empty"),
        ("a.npy", row.clone(), "no .npy file"),
        (
            "a.npy",
            npy("<f4", "(1, 2)", &row)[..30].to_vec(),
            "cut off",
        ),
        ("a.npy", npy("<f4", "(2, 2)", &row), "cut off"),
        ("a.npy", npy("<f4", "(1, 2)", &floats(&[1.0; 3])), "damaged"),
        ("a.npy", npy("<f4", "(2,)", &row), "[vectors, numbers]"),
        ("a.npy", npy("<f4", "(1, 1, 2)", &row), "[vectors, numbers]"),
        ("a.npy", npy("<f8", "(1, 1)", &row), "'<f8'"),
        ("a.npy", npy("<i4", "(1, 2)", &row), "float16"),
        ("a.npy", npy("<f4", "(0, 2)", &[]), "no vector"),
        ("a.npy", npy("<f4", "(2, 1)", &row), "vectors of 1 numbers"),
        (
            "a.npy",
            npy("<f4", "(1, 2)", &floats(&[1.0, f32::NAN])),
            "row 1, column 2 is NaN",
        ),
        ("a.npy", npy("<f2", "(1, 2)", &[0x00, 0x7c, 0, 0]), "inf"),
        (
            "a.npy",
            npy("<f4", "(4611686018427387904, 4)", &row),
            "cut off",
        ),
        (
            "a.npy",
            npy("<f4", "(1000, 2)", &floats(&[1.0; 2000])),
            "larger than 4096",
        ),
    ] {
        let error = read(name, &bytes).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
        assert!(error.contains(name), "{error}");
    }
}
