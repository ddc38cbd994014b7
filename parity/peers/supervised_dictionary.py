"""The authors' own package on the generator of `keyfold bench supervised-dictionary`.

    pip install --no-deps SupervisedMF==0.0.4
    pip install numpy scikit-learn tqdm matplotlib
    python parity/peers/supervised_dictionary.py

Runs the package at its defaults (200 steps, filter, xi 1) from six starts on each of the
specification's three sets of rows, and from one start on twelve further sets, and prints the
accuracy of every run and the means. A run takes two seconds.
"""

import contextlib
import io
import os
import sys
import types
import warnings

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np

for name in ["matplotlib", "matplotlib.pyplot"]:  # imported there and not needed
    sys.modules.setdefault(name, types.ModuleType(name))

import SMF

SMF.trange = range


def generator(seed):
    """400 rows of 40 numbers, a row a column; the class hides in a small part of them."""
    rng = np.random.default_rng(seed)
    numbers, rows, parts = 40, 400, 4
    w = rng.random((numbers, parts))
    h = rng.random((parts, rows)) * np.array([10, 8, 6, 4])[:, None]
    small = np.zeros(numbers)
    small[:5] = 1
    size = 2 * rng.random(rows)
    x = w @ h + np.outer(small, size) + 0.1 * rng.random((numbers, rows))
    y = (size + 0.1 * rng.normal(size=rows) > 1).astype(float)[None]
    return x / x.max(), y


def accuracy(rows, start):
    """Of the last 100 rows, learned from the first 300."""
    x, y = generator(rows)
    learned, others = slice(0, 300), slice(300, 400)
    np.random.seed(start)
    with contextlib.redirect_stdout(io.StringIO()):
        model = SMF.SMF_BCD(
            X=[x[:, learned], y[:, learned]],
            X_test=[x[:, others], y[:, others]],
            n_components=4,
            xi=1,
        )
        found = model.fit(option="filter", iter=200, search_radius_const=1000)
    return found["Accuracy"]


def main():
    warnings.simplefilter("ignore")
    told = [[accuracy(rows, 100 * start + rows) for rows in range(3)] for start in range(6)]
    told = np.array(told)
    print("sets 0 to 2, a start a line:", told, sep="\n")
    print(f"mean {told.mean():.3f}, deviation {told.std():.3f}, of three {told.mean(1)}")
    more = np.array([accuracy(rows, rows) for rows in range(3, 15)])
    print("sets 3 to 14:", more)
    print(f"mean {more.mean():.3f}, deviation {more.std():.3f}")


if __name__ == "__main__":
    main()
