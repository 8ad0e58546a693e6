"""Time and memory of ``gradfix apply`` beside mergekit doing the same sum, on synthetic Llama checkpoints.

    python benchmarks/apply.py                 # 1.1 billion parameters, three rounds
    python benchmarks/apply.py --double        # gradfix alone on a model twice as long

Each round runs, one after the other on the same files in the page cache: ``gradfix apply`` without votes,
``mergekit-yaml`` (task_arithmetic: base B, tuned weight 1, A weight −1), ``gradfix apply`` with votes, and a plain
copy of the output. gradfix waits for the disk (fsync) and hashes what it writes; the other two do neither.
mergekit is installed into a virtual environment of its own, in the work directory, and only ever called.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.fingerprint import fingerprints
from gradfix.votes import Votes
from gradfix.votes.metadata import VoteRecord
from llama_triple import NAMES, llama_specs, make_triple

MERGEKIT = (
    "mergekit==0.1.5",
    "torch==2.13.0",
    "transformers==5.23.0",
    "pydantic==2.14.3",
    "accelerate==1.15.0",
)
SHARD_SIZE = 600_000_000
SAMPLE_SECONDS = 0.02
MEGABYTE = 1e6
VOTERS = 16


@dataclass
class Runs:
    """What was measured of one command.

    Attributes:
        seconds: Wall time of each round.
        peak: Largest anonymous memory seen in any round, in bytes.
    """

    seconds: list[float] = field(default_factory=list)
    peak: int = 0


def main() -> None:
    """Make the files, run the rounds, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()) / "gradfix-bench-apply")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--double", action="store_true", help="44 layers, gradfix alone")
    parser.add_argument("--prepare", action="store_true", help="make files and environment, measure nothing")
    options = parser.parse_args()
    layers = 44 if options.double else 22
    models = make_triple(options.workdir / f"{layers}-layers", layers, SHARD_SIZE)
    votes = make_votes(options.workdir / f"{layers}-layers" / "votes.safetensors", models["target"], layers)
    mergekit = None if options.double else ensure_mergekit(options.workdir)
    if options.prepare:
        return
    with tempfile.TemporaryDirectory(dir=options.workdir) as scratch:
        runs = measure(Path(scratch), models, votes, mergekit, options.rounds)
    report(runs, layers, memory_with_torch())


def make_votes(path: Path, target: Path, layers: int) -> Path:
    """Write votes of 16 samples for every weight: random ones, as their values don't matter for the time."""
    if path.exists():
        return path
    generator = torch.Generator().manual_seed(1)
    largest = max(spec.numel for spec in llama_specs(layers).values())
    pool = torch.randint(-VOTERS, VOTERS + 1, (largest,), dtype=torch.int8, generator=generator)
    record = VoteRecord(
        vote="majority",
        samples=VOTERS,
        sample_ids=tuple(str(number) for number in range(VOTERS)),
        fingerprints=fingerprints(Checkpoint.open(target)),
    )
    counts = {name: pool[: spec.numel].reshape(spec.shape) for name, spec in llama_specs(layers).items()}
    Votes(counts, record).save(path)
    return path


def ensure_mergekit(workdir: Path) -> Path:
    """Install mergekit into its own virtual environment unless it is there."""
    program = workdir / "mergekit-venv" / "bin" / "mergekit-yaml"
    if not program.exists():
        venv.create(workdir / "mergekit-venv", with_pip=True, clear=True)
        subprocess.run([program.with_name("pip"), "install", "--quiet", *MERGEKIT], check=True)
    return program


def measure(
    scratch: Path, models: dict[str, Path], votes: Path, mergekit: Path | None, rounds: int
) -> dict[str, Runs]:
    """Run everything in turn, with all inputs in the page cache and nothing left to be written back."""
    output = {name: scratch / name for name in ("gradfix", "mergekit", "voted", "copy")}
    program = Path(sys.executable).with_name("gradfix")
    gradfix: list[str | Path] = [program, "apply", "--shard-size", str(SHARD_SIZE)]
    gradfix += ["--source-base", models["base"], "--source-tuned", models["tuned"]]
    gradfix += ["--target-base", models["target"]]
    config = scratch / "mergekit.yaml"
    config.write_text(json.dumps(same_sum(models)))
    theirs = ["--out-shard-size", str(SHARD_SIZE), "--quiet"]
    commands: dict[str, list[str | Path]] = {
        "gradfix apply, naive": [*gradfix, "--output", output["gradfix"]],
        **({"mergekit-yaml": [mergekit, config, output["mergekit"], *theirs]} if mergekit else {}),
        "gradfix apply, votes": [*gradfix, "--votes", votes, "--output", output["voted"]],
        "plain copy of the output": ["cp", "-r", output["gradfix"], output["copy"]],
    }
    runs: dict[str, Runs] = defaultdict(Runs)
    for round_number in range(rounds):
        for path in (*(models[name] for name in NAMES), votes):
            read_into_cache(path)
        for name, command in commands.items():
            os.sync()
            seconds, peak = timed([str(part) for part in command])
            runs[name].seconds.append(seconds)
            runs[name].peak = max(runs[name].peak, peak)
            print(f"round {round_number + 1}: {name}: {seconds:.2f} s", file=sys.stderr)
        if mergekit is not None and round_number == 0:
            compare(output["gradfix"], output["mergekit"])
        for path in output.values():
            shutil.rmtree(path, ignore_errors=True)
    return runs


def same_sum(models: dict[str, Path]) -> dict[str, object]:
    """B + 1 · (tuned − B) − 1 · (A − B) = B + tuned − A, in mergekit's words (JSON is YAML)."""
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(models["target"]),
        "models": [
            {"model": str(models["tuned"]), "parameters": {"weight": 1.0}},
            {"model": str(models["base"]), "parameters": {"weight": -1.0}},
        ],
        "parameters": {"normalize": False},
        "dtype": "bfloat16",
    }


def read_into_cache(path: Path) -> None:
    """Read a file, or all files of a directory."""
    buffer = bytearray(1 << 24)
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def timed(command: list[str]) -> tuple[float, int]:
    """Run a command to its end.

    Returns:
        Wall seconds, and the largest RssAnon of /proc/PID/status seen, in bytes (0 where there is no /proc).
    """
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous_memory(process.pid))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.perf_counter() - started
        if process.returncode:
            log.seek(0)
            text = log.read().decode(errors="replace")[-3000:]
            raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{text}")
    return seconds, peak


def anonymous_memory(pid: int | str) -> int:
    """Bytes of a process that no file backs."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def memory_with_torch() -> int:
    """Anonymous memory of an interpreter that has only imported torch."""
    program = "import torch; print(open('/proc/self/status').read())"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return sum(
        int(line.split()[1]) * 1024 for line in result.stdout.splitlines() if line.startswith("RssAnon:")
    )


def compare(ours: Path, theirs: Path) -> None:
    """Say how far the two results agree: mergekit takes the differences in bfloat16, gradfix in float32."""
    mine, other = Checkpoint.open(ours), Checkpoint.open(theirs)
    equal = total = 0
    largest = 0.0
    for name, spec in mine.specs.items():
        for rows in spec.row_blocks():
            left, right = mine.read(name, rows), other.read(name, rows)
            equal += int((left == right).sum())
            total += left.numel()
            largest = max(largest, float((left.float() - right.float()).abs().max()))
    print(f"equal to mergekit's: {equal / total:.2%} of {total} weights, largest difference {largest:.2g}")


def report(runs: dict[str, Runs], layers: int, with_torch: int) -> None:
    """Print the Markdown table and the machine it is from."""
    parameters = sum(spec.numel for spec in llama_specs(layers).values())
    rounds = len(next(iter(runs.values())).seconds)
    print(f"\n{parameters / 1e9:.2f} billion parameters, bfloat16, shards of 600 MB, {rounds} rounds\n")
    print(
        "| command | seconds, median (range) | ratio to mergekit, median of rounds | peak anonymous MB over torch |"
    )
    print("|---|---|---|---|")
    theirs = runs["mergekit-yaml"].seconds if "mergekit-yaml" in runs else []
    for name, run in runs.items():
        ratio = "–"
        if theirs:
            ratio = f"{statistics.median(a / b for a, b in zip(run.seconds, theirs, strict=True)):.2f}"
        memory = "–" if name.startswith("plain") else f"{(run.peak - with_torch) / MEGABYTE:.0f}"
        spread = f"{min(run.seconds):.1f}–{max(run.seconds):.1f}"
        print(f"| {name} | {statistics.median(run.seconds):.1f} ({spread}) | {ratio} | {memory} |")
    print(
        f"\n{processor()}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()};"
    )
    print(f"an interpreter with torch imported has {with_torch / MEGABYTE:.0f} MB anonymous memory.")


def processor() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


if __name__ == "__main__":
    main()
