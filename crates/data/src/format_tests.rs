use super::*;

fn detected(name: &str, bytes: &[u8]) -> Result<Format, Problem> {
    Format::detect(Path::new(name), bytes)
}

#[test]
fn signatures_beat_names_and_names_beat_guesses() {
    let format = |name, bytes| detected(name, bytes).unwrap();
    assert_eq!(format("a.txt", b"%PDF-1.7\n..."), Format::Pdf);
    assert_eq!(format("a.pdf", b"\xff\xfe junk %PDF-1.4"), Format::Pdf);
    assert_eq!(
        format("a.txt", b"a file begins with %PDF-"),
        Format::PlainText
    );
    assert_eq!(format("a.md", b"<html>"), Format::Markdown);
    assert_eq!(format("a", b" <!DOCTYPE HTML><p>"), Format::Html);
    assert_eq!(format("README", b"Hello: world\n"), Format::PlainText);
    assert_eq!(format("a.RS", b""), Format::Code("Rust"));
    assert_eq!(
        format("1", b"Return-Path: <a@b>\nFrom: a@b\n\nx"),
        Format::Email
    );
    assert_eq!(
        format(
            "inbox",
            b"From a@b Mon Jan  1 12:00:00 2024\nSubject: x\n\nx"
        ),
        Format::Mbox
    );
    let note = b"From 10:00 on in 2024\nwe met.\n";
    assert_eq!(format("note", note), Format::PlainText);
}

#[test]
fn what_is_no_text_is_named() {
    let why = |bytes| match detected("a.dat", bytes) {
        Err(Problem::Skip(why, _)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(why(b"\x89PNG\r\n\x1a\n\0"), "is a picture");
    assert_eq!(why(b"\x1f\x8b\x08\0\0"), "is compressed");
    assert_eq!(why(b"\x7fELF\x02\x01\x01\0"), "is a program");
    assert_eq!(why(b"{\\rtf1 text}"), "is RTF");
    // Words that look like a mark.
    assert_eq!(
        detected("a.txt", b"RIFF is a word").ok(),
        Some(Format::PlainText)
    );
}

#[test]
fn misnamed_and_torn_archives_fail() {
    for bytes in [&b"text"[..], b"PK\x03\x04torn"] {
        let result = detected("a.docx", bytes);
        assert!(matches!(result, Err(Problem::Fail(..))), "{result:?}");
    }
}
