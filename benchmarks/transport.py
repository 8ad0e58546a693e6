"""What a whole transport costs beside its irreducible parts, on a BERT of 22 million parameters.

    python benchmarks/transport.py            # three rounds, about two minutes of one core each

One process runs, in turns, `gradfix transport` with 20 support and 200 validation samples, and the parts that
no implementation can leave out: loading the model, one mean-gradient pass over the support set, and as many
evaluations of the validation samples as the run tried values of α. The median ratio of the rounds counts, the
reach is at most 1.5. Memory is the growth of the process's anonymous memory while a transport runs (weights read from
mapped files are the page cache's and not counted), beside the model and its votes.
"""

import argparse
import contextlib
import io
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from gradfix.cli.command import app

SUPPORT, VALIDATION, CLASSES, WORDS, CONTENT = 20, 200, 2, 30, 40
VOCABULARY = 30522
REACH = 1.5
MEGABYTE = 1e6
SAMPLE_SECONDS = 0.005


def main() -> None:
    """Make the inputs, take turns, print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="of torch; all cores by default")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="gradfix-bench-transport-") as name:
        work = Path(name)
        make_inputs(work)
        rounds = []
        transport(work)  # warm: imports, the page cache, the allocator
        for number in range(options.rounds):
            rounds.append(measure(work))
            print(f"round {number + 1}: {rounds[-1].describe()}", flush=True)
        report(rounds)


@dataclass
class Clocks:
    """Time passed on the wall and on the processor.

    Attributes:
        wall: Seconds.
        cpu: Seconds of this process, all threads together: what a busy machine hardly changes.
    """

    wall: float
    cpu: float


class Timed:
    """Measures what happens inside it; a context manager."""

    def __enter__(self) -> "Timed":
        self._started = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.clocks = Clocks(time.perf_counter() - self._started[0], time.process_time() - self._started[1])


@dataclass
class Round:
    """A transport and its irreducible parts, one after the other.

    Attributes:
        total: Of the transport.
        parts: By name.
        growth: Of anonymous memory during the transport, in bytes.
        record: What the transport wrote.
    """

    total: Clocks
    parts: dict[str, Clocks]
    growth: int
    record: dict

    def ratio(self, clock: str) -> float:
        """The transport's time over that of its parts."""
        return getattr(self.total, clock) / sum(getattr(part, clock) for part in self.parts.values())

    def describe(self) -> str:
        """One line."""
        parts = ", ".join(f"{name} {part.wall:.2f}" for name, part in self.parts.items())
        return (
            f"transport {self.total.wall:.2f} s, parts {parts} s: ratio {self.ratio('wall'):.2f} on the wall, "
            f"{self.ratio('cpu'):.2f} on the processor"
        )


def make_inputs(work: Path) -> None:
    """Write an old base, a fine-tune of it and a new base, all random but fixed, and labelled texts.

    The label of a text is the one of two word lists it draws on; the other words say nothing.
    """
    words = [f"w{number}" for number in range(VOCABULARY - 4)]
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=512,
    )  # fmt: skip
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    config = BertConfig(**sizes, vocab_size=VOCABULARY, num_labels=CLASSES)
    for name, seed in (("old", 0), ("new", 1)):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        model.save_pretrained(work / name)
        tokenizer.save_pretrained(work / name)
        if name == "old":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=1e-3)
            model.save_pretrained(work / "tuned")
            tokenizer.save_pretrained(work / "tuned")
    draw = random.Random(0)
    for name, count in (("support", SUPPORT), ("validation", VALIDATION)):
        rows = []
        for number in range(count):
            label = number % CLASSES
            own = words[label * CONTENT : (label + 1) * CONTENT]
            text = " ".join(
                draw.choice(own) if draw.random() < 0.5 else draw.choice(words) for _ in range(WORDS)
            )
            rows.append({"text": text, "label": f"LABEL_{label}"})
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure(work: Path) -> Round:
    """Run a transport, then its parts."""
    total, growth, record = transport(work)
    return Round(total, irreducible(work, len(record["alpha"]["curve"])), growth, record)


def transport(work: Path) -> tuple[Clocks, int, dict]:
    """Run the command in this process.

    Returns:
        Its time, the growth of anonymous memory in bytes, and the record it wrote.
    """
    arguments = [
        "transport", "--source-base", work / "old", "--source-tuned", work / "tuned", "--target-base", work / "new",
        "--task", "text-classification", "--support", work / "support.jsonl",
        "--validation", work / "validation.jsonl", "--output", work / "output", "--overwrite",
        "--method", "gradfix",
    ]  # fmt: skip
    with AnonymousMemory() as memory, contextlib.redirect_stderr(io.StringIO()), Timed() as timed:
        app([str(argument) for argument in arguments], standalone_mode=False)
    return timed.clocks, memory.growth, json.loads((work / "output" / "gradfix.json").read_text())


def irreducible(work: Path, candidates: int) -> dict[str, Clocks]:
    """Time what a transport can't do without, written plainly with transformers alone."""
    with Timed() as load:
        tokenizer = AutoTokenizer.from_pretrained(work / "new")
        model = AutoModelForSequenceClassification.from_pretrained(work / "new", dtype=torch.float32).eval()
    with Timed() as gradient:
        for batch, labels in batches(work / "support.jsonl", tokenizer):
            (cross_entropy(model(**batch).logits, labels, reduction="sum") / SUPPORT).backward()
    model.zero_grad(set_to_none=True)
    with Timed() as evaluations, torch.inference_mode():
        encoded = list(batches(work / "validation.jsonl", tokenizer))
        for _ in range(candidates):
            for batch, labels in encoded:
                cross_entropy(model(**batch).logits, labels, reduction="none").sum().item()
    return {"load": load.clocks, "mean gradient": gradient.clocks, "evaluations of α": evaluations.clocks}


def batches(file: Path, tokenizer: Any) -> Iterator[tuple[Any, Tensor]]:
    """Encode rows, 32 at a time."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        labels = torch.tensor([int(row["label"][-1]) for row in part])
        yield tokenizer([row["text"] for row in part], padding=True, return_tensors="pt"), labels


class AnonymousMemory:
    """Watches how far this process's anonymous memory grows (Linux)."""

    def __enter__(self) -> "AnonymousMemory":
        self._first = self._peak = anonymous()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, anonymous())

    @property
    def growth(self) -> int:
        """Bytes."""
        return self._peak - self._first


def anonymous() -> int:
    """Read the anonymous part of the resident memory, in bytes; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def report(rounds: list[Round]) -> None:
    """Print ratio, where the time went, and memory."""
    record = rounds[-1].record
    for clock, name in (("wall", "wall"), ("cpu", "processor")):
        ratio = statistics.median(one.ratio(clock) for one in rounds)
        print(f"ratio, {name} time: {ratio:.2f} (reach {REACH}: {'met' if ratio <= REACH else 'missed'})")
    stages = {
        name: statistics.median(one.record["seconds"][name] for one in rounds) for name in record["seconds"]
    }
    print("stages: " + ", ".join(f"{name} {spent:.2f} s" for name, spent in stages.items()))
    print(f"{len(record['alpha']['curve'])} values of α tried, {torch.get_num_threads()} threads of torch")
    coordinates = sum(facts["coordinates"] for facts in record["applied"]["tensors"].values())
    model, votes = 4 * coordinates, coordinates  # float32, and counts of one byte
    growth = max(one.growth for one in rounds)
    print(
        f"memory: grows by {growth / MEGABYTE:.0f} MB; model {model / MEGABYTE:.0f} + votes {votes / MEGABYTE:.0f} "
        f"= {(model + votes) / MEGABYTE:.0f} MB; largest tensor {VOCABULARY * 384 * 4 / MEGABYTE:.0f} MB"
    )


if __name__ == "__main__":
    main()
