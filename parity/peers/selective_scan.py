"""Times the scan of Mamba in PyTorch for `keyfold bench selective-scan --peer`.

    pip install torch==2.10.0
    keyfold bench selective-scan --peer "pytorch=python parity/peers/selective_scan.py"

Called as `selective_scan.py selective-scan REQUEST -`. REQUEST is JSON: `length`, `channels`,
`states`, `threads` and `runs`. The scan is the reference of its authors' library: decays and
what is written are made for all tokens at once, then one token follows the other. Prints the
version and the milliseconds of every run, as JSON.
"""

import json
import sys
import time
from pathlib import Path

import torch


def scan(x, dt, a, b, c, d):
    """x, dt [channels, L], a [channels, states], b, c [states, L], d [channels]."""
    decay = torch.exp(torch.einsum("dl,dn->dln", dt, a))
    written = torch.einsum("dl,nl,dl->dln", dt, b, x)
    state = torch.zeros_like(a)
    rows = []
    for t in range(x.shape[1]):
        state = decay[:, t] * state + written[:, t]
        rows.append(state @ c[:, t])
    return torch.stack(rows, dim=1) + x * d[:, None]


def main():
    request = json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(request["threads"])
    torch.manual_seed(1)
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
    name = f"PyTorch {torch.__version__}"
    print(json.dumps({"name": name, "forward_ms": forward, "backward_ms": backward}))


if __name__ == "__main__":
    main()
