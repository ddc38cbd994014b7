"""What the authors' linear map of R-Sparse gives, for crates/lm to compare with.

    python parity/r_sparse.py RSPARSE

The argument is a checkout of VITA-Group/R-Sparse. Its class runs on the CPU in single
precision, one token, with factors from torch.svd. Inputs are made by `numbers` of
long_context.py, which the tests repeat.
"""

import ast
import math
import os
import sys
from pathlib import Path

import torch
from long_context import OUT, numbers
from safetensors.torch import save_file


def authors(checkout):
    """The class alone: the file imports an older transformers."""
    text = (Path(checkout) / "models/modeling_llama.py").read_text()
    found = next(n for n in ast.parse(text).body if getattr(n, "name", "") == "R_Sparse_Linear")
    names = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "math": math, "os": os}
    exec(compile(ast.Module([found], []), "R_Sparse_Linear", "exec"), names)
    return names["R_Sparse_Linear"]


def main(checkout):
    inputs, outputs = 32, 48
    layer = authors(checkout)(inputs, outputs, bias=False)
    layer.weight.data = numbers(11, outputs, inputs)
    x = numbers(12, 1, 1, inputs)
    u, s, v = torch.svd(layer.weight.data)
    layer.scale = (v @ torch.diag(s)).norm(dim=1)
    layer.prefill_ratio = 1
    out = {"scale": layer.scale}
    for mode, rho, threshold in [("sparse", 1.0, 0.4), ("r_sparse", 0.8, 1.2)]:
        layer.mode, layer.threshold = mode, threshold
        channels = int(inputs * 0.5 * rho)
        layer.rank = int((inputs * outputs * 0.5 - channels * outputs) / (inputs + outputs))
        layer.U, layer.S, layer.V = u, s, v
        out[mode] = layer(x).flatten()
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, OUT / "r_sparse.safetensors")


if __name__ == "__main__":
    with torch.no_grad():
        main(sys.argv[1])
