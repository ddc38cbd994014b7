"""Writes the fixture of CUR for crates/search: what the authors' code gives for
random scores of low rank with noise.

    git clone https://github.com/iesl/anncur ANNCUR
    python parity/cur.py ANNCUR [OUT]

The class is the authors' own (eval/matrix_approx_zeshel.py), loaded alone. OUT is
crates/search/tests/fixtures/cur.json unless given.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent


class Empty(types.ModuleType):
    """A module that has everything, for what is imported and not needed."""

    __path__ = []

    def __getattr__(self, name):
        return None


def authors(folder):
    for name in ["IPython", "matplotlib", "matplotlib.pyplot"]:
        sys.modules[name] = Empty(name)
    path = Path(folder) / "eval/matrix_approx_zeshel.py"
    spec = importlib.util.spec_from_file_location("authors", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Its check asks whether a matrix is true, which works for one number only.
    equal = torch.eq
    module.torch.eq = lambda a, b: bool(equal(a, b).all())
    return module.CURApprox


def main():
    approximate = authors(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "crates/search/tests/fixtures/cur.json"
    rng = np.random.default_rng(7)
    queries, items, rank = 16, 24, 6
    scores = rng.normal(size=(queries, rank)) @ rng.normal(size=(rank, items))
    scores += 0.1 * rng.normal(size=scores.shape)
    # Numbers that single precision holds exactly.
    scores = torch.tensor(scores.astype(np.float32).astype(np.float64))
    anchor_queries, anchors = list(range(12)), [1, 4, 9, 13, 20]
    cur = approximate(
        rows=scores[anchor_queries], cols=scores[:, anchors], row_idxs=anchor_queries,
        col_idxs=anchors, approx_preference="rows",
    )  # fmt: skip
    held_out = list(range(12, queries))
    fixture = {
        "anchors": anchors,
        "scores": scores[anchor_queries].tolist(),
        "inverse": cur.U.tolist(),
        "queries": scores[held_out][:, anchors].tolist(),
        "estimates": cur.get_rows(held_out).tolist(),
    }
    # New items, old queries: scored by some of the anchor queries.
    few, old, new = [0, 3, 5, 8, 11], list(range(18)), list(range(18, items))
    table = scores[anchor_queries]
    cur = approximate(
        rows=table[few][:, old], cols=table[:, old], row_idxs=few, col_idxs=old,
        approx_preference="cols",
    )  # fmt: skip
    given = table[few][:, new]
    fixture["new"] = {
        "queries": few,
        "items": old,
        "given": given.T.tolist(),
        "complete": cur.get_complete_col(given).T.tolist(),
    }
    out.write_text(json.dumps(fixture))
    print(out, out.stat().st_size)


if __name__ == "__main__":
    main()
