"""Atoms and low-rank pairs of MASA: crates/compress/tests/fixtures/masa.json.

    python parity/masa.py

The authors' code could not be had; this follows the paper with numpy's SVD of the matrix whose
columns are the layers, and of the whitened matrix. Needs numpy.
"""

import json
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parent.parent / "crates/compress/tests/fixtures/masa.json"
LAYERS, ROWS, COLUMNS, ATOMS, RANK = 5, 6, 4, 2, 2

rng = np.random.default_rng(7)
layers = rng.normal(size=(LAYERS, ROWS * COLUMNS)).astype(np.float32).astype(np.float64)
left, values, right = np.linalg.svd(layers.T, full_matrices=False)
atoms = left[:, :ATOMS]
mixtures = (atoms @ (atoms.T @ layers.T)).T

x = rng.normal(size=(300, COLUMNS)) @ rng.normal(size=(COLUMNS, COLUMNS))
moments = x.T @ x / len(x)
ridge = 1e-4 * np.trace(moments) / COLUMNS * np.eye(COLUMNS)
root = np.linalg.cholesky(moments + ridge)
p, s, qt = np.linalg.svd(layers[0].reshape(ROWS, COLUMNS) @ root, full_matrices=False)
pair = (p[:, :RANK] * s[:RANK]) @ qt[:RANK] @ np.linalg.inv(root)

OUT.parent.mkdir(parents=True, exist_ok=True)
OUT.write_text(json.dumps({
    "layers": layers.flatten().tolist(),
    "mixtures": mixtures.flatten().tolist(),
    "lost": float((values[ATOMS:] ** 2).sum()),
    "moments": moments.flatten().tolist(),
    "values": s.tolist(),
    "pair": pair.flatten().tolist(),
}))
