"""Writes crates/nn/tests/fixtures/mixers: layers of Mamba and Mamba-2 by transformers and one of Hydra
by the recurrence itself, with random weights; their outputs for four texts, and all gradients of a
weighted sum of these.

    venv/bin/python parity/mixers.py
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import Mamba2Config, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from hydra import scan

FOLDER = Path(__file__).parent.parent / "crates/nn/tests/fixtures/mixers"
LENGTHS = [1, 3, 5, 257]
D = 8


class Hydra(torch.nn.Module):
    """d_model 8, 16 channels in 4 heads, 3 state numbers."""

    def __init__(self):
        super().__init__()
        di, n, heads, channels = 16, 3, 4, 16 + 12
        self.in_proj = torch.nn.Linear(D, di + channels + 2 * heads, bias=False)
        self.conv1d = torch.nn.Conv1d(channels, channels, 7, padding=3, groups=channels)
        self.dt_bias = torch.nn.Parameter(torch.randn(heads))
        self.A_log = torch.nn.Parameter(0.5 * torch.randn(heads))
        self.D = torch.nn.Parameter(1 + 0.2 * torch.randn(heads))
        self.fc_D = torch.nn.Linear(di, heads, bias=False)
        self.norm = torch.nn.Module()
        self.norm.weight = torch.nn.Parameter(1 + 0.2 * torch.randn(di))
        self.out_proj = torch.nn.Linear(di, D, bias=False)
        self.sizes = di, n, heads, channels

    def forward(self, u):
        di, n, heads, channels = self.sizes
        z, xbc, dt = torch.split(self.in_proj(u[0]), [di, channels, 2 * heads], dim=-1)
        xbc = F.silu(self.conv1d(xbc.T[None])[0].T)
        x, bc, bc_back = torch.split(xbc, [di, 2 * n, 2 * n], dim=-1)
        a = -torch.exp(self.A_log)
        dt, dt_back = (F.softplus(part + self.dt_bias) for part in dt.split(heads, dim=-1))
        there = scan(x, dt, a, *bc.split(n, dim=-1), di // heads)
        back = scan(x.flip(0), dt_back.flip(0), a, *bc_back.flip(0).split(n, dim=-1), di // heads)
        shift = lambda y: torch.cat([torch.zeros_like(y[:1]), y[:-1]])
        diagonal = (self.D + self.fc_D(x)).repeat_interleave(di // heads, dim=-1)
        y = shift(there) + shift(back).flip(0) + x * diagonal
        y = y / torch.sqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5) * self.norm.weight
        return self.out_proj(y * F.silu(z))[None]


def layers():
    torch.manual_seed(3)
    mamba = MambaConfig(
        hidden_size=D, state_size=3, conv_kernel=4, expand=2, time_step_rank=2, use_mambapy=False
    )
    mamba2 = Mamba2Config(
        hidden_size=D, state_size=3, conv_kernel=4, expand=2, num_heads=4, head_dim=4, n_groups=1, chunk_size=8
    )
    all = {"mamba": MambaMixer(mamba, 0), "mamba2": Mamba2Mixer(mamba2, 0), "hydra": Hydra()}
    for layer in all.values():
        with torch.no_grad():
            for name, p in layer.named_parameters():
                p.copy_(0.4 * torch.randn_like(p) + (1.0 if name in ("D", "norm.weight") else 0.0))
    return all


def main():
    weights, expected = {}, {}
    torch.manual_seed(2)
    texts = [torch.randn(1, length, D) for length in LENGTHS]
    factors = [torch.randn(1, length, D) for length in LENGTHS]
    expected["u"] = torch.cat(texts, dim=1)[0]
    expected["factors"] = torch.cat(factors, dim=1)[0]
    for kind, layer in layers().items():
        inputs = [text.clone().requires_grad_() for text in texts]
        outs = [layer(text) for text in inputs]
        sum((out * f).sum() for out, f in zip(outs, factors)).backward()
        expected[f"{kind}.out"] = torch.cat(outs, dim=1)[0].detach()
        expected[f"{kind}.gradient.u"] = torch.cat([text.grad for text in inputs], dim=1)[0]
        for name, p in layer.named_parameters():
            weights[f"{kind}.{name}"] = p.detach().contiguous()
            expected[f"{kind}.gradient.{name}"] = p.grad.contiguous()
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file(weights, FOLDER / "model.safetensors")
    save_file({k: v.contiguous() for k, v in expected.items()}, FOLDER / "expected.safetensors")


if __name__ == "__main__":
    main()
