"""Milliseconds that fastembed takes to encode a document of 40 vectors by (20,5,16),
on one thread, for comparison with `keyfold bench muvera`.

    pip install fastembed==0.9.1
    OMP_NUM_THREADS=1 python parity/peers/muvera.py
"""

import time

import numpy as np
from fastembed.postprocess.muvera import Muvera


def shortest(work, runs=15):
    times = []
    for _ in range(runs):
        clock = time.perf_counter()
        work()
        times.append(time.perf_counter() - clock)
    return min(times) * 1e3


def main():
    rng = np.random.default_rng(0)
    for dim in (64, 128):
        rows = rng.normal(size=(40, dim)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        muvera = Muvera(dim, 5, 16, 20, 42)
        document = shortest(lambda: muvera.process_document(rows))
        query = shortest(lambda: muvera.process_query(rows[:16]))
        print(f"{dim} numbers: document {document:.3f} ms, query of 16 {query:.3f} ms")


if __name__ == "__main__":
    main()
