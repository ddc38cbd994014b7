use crate::read::tests::*;

const PAGE: &str = "\
---
title: \"The Guide\"
about: FILL
---

# Install

Use the [package](https://example.org/a/b) *manager*,
or `cargo install`.

FILL

## From source

FILL

1. Clone it.
2. Build it:

   ```sh
   cargo build
   ```

| name | size |
|------|------|
| a    | 1 MB |

<h2>Notes</h2>

<p align=\"center\">Read <b>this</b>.</p>

Fish &amp; chips[^1]

[^1]: A dish.
";

#[test]
fn text_is_what_the_rendered_page_shows() {
    let found = trails(&passages("a.md", filled(PAGE).as_bytes()));
    let expected = expected([
        ("The Guide", "title: \"The Guide\"\nabout: FILL"),
        (
            "The Guide > Install",
            "Use the package manager,\nor cargo install.\n\nFILL",
        ),
        (
            "The Guide > Install > From source",
            "FILL\n1. Clone it.\n2. Build it:\ncargo build\nname | size\na | 1 MB",
        ),
        (
            "The Guide > Install > Notes",
            "Read this.\n\nFish & chips[1]\n\n[1]: A dish.",
        ),
    ]);
    assert_eq!(found, expected);
}

#[test]
fn bytes_and_lines_hold_the_words() {
    let page = filled(PAGE).repeat(20).replace('\n', "\r\n");
    let passages = passages("a.md", page.as_bytes());
    assert!(passages.len() > 60);
    for passage in &passages {
        let slice = slice(page.as_bytes(), passage).replace("&amp;", "&");
        let lines = lines(page.as_bytes(), passage).replace("&amp;", "&");
        let mut rest = slice.as_str();
        for word in passage.text.split(|c: char| !c.is_alphabetic()) {
            let at = rest
                .find(word)
                .unwrap_or_else(|| panic!("{word:?} of {passage:?} in {slice}"));
            rest = &rest[at + word.len()..];
            assert!(lines.contains(word));
        }
        // And not much else.
        assert!(slice.len() < 3 * passage.text.len() + 200);
    }
}

#[test]
fn headings_without_text_are_not_lost() {
    let page = filled("# Title\n\n## One\n\n## Two\n\nFILL\n\n## Three\n\n## Four\n");
    let found = trails(&passages("a.md", page.as_bytes()));
    let expected = expected([("Title", "One\n\nTwo\nFILL"), ("Title", "Three\nFour")]);
    assert_eq!(found, expected);
}

#[test]
fn sections_of_a_few_words_are_joined_under_what_they_share() {
    let page =
        filled("# Title\n\n## One\n\na\n\n## Two\n\nb\n\nc\n\n### Deep\n\nFILL\n\n# Other\n\nd\n");
    let passages = passages("a.md", page.as_bytes());
    let expected = expected([
        ("Title", "One\na\n\nTwo\nb\n\nc"),
        ("Title > Two > Deep", "FILL"),
        ("Other", "d"),
    ]);
    assert_eq!(trails(&passages), expected);
    assert!(slice(page.as_bytes(), &passages[0]).starts_with("## One"));
    assert_eq!(passages[0].lines, 3..12);
}

#[test]
fn a_huge_heading_is_cut_in_the_trail_and_kept_as_text() {
    let page = format!("# {}\n\nText.\n", "word ".repeat(100_000));
    let passages = passages("a.md", page.as_bytes());
    assert!(passages.len() > 400);
    assert!(passages.iter().all(|p| p.headings[0].len() < 200));
}

#[test]
fn nested_lists_are_indented_and_joined() {
    let list = "- one\n  - two\n    continued\n  - three\n- [x] four\n";
    let passages = passages("a.md", list.as_bytes());
    assert_eq!(passages.len(), 1);
    let expected = "- one\n  - two\ncontinued\n  - three\n- [x] four";
    assert_eq!(passages[0].text, expected);
}

#[test]
fn hostile_markdown_ends() {
    let n = 200_000;
    let pages = [
        ">".repeat(n) + "deep",
        "> ".repeat(n) + "deep\n" + &"a\n".repeat(n),
        "- ".repeat(n) + "deep",
        "[".repeat(n),
        "![".repeat(n),
        "*a_ ".repeat(n),
        "`".repeat(n) + "a",
        "<a ".repeat(n),
        "<!--".repeat(n),
        "a\n\n".repeat(n),
        "|a".repeat(n) + "\n" + &"|-".repeat(n) + "\n" + &"|b\n".repeat(1000),
        "# x\n".repeat(n),
        "[^a]: ".repeat(n),
        "[a](".repeat(n),
        (0..60)
            .map(|i| " ".repeat(2 * i) + "- a\n")
            .collect::<String>()
            + &"b\n\n".repeat(n / 4),
    ];
    for page in pages {
        let start = std::time::Instant::now();
        let result = read_file("a.md", page.as_bytes());
        println!("{:?} {:?}", page.get(..20), start.elapsed());
        assert!(result.is_ok() || matches!(result, Err(crate::ReadError::Skipped(_))));
    }
}

#[test]
fn large_documents_are_read_in_sections_that_point_at_their_own_bytes() {
    let paragraph = |i: usize| {
        if i.is_multiple_of(5000) {
            format!("# Chapter {i}\n\n```\ncode {i}\n\n# no heading\n```\n\n")
        } else {
            format!("Paragraph *number* {i} says that é is a letter.\n\n")
        }
    };
    let page: String = (0..30_000).map(paragraph).collect();
    let passages = passages("a.md", page.as_bytes());
    let mut headings = passages.iter().flat_map(|p| &p.headings);
    assert!(headings.all(|heading| heading.starts_with("Chapter")));
    let last = passages.last().unwrap();
    assert_eq!(last.headings, ["Chapter 25000"]);
    assert!(slice(page.as_bytes(), last).ends_with("29999 says that é is a letter."));
    assert_eq!(
        lines(page.as_bytes(), last).trim(),
        slice(page.as_bytes(), last)
    );
    // A line longer than a section.
    let line = "é *b* ".repeat(600_000);
    let words: usize = super::super::tests::passages("a.md", line.as_bytes())
        .iter()
        .map(|p| p.text.split_whitespace().count())
        .sum();
    assert!((1_200_000..1_200_010).contains(&words), "{words}");
}
