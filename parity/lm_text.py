"""Writes the fixtures of crates/lm for what is not weights: rotary frequencies of many
configurations, small tokenizers of every kind with the ids that the reference libraries
give, and chat templates with what Jinja writes.

    python parity/lm_text.py [OUT]

OUT is crates/lm/tests/fixtures-text unless given. See parity/README.md for the versions
of the libraries. Nothing is downloaded.
"""

import datetime
import io
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import chat_template_utils

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/lm/tests/fixtures-text"

# -- rotary frequencies --------------------------------------------------------

BASE = dict(
    model_type="llama", vocab_size=300, hidden_size=64, intermediate_size=96,
    num_hidden_layers=2, num_attention_heads=4, rms_norm_eps=1e-5,
    max_position_embeddings=2048, head_dim=32,
)
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=256)
ROPES = [
    # As older files have it.
    dict(rope_theta=500000.0, rope_scaling=dict(type="linear", factor=4.0)),
    dict(rope_theta=500000.0, rope_scaling=dict(rope_type="llama3", **LLAMA3)),
    dict(rope_theta=1e6, rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=512)),
    dict(rope_theta=1e4, rope_scaling=dict(type="dynamic", factor=2.0), max_position_embeddings=128),
    # As newer ones have it.
    dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.5, partial_rotary_factor=0.5)),
    dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=8.0, attention_factor=1.5,
                              original_max_position_embeddings=256, beta_fast=16.0, beta_slow=2.0)),
    dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=40.0, mscale=0.7,
                              mscale_all_dim=1.2, original_max_position_embeddings=64)),
    dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=8.0, truncate=False,
                              original_max_position_embeddings=256)),
    # Without the original length: the longest position.
    dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=4.0)),
    dict(rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=4.0), max_position_embeddings=64),
]


def ropes():
    cases = []
    for more in ROPES:
        given = BASE | more
        config = LlamaConfig.from_dict(json.loads(json.dumps(given)))
        kind = config.rope_parameters["rope_type"]
        for length in (1, 100, 1000):
            freqs, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
            cases.append(dict(config=given, length=length, scale=scale,
                              frequencies=[float(f) for f in freqs]))
    return cases


# -- tokenizers ----------------------------------------------------------------

SENTENCES = [
    "The model reads the words that were written before, and writes the next one.",
    "It doesn't know what it hasn't seen; we'll see what they've made of it.",
    "In 2023 there were 1234567 of them, 42 in the first row, 7 in the last.",
    "def look(query, keys):\n    return max(keys, key=lambda k: dot(query, k))\n",
    "Größe, naïve, café: the words of other languages; 你好，世界。 мир и труд",
    "A query meets the keys, some keys are selected, the values are read.\n\n\tSo it is.",
] * 3
TEXTS = [
    "",
    "The words that were written",
    " a blank before,  two   and three between  ",
    "It's what they'RE saying: we'll, I'd, don't",
    "1 22 333 4444 55555 1234567 3.14159 x2y3",
    "lines\nand\n\nmore\r\n\r\n  lines \n \t\t tabs",
    "def look(query):\n        return [k for k in keys if k != 0]",
    "caf\u00e9 cafe\u0301 \u1e69 \u0073\u0323\u0307",
    "你好 世界 мир こんにちは \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f600\U0001f469\u200d\U0001f680 \ufffd \u00a0\u3000",
    "<|turn|>user\nIs <|end|> the end? <|turn|><|end|>",
    "<tool>keys</tool> <tool> values",
    "punctuation!!! (yes) {no} [maybe]... \"quotes\" 'single' --- *** ///",
    "\u0000\u0001 control \u007f",
]
SPECIAL = ["<|begin|>", "<|end|>", "<|turn|>"]
OWN = ["<tool>", "</tool>"]  # never cut, but not special

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(digits):
    """The words of Llama 3 ({1,3}) and Qwen2 (one digit a word), as their files say."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits +
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


PRE = {
    "gpt-2": (GPT2, None),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), None),
    "llama-bpe": (split("{1,3}"), None),
    "qwen2": (split(""), normalizers.NFC()),
}


def byte_level(name):
    pre, normalizer = PRE[name]
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in OWN])
    begin = tokenizer.token_to_id(SPECIAL[0])
    if name == "llama-bpe":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    return tokenizer


def byte_level_case(name):
    tokenizer = byte_level(name)
    tokenizer.save(str(OUT / f"{name}.json"), pretty=False)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    kinds = {t: gguf.TokenType.CONTROL for t in SPECIAL} | {t: gguf.TokenType.USER_DEFINED for t in OWN}
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer = new_gguf(name)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(t, gguf.TokenType.NORMAL) for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.token_to_id(SPECIAL[0]))
    writer.add_eos_token_id(tokenizer.token_to_id(SPECIAL[1]))
    done(writer)
    ids = lambda t: [t.encode(text, add_special_tokens=False).ids for text in TEXTS]
    return dict(name=name, plain=ids(plain), parsed=ids(tokenizer),
                decoded=[tokenizer.decode(i) for i in ids(tokenizer)])


def new_gguf(name):
    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", "llama")
    writer.add_name(name)
    return writer


def done(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pieces_case(name, prefix):
    """SentencePiece BPE, as Llama 2 has it: bytes for unknown characters, no normalisation."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, model_type="bpe", vocab_size=480,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        add_dummy_prefix=prefix, user_defined_symbols=OWN, character_coverage=0.98,
        minloglevel=2)
    reader = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = reader.get_piece_size()
    kinds = []
    for i in range(count):
        kinds.append(
            gguf.TokenType.UNKNOWN if reader.is_unknown(i) else
            gguf.TokenType.CONTROL if reader.is_control(i) else
            gguf.TokenType.BYTE if reader.is_byte(i) else
            gguf.TokenType.USER_DEFINED if reader.id_to_piece(i) in OWN else
            gguf.TokenType.NORMAL)
    writer = new_gguf(name)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([reader.id_to_piece(i) for i in range(count)])
    writer.add_token_scores([reader.get_score(i) for i in range(count)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(reader.bos_id())
    writer.add_eos_token_id(reader.eos_id())
    writer.add_unk_token_id(reader.unk_id())
    writer.add_add_space_prefix(prefix)
    done(writer)
    # SentencePiece itself never makes a control token of a text.
    ids = [reader.encode(text) for text in TEXTS]
    return dict(name=name, plain=ids, decoded=[reader.decode(i) for i in ids])


# -- chat templates ------------------------------------------------------------

# Each uses what templates of models use: whitespace control, namespaces, macros, loop
# variables, string methods, slices, refusals, the date.
TEMPLATES = {
    "turns": (
        "{% for message in messages %}\n"
        "    {% if loop.first and message['role'] != 'system' %}\n"
        "{{ '<|turn|>system\\nBe brief.<|end|>\\n' }}\n"
        "    {% endif %}\n"
        "{{ '<|turn|>' + message['role'] + '\\n' + message['content'] + '<|end|>' + '\\n' }}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}\n{{ '<|turn|>assistant\\n' }}\n{% endif %}\n"
    ),
    "date": (
        "{{- bos_token }}\n"
        "{%- if not date_string is defined %}\n"
        "    {%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
        "{%- else %}{%- set date_string = '1 Jan 2020' %}{%- endif %}\n"
        "{%- endif %}\n"
        "{%- if messages[0].role == 'system' %}\n"
        "    {%- set system = messages[0].content.strip() %}{%- set rest = messages[1:] %}\n"
        "{%- else %}{%- set system = '' %}{%- set rest = messages %}\n{%- endif %}\n"
        "{{- 'Today: ' ~ date_string ~ '\\n' ~ system ~ '\\n' }}\n"
        "{%- for m in rest %}[{{ loop.index0 }}/{{ loop.length }} {{ m.role | upper }}] "
        "{{ m.content | trim }}{% if not loop.last %}{{ ' | ' }}{% endif %}{%- endfor %}{{ eos_token }}"
    ),
    "alternate": (
        "{%- if messages[0]['role'] == 'system' %}{%- set loop_messages = messages[1:] %}"
        "{%- set system_message = messages[0]['content'] %}"
        "{%- else %}{%- set loop_messages = messages %}{%- endif %}\n"
        "{{- bos_token }}\n"
        "{%- for message in loop_messages %}\n"
        "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
        "        {{- raise_exception('roles must take turns') }}\n"
        "    {%- endif %}\n"
        "    {%- if message['role'] == 'user' %}\n"
        "        {%- if loop.first and system_message is defined %}\n"
        "            {{- '[ASK] ' + system_message + '\\n\\n' + message['content'] + ' [/ASK]' }}\n"
        "        {%- else %}\n            {{- '[ASK] ' + message['content'] + ' [/ASK]' }}\n        {%- endif %}\n"
        "    {%- elif message['role'] == 'assistant' %}\n"
        "        {{- ' ' + message['content'] | trim + eos_token }}\n"
        "    {%- else %}\n        {{- raise_exception('unknown role ' + message['role']) }}\n    {%- endif %}\n"
        "{%- endfor %}\n"
    ),
    "thoughts": (
        "{%- macro turn(role, text) -%}<|turn|>{{ role }}\n{{ text }}<|end|>\n{%- endmacro %}\n"
        "{%- set ns = namespace(last=-1, seen=false) %}\n"
        "{%- for message in messages[::-1] %}\n"
        "    {%- set index = (messages|length - 1) - loop.index0 %}\n"
        "    {%- if ns.last < 0 and message.role == 'user' and message.content is string and "
        "not (message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}\n"
        "        {%- set ns.last = index %}\n    {%- endif %}\n{%- endfor %}\n"
        "{%- for message in messages %}\n"
        "    {%- set content = message.content %}\n"
        "    {%- if message.role == 'assistant' and '</think>' in content %}\n"
        "        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
        "    {%- endif %}\n"
        "    {%- if loop.index0 > ns.last %}{%- set ns.seen = true %}{%- endif %}\n"
        "    {{- turn(message.role, content.replace('  ', ' ').rstrip()) }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}<|turn|>assistant\n{% if ns.seen is false %}{{ '<think>\\n' }}{% endif %}{%- endif %}"
    ),
}
SYSTEM = dict(role="system", content=" Answer in one line.\n")
ASK = dict(role="user", content="What is <|end|>?  Tell me. \n")
ANSWER = dict(role="assistant", content="<think>\nhm\n</think>\n\nA token.\n")
AGAIN = dict(role="user", content="<tool>result</tool>")
CONVERSATIONS = [
    [ASK], [SYSTEM, ASK], [SYSTEM, ASK, ANSWER, AGAIN], [ASK, ANSWER], [ASK, ASK], [AGAIN],
    [dict(role="tool", content="x")],
]
NOW = 1_700_000_000  # 14 November 2023, 22:13:20 universal time


def chats():
    cases = []
    for name, source in TEMPLATES.items():
        template = chat_template_utils._compile_jinja_template(source)
        for messages in CONVERSATIONS:
            for prompt in (True, False):
                now = lambda f: datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(f)
                try:
                    text = template.render(messages=messages, add_generation_prompt=prompt,
                                           bos_token=SPECIAL[0], eos_token=SPECIAL[1], strftime_now=now)
                except Exception as error:
                    text, refused = None, str(error)
                case = dict(template=name, messages=messages, prompt=prompt, text=text)
                cases.append(case | ({} if text is not None else {"refused": refused}))
    return dict(now=NOW, templates=TEMPLATES, cases=cases)


def write(name, value):
    text = json.dumps(value, ensure_ascii=True, indent=None, separators=(",", ":"))
    (OUT / name).write_text(text.replace("},{", "},\n{") + "\n")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    write("rope.json", ropes())
    tokenizers = [byte_level_case(name) for name in PRE]
    tokenizers += [pieces_case("pieces", True), pieces_case("pieces-no-prefix", False)]
    write("tokenizers.json", dict(texts=TEXTS, tokenizers=tokenizers))
    write("chat.json", chats())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        OUT = Path(sys.argv[1])
    main()
