"""Writes crates/sequence/tests/fixtures/hax.json: which keys the released HAX lets each position look at,
what it reads of them, and the loss by which it learns to rank keys, all with fixed hashes and scores.

    venv/bin/python parity/hax.py

The released module (DeepGraphLearning/HAX, src/modeling_enhanced_mamba2.py) needs a GPU; here its masks
are built once more, dense, from what it says.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F

OUT = Path(__file__).parent.parent / "crates/sequence/tests/fixtures/hax.json"
LENGTH, N, WIDTH, BITS, KEYS = 50, 8, 5, 3, 8


def hashed(q, k, hashes, earlier, most):
    """The last `most` earlier keys whose signs are those of the query; vectors centred over the
    sequence, each number divided by its length over the sequence."""

    def signs(x):
        x = x - x.mean(0, keepdim=True)
        return F.normalize(x, dim=0) @ hashes > 0

    same = (signs(q)[:, None, :] == signs(k)[None, :, :]).all(-1) & earlier
    later = same.flip(1).cumsum(1).flip(1)
    return same & (later <= most)


def best(scores, earlier, most):
    mask = torch.zeros_like(earlier)
    for t in range(len(scores)):
        mask[t, scores[: t + 1].topk(min(most, t + 1)).indices] = True
    return mask


def read(q, k, v, mask):
    scores = (q @ k.T).masked_fill(~mask, torch.finfo(torch.float32).min)
    return torch.softmax(scores, dim=-1) @ v


def main():
    torch.manual_seed(5)
    q, k = torch.randn(LENGTH, N), torch.randn(LENGTH, N) / N**0.5
    v, hashes, scores = torch.randn(LENGTH, WIDTH), torch.randn(N, BITS), torch.randn(LENGTH)
    earlier = torch.tril(torch.ones(LENGTH, LENGTH, dtype=torch.bool))
    lsh, chosen = hashed(q, k, hashes, earlier, KEYS), best(scores, earlier, KEYS)
    both = hashed(q, k, hashes, earlier, KEYS // 2) | best(scores, earlier, KEYS // 2)
    out = {"q": q, "k": k, "v": v, "hashes": hashes, "scores": scores}
    for name, mask in [("sign_bin_lsh", lsh), ("key_selection", chosen), ("both", both)]:
        out[f"keys_{name}"] = [mask[t].nonzero().flatten().tolist() for t in range(LENGTH)]
        out[f"out_{name}"] = read(q, k, v, mask)
    sums = F.normalize(q.cumsum(0), dim=0)
    out["score_inputs"] = torch.cat([k, sums], dim=-1)
    asked = torch.sigmoid(q @ k.T).masked_fill(~earlier, 0).sum(0)
    target = ((asked[:, None] > asked).float() + (asked[:, None] >= asked).float()) / 2
    pairs = scores[:, None] - scores
    out["importances"] = asked
    out["ranking_loss"] = F.binary_cross_entropy_with_logits(pairs, target).reshape(1)
    plain = {name: x if isinstance(x, list) else x.flatten().tolist() for name, x in out.items()}
    short = json.loads(json.dumps(plain), parse_float=lambda x: float(f"{float(x):.9g}"))
    OUT.write_text(json.dumps(short) + "\n")


if __name__ == "__main__":
    main()
