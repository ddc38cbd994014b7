"""Writes crates/sequence/tests/fixtures/hydra.json: the matrix mixers of Hydra's authors on
random numbers, and a Hydra layer.

    pip install einops
    python parity/hydra.py HYDRA [OUT]

HYDRA is a checkout of goombalab/hydra, of which hydra/modules/matrix_mixers is used. Its layer
needs a GPU; here the same layer is computed by the recurrence itself, in double precision.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/sequence/tests/fixtures/hydra.json"


def plain(x):
    return x.detach().float().flatten().tolist()


def mixers(checkout):
    """One head of 4 channels, 9 positions, queries and keys of 3 numbers."""

    def load(name):
        path = checkout / f"hydra/modules/matrix_mixers/{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    torch.manual_seed(1)
    t, d = 9, 3
    v, q, k = torch.randn(1, t, 4), torch.randn(1, t, d), torch.randn(1, t, d)
    forward, reverse = torch.randn(1, t, 1), torch.randn(1, t, 1)
    sizes = dict(d_model=4, max_seq_len=t, expand=1, headdim=4)
    dense = load("dense").Dense(**sizes)
    out = dict(v=v, q=q, k=k, forward=forward, reverse=reverse, dense_matrix=dense.M[0])
    out["dense"] = dense(v)
    toeplitz = load("toeplitz").Toeplitz(True, **sizes)
    out["toeplitz"] = toeplitz(v, forward, reverse)
    for name, of in [
        ("vandermonde", "Vandermonde"),
        ("cauchy", "Cauchy"),
        ("low_rank", "LowRank"),
        ("attention", "Attention"),
    ]:
        module = getattr(load(name), of)(True, qk_dim=d, **sizes)
        out[name] = module(v, q=q, k=k)
    fourier = load("vandermonde").Vandermonde(False, is_dft=True, qk_dim=d, **sizes)
    out["fourier"] = fourier(v)
    return {name: plain(x) for name, x in out.items()}


def scan(x, dt, a, b, c, headdim):
    """Mamba-2's recurrence: x [L, Di], dt [L, H], b and c [L, N]."""
    heads = dt.shape[1]
    state = torch.zeros(heads, headdim, b.shape[1], dtype=x.dtype)
    rows = []
    for t in range(len(x)):
        x_t = x[t].view(heads, headdim)
        state = torch.exp(dt[t] * a)[:, None, None] * state
        state = state + (dt[t][:, None] * x_t)[:, :, None] * b[t]
        rows.append((state @ c[t]).flatten())
    return torch.stack(rows)


def layer():
    torch.manual_seed(2)
    d, n, headdim, width, di = 16, 8, 8, 7, 32
    heads, channels = di // headdim, di + 4 * n
    draw = lambda *shape, scale=1.0: scale * torch.randn(*shape, dtype=torch.float64)
    w = {
        "in_proj.weight": draw(di + channels + 2 * heads, d, scale=0.4),
        "conv1d.weight": draw(channels, width, scale=0.4),
        "conv1d.bias": draw(channels, scale=0.3),
        "dt_bias": draw(heads),
        "A_log": draw(heads, scale=0.5),
        "D": 1 + draw(heads, scale=0.2),
        "fc_D.weight": draw(heads, di, scale=0.2),
        "norm.weight": 1 + draw(di, scale=0.2),
        "out_proj.weight": draw(d, di, scale=0.3),
    }
    w = {name: x.float().double() for name, x in w.items()}
    u = draw(64, d).float().double()
    out = {name: plain(x) for name, x in w.items()} | {"u": plain(u)}
    a = -torch.exp(w["A_log"])
    for length in [1, 2, 9, 64]:
        parts = u[:length] @ w["in_proj.weight"].T
        z, xbc, dt = torch.split(parts, [di, channels, 2 * heads], dim=-1)
        xbc = F.conv1d(
            xbc.T[None], w["conv1d.weight"][:, None], w["conv1d.bias"], padding=width // 2, groups=channels
        )
        x, bc, bc_back = torch.split(F.silu(xbc[0].T), [di, 2 * n, 2 * n], dim=-1)
        dt, dt_back = (F.softplus(part + w["dt_bias"]) for part in dt.split(heads, dim=-1))
        there = scan(x, dt, a, *bc.split(n, dim=-1), headdim)
        back = scan(x.flip(0), dt_back.flip(0), a, *bc_back.flip(0).split(n, dim=-1), headdim)
        shift = lambda y: torch.cat([torch.zeros_like(y[:1]), y[:-1]])
        diagonal = (w["D"] + x @ w["fc_D.weight"].T).repeat_interleave(headdim, dim=-1)
        y = shift(there) + shift(back).flip(0) + x * diagonal
        y = y / torch.sqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5) * w["norm.weight"]
        out[f"out{length}"] = plain((y * F.silu(z)) @ w["out_proj.weight"].T)
    return out


def main(checkout, out):
    with torch.no_grad():
        numbers = {"mixers": mixers(checkout), "layer": layer()}
    short = json.loads(json.dumps(numbers), parse_float=lambda x: float(f"{float(x):.9g}"))
    out.write_text(json.dumps(short) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else OUT)
