"""Times training steps in PyTorch for `keyfold bench training --peer`.

    pip install torch==2.10.0 transformers==5.3.0
    keyfold bench training --peer "pytorch=python parity/peers/torch_training.py"

Called as `torch_training.py train REQUEST -`. REQUEST is JSON: the fields of a BERT
configuration (`config`), `threads`, `steps`, and the `lengths` of the texts of a batch. The
batch is padded to its longest text, as is usual; the loss is the mean of the squared hidden
states of real tokens. Prints the version and the milliseconds of every step, in its three
parts, as JSON.
"""

import json
import sys
import time
from pathlib import Path

import torch
import transformers


def main():
    request = json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(request["threads"])
    torch.manual_seed(1)
    config = {key: value for key, value in request["config"].items() if key != "model_type"}
    config = transformers.BertConfig(**config)
    model = transformers.BertModel(config, add_pooling_layer=False)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    lengths = request["lengths"]
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    ids = torch.randint(0, request["config"]["vocab_size"], mask.shape) * mask
    real = mask.bool()
    # Without padding the mask is left out, which is the faster path.
    inputs = {"input_ids": ids} if real.all() else {"input_ids": ids, "attention_mask": mask}
    steps = []
    for _ in range(request["steps"]):
        times = [time.perf_counter()]
        loss = model(**inputs).last_hidden_state[real].square().mean()
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
        steps.append([1e3 * (b - a) for a, b in zip(times, times[1:])])
    print(json.dumps({"name": f"PyTorch {torch.__version__}", "steps": steps}))


if __name__ == "__main__":
    main()
