"""Times sparse coding and online dictionary learning for `keyfold bench dictionary-speed --peer`.

    pip install numpy scipy scikit-learn spams-bin torch
    keyfold bench dictionary-speed \
        --peer "spams=python parity/peers/dictionary.py spams" \
        --peer "scikit-learn=python parity/peers/dictionary.py scikit-learn" \
        --peer "pytorch=python parity/peers/dictionary.py pytorch"

Called as `dictionary.py WHICH dictionary REQUEST -`; REQUEST is described in
crates/bench/src/experiments/dictionary_speed.rs. Prints the least seconds of each case.
Both get rows in double precision, in the order in memory that they like best; SPAMS is also tried
in single precision, and the faster counts; a run of it that codes nothing (seen of its pursuit in
single precision, now and then) does not.
"""

import json
import os
import sys
import time
from pathlib import Path


def main():
    which, request = sys.argv[1], json.loads(Path(sys.argv[3]).read_text())
    threads = request["threads"]
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    import numpy as np

    rows, atoms = np.load(request["rows"]), np.load(request["atoms"])
    run = {"spams": spams_runs, "scikit-learn": sklearn_runs, "pytorch": torch_runs}[which]
    seconds = {}
    for case in request["cases"]:
        if (case["kind"] == "sae") != (which == "pytorch"):
            continue
        best = float("inf")
        for work in run(np, case, rows[: case["rows"]], atoms, threads):
            repeats = 1 if which == "scikit-learn" else request["repeats"]
            for _ in range(repeats):
                clock = time.perf_counter()
                found = work()
                took = time.perf_counter() - clock
                if getattr(found, "nnz", 1) > 0:
                    best = min(best, took)
        if best < float("inf"):
            seconds[case["name"]] = best
    print(json.dumps({"name": which, "seconds": seconds}))


def spams_runs(np, case, rows, atoms, threads):
    import spams

    for kind in (np.float64, np.float32):
        x = np.asfortranarray(rows.T, dtype=kind)
        d = np.asfortranarray(atoms.T, dtype=kind)
        if case["kind"] == "omp":
            yield lambda: spams.omp(x, D=d, L=case["atoms_per_row"], numThreads=threads)
        elif case["kind"] == "lasso":
            yield lambda: spams.lasso(x, D=d, lambda1=case["alpha"], mode=2, numThreads=threads)
        else:
            k, batch = case["n_components"], case["batch_size"]
            start = np.asfortranarray(d[:, :k])
            passes = -(-x.shape[1] // batch)
            yield lambda: spams.trainDL(
                x, D=start, K=k, lambda1=case["alpha"], mode=2, iter=passes, batchsize=batch,
                numThreads=threads, verbose=False,
            )


def sklearn_runs(np, case, rows, atoms, threads):
    from sklearn.decomposition import MiniBatchDictionaryLearning, sparse_encode

    x, d = rows.astype(np.float64), atoms.astype(np.float64)
    jobs = threads if threads > 1 else None
    if case["kind"] == "omp":
        yield lambda: sparse_encode(x, d, algorithm="omp", n_nonzero_coefs=case["atoms_per_row"], n_jobs=jobs)
    elif case["kind"] == "lasso":
        for name in ("lasso_lars", "lasso_cd"):
            yield lambda: sparse_encode(x, d, algorithm=name, alpha=case["alpha"], n_jobs=jobs)
    else:
        k = case["n_components"]
        for algorithm in ("lars", "cd"):
            learner = MiniBatchDictionaryLearning(
                k, alpha=case["alpha"], batch_size=case["batch_size"], max_iter=1, fit_algorithm=algorithm,
                dict_init=d[:k].copy(), tol=0.0, max_no_improvement=None, n_jobs=jobs,
            )
            yield lambda: learner.fit(x)


def torch_runs(np, case, rows, atoms, threads):
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    n, d, m, k = case["rows"], case["d_in"], case["d_sae"], case["k"]
    x = torch.randn(n, d)
    w_dec = torch.nn.functional.normalize(torch.randn(m, d), dim=1) * 0.1
    p = [w_dec.T.clone(), torch.zeros(m), w_dec, torch.zeros(d)]
    kind = case["architecture"]
    if kind == "gated":
        p += [torch.zeros(m), torch.zeros(m)]
    if kind == "jumprelu":
        p += [torch.full((m,), 0.01).log()]
    w_enc, b_enc, w_dec, b_dec, *own = p = [t.requires_grad_() for t in p]
    adam = torch.optim.Adam(p, lr=3e-4)
    width = 0.05  # of the rectangle of a jump ReLU

    class Jump(torch.autograd.Function):
        """Codes, and 1 for those in use, with the gradients that SAELens gives to thresholds."""

        @staticmethod
        def forward(ctx, h, t):
            ctx.save_for_backward(h, t)
            used = (h > t).to(h)
            return h.relu() * used, used

        @staticmethod
        def backward(ctx, by_code, by_step):
            h, t = ctx.saved_tensors
            near = (((h - t) / width).abs() < 0.5).to(h) / width
            return by_code * (h > t).to(h), -(near * (t * by_code + by_step)).sum(0)

    def step():
        other = 0.0
        if kind == "gated":
            b_mag, r_mag = own
            h = (x - b_dec) @ w_enc
            pi = h + b_enc
            f = (h * r_mag.exp() + b_mag).relu() * (pi > 0).to(h)
            gate = pi.relu()
            other = (gate * w_dec.norm(dim=-1)).sum(-1).mean()
            other = other + (gate @ w_dec.detach() + b_dec.detach() - x).pow(2).sum(-1).mean()
        else:
            h = (x - b_dec) @ w_enc + b_enc
            if kind == "topk":
                values, places = h.topk(k, dim=-1)
                f = torch.zeros_like(h).scatter(-1, places, values.relu())
            elif kind == "batchtopk":
                flat = h.relu().flatten()
                values, places = flat.topk(k * n)
                f = torch.zeros_like(flat).scatter(-1, places, values).view_as(h)
            elif kind == "jumprelu":
                f, used = Jump.apply(h, own[0].exp())
                other = used.sum(-1).mean()
            else:
                f = h.relu()
                other = (f * w_dec.norm(dim=-1)).sum(-1).mean()
        loss = (f @ w_dec + b_dec - x).pow(2).sum(-1).mean() + other
        adam.zero_grad()
        loss.backward()
        adam.step()

    step()
    yield step


if __name__ == "__main__":
    main()
