"""Writes the fixture of feedback and interpolation for crates/search: what Anserini
and Pyserini give on a small random collection.

    pip install --no-deps --target SITE pyserini==0.22.1
    python parity/feedback.py SITE [OUT]

Needs Java 11 or newer, for BM25 and RM3, which run in Anserini itself (its jar is
in the package). Vector feedback and the mixing of scores are Pyserini's own
functions, loaded from their files, since the package as a whole wants more
libraries. OUT is crates/search/tests/fixtures/feedback.json unless given.
"""

import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
QUERIES = ["t7w1 t7w2", "t3w1 t3w1 t21w4", "common t12w2", "t30w1 t30w3 t5w2 absent"]


def documents():
    """Up to ten different words each, so that no tie decides which are kept, and
    fewer than 40 words, whose number Lucene keeps exactly."""
    rng = random.Random(3)
    all = []
    for _ in range(150):
        words = []
        for topic in rng.sample(range(40), 2):
            names = [f"t{topic}w{i}" for i in range(1, 5)]
            words += rng.choices(names, weights=[8, 4, 2, 1], k=rng.randint(3, 14))
        words += ["common"] * rng.randint(0, 2)
        rng.shuffle(words)
        all.append(words)
    return all


def anserini(jar, documents):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "col").mkdir()
        with open(folder / "col/d.jsonl", "w") as file:
            for i, words in enumerate(documents):
                file.write(json.dumps({"id": f"{i:04}", "contents": " ".join(words)}) + "\n")
        (folder / "topics.tsv").write_text("".join(f"{i}\t{q}\n" for i, q in enumerate(QUERIES)))

        def java(main, *args):
            command = ["java", "-cp", str(jar), f"io.anserini.{main}", *args, "-pretokenized"]
            subprocess.run(command, cwd=folder, capture_output=True, check=True)

        java("index.IndexCollection", "-collection", "JsonCollection", "-input", "col",
             "-index", "idx", "-generator", "DefaultLuceneDocumentGenerator", "-threads", "1",
             "-storeDocvectors")  # fmt: skip
        search = ["search.SearchCollection", "-index", "idx", "-topics", "topics.tsv",
                  "-topicreader", "TsvInt", "-bm25", "-hits", "20"]  # fmt: skip
        java(*search, "-output", "bm25.txt")
        java(*search, "-rm3", "-output", "rm3.txt")
        runs = {}
        for name in ["bm25", "rm3"]:
            lists = [[] for _ in QUERIES]
            for line in (folder / f"{name}.txt").read_text().splitlines():
                query, _, document, _, score, _ = line.split()
                lists[int(query)].append([int(document), float(score)])
            runs[name] = lists
        return runs


class Hit:
    """Stands for the package's results of a search."""

    def __init__(self, docid, score, vectors=None):
        self.docid, self.score, self.vectors = docid, score, vectors


class Empty(types.ModuleType):
    """A module that has everything, for what is imported and not needed."""

    __path__ = []

    def __getattr__(self, name):
        return Hit


def load(site, path):
    """A file of Pyserini on its own."""
    for name in ["", ".encode", ".search", ".search.faiss", ".search.lucene"]:
        sys.modules[f"pyserini{name}"] = Empty(f"pyserini{name}")
    spec = importlib.util.spec_from_file_location("loaded", site / "pyserini" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def vectors(site):
    prf = load(site, "search/faiss/_prf.py")
    rng = np.random.default_rng(5)

    def unit(n):
        v = rng.normal(size=(n, 6)).astype(np.float32)
        return v / np.linalg.norm(v, axis=1, keepdims=True)

    query, passages = unit(1)[0], unit(8)
    hits = [Hit(str(i), 0.0, v) for i, v in enumerate(passages)]
    average = prf.DenseVectorAveragePrf().get_prf_q_emb(query, hits[:3])
    rocchio = prf.DenseVectorRocchioPrf(0.4, 0.6, 0.1, 5, 2).get_prf_q_emb(query, hits)
    return {
        "query": query.tolist(),
        "passages": passages.tolist(),
        "average": average.tolist(),
        "rocchio": rocchio.tolist(),
    }


def hybrid(site):
    searcher = load(site, "search/hybrid/_searcher.py").HybridSearcher
    rng = np.random.default_rng(6)
    lists = []
    for scale, shift in [(9.0, 3.0), (0.5, 70.0)]:
        ids = rng.permutation(30)[:18]
        scores = sorted((rng.random(18) * scale + shift).tolist(), reverse=True)
        lists.append([[int(i), round(s, 5)] for i, s in zip(ids, scores)])
    sparse, dense = lists
    results = {}
    for name, normal in [("centre", True), ("raw", False)]:
        hits = searcher._hybrid_results(
            [Hit(i, s) for i, s in dense], [Hit(i, s) for i, s in sparse], 0.5, 60, normal
        )
        results[name] = [[h.docid, h.score] for h in hits]
    return {"sparse": sparse, "dense": dense, "alpha": 0.5, **results}


def main():
    site = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "crates/search/tests/fixtures/feedback.json"
    jar = next((site / "pyserini/resources/jars").glob("anserini-*-fatjar.jar"))
    all = documents()
    fixture = {
        "documents": [" ".join(words) for words in all],
        "queries": QUERIES,
        **anserini(jar, all),
        "vectors": vectors(site),
        "hybrid": hybrid(site),
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(fixture))
    print(out, out.stat().st_size)


if __name__ == "__main__":
    main()
