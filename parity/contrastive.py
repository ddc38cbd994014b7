"""Contrastive search as the paper's formula says, with transformers' forward pass.

    python parity/contrastive.py

Writes crates/lm/tests/contrastive.json: for each model the tokens after the prompt
of its expected.safetensors, and the score, probability and penalty of each pick. Transformers
itself dropped contrastive search from its core, so the rule is written here in ten lines:

    argmax over the k likeliest v of (1 - alpha) p(v) - alpha max_j cos(h_v, h_j)

with the last hidden state after the final norm, everything computed anew for each token.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

FIXTURES = Path(__file__).resolve().parent.parent / "crates/lm/tests/fixtures"
K, ALPHA, STEPS = 5, 0.6, 40


@torch.no_grad()
def states(model, tokens):
    out = model(torch.tensor([tokens]), output_hidden_states=True)
    return out.hidden_states[-1][0], out.logits[0, -1]


def search(model, tokens):
    picks = []
    for _ in range(STEPS):
        hidden, logits = states(model, tokens)
        context = torch.nn.functional.normalize(hidden, dim=-1)
        probability, candidate = torch.softmax(logits, -1).topk(K)
        best = None
        for p, v in zip(probability.tolist(), candidate.tolist()):
            own = torch.nn.functional.normalize(states(model, tokens + [v])[0][-1], dim=-1)
            penalty = (context @ own).max().item()
            score = (1 - ALPHA) * p - ALPHA * penalty
            if best is None or score > best[0]:
                best = (score, p, penalty, v)
        picks.append(best)
        tokens = tokens + [best[3]]
    return picks


def main():
    found = {}
    for name in ["llama", "gpt2", "qwen3"]:
        folder = FIXTURES / name
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        prompt = load_file(folder / "expected.safetensors")["prompt"].tolist()
        picks = search(model, prompt)
        found[name] = {
            "tokens": [p[3] for p in picks],
            "scores": [round(p[0], 6) for p in picks],
            "probabilities": [round(p[1], 6) for p in picks],
            "penalties": [round(p[2], 6) for p in picks],
        }
    (FIXTURES.parent / "contrastive.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
