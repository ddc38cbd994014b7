use super::*;
use crate::estimate_tokens;
use proptest::prelude::*;

fn parts(text: &str, kind: Kind, target: usize, max: usize) -> Vec<&str> {
    let options = ChunkOptions {
        target_tokens: target,
        max_tokens: max,
    };
    let parts = split(text, kind, &options).into_iter();
    parts.map(|part| &text[part.range]).collect()
}

#[test]
fn prose_is_cut_at_sentences_even_where_lines_are_wrapped() {
    let text = "The first sentence is wrapped\nover two lines. The second one\nis too. Third.";
    let expected = [
        "The first sentence is wrapped\nover two lines.",
        "The second one\nis too. Third.",
    ];
    assert_eq!(parts(text, Kind::Prose, 10, 12), expected);
}

#[test]
fn lines_are_cut_at_line_ends_and_keep_their_indentation() {
    let text = "fn main() {\n    one();\n\n    two();\n}\n";
    assert_eq!(parts(text, Kind::Lines, 100, 100), [text.trim_end()]);
    let expected = ["fn main() {\n    one();", "    two();\n}"];
    assert_eq!(parts(text, Kind::Lines, 12, 12), expected);
}

#[test]
fn cuts_are_even() {
    let text = "One two three four. ".repeat(40); // 204 tokens
    let sizes: Vec<_> = parts(&text, Kind::Prose, 90, 100)
        .iter()
        .map(|part| estimate_tokens(part))
        .collect();
    assert_eq!(sizes.len(), 3);
    assert!(
        sizes.iter().all(|size| (60..=75).contains(size)),
        "{sizes:?}"
    );
}

#[test]
fn a_line_without_spaces_is_cut_between_characters() {
    let text = "日本語".repeat(100);
    let cut = parts(&text, Kind::Prose, 40, 50);
    assert_eq!(cut.concat(), text);
    assert!(cut.iter().all(|part| estimate_tokens(part) <= 50));
    let text = "a".repeat(10_000);
    let cut = parts(&text, Kind::Lines, 40, 50);
    assert_eq!(cut.concat(), text);
    assert!(cut.len() > 10);
}

#[test]
fn paragraphs_lines_and_words_end_where_they_should() {
    let ends = |cut: Cut, text: &str| cut.ends(text).collect::<Vec<_>>();
    assert_eq!(ends(Cut::Lines, "a\r\nb\rc\n\nd"), [3, 5, 7, 8, 9]);
    assert_eq!(ends(Cut::BlankLines, "a\nb\n \n\nc\n"), [7, 9]);
    assert_eq!(ends(Cut::BlankLines, "\n\na"), [2, 3]);
    assert_eq!(ends(Cut::Words, "a  bc "), [3, 6]);
    assert_eq!(ends(Cut::Words, ""), Vec::<usize>::new());
    assert_eq!(ends(Cut::Sentences, "It is.\nSo be it. Yes"), [7, 17, 20]);
}

#[test]
fn kinds_of_plain_text() {
    let wrapped = "It was the best of times,\nit was the worst of times,\nit was the age";
    assert_eq!(Kind::of_plain_text(wrapped), Kind::Prose);
    let log = "12:00 INFO started\n12:01 WARN slow\n12:02 INFO stopped";
    assert_eq!(Kind::of_plain_text(log), Kind::Lines);
}

proptest! {
    #[test]
    fn nothing_is_lost_and_nothing_is_too_large(
        text in "([a-zA-Z0-9.!?é日한\u{1f600}_-]{0,12}[ \n\r\t]{0,3}){0,80}",
        max in 1usize..60,
        lines in any::<bool>(),
    ) {
        let kind = if lines { Kind::Lines } else { Kind::Prose };
        let options = ChunkOptions { target_tokens: max / 2, max_tokens: max };
        let parts = split(&text, kind, &options);
        let mut last = 0;
        for Part { range, cost } in &parts {
            prop_assert!(text[last..range.start].trim().is_empty());
            let part = &text[range.clone()];
            prop_assert!(!part.trim().is_empty());
            // A single character may cost more than the limit.
            prop_assert!(
                estimate_tokens(part) <= max || part.chars().count() == 1,
                "{part:?} for {max}"
            );
            prop_assert_eq!(cost.div_ceil(10), estimate_tokens(part));
            last = range.end;
        }
        prop_assert!(text[last..].trim().is_empty());
    }
}
