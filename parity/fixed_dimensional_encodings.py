"""Encodings of MUVERA by two published implementations, for crates/search to compare with.

fastembed numbers the cells of a partition plainly (plane j is bit j) and fills
empty ones; muvera-python numbers them as the authors' C++ does (Gray code) and
has their count sketch and final projection. Both get planes and projections
written out, so that no random generator has to agree. muvera-python is asked
without filling: its version 0.2.0 looks up the sides of a cell by the inverse of
the map that numbers it twice over, unlike the authors' code.
"""

import json
from pathlib import Path

import numpy as np
from fastembed.postprocess.muvera import Muvera as FastEmbed
from muvera import Muvera as Gray
from muvera.helper import ams_projection_matrix_from_seed, simhash_matrix_from_seed

OUT = Path(__file__).parent.parent / "crates/search/tests/fixtures/muvera.json"
DIM, ROWS = 8, 7


def rounded(a):
    return [float(f"{x:.7g}") for x in np.asarray(a, dtype=np.float64).ravel()]


def draw_rows(seed):
    rows = np.random.default_rng(seed).normal(size=(ROWS, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


def has_ties(m, rows):
    """Whether fastembed fills a cell from another vector than the authors' code,
    which takes the first of the nearest vectors, not of the nearest cells."""
    for s in m.simhash_projections:
        ids = s.get_cluster_ids(rows)
        for cell in set(range(2**m.k_sim)) - set(ids):
            distance = [bin(cell ^ int(i)).count("1") for i in ids]
            by_cell = min((d, i, t) for t, (d, i) in enumerate(zip(distance, ids)))[2]
            if by_cell != int(np.argmin(distance)):
                return True
    return False


def main():
    shapes = [(3, 4, 2), (2, DIM, 2)]
    made = [FastEmbed(DIM, k, p, r, 5) for k, p, r in shapes]
    rows = next(r for r in map(draw_rows, range(100_000)) if not any(has_ties(m, r) for m in made))
    cases = []

    for m, (planes, width, repetitions) in zip(made, shapes):
        projections = [p.T / np.sqrt(width) for p in m.dim_reduction_projections]
        cases.append({
            "by": "fastembed",
            "planes": rounded([s.simhash_vectors.T for s in m.simhash_projections]),
            "projections": rounded(projections) if width < DIM else [],
            "last": [],
            "repetitions": repetitions,
            "simhash": planes,
            "width": width,
            "fill": True,
            "document": rounded(m.process_document(rows)),
            "query": rounded(m.process_query(rows)),
        })

    for kind, width, final in [("ams_sketch", 3, None), ("identity", DIM, None), ("ams_sketch", 4, 10)]:
        planes, repetitions, seed = 3, 2, 11
        m = Gray(
            num_repetitions=repetitions, num_simhash_projections=planes, dimension=DIM,
            projection_type=kind, projection_dimension=width if kind != "identity" else None,
            fill_empty_partitions=False, final_projection_dimension=final, seed=seed,
        )
        seeds = [seed + r for r in range(repetitions)]
        last = []
        if final:
            inner = repetitions * 2**planes * width
            generator = np.random.default_rng(seed)
            places = generator.integers(0, final, size=inner)
            signs = generator.choice(np.array([-1.0, 1.0], dtype=np.float32), size=inner)
            last = [[int(p), float(s)] for p, s in zip(places, signs)]
        cases.append({
            "by": "muvera-python",
            "planes": rounded([simhash_matrix_from_seed(DIM, planes, s).T for s in seeds]),
            "projections": [] if kind == "identity" else rounded(
                [ams_projection_matrix_from_seed(DIM, width, s).T for s in seeds]),
            "last": last,
            "repetitions": repetitions,
            "simhash": planes,
            "width": width,
            "fill": False,
            "document": rounded(m.encode_documents(rows)),
            "query": rounded(m.encode_queries(rows)),
        })

    OUT.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"dim": DIM, "rows": rounded(rows), "cases": cases}, separators=(",", ":"))
    OUT.write_text(text + "\n")


if __name__ == "__main__":
    main()
