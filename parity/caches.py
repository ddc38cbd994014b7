"""What the authors' code of two ways to fold a cache gives, for crates/lm to compare with, and
small files of pickle.dump for crates/core.

    python parity/caches.py KVQUANT LOOKM

The arguments are checkouts of SqueezeAILab/KVQuant and SUSTechBruce/LOOK-M. Their functions
run on the CPU in single precision. Inputs are made by `numbers` of long_context.py, which the
tests repeat, so that the fixtures hold results only.

Changes to what runs:

- KVQuant: Q-Norm calls its rounding function with an argument that it does not have, and
  awaits two results; both are taken out. `.cuda()` does nothing.
- LOOK-M: only the classes of merging are run; what the file imports is left out. Scores are
  whole numbers, since it adds -65516 to them.
"""

import pickle
import re
import sys
import types
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from long_context import numbers  # noqa: E402

ROOT = Path(__file__).parent.parent
OUT = ROOT / "crates/lm/tests/fixtures-long-context"


def kvquant(checkout):
    torch.Tensor.cuda = lambda self: self
    text = (Path(checkout) / "quant/kvquant/simquant_module_quantizer.py").read_text()
    old = "aug, freq = round_to_nearest_pole_sim(aug, centroid, return_freq=True)"
    assert old in text
    text = text.replace(old, "aug = round_to_nearest_pole_sim(aug, centroid)")
    module = types.ModuleType("sim")
    exec(compile(text, "sim", "exec"), module.__dict__)
    width, tokens, shown = 64, 512, 24
    scale = torch.exp(1.5 * numbers(11, width))
    # Cubes have long tails.
    data = numbers(12, tokens, width) ** 3 * scale + 0.5 * scale * numbers(13, width)
    fisher = numbers(14, tokens, width) ** 2
    out = {}
    for name, channel in [("k", 0), ("v", -1)]:
        for bits in [2, 3, 4]:
            sim = module.SimQuant(torch.nn.Linear(8, width), bits, qchannel=channel)
            sim.out = data
            for weights, kind in [(None, "plain"), (fisher, "fisher")]:
                if kind == "fisher" and bits != 3:
                    continue
                upper, lower, tables, norm, offset = sim.quantize(True, 0.99, True, weights, True)
                table = torch.tensor(np.sort(tables[0].flatten()))
                at = f"{name}.{bits}.{kind}."
                out[at + "upper"] = upper.flatten().float()
                out[at + "lower"] = lower.flatten().float()
                out[at + "table"] = table
                out[at + "norm"] = torch.tensor([norm.item(), offset.item()])
                # The objective of k-means: their sum of squares at their table.
                scaled = (data - (upper + lower) / 2) / ((upper - lower) / 2)
                inside = scaled.abs() <= 1
                near = (scaled[inside][:, None] - table).abs().min(1).values ** 2
                weight = torch.ones_like(near) if weights is None else weights[inside]
                out[at + "objective"] = (near * weight).sum().reshape(1).float()
                if kind == "fisher":
                    continue
                rows = data[:shown]
                if channel == 0:
                    u, l = upper.flatten().float(), lower.flatten().float()
                    mask = module.get_outliers(rows, 0, u, l)
                    ends = dict(maxval=u, minval=l)
                else:
                    mask = module.get_outliers_dynamic(rows, -1, 0.99)
                    ends = dict(dynamicquantization=True)
                common = dict(bits=bits, qchannel=channel, include_sparse=True, outlier_mask=mask)
                for normed in [False, True]:
                    got = module.quant_fn_nuq_recon(
                        rows, lut=[table.tolist()], norm=normed,
                        normscale=norm.float(), normoffset=offset.float(), **common, **ends)
                    out[at + ("normed" if normed else "rounded")] = got
    quantizers = {}
    for name, channel in [("k", 0), ("v", -1)]:
        sim = module.SimQuant(torch.nn.Linear(8, width), 3, qchannel=channel)
        sim.out = data
        key = f"model.layers.0.self_attn.{name}_proj"
        quantizers[key] = sim.quantize(True, 0.99, True, None, True)
    with open(OUT / "quantizers.pickle", "wb") as file:
        pickle.dump(quantizers, file, protocol=pickle.HIGHEST_PROTOCOL)
    for bits in [2, 3, 4]:
        linear = torch.nn.Linear(8, width)
        quantizer = (torch.zeros(width), torch.zeros(width))
        sim = module.QuantLinearSim(
            "x", bits, quantizer, 8, width, linear.weight, None, nuq=True, nf_nuq=True)
        out[f"nf.{bits}"] = torch.tensor(sim.nf_signposts)
    save_file(out, OUT / "kvquant.safetensors")


def look_m(checkout):
    path = "LLaVA-mix_merge_v1/llava/model/kv_token_merge/modify_llama.py"
    text = (Path(checkout) / path).read_text()
    found = {}
    for name in ["TextPivotMerge_LayerWise", "TextWeightedMerge_LayerWise", "H2OKVCache_LayerWise"]:
        body = re.search(rf"^class {name}:.*?(?=^class )", text, re.S | re.M).group(0)
        exec(compile(body, name, "exec"), {"torch": torch}, found)
    heads, rows, dim, start = 2, 640, 128, 20
    keys, values = numbers(21, 1, heads, rows, dim), numbers(22, 1, heads, rows, dim)
    # Some rows much alike, as patches of a picture are.
    keys = keys * 0.3 + numbers(23, 1, heads, 8, dim).repeat(1, 1, rows // 8, 1)
    order = torch.argsort(numbers(24, heads, rows), dim=-1).float()
    scores = torch.stack([order, order], 1)[None]
    out = {"mass": 2 * order}
    for name, class_ in found.items():
        cache = class_(hh_ratio=0.1, recent_ratio=0.1)
        cache.image_position = torch.tensor([start])
        k, v = cache((keys, values), scores)
        short = name.split("_")[0]
        # Every eighth channel.
        out[f"{short}.keys"] = k[0, :, :, ::8].contiguous()
        out[f"{short}.values"] = v[0, :, :, ::8].contiguous()
    save_file(out, OUT / "look_m.safetensors")


def pickles():
    folder = ROOT / "crates/core/tests/fixtures"
    folder.mkdir(parents=True, exist_ok=True)
    entries = {
        "a": (
            torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64),
            torch.arange(6.0).reshape(2, 3).t(),
            [np.array([[-1.0], [2.0]], dtype=np.float32)],
        ),
        "b": [torch.tensor(7.0)],
    }
    for protocol in [2, 4, 5]:
        with open(folder / f"arrays-{protocol}.pickle", "wb") as file:
            pickle.dump(entries, file, protocol=protocol)


if __name__ == "__main__":
    kvquant(sys.argv[1])
    look_m(sys.argv[2])
    pickles()
