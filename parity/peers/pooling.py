"""PyLate's token pooling as a peer of `keyfold bench crisp`: the time that it takes on
the vectors of some passages, on one thread.

    pip install pylate==1.6.0
    keyfold bench crisp --peer "pylate=python parity/peers/pooling.py"

Called as `pooling.py fold ROWS ABOUT`: ROWS are little-endian floats, ABOUT is JSON with
`dim`, `counts` (rows of each passage), `factors` and `runs`. Prints, for each factor, JSON:
`{"fold": "ward:2", "milliseconds": of a passage in the fastest run, "rows": left of all}`.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pylate.models import ColBERT


def main():
    _, rows, about = sys.argv[1:]
    about = json.loads(Path(about).read_text())
    rows = torch.from_numpy(np.fromfile(rows, dtype="<f4").reshape(-1, about["dim"]))
    passages = list(rows.split(about["counts"]))
    torch.set_num_threads(1)
    for factor in about["factors"]:
        times = []
        for _ in range(about["runs"]):
            clock = time.perf_counter()
            pooled = ColBERT.pool_embeddings_hierarchical(None, passages, factor, 1)
            times.append(time.perf_counter() - clock)
        milliseconds = min(times) * 1e3 / len(passages)
        left = sum(len(p) for p in pooled)
        print(json.dumps({"fold": f"ward:{factor}", "milliseconds": milliseconds, "rows": left}))


if __name__ == "__main__":
    main()
