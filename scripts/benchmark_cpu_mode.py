"""How fast CPU mode trains, beside a replica of the same model and update in plain PyTorch.

    OMP_NUM_THREADS=1 python scripts/benchmark_cpu_mode.py [--layers 2 --hidden-size 128] [--rounds 3]

Megatron and the replica train in turn, each in a process of its own, on the same samples of nca://toy. The figures are
medians of the milliseconds of an update over blocks of ten; the first two blocks do not count. The replica has what the
run has: RMSNorm, rotary positions, causal attention, a GELU MLP, clipped gradients and Adam with decoupled weight
decay, all in float32.
"""

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import time

import torch
from torch import nn
from torch.nn import functional

from nca_plugin.sources import parse

SOURCE = "nca://toy"
BLOCK = 10
_TIMES = re.compile(r"elapsed time per iteration \(ms\): ([\d.]+)")
_LOSS = re.compile(r"lm loss: (\S+)")


def main() -> None:
    """Print a line for each side and round, and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seq-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8, help="sequences of an update (default: 8)")
    parser.add_argument("--updates", type=int, default=80, help="of each run, a multiple of 10 (default: 80)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replica", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replica:
        train_replica(options)
        return
    sides = {"Megatron": megatron_command(options), "replica": [sys.executable, *sys.argv, "--replica"]}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side, command in sides.items():
            milliseconds, loss = measured(command)
            times[side].append(milliseconds)
            speed = 1000 * options.batch * options.seq_length / milliseconds
            print(f"round {number + 1}, {side}: {milliseconds:.1f} ms, {speed:,.0f} tokens/s, loss {loss}", flush=True)
    ratio = statistics.median(times["replica"]) / statistics.median(times["Megatron"])
    print(f"CPU mode has {ratio:.0%} of the replica's speed")


def measured(command: list[str]) -> tuple[float, str]:
    """Return the milliseconds of an update, and the last loss."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MASTER_PORT": "29431"})
    blocks = [float(found) for found in _TIMES.findall(done.stdout)]
    if done.returncode or len(blocks) < 3:
        sys.exit(done.stdout[-2000:] + done.stderr[-5000:])
    return statistics.median(blocks[2:]), _LOSS.findall(done.stdout)[-1]


def megatron_command(options: argparse.Namespace) -> list[str]:
    """Return the command of Megatron's run."""
    arguments = {
        "data-source": SOURCE,
        "num-layers": options.layers,
        "hidden-size": options.hidden_size,
        "num-attention-heads": options.heads,
        "seq-length": options.seq_length,
        "max-position-embeddings": options.seq_length,
        "position-embedding-type": "rope",
        "normalization": "RMSNorm",
        "attention-dropout": 0,
        "hidden-dropout": 0,
        "micro-batch-size": options.batch,
        "global-batch-size": options.batch,
        "lr": 1e-3,
        "lr-decay-style": "constant",
        "clip-grad": 1.0,
        "weight-decay": 1e-4,
        "train-iters": options.updates,
        "eval-iters": 0,
        "eval-interval": 1000,
        "log-interval": BLOCK,
        "num-workers": 0,
    }
    switches = ("disable-bias-linear", "untie-embeddings-and-output-weights", "no-create-attention-mask-in-dataloader")
    named = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "nca_plugin.launch.megatron", *named, *(f"--{switch}" for switch in switches)]


class Layer(nn.Module):
    """A layer of the model, on float32 [batch, S, hidden size]."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(size), nn.RMSNorm(size)
        self.qkv, self.proj = nn.Linear(size, 3 * size, bias=False), nn.Linear(size, size, bias=False)
        self.fc1, self.fc2 = nn.Linear(size, 4 * size, bias=False), nn.Linear(4 * size, size, bias=False)

    def forward(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        batch, length, size = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, size // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = (rotated(each, *rotation) for each in (query, key))
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(found.transpose(1, 2).reshape(x.shape))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


def rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Return queries or keys [batch, heads, S, channels] turned by their positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


class Replica(nn.Module):
    """The model, from tokens int64 [batch, S] to logits float32 [batch, S, rows]."""

    def __init__(self, rows: int, options: argparse.Namespace) -> None:
        super().__init__()
        size, channels = options.hidden_size, options.hidden_size // options.heads
        self.embedding, self.output = nn.Embedding(rows, size), nn.Linear(size, rows, bias=False)
        self.layers = nn.ModuleList(Layer(size, options.heads) for _ in range(options.layers))
        self.norm = nn.RMSNorm(size)
        frequencies = 10_000.0 ** (-torch.arange(0, channels, 2) / channels)
        angles = torch.outer(torch.arange(options.seq_length).float(), frequencies).repeat(1, 2)
        self.rotation = angles.cos(), angles.sin()
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.rotation)
        result: torch.Tensor = self.output(self.norm(x))
        return result


def train_replica(options: argparse.Namespace) -> None:
    """Train the replica, and print lines like Megatron's."""
    source = parse(SOURCE)
    torch.manual_seed(1)
    # Megatron pads the rows to a multiple of 128.
    model = Replica(128 * math.ceil(source.vocab_size / 128), options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    began = time.perf_counter()
    for update in range(options.updates):
        samples = [source.sample(update * options.batch + i, options.seq_length) for i in range(options.batch)]
        tokens = torch.stack([torch.from_numpy(sample.tokens).long() for sample in samples])
        mask = torch.stack([torch.from_numpy(sample.loss_mask) for sample in samples]).float()
        losses = functional.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")
        loss = (losses * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (update + 1) % BLOCK == 0:
            now = time.perf_counter()
            milliseconds = 1000 * (now - began) / BLOCK
            print(f"elapsed time per iteration (ms): {milliseconds:.1f} | lm loss: {loss.item():.6E} |", flush=True)
            began = now


if __name__ == "__main__":
    main()
