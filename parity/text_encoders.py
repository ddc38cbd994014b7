"""Writes the fixtures of crates/text: tiny random models in the published
layouts, and the rows that the reference libraries give for a few texts.

    python parity/text_encoders.py [OUT]

OUT is crates/text/tests/fixtures unless given. See parity/README.md for the
versions of the libraries. Weights are random with fixed seeds; nothing is
downloaded.
"""

import json
import os
import shutil
import string
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch
import transformers
from pylate import models as pylate
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers import models as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/text/tests/fixtures"
HIDDEN = 32
HEADS = 4
INNER = 48
# Half-precision weights are computed with in single precision.
SINGLE = {"dtype": torch.float32}

QUERIES = [
    "What does a reader see while someone writes?",
    "",
    "passage",
    "Unknown: \u4f60\u597d \u2603 caf\u00e9, na\u00efve; e-mail?! ...",
    "  blanks at both ends\t\n",
    "a query that is longer than most because it asks for many things at once: the store, "
    "the index, the words, the vectors, the passages and the files of the folder, twice or thrice",
]
DOCUMENTS = [
    "The store is written as whole files; a crash leaves the old one.",
    "",
    "Short.",
    "...!?",
    "Unknown characters: \u4f60\u597d \u2603 \U0001f600 and caf\u00e9 (na\u00efve).",
    "Mixed CASE, hyphen-ated words, don't_split_this, 12345 and \"quotes\".",
    "\n Blanks \u00a0 around\tand inside \r\n",
    # Special tokens as words, at the ends too.
    "[SEP] </s> <pad> the [MASK] <mask> [CLS] <s> store [PAD] </s> [SEP]",
    # Longer than every document_length here.
    " ".join(f"word{i % 7} of passage {i % 13}," for i in range(220)),
]
CORPUS = QUERIES + DOCUMENTS[:-1] + ["word passage store index vector file folder"] * 3


# -- tokenizers -------------------------------------------------------------


def fast(tokenizer, **special):
    names = special.pop("inputs", ["input_ids", "attention_mask"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=names, **special
    )


def wordpiece(punctuation=string.punctuation, types=False, first="[CLS]", last="[SEP]"):
    """Lower-casing word pieces; letters, a few words, and the given punctuation."""
    letters = string.ascii_lowercase + string.digits
    words = ["store", "crash", "passage", "the", "word", "query", "of", "a"]
    vocab = ["[PAD]", "[UNK]", first, last, "[MASK]", "[unused0]", "[unused1]"]
    vocab += list(punctuation) + list(letters) + ["##" + c for c in letters] + words + ["##s"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(vocab))}
    t = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    t.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, vocab[first]), (last, vocab[last])],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return fast(
        t,
        inputs=inputs if types else inputs[::2],
        unk_token="[UNK]",
        cls_token=first,
        sep_token=last,
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


def bytes_bpe(first="<s>", pad="<pad>", last="</s>", unk="<unk>", mask="<mask>"):
    """Byte-level pairs with a few merges, as RoBERTa and ModernBERT have them."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[first, pad, last, unk, mask],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator(CORPUS, trainer)
    if first == "<s>":
        t.post_processor = processors.RobertaProcessing(
            (last, t.token_to_id(last)), (first, t.token_to_id(first)), add_prefix_space=False
        )
    else:
        t.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B {last}",
            special_tokens=[(first, t.token_to_id(first)), (last, t.token_to_id(last))],
        )
    return fast(
        t, bos_token=first, cls_token=first, pad_token=pad, eos_token=last, sep_token=last,
        unk_token=unk, mask_token=mask,
    )  # fmt: skip


def unigram(t5):
    """Sentence pieces with scores, as XLM-RoBERTa and T5 have them."""
    special = ["<pad>", "</s>", "<unk>"] if t5 else ["<s>", "<pad>", "</s>", "<unk>"]
    letters = string.ascii_letters + string.digits + ".,:;!?-"
    words = ["store", "crash", "passage", "word", "the", "of", "query"]
    pieces = [(token, 0.0) for token in special]
    pieces += [("\u2581" + w, -3.0 - i / 10) for i, w in enumerate(words)]
    pieces += [("\u2581", -4.0)] + [(c, -6.0 - i / 100) for i, c in enumerate(letters)]
    if not t5:
        pieces.append(("<mask>", 0.0))
    ids = {token: i for i, (token, _) in enumerate(pieces)}
    t = Tokenizer(models.Unigram(pieces, unk_id=ids["<unk>"]))
    t.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(" {2,}", " ")]
    )
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    t.decoder = decoders.Metaspace()
    named = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    if t5:
        t.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", ids["</s>"])]
        )
    else:
        t.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> </s> $B </s>",
            special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])],
        )
        named |= {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    return fast(t, **named)


# -- backbones --------------------------------------------------------------


def randomise(model, seed, dtype):
    """Random weights large enough that every part of the model shows in the
    result, rounded to the type they are saved in."""
    generator = torch.Generator().manual_seed(seed)
    # For layers that the libraries add on loading (a pooler that nobody reads).
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            norm = "norm" in name.lower() and name.endswith("weight")
            scale = 0.2 if p.ndim > 1 else 0.1
            value = torch.randn(p.shape, generator=generator) * scale + (1.0 if norm else 0.0)
            p.copy_(value.to(dtype).float())
    return model.eval()


def bert(tokenizer, positions=192, **more):
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=2,
            num_attention_heads=HEADS, intermediate_size=INNER,
            max_position_embeddings=positions, pad_token_id=tokenizer.pad_token_id, **more,
        ),
        add_pooling_layer=False,
    )  # fmt: skip


def distilbert(tokenizer, positions=192):
    return transformers.DistilBertModel(
        transformers.DistilBertConfig(
            vocab_size=len(tokenizer), dim=HIDDEN, n_layers=2, n_heads=HEADS, hidden_dim=INNER,
            max_position_embeddings=positions,
        )
    )  # fmt: skip


def roberta(tokenizer, xlm=False, positions=66):
    kind = transformers.XLMRobertaConfig if xlm else transformers.RobertaConfig
    config = kind(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=2,
        num_attention_heads=HEADS, intermediate_size=INNER, max_position_embeddings=positions,
        type_vocab_size=1, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        layer_norm_eps=1e-5,
    )  # fmt: skip
    model = transformers.XLMRobertaModel if xlm else transformers.RobertaModel
    return model(config, add_pooling_layer=False)


def mpnet(tokenizer, positions=130):
    return transformers.MPNetModel(
        transformers.MPNetConfig(
            vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=2,
            num_attention_heads=HEADS, intermediate_size=INNER,
            max_position_embeddings=positions, layer_norm_eps=1e-5,
        ),
        add_pooling_layer=False,
    )  # fmt: skip


def modernbert(tokenizer):
    return transformers.ModernBertModel(
        transformers.ModernBertConfig(
            vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=3,
            num_attention_heads=HEADS, intermediate_size=INNER, max_position_embeddings=256,
            global_attn_every_n_layers=2, local_attention=8,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id, reference_compile=False,
        )
    )  # fmt: skip


def t5(tokenizer, gated):
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(tokenizer) + 3, d_model=HIDDEN, d_kv=6, d_ff=INNER, num_layers=2,
            num_heads=HEADS, feed_forward_proj="gated-gelu" if gated else "relu",
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip


def save_backbone(folder, model, tokenizer, dtype=torch.float32):
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)


def to_bin(folder, old=False):
    """Replaces model.safetensors with pytorch_model.bin."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    # A transposed matrix, as checkpoints sometimes hold, and a parameter.
    for i, name in enumerate(sorted(tensors)):
        if tensors[name].ndim == 2 and i % 3 == 0:
            tensors[name] = tensors[name].t().contiguous().t()
        elif i % 3 == 1 and tensors[name].is_floating_point():
            tensors[name] = torch.nn.Parameter(tensors[name])
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
    file.unlink()


def shard(folder):
    """Splits model.safetensors in two, with an index."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    halves = names[::2], names[1::2]
    weight_map = {}
    for i, half in enumerate(halves, 1):
        part = f"model-{i:05}-of-00002.safetensors"
        save_file({n: tensors[n] for n in half}, folder / part, metadata={"format": "pt"})
        weight_map |= {n: part for n in half}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    file.unlink()


def rename_keys(folder, rename):
    file = folder / "model.safetensors"
    tensors = {rename(k): v for k, v in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


# -- expected rows ----------------------------------------------------------


def edit_json(file, **fields):
    data = json.loads(file.read_text()) if file.exists() else {}
    data |= fields
    for key in [k for k, v in data.items() if v is ...]:
        del data[key]
    file.write_text(json.dumps(data, indent=1))


def expect(name, queries, documents):
    """Writes the rows; a text without rows gets none."""
    tensors = {}
    for side, texts in [("query", queries), ("document", documents)]:
        for i, rows in enumerate(texts):
            rows = torch.as_tensor(np.array(rows), dtype=torch.float32)
            tensors[f"{side}.{i}"] = torch.atleast_2d(rows).contiguous()
    save_file(tensors, OUT / name / "expected.safetensors")
    for junk in ["README.md", "training_args.bin", "generation_config.json"]:
        (OUT / name / junk).unlink(missing_ok=True)
    rows = {s: [len(tensors[f"{s}.{i}"]) for i in range(len(t))]
            for s, t in [("query", queries), ("document", documents)]}  # fmt: skip
    print(f"{name}: {rows}")


def expect_sentence(name):
    model = SentenceTransformer(str(OUT / name), device="cpu", model_kwargs=SINGLE).eval()
    options = {"normalize_embeddings": True, "batch_size": 3, "show_progress_bar": False}
    expect(
        name,
        model.encode_query(QUERIES, **options),
        model.encode_document(DOCUMENTS, **options),
    )


def expect_pylate(name):
    model = pylate.ColBERT(str(OUT / name), device="cpu", model_kwargs=SINGLE).eval()
    options = {"batch_size": 3, "show_progress_bar": False}
    expect(
        name,
        model.encode(QUERIES, is_query=True, **options),
        model.encode(DOCUMENTS, is_query=False, **options),
    )


# -- sentence-transformers --------------------------------------------------


def sentence(name, tokenizer, backbone, modules, seed, dtype=torch.float32, **transformer):
    """A sentence-transformers folder; `modules` follow the transformer."""
    folder = OUT / name
    randomise(backbone, seed, dtype)
    save_backbone(folder, backbone, tokenizer)
    model = SentenceTransformer(
        modules=[st.Transformer(str(folder), **transformer), *modules], device="cpu"
    )
    for i, module in enumerate(modules):
        randomise(module, seed + 100 + i, torch.float32)
    shutil.rmtree(folder)
    model[0].auto_model.to(dtype)
    model.save(str(folder), create_model_card=False)
    return folder


def pooling(**modes):
    off = {"pooling_mode_mean_tokens": False}
    return st.Pooling(HIDDEN, **{**off, **modes})


def sentence_fixtures():
    # The usual case: BERT, mean, normalised.
    t = wordpiece(types=True)
    modules = [pooling(pooling_mode_mean_tokens=True), st.Normalize()]
    sentence("st-bert-mean", t, bert(t, positions=64), modules, 1, max_seq_length=48)
    expect_sentence("st-bert-mean")

    # First token, linear head with tanh, half precision.
    t = wordpiece()
    modules = [pooling(pooling_mode_cls_token=True), st.Dense(HIDDEN, 24), st.Normalize()]
    sentence("st-distilbert-cls-dense", t, distilbert(t, 64), modules, 2, torch.float16)
    expect_sentence("st-distilbert-cls-dense")

    # Two poolings side by side, prompts, bfloat16. The longest text reaches the
    # end of the position table.
    t = bytes_bpe()
    modules = [pooling(pooling_mode_max_tokens=True, pooling_mode_mean_tokens=True)]
    folder = sentence(
        "st-roberta-max-mean", t, roberta(t), modules, 3, torch.bfloat16, max_seq_length=64
    )
    edit_json(
        folder / "config_sentence_transformers.json",
        prompts={"query": "query: ", "document": "passage: "},
    )
    expect_sentence("st-roberta-max-mean")

    # The rarer poolings, lower-casing outside of the tokenizer, shards.
    t = unigram(t5=False)
    modules = [
        pooling(
            pooling_mode_mean_sqrt_len_tokens=True,
            pooling_mode_weightedmean_tokens=True,
            pooling_mode_lasttoken=True,
        )
    ]
    folder = sentence(
        "st-xlmr-rare", t, roberta(t, xlm=True), modules, 4, torch.float16,
        max_seq_length=40, do_lower_case=True,
    )  # fmt: skip
    expect_sentence("st-xlmr-rare")
    shard(folder)

    # The prompt's tokens are left out of the mean. Long enough for the far buckets
    # of the distance bias.
    t = wordpiece(first="<s>", last="</s>")
    modules = [pooling(pooling_mode_mean_tokens=True, include_prompt=False), st.Normalize()]
    folder = sentence(
        "st-mpnet-prompt", t, mpnet(t), modules, 5, torch.float16, max_seq_length=126
    )
    edit_json(
        folder / "config_sentence_transformers.json",
        prompts={"query": "the query: ", "document": ""},
    )
    expect_sentence("st-mpnet-prompt")

    # A bare transformer without modules.json.
    t = bytes_bpe("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
    model = randomise(modernbert(t), 6, torch.float16)
    save_backbone(OUT / "bare-modernbert", model, t, torch.float16)
    expect_sentence("bare-modernbert")

    # The layout of sentence-t5, T5 1.0, weights in pytorch_model.bin.
    t = unigram(t5=True)
    modules = [
        pooling(pooling_mode_mean_tokens=True),
        st.Dense(HIDDEN, 20, bias=False, activation_function=torch.nn.Identity()),
        st.Normalize(),
    ]
    folder = sentence("st-t5-bin", t, t5(t, gated=False), modules, 7, torch.float16, max_seq_length=200)
    expect_sentence("st-t5-bin")
    to_bin(folder)
    to_bin(folder / "2_Dense", old=True)


# -- late interaction -------------------------------------------------------


def colbert(name, tokenizer, backbone, heads, seed, dtype=torch.float16, **options):
    folder = OUT / name
    randomise(backbone, seed, dtype)
    save_backbone(folder, backbone, tokenizer)
    model = pylate.ColBERT(
        modules=[st.Transformer(str(folder)), *heads], device="cpu", **options
    )
    randomise(model[0].auto_model, seed, dtype)
    for i, head in enumerate(heads):
        randomise(head, seed + 100 + i, torch.float32)
    shutil.rmtree(folder)
    model[0].auto_model.to(dtype)
    model.save(str(folder), create_model_card=False)
    return folder


def late_fixtures():
    # All defaults.
    t = wordpiece(types=True)
    heads = [pylate.Dense(HIDDEN, 16, bias=False)]
    colbert("pylate-bert", t, bert(t), heads, 11)
    expect_pylate("pylate-bert")

    # Fields missing from the configuration, the head as sentence-transformers
    # writes it, and a vocabulary without some punctuation: every [UNK] of a
    # document is then left out.
    t = wordpiece(punctuation=".,?")
    heads = [pylate.Dense(HIDDEN, 16, bias=False)]
    folder = colbert("pylate-missing-fields", t, distilbert(t), heads, 12)
    edit_json(
        folder / "config_sentence_transformers.json",
        query_prefix=..., document_prefix=..., query_length=..., document_length=...,
        attend_to_expansion_tokens=..., do_query_expansion=..., skiplist_words=...,
        similarity_fn_name=..., prompts=..., default_prompt_name=..., model_type=...,
    )  # fmt: skip
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    edit_json(folder / "1_Dense/config.json", use_residual=...)
    expect_pylate("pylate-missing-fields")

    # Expansion tokens that are seen, own markers and lengths, a chain of heads
    # with bias, GELU and both kinds of residual, own words to skip.
    t = bytes_bpe()
    heads = [
        pylate.Dense(HIDDEN, 40, bias=True, activation_function=torch.nn.GELU(), use_residual=True),
        pylate.Dense(40, 40, bias=True, activation_function=torch.nn.ReLU(), use_residual=True),
        pylate.Dense(40, 16, bias=False),
    ]
    colbert(
        "pylate-roberta-attend", t, roberta(t), heads, 13, torch.bfloat16,
        query_prefix="[QueryMarker]", document_prefix="[DocumentMarker]",
        query_length=24, document_length=40, attend_to_expansion_tokens=True,
        skiplist_words=[".", ",", "\u0120the", "not-a-token"],
    )  # fmt: skip
    expect_pylate("pylate-roberta-attend")

    # ModernBERT as newer configurations have it: no expansion; a default prompt.
    t = bytes_bpe("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
    heads = [pylate.Dense(HIDDEN, 16, bias=False)]
    folder = colbert(
        "pylate-modernbert", t, modernbert(t), heads, 14,
        do_query_expansion=False, attend_to_expansion_tokens=True, document_length=100,
    )  # fmt: skip
    edit_json(
        folder / "config_sentence_transformers.json",
        prompts={"retrieval": "search: "}, default_prompt_name="retrieval",
    )  # fmt: skip
    expect_pylate("pylate-modernbert")

    # Expansion that is not seen, in layers with a window; no document marker.
    heads = [pylate.Dense(HIDDEN, 16, bias=False)]
    folder = colbert(
        "pylate-modernbert-expand", t, modernbert(t), heads, 15, query_length=20,
        document_length=30, document_prefix="", do_query_expansion=True, skiplist_words=[],
    )  # fmt: skip
    expect_pylate("pylate-modernbert-expand")

    stanford()
    xtr()


def stanford():
    """The layout of colbertv2.0, with what early files have: pytorch_model.bin
    in the old format, gamma and beta, an MLM head, no marker names."""
    name = "stanford-bert"
    folder = OUT / name
    t = wordpiece(types=True)
    model = randomise(bert(t, positions=80), 21, torch.float16)
    save_backbone(folder, model, t)
    edit_json(folder / "config.json", architectures=["HF_ColBERT"])
    linear = torch.randn(16, HIDDEN, generator=torch.Generator().manual_seed(22)) * 0.2
    tensors = {f"bert.{k}": v for k, v in load_file(folder / "model.safetensors").items()}
    tensors |= {"linear.weight": linear, "cls.predictions.bias": torch.zeros(len(t))}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    metadata = {"query_maxlen": 20, "doc_maxlen": 60, "dim": 16, "nbits": 2, "similarity": "cosine",
                "attend_to_mask_tokens": False, "mask_punctuation": True}  # fmt: skip
    (folder / "artifact.metadata").write_text(json.dumps(metadata))
    expect_pylate(name)
    rename_keys(
        folder,
        lambda k: k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ),
    )
    to_bin(folder, old=True)


def xtr():
    """The layout of google/xtr-base-en, computed as its authors do."""
    name = "xtr-t5"
    folder = OUT / name
    t = unigram(t5=True)
    model = randomise(t5(t, gated=True), 31, torch.float16)
    save_backbone(folder, model, t, torch.float16)
    edit_json(folder / "config.json", architectures=["T5ForConditionalGeneration"])
    linear = torch.randn(16, HIDDEN, generator=torch.Generator().manual_seed(32)) * 0.2
    (folder / "2_Dense").mkdir()
    torch.save({"linear.weight": linear}, folder / "2_Dense/pytorch_model.bin")
    edit_json(
        folder / "2_Dense/config.json", in_features=HIDDEN, out_features=16, bias=False,
        activation_function="torch.nn.modules.linear.Identity",
    )  # fmt: skip

    def encode(texts, length):
        inputs = t(
            [s.strip().lower() for s in texts], return_tensors="pt", padding="max_length",
            truncation=True, max_length=length,
        )  # fmt: skip
        with torch.no_grad():
            rows = model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
        mask = inputs["input_ids"] != 0
        rows = torch.nn.functional.normalize(rows @ linear.T * mask.unsqueeze(2), dim=2)
        # The zero vectors of padding are left out.
        return [r[m].numpy() for r, m in zip(rows, mask)]

    expect(name, encode(QUERIES, 32), encode(DOCUMENTS, 512))


def main():
    global OUT
    if len(sys.argv) > 1:
        OUT = Path(sys.argv[1]).resolve()
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    texts = {"query": QUERIES, "document": DOCUMENTS}
    (OUT / "texts.json").write_text(json.dumps(texts, indent=1))
    sentence_fixtures()
    late_fixtures()
    size = sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file())
    print(f"{size / 1e6:.2f} MB in {OUT}")


if __name__ == "__main__":
    main()
