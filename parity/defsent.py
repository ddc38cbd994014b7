"""Writes the fixtures of DefSent+ for crates/text: tiny random encoders with a dictionary,
the vectors of its entries, logits, loss, gradients and the weights after one step, all as
the authors' programs compute them; and the sources that scikit-learn's FastICA finds.

    python parity/defsent.py [OUT]

OUT is crates/text/tests/fixtures-defsent unless given (`pip install scikit-learn==1.9.1`).
The authors take AdamW from an old transformers; torch's with the same settings stands for it
(they differ by where epsilon is added, below 1e-5 here).
"""

import json
import shutil
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.decomposition import FastICA
from transformers import BertConfig, BertModel, RobertaConfig, RobertaForMaskedLM

import text_encoders as te

HIDDEN, LAYERS, HEADS, INNER, POSITIONS = 8, 2, 2, 12, 64
LEARNING_RATE = 1e-3
DICTIONARY = [
    ("store", ["the words of a passage", "a crash of the store, twice"]),
    ("cold war", ["a query without an answer"]),
    ("crash", ["the store of words", "of the", "a passage that is much longer than the others"]),
]
BATCH = [(0, 1), (1, 0), (2, 2), (2, 0)]


def encoders():
    common = dict(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=POSITIONS,
        attn_implementation="eager",
    )
    tokenizer = te.wordpiece(types=True)
    yield "bert", tokenizer, BertModel(BertConfig(vocab_size=len(tokenizer), **common))
    tokenizer = te.bytes_bpe()
    config = RobertaConfig(
        vocab_size=len(tokenizer), type_vocab_size=1, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, **common,
    )  # fmt: skip
    yield "roberta", tokenizer, RobertaForMaskedLM(config)


def mean(states, mask):
    wide = mask.unsqueeze(-1).float()
    return (states * wide).sum(1) / wide.sum(1).clamp(min=1e-9)


def write(name, tokenizer, model, out):
    generator = torch.Generator().manual_seed(3)
    model.eval()
    for parameter in model.parameters():
        # Large enough that each part of the model shows in the result.
        parameter.data.normal_(0, 0.3, generator=generator)
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if name == "roberta":
        dense, activation = model.lm_head.dense, torch.nn.GELU()
        prefix, encoder = "lm_head.dense", model.roberta
    else:
        dense, activation = model.pooler.dense, torch.tanh
        prefix, encoder = "pooler.dense", model

    def read(texts):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        return inputs, encoder(**inputs).last_hidden_state

    written = {}
    with torch.no_grad():
        rows = {"ac": [], "amp": []}
        for _, definitions in DICTIONARY:
            inputs, states = read(definitions)
            rows["ac"].append(states[:, 0].mean(0))
            rows["amp"].append(mean(states, inputs["attention_mask"]).mean(0))
        written |= {key: torch.stack(value) for key, value in rows.items()}
        mask = tokenizer.mask_token
        prompts = [f'This sentence : "{d}" means {mask} . ' for _, ds in DICTIONARY for d in ds]
        inputs, states = read(prompts)
        written["prompt"] = states[inputs["input_ids"] == tokenizer.mask_token_id]
    texts = [DICTIONARY[entry][1][definition] for entry, definition in BATCH]
    targets = torch.tensor([entry for entry, _ in BATCH])
    # Of the texts alone, so that nothing is padded in front of the mean.
    for pool in ["cls", "mean"]:
        parameters = dict(encoder.named_parameters())
        parameters |= {"pooler.dense.weight": dense.weight, "pooler.dense.bias": dense.bias}
        if name == "roberta":
            parameters = {k: p for k, p in parameters.items() if not k.startswith("lm_head")}
        inputs, states = read(texts)
        pooled = states[:, 0] if pool == "cls" else mean(states, inputs["attention_mask"])
        logits = activation(dense(pooled)) @ written["ac"].T
        loss = torch.nn.functional.cross_entropy(logits, targets)
        model.zero_grad()
        loss.backward()
        written |= {f"{pool}.logits": logits.detach(), f"{pool}.loss": loss.detach().view(1)}
        # A weight without gradient there has one of 0 here.
        for key, p in parameters.items():
            gradient = torch.zeros_like(p) if p.grad is None else p.grad
            written[f"{pool}.gradient.{key}"] = gradient.clone()
        if pool == "mean":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=LEARNING_RATE, eps=1e-6, weight_decay=0.0
            )
            optimizer.step()
            written |= {f"step.{k}": p.detach().clone() for k, p in parameters.items()}
    written = {k: v.contiguous() for k, v in written.items()}
    save_file(written, folder / "expected.safetensors")


def fast_ica(out):
    generator = np.random.default_rng(4)
    rows, dim = 400, 5
    sources = np.stack(
        [
            generator.uniform(-1, 1, rows),
            generator.laplace(size=rows),
            np.sign(generator.normal(size=rows)) + 0.2 * generator.normal(size=rows),
            generator.exponential(size=rows),
            generator.uniform(-1, 1, rows) ** 3,
        ],
        axis=1,
    )
    vectors = sources @ generator.normal(size=(dim, dim)) + 2.0
    first = generator.normal(size=(dim, dim))
    ica = FastICA(
        n_components=dim, whiten="unit-variance", fun="logcosh", tol=1e-4, max_iter=1000,
        w_init=first,
    )  # fmt: skip
    found = ica.fit_transform(vectors)
    short = lambda x: [float(f"{v:.7g}") for v in x.ravel()]
    fixture = {"dim": dim, "vectors": short(vectors), "first": short(first), "sources": short(found)}
    (out / "fast_ica.json").write_text(json.dumps(fixture) + "\n")


def main():
    out = te.ROOT / "crates/text/tests/fixtures-defsent"
    if len(sys.argv) > 1:
        out = te.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    lines = [f"{words}\t{'<|list_more_def|>'.join(ds)}\n" for words, ds in DICTIONARY]
    (out / "dictionary.tsv").write_text("".join(lines))
    for name, tokenizer, model in encoders():
        write(name, tokenizer, model, out)
    fast_ica(out)


if __name__ == "__main__":
    main()
