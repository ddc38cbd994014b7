#!/usr/bin/env python3
"""Blocks of every kind with what the `gguf` package makes of them.

Writes crates/kernels/tests/fixtures/gguf_blocks.bin: for each kind its name (8 bytes,
padded with zeros) and four little-endian u32: blocks, numbers of a block, bytes of a
block, and 1 where `quantize` knows the kind; then the blocks; then what `dequantize`
gives (f32); then, where it is known, as many numbers (f32) and what `quantize` gives.
"""

import pathlib
import struct

import gguf
import numpy as np

BLOCKS = {"F32": 64, "F16": 64, "BF16": 64}
KINDS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
# Where a block holds its scales, in halves.
SCALES = {"Q4_0": [0], "Q5_0": [0], "Q8_0": [0], "Q4_1": [0, 1], "Q5_1": [0, 1],
          "Q4_K": [0, 1], "Q5_K": [0, 1], "Q6_K": [104]}


def main():
    rng = np.random.default_rng(20)
    out = bytearray()
    for name in KINDS:
        kind = gguf.GGMLQuantizationType[name]
        length, size = gguf.GGML_QUANT_SIZES[kind]
        count = BLOCKS.get(name, 6)
        if name in SCALES:
            blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
            for place in SCALES[name]:
                halves = blocks.view(np.float16)
                halves[:, place] = rng.normal(0, 0.05, count).astype(np.float16)
        else:
            numbers = rng.normal(0, 3, (count, length)).astype(np.float32)
            blocks = gguf.quantize(numbers, kind).view(np.uint8).reshape(count, size)
        numbers = gguf.dequantize(blocks.reshape(1, -1), kind).reshape(-1)
        values = (rng.normal(0, 1, (count, length)) * rng.choice([0.01, 1, 30], (count, 1))).astype(np.float32)
        values[0] = 0
        values[1, length // 2:] = 1.5
        try:
            packed = gguf.quantize(values.reshape(1, -1), kind).tobytes()
        except NotImplementedError:
            packed = None
        out += struct.pack("<8s4I", name.encode(), count, length, size, packed is not None)
        out += blocks.tobytes() + numbers.astype("<f4").tobytes()
        if packed is not None:
            out += values.astype("<f4").tobytes() + packed
    path = pathlib.Path(__file__).parent.parent / "crates/kernels/tests/fixtures/gguf_blocks.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(out))
    print(path, len(out))


main()
