"""8 x 8 patches of the pictures that scikit-image brings, for
`keyfold bench frank-wolfe-dictionary --data OUT`.

    pip install numpy pillow scikit-image
    python parity/patches.py OUT

Writes OUT/NAME.npy with 44,000 patches at random places, grey from 0 to 1, each without its mean.
"""

import os
import sys

import numpy as np
from PIL import Image

NAMES = ("camera", "brick", "coins", "grass")


def main(out):
    import importlib.util

    folder = os.path.join(os.path.dirname(importlib.util.find_spec("skimage").origin), "data")
    os.makedirs(out, exist_ok=True)
    for name in NAMES:
        picture = np.asarray(Image.open(os.path.join(folder, f"{name}.png")).convert("L"), np.float64) / 255
        rng = np.random.default_rng(0)
        top = rng.integers(0, picture.shape[0] - 7, 44_000)
        left = rng.integers(0, picture.shape[1] - 7, 44_000)
        patches = np.stack([picture[t : t + 8, l : l + 8].ravel() for t, l in zip(top, left)])
        patches -= patches.mean(1, keepdims=True)
        np.save(os.path.join(out, f"{name}.npy"), patches.astype(np.float32))


main(sys.argv[1])
