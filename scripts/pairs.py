#!/usr/bin/env python3
"""Collects pairs of texts that late-interaction encoders are trained on.

    scripts/pairs.py OUT.jsonl

Writes one JSON object {"query": ..., "positive": ...} a line, in a fixed order: the
one-line description of a Debian package with its long description, and the line that
says what a manual page is about with its first paragraphs. `keyfold train crisp` and
`keyfold train colberter` read it. Needs what scripts/corpus.py needs, from which the
texts come; sources and licences: docs/model.md.
"""

import glob
import gzip
import json
import random
import re
import sys
import tempfile

import corpus

# Characters of a text at most.
LONGEST = 900


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        corpus.fetch(folder)
        pairs = once(list(packages(folder)) + list(manual_pages(folder)))
    random.Random(0).shuffle(pairs)
    with open(sys.argv[1], "w") as out:
        for query, positive in pairs:
            out.write(json.dumps({"query": query, "positive": positive}) + "\n")
    print(f"{len(pairs)} pairs in {sys.argv[1]}", file=sys.stderr)


def packages(folder):
    """Title and long text."""
    for text in corpus.descriptions(folder):
        title, long = text.split("\n", 1)
        if len(title.split()) > 2:
            yield title, clipped(long)


def manual_pages(folder):
    """What stands after the dash under NAME, and the description."""
    for path in sorted(glob.glob(f"{folder}/x/usr/share/man/man*/*.gz")):
        with gzip.open(path, "rt", errors="replace") as page:
            text = page.read()
        text = re.sub(r"\\f[BIRP]|\\&", "", text).replace("\\-", "-")
        name = re.search(r'(?ms)^\.SH "?NAME"?\n(.*?)^\.SH', text)
        description = re.search(r'(?ms)^\.SH "?DESCRIPTION"?\n(.*?)(^\.SH|\Z)', text)
        if not name or not description or " - " not in name[1]:
            continue
        about = corpus.one_line(name[1].split(" - ", 1)[1])
        plain = re.sub(r"(?m)^\.(B|I|BR|IR|RB|BI|RI|IB) ", "", description[1])
        plain = corpus.one_line(re.sub(r"(?m)^[.'].*\n", "", plain))
        if len(about.split()) > 2 and len(plain) > 120:
            yield about, clipped(plain)


def clipped(text):
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(None, 1)[0]


def once(pairs):
    """Leaves out families of packages, whose texts begin alike."""
    seen = set()
    kept = []
    for query, positive in pairs:
        keys = {query, positive[:80]}
        if not keys & seen:
            seen |= keys
            kept.append((query, positive))
    return kept


if __name__ == "__main__":
    main()
