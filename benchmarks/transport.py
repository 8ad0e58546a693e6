"""What a whole transport costs beside its irreducible parts, on a BERT of 22 million parameters.

    python benchmarks/transport.py            # three rounds, under a minute on a quiet machine

One process runs, in turns, `gradfix transport` with 20 support and 200 validation samples, and the parts that
no implementation can leave out: loading the model, one mean-gradient pass over the support set, and as many
evaluations of the validation samples as the run tried values of α. Medians are compared. The reach is a ratio of
at most 1.5. Memory is the growth of the process's anonymous memory while a transport runs (weights read from
mapped files are the page cache's and not counted), beside the model and its votes.
"""

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast
from transformers.utils import logging

from gradfix.cli import app

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
        seconds: dict[str, list[float]] = defaultdict(list)
        stages: dict[str, list[float]] = defaultdict(list)
        peaks = []
        transport(work)  # warm: imports, the page cache, the allocator
        for _ in range(options.rounds):
            total, peak, record = transport(work)
            seconds["transport"].append(total)
            peaks.append(peak)
            for stage, spent in record["seconds"].items():
                stages[stage].append(spent)
            for part, spent in irreducible(work, len(record["alpha"]["curve"])).items():
                seconds[part].append(spent)
        report(seconds, stages, peaks, record)


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


def transport(work: Path) -> tuple[float, int, dict]:
    """Run the command in this process.

    Returns:
        Its wall time, the growth of anonymous memory in bytes, and the record it wrote.
    """
    arguments = [
        "transport", "--source-base", work / "old", "--source-tuned", work / "tuned", "--target-base", work / "new",
        "--task", "text-classification", "--support", work / "support.jsonl",
        "--validation", work / "validation.jsonl", "--output", work / "output", "--overwrite",
    ]  # fmt: skip
    with AnonymousMemory() as memory:
        started = time.perf_counter()
        app([str(argument) for argument in arguments], standalone_mode=False)
        spent = time.perf_counter() - started
    record = json.loads((work / "output" / "gradfix.json").read_text())
    return (
        spent,
        memory.growth,
        record | {"weights_bytes": (work / "new" / "model.safetensors").stat().st_size},
    )


def irreducible(work: Path, candidates: int) -> dict[str, float]:
    """Time what a transport can't do without, written plainly with transformers alone."""
    from transformers import AutoTokenizer

    seconds = {}
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(work / "new")
    model = AutoModelForSequenceClassification.from_pretrained(work / "new", dtype=torch.float32).eval()
    seconds["load"] = time.perf_counter() - started
    started = time.perf_counter()
    for batch, labels in batches(work / "support.jsonl", tokenizer):
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels, reduction="sum") / SUPPORT
        loss.backward()
    seconds["mean gradient"] = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    encoded = list(batches(work / "validation.jsonl", tokenizer))
    with torch.inference_mode():
        for _ in range(candidates):
            for batch, labels in encoded:
                torch.nn.functional.cross_entropy(
                    model(**batch).logits, labels, reduction="none"
                ).sum().item()
    seconds["evaluations"] = time.perf_counter() - started
    return seconds


def batches(file: Path, tokenizer):
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


def report(
    seconds: dict[str, list[float]], stages: dict[str, list[float]], peaks: list[int], record: dict
) -> None:
    """Print ratio, where the time went, and memory."""
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    parts = sum(spent for name, spent in middle.items() if name != "transport")
    ratios = [
        seconds["transport"][number]
        / sum(values[number] for name, values in seconds.items() if name != "transport")
        for number in range(len(seconds["transport"]))
    ]
    ratio = statistics.median(ratios)
    candidates = len(record["alpha"]["curve"])
    print(
        f"transport {middle['transport']:.2f} s; parts {parts:.2f} s: load {middle['load']:.2f}, mean gradient "
        f"{middle['mean gradient']:.2f}, {candidates} evaluations of α {middle['evaluations']:.2f}"
    )
    print(
        f"ratio {ratio:.2f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)}); reach {REACH}: "
        f"{'met' if ratio <= REACH else 'missed'}; {torch.get_num_threads()} threads"
    )
    print(
        "stages: " + ", ".join(f"{name} {statistics.median(values):.2f} s" for name, values in stages.items())
    )
    model = record["weights_bytes"]
    votes = model // 4  # one byte a coordinate instead of four
    print(
        f"memory: grows by {max(peaks) / MEGABYTE:.0f} MB; model {model / MEGABYTE:.0f} + votes {votes / MEGABYTE:.0f} "
        f"= {(model + votes) / MEGABYTE:.0f} MB; largest tensor {VOCABULARY * 384 * 4 / MEGABYTE:.0f} MB"
    )


if __name__ == "__main__":
    main()
