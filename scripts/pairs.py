#!/usr/bin/env python3
"""Collects pairs of texts that late-interaction encoders are trained on.

    scripts/pairs.py OUT.jsonl

Writes one JSON object {"query": ..., "positive": ...} a line, in a fixed order:

- the one-line description of a Debian package with its long description,
- the line that says what a manual page is about with its first paragraphs,
- a heading of documentation with what stands under it,
- a sentence of documentation or of a dictionary's entry with the rest of that text,
- what a word means with the word and sentences that use it.

`keyfold train builtin --pairs`, `train crisp` and `train colberter` read it. Needs what
scripts/corpus.py needs, from which the texts come; sources and licences: docs/model.md.
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
# Of each kind at most so many pairs.
CAPS = {"deb": 50_000, "man": 5_000, "heading": 8_000, "doc": 10_000, "dict": 14_000, "wn": 6_000}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        corpus.fetch(folder)
        kinds = {
            "deb": packages(folder),
            "man": manual_pages(folder),
            "heading": headings(folder),
            "doc": sentences(corpus.documentation(folder), rng),
            "dict": sentences(corpus.dictionaries(folder), rng),
            "wn": meanings(folder),
        }
        kinds = {kind: once(list(pairs)) for kind, pairs in kinds.items()}
    pairs = []
    for kind, all_ in kinds.items():
        rng.shuffle(all_)
        pairs += all_[: CAPS[kind]]
        print(f"{kind}: {min(len(all_), CAPS[kind])} of {len(all_)}", file=sys.stderr)
    rng.shuffle(pairs)
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


def headings(folder):
    """A heading of some words, and the text up to the next one."""
    for page in corpus.pages(folder):
        parts = re.split(r"(?s)<h[1-4][^>]*>(.*?)</h[1-4]>", page)
        for heading, section in zip(parts[1::2], parts[2::2]):
            heading = corpus.one_line(corpus.untag(heading)).rstrip("¶#")
            section = corpus.one_line(corpus.untag(section))
            if len(heading.split()) > 2 and len(section) > 200:
                yield heading, clipped(section)


def sentences(texts, rng):
    """One sentence of a text, and the text without it."""
    for text in texts:
        parts = re.split(r"(?<=[.;?!]) +(?=[A-Z0-9(])", text[: 2 * LONGEST])
        of_query = [n for n, part in enumerate(parts) if 5 <= len(part.split()) <= 30]
        if len(parts) < 2 or not of_query:
            continue
        chosen = rng.choice(of_query)
        rest = " ".join(parts[:chosen] + parts[chosen + 1 :])
        if len(rest) > 100:
            yield parts[chosen], clipped(rest)


def meanings(folder):
    """A gloss of WordNet, and its words with the examples after it."""
    for text in corpus.glosses(folder):
        words, gloss = text.split(": ", 1)
        gloss, _, examples = gloss.partition('; "')
        if examples and len(gloss.split()) > 3:
            yield gloss, f'{words}: "{examples}'


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
