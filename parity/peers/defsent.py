"""Times vectors of dictionary definitions: keyfold beside sentence-transformers, and beside
the authors' program, which reads one entry after the other.

    python parity/peers/defsent.py KEYFOLD MODEL DICTIONARY [DEFINITIONS]

One process after the other on the same threads; keyfold's time is that of the whole command
`text define` (start, loading, reading the dictionary), the others' is that of encoding alone.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

keyfold, model, dictionary = sys.argv[1:4]
most = int(sys.argv[4]) if len(sys.argv) > 4 else 4000
threads = int(os.environ.get("THREADS", "2"))

import torch
from sentence_transformers import SentenceTransformer, models

torch.set_num_threads(threads)
lines = [line.split("\t") for line in Path(dictionary).read_text().splitlines()]
entries = [(words, ds.split("<|list_more_def|>")) for words, ds in lines]
entries = entries[:: max(1, len(entries) // most)]
texts = [d for _, ds in entries for d in ds]


def ours():
    with tempfile.TemporaryDirectory() as folder:
        # A folder of its own, so that no vectors are kept from before.
        for file in Path(model).iterdir():
            if file.is_file():
                os.symlink(file.resolve(), Path(folder) / file.name)
        words = Path(folder) / "words.tsv"
        rows = (f"{w}\t{'<|list_more_def|>'.join(ds)}" for w, ds in entries)
        words.write_text("\n".join(rows) + "\n")
        begun = time.perf_counter()
        subprocess.run(
            [keyfold, "text", "define", "water", "--model", folder, "--dictionary", words,
             "--pool", "mean", "--threads", str(threads), "--quiet"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return time.perf_counter() - begun


transformer = models.Transformer(model, max_seq_length=150)
encoder = SentenceTransformer(modules=[transformer, models.Pooling(transformer.get_word_embedding_dimension())])


def batched():
    begun = time.perf_counter()
    encoder.encode(texts, batch_size=32, convert_to_numpy=True)
    return time.perf_counter() - begun


def one_by_one():
    begun = time.perf_counter()
    with torch.no_grad():
        for _, ds in entries[: len(entries) // 8]:
            encoder.tokenizer.model_max_length = 150
            inputs = encoder.tokenizer(ds, padding=True, truncation=True, return_tensors="pt")
            transformer.auto_model(**inputs)
    return 8 * (time.perf_counter() - begun)


print(f"{len(texts)} definitions, {threads} threads, the least of 3")
times = {name: min(f() for _ in range(3)) for name, f in
         [("keyfold", ours), ("sentence-transformers", batched), ("authors' way", one_by_one)]}  # fmt: skip
for name, seconds in times.items():
    print(f"{name:22} {len(texts) / seconds:8.0f}/s   {seconds / times['keyfold']:.2f}x keyfold's time")
