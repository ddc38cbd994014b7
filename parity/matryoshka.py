"""What the authors' attention of MatryoshkaKV gives, for crates/lm to compare with.

    python parity/matryoshka.py MATRYOSHKA

The argument is a checkout of The-kamisato/MatryoshkaKV-cache. Their methods run on the CPU in
single precision on random orthogonal bases and means, one query head for each KV head (with
fewer KV heads they repeat keys and values first). The rotary embedding is the identity, so
that queries, keys and values are what the fixture holds; the causal mask is theirs to be given.
"""

import ast
import math
import sys
import types
import warnings
from pathlib import Path
from typing import List, Optional, Tuple, Union

import torch
from long_context import OUT, numbers
from safetensors.torch import save_file

HEADS, DIM, TOKENS = 4, 16, 24


def authors(checkout):
    """Their attention and what it calls, without the model around it."""
    path = Path(checkout) / "LLaMA-Factory/src/llamafactory/model/custom_model/modeling_pcallama_trial.py"
    tree = ast.parse(path.read_text())
    wanted = {"unitary_transform", "repeat_mean_states", "repeat_unitary_transform", "PcaLlamaAttention"}
    body = [n for n in tree.body if getattr(n, "name", "") in wanted]
    names = {
        "torch": torch, "nn": torch.nn, "math": math, "warnings": warnings, "List": List, "Optional": Optional,
        "Tuple": Tuple, "Union": Union, "Cache": object, "LlamaConfig": object, "LlamaAttention": torch.nn.Module,
        "apply_rotary_pos_emb": lambda q, k, cos, sin: (q, k), "repeat_kv": lambda x, groups: x,
    }
    exec(compile(ast.Module(body, []), path.name, "exec"), names)
    return names["PcaLlamaAttention"]


def main(checkout):
    kind = authors(checkout)
    layer = kind.__new__(kind)
    torch.nn.Module.__init__(layer)
    bases = {}
    for i, what in enumerate(("key", "value")):
        matrix = torch.linalg.qr(numbers(31 + i, HEADS, DIM, DIM))[0]
        layer.num_key_value_heads = HEADS
        bases[what] = layer.make_unitary_transform_det_1(matrix)
        bases[f"mean_{what}"] = numbers(33 + i, 1, HEADS, 1, DIM)
    hidden = HEADS * DIM
    layer.num_heads, layer.head_dim, layer.hidden_size = HEADS, DIM, hidden
    layer.num_key_value_groups, layer.layer_idx, layer.attention_dropout = 1, 0, 0.0
    layer.train_key = layer.train_value = layer.merged_weights = False
    layer.config = types.SimpleNamespace(hidden_size=hidden)
    layer.mean_key_states, layer.mean_value_states = bases["mean_key"], bases["mean_value"]
    layer.key_unitary_transform_matrix = bases["key"]
    layer.value_unitary_transform_matrix = bases["value"]
    layer.rotary_emb = lambda values, positions: (None, None)
    q, k, v = (numbers(35 + i, 1, TOKENS, hidden) * s for i, s in enumerate((3.0, 2.0, 1.0)))
    states = {"q": q, "k": k, "v": v}

    def give(name):
        module = torch.nn.Identity()
        module.forward = lambda x: states[name]
        return module

    layer.q_proj, layer.k_proj, layer.v_proj = give("q"), give("k"), give("v")
    layer.o_proj = torch.nn.Linear(hidden, hidden, bias=False)
    layer.o_proj.weight.data = torch.eye(hidden)
    layer.eval()
    ranks = {"key": torch.tensor([16, 8, 4, 12]), "value": torch.tensor([8, 16, 12, 4])}
    mask = torch.full((TOKENS, TOKENS), float("-inf")).triu(1)[None, None]
    out, _, _ = layer(
        torch.zeros(1, TOKENS, hidden), attention_mask=mask,
        key_truncate_index=ranks["key"], value_truncate_index=ranks["value"])
    tensors = {**bases, **states, "out": out}
    tensors["key_cayley"] = layer.inverse_orthogonal_(bases["key"])
    tensors.update({f"{name}_ranks": r.to(torch.int32) for name, r in ranks.items()})
    save_file({n: t.contiguous() for n, t in tensors.items()}, OUT / "matryoshka.safetensors")


if __name__ == "__main__":
    with torch.no_grad():
        main(sys.argv[1])
