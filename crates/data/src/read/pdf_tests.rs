use super::*;
use crate::read::tests::*;

/// A PDF whose pages hold these streams (with dictionaries of their own).
fn pdf_of_streams(pages: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let kids: String = (0..pages.len())
        .map(|i| format!("{} 0 R ", 4 + 2 * i))
        .collect();
    let mut objects = vec![
        b"<< /Type /Catalog /Pages 2 0 R >>".to_vec(),
        format!(
            "<< /Type /Pages /Kids [{kids}] /Count {} /MediaBox [0 0 600 800] \
             /Resources << /Font << /F 3 0 R >> >> >>",
            pages.len()
        )
        .into_bytes(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
            .to_vec(),
    ];
    for (i, (dictionary, stream)) in pages.iter().enumerate() {
        objects.push(
            format!(
                "<< /Type /Page /Parent 2 0 R /Contents {} 0 R >>",
                5 + 2 * i
            )
            .into_bytes(),
        );
        let mut object =
            format!("<< /Length {} {dictionary} >>\nstream\n", stream.len()).into_bytes();
        object.extend_from_slice(stream);
        object.extend_from_slice(b"\nendstream");
        objects.push(object);
    }
    let mut pdf = b"%PDF-1.4\n".to_vec();
    let mut places = String::new();
    for (i, object) in objects.iter().enumerate() {
        places += &format!("{:010} 00000 n \n", pdf.len());
        pdf.extend_from_slice(format!("{} 0 obj\n", i + 1).as_bytes());
        pdf.extend_from_slice(object);
        pdf.extend_from_slice(b"\nendobj\n");
    }
    let (table, count) = (pdf.len(), objects.len() + 1);
    pdf.extend_from_slice(
        format!(
            "xref\n0 {count}\n0000000000 65535 f \n{places}trailer\n<< /Size {count} /Root 1 0 R >>\n\
             startxref\n{table}\n%%EOF\n"
        )
        .as_bytes(),
    );
    pdf
}

/// A PDF with one line of text for each string of each page.
fn pdf(pages: &[&[&str]]) -> Vec<u8> {
    let stream = |lines: &&[&str]| {
        let lines = lines.iter().enumerate();
        let text: String = lines
            .map(|(i, line)| format!("BT /F 12 Tf 50 {} Td ({line}) Tj ET\n", 700 - 14 * i))
            .collect();
        ("", text.into_bytes())
    };
    pdf_of_streams(&pages.iter().map(stream).collect::<Vec<_>>())
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn pages_are_parts_and_parted_words_are_joined() {
    let file = pdf(&[&["The tides fol-", "low the moon."], &["Second page."]]);
    // Whatever it is called.
    for name in ["a.pdf", "a.txt"] {
        let passages = passages(name, &file);
        let found: Vec<_> = passages.iter().map(|p| (p.part, p.text.trim())).collect();
        assert_eq!(
            found,
            [
                (Some(1), "The tides follow the moon."),
                (Some(2), "Second page.")
            ]
        );
        assert!(passages.iter().all(|p| p.lines.is_empty()));
    }
}

#[test]
fn hyphens_that_part_no_word_stay() {
    assert_eq!(
        join_hyphens("a well-\nknown X-\nRay 1-\n2 -\nend"),
        "a wellknown X-\nRay 1-\n2 -\nend"
    );
}

#[test]
fn truncated_and_changed_files_fail_without_harm() {
    let whole = pdf(&[&["One page of text."], &["Another page of text."]]);
    let mut ended = 0;
    for cut in (10..whole.len() - 10).step_by(37) {
        match read_file("a.pdf", &whole[..cut]) {
            Err(crate::ReadError::Failed(notice)) => {
                assert!(notice.to_string().contains("a.pdf: "));
                ended += 1;
            }
            other => assert!(other.is_ok() || matches!(other, Err(crate::ReadError::Skipped(_)))),
        }
    }
    assert!(ended > 20);
    for at in (9..whole.len()).step_by(23) {
        let mut torn = whole.clone();
        torn[at] ^= 0x11;
        let _ = read_file("a.pdf", &torn);
    }
}

#[test]
fn a_file_without_text_is_skipped_with_advice() {
    let line = skipped(read_file("a.pdf", &pdf(&[&[]])));
    assert!(line.ends_with("(run OCR over it)"), "{line}");
    assert!(failed(read_file("a.pdf", b"%PDF-1.4\n")).contains("is a damaged PDF"));
    assert!(failed(read_file("a.pdf", &pdf(&[]))).contains("no pages"));
}

#[test]
fn a_stream_that_unpacks_to_too_much_is_refused() {
    let text = deflated(b"BT /F 12 Tf 50 700 Td (Packed text.) Tj ET");
    let file = pdf_of_streams(&[("/Filter /FlateDecode", text)]);
    assert_eq!(passages("a.pdf", &file)[0].text.trim(), "Packed text.");
    let bomb = deflated(&vec![b' '; 4 << 20]);
    let file = pdf_of_streams(&[("/Filter /FlateDecode", bomb)]);
    let options = ReadOptions {
        max_unpacked_size: 1 << 20,
        ..ReadOptions::default()
    };
    let line = failed(Fixture::new("a.pdf", &file).read_with(&options));
    assert!(line.contains("--max-unpacked-size"), "{line}");
}

#[test]
fn one_bad_page_is_a_warning() {
    let good = ("", b"BT /F 12 Tf 50 700 Td (Good text.) Tj ET".to_vec());
    let file = pdf_of_streams(&[good, ("", b"BT".to_vec())]);
    // A page without a size cannot be laid out.
    let text = String::from_utf8(file).unwrap();
    let second = text.find("6 0 obj\n<< /Type /Page /Parent 2 0 R").unwrap();
    let mut file = text.clone().into_bytes();
    let parent = second + "6 0 obj\n<< /Type /Page ".len();
    file[parent..parent + "/Parent 2".len()].copy_from_slice(b"/Parent 9");
    let document = read_file("a.pdf", &file).unwrap();
    assert_eq!(document.passages.len(), 1);
    assert_eq!(document.warnings.len(), 1);
    assert!(
        document.warnings[0]
            .to_string()
            .contains("page 2 could not be read")
    );
}

#[cfg(unix)]
mod worker {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    fn with_worker(script: &str, timeout: Duration) -> String {
        let folder = tempfile::tempdir().unwrap();
        let worker = folder.path().join("worker");
        std::fs::write(&worker, script).unwrap();
        std::fs::set_permissions(&worker, std::fs::Permissions::from_mode(0o700)).unwrap();
        let options = ReadOptions {
            pdf_worker: Some(worker),
            pdf_timeout: timeout,
            max_unpacked_size: 1 << 20,
            ..ReadOptions::default()
        };
        failed(Fixture::new("a.pdf", &pdf(&[&["Text."]])).read_with(&options))
    }

    #[test]
    fn a_worker_that_hangs_is_ended() {
        let start = Instant::now();
        let line = with_worker("#!/bin/sh\nexec sleep 60\n", Duration::from_millis(200));
        assert!(line.contains("--pdf-timeout"), "{line}");
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_worker_that_crashes_or_babbles_fails_the_file() {
        let line = with_worker("#!/bin/sh\nkill -SEGV $$\n", Duration::from_secs(20));
        assert!(line.contains("broke the PDF reader"), "{line}");
        let line = with_worker("#!/bin/sh\nexec yes\n", Duration::from_secs(20));
        assert!(line.contains("--max-unpacked-size"), "{line}");
    }

    #[test]
    fn a_missing_worker_is_named() {
        let options = ReadOptions {
            pdf_worker: Some("/no/such/worker".into()),
            ..ReadOptions::default()
        };
        let line = failed(Fixture::new("a.pdf", &pdf(&[&["Text."]])).read_with(&options));
        assert!(
            line.contains("PDF worker /no/such/worker does not start"),
            "{line}"
        );
    }
}
