"""Logits and beams of pointer networks (crates/sequence/tests/fixtures/pointer.json), hulls and
triangles (crates/inspect/tests/fixtures/route.json).

    python parity/pointer.py

PyTorch's nn.LSTM and the formula u = v tanh(W1 e + W2 d), with the layout of the replication
gchaperon/pointer-networks; a padded batch of 3, 5 and 9 points. Hulls and triangles are those of
scipy. Needs torch and scipy.
"""

import json
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import ConvexHull, Delaunay
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
H, WIDTH, LOWEST = 12, 3, -1e30


class Pointer(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(2, H), nn.LSTM(2, H)
        self.attention = nn.Module()
        for name, shape in [("W1", (H, H)), ("W2", (H, H)), ("v", (H,))]:
            self.attention.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.start_symbol = nn.Parameter(torch.empty(2))
        self.end_symbol = nn.Parameter(torch.empty(H))
        self.encoder_c_0 = nn.Parameter(torch.empty(H))

    def encode(self, points, lengths):
        """points [longest, batch, 2] -> keys [longest + 1, batch, H], last state."""
        batch = points.shape[1]
        first = (self.end_symbol.repeat(1, batch, 1), self.encoder_c_0.repeat(1, batch, 1))
        packed = nn.utils.rnn.pack_padded_sequence(points, lengths, enforce_sorted=False)
        out, last = self.encoder(packed, first)
        out, _ = nn.utils.rnn.pad_packed_sequence(out)
        return torch.cat([self.end_symbol.repeat(1, batch, 1), out]), last

    def scores(self, keys, out, lengths):
        """out [steps, batch, H] -> [steps, batch, longest + 1]."""
        sums = (keys @ self.attention.W1)[None] + (out @ self.attention.W2)[:, None]
        u = (torch.tanh(sums) @ self.attention.v).transpose(1, 2)
        beyond = torch.arange(keys.shape[0])[None, :] > torch.tensor(lengths)[:, None]
        return u.masked_fill(beyond[None], -torch.inf)


def allowed(task, n, answer):
    """Which of 0..n may follow, by the rules that the replication and the issue state."""
    every = set(range(1, n + 1))
    if task == "tour":
        if len(answer) < n:
            return every - set(answer)
        return {answer[0]} if len(answer) == n else {0}
    if task == "hull":
        if len(answer) > 1 and answer[0] == answer[-1] or len(answer) > n:
            return {0}
        rest = every - set(answer)
        return rest | {0, answer[0]} if len(answer) >= 3 else rest
    if len(answer) >= 3 * max(2 * n - 5, 1):
        return {0}
    at = len(answer) % 3
    if at == 0:
        return set(range(1, n - 1)) | ({0} if answer else set())
    return set(range(answer[-1] + 1, n + at - 1))


@torch.no_grad()
def beam(model, points, task):
    n = points.shape[0]
    keys, (h, c) = model.encode(points[:, None], [n])
    beams = [([], 0.0, (h, c), False)]
    while not all(b[3] for b in beams):
        found = [b for b in beams if b[3]]
        for answer, score, state, ended in beams:
            if ended:
                continue
            x = points[answer[-1] - 1] if answer else model.start_symbol
            out, state = model.decoder(x[None, None], state)
            u = model.scores(keys, out, [n])[0, 0]
            may = allowed(task, n, answer)
            u = torch.tensor([x if j in may else LOWEST for j, x in enumerate(u.tolist())])
            for j, log_p in enumerate(torch.log_softmax(u.double(), 0).tolist()):
                if j in may:
                    found.append((answer + [j] if j else answer, score + log_p, state, j == 0))
        beams = sorted(found, key=lambda b: -b[1])[:WIDTH]
    return beams[0][:2]


def shapes(path):
    """Hulls counter-clockwise from the corner that stands first, and triangles."""
    rng = np.random.default_rng(4)
    cases = []
    for n in [3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 40]:
        points = rng.random((n, 2))
        hull = ConvexHull(points)
        corners = hull.vertices.tolist()
        first = corners.index(min(corners))
        triangles = sorted(sorted(t) for t in Delaunay(points).simplices.tolist())
        cases.append({
            "points": points.tolist(),
            "hull": corners[first:] + corners[:first],
            "area": hull.volume,
            "triangles": triangles,
        })
    path.write_text(json.dumps(cases))


def networks(path):
    torch.manual_seed(5)
    model = Pointer()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.6, 0.6)
    lengths = [3, 5, 9]
    problems = [torch.rand(n, 2) for n in lengths]
    targets = [[2, 1, 3, 2], [4, 1], [1, 9, 3, 5, 7, 2, 1]]
    keys, last = model.encode(nn.utils.rnn.pad_sequence(problems), lengths)
    inputs = [torch.cat([model.start_symbol[None], p[torch.tensor(t) - 1]]) for p, t in zip(problems, targets)]
    out, _ = model.decoder(nn.utils.rnn.pad_sequence(inputs), last)
    logits = model.scores(keys, out, lengths)
    cases = []
    for i, (points, target) in enumerate(zip(problems, targets)):
        for task in [["tour", "hull"], ["delaunay", "hull"], ["tour", "delaunay"]][i]:
            answer, score = beam(model, points, task)
            cases.append({
                "task": task,
                "points": points.flatten().tolist(),
                "target": target,
                "logits": logits[: len(target) + 1, i, : lengths[i] + 1].flatten().tolist(),
                "answer": answer,
                "log_probability": score,
            })
    tensors = {name: p.flatten().tolist() for name, p in model.state_dict().items()}
    path.write_text(json.dumps({"hidden_size": H, "tensors": tensors, "cases": cases}))


if __name__ == "__main__":
    networks(ROOT / "crates/sequence/tests/fixtures/pointer.json")
    shapes(ROOT / "crates/inspect/tests/fixtures/route.json")
