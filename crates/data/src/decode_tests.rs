use super::*;
use proptest::prelude::*;

/// Every character of the text, with the bytes of the file that it came from.
fn round_trip(file: &[u8], expected: &str, encode: impl Fn(&str) -> Vec<u8>) {
    let source = Source::decode(file, None).unwrap();
    assert_eq!(source.text, expected);
    for (at, c) in expected.char_indices() {
        let bytes = source.bytes(&(at..at + c.len_utf8()));
        let slice = &file[bytes.start as usize..bytes.end as usize];
        assert_eq!(slice, encode(&c.to_string()), "{c:?} at {at}");
    }
    assert_eq!(source.bytes(&(0..expected.len())).end, file.len() as u64);
}

fn utf16_bytes(text: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(unit).collect()
}

/// Long enough to pass several marks.
fn sample(text: &str) -> String {
    text.repeat(400)
}

#[test]
fn utf8_with_and_without_mark() {
    let text = sample("naïve café, 東京 😀\n");
    round_trip(text.as_bytes(), &text, |c| c.as_bytes().to_vec());
    let marked = [b"\xef\xbb\xbf", text.as_bytes()].concat();
    round_trip(&marked, &text, |c| c.as_bytes().to_vec());
}

#[test]
fn utf16_with_and_without_mark() {
    let text = sample("naïve café, 東京 😀\r\n");
    for unit in [u16::to_le_bytes, u16::to_be_bytes] {
        let bytes = utf16_bytes(&text, unit);
        let marked = [unit(0xfeff).to_vec(), bytes.clone()].concat();
        round_trip(&marked, &text, |c| utf16_bytes(c, unit));
        round_trip(&bytes, &text, |c| utf16_bytes(c, unit));
    }
}

#[test]
fn older_character_sets() {
    let cases = [
        (
            encoding_rs::WINDOWS_1252,
            "Das Gebäude – „größer“ als üblich, für 5 €.\n",
        ),
        (
            encoding_rs::WINDOWS_1252,
            "L'été dernier, le garçon a mangé à côté.\n",
        ),
        (
            encoding_rs::WINDOWS_1251,
            "Широкая электрификация южных губерний.\n",
        ),
        (
            encoding_rs::SHIFT_JIS,
            "東京は日本の首都である。これはテストです。\n",
        ),
    ];
    for (encoding, text) in cases {
        let text = sample(text);
        let (bytes, ..) = encoding.encode(&text);
        round_trip(&bytes, &text, |c| encoding.encode(c).0.into_owned());
    }
}

#[test]
fn one_damaged_spot_leaves_utf8_in_peace() {
    let file = [
        sample("Überfälle: ").as_bytes(),
        b"\xff",
        "größer".as_bytes(),
    ]
    .concat();
    let source = Source::decode(&file, None).unwrap();
    assert!(source.text.ends_with("\u{fffd}größer"));
    let at = source.text.find("größer").unwrap();
    let bytes = source.bytes(&(at..source.text.len()));
    assert_eq!(
        &file[bytes.start as usize..bytes.end as usize],
        "größer".as_bytes()
    );
}

#[test]
fn binary_files_are_told_from_text() {
    let reason = |bytes: &[u8]| match Source::decode(bytes, None) {
        Err(Problem::Skip(why, _)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(b"text and\0zero"), "is not text: has zero bytes");
    assert_eq!(
        reason(b"\x7fELF\x02\x01\x01\0\0\0\0\0"),
        "is not text: has zero bytes"
    );
    assert_eq!(reason(b"\xff\xfea\0\0\0b\0"), "is not text: has zero bytes");
    let noise: Vec<u8> = (1..=255).collect();
    assert_eq!(reason(&noise), "is not text: is mostly control characters");
    assert!(Source::decode(b"", None).is_ok());
    assert!(Source::decode(b"\x1b[1mbold\x1b[0m text of a terminal", None).is_ok());
}

#[test]
fn lines_are_counted_for_every_kind_of_line_end() {
    let lines = |text: &str, part: &str| {
        let at = text.find(part).unwrap();
        Source::of_bytes(text.as_bytes()).lines(&(at..at + part.len()))
    };
    assert_eq!(lines("a\nb\nc", "b"), 2..3);
    assert_eq!(lines("a\r\nb\r\nc", "b"), 2..3);
    assert_eq!(lines("a\rb\rc", "c"), 3..4);
    assert_eq!(lines("a\r\n\r\nb\nc", "b\nc"), 3..5);
    assert_eq!(lines("a\nb\n", "a\n"), 1..2);
    // Past the marks.
    let long = "é\r\n".repeat(3000) + "here";
    assert_eq!(lines(&long, "here"), 3001..3002);
}

proptest! {
    #[test]
    fn any_bytes_decode_within_bounds(bytes in proptest::collection::vec(1u8.., 0..3000)) {
        if let Ok(source) = Source::decode(&bytes, None) {
            let mut last = 0;
            for (at, c) in source.text.char_indices() {
                let range = source.bytes(&(at..at + c.len_utf8()));
                prop_assert!(range.start >= last && range.end <= bytes.len() as u64);
                last = range.start;
            }
        }
    }

    #[test]
    fn line_numbers_agree_with_a_plain_count(text in "([a-zé]{0,30}(\n|\r\n|\r)){0,200}x") {
        let source = Source::of_bytes(text.as_bytes());
        let mut start = 0;
        for (line, end) in (1..).zip(crate::chunk::line_ends(&text)) {
            prop_assert_eq!(source.lines(&(start..end)), line..line + 1);
            start = end;
        }
    }
}
