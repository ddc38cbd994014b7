"""What the authors' code of four long-context methods gives, for crates/lm to compare with.

    python parity/long_context.py DOUBLESPARSE TIDALDECODE ACTQKV HYPERATTN

The arguments are checkouts of andy-yang-1/DoubleSparse, DerrickYLJ/TidalDecode,
MrXiaoaa/ActQKV and insuhan/hyper-attn. Their classes run on the CPU in single precision;
what they need of CUDA, of einops or of an older transformers is stubbed here. Inputs are
made by `numbers`, which the tests repeat, so that the fixtures hold results only.

Changes to what runs, each said where it is made:

- DoubleSparse: none (its `.half()` is outside of the class).
- TidalDecode: none; the model's layers are given by hand, so that `pos_dict` is passed on here.
- ActQKV: the buffer that remembers which block lies where is cleared before each use, since
  it keeps blocks that are no longer chosen when fewer are; 20 chunks of warm-up and 12
  entropies instead of 1000 and 100, so that both are reached.
- HyperAttention: once as it is (outside of half precision it ignores the mask of sampled
  keys), once with the mask. In double precision: in single it adds 1.2e-7 to weights before
  it takes their logarithm, which shows in the fourth digit.
"""

import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

OUT = Path(__file__).parent.parent / "crates/lm/tests/fixtures-long-context"


def numbers(seed, *shape):
    """Even numbers between -1 and 1 by splitmix64 of the place; exact in single precision."""
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = (np.uint64(seed) << np.uint64(32)) + np.arange(1, n + 1, dtype=np.uint64)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    x = (z >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0
    return torch.tensor(x.astype(np.float32).reshape(shape))


def load(path, name, package=None, replace=()):
    text = Path(path).read_text()
    for old, new in replace:
        assert old in text, (path, old)
        text = text.replace(old, new)
    module = types.ModuleType(name)
    module.__package__ = package or ""
    sys.modules[name] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


class Cache:
    """Keys and values of layers, as transformers' cache hands them out."""

    def __init__(self):
        self.layers = {}

    def update(self, keys, values, layer, _kwargs=None):
        if layer in self.layers:
            old = self.layers[layer]
            keys, values = torch.cat([old[0], keys], 2), torch.cat([old[1], values], 2)
        self.layers[layer] = (keys, values)
        return keys, values

    def get_seq_length(self, layer):
        return self.layers[layer][0].shape[2]


def rotary(positions, dim, theta):
    angles = positions[:, None].float() * theta ** (-torch.arange(0, dim, 2).float() / dim)
    angles = torch.cat([angles, angles], -1)[None]
    return angles.cos(), angles.sin()


def projections(seed, hidden, heads, kv_heads, dim):
    scale = 3.0 / math.sqrt(hidden)
    q = torch.nn.Linear(hidden, heads * dim, bias=False)
    k = torch.nn.Linear(hidden, kv_heads * dim, bias=False)
    v = torch.nn.Linear(hidden, kv_heads * dim, bias=False)
    for i, layer in enumerate([q, k, v]):
        layer.weight.data = numbers(seed + i, *layer.weight.shape) * scale
    return q, k, v


def double_sparsity(checkout):
    authors = load(Path(checkout) / "evaluation/modify_llama.py", "double_sparse")
    heads, kv_heads, dim, n = 4, 2, 32, 96
    hidden = heads * dim
    config = types.SimpleNamespace(
        attention_dropout=0.0, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=512, rope_theta=1e4, attention_bias=False, pretraining_tp=1)
    authors.LlamaRotaryEmbedding = lambda config: None
    layer = authors.LlamaAttention_heavy_hitter(config, layer_idx=2)
    layer.q_proj, layer.k_proj, layer.v_proj = projections(100, hidden, heads, kv_heads, dim)
    layer.o_proj = torch.nn.Identity()
    # By hand: a ranking for every query head.
    channels = [[(c * step + 3) % dim for c in range(dim)] for step in (1, 5, 11, 23)]
    layer.sorted_channel = torch.tensor(channels)
    layer.heavy_const, layer.group_factor = 12, 4
    x = numbers(200, 1, n, hidden)
    cos, sin = rotary(torch.arange(n), dim, 1e4)
    out = {}
    for bits in (16, 4):
        layer.label_bits = bits
        out[f"out.{bits}"] = layer(x, position_embeddings=(cos, sin))[0][0, 60:].contiguous()
    q = layer.q_proj(x).view(1, n, heads, dim).transpose(1, 2)
    k = layer.k_proj(x).view(1, n, kv_heads, dim).transpose(1, 2)
    q, k = authors.apply_rotary_pos_emb(q, k, cos, sin)
    out["queries"] = q.transpose(1, 2)[0].reshape(n, -1)[60:].contiguous()
    out["keys"] = k.transpose(1, 2)[0].reshape(n, -1).contiguous()
    out["values"] = layer.v_proj(x)[0].contiguous()
    save_file({k: v.detach() for k, v in out.items()}, OUT / "double_sparsity.safetensors")
    ranking = {"model.layers.2.self_attn.q_proj": channels}
    (OUT / "double_sparsity.json").write_text(json.dumps(ranking) + "\n")


def tidal(checkout):
    import transformers.models.llama.modeling_llama as llama
    for name, module in [("LlamaSdpaAttention", llama)]:
        if not hasattr(module, name):
            setattr(module, name, None)
    authors = load(Path(checkout) / "src/tidal_build/modify_llama.py", "tidal")
    layers, heads, kv_heads, dim, n, steps, top_k = 8, 4, 2, 16, 48, 3, 6
    hidden = heads * dim
    cache, out, modules = Cache(), {}, []
    for layer in range(layers):
        q, k, v = projections(1000 + 10 * layer, hidden, heads, kv_heads, dim)
        modules.append(types.SimpleNamespace(
            q_proj=q, k_proj=k, v_proj=v, o_proj=torch.nn.Identity(), num_heads=heads, head_dim=dim,
            num_key_value_heads=kv_heads, num_key_value_groups=heads // kv_heads, layer_idx=layer,
            attention_dropout=0.0, training=False, pos_dict=None))

    def run(module, x, positions):
        cos, sin = rotary(positions, dim, 1e4)
        return authors.llama_tidal_attention_forward(
            module, x, None, None, cache, position_embeddings=(cos, sin), top_k=top_k,
            sparse_layer_start=2, correction_layer=5)[0]

    for module in modules:
        run(module, numbers(3000 + module.layer_idx, 1, n, hidden), torch.arange(n))
    for step in range(steps):
        pos_dict = None
        for module in modules:
            x = numbers(4000 + 100 * step + module.layer_idx, 1, 1, hidden)
            module.pos_dict = pos_dict
            position = torch.tensor([n + step])
            out[f"out.{step}.{module.layer_idx}"] = run(module, x, position)[0, 0].contiguous()
            pos_dict = module.pos_dict
            cos, sin = rotary(position, dim, 1e4)
            q = module.q_proj(x).view(1, 1, heads, dim).transpose(1, 2)
            q = authors.apply_rotary_pos_emb(q, q, cos, sin)[0]
            out[f"query.{step}.{module.layer_idx}"] = q[0, :, 0].reshape(-1).contiguous()
    for layer, (keys, values) in cache.layers.items():
        out[f"keys.{layer}"] = keys[0].transpose(0, 1).reshape(n + steps, -1).contiguous()
        out[f"values.{layer}"] = values[0].transpose(0, 1).reshape(n + steps, -1).contiguous()
    save_file({k: v.detach() for k, v in out.items()}, OUT / "tidal.safetensors")


class Still:
    """Stands in for streams and events."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    record = wait = wait_stream = __exit__


def act_qkv(checkout):
    root = Path(checkout) / "benchmark/actqkv/attention"
    package = types.ModuleType("act")
    package.__path__ = []
    sys.modules["act"] = package
    torch.cuda.stream = torch.cuda.Event = Still
    torch.cuda.current_stream = Still
    load(root / "dot_production_attention/base.py", "act.base", "act")
    attention = load(root / "dot_production_attention/torch_impl.py", "act.torch_impl", "act")
    dots = types.ModuleType("act.dot_production_attention")
    dots.get_multi_stage_dot_production_attention = (
        lambda _fattn: (attention.TorchMultiStageDotProductionAttention, False))
    sys.modules["act.dot_production_attention"] = dots
    rope = load(root / "rope.py", "act.rope", "act", [('"cuda"', '"cpu"')])
    manager = load(
        root / "context_manager_activate_3_dev.py", "act.manager", "act",
        [("device = \"cuda\"", "device = \"cpu\""), ("device='cuda'", "device='cpu'"),
         ("assert _t.is_cuda", "pass"),
         # It appends a line per decoded token to a file.
         ("if  inference_step > layer_num:\n            data_to_save", "if False:\n            data_to_save")])
    layers, heads, kv_heads, dim, prompt, decoded = 3, 4, 2, 16, 600, 40
    manager.layer_num = layers
    manager.total_samples = [[] for _ in range(layers)]
    manager.global_h_upper = 20
    manager.warmup_step = 12
    embedding = rope.RotaryEmbeddingESM(dim, 10000.0)
    make = lambda: manager.ContextManager(
        embedding, n_init=4, n_local=32, block_size=8, max_cached_block=200, topk=40, exc_block_size=16,
        repr_topk=2, cache_strategy="lru", question_weight=4.0, question_ids=[20, 30])
    contexts = [make() for _ in range(layers)]
    chosen = [[] for _ in range(layers)]
    for layer, context in enumerate(contexts):
        topk, hidden = context.calc_block_topk, context.get_global_hidden_and_mask

        def record(q, topk=topk, layer=layer):
            blocks, score = topk(q)
            chosen[layer].append(sorted(blocks[0]))
            return blocks, score

        def clear(n, blocks, hidden=hidden, context=context):
            context.global_buffer_block_id_list = [[-1] * context.topk]
            context.global_buffer_init_st = context.global_buffer_init_ed = -1
            return hidden(n, blocks)

        context.calc_block_topk, context.get_global_hidden_and_mask = record, clear
    # A drift and a few loud tokens, so that queries differ in how unusual they are; keys of
    # two kinds, the more so in early layers, so that layers differ in certainty.
    total = prompt + decoded
    t = torch.arange(total).float()[:, None, None]
    streams = []
    for layer in range(layers):
        drift = numbers(9000 + layer, 1, heads, dim) * torch.floor(t / 64) * 0.25
        loud = 1.0 + 2.0 * ((t.long() % 13) == 0).float()
        q = numbers(6000 + layer, total, heads, dim) * loud + drift
        kind = (1.0 - 2.0 * ((t.long() // 40) % 2).float()) * (layers - layer - 1) * 2.0
        k = numbers(7000 + layer, total, kv_heads, dim) * 2.0 + drift[:, :kv_heads] + kind
        q = q + 1.0
        v = numbers(8000 + layer, total, kv_heads, dim)
        streams.append((q, k, v))
    outs = [[] for _ in range(layers)]
    starts = [(0, prompt)] + [(i, i + 1) for i in range(prompt, total)]
    for a, b in starts:
        for layer, (q, k, v) in enumerate(streams):
            part = lambda x: x[a:b].transpose(0, 1)[None].contiguous()
            q_, k_, v_ = part(q), part(k), part(v)
            o = contexts[layer].append(q_, k_, v_, q_, k_, v_)
            outs[layer].append(o[0].transpose(0, 1).reshape(b - a, -1))
    tensors = {}
    for layer in range(layers):
        o = torch.cat(outs[layer])
        tensors[f"out.{layer}"] = torch.cat([o[:prompt:5], o[prompt:]]).contiguous()
    save_file(tensors, OUT / "act_qkv.safetensors")
    (OUT / "act_qkv.json").write_text(json.dumps(chosen, separators=(",", ":")) + "\n")
    print("blocks chosen:", [sorted(set(map(len, c))) for c in chosen])


def hyper(checkout):
    root = Path(checkout) / "models/attention"
    einops = types.ModuleType("einops")
    einops.rearrange = lambda x, pattern: x[None, :, None]
    sys.modules.setdefault("einops", einops)
    package = types.ModuleType("hyper")
    package.__path__ = []
    sys.modules["hyper"] = package
    stub = types.ModuleType("hyper.flash_attn_triton_for_hyper")
    stub.flash_attn_func = None
    sys.modules["hyper.flash_attn_triton_for_hyper"] = stub
    utils = load(root / "utils.py", "hyper.utils", "hyper")
    load(root / "angular_lsh.py", "hyper.angular_lsh", "hyper")
    authors = load(root / "hyper_attn.py", "hyper.hyper_attn", "hyper")
    dim, heads, sample = 16, 2, 48
    exact = utils.exact_attention

    def masked(query, key, value, softmax_scale, causal=False, bias=None):
        if bias is None:
            return exact(query, key, value, softmax_scale, causal)
        qk = query @ key.transpose(-1, -2) * softmax_scale + bias
        return qk.softmax(dim=-1) @ value, torch.logsumexp(qk, dim=-1, keepdim=True)

    out, sizes = {}, []
    for case, (n, causal, mask) in enumerate(
        [(1024, False, False), (1024, True, False), (1024, False, True), (1024, True, True), (1000, False, True)]):
        torch.manual_seed(case)
        layer = authors.HyperAttention(dim, 5, 64, sample, 256).double()
        authors.exact_attention = masked if mask else exact
        drawn = []

        def randint(high, size, device=None):
            drawn.append(torch.from_numpy(np.random.RandomState(len(drawn) + 10 * case).randint(high, size=size)))
            return drawn[-1]

        real, torch.randint = torch.randint, randint
        q, k, v = ((numbers(500 + 10 * case + i, 1, heads, n, dim) * s).double() for i, s in enumerate((3.0, 3.0, 1.0)))
        result = layer(q, k, v, causal=causal)
        torch.randint = real
        out[f"{case}.directions"] = layer.lsh.proj_dir[0, 0].T.float().contiguous()
        for i, indices in enumerate(drawn):
            out[f"{case}.sample.{i}"] = indices[0].to(torch.int32).contiguous()
        out[f"{case}.out"] = result[0, :, ::16].float().contiguous()
    save_file(out, OUT / "hyper.safetensors")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for run, checkout in zip([double_sparsity, tidal, act_qkv, hyper], sys.argv[1:]):
            run(checkout)
            print(run.__name__)
    for path in sorted(OUT.iterdir()):
        print(path.name, path.stat().st_size)
