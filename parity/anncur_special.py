"""Writes the fixtures of ANNCUR's cross-encoders for crates/text: tiny random
checkpoints as PyTorch Lightning saves them, and what the authors' code gives.

    git clone https://github.com/iesl/anncur ANNCUR
    python parity/anncur_special.py ANNCUR [OUT]

OUT is crates/text/tests/fixtures-scorers unless given. The authors' model classes and
their preparation of texts (models/crossencoder.py, utils/data_process.py) are loaded
alone; the transformer inside is that of today's library.
"""

import json
import sys
import types
from pathlib import Path

import torch
import transformers

import text_encoders as te

LONGEST = 128
QUERIES = [
    ("", "the store", ""),
    ("a passage of ", "words", " in the store, of the query"),
    ("of the " * 90, "crash", " word" * 200),
    ("a", "query", " the word" * 120),
]
DOCUMENTS = [("Store", "the word of the store"), ("A crash!", "a query of words " * 60), ("x", "")]


class Empty(types.ModuleType):
    """A module that has everything, for what is imported and not needed."""

    __path__ = []

    def __getattr__(self, name):
        return type(name, (), {})


class OldBert(torch.nn.Module):
    """The order of arguments that the authors' library has."""

    def __init__(self, bert):
        super().__init__()
        self.bert = bert
        self.embeddings = bert.embeddings

    def forward(self, ids, segments, mask):
        out = self.bert(input_ids=ids, token_type_ids=segments, attention_mask=mask)
        return out.last_hidden_state, out.pooler_output


def authors(folder, tokenizer):
    """(models.crossencoder, utils.data_process)"""
    sys.path.insert(0, str(folder))
    for name in [
        "IPython", "pytorch_transformers", "pytorch_transformers.modeling_bert",
        "pytorch_transformers.tokenization_bert", "pytorch_transformers.optimization",
        "pytorch_lightning", "eval", "eval.eval_utils", "models.nearest_nbr", "utils.optimizer",
        "sklearn", "sklearn.feature_extraction", "sklearn.feature_extraction.text", "tqdm", "faiss",
        "wandb",
    ]:  # fmt: skip
        sys.modules[name] = Empty(name)
    from_library = types.SimpleNamespace(from_pretrained=lambda *_, **__: tokenizer)
    sys.modules["pytorch_transformers.tokenization_bert"].BertTokenizer = from_library
    sys.modules["pytorch_lightning"].LightningModule = torch.nn.Module
    import models.crossencoder as crossencoder
    import utils.data_process as data_process

    crossencoder.BertTokenizer = from_library
    return crossencoder, data_process


def pairs(prepare, tokenizer):
    for left, mention, right in QUERIES:
        sample = {"mention": mention, "context_left": left, "context_right": right}
        query = prepare.get_context_representation(sample, tokenizer, LONGEST)["ids"]
        for title, text in DOCUMENTS:
            document = prepare.get_candidate_representation(text, tokenizer, LONGEST, title)["ids"]
            yield torch.tensor(prepare.create_input_label_pair(query, document))


def main():
    folder = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else te.ROOT / "crates/text/tests/fixtures-scorers"
    tokenizer = te.wordpiece(punctuation=[*te.string.punctuation, "[unused2]"], types=True)
    crossencoder, prepare = authors(folder, tokenizer)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=te.HIDDEN, num_hidden_layers=1,
        num_attention_heads=te.HEADS, intermediate_size=te.INNER, max_position_embeddings=256,
        pad_token_id=0,
    )  # fmt: skip
    for name, seed in [("anncur-emb", 11), ("anncur-cls", 12)]:
        bert = te.randomise(transformers.BertModel(config), seed, torch.float16)
        if name == "anncur-emb":
            wrapper = crossencoder.CrossBertWEmbedsWrapper(OldBert(bert), "emb")
        else:
            wrapper = crossencoder.CrossBertWrapper(OldBert(bert), "cls_w_lin")
        te.randomise(wrapper, seed, torch.float16)
        (out / name).mkdir(parents=True, exist_ok=True)
        state = {f"model.encoder.bert_model.{k}": v.half() for k, v in bert.state_dict().items()}
        if name == "anncur-cls":
            for part in ["weight", "bias"]:
                value = getattr(wrapper.additional_linear, part).data
                state[f"model.encoder.additional_linear.{part}"] = value.half()
        # As the training program writes it.
        more = {"epoch": 3, "hyper_parameters": {"config": None}, "callbacks": {}}
        torch.save({"state_dict": state, **more}, out / name / "best.ckpt")
        config.to_json_file(out / name / "config.json")
        tokenizer.save_pretrained(out / name)
        scores = []
        with torch.no_grad():
            for ids in pairs(prepare, tokenizer):
                inputs = crossencoder.to_cross_bert_input(ids[None], 0, LONGEST)
                scores.append(float(f"{wrapper.eval()(*inputs).item():.7g}"))
        expected = {
            "queries": [f"{a}[unused0]{b}[unused1]{c}" if a or c else b for a, b, c in QUERIES],
            "documents": [f"{a}\n{b}" for a, b in DOCUMENTS],
            "scores": scores,
        }
        (out / name / "expected.json").write_text(json.dumps(expected))
        print(name, scores)


if __name__ == "__main__":
    main()
