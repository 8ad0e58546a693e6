"""Commands that are killed, that meet errors of the disk, or that run twice at once: an output is whole or absent."""

import errno
import hashlib
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tests.campaigns.results import Result
from tests.campaigns.runner import Fault, Outcome, runner

APPLY = [
    "apply",
    "--source-base",
    "base",
    "--source-tuned",
    "tuned",
    "--target-base",
    "target",
    "--output",
    "out",
    "--shard-size",
    "20KB",
]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CALLS = {
    "pwrite": (errno.ENOSPC, errno.EIO, 0),
    "fsync": (errno.EIO, errno.ENOSPC),
    "open": (errno.EACCES, errno.EMFILE),
    "rename": (errno.EIO,),
    "replace": (errno.EIO,),
}


def digest(folder: Path) -> str:
    """Hash the weights and the configuration of an output.

    Args:
        folder: The output; may be missing.

    Returns:
        SHA-256; empty where there is none.
    """
    if not folder.exists():
        return ""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.name in {"config.json", "model.safetensors.index.json"}:
            total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _clear(root: Path) -> None:
    for path in (*root.glob("out*"), *root.glob(".out*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _left(root: Path) -> list[str]:
    return sorted(path.name for path in (*root.glob("out*"), *root.glob(".out*")) if path.name != "out")


def _references(root: Path) -> tuple[str, str, float]:
    """The digests of the output with α of 1 and of 0.5, and how long a run takes."""
    found = []
    for alpha in (1.0, 0.5):
        _clear(root)
        outcome = runner().run(*APPLY, "--alpha", alpha, cwd=root)
        assert outcome.status == 0, outcome.stderr
        found.append(digest(root / "out"))
    _clear(root)
    return found[0], found[1], outcome.seconds


def kills(root: Path, seed: int, count: int) -> Result:
    """End commands at random moments, and run them again.

    Args:
        root: A world.
        seed: Of the moments.
        count: How many.

    Returns:
        What was found: an output that is neither absent nor whole, an earlier one that is gone, a run that can't be
        repeated or gives other bytes, an interrupt that ends otherwise than with 130 and one line.
    """
    result, draw = Result("kills"), random.Random(seed)
    one, half, seconds = _references(root)
    for _ in range(count):
        _clear(root)
        overwrite = draw.random() < 0.5
        if overwrite:
            runner().run(*APPLY, "--alpha", 0.5, cwd=root)
        command = [*APPLY, "--alpha", 1.0, *(["--overwrite"] if overwrite else [])]
        number, after = draw.choice(SIGNALS), draw.uniform(0, seconds)
        outcome = runner().run(*command, cwd=root, signal=number, after=after)
        result.add(
            f"{number.name} after {after:.3f} s",
            _killed(root, outcome, command, number, one, half),
            outcome,
        )
    _clear(root)
    return result


def _killed(
    root: Path,
    outcome: Outcome,
    command: list[object],
    number: signal.Signals,
    one: str,
    half: str,
) -> str:
    allowed = {one, half} if "--overwrite" in command else {one, ""}
    if digest(root / "out") not in allowed:
        return "the output is neither absent nor whole"
    if number is signal.SIGINT and outcome.status not in {0, 130}:
        return f"SIGINT ended with {outcome.status}: {outcome.stderr[-200:]}"
    if outcome.status == 130 and outcome.stderr.strip().splitlines()[-1:] != ["interrupted"]:
        return f"SIGINT said {outcome.stderr[-200:]!r}"
    if "Traceback" in outcome.stderr:
        return outcome.stderr[-200:]
    if outcome.status == 0:
        return ""
    again = runner().run(
        *command, *([] if "--overwrite" in command else ["--overwrite"]), "--restart", cwd=root
    )
    if again.status != 0 or digest(root / "out") != one:
        return f"the run after it gave {again.status}: {again.stderr[-200:]}"
    return f"left {_left(root)}" if _left(root) else ""


def faults(root: Path, seed: int, count: int) -> Result:
    """Let each write, fsync, open and rename of a command fail in turn.

    Args:
        root: A world.
        seed: Of the order.
        count: At most so many.

    Returns:
        What was found: an end without one line, an output that is not whole, an earlier one that is gone.
    """
    result = Result("faults")
    one, half, _ = _references(root)
    cases = list(_each_call(root))
    random.Random(seed).shuffle(cases)
    for fault in cases[:count]:
        _clear(root)
        runner().run(*APPLY, "--alpha", 0.5, cwd=root)
        outcome = runner().run(*APPLY, "--alpha", 1.0, "--overwrite", cwd=root, fault=asdict(fault))
        now = digest(root / "out")
        found = outcome.fault
        if not found and outcome.status == 0 and now != one:
            found = "said that it wrote, and did not"
        if not found and outcome.status and now not in {one, half}:
            found = "the earlier output is gone"
        result.add(f"{fault.call} {fault.number}: {errno.errorcode.get(fault.code, 'short')}", found, outcome)
    _clear(root)
    return result


def _each_call(root: Path) -> Iterator[Fault]:
    count = root / "count"
    for call, codes in CALLS.items():
        runner().run(*APPLY, "--alpha", 0.5, cwd=root)
        runner().run(
            *APPLY, "--alpha", 1.0, "--overwrite", cwd=root, fault=asdict(Fault(call, 0, 0, str(count)))
        )
        calls = int(count.read_text())
        yield from (Fault(call, number, code, str(count)) for number in range(1, calls + 1) for code in codes)
    count.unlink()


def races(root: Path, seed: int, pairs: int) -> Result:
    """Start two commands on one output at once.

    Args:
        root: A world.
        seed: Of what they are told.
        pairs: How many pairs.

    Returns:
        What was found: nobody wrote, both wrote without ``--overwrite``, an output of neither, something left behind.
    """
    result, draw = Result("two at once"), random.Random(seed)
    one, half, _ = _references(root)
    for _ in range(pairs):
        _clear(root)
        overwrite = draw.random() < 0.5
        if overwrite:
            runner().run(*APPLY, "--alpha", 1.0, cwd=root)
        extra = ["--overwrite"] if overwrite else []
        outcomes = runner().together(
            [[*APPLY, "--alpha", 1.0, *extra], [*APPLY, "--alpha", 0.5, *extra]], cwd=root
        )
        wrote = [
            digest_ for digest_, outcome in zip((one, half), outcomes, strict=True) if outcome.status == 0
        ]
        found = next((outcome.fault for outcome in outcomes if outcome.fault), "")
        if not found and digest(root / "out") not in wrote:
            found = f"the output is of none of those that wrote it: {[o.stderr[-150:] for o in outcomes]}"
        if not found and len(wrote) == 2 and not overwrite:
            found = "both say that they wrote it"
        if not found and _left(root):
            found = f"left {_left(root)}"
        result.add("--overwrite" if overwrite else "plain", found, *outcomes)
    _clear(root)
    return result
