"""Times naive Bayes and logistic regression beside scikit-learn, in one run.

    cargo build --release -p keyfold-predict --example time_heads
    python parity/peers/predict.py target/release/examples/time_heads [--processor]

Both learn the same rows in double precision with the same threads, three times each; the
best time counts. Logistic regression stops at the same greatest number in the gradient of
the mean loss, and both losses are printed. scikit-learn's naive Bayes is the quadratic one (a
variance for each class), since it has no other; it is set beside Keyfold's default, which is linear,
and beside the same quadratic one (`variances=per-class`), where both accuracies are printed. With --processor times are those of the
processor with one thread, for a machine that does other work as well.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings

PROCESSOR = "--processor" in sys.argv
if PROCESSOR:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"

import numpy as np
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

TOL = 1e-4


def made(rows, columns, classes, seed=0):
    """Gaussian groups that overlap, each column on its own scale."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    middles = rng.normal(size=(classes, columns)) * 0.4
    x = middles[y] + rng.normal(size=(rows, columns))
    return x, y.astype(float)


def cases():
    digits = datasets.load_digits()
    yield "digits", digits.data / 16, digits.target.astype(float)
    for rows, columns, classes in [(20_000, 64, 10), (20_000, 384, 2), (5_000, 768, 20)]:
        yield f"{rows} x {columns}, {classes} classes", *made(rows, columns, classes)
    x, y = made(10_000, 128, 5)
    yield "10000 x 128, scales 0.1 to 10", x * np.geomspace(0.1, 10, 128), y


def timed(f):
    clock = time.process_time if PROCESSOR else time.perf_counter
    begin = clock()
    found = f()
    return clock() - begin, found


def loss(model, x, y, c=1.0):
    p = model.predict_proba(x)[np.arange(len(y)), np.searchsorted(model.classes_, y)]
    return -np.log(p).mean() + (model.coef_**2).sum() / (2 * c * len(y))


def main():
    ours = sys.argv[1]
    threads = "1, seconds of the processor" if PROCESSOR else os.cpu_count()
    print(f"threads {threads}, gradient {TOL}")
    print("| rows | head | scikit-learn | Keyfold | ratio | loss, scikit-learn | loss, Keyfold |")
    print("|---|---|---|---|---|---|---|")
    for name, x, y in cases():
        with tempfile.NamedTemporaryFile() as file:
            file.write(x.astype("<f8").tobytes() + y.astype("<f8").tobytes())
            file.flush()
            fields = {
                "naive_bayes": "naive Bayes", "predict": "naive Bayes, telling",
                "per_class": "naive Bayes, per class", "predict_per_class": "the same, telling",
                "logistic": "logistic",
            }  # fmt: skip
            best = {field: [np.inf, np.inf] for field in fields}

            def put(side, seconds, *names):
                for field in names:
                    best[field][side] = min(best[field][side], seconds)

            command = [ours, file.name, *map(str, x.shape), str(len(set(y))), str(TOL)]
            command += ["--processor"] * PROCESSOR
            for _ in range(2):  # turn and turn about
                for _ in range(2):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        t, nb = timed(lambda: GaussianNB().fit(x, y))
                        put(0, t, "naive_bayes", "per_class")
                        t, guessed = timed(lambda: nb.predict(x))
                        put(0, t, "predict", "predict_per_class")
                        model = LogisticRegression(tol=TOL, max_iter=1000)
                        t, model = timed(lambda: model.fit(x, y))
                        put(0, t, "logistic")
                lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                for told in map(json.loads, lines.splitlines()):
                    for field in fields:
                        put(1, told[field], field)
            losses = f"{loss(model, x, y):.6f} | {told['loss']:.6f}"
            right = f"right {(guessed == y).mean():.4f} | {told['accuracy_per_class']:.4f}"
            for field, head in fields.items():
                a, b = best[field]
                end = {"logistic": losses, "predict_per_class": right}.get(field, " | ")
                # The system counts a thread's time now and then only: some milliseconds are not told.
                ratio = f"{a / b:.2f}" if b > (5e-3 if PROCESSOR else 0) else ""
                print(f"| {name} | {head} | {a * 1e3:.2f} ms | {b * 1e3:.2f} ms | {ratio} | {end} |", flush=True)
            steps = f"{model.n_iter_.max()} and {told['steps']}"
            print(f"<!-- {name}: steps {steps} -->", file=sys.stderr)


main()
