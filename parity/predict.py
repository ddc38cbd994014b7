"""Writes the fixtures of crates/predict: what scikit-learn and the authors' code give.

    pip install scikit-learn==1.9.1 torch==2.10.0 pandas einops tqdm
    pip install --no-deps SupervisedMF==0.0.4
    git clone https://github.com/ML-GSAI/Revisiting-Dis-vs-Gen-Classifiers HEADS
    git clone https://github.com/SJYuCNEL/Cauchy-Schwarz-Information-Bottleneck CS
    git clone https://github.com/ftraeuble/discrete_key_value_bottleneck TABLES
    python parity/predict.py heads HEADS
    git clone https://github.com/ljw9510/SMF SMF
    python parity/predict.py dictionary SMF  # and the SupervisedMF package
    python parity/predict.py table TABLES
    python parity/predict.py cs CS
    python parity/predict.py data            # the data sets of scikit-learn

Each writes a file in crates/predict/tests/fixtures.
"""

import contextlib
import importlib.util
import io
import json
import sys
import types
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/predict/tests/fixtures"


def module(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


def plain(x):
    """Arrays as lists; single precision with the digits that it has."""
    x = np.asarray(x)
    if x.dtype != np.float32:
        return x.tolist()
    numbers = [float(f"{v:.9g}") for v in x.ravel()]
    return np.array(numbers).reshape(x.shape).tolist()


def write(name, fixture):
    path = OUT / f"{name}.json"
    path.write_text(json.dumps(fixture, indent=None, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size)


def heads(folder):
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB

    authors = module(Path(folder) / "models/gaussnb.py", "gaussnb")
    rng = np.random.default_rng(3)
    n, p = 90, 6
    y = np.arange(n) % 3
    scale = np.array([1.0, 10.0, 0.1, 1.0, 3.0, 1.0])
    x = (rng.normal(size=(n, p)) + 0.9 * np.eye(3, p)[y]) * scale + 5 * scale
    x[:, 5] = 2.0  # a constant column
    x = np.round(x, 6)
    test = np.round((rng.normal(size=(30, p)) + 0.5) * scale + 5 * scale, 6)
    test[:, 5] = 2.0

    shared = authors.GaussianNB(1e-9)
    shared.fit(x, y)
    halves = authors.GaussianNB(1e-9)
    halves.fit(x[:45], y[:45])
    halves.fit(x[45:], y[45:])
    variances = (shared.vars_groupby * shared.prior.reshape(-1, 1)).sum(0)
    quadratic = GaussianNB().fit(x, y)

    def logistic(rows, labels, c):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = LogisticRegression(C=c, tol=1e-10, max_iter=100_000, solver="newton-cg")
            found.fit(rows, labels)
        return found

    cases = []
    z = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    for name, rows, labels, c in [
        ("three classes", z, y, 1.0),
        ("two classes", z, (y == 2).astype(int), 0.3),
        ("columns as they are", x, y, 2.0),
        ("fewer rows than columns", z[:5], y[:5], 1.0),
    ]:
        found = logistic(rows, labels, c)
        cases.append(
            {
                "name": name, "x": plain(rows), "y": plain(labels), "c": c,
                "coef": plain(found.coef_), "intercept": plain(found.intercept_),
                "proba": plain(found.predict_proba(rows[:10])),
            }  # fmt: skip
        )
    write(
        "heads",
        {
            "x": plain(x), "y": plain(y), "test": plain(test),
            "shared": {
                "means": plain(shared.mus), "variances": plain(variances),
                "predicted": plain(shared.predict(test)),
                "halves": plain(halves.predict(test)),
            },
            "quadratic": {
                "means": plain(quadratic.theta_), "variances": plain(quadratic.var_),
                "proba": plain(quadratic.predict_proba(test)),
            },
            "logistic": cases,
        },
    )  # fmt: skip


def dictionary(folder):
    import sklearn.linear_model
    import SMF as package

    for name in ["matplotlib", "matplotlib.pyplot"]:  # imported there and not needed
        sys.modules.setdefault(name, types.ModuleType(name))
    released = module(Path(folder) / "src/SMF.py", "released")
    exact = sklearn.linear_model.LogisticRegression

    class Exact(exact):
        """The same minimum, found to the last digits."""

        def __init__(self, random_state=None, max_iter=100):
            super().__init__(max_iter=100_000, tol=1e-12, solver="newton-cg")

    # The exact decomposition in place of the randomised one.
    def projection(matrix, rank):
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        u, s, v = u[:, :rank], s[:rank], v[:rank]
        return u, s, v, u @ np.diag(s) @ v

    package.LogisticRegression = released.LogisticRegression = Exact
    released.rank_r_projection = projection

    rng = np.random.default_rng(11)
    p, n, r, q = 9, 24, 3, 2
    w, h = rng.random((p, r)), rng.random((r, n))
    x = np.round(w @ h + 0.2 * rng.random((p, n)), 6)
    binary = (h[0] + 0.2 * rng.normal(size=n) > 0.5).astype(float)[None]
    three = np.zeros((2, n))
    for k in (1, 2):
        three[k - 1, np.arange(n) % 3 == k] = 1
    aux = np.round(rng.normal(size=(q, n)), 6)
    start_w, start_h = rng.random((p, r)).round(6), rng.random((r, n)).round(6)
    cases = []

    def run(name, source, solver, labels, with_aux, xi, iters, **kwargs):
        columns = 1 + r + (q if with_aux else 0)
        beta = np.linspace(-0.5, 0.5, len(labels) * columns).reshape(-1, columns)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            model = getattr(source, solver)(
                X=[x.copy(), labels.copy()], X_auxiliary=aux.copy() if with_aux else None,
                n_components=r, ini_loading=[start_w.copy(), beta.copy()],
                ini_code=start_h.copy(), xi=xi,
            )  # fmt: skip
            model.validation = lambda *a, **k: None
            model.validation_multi = lambda *a, **k: {}
            model.fit(iter=iters, **kwargs)
        w, beta_found = model.result_dict["loading"]
        cases.append(
            {
                "name": name, "compat": source is released, "solver": solver, "xi": xi,
                "iterations": iters, "settings": kwargs,
                "labels": plain((labels.T @ np.arange(1, len(labels) + 1)).astype(int)),
                "aux": plain(aux.T) if with_aux else None, "beta_start": plain(beta),
                "w": plain(w), "h": plain(model.result_dict["code"]), "beta": plain(beta_found),
            }  # fmt: skip
        )

    bcd, lpgd = "SMF_BCD", "SMF_LPGD"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run("two classes", package, bcd, binary, False, 1.0, 20)
        run("covariates", package, bcd, binary, True, 5.0, 10)
        run("released", released, bcd, binary, True, 2.0, 20, search_radius_const=0.05)
        run("three classes", released, bcd, three, False, 1.0, 10)
        # The package's step begins at 1000 here, with which nothing is learned.
        run("lifted", released, lpgd, binary, False, 1.0, 30, option="filter")
        run("lifted, covariates", released, lpgd, binary, True, 0.5, 20, option="filter")
        run("lifted, codes", released, lpgd, binary, True, 0.5, 20, option="feature")
    write(
        "supervised_dictionary",
        {"x": plain(x.T), "w_start": plain(start_w), "h_start": plain(start_h), "cases": cases},
    )


def table(folder):
    sys.path.insert(0, str(folder))
    import torch
    from key_value_bottleneck.core import KeyValueBottleneck
    from key_value_bottleneck.splitters import LearnedDownProjection, RandomDownProjection

    torch.manual_seed(5)
    c, j, k, d, v = 4, 32, 8, 20, 5
    splitter = RandomDownProjection(c, d, k)
    model = KeyValueBottleneck(
        num_codebooks=c, key_value_pairs_per_codebook=j, dim_keys=k, dim_values=v,
        return_values_only=False,
    )  # fmt: skip
    start = model.keys.clone()
    rows = torch.randn(20 * 10, d)

    def heads_of(x):
        # [rows, books, 1, k]
        return splitter(x).reshape(len(x), c, 1, k)

    after_first = None
    for batch in rows.split(10):
        model(heads_of(batch))
        if after_first is None:
            after_first = model.keys.clone()
    keys = model.keys.clone()
    # Looked up from here on are keys that lie where rows are.
    placed = torch.randn_like(model.keys)
    model.keys.data.copy_(placed)
    model.freeze_keys()
    model.activate_counts()
    learned = torch.randn(40, d)
    model(heads_of(learned))
    counts = model.cluster_size_counter.clone()
    asked = torch.randn(15, d)
    values, _, indices, *_ = model(heads_of(asked))
    model.cluster_size_counter.data.copy_(counts)  # of the learned rows alone
    model.deactivate_counts()
    _, _, used_only, *_ = model(heads_of(asked))

    # Two steps of the authors' training: cross-entropy with smoothing, SGD, clipping.
    model.activate_counts()
    model.values.data.zero_()
    labels = torch.arange(40) % v
    optimiser = torch.optim.SGD([model.values], lr=0.3)
    losses = []
    for _ in range(3):
        fetched = model(heads_of(learned))[0]
        logits = fetched.sum(2).mean(dim=(1, 2))
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([model.values], 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    learned_projection = LearnedDownProjection(c, d, k)
    heads = learned_projection(asked.reshape(len(asked), 1, d))  # [rows, books, 1, k]
    write(
        "key_value_bottleneck",
        {
            "learned_projection": plain(learned_projection.proj.weight.detach()),
            "learned_heads": plain(heads.detach().reshape(len(asked), -1)),
            "projection": plain(splitter.rand_proj), "start": plain(start), "rows": plain(rows),
            "after_first": plain(after_first), "keys": plain(keys),
            "placed": plain(placed), "learned": plain(learned),
            "counts": plain(counts), "asked": plain(asked),
            "indices": plain(indices[:, :, 0, 0, 0]),
            "used_only": plain(used_only[:, :, 0, 0, 0]),
            "losses": losses, "values": plain(model.values.detach()),
        },
    )  # fmt: skip


def cs(folder):
    import torch

    authors = module(Path(folder) / "loss_cs.py", "loss_cs")
    torch.set_default_dtype(torch.float64)
    rng = np.random.default_rng(9)
    n = 12

    def tensor(*shape, by=1.0):
        return torch.tensor((by * rng.normal(size=shape)).round(6), dtype=torch.float64)

    x, y, told = tensor(n, 3), tensor(n, 1), tensor(n, 1).requires_grad_()
    code = tensor(n, 5, by=0.6).requires_grad_()
    divergence = authors.CS_Div(x, y, told, 1.0)
    divergence.backward()
    information = authors.CS_QMI_normalized(x, code, 1.0)
    information.backward()
    flat = authors.CS_Div(x, y[:, 0], told[:, 0].detach(), 1.0)
    write(
        "cauchy_schwarz",
        {
            "x": plain(x), "y": plain(y[:, 0]), "told": plain(told[:, 0].detach()),
            "code": plain(code.detach()),
            "conditional": float(divergence.detach()), "conditional_gradient": plain(told.grad[:, 0]),
            "qmi": float(authors.CS_QMI(x, code, 1.0).detach()),
            "qmi_two": float(authors.CS_QMI(x, code, 2.0).detach()),
            "qmi_median": float(authors.CS_QMI(x, code).detach()),
            "normalised": float(information.detach()), "normalised_gradient": plain(code.grad),
            "released": float(flat),
        },
    )  # fmt: skip


def data():
    """The data sets that scikit-learn carries, as NumPy files with few bytes."""
    from sklearn import datasets

    digits = datasets.load_digits()
    np.save(OUT / "digits.npy", digits.data.astype(np.uint8))
    np.save(OUT / "digits-labels.npy", digits.target.astype(np.uint8))
    for name in ["wine", "breast_cancer"]:
        found = getattr(datasets, f"load_{name}")()
        np.save(OUT / f"{name}.npy", found.data.astype(np.float32))
        np.save(OUT / f"{name}-labels.npy", found.target.astype(np.uint8))
    diabetes = datasets.load_diabetes()
    np.save(OUT / "diabetes.npy", diabetes.data.astype(np.float32))
    np.save(OUT / "diabetes-target.npy", diabetes.target.astype(np.float32))


if __name__ == "__main__":
    {"heads": heads, "dictionary": dictionary, "table": table, "cs": cs, "data": data}[sys.argv[1]](
        *sys.argv[2:]
    )
