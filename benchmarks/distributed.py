"""Two ranks of one thread beside one: the time of a count and of a whole transport, and the bytes that are exchanged.

    python benchmarks/distributed.py [FOLDER]             one machine
    python benchmarks/distributed.py --hosts [FOLDER]     two network namespaces as two hosts (needs root)

A random BERT of 22 M parameters (the shape of all-MiniLM-L6-v2), its fine-tune and its next release, in FOLDER (a
temporary one by default), 64 samples (or --samples) of 64 tokens to count and 96 to judge on. Each rank computes with
one thread. Runs of one and of two ranks alternate; a ratio is that of two neighbours. Times are from when everything is
imported to the end; on a machine that does other work, the processor's time of the busiest rank tells more.
Outputs are compared byte by byte.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

TOKENS, JUDGED = 64, 96
WORK = ("votes", "transport")
NAMESPACES = ("gradfix-a", "gradfix-b")


def make(folder: Path, counted: int) -> None:
    """Write three models and two data sets."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(30522)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="w0", unk_token="w3", model_max_length=TOKENS
    )
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12, num_labels=4
    )
    model = BertForSequenceClassification(config)
    for name, change in (("old", 0.0), ("mine", 0.01), ("new", 0.002)):
        generator = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.empty_like(parameter).normal_(0, change, generator=generator))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, count in (("support", counted), ("test", JUDGED)):
        texts = [
            " ".join(f"w{5 + (7 * n + 3 * t + len(name)) % 4000}" for t in range(TOKENS))
            for n in range(count)
        ]
        rows = [{"text": text, "label": f"LABEL_{n % 4}"} for n, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def arguments(folder: Path, what: str, output: Path) -> list[str]:
    """Give a command's arguments."""
    task = [
        "--task", "text-classification", "--batch-size", "8", "--target-base", str(folder / "new"),
        "--source-base", str(folder / "old"), "--source-tuned", str(folder / "mine"),
        "--support", str(folder / "support.jsonl"), "--output", str(output),
    ]  # fmt: skip
    if what == "votes":
        return ["votes", *task]
    return [
        "transport",
        *task,
        "--method",
        "gradfix",
        "--test",
        str(folder / "test.jsonl"),
        "--shard-size",
        "30MB",
    ]


def run(size: int, command: list[str], hosts: bool = False) -> tuple[float, float, list[int]]:
    """Run a command on so many ranks; give its seconds, the processor's of the busiest, and the bytes each sent."""
    shared = {
        **os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size), "MASTER_PORT": "29641",
        "MASTER_ADDR": "10.99.0.1" if hosts else "127.0.0.1", "TRANSFORMERS_VERBOSITY": "error",
    }  # fmt: skip
    processes = []
    for rank in range(size):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": "0" if hosts else str(rank)}
        inside = ["ip", "netns", "exec", NAMESPACES[rank]] if hosts else []
        if hosts:
            own["GLOO_SOCKET_IFNAME"] = f"veth{rank}"
        processes.append(
            subprocess.Popen(
                [*inside, sys.executable, "-m", "benchmarks.distributed_rank", *command],
                env=own,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    sent, wall, busy = [], 0.0, 0.0
    for process in processes:
        out, said = process.communicate()
        if process.returncode:
            raise SystemExit(f"{' '.join(command[:1])} on {size} ranks: {said}")
        counted, taken, seconds = out.rsplit("sent ", 1)[1].split()
        sent.append(int(counted))
        wall, busy = max(wall, float(taken)), max(busy, float(seconds))
    return wall, busy, sent


def same(one: Path, other: Path) -> bool:
    """Compare the weights, or the votes, of two outputs."""
    files = sorted(one.rglob("*.safetensors")) if one.is_dir() else [one]
    return bool(files) and all(
        path.read_bytes() == (other / path.relative_to(one) if one.is_dir() else other).read_bytes()
        for path in files
    )


def place(folder: Path, what: str, name: str) -> Path:
    """Where a command writes."""
    return folder / f"{what}-{name}{'.safetensors' * (what == 'votes')}"


def measure(folder: Path, what: str, rounds: int) -> None:
    """Print the times of one and two ranks, and their ratio."""
    ratios: list[tuple[float, float]] = []
    for number in range(rounds):
        outputs = {size: place(folder, what, f"{number}-{size}") for size in (1, 2)}
        found = {size: run(size, arguments(folder, what, output)) for size, output in outputs.items()}
        if not number:
            print(f"{what}: bytes sent a rank {', '.join(f'{each:,}' for each in found[2][2])}", flush=True)
        ratios.append((found[1][0] / found[2][0], found[1][1] / found[2][1]))
        verdict = "the same bytes" if same(*outputs.values()) else "OTHER BYTES"
        print(
            f"{what}: 1 rank {found[1][0]:.1f} s ({found[1][1]:.1f} s of the processor), 2 ranks {found[2][0]:.1f} s "
            f"({found[2][1]:.1f} s each): {ratios[-1][0]:.2f} times as fast ({ratios[-1][1]:.2f}), {verdict}",
            flush=True,
        )
        for output in outputs.values():
            shutil.rmtree(output) if output.is_dir() else output.unlink()
    wall, busy = (statistics.median(each) for each in zip(*ratios, strict=True))
    print(f"{what}: median {wall:.2f} times as fast, {busy:.2f} in the processor's time of a rank")


@contextmanager
def two_hosts() -> Iterator[None]:
    """Two network namespaces that are joined by one cable and see nothing else."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        for name in NAMESPACES:
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            "veth0",
            "netns",
            NAMESPACES[0],
            "type",
            "veth",
            "peer",
            "veth1",
            "netns",
            NAMESPACES[1],
        )
        for number, name in enumerate(NAMESPACES):
            ip("-n", name, "addr", "add", f"10.99.0.{number + 1}/24", "dev", f"veth{number}")
            ip("-n", name, "link", "set", f"veth{number}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in NAMESPACES:
            subprocess.run(["ip", "netns", "del", name], check=False)


def carried() -> int:
    """Bytes that the first host has put on the cable."""
    shown = subprocess.run(
        ["ip", "-n", NAMESPACES[0], "-s", "-j", "link", "show", "veth0"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(json.loads(shown.stdout)[0]["stats64"]["tx"]["bytes"])


def on_two_hosts(folder: Path, work: Sequence[str]) -> None:
    """Print whether two hosts come to the bytes of one, and what went over the cable."""
    with two_hosts():
        for what in work:
            outputs = [place(folder, what, kind) for kind in ("one", "hosts")]
            run(1, arguments(folder, what, outputs[0]))
            before = carried()
            *_, sent = run(2, arguments(folder, what, outputs[1]), hosts=True)
            verdict = "the same bytes" if same(*outputs) else "OTHER BYTES"
            print(
                f"{what} on two hosts: {verdict}; rank 0 sent {sent[0]:,}, on the cable {carried() - before:,}"
            )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--hosts", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64, help="labelled samples that vote")
    parser.add_argument("--work", nargs="+", choices=WORK, default=WORK)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=told.folder) as name:
        folder = Path(name)
        make(folder, told.samples)
        weights = (folder / "new" / "model.safetensors").stat().st_size // 4
        print(f"{weights:,} parameters, {told.samples} samples counted, {JUDGED} judged", flush=True)
        if told.hosts:
            on_two_hosts(folder, told.work)
        else:
            for what in told.work:
                measure(folder, what, told.rounds)


if __name__ == "__main__":
    main()
