"""Writes the fixture of folding for crates/search: what PyLate's token pooling and
scikit-learn's k-means give for small random rows.

    venv/bin/pip install scikit-learn==1.9.1
    venv/bin/python parity/fold.py [OUT]

OUT is crates/search/tests/fixtures/fold.json unless given.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from pylate.models import ColBERT
from sklearn.cluster import KMeans

ROOT = Path(__file__).resolve().parent.parent


def unit(rng, n, dim, topics=5):
    """Rows of length one around a few directions, in single precision."""
    rows = rng.normal(size=(topics, dim))[rng.integers(topics, size=n)]
    rows = rows + 0.6 * rng.normal(size=(n, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.round(rows, 4).astype(np.float32)


def pooled(rows, factor):
    pool = ColBERT.pool_embeddings_hierarchical
    return pool(None, [torch.tensor(rows)], pool_factor=factor, protected_tokens=1)[0]


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "crates/search/tests/fixtures/fold.json"
    rng = np.random.default_rng(11)
    ward = []
    for n, factor in [(2, 2), (3, 2), (4, 2), (24, 2), (24, 3), (25, 4), (24, 6), (9, 20)]:
        rows = unit(rng, n, 4)
        ward.append(
            {
                "factor": factor,
                "rows": rows.ravel().tolist(),
                "pooled": pooled(rows, factor).numpy().round(6).ravel().tolist(),
            }
        )
    clusters = []
    for n, k in [(24, 4), (30, 8)]:
        rows = unit(rng, n, 4)
        start = rows[rng.choice(n, k, replace=False)]
        fitted = KMeans(k, init=start, n_init=1, max_iter=20, tol=0, algorithm="lloyd").fit(rows)
        assert fitted.n_iter_ < 20, "it shall have come to rest"
        clusters.append(
            {
                "rows": rows.ravel().tolist(),
                "start": start.ravel().tolist(),
                "labels": fitted.labels_.tolist(),
                "centroids": fitted.cluster_centers_.round(6).ravel().tolist(),
            }
        )
    numbers = lambda x: round(float(x), 6)
    text = json.dumps({"dim": 4, "ward": ward, "kmeans": clusters}, indent=None)
    out.write_text(json.dumps(json.loads(text, parse_float=numbers)) + "\n")
    print(out, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
