"""llama.cpp as a peer of `keyfold bench decoder`: how fast it reads and writes.

    pip install --no-deps xllamacpp
    keyfold bench decoder --peer "llama.cpp=python parity/peers/llamacpp.py"
    keyfold bench kvquant --model M.gguf --data TEXT --peer "llama.cpp=python parity/peers/llamacpp.py"

Called as `llamacpp.py decode REQUEST -`; REQUEST is JSON with `model`, `contexts`, `write`,
`threads` and `repeat`, and `cache` (f16, q8_0 or q4_0) where keys and values are not kept in
f16. Prints {"context", "read", "written"}, tokens a second, the best of
`repeat` runs. Prompts are random tokens; nothing is reused between them.
"""

import json
import random
import sys

import xllamacpp as xlc


def server(request):
    params = xlc.CommonParams()
    params.model.path = request["model"]
    params.n_ctx = max(request["contexts"]) + request["write"] + 16
    params.n_parallel = 1
    params.cpuparams.n_threads = request["threads"]
    params.cpuparams_batch.n_threads = request["threads"]
    kind = getattr(xlc.ggml_type, "GGML_TYPE_" + request.get("cache", "f16").upper())
    params.cache_type_k = params.cache_type_v = kind
    if kind != xlc.ggml_type.GGML_TYPE_F16:
        # Packed values are read by flash attention alone.
        params.flash_attn_type = xlc.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    return xlc.Server(params)


def rates(engine, context, write, seed):
    draw = random.Random(seed)
    answer = engine.handle_completions(
        {
            "prompt": [draw.randrange(0, 256) for _ in range(context)],
            "max_tokens": write,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
    )
    if isinstance(answer, str):
        answer = json.loads(answer)
    timings = answer["timings"]
    if timings["prompt_n"] != context or timings["predicted_n"] != write:
        sys.exit(f"read {timings['prompt_n']} and wrote {timings['predicted_n']} tokens")
    return timings["prompt_per_second"], timings["predicted_per_second"]


def main():
    with open(sys.argv[2]) as file:
        request = json.load(file)
    engine = server(request)
    for context in request["contexts"]:
        runs = [rates(engine, context, request["write"], seed) for seed in range(request["repeat"])]
        read, written = (max(side) for side in zip(*runs))
        print(json.dumps({"context": context, "read": read, "written": written}), flush=True)


if __name__ == "__main__":
    main()
