"""What votes cost: the fast path, the plain loop and the authors' loop, against one ordinary gradient.

    python benchmarks/votes.py            # the table of the README, some minutes
    python benchmarks/votes.py --quick    # one model, few repeats

Every figure is a ratio to the mean-gradient pass (forward, loss, backward) over the same samples in the same
process; the ways take turns, warm, and the median counts. Memory is measured in a process for each way: the
highest resident size while it runs, over that of the mean-gradient pass.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from gradfix.votes import count_votes

Batch = dict[str, Tensor]
SCRATCH = 64  # MB that the fast path may need beside the votes


@dataclass
class Row:
    """One line of the table."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    target: float


def classification(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy, one value a sample."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    return functional.cross_entropy(model(**inputs).logits, batch["labels"], reduction="none")


def next_token(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the next token, one value a sample."""
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none").mean(
        1
    )


def images() -> Batch:
    """Eight images of 224 by 224 pixels."""
    return {"pixel_values": torch.randn(8, 3, 224, 224), "labels": torch.randint(0, 10, (8,))}


def texts(samples: int, tokens: int, vocabulary: int, labels: bool = True) -> Batch:
    """Random tokens, no padding."""
    batch = {"input_ids": torch.randint(1, vocabulary, (samples, tokens))}
    return batch | ({"labels": torch.randint(0, 3, (samples,))} if labels else {})


def minilm() -> nn.Module:
    """BERT of 6 layers and 384 dimensions."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return BertForSequenceClassification(BertConfig(**sizes, num_labels=3))


def llama() -> nn.Module:
    """TinyLlama's shape, 1.1 billion parameters."""
    sizes = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
    }
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=4, vocab_size=32000))


ROWS = {
    "llama": Row("Llama 1.1 B, 8 × 64 tokens", llama, lambda: texts(8, 64, 32000, labels=False), 1.0),
    "vit": Row(
        "ViT-B/16, 8 images of 224²",
        lambda: ViTForImageClassification(ViTConfig(num_labels=10)),
        images,
        1.0,
    ),
    "bert32": Row("BERT 6 × 384, 16 × 32 tokens", minilm, lambda: texts(16, 32, 30000), 1.1),
    "bert128": Row("BERT 6 × 384, 16 × 128 tokens", minilm, lambda: texts(16, 128, 30000), 1.05),
    "gpt2": Row(
        "GPT-2 small, 8 × 64 tokens",
        lambda: GPT2LMHeadModel(GPT2Config()),
        lambda: texts(8, 64, 50000, labels=False),
        1.25,
    ),
}


def loss_of(batch: Batch) -> Callable[[nn.Module, Batch], Tensor]:
    """Choose the loss that fits a batch."""
    return classification if "labels" in batch else next_token


def mean_pass(model: nn.Module, batch: Batch) -> None:
    """Compute the ordinary gradient of the mean loss."""
    loss_of(batch)(model, batch).mean().backward()


def authors_loop(model: nn.Module, batch: Batch) -> None:
    """Go through the whole batch's graph once for each sample, as the published code does."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    votes = [torch.zeros_like(parameter) for parameter in parameters]
    losses = loss_of(batch)(model, batch)
    for i in range(len(losses)):
        gradients = torch.autograd.grad(losses[i], parameters, retain_graph=True, allow_unused=True)
        for vote, gradient in zip(votes, gradients, strict=True):
            if gradient is not None:
                vote.add_(torch.sign(gradient))


def count(method: str) -> Callable[[nn.Module, Batch], None]:
    """Count votes by one method."""

    def run(model: nn.Module, batch: Batch) -> None:
        count_votes(model, [batch], loss_of(batch), method=method)

    return run


WAYS: dict[str, Callable[[nn.Module, Batch], None]] = {
    "mean pass": mean_pass,
    "fast": count("fast"),
    "plain": count("plain"),
    "authors": authors_loop,
}


def ratios(row: Row, ways: list[str], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Time the ways in turn.

    Args:
        row: Model and batch.
        ways: Which ones.
        repeats: How many rounds after a warm one.
        clock: Seconds of wall or processor time.

    Returns:
        Way to its median time over that of the mean pass; and that time in seconds.
    """
    torch.manual_seed(0)
    model, batch = row.build().eval(), row.batch()
    times: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way in ways:
            model.zero_grad(set_to_none=True)  # the mean pass's, which no other way should be charged for
            gc.collect()
            start = clock()
            WAYS[way](model, batch)
            if repeat:
                times[way].append(clock() - start)
    medians = {way: statistics.median(values) for way, values in times.items()}
    return {way: value / medians["mean pass"] for way, value in medians.items()} | {
        "seconds": medians["mean pass"]
    }


def peak(key: str, way: str) -> float:
    """Run one way in a process of its own.

    Args:
        key: Of the row.
        way: Which one.

    Returns:
        MB by which the resident size rose at most.
    """
    command = [sys.executable, __file__, "--peak", way, "--rows", key]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measure_peak(row: Row, way: str) -> None:
    """Print by how many MB the resident size rises while one way runs (Linux)."""
    torch.manual_seed(0)
    model, batch = row.build().eval(), row.batch()
    with torch.no_grad():  # load the kernels, which are not what is measured
        loss_of(batch)(model, {key: value[:1] for key, value in batch.items()})
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size starts anew
    before = _status("VmRSS")
    WAYS[way](model, batch)
    print(json.dumps((_status("VmHWM") - before) / 1024))


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small model, three rounds, no memory")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time, for a machine that is shared"
    )
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--peak", choices=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        measure_peak(ROWS[options.rows[0]], options.peak)
        return
    if options.quick:
        options.rows, options.repeats, options.no_memory = ["bert32"], 3, True
    ways = ["mean pass", *(way for way in options.ways if way != "mean pass")]
    clock = time.process_time if options.cpu_time else time.perf_counter
    of = "processor time" if options.cpu_time else "wall time"
    print(f"torch {torch.__version__}, {options.threads} threads, {of}, median of {options.repeats}\n")
    print(
        "| model, batch | mean pass | " + " | ".join(ways[1:]) + " | to reach | memory over the mean pass |"
    )
    print("|---" * (len(ways) + 3) + "|")
    for key in options.rows:
        row = ROWS[key]
        found = ratios(row, ways, options.repeats, clock)
        memory = "–"
        if not options.no_memory:
            votes = sum(p.numel() for p in row.build().parameters()) / 2**20
            over = peak(key, "fast") - peak(key, "mean pass")
            memory = f"{over:+.0f} MB (allowed {votes + SCRATCH:.0f})"
        cells = " | ".join(f"{found[way]:.2f}" for way in ways[1:])
        print(
            f"| {row.name} | 1.0 ({found['seconds']:.2f} s) | {cells} | ≤ {row.target} | {memory} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
