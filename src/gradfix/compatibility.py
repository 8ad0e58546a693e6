"""Do three models fit each other? Answered from headers, configurations and a few rows of each tensor."""

import hashlib
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gradfix.checkpoints import Checkpoint, TensorSource
from gradfix.errors import GradfixError, listed
from gradfix.placement import Placement, own_weights, place
from gradfix.sources import Selection
from gradfix.update import add_scaled, output_specs
from gradfix.vectors import TaskVector

Level = Literal["error", "warning", "note"]

UNRELATED = 0.5
"""Cosine of two models' weights below which one can't come from the other: fine-tunes keep above 0.9, independent
pre-trainings are at 0.0."""
CLOSE = 0.9
"""Cosine above which the new base counts as a close release of the old one."""
SAMPLED_ROWS = 8

# Keys of a configuration that change what the same weights compute.
_FUNCTIONAL = (
    "hidden_act", "activation_function", "layer_norm_eps", "rms_norm_eps", "rope_theta", "rope_parameters",
    "num_attention_heads", "num_key_value_heads", "patch_size", "image_size", "position_embedding_type",
    "feed_forward_proj", "scale_attn_weights", "sliding_window",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that the check found.

    Attributes:
        level: ``error`` stops a transport, ``warning`` may spoil it, ``note`` is good to know.
        text: What, and what to do about it.
    """

    level: Level
    text: str


@dataclass
class Compatibility:
    """What :func:`check` found.

    Attributes:
        findings: In the order they were found.
        cosine_tuned: Cosine between the sampled weights of θ_A and θ_A^ft.
        cosine_target: Between θ_A and θ_B: near 1 for a close release, near 0 for another pre-training.
        relative_norm: ‖τ‖ / ‖θ_A‖ on the sample.
        output_bytes: Size of the model that would be written.
        seconds: Estimated time to write it, measured on one block.
    """

    findings: list[Finding] = field(default_factory=list)
    cosine_tuned: float | None = None
    cosine_target: float | None = None
    relative_norm: float | None = None
    output_bytes: int | None = None
    seconds: float | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing stands against a transport."""
        return all(finding.level != "error" for finding in self.findings)

    def add(self, level: Level, text: str) -> None:
        """Record a finding.

        Args:
            level: How bad.
            text: What, and what to do.
        """
        self.findings.append(Finding(level, text))

    def to_json(self) -> dict[str, Any]:
        """Give the result as JSON.

        Returns:
            The attributes, and ``ok``.
        """
        return {"ok": self.ok, **asdict(self)}


def check(
    source_base: str | Checkpoint,
    source_tuned: str | Checkpoint,
    target_base: str | Checkpoint,
    *,
    output: Path | None = None,
) -> Compatibility:
    """Find what can be found before any real work: architecture, keys, shapes, vocabulary, descent, room.

    Args:
        source_base: θ_A.
        source_tuned: θ_A^ft.
        target_base: θ_B.
        output: Where the result would go; its disk is checked if given.

    Returns:
        The findings. A refusal is a finding too, nothing is raised for it.
    """
    result = Compatibility()
    try:
        base = source_base if isinstance(source_base, Checkpoint) else Checkpoint.open(source_base)
        tuned = (
            source_tuned
            if isinstance(source_tuned, Checkpoint)
            else Checkpoint.open(source_tuned, base=base.location)
        )
        target = target_base if isinstance(target_base, Checkpoint) else Checkpoint.open(target_base)
        _check_architecture(result, base, tuned, target)
        tau = TaskVector.between(base, tuned)
        placement = place(tau, target)
    except GradfixError as error:
        result.add("error", str(error))
        return result
    _note_placement(result, placement, target)
    try:
        _check_descent(result, base, tuned, target, tau, placement)
        _check_room(result, placement, target, output)
    except GradfixError as error:
        result.add("error", str(error))
    return result


def _check_architecture(
    result: Compatibility, base: Checkpoint, tuned: Checkpoint, target: Checkpoint
) -> None:
    for other in (tuned, target):
        kinds = base.config.get("model_type"), other.config.get("model_type")
        if None not in kinds and kinds[0] != kinds[1]:
            result.add(
                "error",
                f"{other.location}: model_type: expected {kinds[0]} as in {base.location}, found {kinds[1]}; "
                "all three models must be of one architecture",
            )
        differing = [
            f"{path} {theirs!r} against {ours!r}"
            for path, ours, theirs in _differences(base.config, other.config)
            if ours is not None and theirs is not None
        ]
        if differing:
            result.add(
                "warning",
                f"{other.location}: its configuration computes something else than {base.location}'s: "
                f"{listed(differing)}; the task vector may not carry over",
            )
    if not target.config:
        result.add(
            "note", f"{target.location}: no config.json, so the output will be weights without a model around"
        )
    ties = base.config.get("tie_word_embeddings"), target.config.get("tie_word_embeddings")
    if None not in ties and ties[0] != ties[1]:
        result.add(
            "warning",
            f"{target.location}: tie_word_embeddings is {ties[1]}, in {base.location} it is {ties[0]}; "
            "input and output embeddings will change together in one model and apart in the other",
        )


def _differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in _FUNCTIONAL:
        if ours.get(key) != theirs.get(key):
            yield prefix + key, ours.get(key), theirs.get(key)
    for key in ("text_config", "vision_config"):
        if isinstance(ours.get(key), dict) and isinstance(theirs.get(key), dict):
            yield from _differences(ours[key], theirs[key], f"{key}.")


def _note_placement(result: Compatibility, placement: Placement, target: Checkpoint) -> None:
    if placement.rule:
        result.add("note", f"names matched by a known prefix: {placement.rule}")
    for name, (matched, rows) in placement.matched_tokens.items():
        level: Level = "warning" if matched < 0.9 * rows else "note"
        result.add(
            level,
            f"{name}: the vocabularies differ; {matched} of {rows} rows are matched by token text, "
            "the others keep the new base's values",
        )
    if placement.untouched:
        result.add(
            "note",
            f"keep the new base's values, the task vector has nothing for them: {listed(placement.untouched)}",
        )
    if placement.unplaced:
        result.add(
            "warning", f"{target.location} has no place for: {listed(placement.unplaced)}; they are left out"
        )
    if placement.dropped:
        result.add("note", f"left out, the tuned model has a head of its own: {listed(placement.dropped)}")
    if placement.vector.additions.specs:
        result.add(
            "note",
            f"copied from the tuned model, the bases lack them: {listed(placement.vector.additions.specs)}",
        )
    if target.specs and {spec.dtype for spec in target.specs.values()} & {torch.bfloat16, torch.float16}:
        result.add(
            "note",
            f"{target.location}: weights of 16 bits can swallow small changes; what is lost is counted when the "
            "model is written, and --dtype float32 or --rounding stochastic keeps it",
        )


def _check_descent(
    result: Compatibility,
    base: Checkpoint,
    tuned: Checkpoint,
    target: Checkpoint,
    tau: TaskVector,
    placement: Placement,
) -> None:
    # Vectors are left out: normalisation weights are near 1 in every model, so they'd make all models look alike.
    match = [name for name in placement.vector.specs if len(placement.vector.specs[name].shape) > 1]
    names = match or list(placement.vector.specs)
    delta = _Sample(placement.vector, names)
    theirs = _Sample(Selection(target, {name: name for name in names}), names)
    # θ_A^ft is not read again: with τ and θ_A known in the target's names, it is their sum.
    origin = _Sample(place(own_weights(base), target).vector, names)
    result.relative_norm = delta.norm() / origin.norm() if origin.norm() else None
    result.cosine_tuned = origin.cosine(origin + delta)
    result.cosine_target = origin.cosine(theirs)
    if delta.norm() == 0 and tau.norm() == 0:
        result.add(
            "error",
            f"{tuned.location}: equal to {base.location} in every weight, so the task vector is exactly zero; "
            "give the fine-tuned model as the tuned one",
        )
    elif result.cosine_tuned is not None and result.cosine_tuned < UNRELATED:
        result.add(
            "error",
            f"{tuned.location}: does not descend from {base.location}: the cosine of their weights is "
            f"{result.cosine_tuned:.2f}, a fine-tune's is above 0.9; give the base it was tuned from",
        )
    if result.cosine_target is not None:
        close = result.cosine_target > CLOSE
        result.add(
            "note",
            f"{target.location} is {'a close release of' if close else 'pre-trained apart from'} {base.location}: "
            f"the cosine of their weights is {result.cosine_target:.2f}; "
            + ("naive addition may already work" if close else "naive addition is not expected to work"),
        )
    if result.cosine_target is not None and result.cosine_target > 1 - 1e-9:
        result.add(
            "warning", f"{target.location} has the same weights as {base.location}: there is nothing to move"
        )


class _Sample:
    """A few evenly spaced rows of each tensor, as one float64 vector."""

    def __init__(self, source: TensorSource | None, names: list[str], values: Tensor | None = None) -> None:
        self.names = names
        if values is None:
            parts = [rows for name in names if source is not None for rows in _sample_rows(source, name)]
            values = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
        self.values = values

    def __add__(self, other: "_Sample") -> "_Sample":
        return _Sample(None, self.names, self.values + other.values)

    def norm(self) -> float:
        return float(self.values.norm())

    def cosine(self, other: "_Sample") -> float | None:
        scale = self.norm() * other.norm()
        return float(self.values.dot(other.values)) / scale if scale else None


def _sample_rows(source: TensorSource, name: str) -> Iterator[Tensor]:
    rows = source.specs[name].shape[0] if source.specs[name].shape else 0
    step = max(1, math.ceil(rows / SAMPLED_ROWS))
    for row in range(0, rows, step):
        yield source.read(name, slice(row, row + 1)).flatten().double()


def _check_room(result: Compatibility, placement: Placement, target: Checkpoint, output: Path | None) -> None:
    specs = output_specs(placement, target, None)
    result.output_bytes = sum(spec.nbytes for spec in specs.values())
    result.seconds = _measured_seconds(placement, target, sum(spec.numel for spec in specs.values()))
    if output is not None:
        parent = next(folder for folder in Path(output).absolute().parents if folder.exists())
        free = shutil.disk_usage(parent).free
        if free < result.output_bytes:
            result.add(
                "error",
                f"{output}: {result.output_bytes:,} bytes needed, {free:,} free on its disk; "
                "make room or choose another output",
            )
        elif Path(output).exists():
            result.add("warning", f"{output}: exists already; the transport will need --overwrite")
    needed = (
        sum(spec.numel for spec in specs.values()) * 5
    )  # float32 weights and a byte of votes a coordinate
    available = _available_memory()
    if available is not None and needed > available:
        result.add(
            "warning",
            f"counting votes in float32 takes about {needed / 1e9:.1f} GB of memory, "
            f"{available / 1e9:.1f} GB are free; count on a larger machine, and apply the votes file here",
        )


def _measured_seconds(placement: Placement, target: Checkpoint, elements: int) -> float:
    """Time one block of the largest shared tensor through the steps of writing, and scale it up."""
    name = max(placement.vector.specs, key=lambda name: placement.vector.specs[name].numel)
    rows = next(placement.vector.specs[name].row_blocks())
    started = time.perf_counter()
    base, delta = target.read(name, rows), placement.vector.read(name, rows)
    block = add_scaled(base, delta, 1.0).to(base.dtype)
    hashlib.sha256(block.flatten().view(torch.uint8).numpy().data).hexdigest()
    return (time.perf_counter() - started) * elements / max(1, block.numel())


def _available_memory() -> int | None:
    meminfo = Path("/proc/meminfo")  # on Linux; elsewhere nothing is said about memory
    if not meminfo.exists():
        return None
    entries = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(entries["MemAvailable"].removesuffix("kB")) * 1024 if "MemAvailable" in entries else None
