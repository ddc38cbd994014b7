use std::io::{Cursor, Write};

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::ReadOptions;
use crate::read::tests::*;

fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn docx(body: &str) -> Vec<u8> {
    let styles = r#"<w:styles><w:style w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>
        <w:style w:styleId="Eigen"><w:name w:val="Mine"/><w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style>
        </w:styles>"#;
    let document = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><w:document><w:body>{body}</w:body></w:document>"
    );
    archive(&[
        ("[Content_Types].xml", b"<Types/>"),
        ("word/styles.xml", styles.as_bytes()),
        ("word/document.xml", document.as_bytes()),
        (
            "word/footnotes.xml",
            b"<w:footnotes><w:p><w:r><w:t>A note.</w:t></w:r></w:p></w:footnotes>",
        ),
    ])
}

fn found(name: &str, bytes: &[u8]) -> Vec<(String, String)> {
    let passages = passages(name, bytes);
    assert!(passages.iter().all(|p| p.lines.is_empty()));
    trails(&passages)
}

const BODY: &str = r#"
<w:p><w:pPr><w:pStyle w:val="Title"/></w:pPr><w:r><w:t>The Book</w:t></w:r></w:p>
<w:p><w:pPr><w:pStyle w:val="berschrift1"/></w:pPr><w:r><w:t>Tides</w:t></w:r></w:p>
<w:p><w:r><w:t xml:space="preserve">Fish &amp; </w:t></w:r><w:r><w:t>chips&#33;</w:t><w:br/><w:t>&bogus;Next</w:t></w:r>
 <w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>
<w:p><w:pPr><w:numPr/></w:pPr><w:r><w:t>one</w:t></w:r></w:p>
<w:p><w:pPr><w:numPr/></w:pPr><w:r><w:t>two FILL</w:t></w:r></w:p>
<w:p><w:pPr><w:pStyle w:val="Eigen"/></w:pPr><w:r><w:t>Sizes</w:t></w:r></w:p>
<w:tbl><w:tr><w:tc><w:p><w:r><w:t>place</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>metres</w:t></w:r></w:p></w:tc></w:tr>
<w:tr><w:tc><w:p><w:r><w:t>Fundy</w:t></w:r></w:p><w:p><w:r><w:t>Bay</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>16</w:t></w:r></w:p></w:tc></w:tr></w:tbl>
<w:p><w:r><mc:AlternateContent><mc:Choice><w:t>box</w:t></mc:Choice><mc:Fallback><w:t>box</w:t></mc:Fallback></mc:AlternateContent></w:r></w:p>
"#;

#[test]
fn word_documents_have_headings_lists_and_tables() {
    let expected = expected([
        ("The Book > Tides", "Fish & chips!\nNext\n- one\n- two FILL"),
        (
            "The Book > Tides > Sizes",
            "place | metres\nFundy Bay | 16\n\nbox",
        ),
        ("", "A note."),
    ]);
    assert_eq!(found("a.docx", &docx(&filled(BODY))), expected);
    // Whatever it is called.
    let document = read_file("a.txt", &docx(&filled(BODY))).unwrap();
    assert_eq!(document.format.to_string(), "DOCX");
}

#[test]
fn opendocument_texts_have_headings_lists_and_tables() {
    let content = r#"<office:text><text:tracked-changes><text:p>gone</text:p></text:tracked-changes>
        <text:p text:style-name="Title">The Book</text:p>
        <text:h text:outline-level="1">Tides</text:h>
        <text:p>Fish<text:s text:c="999999999"/>&amp; <text:span>chips</text:span><text:line-break/>Next<text:note>
        <text:note-body><text:p>a note</text:p></text:note-body></text:note></text:p>
        <text:list><text:list-item><text:p>one</text:p></text:list-item></text:list>
        <table:table><table:table-row><table:table-cell><text:p>a</text:p></table:table-cell>
        <table:table-cell table:number-columns-repeated="99999999"><text:p>b</text:p></table:table-cell></table:table-row></table:table>
        </office:text>"#;
    let odt = archive(&[
        ("mimetype", b"application/vnd.oasis.opendocument.text"),
        ("content.xml", content.as_bytes()),
    ]);
    let found = found("a.odt", &odt);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, "The Book > Tides");
    let text = found[0].1.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(text, "Fish & chips Next a note - one a | b");
}

#[test]
fn books_are_read_chapter_by_chapter() {
    let container =
        br#"<container><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>"#;
    let package = br#"<package><metadata><dc:title>Moby &amp; Dick</dc:title></metadata><manifest>
        <item id="c2" href="two.xhtml"/><item id="c1" href="text/one%201.xhtml"/><item id="no" href="no.xhtml"/>
        </manifest><spine><itemref idref="c1"/><itemref idref="no"/><itemref idref="c2"/></spine></package>"#;
    let epub = archive(&[
        ("mimetype", b"application/epub+zip"),
        ("META-INF/container.xml", container),
        ("OEBPS/book.opf", package),
        (
            "OEBPS/text/one 1.xhtml",
            b"<html><head><title>Moby &amp; Dick</title></head><body><h1>Loomings</h1><p>Call me.</p></body></html>",
        ),
        ("OEBPS/two.xhtml", b"<html><body><p>No heading here.</p></body></html>"),
    ]);
    let expected = expected([
        ("Moby & Dick > Loomings", "Call me."),
        ("Moby & Dick", "No heading here."),
    ]);
    assert_eq!(found("a.epub", &epub), expected);
    let parts: Vec<_> = passages("a.epub", &epub).iter().map(|p| p.part).collect();
    assert_eq!(parts, [Some(1), Some(3)]);
}

#[test]
fn other_archives_are_skipped_by_kind() {
    let line = skipped(read_file(
        "a.xlsx",
        &archive(&[("xl/workbook.xml", b"<x/>")]),
    ));
    assert!(
        line.ends_with("is a spreadsheet (export it as CSV)"),
        "{line}"
    );
    let line = skipped(read_file("a.zip", &archive(&[("a.txt", b"text")])));
    assert!(line.contains("is a zip archive"), "{line}");
    assert!(skipped(read_file("a.zip", &archive(&[]))).contains("zip archive"));
}

#[test]
fn truncated_documents_fail_wherever_they_are_cut() {
    let whole = docx(&BODY.repeat(50));
    for cut in (0..40).map(|i| 4 + (whole.len() - 5) * i / 40) {
        let line = failed(read_file("a.docx", &whole[..cut]));
        assert!(line.contains("damaged zip archive"), "{line}");
    }
    // Bytes changed inside.
    for at in (30..whole.len()).step_by(97) {
        let mut torn = whole.clone();
        torn[at] ^= 0x55;
        let _ = read_file("a.docx", &torn);
    }
    let line = failed(read_file("a.docx", &archive(&[("word/documents", b"x")])));
    assert!(line.contains("has no word/document.xml inside"), "{line}");
}

#[test]
fn zip_bombs_are_refused() {
    let bomb = docx(&"a".repeat(24 << 20));
    assert!(bomb.len() < 100_000);
    let line = failed(read_file("a.docx", &bomb));
    assert!(line.contains("is a zip bomb"), "{line}");

    let options = ReadOptions {
        max_unpacked_size: 1000,
        ..ReadOptions::default()
    };
    let line = failed(Fixture::new("a.docx", &docx(&filled(BODY))).read_with(&options));
    assert!(line.contains("--max-unpacked-size"), "{line}");

    let names: Vec<String> = (0..10_001).map(|i| format!("{i}")).collect();
    let members: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let line = failed(read_file("a.docx", &archive(&members)));
    assert!(line.contains("more than 10000 members"), "{line}");
}

#[test]
fn hostile_xml_ends() {
    let laughs: String = (1..10)
        .map(|i| format!("<!ENTITY l{i} \"{}\">", format!("&l{};", i - 1).repeat(10)))
        .collect();
    let laughs =
        format!("<!DOCTYPE d [<!ENTITY l0 \"lol\">{laughs}]><d><p><t>a &l9; b</t></p></d>");
    let member = archive(&[("word/document.xml", laughs.as_bytes())]);
    assert_eq!(passages("a.docx", &member)[0].text, "a  b");

    // Stored, so that the nesting is not taken for a zip bomb.
    let stored = |xml: &str| {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let plain = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file("word/document.xml", plain).unwrap();
        zip.write_all(xml.as_bytes()).unwrap();
        zip.finish().unwrap().into_inner()
    };
    let n = 10_000_000;
    let deep = "<p>".repeat(n) + "<t>text</t>";
    assert_eq!(passages("a.docx", &stored(&deep))[0].text, "text");
    let n = 300_000;
    let attributes: String = (0..n).map(|i| format!(" a{i}='x'")).collect();
    for xml in [
        "<tr><tc>".repeat(n) + "<t>text</t>",
        format!("<pStyle{attributes}/><p><t>text</t></p>"),
        "<pStyle".repeat(n),
        "&".repeat(n),
        "<p><t>x".repeat(n),
        "</p>".repeat(n),
        "<!DOCTYPE ".to_string() + &"[<".repeat(n),
        "<?".repeat(n),
        "<Fallback>".repeat(n),
        String::new(),
    ] {
        let start = std::time::Instant::now();
        let _ = read_file("a.docx", &stored(&xml));
        println!("{:?} {:?}", xml.get(..20), start.elapsed());
    }
}
