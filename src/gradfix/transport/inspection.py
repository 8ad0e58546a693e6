"""What is in a file: the facts of votes, of a task vector, of a transport's output or of any checkpoint."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.fingerprint import combined_fingerprint
from gradfix.checkpoints.layers import layer_of
from gradfix.checkpoints.quantisation import declared_method, packed_tensor
from gradfix.checkpoints.reading.safetensors_file import SafetensorsFile
from gradfix.errors import GradfixError, listed
from gradfix.report.facts import TensorFacts
from gradfix.report.record import RECORD_FILE, AppliedRecord, TransportRecord, read_applied
from gradfix.report.summary import Summarised, Summary
from gradfix.vectors.task_vector import VECTOR_FORMAT, TaskVector
from gradfix.votes import Votes
from gradfix.votes.metadata import VOTES_FORMAT


@dataclass(frozen=True, repr=False)
class Inspection(Summarised):
    """What was found.

    Attributes:
        path: What was looked at.
        kind: ``"votes"``, ``"task vector"``, ``"transport"`` or ``"checkpoint"``.
        facts: Of the whole, by what people call them.
        tensors: Of each tensor, by name: ``elements``, and by kind of file ``norm``, ``kept``, ``norm_kept``, ``ties``
            and ``margin``, shares in [0, 1].
        advice: What can be done with it.
    """

    path: str
    kind: str
    facts: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Any]]
    advice: str = ""

    def summary(self) -> Summary:
        """Say what the file is, and facts of the whole; the tensors are in :attr:`tensors`.

        Returns:
            A line a fact.
        """
        facts = [(name, fact_words(fact)) for name, fact in self.facts.items()]
        return Summary(f"{self.path}: {self.kind}", [*facts, ("next", self.advice)])

    def to_json(self) -> dict[str, Any]:
        """Give the findings as JSON.

        Returns:
            The attributes, with the place of each tensor in its network.
        """
        placed = {name: {**layer_of(name)._asdict(), **facts} for name, facts in self.tensors.items()}
        return {"path": self.path, "kind": self.kind, "facts": dict(self.facts), "tensors": placed}


def fact_words(fact: Any) -> str:
    """Say a fact in a line: the many of a list or an object by their number and the first few.

    Args:
        fact: JSON.

    Returns:
        Words; empty where there is nothing to say.
    """
    if fact is None or fact in ([], {}, ""):
        return ""
    if isinstance(fact, bool | int):
        return f"{fact:,}"
    if isinstance(fact, float):
        return f"{fact:.4g}"
    if isinstance(fact, dict):
        shown = ", ".join(f"{key} {fact_words(value) or '–'}" for key, value in list(fact.items())[:6])
        return shown + (f" and {len(fact) - 6} more" if len(fact) > 6 else "")
    if isinstance(fact, list):
        shown = ", ".join(fact_words(value) for value in fact[:4])
        return shown + (f" and {len(fact) - 4} more" if len(fact) > 4 else "")
    return str(fact)


@dataclass
class BlockFacts:
    """A line of the terminal's table: the tensors of one block of a network.

    Attributes:
        name: Of the block.
        tensors: How many tensors it has.
        elements: In all of them.
        sums: Weighted sums of each fact, with their weights.
    """

    name: str
    tensors: int = 0
    elements: int = 0
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, facts: Mapping[str, Any]) -> None:
        """Add one tensor: norms add up as lengths do, shares by number of elements.

        Args:
            facts: Of :attr:`Inspection.tensors`.
        """
        self.tensors += 1
        self.elements += facts["elements"]
        for key in ("norm", "kept", "norm_kept", "ties", "margin"):
            if facts.get(key) is not None:
                total, weight = self.sums.get(key, (0.0, 0.0))
                length = key in {"norm", "norm_kept"}
                self.sums[key] = (
                    total + (facts[key] ** 2 if length else facts[key] * facts["elements"]),
                    weight + facts["elements"],
                )

    def value(self, key: str) -> float | None:
        """Give a fact of the whole block.

        Args:
            key: As in :attr:`Inspection.tensors`.

        Returns:
            A length for norms, else the mean share; None where no tensor has it.
        """
        if key not in self.sums:
            return None
        total, weight = self.sums[key]
        return math.sqrt(total) if key in {"norm", "norm_kept"} else total / weight if weight else 0.0


def by_block(tensors: Mapping[str, Mapping[str, Any]]) -> list[BlockFacts]:
    """Gather tensors by the block of the network they sit in.

    Args:
        tensors: Facts by name.

    Returns:
        Blocks in order, what is outside of any block first.
    """
    blocks: dict[tuple[str, int], BlockFacts] = {}
    for name, facts in tensors.items():
        place = layer_of(name)
        depth = -1 if place.depth is None else place.depth
        shown = f"{place.tower} {'outside' if depth < 0 else depth}".strip()
        blocks.setdefault((place.tower, depth), BlockFacts(shown)).add(facts)
    return [blocks[key] for key in sorted(blocks)]


def inspect(path: str | Path) -> Inspection:
    """Look into a file or folder.

    Args:
        path: A file of ``gradfix votes`` or ``gradfix diff``, the output of ``gradfix transport`` or ``gradfix apply``,
            or any checkpoint.

    Returns:
        What was found; all tensors of votes and task vectors are read once.

    Raises:
        GradfixError: if there is nothing to be read.
    """
    path = Path(path)
    if path.is_dir() and (path / RECORD_FILE).is_file():
        return _written(path)
    if path.is_file() and _is_safetensors(path):
        written = SafetensorsFile(path).metadata.get("format")
        if written == VOTES_FORMAT:
            return _votes(path)
        if written == VECTOR_FORMAT:
            return _vector(path)
    return _checkpoint(path)


def _is_safetensors(path: Path) -> bool:
    """Whether a file has the header of that format, whatever it is called."""
    try:
        SafetensorsFile(path)
    except GradfixError:
        return False  # what it is, or what is wrong with it, is said by whoever opens it as a checkpoint
    return True


def _votes(path: Path) -> Inspection:
    votes = Votes.load(path)
    voters = max(1, votes.samples) if votes.vote == "majority" else 1
    tensors: dict[str, dict[str, Any]] = {}
    tied = net = elements = 0
    for name, spec in votes.specs.items():
        counts = votes.read(name).numpy()
        ties, sum_ = counts.size - int(np.count_nonzero(counts)), int(np.abs(counts).sum(dtype=np.int64))
        tied, net, elements = tied + ties, net + sum_, elements + counts.size
        share = 1 / max(1, spec.numel)
        tensors[name] = {"elements": spec.numel, "ties": ties * share, "margin": sum_ * share / voters}
    facts: dict[str, Any] = {
        "vote": votes.vote,
        "samples": votes.samples,
        "seed": votes.seed,
        "gradients computed in": votes.dtype,
        "target fingerprint": combined_fingerprint(votes.fingerprints),
        "tensors": len(votes),
        "elements": elements,
        "ties": tied / elements if elements else 0.0,
        "mean margin": net / elements / voters if elements else 0.0,
        "without votes": list(votes.uncovered),
        "counted one sample at a time": dict(votes.plain),
    }
    if votes.vote == "majority" and votes.samples > 1:
        stability = votes.stability()
        facts["signs that another draw would change"] = list(stability.mask_change)
    return Inspection(str(path), "votes", facts, tensors, "use it with `gradfix apply --votes`")


def _vector(path: Path) -> Inspection:
    vector = TaskVector.load(path)
    tensors = {}
    square, nonzero = 0.0, 0
    for name, spec in vector.specs.items():
        own, there = 0.0, 0
        for block in vector.blocks(name):
            values = block.numpy()
            own += float(np.square(values, dtype=np.float64).sum())
            there += int(np.count_nonzero(values))
        square, nonzero = square + own, nonzero + there
        tensors[name] = {"elements": spec.numel, "norm": math.sqrt(own), "kept": there / max(1, spec.numel)}
    elements = sum(spec.numel for spec in vector.specs.values())
    facts = {
        "tensors": len(vector),
        "elements": elements,
        "norm": math.sqrt(square),
        "elements that are not 0": nonzero / elements if elements else 0.0,
        "parameters of the tuned model's own": list(vector.additions.specs),
        "origin": vector.origin,
    }
    return Inspection(str(path), "task vector", facts, tensors, "use it with `gradfix apply --task-vector`")


def _written(path: Path) -> Inspection:
    record = read_applied(path / RECORD_FILE)
    votes = record.votes if isinstance(record, TransportRecord) else None
    applied = record.applied
    if applied is None:
        raise GradfixError(
            f"{path / RECORD_FILE}: says nothing of what was written; restore the file as gradfix wrote it"
        )
    facts: dict[str, Any] = {"verdict": record.verdict if isinstance(record, TransportRecord) else None}
    facts |= {"α": applied.alpha, "kept": applied.kept_share, "lost in rounding": applied.lost_share}
    facts |= _told(record)
    voters = None if votes is None else votes.samples
    tensors = {name: _applied(each, voters) for name, each in applied.tensors.items()}
    kept = {name: fact for name, fact in facts.items() if fact not in (None, "", {})}
    advice = "" if isinstance(record, AppliedRecord) else f"`gradfix report {path}` makes its page again"
    return Inspection(str(path), "transport", kept, tensors, advice)


def _told(record: TransportRecord | AppliedRecord) -> dict[str, Any]:
    if isinstance(record, AppliedRecord):
        return {"versions": {"gradfix": record.gradfix}}
    votes = record.votes
    return {
        "made from": {role: entry.location for role, entry in record.inputs.items()},
        "votes": None if votes is None else votes.model_dump(include={"vote", "samples", "tie_rate"}),
        "versions": record.versions,
    }


def _applied(facts: TensorFacts, voters: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {"elements": facts.coordinates}
    if facts.nonzero and facts.kept is not None:
        found["kept"] = facts.kept / facts.nonzero
        found["norm"], found["norm_kept"] = math.sqrt(facts.square or 0), math.sqrt(facts.kept_square or 0)
    if voters and facts.voted:
        found["ties"] = (facts.tied or 0) / facts.voted
        found["margin"] = (facts.net or 0) / facts.voted / voters
    return found


def _checkpoint(path: Path) -> Inspection:
    checkpoint = Checkpoint.open(str(path), allow_quantised=True)
    codes = packed_tensor(checkpoint.config, checkpoint.specs)
    kinds: dict[str, int] = {}
    for spec in checkpoint.specs.values():
        kind = str(spec.dtype).removeprefix("torch.")
        kinds[kind] = kinds.get(kind, 0) + spec.numel
    facts = {
        "architecture": _words(checkpoint.config.get("architectures")),
        "quantised": declared_method(checkpoint.config) or (f"{codes[0]} holds codes" if codes else None),
        "tensors": len(checkpoint.specs),
        "elements": sum(kinds.values()),
        "elements by number format": kinds,
        "bytes": sum(spec.nbytes for spec in checkpoint.specs.values()),
    }
    tensors = {name: {"elements": spec.numel} for name, spec in checkpoint.specs.items()}
    advice = (
        "a plain checkpoint: no votes and no task vector are in it; `gradfix diff` takes the difference of two, "
        "`gradfix votes` asks one for its votes, and `gradfix check` tells whether three fit"
    )
    return Inspection(str(path), "checkpoint", facts, tensors, advice)


def _words(names: Iterable[str] | None) -> str:
    return listed(list(names)) if names else "unknown"
