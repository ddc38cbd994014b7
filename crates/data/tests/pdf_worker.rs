//! Runs this very program as a PDF worker, so that it tests the real process.

#![allow(clippy::unwrap_used, reason = "a test, though with a main of its own")]

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::time::UNIX_EPOCH;

use keyfold_data::{Document, FileEntry, ReadError, ReadOptions, pdf_worker_main, read};

fn main() {
    let args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|arg| arg == "__read-pdf") {
        std::process::exit(pdf_worker_main(&args[2..]));
    }
    if args.iter().any(|arg| arg == "--list") {
        return;
    }
    a_worker_reads_what_this_process_would();
    a_worker_that_needs_too_much_memory_fails_the_file();
    a_worker_that_recurses_without_end_fails_the_file();
}

/// A PDF of one page, with further entries for the page's and the stream's dictionary.
fn pdf(page: &str, dictionary: &str, stream: &[u8]) -> Vec<u8> {
    let mut pdf = b"%PDF-1.4\n".to_vec();
    let mut places = String::new();
    let length = stream.len();
    let objects = [
        ("<< /Type /Catalog /Pages 2 0 R >>".to_string(), None),
        (
            format!("<< /Type /Pages /Kids [4 0 R] /Count 1 {page} >>"),
            None,
        ),
        (
            "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_string(),
            None,
        ),
        (
            "<< /Type /Page /Parent 2 0 R /Contents 5 0 R >>".to_string(),
            None,
        ),
        (format!("<< /Length {length} {dictionary} >>"), Some(stream)),
    ];
    for (number, (object, stream)) in (1..).zip(objects) {
        places += &format!("{:010} 00000 n \n", pdf.len());
        write!(pdf, "{number} 0 obj\n{object}\n").unwrap();
        if let Some(stream) = stream {
            pdf.extend_from_slice(b"stream\n");
            pdf.extend_from_slice(stream);
            pdf.extend_from_slice(b"\nendstream\n");
        }
        pdf.extend_from_slice(b"endobj\n");
    }
    let table = pdf.len();
    write!(
        pdf,
        "xref\n0 6\n0000000000 65535 f \n{places}trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n"
    )
    .unwrap();
    pdf
}

const PAGE: &str = "/MediaBox [0 0 600 800] /Resources << /Font << /F 3 0 R >> >>";
const TEXT: &[u8] = b"BT /F 12 Tf 50 700 Td (Read by a worker.) Tj ET";

fn read_pdf(bytes: &[u8], options: &ReadOptions) -> Result<Document, ReadError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pdf");
    std::fs::write(&path, bytes).unwrap();
    let entry = FileEntry {
        path,
        size: bytes.len() as u64,
        modified: UNIX_EPOCH,
    };
    read(&entry, options)
}

fn with_worker() -> ReadOptions {
    let worker = std::env::current_exe().unwrap();
    assert!(Path::new(&worker).exists());
    ReadOptions {
        pdf_worker: Some(worker),
        ..ReadOptions::default()
    }
}

fn a_worker_reads_what_this_process_would() {
    let file = pdf(PAGE, "", TEXT);
    let by_worker = read_pdf(&file, &with_worker()).unwrap();
    assert_eq!(by_worker.passages[0].text.trim(), "Read by a worker.");
    assert_eq!(by_worker, read_pdf(&file, &ReadOptions::default()).unwrap());
}

#[cfg(unix)]
fn a_worker_that_needs_too_much_memory_fails_the_file() {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..400 {
        encoder.write_all(&vec![b' '; 1 << 20]).unwrap();
    }
    let file = pdf(PAGE, "/Filter /FlateDecode", &encoder.finish().unwrap());
    let options = ReadOptions {
        pdf_max_memory: 256 << 20,
        ..with_worker()
    };
    let error = read_pdf(&file, &options).unwrap_err();
    assert!(matches!(error, ReadError::Failed(_)), "{error}");
    assert!(error.to_string().contains("--pdf-max-memory"), "{error}");
}

#[cfg(not(unix))]
fn a_worker_that_needs_too_much_memory_fails_the_file() {}

/// The reader looks for a page's resources in its parents.
fn a_worker_that_recurses_without_end_fails_the_file() {
    let file = pdf("/Parent 2 0 R", "", TEXT);
    let error = read_pdf(&file, &with_worker()).unwrap_err();
    assert!(matches!(error, ReadError::Failed(_)), "{error}");
}
