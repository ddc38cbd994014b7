"""Sparse autoencoders by the packages SAELens and sparsify themselves.

    pip install sae-lens==6.54.12 eai-sparsify==1.3.3
    python parity/sae_layouts.py write
    python parity/sae_layouts.py read FOLDER ROWS.npy CODES.npy [RESULT.npy]

`write` makes small ones with random weights, saves them by the packages, and writes what they
make of some rows: crates/dictionary/tests/fixtures/by-{saelens,sparsify}-* and
packages.safetensors. `read` opens a folder that `keyfold dictionary fit --layout
saelens|sparsify` wrote, by the package, and compares its codes of the rows with those of
`keyfold dictionary encode` (and its result with that of `decode`).
"""

import os
import sys

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its decoder of the processor

import numpy as np
import sae_lens
import torch
from safetensors.numpy import save_file
from sae_lens.saes import transcoder
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sparsify import SparseCoder, SparseCoderConfig

OUT = "crates/dictionary/tests/fixtures"
D, M, K = 6, 10, 3
RANDOM = ("W_", "b_", "r_mag", "encoder", "threshold")


def randomise(model):
    with torch.no_grad():
        for name, value in model.named_parameters():
            assert name.startswith(RANDOM), name
            value.copy_(torch.randn(value.shape) * 0.5)
            if name == "threshold":
                value.abs_()
    return model


def write():
    torch.manual_seed(8)
    x = torch.randn(7, D)
    told = {"x": x}
    sizes = {"d_in": D, "d_sae": M}
    wide = {**sizes, "d_out": 4, "apply_b_dec_to_input": False}
    same = {**wide, "d_out": D}
    for name, kind, config in [
        ("standard", StandardSAE, StandardSAEConfig(**sizes)),
        ("topk", TopKSAE, TopKSAEConfig(**sizes, k=K)),
        ("gated", GatedSAE, GatedSAEConfig(**sizes)),
        ("jumprelu", JumpReLUSAE, JumpReLUSAEConfig(**sizes)),
        ("transcoder", transcoder.Transcoder, transcoder.TranscoderConfig(**wide)),
        ("skip", transcoder.SkipTranscoder, transcoder.SkipTranscoderConfig(**same)),
    ]:
        model = randomise(kind(config))
        with torch.no_grad():
            codes = model.encode(x)
            codes = codes.to_dense() if codes.is_sparse else codes
            # A transcoder with a path past its codes needs the rows as well.
            told[f"by-saelens-{name}.codes"] = codes
            told[f"by-saelens-{name}.result"] = model(x) if name == "skip" else model.decode(codes)
        model.save_model(os.path.join(OUT, f"by-saelens-{name}"))
    for name, options in [
        ("topk", {}),
        ("transcoder", {"transcode": True, "skip_connection": True}),
    ]:
        model = SparseCoder(D, SparseCoderConfig(num_latents=M, k=K, **options), "cpu")
        model = randomise(model)
        with torch.no_grad():
            top, places, _ = model.encode(x)
            codes = torch.zeros(len(x), M).scatter(1, places, top)
            told[f"by-sparsify-{name}.codes"] = codes
            told[f"by-sparsify-{name}.result"] = model(x, x).sae_out
        model.save_to_disk(os.path.join(OUT, f"by-sparsify-{name}"))
    told = {name: np.ascontiguousarray(value.detach().numpy()) for name, value in told.items()}
    save_file(told, os.path.join(OUT, "packages.safetensors"))


def read(folder, rows, codes, result=None):
    x = torch.from_numpy(np.load(rows)).float()
    told = np.load(codes)
    with torch.no_grad():
        if os.path.isfile(os.path.join(folder, "sae_weights.safetensors")):
            model = sae_lens.SAE.load_from_disk(folder, device="cpu")
            found = model.encode(x)
            found = found.to_dense() if found.is_sparse else found
            back = model.decode(found) if result else None
        else:
            model = SparseCoder.load_from_disk(folder, device="cpu")
            top, places, _ = model.encode(x)
            found = torch.zeros(len(x), model.num_latents).scatter(1, places, top)
            back = model(x).sae_out if result else None
    print(f"codes of {type(model).__name__} differ by {np.abs(found.numpy() - told).max():.1e}")
    if result:
        print(f"results differ by {np.abs(back.numpy() - np.load(result)).max():.1e}")


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](*sys.argv[2:])
