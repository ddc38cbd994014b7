"""Writes the fixtures of crates/text for models that weigh terms and for
cross-encoders: tiny random checkpoints, and what the reference libraries give.

    python parity/scorers.py [OUT]

OUT is crates/text/tests/fixtures-scorers unless given. See parity/README.md for
the versions of the libraries. Weights are random with fixed seeds; nothing is
downloaded.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from sentence_transformers import CrossEncoder, SparseEncoder
from sentence_transformers.sparse_encoder.models import MLMTransformer, SpladePooling

import text_encoders as te

OUT = te.ROOT / "crates/text/tests/fixtures-scorers"
QUERIES, DOCUMENTS = te.QUERIES, te.DOCUMENTS


def config(kind, tokenizer, positions, **more):
    if kind is transformers.DistilBertConfig:
        return kind(
            vocab_size=len(tokenizer), dim=te.HIDDEN, n_layers=2, n_heads=te.HEADS,
            hidden_dim=te.INNER, max_position_embeddings=positions,
            pad_token_id=tokenizer.pad_token_id, **more,
        )  # fmt: skip
    return kind(
        vocab_size=len(tokenizer), hidden_size=te.HIDDEN, num_hidden_layers=2,
        num_attention_heads=te.HEADS, intermediate_size=te.INNER,
        max_position_embeddings=positions, pad_token_id=tokenizer.pad_token_id, **more,
    )  # fmt: skip


def save(name, model, tokenizer, seed, longest):
    te.randomise(model, seed, torch.float16)
    tokenizer.model_max_length = longest
    te.save_backbone(OUT / name, model, tokenizer, torch.float16)


def write(name, **expected):
    (OUT / name / "expected.json").write_text(json.dumps(expected))
    for junk in ["README.md", "generation_config.json"]:
        (OUT / name / junk).unlink(missing_ok=True)
    print(name)


def pairs_of(rows):
    """(term, weight) above 0, weights to 7 digits."""
    return [[[int(t), float(f"{w:.7g}")] for t, w in enumerate(row) if w > 0] for row in rows]


def splade(name, model, tokenizer, seed, longest, strategy):
    """Queries and documents through sentence-transformers' SparseEncoder."""
    save(name, model, tokenizer, seed, longest)
    folder = str(OUT / name)
    modules = [MLMTransformer(folder), SpladePooling(pooling_strategy=strategy)]
    encoder = SparseEncoder(modules=modules, device="cpu")
    # Single precision on both sides.
    encoder[0].auto_model.float()
    texts = {"query": QUERIES, "document": DOCUMENTS}
    options = {"convert_to_sparse_tensor": False, "batch_size": 3, "show_progress_bar": False}
    expected = {s: pairs_of(encoder.encode(t, **options).tolist()) for s, t in texts.items()}
    shutil.rmtree(OUT / name)
    encoder[0].auto_model.half()
    encoder.save(folder, create_model_card=False)
    write(name, **expected)


class Unicoil(torch.nn.Module):
    """relu(w h_i + b) for every token: the published model's forward pass."""

    def __init__(self, bert):
        super().__init__()
        self.bert = bert
        self.tok_proj = torch.nn.Linear(te.HIDDEN, 1)

    def forward(self, ids):
        states = self.bert(input_ids=ids[None]).last_hidden_state
        return torch.relu(self.tok_proj(states))[0, :, 0]


def unicoil(name, tokenizer, seed):
    model = te.randomise(Unicoil(te.bert(tokenizer)), seed, torch.float32)
    te.save_backbone(OUT / name, model.bert, tokenizer)
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    te.save_file(tensors, OUT / name / "model.safetensors", metadata={"format": "pt"})

    def weigh(text, longest, together):
        ids = tokenizer(text, truncation=True, max_length=longest)["input_ids"]
        with torch.no_grad():
            weights = model(torch.tensor(ids)).tolist()
        terms = {}
        for term, weight in list(zip(ids, weights))[1:]:
            terms[term] = together(terms[term], weight) if term in terms else weight
        return [[t, round(w / 5 * 256)] for t, w in sorted(terms.items()) if round(w / 5 * 256) > 0]

    write(
        name,
        query=[weigh(t, 128, lambda a, b: a + b) for t in QUERIES],
        document=[weigh(t, 192, max) for t in DOCUMENTS],
    )


def cross_encoder(name, model, tokenizer, seed, longest):
    save(name, model, tokenizer, seed, longest)
    model = CrossEncoder(
        str(OUT / name), device="cpu", model_kwargs=te.SINGLE, activation_fn=torch.nn.Identity()
    )
    pairs = [[q, d] for q in QUERIES for d in DOCUMENTS]
    scores = torch.as_tensor(model.predict(pairs, batch_size=5, show_progress_bar=False))
    if scores.ndim == 2:
        scores = scores[:, 1] - scores[:, 0]
    write(name, scores=[float(f"{s:.7g}") for s in scores.tolist()])


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    (OUT / "texts.json").write_text(
        json.dumps({"query": QUERIES, "document": DOCUMENTS}, ensure_ascii=False)
    )
    bert, roberta = transformers.BertConfig, transformers.RobertaConfig
    distil, mpnet = transformers.DistilBertConfig, transformers.MPNetConfig

    t = te.wordpiece(types=True)
    splade("splade-bert", transformers.BertForMaskedLM(config(bert, t, 192)), t, 1, 192, "max")
    t = te.wordpiece()
    model = transformers.DistilBertForMaskedLM(config(distil, t, 64))
    splade("splade-distilbert-sum", model, t, 2, 48, "sum")
    t = te.bytes_bpe()
    model = transformers.RobertaForMaskedLM(config(roberta, t, 66, type_vocab_size=1))
    splade("splade-roberta", model, t, 3, 64, "max")
    unicoil("unicoil", te.wordpiece(types=True), 4)

    # Longest pairs of an even number of tokens besides the special ones: which text
    # keeps the odd one differs between versions of the tokenizers library.
    t = te.wordpiece(types=True)
    model = transformers.BertForSequenceClassification(config(bert, t, 97, num_labels=1))
    cross_encoder("cross-bert", model, t, 5, 97)
    t = te.wordpiece()
    model = transformers.DistilBertForSequenceClassification(config(distil, t, 65, num_labels=2))
    cross_encoder("cross-distilbert-two", model, t, 6, 65)
    t = te.bytes_bpe()
    shape = config(roberta, t, 130, type_vocab_size=1, num_labels=1)
    cross_encoder("cross-roberta", transformers.RobertaForSequenceClassification(shape), t, 7, 128)
    t = te.wordpiece(first="<s>", last="</s>")
    model = transformers.MPNetForSequenceClassification(config(mpnet, t, 67, num_labels=1))
    cross_encoder("cross-mpnet", model, t, 8, 65)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        OUT = Path(sys.argv[1])
    main()
