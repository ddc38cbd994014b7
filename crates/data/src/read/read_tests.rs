use super::*;
use crate::estimate_tokens;
use proptest::prelude::*;

/// A folder with one file in it.
pub(crate) struct Fixture {
    folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

impl Fixture {
    pub(crate) fn new(name: &str, bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Self { folder, path }
    }

    pub(crate) fn read_with(&self, options: &ReadOptions) -> Result<Document, ReadError> {
        read(&entry(&self.path), options)
    }
}

pub(crate) fn entry(path: &Path) -> FileEntry {
    FileEntry {
        path: path.to_path_buf(),
        size: 0,
        modified: std::time::UNIX_EPOCH,
    }
}

pub(crate) fn read_file(name: &str, bytes: &[u8]) -> Result<Document, ReadError> {
    Fixture::new(name, bytes).read_with(&ReadOptions::default())
}

/// Put into small sections in place of "FILL", so that they stay apart.
const FILL: &str = "Enough words stand here that this section makes a passage of its own, rather \
    than being joined with the one that comes after it, beside it, above it or even far below it \
    in the same page, as is done with small ones.";

pub(crate) fn filled(text: &str) -> String {
    text.replace("FILL", FILL)
}

/// Trails and texts of passages.
pub(crate) fn trails(passages: &[Passage]) -> Vec<(String, String)> {
    let pair = |p: &Passage| (p.headings.join(" > "), p.text.clone());
    passages.iter().map(pair).collect()
}

/// The same of what is expected, with "FILL" filled.
pub(crate) fn expected<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
    pairs.map(|(a, b)| (a.to_string(), filled(b))).to_vec()
}

/// The passages of a file that must be readable, after the checks that hold for all
/// formats.
pub(crate) fn passages(name: &str, bytes: &[u8]) -> Vec<Passage> {
    let document = read_file(name, bytes).unwrap();
    assert_eq!(document.content_hash, blake3::hash(bytes).to_hex().as_str());
    for passage in &document.passages {
        assert!(!passage.text.trim().is_empty());
        assert!(estimate_tokens(&passage.text) <= 230);
        assert!(passage.bytes.end <= bytes.len() as u64);
        assert_eq!(passage.lines.is_empty(), passage.bytes.is_empty());
    }
    document.passages
}

/// The file's own bytes that a passage names, as text.
pub(crate) fn slice<'b>(bytes: &'b [u8], passage: &Passage) -> std::borrow::Cow<'b, str> {
    String::from_utf8_lossy(&bytes[passage.bytes.start as usize..passage.bytes.end as usize])
}

/// The lines of a UTF-8 file that a passage names.
pub(crate) fn lines(bytes: &[u8], passage: &Passage) -> String {
    let text = std::str::from_utf8(bytes).unwrap();
    let mut start = 0;
    let mut found = String::new();
    for (i, end) in crate::chunk::line_ends(text).enumerate() {
        if passage.lines.contains(&(i as u32 + 1)) {
            found.push_str(&text[start..end]);
        }
        start = end;
    }
    found
}

pub(crate) fn skipped(result: Result<Document, ReadError>) -> String {
    match result {
        Err(ReadError::Skipped(notice)) => notice.to_string(),
        other => panic!("not skipped: {other:?}"),
    }
}

pub(crate) fn failed(result: Result<Document, ReadError>) -> String {
    match result {
        Err(ReadError::Failed(notice)) => notice.to_string(),
        other => panic!("not failed: {other:?}"),
    }
}

#[test]
fn small_paragraphs_are_joined_and_large_ones_cut() {
    let small = "A short paragraph of a few words.\n\n".repeat(3);
    let large = "This sentence has about ten tokens in all, so many. ".repeat(60);
    let file = format!("{small}{large}\n\nThe end of it.\n");
    let passages = passages("a.txt", file.as_bytes());
    assert!(
        passages[0]
            .text
            .starts_with("A short paragraph of a few words.\n\nA short")
    );
    assert!((4..=6).contains(&passages.len()), "{}", passages.len());
    assert!(passages.last().unwrap().text.ends_with("The end of it."));
    for passage in &passages {
        assert!(passage.text.ends_with('.'));
        assert_eq!(slice(file.as_bytes(), passage), passage.text);
    }
}

#[test]
fn bytes_and_lines_name_the_passage_in_every_character_set() {
    let paragraph = "Überall wächst grünes Gras, und die Bäume stehen schön.\r\n".repeat(12);
    let text = [paragraph.as_str(); 5].join("\r\n");
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let (latin, ..) = encoding_rs::WINDOWS_1252.encode(&text);
    type Decode = fn(&[u8]) -> String;
    let cases: [(&[u8], Decode); 3] = [
        (text.as_bytes(), |bytes| {
            String::from_utf8(bytes.to_vec()).unwrap()
        }),
        (&latin, |bytes| {
            encoding_rs::WINDOWS_1252.decode(bytes).0.into_owned()
        }),
        (&utf16, |bytes| {
            encoding_rs::UTF_16LE.decode(bytes).0.into_owned()
        }),
    ];
    for (file, decode) in cases {
        let passages = passages("a.txt", file);
        assert!(passages.len() > 3);
        for passage in passages {
            let slice = decode(&file[passage.bytes.start as usize..passage.bytes.end as usize]);
            assert_eq!(slice.replace("\r\n", "\n"), passage.text);
            let lines = lines(text.as_bytes(), &passage).replace("\r\n", "\n");
            assert_eq!(lines.trim_end(), passage.text);
        }
    }
}

#[test]
fn escape_sequences_do_not_reach_the_terminal() {
    let passages = passages("a.txt", b"plain \x1b[31mred\x07 text\rnext");
    assert_eq!(passages[0].text, "plain  [31mred  text\nnext");
}

#[test]
fn files_that_are_not_for_reading_are_skipped() {
    assert!(skipped(read_file("a.txt", b"")).ends_with("a.txt: is empty"));
    assert!(skipped(read_file("a.txt", b" \n\n")).ends_with("a.txt: holds no text"));
    assert!(skipped(read_file("a.txt", b"a\0b")).contains("is not text"));
    let options = ReadOptions {
        max_file_size: 3,
        ..ReadOptions::default()
    };
    let line = skipped(Fixture::new("a.txt", b"1234").read_with(&options));
    assert!(line.ends_with("a.txt: is larger than 3 bytes (raise --max-file-size to read it)"));
    assert!(Fixture::new("a.txt", b"123").read_with(&options).is_ok());
    let folder = Fixture::new("a", b"");
    let line = skipped(read(&entry(folder.folder.path()), &options));
    assert!(line.ends_with("is a folder"));
}

#[test]
fn limits_name_their_options() {
    let fixture = Fixture::new("a.txt", "word ".repeat(2000).as_bytes());
    let options = ReadOptions {
        max_passages_per_file: 3,
        ..ReadOptions::default()
    };
    assert!(failed(fixture.read_with(&options)).contains("--max-passages-per-file"));
    let options = ReadOptions {
        max_unpacked_size: 3000,
        ..ReadOptions::default()
    };
    assert!(failed(fixture.read_with(&options)).contains("--max-unpacked-size"));
}

#[test]
fn missing_files_fail() {
    let line = failed(read(
        &entry(Path::new("/no/such/file")),
        &ReadOptions::default(),
    ));
    assert!(
        line.starts_with("/no/such/file: cannot be read: "),
        "{line}"
    );
    assert!(content_hash(Path::new("/no/such/file")).is_err());
}

#[cfg(unix)]
#[test]
fn pipes_are_not_opened_and_locked_files_fail() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new("locked.txt", b"text");
    let pipe = fixture.folder.path().join("pipe.txt");
    let made = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap();
    assert!(made.success());
    let line = skipped(read(&entry(&pipe), &ReadOptions::default()));
    assert!(line.ends_with("is a pipe"));
    assert!(content_hash(&pipe).is_err());

    std::fs::set_permissions(&fixture.path, std::fs::Permissions::from_mode(0o000)).unwrap();
    if File::open(&fixture.path).is_err() {
        let line = failed(fixture.read_with(&ReadOptions::default()));
        assert!(line.contains("give yourself the right"), "{line}");
    }
}

#[test]
fn hashes_agree() {
    let fixture = Fixture::new("a.txt", b"some text");
    let document = fixture.read_with(&ReadOptions::default()).unwrap();
    assert_eq!(content_hash(&fixture.path).unwrap(), document.content_hash);
}

#[test]
fn the_summary_counts() {
    let mut summary = Summary::default();
    summary.count(&read_file("a.txt", b"text"));
    summary.count(&read_file("a.txt", b""));
    summary.count(&read(
        &entry(Path::new("/no/such")),
        &ReadOptions::default(),
    ));
    assert_eq!(summary.to_string(), "1 read, 1 skipped, 1 failed");
}

#[test]
fn one_huge_line_is_read_in_linear_time() {
    for line in [
        "x".repeat(8 << 20),
        "word ".repeat(1 << 20),
        "1. ".repeat(1 << 20),
    ] {
        let passages = passages("a.txt", line.as_bytes());
        let text: usize = passages.iter().map(|p| p.text.len()).sum();
        assert!(text + passages.len() >= line.len() - 1);
    }
}

proptest! {
    #[test]
    fn no_word_of_a_plain_text_is_lost(
        text in "([a-zA-Z0-9.,!?é日\u{1f600}-]{1,12}[ \n]{1,3}){1,400}",
    ) {
        let document = read_file("a.txt", text.as_bytes()).unwrap();
        // A sentence may end inside what has no blanks, so passages are compared
        // by their characters.
        let found: String = document.passages.iter().flat_map(|p| p.text.split_whitespace()).collect();
        let expected: String = text.split_whitespace().collect();
        prop_assert_eq!(found, expected);
    }
}
