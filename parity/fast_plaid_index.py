"""A small index of fast-plaid: its codec, codes, residual bytes, and what it finds.

    pip install fast-plaid==1.7.0.2100 torch==2.10.0
    python parity/fast_plaid_index.py

Writes crates/search/tests/fixtures/fast_plaid.json: for 2 and 4 bits the files of an index of
80 documents in 16 dimensions, read by NumPy, the first vectors that they stand for, worked out
in float64 from the description of the format, and the hits and scores of fast-plaid itself when it
probes every centroid and compares every document. Residual bytes are hexadecimal digits.
"""

import json
import os
import tempfile

import numpy as np
import torch
from fast_plaid import search

DIM, DOCUMENTS, TOP, DECODED = 16, 80, 10, 100
OUT = os.path.join(
    os.path.dirname(__file__), "../crates/search/tests/fixtures/fast_plaid.json"
)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def texts(rng):
    """Documents of 3 to 8 rows near 12 directions, and queries of 3."""
    centres = unit(rng.standard_normal((12, DIM)))

    def rows(count, noise):
        near = centres[rng.integers(12, size=count)]
        return unit(near + noise * rng.standard_normal((count, DIM))).astype(np.float32)

    documents = [rows(rng.integers(3, 9), 0.15) for _ in range(DOCUMENTS)]
    return documents, [rows(3, 0.25) for _ in range(4)]


def buckets(packed, bits):
    """Bytes are filled from the greatest bit on, each code from its least bit on."""
    each = np.unpackbits(packed, axis=1).reshape(len(packed), DIM, bits)
    return (each * (1 << np.arange(bits))).sum(axis=2)


def case(bits, documents, queries):
    with tempfile.TemporaryDirectory() as index:
        engine = search.FastPlaid(index=index, device="cpu")
        engine.create(
            documents_embeddings=[torch.from_numpy(d) for d in documents], nbits=bits, seed=7
        )
        load = lambda name: np.load(os.path.join(index, name))
        centroids, weights = load("centroids.npy"), load("bucket_weights.npy")
        codes, packed = load("merged_codes.npy"), load("merged_residuals.npy")
        # Padding stands after the last document.
        rows = sum(map(len, documents))
        codes, packed = codes[:rows], packed[:rows]
        values = weights.astype(np.float64)[buckets(packed, bits)]
        exact = centroids.astype(np.float64)[codes] + values
        found = engine.search(
            [torch.from_numpy(q) for q in queries],
            top_k=TOP,
            n_ivf_probe=len(centroids),
            n_full_scores=4 * DOCUMENTS,
            show_progress=False,
        )
        return {
            "bits": bits,
            "centroids": centroids.astype(np.float32).ravel().tolist(),
            "cutoffs": load("bucket_cutoffs.npy").astype(np.float32).tolist(),
            "weights": weights.astype(np.float32).tolist(),
            "codes": codes.tolist(),
            "residuals": packed.tobytes().hex(),
            "decoded": [round(x, 6) for x in unit(exact[:DECODED]).ravel().tolist()],
            "found": [[[int(i), float(s)] for i, s in hits] for hits in found],
        }


def main():
    torch.manual_seed(7)
    documents, queries = texts(np.random.default_rng(7))
    fixture = {
        "dim": DIM,
        "lengths": [len(d) for d in documents],
        "queries": [[round(float(x), 7) for x in q.ravel()] for q in queries],
        "cases": [case(bits, documents, queries) for bits in (2, 4)],
    }
    with open(OUT, "w") as file:
        json.dump(fixture, file, separators=(",", ":"))
    print(OUT, os.path.getsize(OUT))


if __name__ == "__main__":
    main()
