"""Losses and gradients of binary paragraph vectors and disambiguated skip-gram.

Both are written here as small PyTorch graphs, with given parameters, words, words
that did not occur and noise; PyTorch differentiates them in double precision.
"""

import json
from pathlib import Path

import torch

OUT = Path(__file__).parent.parent / "crates/text/tests/fixtures-words"
torch.set_default_dtype(torch.float64)


def numbers(*shape, scale=1.0, generator):
    # Rounded, so that single precision holds what is written.
    return (torch.randn(*shape, generator=generator) * scale).to(torch.float32).double()


def losses(kind, scores, own, negatives, targets):
    """Sum over targets; scores of drawn words are `[targets, drawn]`, some masked."""
    keep = negatives != targets[:, None]
    if kind == "sampled_softmax":
        masked = scores.masked_fill(~keep, float("-inf"))
        return (torch.logsumexp(torch.cat([own[:, None], masked], 1), 1) - own).sum()
    soft = torch.nn.functional.softplus
    return soft(-own).sum() + (soft(scores) * keep).sum()


def predict(case, hidden, weights, bias):
    """The loss of targets, each with its row of hidden vectors."""
    rows, targets = torch.tensor(case["rows"]), torch.tensor(case["targets"])
    negatives = torch.tensor(case["negatives"])
    own = (hidden[rows] * weights[targets]).sum(1) + bias[targets]
    if case["own"]:
        negatives = negatives.view(len(targets), -1)
        scores = torch.einsum("td,tnd->tn", hidden[rows], weights[negatives]) + bias[negatives]
    else:
        scores = hidden[rows] @ weights[negatives].T + bias[negatives]
        negatives = negatives.expand(len(targets), -1)
        if case["loss"] != "negative_sampling":
            own = own - torch.tensor(case["expected_targets"])
            scores = scores - torch.tensor(case["expected_negatives"])
    return losses(case["loss"], scores, own, negatives, targets)


def words(case, generator, rows, count):
    """Targets of rows, and words that did not occur; some are targets as well."""
    draw = lambda n, top: torch.randint(0, top, (n,), generator=generator).tolist()
    case["rows"] = sorted(draw(count, rows))
    case["targets"] = draw(count, WORDS)
    if case["own"]:
        case["negatives"] = draw(3 * count, WORDS)
    else:
        case["negatives"] = sorted(torch.randperm(WORDS, generator=generator)[:5].tolist())
        case["expected_targets"] = numbers(count, generator=generator).tolist()
        case["expected_negatives"] = numbers(5, generator=generator).tolist()


WORDS, BITS, REAL, WINDOW, DOCUMENTS = 11, 8, 6, 2, 4


def paragraph_vector(name, seed, loss="sampled_softmax", code="rounded", real=0, context=None, own=False):
    g = torch.Generator().manual_seed(seed)
    case = {"name": name, "loss": loss, "code": code, "real_dim": real, "context": context, "own": own}
    rows = 5 if context else DOCUMENTS
    documents = numbers(DOCUMENTS, real or BITS, scale=0.7, generator=g).requires_grad_()
    width = BITS * (1 + 2 * WINDOW) if context == "concatenation" else BITS
    weights = numbers(WORDS, width, scale=0.5, generator=g).requires_grad_()
    bias = numbers(WORDS, scale=0.5, generator=g).requires_grad_()
    projection = numbers(BITS, real or 1, scale=0.5, generator=g).requires_grad_()
    around = numbers(WORDS, BITS, scale=0.5, generator=g).requires_grad_()
    if context:
        # A hidden vector for each target.
        words(case, g, rows, rows)
        case["rows"] = list(range(rows))
        of = sorted(torch.randint(0, DOCUMENTS, (rows,), generator=g).tolist())
        case["around"] = torch.randint(-1, WORDS, (rows, 2 * WINDOW), generator=g).tolist()
    else:
        words(case, g, rows, 7)
        of = list(range(DOCUMENTS))
    case["documents_of_rows"] = of

    sums = documents @ projection.T if real else documents
    soft = torch.sigmoid(sums)
    if code == "rounded":
        hidden = torch.round(soft).detach() + soft - soft.detach()
    else:
        hidden = soft if code == "sigmoid" else sums
    hidden = hidden[torch.tensor(of)]
    if context:
        near = torch.tensor(case["around"])
        vectors = around[near.clamp(min=0)] * (near >= 0)[..., None]
        if context == "sum":
            hidden = hidden + vectors.sum(1)
        else:
            hidden = torch.cat([hidden, vectors.flatten(1)], 1)
    total = predict(case, hidden, weights, bias)
    total.backward()
    case["result"] = total.item()
    case["codes"] = (sums > 0).int().tolist()
    tensors = {"documents": documents, "weights": weights, "bias": bias}
    if real:
        tensors["projection"] = projection
    if context:
        tensors["around_vectors"] = around
    case["tensors"] = {k: t.detach().flatten().tolist() for k, t in tensors.items()}
    case["gradients"] = {k: t.grad.flatten().tolist() for k, t in tensors.items()}
    return case


def sense_skipgram(name, seed, entropy=None, temperature=None, shared=False):
    senses, dim, centres = 3, 6, [4, 2, 4, 7]
    g = torch.Generator().manual_seed(seed)
    case = {"name": name, "loss": "sampled_softmax", "own": False, "entropy": entropy, "temperature": temperature}
    case.update(senses=senses, dim=dim, window=WINDOW, centres=centres, shared=shared)
    vectors = numbers(WORDS, senses, dim, scale=0.5, generator=g).requires_grad_()
    weights = numbers(WORDS, dim, scale=0.7, generator=g).requires_grad_()
    bias = numbers(WORDS, scale=0.5, generator=g).requires_grad_()
    classifiers = 1 if shared else WORDS
    classifier = numbers(classifiers, senses, dim, scale=0.7, generator=g).requires_grad_()
    classifier_bias = numbers(classifiers, senses, scale=0.5, generator=g).requires_grad_()
    noise = -(-torch.rand(len(centres), senses, generator=g).log()).log()
    noise = noise.to(torch.float32).double()
    around = torch.randint(0, WORDS, (len(centres), 2 * WINDOW), generator=g)
    around[0, :2] = 0  # unknown words, which make up the context but are not predicted
    case["around"] = around.tolist()
    case["noise"] = noise.flatten().tolist()
    words(case, g, 1, 1)
    predicted = [(row, w) for row, near in enumerate(case["around"]) for w in near if w > 0]
    case["rows"], case["targets"] = map(list, zip(*predicted))
    case["expected_targets"] = numbers(len(predicted), generator=g).tolist()

    context = weights[around].mean(1).detach()
    slots = torch.tensor([0] * len(centres) if shared else centres)
    logits = torch.einsum("nkd,nd->nk", classifier[slots], context) + classifier_bias[slots]
    if temperature is None:
        share = torch.softmax(logits, 1)
    else:
        share = torch.softmax((logits + noise) / temperature, 1)
    hidden = torch.einsum("nk,nkd->nd", share, vectors[torch.tensor(centres)])
    total = predict(case, hidden, weights, bias) / len(predicted)
    if entropy is not None:
        total = total + entropy * -(share * (share + 1e-5).log()).sum(1).mean()
    total.backward()
    case["result"] = total.item()
    tensors = {
        "senses": vectors,
        "weights": weights,
        "bias": bias,
        "classifier": classifier,
        "classifier_bias": classifier_bias,
    }
    case["tensors"] = {k: t.detach().flatten().tolist() for k, t in tensors.items()}
    case["gradients"] = {k: t.grad.flatten().tolist() for k, t in tensors.items()}
    return case


def write(name, cases):
    rounded = lambda x: round(x, 9) if isinstance(x, float) else x
    text = json.dumps(cases, default=str)
    text = json.dumps(json.loads(text, parse_float=lambda s: rounded(float(s))))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text(text.replace('{"name"', '\n{"name"') + "\n")


write(
    "paragraph_vector.json",
    [
        paragraph_vector("codes", 1),
        paragraph_vector("noise contrastive", 2, loss="nce"),
        paragraph_vector("negative sampling", 3, loss="negative_sampling"),
        paragraph_vector("own negatives", 4, loss="negative_sampling", own=True),
        paragraph_vector("not rounded", 5, code="sigmoid"),
        paragraph_vector("real", 6, code="real"),
        paragraph_vector("real-binary", 7, real=REAL),
        paragraph_vector("memory, sum", 8, context="sum"),
        paragraph_vector("memory, concatenation", 9, context="concatenation"),
        paragraph_vector("real-binary memory", 10, real=REAL, context="sum"),
    ],
)
write(
    "sense_skipgram.json",
    [
        sense_skipgram("first stage", 11, entropy=-0.1, shared=True),
        sense_skipgram("second stage", 12, temperature=0.7),
        sense_skipgram("second stage, cold", 13, temperature=0.5),
    ],
)
