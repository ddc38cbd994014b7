"""Writes what the tests of crates/lm/tests/trainable.rs compare with: the gradients by keys before
rotation and by values of the mean negative log-likelihood of a text, by transformers, for the random
checkpoints of lm_checkpoints.py.

    venv/bin/python parity/llama_gradients.py

For KVQuant (Hooper et al. 2024), whose calibration weighs keys and values by the squares of these.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

FIXTURES = Path(__file__).parent.parent / "crates/lm/tests/fixtures"
TOKENS = 40


def main():
    for name in ("llama", "qwen3"):
        folder = FIXTURES / name
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.eval()
        kept = {}

        def keep(key):
            def hook(module, inputs, output):
                output.retain_grad()
                kept[key] = output

            return hook

        for number, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            last = getattr(attention, "k_norm", attention.k_proj)
            last.register_forward_hook(keep(f"keys.{number}"))
            attention.v_proj.register_forward_hook(keep(f"values.{number}"))
        prompt = load_file(folder / "expected.safetensors")["prompt"].long().flatten()[:TOKENS]
        loss = model(prompt[None], labels=prompt[None], use_cache=False).loss
        loss.backward()
        out = {"loss": loss.detach().reshape(1)}
        for key, tensor in kept.items():
            out[key] = tensor.detach().reshape(TOKENS, -1).contiguous()
            out[f"gradient.{key}"] = tensor.grad.reshape(TOKENS, -1).contiguous()
        save_file(out, folder / "gradients.safetensors")


if __name__ == "__main__":
    main()
