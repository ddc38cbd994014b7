#!/usr/bin/env python3
"""Collects the texts that the built-in encoder is distilled on.

    scripts/corpus.py OUT.jsonl

Writes one JSON object {"text": ...} a line: 60,000 texts of four kinds, in a
fixed order. The texts come from Debian packages, which are downloaded into a
temporary folder and not installed: package descriptions, WordNet glosses,
manual pages, and the documentation of Python, LibreOffice and Debian. Needs
apt-get and dpkg-deb (Debian or Ubuntu) and the Python standard library; run
`apt-get update` first. Sources and licences: docs/model.md.
"""

import glob
import gzip
import html
import json
import os
import random
import re
import subprocess
import sys
import tempfile

PACKAGES = [
    "wordnet-base",
    "manpages",
    "manpages-dev",
    "debian-reference-en",
    "libreoffice-help-en-us",
    "python3.11-doc",
]
# Of each kind at most so many texts, then the first of all kinds together.
CAPS = {"deb": 26_000, "wn": 60_000, "man": 6_000, "doc": 6_000}
TEXTS = 60_000


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        fetch(folder)
        kinds = {
            "deb": once(descriptions(folder)),
            "wn": glosses(folder),
            "man": once(manual_pages(folder)),
            "doc": once(documentation(folder)),
        }
    texts = [(kind, text) for kind, all_ in kinds.items() for text in all_]
    random.Random(0).shuffle(texts)
    taken = dict.fromkeys(CAPS, 0)
    written = 0
    with open(sys.argv[1], "w") as out:
        for kind, text in texts:
            if taken[kind] < CAPS[kind] and written < TEXTS:
                taken[kind] += 1
                written += 1
                out.write(json.dumps({"text": text}) + "\n")
    print(f"{written} texts in {sys.argv[1]}: {taken}", file=sys.stderr)


def fetch(folder):
    """Unpacks the packages, and the long descriptions of all of Debian's packages."""
    for package in PACKAGES:
        subprocess.run(["apt-get", "download", "-q", package], cwd=folder, check=True)
    for archive in sorted(glob.glob(f"{folder}/*.deb")):
        subprocess.run(["dpkg-deb", "-x", archive, f"{folder}/x"], check=True)
    # Minimal systems leave the English descriptions out of their package lists.
    subprocess.run(["apt-get", "update", "-q", "-o", "Acquire::Languages=en"], check=True)
    lists = sorted(glob.glob("/var/lib/apt/lists/*Translation-en*"))
    with open(f"{folder}/descriptions", "wb") as out:
        for path in lists:
            reader = ["/usr/lib/apt/apt-helper", "cat-file", path]
            out.write(subprocess.run(reader, check=True, capture_output=True).stdout)


def descriptions(folder):
    seen = set()
    with open(f"{folder}/descriptions", errors="replace") as lists:
        records = lists.read().split("\n\n")
    for record in records:
        found = re.search(r"^Description-en: (.*)\n((?: .*\n?)*)", record, re.M)
        if not found:
            continue
        paragraphs = []
        for paragraph in re.sub(r"\n \.\n", "\n\n", found[2]).split("\n\n"):
            paragraph = one_line(paragraph)
            if len(paragraph) > 60 and paragraph not in seen:
                seen.add(paragraph)
                paragraphs.append(paragraph)
        if paragraphs:
            yield found[1] + "\n" + " ".join(paragraphs)[:1500]


def glosses(folder):
    texts = []
    for path in sorted(glob.glob(f"{folder}/x/usr/share/wordnet/data.*")):
        with open(path) as data:
            for line in data:
                if line.startswith("  ") or " | " not in line:
                    continue
                head, gloss = line.rstrip().split(" | ", 1)
                fields = head.split()
                words = [fields[4 + 2 * i] for i in range(int(fields[3], 16))]
                words = ", ".join(w.replace("_", " ") for w in words)
                texts.append(f"{words}: {gloss.strip()}")
    return texts


def manual_pages(folder):
    for path in sorted(glob.glob(f"{folder}/x/usr/share/man/man*/*.gz")):
        with gzip.open(path, "rt", errors="replace") as page:
            text = page.read()
        text = re.sub(r"(?m)^[.'](SH|SS|PP|TP|IP|P|LP).*", "\n", text)
        text = re.sub(r"(?m)^\.(B|I|BR|IR|RB|BI|RI|IB) ", "", text)
        text = re.sub(r"(?m)^[.'].*\n", "", text)
        text = re.sub(r"\\f[BIRP]|\\&", "", text).replace("\\-", "-")
        for paragraph in re.split(r"\n\s*\n", text):
            paragraph = one_line(paragraph)
            if len(paragraph) > 120:
                yield paragraph[:1200]


def documentation(folder):
    pages = glob.glob(f"{folder}/x/**/*.html", recursive=True)
    for path in sorted(pages):
        english = "debian-reference" not in path or path.endswith("en.html")
        if not english:
            continue
        with open(path, errors="replace") as page:
            text = untag(page.read())
        collected = ""
        for paragraph in re.split(r"\n\s*\n", text):
            paragraph = one_line(paragraph)
            if len(paragraph) < 40:
                continue
            collected = (collected + " " + paragraph).strip()
            if len(collected) > 400:
                yield collected[:1200]
                collected = ""


def untag(text):
    text = re.sub(r"(?s)<(script|style|head|nav).*?</\1>", "", text)
    text = re.sub(r"</(p|div|li|h\d|pre|tr|dd|dt)>", "\n\n", text)
    return html.unescape(re.sub(r"<[^>]+>", "", text))


def one_line(text):
    return re.sub(r"\s+", " ", text).strip()


def once(texts):
    """Leaves out what begins like a text before."""
    seen = set()
    kept = []
    for text in texts:
        if text[:80] not in seen:
            seen.add(text[:80])
            kept.append(text)
    return kept


if __name__ == "__main__":
    main()
