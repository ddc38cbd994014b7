use crate::read::tests::*;

const PAGE: &str = "\
=========
The Guide
=========

Intro.

Install
=======

Run it:

.. code-block:: sh

    make
    make install

More
----

Last words
go here.

====  ====
a     b
====  ====

Usage
=====

Use it.
";

#[test]
fn headings_show_by_their_lines() {
    let passages = passages("a.rst", PAGE.as_bytes());
    let found: Vec<_> = passages
        .iter()
        .map(|p| (p.headings.join(" > "), p.text.as_str()))
        .collect();
    let expected = [
        ("The Guide", "Intro."),
        (
            "The Guide > Install",
            "Run it:\n\n.. code-block:: sh\n\n    make\n    make install",
        ),
        (
            "The Guide > Install > More",
            "Last words\ngo here.\n\n====  ====\na     b\n====  ====",
        ),
        ("The Guide > Usage", "Use it."),
    ]
    .map(|(trail, text)| (trail.to_string(), text));
    assert_eq!(found, expected);
    for passage in &passages {
        assert_eq!(slice(PAGE.as_bytes(), passage), passage.text);
        assert_eq!(lines(PAGE.as_bytes(), passage).trim_end(), passage.text);
    }
}

#[test]
fn transitions_and_odd_lines_are_text() {
    for page in [
        "one\n\n----\n\ntwo",
        "====",
        "====\n====\n====",
        "a\n.",
        "==\n\n==\nx",
    ] {
        let passages = passages("a.rst", page.as_bytes());
        let all: Vec<_> = passages.iter().map(|p| p.text.as_str()).collect();
        assert_eq!(all, [page]);
    }
}
