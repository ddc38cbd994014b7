"""Times Mamba in PyTorch for `keyfold bench selective-scan --peer`.

    pip install torch==2.10.0
    keyfold bench selective-scan --peer "pytorch=python parity/peers/selective_scan.py"

Called as `selective_scan.py TASK REQUEST -` with JSON in the file REQUEST; the head of the
experiment says what it holds and what is printed. Everything is written from the papers'
equations (Gu and Dao 2023, Mamba; Dao and Gu 2024, Transformers are SSMs), in the form in which
the authors give it for machines without their kernels:

- `selective-scan`: decays and what is written are made for all tokens at once, then one token
  follows the other. Gradients are PyTorch's own.
- `mamba2-block`: a training step of a block of Mamba-2 with the chunked form of its scan.
- `mamba-decode`: tokens one after the other through layers of Mamba with random weights.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional


def scan(x, dt, a, b, c, d):
    """x, dt [channels, L], a [channels, states], b, c [states, L], d [channels]."""
    decay = torch.exp(torch.einsum("dl,dn->dln", dt, a))
    written = torch.einsum("dl,nl,dl->dln", dt, b, x)
    state = torch.zeros_like(a)
    rows = []
    # Cut once: an index for each token would clear a gradient of all tokens for each.
    for decay, written, c in zip(decay.unbind(1), written.unbind(1), c.unbind(1)):
        state = decay * state + written
        rows.append(state @ c)
    return torch.stack(rows, dim=1) + x * d[:, None]


def selective_scan(request):
    length, channels, states = request["length"], request["channels"], request["states"]
    x = torch.randn(channels, length)
    dt = 0.001 + 0.1 * torch.rand(channels, length)
    a = -torch.arange(1, states + 1).float().repeat(channels, 1)
    b, c, d = torch.randn(states, length), torch.randn(states, length), torch.ones(channels)
    forward, backward = [], []
    for _ in range(request["runs"]):
        with torch.no_grad():
            start = time.perf_counter()
            scan(x, dt, a, b, c, d)
            forward.append(1e3 * (time.perf_counter() - start))
    inputs = [z.clone().requires_grad_() for z in (x, dt, a, b, c, d)]
    loss = scan(*inputs).sum()
    start = time.perf_counter()
    loss.backward()
    backward.append(1e3 * (time.perf_counter() - start))
    return {"forward_ms": forward, "backward_ms": backward}


def between(logs):
    """exp of the sum of logs after j up to i for i >= j, else 0; [.., q] to [.., q, q]."""
    sums = logs.cumsum(-1)
    later = torch.ones(logs.shape[-1], logs.shape[-1], dtype=torch.bool).tril()
    # Masked before the exponential, which would overflow above the diagonal.
    return (sums[..., :, None] - sums[..., None, :]).masked_fill(~later, -torch.inf).exp()


def ssd(x, dt, a, b, c, chunk):
    """The scan of Mamba-2 in chunks, from a state of zeros.

    x [texts, L, heads, width], dt [texts, L, heads], a [heads], b and c [texts, L, states]; L is
    a multiple of the chunk."""
    texts, length, heads, width = x.shape
    count = length // chunk
    written = (x * dt[..., None]).reshape(texts, count, chunk, heads, width)
    written = written.permute(0, 3, 1, 2, 4)
    logs = (dt * a).reshape(texts, count, chunk, heads).permute(0, 3, 1, 2)
    b, c = (z.reshape(texts, 1, count, chunk, -1) for z in (b, c))
    # What a chunk's own tokens give.
    y = ((c @ b.transpose(-1, -2)) * between(logs)) @ written
    # What each chunk leaves behind, and what all before a chunk have left.
    sums = logs.cumsum(-1)
    total = sums[..., -1]
    left = (written * (total[..., None] - sums).exp()[..., None]).transpose(-1, -2) @ b
    passed = between(functional.pad(total, (1, 0)))[..., :-1, 1:]
    before = (passed @ left.flatten(-2)).reshape(left.shape)
    y = y + sums.exp()[..., None] * (c @ before.transpose(-1, -2))
    return y.permute(0, 2, 3, 1, 4).reshape(texts, length, heads, width)


def check_ssd():
    """In chunks it is the recurrence."""
    texts, length, heads, width, states = 2, 12, 3, 4, 5
    x = torch.randn(texts, length, heads, width, dtype=torch.float64)
    dt = torch.rand(texts, length, heads, dtype=torch.float64)
    a = -torch.rand(heads, dtype=torch.float64)
    b, c = (torch.randn(texts, length, states, dtype=torch.float64) for _ in range(2))
    state = torch.zeros(texts, heads, width, states, dtype=torch.float64)
    rows = []
    for t in range(length):
        decay = (dt[:, t] * a).exp()[..., None, None]
        update = (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, None, None]
        state = decay * state + update
        rows.append((state * c[:, t, None, None]).sum(-1))
    torch.testing.assert_close(ssd(x, dt, a, b, c, 4), torch.stack(rows, 1), atol=1e-12, rtol=0)


class Mamba2(torch.nn.Module):
    """A block of Mamba-2 with one group."""

    def __init__(self, asked):
        super().__init__()
        model, states, width = asked["d_model"], asked["d_state"], asked["headdim"]
        inner = asked["expand"] * model
        heads = inner // width
        self.sizes = (inner, states, heads, width, asked["chunk"])
        convolved = inner + 2 * states
        self.in_proj = torch.nn.Linear(model, inner + convolved + heads, bias=False)
        taps = asked["d_conv"]
        self.conv1d = torch.nn.Conv1d(
            convolved, convolved, taps, groups=convolved, padding=taps - 1
        )
        self.dt_bias = torch.nn.Parameter(torch.full((heads,), -4.0))
        self.a_log = torch.nn.Parameter((1 + 15 * torch.rand(heads)).log())
        self.d = torch.nn.Parameter(torch.ones(heads))
        self.norm = torch.nn.Parameter(torch.ones(inner))
        self.out_proj = torch.nn.Linear(inner, model, bias=False)

    def forward(self, u):
        inner, states, heads, width, chunk = self.sizes
        length = u.shape[1]
        z, xbc, dt = self.in_proj(u).split([inner, inner + 2 * states, heads], -1)
        xbc = self.conv1d(xbc.transpose(1, 2))[..., :length].transpose(1, 2)
        x, b, c = functional.silu(xbc).split([inner, states, states], -1)
        x = x.unflatten(-1, (heads, width))
        dt = functional.softplus(dt + self.dt_bias)
        # A chunk that is not full is passed over at its end: no step, no writing.
        short = -length % chunk
        padded = [functional.pad(z, (0, 0) * (z.dim() - 2) + (0, short)) for z in (x, dt, b, c)]
        y = ssd(padded[0], padded[1], -self.a_log.exp(), padded[2], padded[3], chunk)
        y = (y[:, :length] + self.d[:, None] * x).flatten(-2)
        y = y * functional.silu(z)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5) * self.norm
        return self.out_proj(y)


def mamba2_block(request):
    check_ssd()
    block = Mamba2(request)
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-4)
    u = torch.randn(request["texts"], request["length"], request["d_model"])
    steps = []
    for _ in range(request["steps"]):
        times = [time.perf_counter()]
        loss = block(u).square().mean()
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
        steps.append([1e3 * (b - a) for a, b in zip(times, times[1:])])
    return {"steps": steps}


def mamba_decode(request):
    model, inner, states = request["d_model"], request["d_inner"], request["d_state"]
    rank, taps = request["dt_rank"], request["d_conv"]
    embedding = 0.02 * torch.randn(request["vocab_size"], model)
    norm = torch.ones(model)

    def matrix(outputs, inputs):
        return torch.randn(outputs, inputs) / inputs**0.5

    layers = [
        {
            "in": matrix(2 * inner, model),
            "conv": matrix(inner, taps),
            "conv_bias": torch.zeros(inner),
            "x": matrix(rank + 2 * states, inner),
            "dt": matrix(inner, rank),
            "dt_bias": torch.full((inner,), -4.0),
            "a": -torch.arange(1, states + 1).float().repeat(inner, 1),
            "d": torch.ones(inner),
            "out": 0.02 * matrix(model, inner),
            "window": torch.zeros(inner, taps),
            "state": torch.zeros(inner, states),
        }
        for _ in range(request["n_layer"])
    ]

    def normed(r):
        return r * torch.rsqrt(r.square().mean() + 1e-5) * norm

    def step(token):
        r = embedding[token]
        for layer in layers:
            x, z = (layer["in"] @ normed(r)).chunk(2)
            window = layer["window"]
            window.copy_(torch.cat([window[:, 1:], x[:, None]], 1))
            x = functional.silu((window * layer["conv"]).sum(1) + layer["conv_bias"])
            dt, b, c = (layer["x"] @ x).split([rank, states, states])
            dt = functional.softplus(torch.addmv(layer["dt_bias"], layer["dt"], dt))
            decay = (dt[:, None] * layer["a"]).exp()
            layer["state"].mul_(decay).add_((dt * x)[:, None] * b)
            y = layer["state"] @ c + layer["d"] * x
            r = r + layer["out"] @ (y * functional.silu(z))
        return embedding @ normed(r)

    with torch.no_grad():
        step(0)
        start = time.perf_counter()
        for token in range(request["tokens"]):
            step(token % 60)
        seconds = time.perf_counter() - start
    return {"tokens_per_second": request["tokens"] / seconds}


def main():
    tasks = {
        "selective-scan": selective_scan,
        "mamba2-block": mamba2_block,
        "mamba-decode": mamba_decode,
    }
    request = json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(request["threads"])
    torch.manual_seed(1)
    print(json.dumps({"name": f"PyTorch {torch.__version__}", **tasks[sys.argv[1]](request)}))


if __name__ == "__main__":
    main()
