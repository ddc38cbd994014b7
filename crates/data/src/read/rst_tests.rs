use crate::read::tests::*;

const PAGE: &str = "\
=========
The Guide
=========

FILL

Install
=======

FILL

Run it:

.. code-block:: sh

    make
    make install

More
----

FILL

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
    let page = filled(PAGE);
    let passages = passages("a.rst", page.as_bytes());
    let expected = expected([
        ("The Guide", "FILL"),
        (
            "The Guide > Install",
            "FILL\n\nRun it:\n\n.. code-block:: sh\n\n    make\n    make install",
        ),
        (
            "The Guide > Install > More",
            "FILL\n\nLast words\ngo here.\n\n====  ====\na     b\n====  ====",
        ),
        ("The Guide > Usage", "Use it."),
    ]);
    assert_eq!(trails(&passages), expected);
    for passage in &passages {
        assert_eq!(slice(page.as_bytes(), passage), passage.text);
        assert_eq!(lines(page.as_bytes(), passage).trim_end(), passage.text);
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
