"""How fast gensim's C code trains word models, to compare with ours on the same text.

    pip install gensim
    parity/peers/gensim_vectors.py texts.jsonl --dim 128 --negative 5 --epochs 5 --workers 1

Reads the `text` of JSON Lines and cuts words as `keyfold train binary-paragraph-vector`
does. Prints, as JSON, words a second of Doc2Vec (distributed bag of words, documents
alone) and pairs of words a second of Word2Vec (skip-gram, whole windows): each is a
prediction of one word beside `negative` others. Building the vocabulary is not counted.
Core seconds are those that processors worked, for machines that do other things too.
"""

import argparse
import json
import re
import time
from pathlib import Path

from gensim.models import Word2Vec
from gensim.models.doc2vec import Doc2Vec, TaggedDocument

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("texts", type=Path)
parser.add_argument("--dim", type=int, default=128)
parser.add_argument("--negative", type=int, default=5)
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--workers", type=int, default=1)
parser.add_argument("--min-count", type=int, default=2)
parser.add_argument("--window", type=int, default=5)
args = parser.parse_args()

lines = args.texts.read_text().splitlines()
texts = [re.findall(r"[^\W_]+", json.loads(line)["text"].lower()) for line in lines]
common = dict(
    vector_size=args.dim,
    negative=args.negative,
    hs=0,
    min_count=args.min_count,
    sample=0,
    workers=args.workers,
    epochs=args.epochs,
)


def seconds(model, corpus):
    model.build_vocab(corpus)
    begun, worked = time.perf_counter(), time.process_time()
    model.train(corpus, total_examples=model.corpus_count, epochs=args.epochs)
    return time.perf_counter() - begun, time.process_time() - worked


doc2vec = Doc2Vec(dm=0, dbow_words=0, **common)
took = seconds(doc2vec, [TaggedDocument(words, [i]) for i, words in enumerate(texts)])
known = [[w for w in words if w in doc2vec.wv.key_to_index] for words in texts]
words = args.epochs * sum(map(len, known))

skip_gram = Word2Vec(sg=1, window=args.window, shrink_windows=False, **common)
took_pairs = seconds(skip_gram, texts)
around = lambda n: sum(min(args.window, i) + min(args.window, n - 1 - i) for i in range(n))
pairs = args.epochs * sum(around(len(words)) for words in known)

print(
    json.dumps(
        {
            "words": words,
            "doc2vec_words_per_second": round(words / took[0]),
            "doc2vec_words_per_core_second": round(words / took[1]),
            "pairs": pairs,
            "word2vec_pairs_per_second": round(pairs / took_pairs[0]),
            "word2vec_pairs_per_core_second": round(pairs / took_pairs[1]),
            "workers": args.workers,
        }
    )
)
