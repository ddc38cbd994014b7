"""Writes the fixtures of models that are trained, for crates/nn: tiny random models of
transformers, their hidden states for a batch, and the gradients of a loss by each weight.

    python parity/bert_training.py [OUT]

OUT is crates/nn/tests/fixtures unless given. The reference pads the batch; padded rows
have no part in what is written.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
)

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = [5, 1, 7]
VOCABULARY, POSITIONS, HIDDEN, LAYERS, HEADS, INNER = 20, 12, 8, 2, 2, 12


def models():
    common = dict(
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
    )
    yield "bert", BertModel(BertConfig(**common, attn_implementation="eager"))
    yield "roberta", RobertaModel(
        RobertaConfig(**common, type_vocab_size=1, attn_implementation="eager"),
        add_pooling_layer=False,
    )
    yield "distilbert", DistilBertModel(
        DistilBertConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=POSITIONS,
            dim=HIDDEN,
            n_layers=LAYERS,
            n_heads=HEADS,
            hidden_dim=INNER,
            attn_implementation="eager",
        )
    )


def write(name, model, out):
    generator = torch.Generator().manual_seed(11)
    model.eval()
    for parameter in model.parameters():
        # Large enough that each part of the model shows in the result.
        parameter.data.normal_(0, 0.5, generator=generator)
    pad = model.config.pad_token_id
    longest = max(LENGTHS)
    ids = torch.full((len(LENGTHS), longest), pad)
    mask = torch.zeros(len(LENGTHS), longest, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.randint(3, VOCABULARY, (length,), generator=generator)
        mask[row, :length] = 1
    real = mask.bool()
    inputs = dict(input_ids=ids, attention_mask=mask)
    written = {"ids": ids[real], "starts": torch.tensor([0, *LENGTHS]).cumsum(0)}
    if name == "bert":
        types = torch.randint(0, 2, ids.shape, generator=generator)
        inputs["token_type_ids"] = types
        written["types"] = types[real]
    result = model(**inputs, output_hidden_states=True)
    states = result.last_hidden_state[real]
    factors = torch.randn(states.shape, generator=generator)
    loss = (factors * states).sum()
    written["factors"] = factors
    if name == "bert":
        written["pooled"] = result.pooler_output
        loss = loss + result.pooler_output.square().sum()
    loss.backward()
    written["loss"] = loss.reshape(1)
    for layer, states in enumerate(result.hidden_states):
        written[f"states.{layer}"] = states[real]
    for weight, parameter in model.named_parameters():
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        written[f"gradient.{weight}"] = gradient
    folder = out / name
    model.save_pretrained(folder)
    written = {key: value.detach().float().contiguous() for key, value in written.items()}
    save_file(written, folder / "expected.safetensors")


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "crates/nn/tests/fixtures"
    torch.manual_seed(0)
    for name, model in models():
        write(name, model, out)
