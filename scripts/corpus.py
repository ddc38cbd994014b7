#!/usr/bin/env python3
"""Collects the texts that the built-in encoder is distilled on.

    scripts/corpus.py OUT.jsonl

Writes one JSON object {"text": ...} a line, in a fixed order: some 190,000
texts. They come from Debian packages, which are downloaded into a temporary
folder and not installed: package descriptions, WordNet glosses, dictionaries,
manual pages, and documentation. A third of the texts are short pieces cut out
of others, as long as what people type into a search box: without them the
encoder learns to read passages but not queries. Needs apt-get and dpkg-deb
(Debian 12) and the Python standard library; run `apt-get update` first.
Sources and licences: docs/model.md.
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
    "calculix-ccx-doc",
    "cmake-doc",
    "debian-faq",
    "debian-reference-en",
    "dict-devil",
    "dict-elements",
    "dict-foldoc",
    "dict-gcide",
    "dict-jargon",
    "freefem-doc",
    "gmsh-doc",
    "libreoffice-help-en-us",
    "manpages",
    "manpages-dev",
    "maxima-doc",
    "octave-doc",
    "python-astropy-doc",
    "python-scipy-doc",
    "python3.11-doc",
    "wordnet-base",
]
# Of each kind at most so many texts.
CAPS = {"deb": 26_000, "wn": 45_000, "dict": 40_000, "man": 5_000, "doc": 12_000}
# Characters of a text at most: more texts teach more than longer ones.
LONGEST = 700
# Pieces of 3 to 16 words.
PIECES = 60_000


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        fetch(folder)
        kinds = {
            "deb": once(descriptions(folder)),
            "wn": glosses(folder),
            "dict": once(dictionaries(folder)),
            "man": once(manual_pages(folder)),
            "doc": once(documentation(folder)),
        }
    rng = random.Random(0)
    texts = []
    for kind, all_ in kinds.items():
        rng.shuffle(all_)
        texts += [clipped(text) for text in all_[: CAPS[kind]]]
        print(f"{kind}: {min(len(all_), CAPS[kind])} of {len(all_)}", file=sys.stderr)
    texts += [piece(rng.choice(texts), rng) for _ in range(PIECES)]
    rng.shuffle(texts)
    with open(sys.argv[1], "w") as out:
        for text in texts:
            out.write(json.dumps({"text": text}) + "\n")
    print(f"{len(texts)} texts in {sys.argv[1]}", file=sys.stderr)


def clipped(text):
    """The beginning of a text, whole words."""
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(None, 1)[0]


def piece(text, rng):
    """Some words of a text that stand together."""
    words = text.split()
    count = min(len(words), rng.randint(3, 16))
    start = rng.randint(0, len(words) - count)
    return " ".join(words[start : start + count])


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


def dictionaries(folder):
    """Entries of dictd dictionaries: a headword at the margin, then indented text."""
    for path in sorted(glob.glob(f"{folder}/x/usr/share/dictd/*.dict.dz")):
        with gzip.open(path, "rt", errors="replace") as data:
            text = data.read()
        for entry in re.split(r"\n(?=\S)", text):
            if entry.startswith("00-database"):
                continue
            # Pronunciation, sources, etymology and cross references of Webster's.
            entry = re.sub(r"\\[^\\\n]{1,60}\\", " ", entry)
            entry = re.sub(r"\[[^\]]{1,300}\]", " ", entry)
            entry = re.sub(r"[{}]", "", entry)
            entry = one_line(entry)
            if len(entry) > 60:
                yield entry


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
        language = re.search(r"\.([a-z]{2})(-[a-z]{2})?\.html$", path)
        if not os.path.isfile(path) or (language and language[1] != "en"):
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
