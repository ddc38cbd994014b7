"""What scikit-learn, the authors' Frank-Wolfe learner and PyTorch's gradients give, for
crates/dictionary.

    python parity/dictionary.py ONLINE_ODL   # a checkout of the authors' code (ODL.py)

needs numpy, scikit-learn, torch, safetensors. Codes and learners are computed in double
precision and stored in single.
"""

import json
import os
import sys
import warnings

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from sklearn.decomposition import NMF, DictionaryLearning, MiniBatchDictionaryLearning, sparse_encode
from sklearn.linear_model import Lasso, orthogonal_mp_gram

OUT = os.path.join(os.path.dirname(__file__), "../crates/dictionary/tests/fixtures")
os.makedirs(OUT, exist_ok=True)
warnings.simplefilter("ignore")


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def save(name, tensors):
    single = {k: np.ascontiguousarray(v, dtype=np.float32) for k, v in tensors.items()}
    save_file(single, os.path.join(OUT, name))


def coders():
    rng = np.random.default_rng(1)
    d = unit(rng.standard_normal((20, 12))).astype(np.float32).astype(np.float64)
    x = rng.standard_normal((40, 12)).astype(np.float32).astype(np.float64)
    out = {"x": x, "d": d}
    out["omp"] = sparse_encode(x, d, algorithm="omp", n_nonzero_coefs=4)
    norms = (x**2).sum(1)
    out["omp_tol"] = orthogonal_mp_gram(d @ d.T, d @ x.T, tol=2.0, norms_squared=norms).T
    for alpha in (0.05, 0.5):
        for positive in (False, True):
            name = f"lasso_{alpha}" + ("_positive" if positive else "")
            # sparse_encode stops at 1e-4 of the gap; this is the same problem, solved further.
            lasso = Lasso(alpha / 12, fit_intercept=False, positive=positive, tol=1e-12, max_iter=100000)
            out[name] = np.stack([lasso.fit(d.T, row).coef_ for row in x])
            rough = sparse_encode(x, d, algorithm="lasso_cd", alpha=alpha, positive=positive, max_iter=10000)
            lars = sparse_encode(x, d, algorithm="lasso_lars", alpha=alpha, positive=positive)
            print(name, "scikit-learn: cd", np.abs(out[name] - rough).max(), "lars", np.abs(out[name] - lars).max())
    out["threshold"] = sparse_encode(x, d, algorithm="threshold", alpha=0.5)
    save("coders.safetensors", out)


def learners():
    rng = np.random.default_rng(2)
    n, k = 12, 20
    truth = unit(rng.standard_normal((k, n)))
    codes = rng.standard_normal((200, k)) * (rng.random((200, k)) < 0.15)
    x = (codes @ truth + 0.05 * rng.standard_normal((200, n))).astype(np.float32).astype(np.float64)
    start = unit(rng.standard_normal((k, n))).astype(np.float32).astype(np.float64)
    # Every atom is in use in the first batch: else it begins again at a random row.
    first = sparse_encode(x[:100], start, algorithm="lasso_lars", alpha=0.05)
    assert (np.abs(first) > 0).sum(0).min() > 5
    online = MiniBatchDictionaryLearning(
        n_components=k, alpha=0.05, batch_size=100, max_iter=1, shuffle=False, dict_init=start.copy(),
        fit_algorithm="lars", tol=0.0, max_no_improvement=None, random_state=0,
    ).fit(x)
    full = DictionaryLearning(
        n_components=k, alpha=0.2, max_iter=300, tol=1e-9, fit_algorithm="cd", random_state=0
    ).fit(x)
    passes = MiniBatchDictionaryLearning(
        n_components=k, alpha=0.2, batch_size=50, max_iter=150, shuffle=True, tol=0.0, fit_algorithm="cd",
        max_no_improvement=None, random_state=0,
    ).fit(x)
    codes = sparse_encode(x, passes.components_, algorithm="lasso_lars", alpha=0.2)
    lost = 0.5 * ((x - codes @ passes.components_) ** 2).sum() + 0.2 * np.abs(codes).sum()
    save("online.safetensors", {"x": x, "start": start, "components": online.components_})

    parts = rng.random((5, n))
    rows = (rng.random((60, 5)) * (rng.random((60, 5)) < 0.5)) @ parts + 0.01 * rng.random((60, n))
    rows = rows.astype(np.float32).astype(np.float64)
    w, h = rng.random((60, 5)), rng.random((5, n))
    w, h = (m.astype(np.float32).astype(np.float64) for m in (w, h))
    nmf = NMF(5, init="custom", solver="cd", max_iter=20, tol=0)
    w20 = nmf.fit_transform(rows, W=w.copy(), H=h.copy())
    save("nmf.safetensors", {"x": rows, "w": w, "h": h, "w20": w20, "h20": nmf.components_})
    with open(os.path.join(OUT, "objective.json"), "w") as file:
        json.dump({"alpha": 0.2, "dictionary_learning": full.error_[-1] / len(x), "mini_batch": lost / len(x)}, file)


def frank_wolfe(checkout):
    sys.path.insert(0, checkout)
    from ODL import ODL_online

    rng = np.random.default_rng(3)
    n, batch, batches = 10, 10, 300
    d, _ = np.linalg.qr(rng.standard_normal((n, n)))
    x = (rng.random((n, batch * batches)) < 0.3) * rng.standard_normal((n, batch * batches))
    y = d @ x
    a0 = np.linalg.qr(rng.random((n, n)))[0].T
    out = ODL_online(num_epochs=1, lp=3).NoncvxSFW(y, batch, d, a0)
    errors = next(part for part in out if isinstance(part, np.ndarray) and part.ndim == 1)
    double = lambda m: np.ascontiguousarray(m, dtype=np.float64)
    tensors = {"y": double(y.T), "d": double(d), "a0": double(a0), "errors": double(errors[:100])}
    # The stream in single precision where it is exact would be another stream: all is double.
    save_file({**tensors, "last": double(np.asarray(errors)[-1:])}, os.path.join(OUT, "frank_wolfe.safetensors"))


class Jump(torch.autograd.Function):
    """h where it is above t, with a rectangle as the slope of the step."""

    @staticmethod
    def forward(ctx, h, t, width):
        ctx.save_for_backward(h, t)
        ctx.width = width
        return h * (h > t)

    @staticmethod
    def backward(ctx, g):
        h, t = ctx.saved_tensors
        near = ((h - t).abs() / ctx.width < 0.5).to(h)
        return (h > t) * g, (-(t / ctx.width) * near * g).sum(0), None


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, t, width):
        ctx.save_for_backward(h, t)
        ctx.width = width
        return (h > t).to(h)

    @staticmethod
    def backward(ctx, g):
        h, t = ctx.saved_tensors
        near = ((h - t).abs() / ctx.width < 0.5).to(h)
        return None, (-(1 / ctx.width) * near * g).sum(0), None


def keep(h, k):
    values, places = h.topk(k, dim=-1)
    return torch.zeros_like(h).scatter(-1, places, values)


def autoencoders():
    """Losses and gradients of every kind, by PyTorch."""
    torch.manual_seed(4)
    n, d, m = 24, 6, 14
    out = {}
    double = lambda *shape: torch.randn(*shape, dtype=torch.float64).float().double()
    x, y = double(n, d), double(n, d)
    out["x"], out["y"] = x, y
    for kind in ("standard", "topk", "topk_dead", "batchtopk", "gated", "jumprelu", "jumprelu_tanh", "transcoder"):
        p = {
            "w_enc": double(m, d), "b_enc": 0.3 * double(m), "w_dec": 0.5 * double(m, d), "b_dec": 0.2 * double(d),
        }
        if kind == "gated":
            p["own"], p["r_mag"] = 0.3 * double(m), 0.2 * double(m)
        if kind.startswith("jumprelu"):
            p["own"] = 0.3 * double(m).abs() + 0.1
        if kind == "transcoder":
            p["w_skip"] = 0.3 * double(d, d)
        p = {k: v.float().double().requires_grad_() for k, v in p.items()}
        target = y if kind == "transcoder" else x
        centred = x if kind == "transcoder" else x - p["b_dec"]
        h = centred @ p["w_enc"].T + (0 if kind == "gated" else p["b_enc"])
        norm = p["w_dec"].norm(dim=-1)
        other = torch.zeros((), dtype=torch.float64)
        if kind in ("standard", "transcoder"):
            f = h.relu()
            other = 0.7 * (f * norm).sum(-1).mean()
        elif kind in ("topk", "topk_dead"):
            chosen = keep(h * norm, 3).relu() > 0
            f = h * chosen
        elif kind == "batchtopk":
            flat = (h * norm).relu().flatten()
            chosen = torch.zeros_like(flat).scatter(-1, flat.topk(3 * n).indices, 1.0).reshape(h.shape) > 0
            f = h.relu() * chosen
        elif kind == "gated":
            gate = h + p["b_enc"]
            f = (gate > 0) * (h * p["r_mag"].exp() + p["own"]).relu()
        else:
            f = Jump.apply(h, p["own"], 0.4)
        result = f @ p["w_dec"] + p["b_dec"]
        if kind == "transcoder":
            result = result + x @ p["w_skip"].T
        if kind == "topk_dead":
            # The first four codes count as dead; there are more than d / 2 of them.
            dead = torch.arange(m) < 4
            hidden = torch.where(dead[None], h * norm, -torch.inf)
            values, places = hidden.topk(d // 2, dim=-1)
            aux = torch.zeros_like(h).scatter(-1, places, values) / norm
            other = (aux @ p["w_dec"] - (target - result).detach()).pow(2).sum(-1).mean()
        if kind == "gated":
            gates = gate.relu()
            other = 0.7 * (gates * norm).sum(-1).mean()
            again = gates @ p["w_dec"].detach() + p["b_dec"].detach()
            other = other + (again - target).pow(2).sum(-1).mean()
        if kind == "jumprelu":
            other = 0.05 * Step.apply(h, p["own"], 0.4).sum(-1).mean()
        if kind == "jumprelu_tanh":
            other = 0.05 * torch.tanh(4 * f * norm).sum(-1).mean()
        mse = (result - target).pow(2).sum(-1).mean()
        (mse + other).backward()
        out[f"{kind}.codes"], out[f"{kind}.result"] = f, result
        out[f"{kind}.losses"] = torch.stack([mse, other])
        for name, value in p.items():
            out[f"{kind}.{name}"], out[f"{kind}.grad.{name}"] = value, value.grad
    save("autoencoders.safetensors", {k: v.detach().numpy() for k, v in out.items()})


def layouts():
    """Small files in the three layouts, with what a row of numbers becomes."""
    torch.manual_seed(5)
    d, m, k = 6, 10, 3
    x = torch.randn(7, d)
    expected = {"x": x}

    def folder(name, config, tensors, weights):
        path = os.path.join(OUT, name)
        os.makedirs(path, exist_ok=True)
        with open(os.path.join(path, "cfg.json"), "w") as file:
            json.dump(config, file, indent=2)
        save_torch({n: t.contiguous() for n, t in tensors.items()}, os.path.join(path, weights))

    def draw(*shape):
        return torch.randn(*shape) * 0.5

    w = {"W_enc": draw(d, m), "b_enc": draw(m), "W_dec": draw(m, d), "b_dec": draw(d)}
    base = {"d_in": d, "d_sae": m, "dtype": "float32", "device": "cpu", "reshape_activations": "none"}
    metadata = {"model_name": "toy", "hook_name": "blocks.0.hook_resid_post", "sae_lens_version": "6.0.0"}
    folder(
        "saelens-jumprelu",
        {**base, "architecture": "jumprelu", "apply_b_dec_to_input": False, "normalize_activations": "none",
         "metadata": metadata},
        {**w, "threshold": torch.full((m,), 0.3)}, "sae_weights.safetensors",
    )
    h = x @ w["W_enc"] + w["b_enc"]
    f = h.relu() * (h > 0.3)
    expected["saelens-jumprelu.codes"], expected["saelens-jumprelu.result"] = f, f @ w["W_dec"] + w["b_dec"]

    folder(
        "saelens-topk-old",
        {**base, "hook_point": "blocks.0.hook_resid_post", "activation_fn_str": "topk",
         "activation_fn_kwargs": {"k": k}, "normalize_activations": "layer_norm"},
        w, "sae_weights.safetensors",
    )
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    h = ((x - mean) / (std + 1e-5) - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    f = keep(h, k).relu()
    expected["saelens-topk-old.codes"] = f
    expected["saelens-topk-old.result"] = (f @ w["W_dec"] + w["b_dec"]) * std + mean

    s = {"encoder.weight": draw(m, d).bfloat16(), "encoder.bias": draw(m).bfloat16(),
         "W_dec": draw(m, d).bfloat16(), "b_dec": draw(d).bfloat16(), "W_skip": draw(d, d).bfloat16()}
    folder(
        "sparsify/layers.8",
        {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": m, "k": k,
         "multi_topk": False, "skip_connection": True, "transcode": True, "d_in": d},
        s, "sae.safetensors",
    )
    s = {n: t.float() for n, t in s.items()}
    f = keep((x @ s["encoder.weight"].T + s["encoder.bias"]).relu(), k)
    expected["sparsify.codes"] = f
    expected["sparsify.result"] = f @ s["W_dec"] + s["b_dec"] + x @ s["W_skip"].T

    o = {
        "pre_bias": draw(d), "latent_bias": draw(m), "stats_last_nonzero": torch.arange(m),
        "latents_activation_frequency": torch.rand(m), "latents_mean_square": torch.rand(m),
        "encoder.weight": draw(m, d), "decoder.weight": draw(d, m),
        "activation": "TopK", "activation_state_dict": {"k": k, "postact_fn": "ReLU"},
    }
    torch.save(o, os.path.join(OUT, "openai.pt"))
    rows = (x - mean) / (std + 1e-5)
    f = keep((rows - o["pre_bias"]) @ o["encoder.weight"].T + o["latent_bias"], k).relu()
    expected["openai.codes"] = f
    expected["openai.result"] = (f @ o["decoder.weight"].T + o["pre_bias"]) * std + mean
    save("layouts.safetensors", {n: t.numpy() for n, t in expected.items()})


coders()
learners()
frank_wolfe(sys.argv[1])
autoencoders()
layouts()
