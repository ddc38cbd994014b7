"""Writes the fixtures of ColBERTer: tiny random checkpoints in the authors' layout,
and what the authors' code gives for a few texts.

    python parity/colberter.py COLBERTER [OUT]

COLBERTER is a checkout of github.com/sebastian-hofstaetter/colberter (Apache-2.0);
OUT is crates/text/tests/fixtures-colberter unless given. See parity/README.md for
the versions of the libraries (and `pip install nltk==3.10.4`). Weights are random
with fixed seeds; nothing is downloaded.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import text_encoders as te

sys.path.insert(0, sys.argv[1])
import colberter as authors
from bow2_tokenizer import BOW2Tokenizer

OUT = te.ROOT / "crates/text/tests/fixtures-colberter"
POSITIONS = 96
REPEATS = [
    "Flows over flowing wings: the flow, THE flows and the wing's flow!",
    "\u00c9tude caf\u00e9 \u0130stanbul \u1e9e stra\u00dfe; e-mail 3.14 don't (a) \u2026 \u4f60\u597d the",
]
QUERIES = [te.QUERIES[0], te.QUERIES[3], te.QUERIES[5], "the flow of the flow"]
DOCUMENTS = te.DOCUMENTS[:8] + REPEATS + te.DOCUMENTS[8:]


def config(base, **fields):
    cfg = authors.ColBERTerConfig()
    named = {
        "bert_model": base,
        "compression_dim": 8,
        "retrieval_compression_dim": 20,
        "use_contextualized_stopwords": True,
        "aggregate_unique_ids": True,
        "compress_to_exact_mini_mode": False,
        "second_compress_dim": -1,
        "dropout": 0.0,
        "return_vecs": True,
        "dual_loss": True,
        "trainable": True,
    } | fields
    for name, value in named.items():
        setattr(cfg, name, value)
    return cfg, named


def batch(tokenizer, texts):
    """Texts as the authors' library pads them: all arrays with 0."""
    parts = [tokenizer.tokenize(t, max_length=POSITIONS) for t in texts]
    keys = ["input_ids", "attention_mask"]
    if tokenizer.add_unique_ids:
        keys += ["unique_words", "input_ids_to_words_map"]
    pad = torch.nn.utils.rnn.pad_sequence
    return {k: pad([p[k][0] for p in parts], batch_first=True) for k in keys}


def numbers(rows):
    return [[float(f"{x:.7g}") for x in row] for row in rows.tolist()]


def expected(model, tokenizer):
    """Vectors in both ways of encoding, gates, and the scores of all pairs."""
    queries, documents = batch(tokenizer, QUERIES), batch(tokenizer, DOCUMENTS)
    out = {"query": [], "document": [], "pairs": []}
    for side, tokens, n in [("query", queries, len(QUERIES)), ("document", documents, len(DOCUMENTS))]:
        short = {"query": "query", "document": "doc"}[side]
        # Kept words are only known from the mask of the second.
        whole, rows, mask, gates = model.forward_representation(tokens, f"{short}_encode_internal")
        _, _, kept, *_ = model.forward_representation(tokens, f"{short}_encode")
        ids = tokens["unique_words" if model.aggregate_unique_ids else "input_ids"]
        for i in range(n):
            m = mask[i]
            text = {"whole": numbers(whole[i : i + 1])[0], "ids": ids[i][m].tolist()}
            text |= {"words": numbers(rows[i][m]), "kept": kept[i][m].tolist()}
            if gates is not None:
                text["gates"] = numbers(gates[i][m].T)[0]
            out[side].append(text)
    for q in range(len(QUERIES)):
        for d in range(len(DOCUMENTS)):
            pair = [{k: v[i : i + 1] for k, v in t.items()} for t, i in [(queries, q), (documents, d)]]
            total, secondary = model.forward(*pair, use_fp16=False, output_secondary_output=True)
            pieces = secondary["score_per_term"][0].clone()
            unit = "unique_words" if model.aggregate_unique_ids else "attention_mask"
            pieces = pieces[pair[0][unit][0] > 0][:, pair[1][unit][0] > 0]
            pair = {"total": float(f"{float(total[0]):.7g}")}
            if model.aggregate_unique_ids:
                pair["products"] = numbers(pieces)
            out["pairs"].append(pair)
    return out


def fixture(name, seed, binary, whole_words=True, **fields):
    tokenizer = te.wordpiece()
    tokenizer.model_max_length = POSITIONS
    folder = OUT / name
    with tempfile.TemporaryDirectory() as base:
        te.randomise(te.distilbert(tokenizer, POSITIONS), seed, torch.float32).save_pretrained(base)
        cfg, named = config(base, aggregate_unique_ids=whole_words, **fields)
        model = authors.ColBERTer(cfg)
        te.randomise(model, seed + 1, torch.float32)
        with torch.no_grad():
            model.score_merger.fill_(0.4)
            if fields.get("use_contextualized_stopwords", True):
                model.stop_word_reducer.weight.mul_(3)
        (folder / "base").mkdir(parents=True)
        shutil.copy(Path(base) / "config.json", folder / "base/config.json")
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    if binary:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    named |= {"bert_model": "base", "model_type": "ColBERT", "architectures": ["ColBERTer"]}
    (folder / "config.json").write_text(json.dumps(named, indent=1))
    tokenizer.save_pretrained(folder / "base")
    with torch.no_grad():
        out = expected(model, BOW2Tokenizer(tokenizer, add_unique_ids=whole_words))
    (folder / "expected.json").write_text(json.dumps(out))
    words = [len(t["ids"]) for t in out["document"]]
    print(f"{name}: {words}, {sum(sum(t['kept']) for t in out['document'])} kept")


def word_ids(texts, tokenizer=None):
    """The words of texts with their ids, in lower case and stemmed, as strings of
    ids; and the ids of the words of all tokens."""
    tokenizer = tokenizer or te.wordpiece()
    all = []
    for text in texts:
        entry = {"text": text}
        for how in ["lower", "stemmed"]:
            bow2 = BOW2Tokenizer(tokenizer, uniqueness_type=how)
            tokens = bow2.tokenize(text, max_length=POSITIONS)
            entry[how] = tokens["unique_words"][0].tolist()
            entry[how + "_tokens"] = tokens["input_ids_to_words_map"][0].tolist()
        all.append(entry)
    return all


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    texts = {"query": QUERIES, "document": DOCUMENTS}
    (OUT / "texts.json").write_text(json.dumps(texts, ensure_ascii=False))
    fixture("colberter", 11, binary=True)
    fixture("uni", 13, binary=False, second_compress_dim=1, compress_to_exact_mini_mode=True)
    fixture(
        "tokens", 15, binary=True, whole_words=False, use_contextualized_stopwords=False,
        second_compress_dim=4, compress_to_exact_mini_mode=True,
    )  # fmt: skip
    (OUT / "ids.json").write_text(json.dumps(word_ids(QUERIES + DOCUMENTS), ensure_ascii=False))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        OUT = Path(sys.argv[2])
    main()
