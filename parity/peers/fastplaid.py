"""fast-plaid as a peer of `keyfold bench peers`, which says what is written and read.

    pip install fast-plaid==1.7.0.2100 torch==2.10.0
    keyfold bench peers --peer "fast-plaid=python parity/peers/fastplaid.py"

SAMPLE_DOCUMENTS=N lets it cluster the vectors of N documents only, and CENTROIDS=N gives it so
many centroids, where its own choices would take hours.
"""

import json
import os
import sys
import time

import numpy as np
import torch
from fast_plaid import search


def status(name):
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


def read(folder, name):
    with open(f"{folder}/set.json") as file:
        dim = json.load(file)["dim"]
    counts = np.fromfile(f"{folder}/{name}.u32", dtype="<u4")
    rows = torch.from_numpy(np.fromfile(f"{folder}/{name}.f32", dtype="<f4").reshape(-1, dim))
    return list(torch.split(rows, counts.tolist()))


def say(line):
    print(json.dumps(line), flush=True)


def with_centroids(count):
    """Its own clustering, but with so many centroids."""
    from fast_plaid.search import fast_plaid as own

    cluster = own.compute_kmeans
    own.compute_kmeans = lambda **options: cluster(**options, num_partitions=count)


def build(vectors, index):
    documents = read(vectors, "documents")
    sample = os.environ.get("SAMPLE_DOCUMENTS")
    if centroids := os.environ.get("CENTROIDS"):
        with_centroids(int(centroids))
    clock, cpu = time.perf_counter(), time.process_time()
    search.FastPlaid(index=index, device="cpu").create(
        documents_embeddings=documents,
        n_samples_kmeans=int(sample) if sample else None,
    )
    say({
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
        "most_held": status("VmHWM:"),
    })


def ask(engine, queries, setting, **options):
    only = sys.argv[4:]
    if only and setting not in only:
        return
    times, hits = [], []
    engine.search(queries[:1], top_k=10, show_progress=False, **options)
    for query in queries:
        clock = time.perf_counter()
        found = engine.search([query], top_k=10, show_progress=False, **options)
        times.append((time.perf_counter() - clock) * 1e3)
        hits.append([int(number) for number, _ in found[0]])
    say({
        "setting": setting,
        "milliseconds": times,
        "hits": hits,
        "most_held": status("VmHWM:"),
        "not_mapped": status("RssAnon:"),
    })


def main():
    task, vectors, index = sys.argv[1:4]
    if task == "build":
        build(vectors, index)
        return
    queries = read(vectors, "queries")
    engine = search.FastPlaid(index=index, device="cpu")
    ask(engine, queries, "default")
    # Half a second a query on two cores: two settings beside its own are what there is time for.
    for probe in (2, 4):
        ask(engine, queries, f"probe {probe}, full 512", n_ivf_probe=probe, n_full_scores=512)


if __name__ == "__main__":
    main()
