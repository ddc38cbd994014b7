#!/usr/bin/env python3
"""Losses and gradients of trainings, as small PyTorch graphs.

    parity/training_losses.py crates/text/tests/fixtures-training/losses.json

CRISP: given rows of queries and documents and the cluster of each row, means of
clusters, Chamfer similarity over the query's clusters, softmax over documents.
ColBERTer: given hidden states, the word of each token, and all heads, the four losses.
"""

import json
import sys

import torch

torch.manual_seed(3)


def lists(tensor):
    return [round(x, 8) for x in tensor.detach().flatten().tolist()]


def means(rows, groups):
    count = max(groups) + 1
    picked = [[i for i, g in enumerate(groups) if g == k] for k in range(count)]
    return torch.stack([rows[p].mean(0) for p in picked])


def chamfer(queries, documents):
    return torch.stack(
        [torch.stack([(q @ d.T).max(1).values.sum() for d in documents]) for q in queries]
    )


def crisp():
    dim, temperature = 5, 0.05
    groups = {
        "queries": [[0, 1, 0], [0, 0, 1, 1, 1], [0]],
        "documents": [[0, 1, 1, 0, 2], [0, 1], [1, 0, 1, 0, 0, 0], [0, 0]],
    }
    rows = {
        side: [
            torch.nn.functional.normalize(torch.randn(len(g), dim), dim=1).requires_grad_()
            for g in all_
        ]
        for side, all_ in groups.items()
    }
    queries = [means(r, g) for r, g in zip(rows["queries"], groups["queries"])]
    documents = [means(r, g) for r, g in zip(rows["documents"], groups["documents"])]
    counts = torch.tensor([len(q) for q in queries])[:, None]
    logits = chamfer(queries, documents) / counts / temperature
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(3))
    loss.backward()
    return {
        "dim": dim,
        "temperature": temperature,
        "groups": groups,
        "rows": {side: [lists(r) for r in all_] for side, all_ in rows.items()},
        "loss": loss.item(),
        "gradients": {side: [lists(r.grad) for r in all_] for side, all_ in rows.items()},
    }


def colberter(exact):
    hidden, token, whole, second = 6, 4, 3, 2
    n = 2
    words = {
        "queries": [([None, 0, 1, 0, None], [7, 8]), ([None, 0, 1, 2, None], [9, 7, 5])],
        "documents": [
            ([None, 0, 0, 1, None], [7, 3]),
            ([None, 0, 1, None], [9, 5]),
            ([None, 0, 1, 2, 1, None], [8, 4, 7]),
            ([None, 0, None], [1]),
        ],
    }
    states = {
        side: [torch.randn(len(of), hidden).requires_grad_() for of, _ in all_]
        for side, all_ in words.items()
    }
    heads = {
        "compressor_retrieval": torch.nn.Linear(hidden, whole),
        "compressor": torch.nn.Linear(hidden, token),
        "stop_word_reducer": torch.nn.Linear(token, 1),
        "mini_compressor": torch.nn.Linear(token, second),
    }
    torch.nn.init.ones_(heads["stop_word_reducer"].bias)
    merger = torch.tensor([0.3], requires_grad=True)
    teacher = torch.randn(n, 2 * n) * 2
    weights = {"pair": 1.0, "cls": 0.7, "in_batch": 0.2, "sparsity": 0.01}

    def encode(side):
        vectors, bags, gates = [], [], []
        for h, (of, ids) in zip(states[side], words[side]):
            vectors.append(heads["compressor_retrieval"](h[0]))
            t = heads["compressor"](h)
            a = torch.stack(
                [t[[i for i, w in enumerate(of) if w == k]].mean(0) for k in range(len(ids))]
            )
            if side == "documents":
                g = torch.relu(heads["stop_word_reducer"](a))
                gates.append(g)
                a = a * g
            bags.append(heads["mini_compressor"](a))
        return torch.stack(vectors), bags, gates

    vq, bq, _ = encode("queries")
    vd, bd, gates = encode("documents")
    whole_scores = vq @ vd.T
    rows = []
    for q, (_, qi) in zip(bq, words["queries"]):
        row = []
        for d, (_, di) in zip(bd, words["documents"]):
            p = q @ d.T
            if exact:
                same = torch.tensor(qi)[:, None] == torch.tensor(di)[None]
                p = torch.where(same, p, torch.zeros(()))
            row.append(p.max(1).values.sum())
        rows.append(torch.stack(row))
    share = torch.sigmoid(merger)
    total = share * whole_scores + (1 - share) * torch.stack(rows)
    margin = lambda s: s[:, :n].diagonal() - s[:, n:].diagonal()
    parts = {
        "cls": torch.nn.functional.mse_loss(margin(whole_scores), margin(teacher)),
        "in_batch": torch.nn.functional.kl_div(
            torch.log_softmax(whole_scores, 1), torch.softmax(teacher, 1), reduction="batchmean"
        ),
        "pair": torch.nn.functional.mse_loss(margin(total), margin(teacher)),
        "sparsity": torch.cat(gates).mean(),
    }
    loss = sum(weights[name] * part for name, part in parts.items())
    loss.backward()
    parameters = {f"{k}.{n_}": p for k, h in heads.items() for n_, p in h.named_parameters()}
    parameters["score_merger"] = merger
    return {
        "exact": exact,
        "sizes": {"hidden": hidden, "token": token, "whole": whole, "second": second},
        "words": {s: [{"of": of, "ids": ids} for of, ids in all_] for s, all_ in words.items()},
        "states": {s: [lists(h) for h in all_] for s, all_ in states.items()},
        "parameters": {k: lists(p) for k, p in parameters.items()},
        "teacher": lists(teacher),
        "weights": weights,
        "parts": {k: p.item() for k, p in parts.items()},
        "loss": loss.item(),
        "gradients": {k: lists(p.grad) for k, p in parameters.items()},
        "state_gradients": {s: [lists(h.grad) for h in all_] for s, all_ in states.items()},
    }


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], "w") as out:
        json.dump({"crisp": crisp(), "colberter": [colberter(False), colberter(True)]}, out)


main()
