"""Writes crates/signals/tests/fixtures/tsm2: a small TSM2 with random weights, in PyTorch on the Mamba
of transformers; forecasts of three columns in two windows, with features and without, and the gradients
of a weighted sum of the forecasts by all weights.

    venv/bin/python parity/mamba_mixer.py
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer as Mamba

FOLDER = Path(__file__).parent.parent / "crates/signals/tests/fixtures/tsm2"
B, M, T, H, PATCH, STRIDE, D, N, LAYERS = 2, 3, 37, 5, 8, 4, 6, 3, 2
STATIC, FUTURE = 2, 2


def mamba(width):
    return Mamba(
        MambaConfig(hidden_size=width, state_size=N, conv_kernel=4, expand=2, time_step_rank=-(-width // 16), use_mambapy=False),
        0,
    )


def both_ways(there, back, x):
    return there(x) + back(x.flip(1)).flip(1)


class Tsm2(nn.Module):
    def __init__(self, features):
        super().__init__()
        length = T * (3 if features else 1)
        self.n = (length - PATCH) // STRIDE + 1
        self.patch_embedding = nn.Linear(PATCH, D)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.n, D))
        self.token_mixers = nn.ModuleList(mamba(D) for _ in range(LAYERS))
        self.channel_mixers_fwd = nn.ModuleList(mamba(D) for _ in range(LAYERS))
        self.channel_mixers_bwd = nn.ModuleList(mamba(D) for _ in range(LAYERS))
        self.token_norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(LAYERS))
        self.channel_norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(LAYERS))
        scalars = lambda more: nn.ParameterList(nn.Parameter(torch.zeros(l + more)) for l in range(LAYERS))
        self.alpha, self.beta, self.theta, self.gamma = scalars(1), scalars(1), scalars(2), scalars(1)
        self.norm_2d = nn.ModuleDict({"norm1": nn.LayerNorm(D), "norm2": nn.LayerNorm(self.n)})
        self.head = nn.Linear(D * self.n, H)
        if features:
            self.static_embedding = nn.Linear(STATIC, T)
            self.future_norm = nn.LayerNorm(H)
            self.future_mixer_fwd, self.future_mixer_bwd = mamba(H), mamba(H)
            self.future_embedding = nn.Linear(FUTURE * H, T)
        self.features = features

    def average(self, weights, outputs):
        return sum(w * y for w, y in zip(weights.softmax(0), outputs, strict=True))

    def forward(self, x, statics, future):
        """x [B, M, T], statics [M, STATIC], future [B, FUTURE, H]; [B, M, H]."""
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True) + 1e-5
        parts = [(x - mean) / std]
        if self.features:
            parts.append(self.static_embedding(statics).expand(B, M, T))
            mixed = future + both_ways(self.future_mixer_fwd, self.future_mixer_bwd, self.future_norm(future))
            parts.append(self.future_embedding(mixed.reshape(B, -1))[:, None].expand(B, M, T))
        h = torch.cat(parts, -1).unfold(-1, PATCH, STRIDE)
        h = self.patch_embedding(h) + self.pos_embed
        tokens, channels = [h], [h]
        for l in range(LAYERS):
            u = self.average(self.alpha[l], tokens) + self.average(self.beta[l], channels)
            mixed = self.token_mixers[l](self.token_norms[l](u).reshape(B * M, self.n, D))
            tokens.append(u + mixed.reshape(B, M, self.n, D))
            u = self.average(self.theta[l], tokens) + self.average(self.gamma[l], channels)
            turned = self.channel_norms[l](u.transpose(1, 2)).reshape(B * self.n, M, D)
            mixed = both_ways(self.channel_mixers_fwd[l], self.channel_mixers_bwd[l], turned)
            channels.append(u + mixed.reshape(B, self.n, M, D).transpose(1, 2))
        h = self.norm_2d["norm1"](channels[-1])
        h = self.norm_2d["norm2"](h.transpose(-1, -2)).transpose(-1, -2)
        return self.head(h.reshape(B, M, -1)) * std + mean


def main():
    torch.manual_seed(11)
    inputs = {
        "contexts": torch.randn(B, M, T) * torch.tensor([1.0, 3.0, 0.5])[:, None] + 0.7,
        "statics": torch.randn(M, STATIC),
        "future": torch.randn(B, FUTURE, H),
        "factors": torch.randn(B, M, H),
    }
    for name, features in {"plain": False, "features": True}.items():
        model = Tsm2(features)
        with torch.no_grad():
            for key, p in model.named_parameters():
                one = key.endswith(".D") or "norm" in key and key.endswith("weight")
                p.copy_(0.3 * torch.randn_like(p) + (1.0 if one else 0.0))
        out = model(*(inputs[key] for key in ("contexts", "statics", "future")))
        (out * inputs["factors"]).sum().backward()
        expected = {**inputs, "out": out.detach()}
        expected |= {f"gradient.{key}": p.grad for key, p in model.named_parameters()}
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        weights = {key: p.detach() for key, p in model.named_parameters()}
        for file, tensors in {"model": weights, "expected": expected}.items():
            save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"{file}.safetensors")
        sizes = dict(seq_len=T, pred_len=H, patch_len=PATCH, stride=STRIDE, d_model=D, d_state=N, d_conv=4)
        sizes |= dict(expand=2, num_layers=LAYERS, averaging="softmax", channel_mixer=True, dropout=0.3)
        sizes |= dict(static_features=STATIC if features else 0, future_features=FUTURE if features else 0)
        (folder / "sizes.json").write_text(json.dumps(sizes) + "\n")


if __name__ == "__main__":
    main()
