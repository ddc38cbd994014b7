"""Writes crates/sequence/tests/fixtures/tensor_attention.json: attention over pairs of
positions and its gradients, as PyTorch computes them by one einsum in double precision.

    python parity/tensor_attention.py [OUT]

Inputs are random with a fixed seed: 12 positions, keys of 5 numbers, values of 3.
"""

import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/sequence/tests/fixtures/tensor_attention.json"


def main(out):
    torch.manual_seed(1)
    n, d, width = 12, 5, 3
    draw = lambda columns: (1.5 * torch.randn(n, columns, dtype=torch.float64)).requires_grad_()
    q, k1, k2, v1, v2 = draw(d), draw(d), draw(d), draw(width), draw(width)
    scores = torch.einsum("il,jl,kl->ijk", q, k1, k2) / d
    weights = torch.softmax(scores.flatten(1), dim=-1).view(n, n, n)
    result = torch.einsum("ijk,jc,kc->ic", weights, v1, v2)
    dout = torch.randn(n, width, dtype=torch.float64)
    result.backward(dout)
    numbers = dict(q=q, k1=k1, k2=k2, v1=v1, v2=v2, dout=dout, out=result)
    numbers |= dict(dq=q.grad, dk1=k1.grad, dk2=k2.grad, dv1=v1.grad, dv2=v2.grad)
    plain = {name: x.detach().flatten().tolist() for name, x in numbers.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(plain) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
