"""Files of numbers as NumPy and PyArrow write them, for crates/data/src/rows.

    python parity/rows.py          # needs numpy, safetensors, pyarrow

Every file but those of labels holds the same table of 5 rows and 3 columns:
`i * 3 + j + 0.5`, without the half where its type has none.
"""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy
from safetensors.numpy import save_file

OUT = os.path.join(os.path.dirname(__file__), "../crates/data/tests/fixtures/rows")
os.makedirs(OUT, exist_ok=True)
table = np.arange(15, dtype=np.float64).reshape(5, 3) + 0.5
whole = np.arange(15).reshape(5, 3)


def write(name, array, version):
    with open(os.path.join(OUT, name), "wb") as file:
        npy.write_array(file, array, version=version)


write("f4.npy", table.astype("<f4"), (1, 0))
write("f8-fortran.npy", np.asfortranarray(table), (2, 0))
write("f2.npy", table.astype("<f2"), (3, 0))
write("f4-big.npy", table.astype(">f4"), (1, 0))
write("i2-big.npy", whole.astype(">i2"), (1, 0))
write("i8.npy", whole.astype("<i8"), (1, 0))
write("u1.npy", whole.astype("u1"), (1, 0))
write("labels-text.npy", np.array(["cat", "dog", "cat", "öl", "dog"]), (1, 0))
write("labels-number.npy", np.array([10, 2, 2, 10, 3]), (1, 0))
np.savez_compressed(os.path.join(OUT, "two.npz"), table=table, other=whole)
save_file(
    {"table": table.astype(np.float32), "half": table.astype(np.float16), "bias": table[0]},
    os.path.join(OUT, "two.safetensors"),
)
columns = {f"c{j}": pa.array(table[:, j], pa.float64() if j else pa.float32()) for j in range(3)}
columns["c2"] = pa.array([None, *table[1:, 2]], pa.float64())
columns["kind"] = pa.array(["cat", "dog", "cat", "öl", None])
pq.write_table(pa.table(columns), os.path.join(OUT, "plain.parquet"), row_group_size=2)
lists = pa.table({"id": pa.array(range(5)), "vector": pa.array(list(map(list, table)), pa.list_(pa.float32()))})
pq.write_table(lists, os.path.join(OUT, "lists.parquet"), row_group_size=3, compression="gzip")
