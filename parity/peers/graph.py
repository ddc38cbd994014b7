"""A graph over fixed dimensional encodings (HNSW of usearch) in the place of Keyfold's scan.

    pip install usearch==2.26.6 numpy
    OMP_NUM_THREADS=1 python parity/peers/graph.py --scan MILLISECONDS

Draws documents and queries as `keyfold bench muvera` makes them up, encodes them by (20,4,8) in NumPy
(`encode`: a twin of crates/search/src/candidates/fde, centring off, fill off, dense sketch), builds the
graph with one thread, and prints for some lists of `n` and breadths of the search what the graph finds
of the first `n` by exact comparison of the encodings, how many encodings it compares, the bytes
of these, and the median time of a query. MILLISECONDS is what the same machine needs for "scan
10,048, 16x4" in the table of `keyfold bench muvera`: with it the time of our scan of as many encodings
is printed beside, scaled by bytes.
"""

import argparse
import time

import numpy as np
from usearch.index import Index

DIM, TOPICS, CONCEPTS = 64, 60, 1500
# Numbers and documents of the scan whose time is given: (20,5,16).
SCANNED = 20 * 32 * 16 * 10_048
# How long the list is, and how broadly the graph is searched for it.
SETTINGS = [(128, 128), (128, 512), (512, 512), (512, 2048)]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def near(rng, rows, noise):
    return unit(rows + noise / np.sqrt(DIM) * rng.standard_normal(rows.shape)).astype(np.float32)


def draw(rng, documents, queries):
    """Documents of 20 to 60 rows of the concepts of three topics, and queries of 16 rows."""
    topics = unit(rng.standard_normal((TOPICS, DIM)))
    concepts = near(rng, 1.2 * topics[np.arange(CONCEPTS) % TOPICS], 1.0)

    def any_of(own, count):
        topic = own[rng.choice(3, size=count, p=(0.6, 0.3, 0.1))]
        return topic + TOPICS * rng.integers(CONCEPTS // TOPICS, size=count)

    contents = []
    for _ in range(documents):
        own = rng.permutation(12)[:3]
        contents.append((own, any_of(own, rng.integers(20, 61))))
    rows = [near(rng, concepts[used], 0.35) for _, used in contents]
    asked = []
    for _ in range(queries):
        own, used = contents[rng.integers(documents)]
        wanted = np.concatenate([rng.choice(used, 10), any_of(own, 6)])
        asked.append(near(rng, concepts[wanted], 1.3))
    return rows, asked


def matrices(rng, reps, planes, projection):
    """Normals of the planes `[reps, DIM, planes]`, sketches `[reps, DIM, projection]`."""
    normals = rng.standard_normal((reps, DIM, planes)).astype(np.float32)
    signs = rng.choice((-1.0, 1.0), size=(reps, DIM, projection))
    return normals, (signs / np.sqrt(projection)).astype(np.float32)


def encode(texts, normals, sketches, mean):
    """`[texts, reps * cells * projection]`: in every cell the mean (documents) or the sum
    (queries) of the projected rows that fall into it; cells without rows are 0."""
    reps, _, planes = normals.shape
    cells, projection = 1 << planes, sketches.shape[2]
    weights = 1 << np.arange(planes)
    out = np.zeros((len(texts), reps, cells, projection), dtype=np.float32)
    for place, rows in enumerate(texts):
        for rep in range(reps):
            cell = (rows @ normals[rep] > 0) @ weights
            member = (cell == np.arange(cells)[:, None]).astype(np.float32)
            sums = member @ (rows @ sketches[rep])
            if mean:
                sums /= np.maximum(member.sum(axis=1, keepdims=True), 1)
            out[place, rep] = sums
    return out.reshape(len(texts), -1)


def first(encodings, queries, count):
    """The numbers of the `count` greatest products for every query."""
    scores = queries @ encodings.T
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    return [set(row.tolist()) for row in best]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--reps", type=int, default=20)
    parser.add_argument("--simhash", type=int, default=4)
    parser.add_argument("--proj", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scan", type=float, help="milliseconds of 'scan 10,048, 16x4'")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    documents, queries = draw(rng, args.documents, args.queries)
    normals, sketches = matrices(rng, args.reps, args.simhash, args.proj)
    encodings = encode(documents, normals, sketches, mean=True)
    asked = encode(queries, normals, sketches, mean=False)
    width = encodings.shape[1]

    index = Index(ndim=width, metric="ip", dtype="f16", connectivity=16)
    clock = time.perf_counter()
    index.add(np.arange(len(encodings)), encodings, threads=1)
    seconds = time.perf_counter() - clock
    print(
        f"{len(encodings)} encodings of {width} numbers: graph built in {seconds:.0f} s,"
        f" {index.memory_usage / 1e6:.0f} MB; codes 16x4 {len(encodings) * width / 8e6:.1f} MB"
    )
    print("| n | breadth | found | encodings compared | bytes read | p50, ms |\n|---|---|---|---|---|---|")
    for count, breadth in SETTINGS:
        exact = first(encodings, asked, count)
        index.expansion_search = breadth
        found, compared, times = [], [], []
        for query, wanted in zip(asked, exact):
            clock = time.perf_counter()
            hits = index.search(query, count, threads=1)
            times.append((time.perf_counter() - clock) * 1e3)
            found.append(len(wanted.intersection(hits.keys.tolist())) / count)
            compared.append(hits.computed_distances)
        compared = np.mean(compared)
        print(
            f"| {count} | {breadth} | {np.mean(found):.3f} | {compared:,.0f} |"
            f" {compared * width * 2 / 1e6:.1f} MB | {np.median(times):.2f} |"
        )
    if args.scan is not None:
        scan = args.scan * len(encodings) * width / SCANNED
        print(f"our scan of as many codes 16x4, by --scan: {scan:.2f} ms")


if __name__ == "__main__":
    main()
