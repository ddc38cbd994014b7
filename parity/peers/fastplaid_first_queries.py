"""Keyfold and fast-plaid on the first queries of a set that is too large for fast-plaid to answer whole.

    python parity/peers/fastplaid_first_queries.py target/release/keyfold VECTORS FOLDER

VECTORS is what `keyfold bench peers` hands to its peers as their second argument; a peer of one line, `cp -r "$2" VECTORS; exit 1`,
keeps it. Both indexes are made in FOLDER where they are not there yet, that of
fast-plaid with SAMPLE_DOCUMENTS and CENTROIDS (see fastplaid.py). Then the ten documents that are exactly nearest are
found, and each is asked: Keyfold before and after fast-plaid, one query at a time. Memory is that of a
process of its own, which asks three queries.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from fast_plaid import search

import fastplaid

QUERIES, OF_SLOW = 40, 20
SETTINGS = [
    ("2 probes, 512 full", QUERIES, {"n_ivf_probe": 2, "n_full_scores": 512}),
    ("4 probes, 512 full", OF_SLOW, {"n_ivf_probe": 4, "n_full_scores": 512}),
    ("default", OF_SLOW, {}),
]


def exact(vectors, queries):
    """The ten nearest of all documents, some thousand documents at a time."""
    counts = np.fromfile(vectors / "documents.u32", dtype="<u4")
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    dim = queries[0].shape[1]
    rows = np.memmap(vectors / "documents.f32", dtype="<f4", mode="r").reshape(-1, dim)
    firsts = np.concatenate([[0], np.cumsum([len(q) for q in queries])])[:-1]
    scores = np.empty((len(queries), len(counts)), np.float32)
    for first in range(0, len(counts), 2000):
        end = min(first + 2000, len(counts))
        part = torch.from_numpy(np.array(rows[starts[first] : starts[end]]))
        products = (torch.cat(queries) @ part.T).numpy()
        best = np.maximum.reduceat(products, starts[first:end] - starts[first], axis=1)
        scores[:, first:end] = np.add.reduceat(best, firsts, axis=0)
    return np.argsort(-scores, 1)[:, :10].tolist()


def tell(name, milliseconds, hits, best, **more):
    found = np.mean([len(set(h) & set(b)) / 10 for h, b in zip(hits, best)])
    p50, p95 = np.percentile(milliseconds, [50, 95])
    line = {"engine": name, "queries": len(hits), "recall": round(float(found), 4)}
    print(json.dumps(line | {"p50": round(p50, 2), "p95": round(p95, 2)} | more), flush=True)


def ours(keyfold, vectors, index, best):
    arguments = [keyfold, "__peer", "8", "search", vectors, index, "default"]
    lines = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    for line in map(json.loads, lines.splitlines()):
        times, hits = line["milliseconds"][:QUERIES], line["hits"][:QUERIES]
        tell(f"keyfold, 8 bits, {line['setting']}", times, hits, best, most_held=line["most_held"])


def theirs(index, queries, best):
    engine = search.FastPlaid(index=str(index), device="cpu")
    for name, count, options in SETTINGS:
        engine.search(queries[:1], top_k=10, show_progress=False, **options)
        times, hits = [], []
        for query in queries[:count]:
            clock = time.perf_counter()
            found = engine.search([query], top_k=10, show_progress=False, **options)
            times.append((time.perf_counter() - clock) * 1e3)
            hits.append([int(number) for number, _ in found[0]])
        tell(f"fast-plaid, {name}", times, hits, best)


def held(index, queries):
    """The most memory after three queries with each setting, least first."""
    engine = search.FastPlaid(index=str(index), device="cpu")
    for name, _, options in SETTINGS:
        for query in queries[:3]:
            engine.search([query], top_k=10, show_progress=False, **options)
        line = {"engine": f"fast-plaid, {name}", "most_held": fastplaid.status("VmHWM:")}
        print(json.dumps(line | {"not_mapped": fastplaid.status("RssAnon:")}), flush=True)


def main():
    keyfold, vectors, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    queries = fastplaid.read(vectors, "queries")[:QUERIES]
    if sys.argv[4:] == ["held"]:
        held(folder / "fast-plaid", queries)
        return
    if not (folder / "keyfold").exists():
        subprocess.run([keyfold, "__peer", "8", "build", vectors, folder / "keyfold"], check=True)
    if not (folder / "fast-plaid" / "metadata.json").exists():
        os.makedirs(folder / "fast-plaid", exist_ok=True)
        fastplaid.build(vectors, str(folder / "fast-plaid"))
    best = exact(vectors, queries)
    ours(keyfold, vectors, folder / "keyfold", best)
    theirs(folder / "fast-plaid", queries, best)
    ours(keyfold, vectors, folder / "keyfold", best)
    subprocess.run([sys.executable, *sys.argv, "held"], check=True)


main()
