"""Writes the fixtures of crates/lm for Mamba: tiny random checkpoints, and what transformers
computes with them.

    python parity/mamba.py [OUT]

OUT is crates/lm/tests/fixtures-mamba unless given. See parity/README.md for the versions of
the libraries. Weights are random with fixed seeds; nothing is downloaded.

gguf-NAME holds the weights of NAME as a GGUF file. Every other folder holds a checkpoint and
expected.safetensors:

    prompt        [257] i32    token ids
    logits        [9, V] f32   after 1, 2, 3, 4, 5, 6, 64, 65 and 257 tokens
    greedy        [20] i32     the ids that greedy decoding picks after the prompt
    greedy_logits [20, V] f32  the logits that each of them was picked from
    steps         [257, H] f32 step sizes of the first layer (mamba2 alone), for long_mamba

and, for mamba2, long.safetensors: kept [H], decay [H] and thresholds [3, H] for 384, 1024
and 2048 tokens of a calibration on those steps with a clamp of 5 percent; shares [3, H], what the
released program calls alpha; and what its other ways of choosing do to made-up steps of a prompt
(`longer_steps`) with the calibration of 1024 tokens: for alpha, offline, bound, channelwise_topk and
all_topk (of 256 tokens) the number of kept steps and the sum of their places [2, H], for norm the factors [H]; heads that
keep more than 1e-30 are global.
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/lm/tests/fixtures-mamba"
VOCAB = 260
PLACES = [1, 2, 3, 4, 5, 6, 64, 65, 257]
STEPS = 20


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("A_log"):
                p.copy_(noise.abs())
            elif name.endswith(("dt_bias", "dt_proj.bias")):
                p.copy_(noise - 2)
            elif "norm" in name or name.endswith(".D"):
                p.copy_(1 + 0.2 * noise)
            elif "embedding" in name or "lm_head" in name:
                p.copy_(0.5 * noise)
            elif "conv1d" in name:
                p.copy_(0.4 * noise)
            else:
                p.copy_(noise / p.shape[-1] ** 0.5)
    return model.eval()


def reference(model, prompt):
    """Logits at PLACES, the greedy ids after the prompt, and their logits."""
    with torch.no_grad():
        logits = model(prompt[None], use_cache=False).logits[0]
        ids, rows, text = [], [], prompt
        row = logits[-1]
        for _ in range(STEPS):
            rows.append(row)
            ids.append(int(row.argmax()))
            text = torch.cat([text, torch.tensor([ids[-1]])])
            row = model(text[None], use_cache=False).logits[0, -1]
    return {
        "prompt": prompt.to(torch.int32),
        "logits": logits[[p - 1 for p in PLACES]].contiguous(),
        "greedy": torch.tensor(ids, dtype=torch.int32),
        "greedy_logits": torch.stack(rows),
    }


def write(out, name, model, config, authors=None):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prompt = torch.from_numpy(np.random.default_rng(5).integers(0, 256, 257))
    expected = reference(model, prompt)
    state = dict(model.state_dict())
    if authors is None:
        model.save_pretrained(folder)
        for other in folder.glob("generation_config.json"):
            other.unlink()
    else:
        (folder / "config.json").write_text(json.dumps(authors, indent=1) + "\n")
        renamed = {k.replace("embeddings.weight", "embedding.weight"): v for k, v in state.items()}
        torch.save(renamed, folder / "pytorch_model.bin")
    if isinstance(model, Mamba2ForCausalLM):
        steps = first_steps(model, prompt)
        expected["steps"] = steps
        long = calibration(steps, state["backbone.layers.0.mixer.A_log"], clamp=5)
        save_file(long, folder / "long.safetensors")
    save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")


NAMES = {
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.conv1d.weight": "ssm_conv1d.weight",
    "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.x_proj.weight": "ssm_x.weight",
    "mixer.dt_proj.weight": "ssm_dt.weight",
    "mixer.dt_proj.bias": "ssm_dt.bias",
    "mixer.dt_bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.norm.weight": "ssm_norm.weight",
    "mixer.out_proj.weight": "ssm_out.weight",
}


def write_gguf(out, name, model, config):
    """The same weights as llama.cpp keeps them: rates in place of their logarithms."""
    two = config.model_type == "mamba2"
    folder = out / f"gguf-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    writer = gguf.GGUFWriter(str(folder / "model.gguf"), "mamba2" if two else "mamba")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config.num_hidden_layers)
    inner = config.expand * config.hidden_size
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(config.num_heads if two else config.time_step_rank)
    if two:
        writer.add_ssm_group_count(config.n_groups)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    for key, x in model.state_dict().items():
        x = x.float().numpy()
        if key == "lm_head.weight":
            if two:
                writer.add_tensor("output.weight", x)
            continue
        key = key.removeprefix("backbone.")
        if key == "embeddings.weight":
            writer.add_tensor("token_embd.weight", x)
        elif key == "norm_f.weight":
            writer.add_tensor("output_norm.weight", x)
        else:
            layer, rest = key.removeprefix("layers.").split(".", 1)
            if rest == "mixer.A_log":
                x = -np.exp(x)
            if two and rest in ("mixer.A_log", "mixer.D"):
                x = x.reshape(-1, 1)
            if rest == "mixer.norm.weight":
                x = x.reshape(config.n_groups, -1)
            if rest == "mixer.conv1d.weight":
                x = x[:, 0]
            writer.add_tensor(f"blk.{layer}.{NAMES[rest]}", np.ascontiguousarray(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def first_steps(model, prompt):
    """Step sizes of the first layer."""
    mixer = model.backbone.layers[0].mixer
    with torch.no_grad():
        hidden = model.backbone.layers[0].norm(model.backbone.embeddings(prompt[None]))
        projected = mixer.in_proj(hidden)[0]
        dt = projected[:, -mixer.num_heads :]
        steps = torch.nn.functional.softplus(dt + mixer.dt_bias)
        return torch.clamp(steps, *mixer.time_step_limit)


def calibration(steps, a_log, clamp):
    """LongMamba's arithmetic on steps [L, H], after the paper's description."""
    length, heads = steps.shape
    longer = longer_steps(steps)
    count = max(1, int(length * clamp / 100))
    least = torch.topk(steps, count, dim=0).values[-1]
    steps = torch.minimum(steps, least)
    decay = steps.sum(0)
    kept = torch.exp(-torch.exp(a_log) * decay)
    thresholds, shares = [], []
    for target in (384, 1024, 2048):
        ordered = torch.sort(steps, dim=0, descending=True).values.T
        stretched = torch.nn.functional.interpolate(
            ordered[None], size=target, mode="linear", align_corners=False
        )[0]
        over = stretched.double().cumsum(-1) > decay.double()[:, None]
        place = (over.int().argmax(-1) + 1).clamp(max=target - 1)
        thresholds.append(stretched.gather(-1, place[:, None])[:, 0])
        shares.append((place / target).clamp(max=1))
    shares = torch.stack(shares)
    return {
        "kept": kept,
        "decay": decay,
        "thresholds": torch.stack(thresholds),
        "shares": shares,
        **other_ways(longer, shares[1], decay, kept > 1e-30, 256),
    }


def longer_steps(steps, length=1000):
    """Steps of a longer prompt, made of those of a short one."""
    rows = torch.arange(length)
    factors = 0.5 + (rows * 37 % 101).float() / 101
    return steps[rows % len(steps)] * factors[:, None]


def other_ways(steps, share, decay, is_global, most):
    """What the released program can do in the place of thresholds, by its description."""
    length = len(steps)
    order = torch.argsort(steps, dim=0, descending=True, stable=True)
    ranks = torch.argsort(order, dim=0)
    ordered = steps.gather(0, order)
    last = (length * share).clamp(max=length).long().clamp(max=length - 1)
    middle = torch.quantile(steps, 1 - most / length, dim=0)
    together = torch.linalg.vector_norm(steps[:, is_global], dim=1)
    chosen = torch.zeros(length, dtype=torch.bool)
    chosen[torch.topk(together, most).indices] = True
    masks = {
        "alpha": ranks < length * share,
        "offline": steps >= ordered.gather(0, last[None]),
        "bound": ranks < (ordered.cumsum(0) <= decay).sum(0),
        "channelwise_topk": steps > middle,
        "all_topk": chosen[:, None].expand(length, steps.shape[1]),
    }
    places = torch.arange(length)[:, None]
    told = {
        name: torch.stack([mask.sum(0), (mask * places).sum(0)]).to(torch.int32)
        for name, mask in masks.items()
    }
    return {**told, "norm": decay / steps.sum(0)}


def main(out):
    sizes = dict(vocab_size=VOCAB, num_hidden_layers=2, pad_token_id=0, bos_token_id=0, eos_token_id=1)
    one = MambaConfig(hidden_size=24, state_size=5, time_step_rank=3, **sizes)
    model = randomise(MambaForCausalLM(one), 1)
    write(out, "mamba", model, one)
    write_gguf(out, "mamba", model, one)
    one = MambaConfig(hidden_size=24, state_size=16, **sizes)
    model = randomise(MambaForCausalLM(one), 2)
    authors = dict(
        d_model=24, n_layer=2, vocab_size=VOCAB - 3, ssm_cfg={}, rms_norm=True,
        residual_in_fp32=True, fused_add_norm=True, pad_vocab_size_multiple=4,
    )
    write(out, "mamba-authors", model, one, authors)

    for name, groups, seed in [("mamba2", 1, 3), ("mamba2-groups", 2, 4)]:
        two = Mamba2Config(
            hidden_size=24, state_size=7, head_dim=8, num_heads=6, n_groups=groups, chunk_size=16, **sizes
        )
        model = randomise(Mamba2ForCausalLM(two), seed)
        write(out, name, model, two)
        write_gguf(out, name, model, two)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
