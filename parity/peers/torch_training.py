"""Times training steps in PyTorch for `keyfold bench training --peer`.

    pip install torch==2.10.0 transformers==5.3.0
    keyfold bench training --peer "pytorch=python parity/peers/torch_training.py"

Called as `torch_training.py train REQUEST -`. REQUEST is JSON: the fields of a BERT
configuration (`config`), `threads`, `steps`, and the `lengths` of the texts of a batch. The
batch is padded to its longest text, as is usual; the loss is the mean of the squared hidden
states of real tokens. With `model_type` `keyfold_token_mixer` the model is Keyfold's built-in
encoder, whose loss is one less the cosine with a goal; gradients of its table are sparse.
Prints the version and the milliseconds of every step, in its three parts, as JSON.
"""

import json
import sys
import time
from pathlib import Path

import torch
import transformers


class Block(torch.nn.Module):
    """A block as crates/text/src/builtin/mixer.rs has it."""

    def __init__(self, hidden, kernel, inner):
        super().__init__()
        self.norm = torch.nn.LayerNorm(hidden)
        self.conv = torch.nn.Conv1d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden)
        self.inner = torch.nn.Linear(hidden, inner)
        self.context = torch.nn.Linear(hidden, inner, bias=False)
        self.outer = torch.nn.Linear(inner, hidden)

    def forward(self, x, mask, counts):
        c = self.conv((self.norm(x) * mask).transpose(1, 2)).transpose(1, 2)
        mean = (x * mask).sum(1, keepdim=True) / counts
        return x + self.outer(torch.relu(self.inner(c) + self.context(mean)))


class Mixer(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden = config["hidden_size"]
        sizes = (hidden, config["kernel_size"], config["intermediate_size"])
        self.table = torch.nn.Embedding(config["vocab_size"], hidden, sparse=True)
        self.blocks = torch.nn.ModuleList(Block(*sizes) for _ in range(config["num_blocks"]))
        self.norm = torch.nn.LayerNorm(hidden)
        self.output = torch.nn.Linear(hidden, config["output_size"])

    def forward(self, ids, mask):
        mask = mask[..., None].float()
        counts = mask.sum(1, keepdim=True)
        x = self.table(ids)
        for block in self.blocks:
            x = block(x, mask, counts)
        return self.output(self.norm(x))


def mixer_steps(request):
    config, lengths = request["config"], request["lengths"]
    model = Mixer(config)
    rest = [p for name, p in model.named_parameters() if name != "table.weight"]
    optimizers = [
        torch.optim.AdamW(rest, lr=2e-3, weight_decay=0.01),
        torch.optim.SparseAdam([model.table.weight], lr=3e-3),
    ]
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    ids = torch.randint(0, config["vocab_size"], mask.shape) * mask
    goals = torch.nn.functional.normalize(torch.randn(*mask.shape, config["output_size"]), dim=-1)
    for _ in range(request["steps"]):
        times = [time.perf_counter()]
        found = torch.nn.functional.normalize(model(ids, mask)[mask], dim=-1)
        loss = (1 - (found * goals[mask]).sum(-1)).mean()
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        times.append(time.perf_counter())
        yield [1e3 * (b - a) for a, b in zip(times, times[1:])]


def main():
    request = json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(request["threads"])
    torch.manual_seed(1)
    if request["config"]["model_type"] == "keyfold_token_mixer":
        steps = list(mixer_steps(request))
        print(json.dumps({"name": f"PyTorch {torch.__version__}", "steps": steps}))
        return
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
