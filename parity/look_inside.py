#!/usr/bin/env python3
"""What other code gives for crates/inspect: crates/inspect/tests/fixtures/*.json; and
crates/dictionary/tests/fixtures/attribution.safetensors.

    parity/look_inside.py CONVERGENT ICL_LINEAR SAE

are checkouts of the authors' code of convergent learning (YixuanLi/convergent_learning), of the
softmax circuits (XintianPan/ICL_linear) and of the evaluation of autoencoders (amakelov/sae). Needs
numpy, scipy, scikit-learn, safetensors and torch. Functions are run from those files as they are; what they
import for plots and caches is left out.
"""

import ast
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import Lasso, LinearRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor

OUT = Path(__file__).parent.parent / "crates/inspect/tests/fixtures"


def write(name, value):
    def plain(x):
        if isinstance(x, (np.ndarray, torch.Tensor)):
            return np.asarray(x.detach() if isinstance(x, torch.Tensor) else x).tolist()
        if isinstance(x, (np.floating, np.integer)):
            return x.item()
        if isinstance(x, dict):
            return {k: plain(v) for k, v in x.items()}
        return [plain(v) for v in x] if isinstance(x, list) else x

    (OUT / name).write_text(json.dumps(plain(value)) + "\n")


def functions(path, names, scope):
    """Functions and classes of a file, without their decorators."""
    tree = ast.parse(Path(path).read_text())
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
            node.decorator_list = []
            exec(compile(ast.Module([node], []), str(path), "exec"), scope)
    return scope


def convergent(root):
    rng = np.random.default_rng(0)
    n = 240
    hidden = rng.normal(size=(n, 6)).astype(np.float32)
    # Rectified units, as in the publication.
    unit = lambda w: np.maximum(hidden @ rng.normal(size=(6, w)) + 0.3 * rng.normal(size=(n, w)), 0)
    a, b = unit(8).astype(np.float32), unit(5).astype(np.float32)
    both = np.corrcoef(np.concatenate([a, b], 1).astype(np.float64).T)
    between = both[:8, 8:]
    rows, columns = linear_sum_assignment(between, maximize=True)
    scope = functions(
        root / "experiments/estimate_mi.py",
        ["estimate_mi", "percentile_bins"],
        {"np": np, "log": np.log, "prod": np.prod, "sum": np.sum, "linspace": np.linspace},
    )
    nats = np.zeros((8, 5))
    for i in range(8):
        for j in range(5):
            xy = np.stack([a[:, i], b[:, j]], 1).astype(np.float64)
            edges = scope["percentile_bins"](xy)
            nats[i, j] = scope["estimate_mi"](np.histogram2d(xy[:, 0], xy[:, 1], bins=edges)[0])[0]
    learn = 200
    z = lambda x: (x - x[:learn].mean(0)) / x[:learn].std(0)
    x, y = z(a.astype(np.float64)), z(b.astype(np.float64))
    alpha = 0.05
    fits = [
        Lasso(alpha, fit_intercept=False, tol=1e-12, max_iter=100000).fit(x[:learn], y[:learn, j])
        for j in range(5)
    ]
    write("convergent.json", {
        "a": a, "b": b, "all": both, "greedy": between.argmax(1),
        "total": between[rows, columns].sum(), "nats": nats,
        "learn": learn, "alpha": alpha, "lasso": np.stack([f.coef_ for f in fits]),
    })


def softmax(root):
    models = ["MultiHeadAttention", "CausalMultiHeadAttention", "MultiHeadAttentionStack"]
    scope = functions(root / "src/models.py", models, {
        "torch": torch, "nn": torch.nn, "F": torch.nn.functional,
        "Optional": __import__("typing").Optional,
    })
    torch.manual_seed(0)
    d, heads, length, count = 3, 2, 6, 5
    model = scope["MultiHeadAttention"](d + 1, heads, n_out=1)
    layers = scope["MultiHeadAttentionStack"]
    z = torch.randn(count, length, d + 1)
    query = torch.randn(count, 1, d)
    target = torch.randn(count)
    told = model(torch.cat([query, torch.zeros(count, 1, 1)], -1), z)[:, 0, 0]
    loss = ((told - target) ** 2).mean()
    loss.backward()
    from scipy.special import softmax as soft
    scope = functions(root / "utils/funcs.py", ["TFEst", "gradients"], {"np": np, "softmax": soft})
    estimator = scope["TFEst"](length, 0.1, d)
    omega, mu = np.array([0.2, -0.3]), np.array([2.0, -1.0])
    x, y = z[0, :, :d].double().numpy().T, z[0, :, d].double().numpy()
    xq = query[0, 0].double().numpy()
    by_mu, by_omega = scope["gradients"](mu, omega, 0.1, length, d)
    weights = dict(model.named_parameters())
    write("softmax.json", {
        "d": d, "heads": heads, "length": length, "z": z, "query": query[:, 0], "target": target,
        "weights": {k[0]: v for k, v in weights.items()},
        "gradients": {k[0]: v.grad for k, v in weights.items()},
        "told": told, "loss": loss.item(),
        "omega": omega, "mu": mu, "best_mu": estimator.calculate_optimal_mu(omega),
        "approximate": estimator.approx_loss(omega, mu),
        # The authors' gradients are those of half the loss.
        "by_mu": 2 * by_mu, "by_omega": 2 * by_omega,
        "estimates": [
            estimator.Est(x, y, xq, [0.2], [2.0]),
            estimator.Est(x, y, xq, [0.2, -0.2], [2.0, -2.0]),
            estimator.GDEst(x, y, xq, 0.2, 2.0),
            estimator.DGDEst(x, y, xq, 0.2, 2.0),
            estimator.RidgeEst(x, y, xq),
        ],
    })


    torch.manual_seed(6)
    stack = layers(2, d + 1, heads)
    told = stack(torch.cat([query, torch.zeros(count, 1, 1)], -1), z)[:, 0, 0]
    loss = ((told - target) ** 2).mean()
    loss.backward()
    names = [f"attention_layers.{i}.{p}_proj.weight" for i in range(2) for p in "qkvo"]
    weights = dict(stack.named_parameters())
    ordered = [weights[n] for n in names + ["final_linear.weight"]]
    write("softmax_stack.json", {
        "d": d, "heads": heads, "length": length, "z": z, "query": query[:, 0], "target": target,
        "weights": torch.cat([w.flatten() for w in ordered]),
        "gradient": torch.cat([w.grad.flatten() for w in ordered]),
        "told": told, "loss": loss.item(),
    })


def block(x, w, heads, head_dim):
    """A block of the in-context studies (norm first), in torch."""
    norm = torch.nn.functional.layer_norm
    n, length, width = x.shape
    a = norm(x, (width,), w["norm_1.w"], w["norm_1.b"], 1e-5)
    qkv = (a @ w["qkv.w"].T + w["qkv.b"]).view(n, length, 3, heads, head_dim)
    q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    mask = torch.ones(length, length).tril().bool()
    scores = (q @ k.transpose(-1, -2)) / head_dim**0.5
    p = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    z = (p @ v).transpose(1, 2).reshape(n, length, heads * head_dim)
    a = a + z @ w["out.w"].T + w["out.b"]
    b = norm(a, (width,), w["norm_2.w"], w["norm_2.b"], 1e-5)
    inner = torch.nn.functional.gelu(b @ w["up.w"].T + w["up.b"], approximate="tanh")
    return b + inner @ w["down.w"].T + w["down.b"]


def in_context():
    torch.manual_seed(1)
    n, length, width, heads, head_dim, mlp = 2, 5, 6, 2, 3, 8
    shapes = {
        "norm_1.w": (width,), "norm_1.b": (width,), "norm_2.w": (width,), "norm_2.b": (width,),
        "qkv.w": (3 * heads * head_dim, width), "qkv.b": (3 * heads * head_dim,),
        "out.w": (width, heads * head_dim), "out.b": (width,),
        "up.w": (mlp, width), "up.b": (mlp,), "down.w": (width, mlp), "down.b": (width,),
    }
    w = {k: (0.5 * torch.randn(s)).requires_grad_() for k, s in shapes.items()}
    x = torch.randn(n, length, width, requires_grad=True)
    c = torch.randn(n, length, width)
    out = block(x, w, heads, head_dim)
    (out * c).sum().backward()
    rng = np.random.default_rng(2)
    d, pairs = 3, 7
    xs, ys = rng.normal(size=(pairs, d)), rng.normal(size=pairs)
    fits = {
        "ols": lambda: LinearRegression(fit_intercept=False),
        "ridge:0.5": lambda: Ridge(alpha=0.5, fit_intercept=False),
        "knn:3": lambda: KNeighborsRegressor(3),
        "knn-near:3": lambda: KNeighborsRegressor(3, weights="distance"),
    }
    told = {}
    for name, fit in fits.items():
        # Before the third pair there are not enough neighbours.
        first = 3 if name.startswith("knn") else 1
        told[name] = [fit().fit(xs[:i], ys[:i]).predict(xs[i : i + 1])[0] for i in range(first, pairs)]
    write("in_context.json", {
        "sizes": {"n": n, "length": length, "width": width, "heads": heads, "head_dim": head_dim, "mlp": mlp},
        "order": ["norm_1.w", "norm_1.b", "norm_2.w", "norm_2.b", "qkv.w", "qkv.b", "out.w", "out.b",
                  "up.w", "up.b", "down.w", "down.b"],
        "weights": w, "gradients": {k: v.grad for k, v in w.items()},
        "x": x, "c": c, "out": out, "dx": x.grad,
        "d": d, "xs": xs, "ys": ys, "told": told,
    })


def random_features():
    rng = np.random.default_rng(3)
    d, heads, n = 3, 4, 30
    w = (0.5 * rng.normal(size=(heads, d + 1, d + 1))).astype(np.float32)
    q = rng.normal(size=(n, d)).astype(np.float32)
    sets = rng.normal(size=(n, 5, d)).astype(np.float32)
    y = rng.normal(size=n)
    one = lambda x: np.concatenate([x, np.ones((*x.shape[:-1], 1))], -1)
    scores = np.maximum(np.einsum("na,mab,nib->nmi", one(q), w, one(sets)), 0)
    features = np.einsum("nmi,nib->nmb", scores, one(sets)).reshape(n, -1) / sets.shape[1]
    scale = np.sqrt((features**2).mean())
    ridge = Ridge(alpha=1e-2 * n, fit_intercept=False).fit(features / scale, y - y.mean())
    write("random_features.json", {
        "d": d, "heads": heads, "w": w, "q": q, "sets": sets, "y": y, "features": features,
        "lambda": 1e-2, "told": ridge.predict(features / scale) + y.mean(),
    })


def attribution(scope):
    """Loss and gradient of the authors' autoencoder for attributions, for crates/dictionary."""
    torch.manual_seed(5)
    n, d, hidden = 40, 6, 12
    model = scope["AttributionAutoEncoder"](d, hidden)
    with torch.no_grad():
        model.b_enc[:] = 0.1 * torch.randn(hidden) - 0.1
        model.b_dec[:] = 0.2 * torch.randn(d)
        model.W_enc[:] += 0.2 * torch.randn(d, hidden)
    x, metric = torch.randn(n, d), torch.randn(n, d)
    _, _, l2, _, sparsity, unexplained = model(x, metric)
    other = 0.7 * sparsity + 0.3 * unexplained
    (l2 + other).backward()
    kept = {
        "x": x, "metric": metric, "losses": torch.stack([l2, other]),
        "w_enc": model.W_enc.T, "b_enc": model.b_enc, "w_dec": model.W_dec, "b_dec": model.b_dec,
        "grad.w_enc": model.W_enc.grad.T, "grad.b_enc": model.b_enc.grad,
        "grad.w_dec": model.W_dec.grad, "grad.b_dec": model.b_dec.grad,
    }
    out = OUT.parent.parent.parent / "dictionary/tests/fixtures/attribution.safetensors"
    save_file({name: x.detach().contiguous().clone() for name, x in kept.items()}, out)


def sae(root):
    torch.Tensor.cuda = lambda self, *_, **__: self

    def einsum(pattern, *tensors):
        names = {}
        letter = lambda name: names.setdefault(name, chr(ord("a") + len(names)))
        terms = lambda side: ",".join(
            "".join("..." if n == "..." else letter(n) for n in t.split()) for t in side.split(",") if t.strip()
        )
        left, right = pattern.split("->")
        return torch.einsum(f"{terms(left)}->{terms(right)}", *tensors)

    typing = {name: getattr(__import__("typing"), name) for name in
              ["Any", "Dict", "List", "Tuple", "Optional", "Union", "Literal"]}
    scope = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "Tensor": torch.Tensor,
             "einsum": einsum, "tqdm": lambda x, **_: x, **typing}
    functions(root / "sae_variants.py", ["VanillaAutoEncoder", "TopKAutoEncoder", "GatedAutoEncoder", "AttributionAutoEncoder"], scope)
    functions(root / "sae_interp.py", ["get_feature_scores", "get_feature_mask"], scope)
    functions(root / "sae_interventions.py", ["get_edit_using_sae_opt", "get_feature_weights"], scope)
    attribution(scope)
    torch.manual_seed(4)
    n, d, hidden, values = 40, 6, 12, 5
    model = scope["VanillaAutoEncoder"](d, hidden)
    with torch.no_grad():
        model.b_enc[:] = 0.1 * torch.randn(hidden) - 0.1
        model.b_dec[:] = 0.2 * torch.randn(d)
        model.W_enc[:] += 0.2 * torch.randn(d, hidden)
    rows, target = torch.randn(n, d), torch.randn(n, d)
    of = torch.randint(0, values, (n,))
    # get_edit reads reconstructions and codes; "activation" is what it uses.
    with torch.no_grad():
        edited, features, *_ = scope["get_edit_using_sae_opt"](rows, target, model, 3, 1.0)
        active = model.get_activation_pattern(rows).float()
        scope["FEATURE_SIZES"] = {"a": values}
        mask = scope["get_feature_mask"](("a",), {("a",): of[:, None]})
        precision, recall, f1 = scope["get_feature_scores"](active, mask)
        weights, _ = scope["get_feature_weights"](model, rows, n)
        told = model.get_reconstructions(rows)
    mean = rows.mean(0)
    codes = torch.stack([
        (rows[of == v] - mean).mean(0) if (of == v).any() else torch.zeros(d) for v in range(values)
    ])
    write("sae_evaluation.json", {
        "d": d, "hidden": hidden, "values": values, "rows": rows, "target": target, "of": of,
        "w_enc": model.W_enc.T, "w_dec": model.W_dec, "b_enc": model.b_enc, "b_dec": model.b_dec,
        "told": told, "edited": edited, "features": features, "mean": mean, "codes": codes,
        "f1": torch.nan_to_num(f1, nan=-1.0), "weights": weights,
    })


if __name__ == "__main__":
    convergent_root, icl_root, sae_root = (Path(p) for p in sys.argv[1:])
    OUT.mkdir(parents=True, exist_ok=True)
    convergent(convergent_root)
    softmax(icl_root)
    in_context()
    random_features()
    sae(sae_root)
