"""Writes the fixtures of crates/lm: tiny random decoders in the layouts that people
have (safetensors and GGUF), and what transformers computes with them.

    python parity/lm_checkpoints.py [OUT]

OUT is crates/lm/tests/fixtures unless given. See parity/README.md for the versions of
the libraries. Weights are random with fixed seeds; nothing is downloaded.

Every folder holds a checkpoint and expected.safetensors:

    prompt        [60] i32     token ids
    logits        [4, V] f32   of the last 4 positions of the prompt
    greedy        [20] i32     the ids that greedy decoding picks after the prompt
    greedy_logits [20, V] f32  the logits that each of them was picked from

Decoding keeps a cache, so with dynamic RoPE scaling the prompt is rotated with the
angles of its length, and every later token with those of its own. All numbers are
computed in single precision, whatever type the weights are stored in.
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, DynamicCache
from transformers import (
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/lm/tests/fixtures"
VOCAB = 260
SPECIAL = ["<|begin|>", "<|end|>", "<|turn|>", "<|pad|>"]  # ids 256 to 259
BOS, EOS, PAD = 256, 257, 259
PROMPT, STEPS = 60, 20
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    bos_token_id=BOS,
    eos_token_id=EOS,
    pad_token_id=PAD,
    initializer_range=0.3,
)
TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content | trim }}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


# -- models ------------------------------------------------------------------


def make(config, seed):
    """A model whose every weight is random, large enough to show in the logits."""
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or ".ln_" in name:
                if name.endswith("weight"):
                    weight.copy_(1 + 0.3 * torch.randn_like(weight))
                else:
                    weight.copy_(0.1 * torch.randn_like(weight))
            elif name.endswith("bias"):
                weight.copy_(0.2 * torch.randn_like(weight))
    return model


def rounded(model, dtype):
    """The same model with weights that `dtype` can hold."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype).float())
    return model


def prompt(seed):
    generator = torch.Generator().manual_seed(1000 + seed)
    ids = torch.randint(0, 256, (PROMPT,), generator=generator)
    ids[0] = BOS
    return ids


@torch.no_grad()
def expected(model, ids):
    cache = DynamicCache(config=model.config)
    out = model(ids[None], past_key_values=cache, use_cache=True).logits[0].float()
    logits, last = out[-4:], out[-1]
    greedy, greedy_logits = [], []
    for _ in range(STEPS):
        best = torch.topk(last, 2)
        margin = (best.values[0] - best.values[1]) / last.std()
        assert margin > 2e-3, f"two tokens are equally good (margin {margin}): take another seed"
        greedy.append(int(best.indices[0]))
        greedy_logits.append(last)
        step = torch.tensor([[greedy[-1]]])
        last = model(step, past_key_values=cache, use_cache=True).logits[0, -1].float()
    return {
        "prompt": ids.numpy().astype(np.int32),
        "logits": logits.numpy().copy(),
        "greedy": np.array(greedy, dtype=np.int32),
        "greedy_logits": torch.stack(greedy_logits).numpy(),
    }


def hugging_face(name, config, seed, dtype=torch.float32, shard=None):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model = rounded(make(config, seed), dtype)
    save_file(expected(model, prompt(seed)), ready(folder) / "expected.safetensors")
    model.to(dtype).save_pretrained(folder, max_shard_size=shard or "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)


def ready(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# -- GGUF --------------------------------------------------------------------


def permuted(weight, heads):
    """Rows of q and k in the order of GGUF's llama: the two halves of a head interleaved."""
    rows = weight.shape[0] // heads
    return weight.reshape(heads, 2, rows // 2, -1).swapaxes(1, 2).reshape(weight.shape)


LLAMA_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GPT2_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}


def gguf_name(name):
    stem, kind = name.rsplit(".", 1)
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{kind}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{(LLAMA_NAMES | GPT2_NAMES)[inner]}.{kind}"


def gguf_file(name, config, seed, arch, kind, vocabulary=None, rope=None):
    """A GGUF file, and what the model gives with the weights as the file holds them."""
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model = make(config, seed)
    writer = gguf.GGUFWriter(ready(folder) / "model.gguf", arch)
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 4 * config.hidden_size))
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", config.num_attention_heads))
    if arch == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_rope_dimension_count(head)
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_vocab_size(config.vocab_size)
    for key, value in (rope or {}).items():
        (writer.add_string if isinstance(value, str) else
         writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"{arch}.{key}", value)
    (vocabulary or bytes_vocabulary)(writer)
    if config.rope_parameters and config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config))

    tied = config.tie_word_embeddings
    with torch.no_grad():
        for tensor, weight in model.named_parameters():
            if tied and tensor == "lm_head.weight":
                continue
            array = weight.numpy().astype(np.float32)
            conv1d = arch == "gpt2" and any(s in tensor for s in (".c_attn.w", ".c_proj.w", ".c_fc.w"))
            array = array.T.copy() if conv1d else array
            narrow = array.ndim == 2 and "wpe" not in tensor
            stored_kind = kind if narrow else gguf.GGMLQuantizationType.F32
            # Quantised as the file has it: rows of q and k in the file's order, or not, are
            # the same blocks.
            data = gguf.quants.quantize(array, stored_kind)
            back = gguf.quants.dequantize(data, stored_kind).reshape(array.shape)
            weight.copy_(torch.from_numpy((back.T if conv1d else back).copy()))
            if arch in ("llama", "smollm3"):
                if ".q_proj." in tensor:
                    data = permuted(data, config.num_attention_heads)
                if ".k_proj." in tensor:
                    data = permuted(data, config.num_key_value_heads)
            writer.add_tensor(gguf_name(tensor), data, raw_dtype=stored_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected(model, prompt(seed)), folder / "expected.safetensors")


def llama3_divisors(config):
    """What frequencies are divided by, as the converter writes them."""
    rope = config.rope_parameters
    dim = config.head_dim
    freqs = rope["rope_theta"] ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    waves = 2 * np.pi / freqs
    old = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = (old / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    out = np.where(waves < old / high, 1.0, np.where(waves > old / low, factor, between))
    return out.astype(np.float32)


# -- vocabularies ------------------------------------------------------------


def byte_characters():
    """The character that byte-level BPE writes for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [table[b] for b in range(256)]


def bytes_vocabulary(writer):
    """A token for each byte and four special ones, as byte-level BPE without merges."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(byte_characters() + SPECIAL)
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 4)
    # The writer leaves out empty lists, and readers expect the field.
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)


def bytes_tokenizer(folder):
    """The same vocabulary as tokenizer.json."""
    vocab = {token: i for i, token in enumerate(byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "add_bos_token": True,
        "bos_token": SPECIAL[0],
        "eos_token": {"content": SPECIAL[1], "special": True},
        "chat_template": TEMPLATE,
    }, indent=1) + "\n")


# -- all ---------------------------------------------------------------------


def rope(kind, **more):
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=128)


def main():
    hugging_face("llama", LlamaConfig(**SIZES), 0)
    bytes_tokenizer(OUT / "llama")
    tied = SIZES | dict(tie_word_embeddings=True)
    f16 = torch.float16
    hugging_face("llama-rope-llama3", LlamaConfig(**tied, rope_parameters=LLAMA3), 1, f16)
    linear = rope("linear", factor=4.0)
    hugging_face("llama-rope-linear", LlamaConfig(**tied, rope_parameters=linear), 2, f16)
    yarn = rope("yarn", factor=4.0, original_max_position_embeddings=64)
    hugging_face("llama-rope-yarn", LlamaConfig(**tied, rope_parameters=yarn), 3, f16)
    # Longer than the model was trained for: 60 of 32 positions.
    dynamic = tied | dict(max_position_embeddings=32, rope_parameters=rope("dynamic", factor=2.0))
    hugging_face("llama-rope-dynamic", LlamaConfig(**dynamic), 4, f16)
    biases = SIZES | dict(attention_bias=True, mlp_bias=True)
    hugging_face("llama-bias-shards", LlamaConfig(**biases), 5, f16, shard="40KB")
    mistral = MistralConfig(**SIZES, head_dim=16, sliding_window=16)
    hugging_face("mistral", mistral, 6, f16)
    window = dict(use_sliding_window=True, sliding_window=16, max_window_layers=1)
    hugging_face("qwen2", Qwen2Config(**SIZES, **window), 7, torch.bfloat16)
    hugging_face("qwen3", Qwen3Config(**tied, head_dim=16), 8)
    hugging_face("smollm3", SmolLM3Config(**tied | dict(num_hidden_layers=4)), 9, f16)
    gpt2 = GPT2Config(vocab_size=VOCAB, n_positions=128, n_embd=32, n_layer=2, n_head=4,
                      bos_token_id=BOS, eos_token_id=EOS, initializer_range=0.3)
    gpt2.rope_parameters = None
    hugging_face("gpt2", gpt2, 10)

    kinds = gguf.GGMLQuantizationType
    for kind in (kinds.F16, kinds.Q8_0, kinds.Q4_0):
        gguf_file(f"gguf-llama-{kind.name.lower()}", LlamaConfig(**SIZES), 11, "llama", kind)
    gguf_file("gguf-llama3", LlamaConfig(**tied, rope_parameters=LLAMA3), 12, "llama", kinds.Q8_0)
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64}
    gguf_file("gguf-qwen2-yarn", Qwen2Config(**tied, rope_parameters=yarn), 13, "qwen2",
              kinds.Q8_0, rope=keys)
    gguf_file("gguf-qwen3", Qwen3Config(**tied, head_dim=16), 14, "qwen3", kinds.Q8_0)
    smollm3 = SmolLM3Config(**tied | dict(num_hidden_layers=4))
    gguf_file("gguf-smollm3", smollm3, 15, "smollm3", kinds.Q8_0)
    gguf_file("gguf-gpt2", gpt2, 16, "gpt2", kinds.F16)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        OUT = Path(sys.argv[1])
    main()
