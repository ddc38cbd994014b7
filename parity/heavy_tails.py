"""Regression with heavy tails, drawn by NumPy, told by `keyfold predict`.

    python parity/heavy_tails.py target/release/keyfold

2,000 rows x of U[0, 1)^10 and Friedman's first function of them, plus noise of Student's t with 2
degrees of freedom, all over 5; the first 1,600 are learned. For seeds 0 to 7 the losses of the
Cauchy-Schwarz information bottleneck are set side by side: the error of the other 400, and that
against the function without its noise. The experiment `keyfold bench cs-bottleneck` draws the same
rows with numbers of its own; these are for whoever wants NumPy's.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROWS, LEARNED, SEEDS = 2000, 1600, 8
LOSSES = ["mse", "huber", "cs"]


def draw(seed):
    rng = np.random.default_rng(seed)
    x = rng.random((ROWS, 10))
    clean = (
        10 * np.sin(np.pi * x[:, 0] * x[:, 1])
        + 20 * (x[:, 2] - 0.5) ** 2
        + 10 * x[:, 3]
        + 5 * x[:, 4]
    )
    noise = rng.standard_t(2, ROWS)
    return x, clean / 5, noise / 5


def keyfold(binary, *words):
    return subprocess.run([binary, *map(str, words)], check=True, capture_output=True, text=True).stdout


def rmse(errors):
    return float(np.sqrt(np.mean(errors**2)))


def told(binary, folder, loss, x, y, seed):
    np.save(folder / "x.npy", x[:LEARNED].astype(np.float32))
    np.save(folder / "y.npy", y[:LEARNED].astype(np.float32))
    np.save(folder / "test.npy", x[LEARNED:].astype(np.float32))
    keyfold(
        binary, "predict", "fit", folder / "x.npy", "--labels", folder / "y.npy", "--method", "cs-bottleneck",
        "--set", f"loss={loss}", "--set", "beta=0", "--set", "epochs=25", "--seed", seed, "--out", folder / loss,
    )  # fmt: skip
    rows = json.loads(keyfold(binary, "predict", "apply", folder / loss, folder / "test.npy", "--json"))
    return np.array([row["value"] for row in rows])


def main():
    binary = sys.argv[1]
    errors = {loss: [] for loss in LOSSES}
    noises = []
    with tempfile.TemporaryDirectory() as name:
        for seed in range(SEEDS):
            x, clean, noise = draw(seed)
            y = clean + noise
            noises.append(rmse(noise[LEARNED:]))
            for loss in LOSSES:
                found = told(binary, Path(name), loss, x, y, seed)
                errors[loss].append((rmse(found - y[LEARNED:]), rmse(found - clean[LEARNED:])))
    print("loss     RMSE   without the noise   (means of seeds)")
    for loss, pairs in errors.items():
        both = np.mean(pairs, axis=0)
        print(f"{loss:6} {both[0]:6.3f} {both[1]:8.3f}")
    print(f"noise  {np.mean(noises):6.3f}")
    for at, what in [(0, "RMSE"), (1, "without the noise")]:
        cs, mse = (np.array(errors[loss])[:, at] for loss in ["cs", "mse"])
        gain = 100 * (1 - cs / mse)
        print(f"CS below squared errors, {what}: {gain.min():.1f} to {gain.max():.1f} %, mean {gain.mean():.1f} %")


main()
