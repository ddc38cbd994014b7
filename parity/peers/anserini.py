"""BM25 and RM3 of Anserini on a judged collection, for comparison with
`keyfold bench prf-interpolation --data DIR`.

    pip install --no-deps --target SITE pyserini==0.22.1
    python parity/peers/anserini.py SITE DIR

DIR is the folder that the experiment takes. Needs Java 11 or newer. Anserini reads
texts in its own way (Porter's stemmer, stop words); all else has its defaults.
Prints MAP, nDCG@10 and recall@100 by the formulas of the experiment, and Anserini's
own count of queries per second.
"""

import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def read(folder):
    lines = lambda name: [json.loads(x) for x in (folder / name).read_text().splitlines() if x.strip()]
    documents, queries = lines("documents.jsonl"), lines("queries.jsonl")
    head, *rows = (folder / "relevance.tsv").read_text().splitlines()
    columns = {name: i for i, name in enumerate(head.split("\t"))}
    relevant = {}
    for row in rows:
        cells = row.split("\t")
        gain = float(cells[columns["gain"]])
        relevant.setdefault(cells[columns["query_id"]], {})[cells[columns["document_id"]]] = gain
    judged = {q for q, gains in relevant.items() if max(gains.values()) > 0}
    return documents, [q for q in queries if str(q["id"]) in judged], relevant


def measures(ranked, gains):
    good = {d for d, g in gains.items() if g > 0}
    found, precision = 0, 0.0
    for i, d in enumerate(ranked):
        if d in good:
            found += 1
            precision += found / (i + 1)
    discounted = lambda list: sum(g / math.log2(i + 2) for i, g in enumerate(list[:10]))
    ideal = discounted(sorted(gains.values(), reverse=True))
    ndcg = discounted([gains.get(d, 0.0) for d in ranked]) / ideal
    return precision / len(good), ndcg, len(good & set(ranked[:100])) / len(good)


def main():
    site, data = Path(sys.argv[1]), Path(sys.argv[2])
    jar = next((site / "pyserini/resources/jars").glob("anserini-*-fatjar.jar"))
    documents, queries, relevant = read(data)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "col").mkdir()
        with open(folder / "col/d.jsonl", "w") as file:
            for d in documents:
                text = f"{d.get('title', '')}\n{d.get('text', '')}"
                file.write(json.dumps({"id": str(d["id"]), "contents": text}) + "\n")
        topics = [f"{i}\t{' '.join(q['text'].split())}\n" for i, q in enumerate(queries)]
        (folder / "topics.tsv").write_text("".join(topics))

        def java(main, *args):
            command = ["java", "-cp", str(jar.resolve()), f"io.anserini.{main}", *args]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
            return done.stdout + done.stderr

        java("index.IndexCollection", "-collection", "JsonCollection", "-input", "col",
             "-index", "idx", "-generator", "DefaultLuceneDocumentGenerator", "-threads", "2",
             "-storeDocvectors")  # fmt: skip
        for name, options in [("BM25", []), ("BM25 + RM3", ["-rm3"])]:
            log = java("search.SearchCollection", "-index", "idx", "-topics", "topics.tsv",
                       "-topicreader", "TsvInt", "-bm25", "-hits", "1000", "-parallelism", "1",
                       "-threads", "1", "-output", "run.txt", *options)  # fmt: skip
            lists = [[] for _ in queries]
            for line in (folder / "run.txt").read_text().splitlines():
                query, _, document, *_ = line.split()
                lists[int(query)].append(document)
            all = [measures(l, relevant[str(q["id"])]) for l, q in zip(lists, queries)]
            means = [sum(m) / len(all) for m in zip(*all)]
            speed = re.findall(r"~([\d.]+) q/s", log)
            print(f"{name}: MAP {means[0]:.4f}, nDCG@10 {means[1]:.4f}, recall@100 {means[2]:.4f}, "
                  f"{speed[-1] if speed else '?'} queries/s")  # fmt: skip


if __name__ == "__main__":
    main()
