"""θ_B + α (m ⊙ τ), streamed from checkpoints to a new model directory, a block of rows at a time."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from gradfix._version import __version__
from gradfix.arithmetic import Added, add_rounded, add_scaled, count_different, count_nonzero, is_finite
from gradfix.checkpoints import BLOCK, Checkpoint, CheckpointWriter, TensorSource, TensorSpec
from gradfix.checkpoints.expressions import require_finite
from gradfix.checkpoints.files import refuse_inside
from gradfix.checkpoints.fingerprint import combined_fingerprint, fingerprints, tensor_fingerprint
from gradfix.errors import GradfixError
from gradfix.progress import Progress, silent
from gradfix.ranks import ranks
from gradfix.report.facts import Applied as RecordedApplied
from gradfix.report.record import RECORD_FILE, AppliedRecord
from gradfix.vectors.applied import Applied, TensorFacts
from gradfix.vectors.brought import module_folders
from gradfix.vectors.model_files import companion_files, merged_config
from gradfix.vectors.parallel import in_order, workers
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import Placement, TaskVector
from gradfix.vectors.verification import refuse_unloadable, verify_written

BLOCKS = 2
"""Blocks that are computed at a time: what is done to one takes hardly longer than handing it on."""

Rounding = Literal["nearest", "stochastic"]


def round_stochastically(exact: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Round to bfloat16 up or down with the probability that makes the mean exact.

    A change far below a weight's spacing is then kept on average instead of vanishing everywhere.

    Args:
        exact: Float32, any shape.
        dtype: ``torch.bfloat16``, the upper half of a float32.
        generator: Source of the random bits.

    Returns:
        The rounded values.

    Raises:
        GradfixError: for another dtype.
    """
    if dtype != torch.bfloat16:
        raise GradfixError(
            f"rounding: stochastic rounding is for bfloat16 outputs, found {dtype}; use 'nearest'"
        )
    noise = torch.randint(0, 1 << 16, exact.shape, dtype=torch.int32, generator=generator)
    bits = exact.view(torch.int32)
    # Adding below 2^16 to the magnitude bits carries into the kept half with probability (dropped half) / 2^16.
    return bits.add(noise).bitwise_and_(-(1 << 16)).view(torch.float32).to(torch.bfloat16)


def apply(
    task_vector: TaskVector,
    target: str | Path | Checkpoint,
    *,
    alpha: float = 1.0,
    output: str | Path,
    dtype: torch.dtype | str | None = None,
    rounding: Rounding = "nearest",
    seed: int = 0,
    shard_size: int = 5 * 10**9,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    heads: Mapping[str, Tensor] | None = None,
    companions: Callable[[Applied], Mapping[str, bytes]] | None = None,
    progress: Progress = silent,
) -> Applied:
    """Write θ_B + α·(task vector) as a model directory that ``from_pretrained`` loads.

    Peak memory is a few blocks of rows, whatever the model's size. Tensors that the task vector has nothing for
    stay byte-identical.

    Args:
        task_vector: m ⊙ τ, or τ itself for naive addition.
        target: θ_B: directory, file, Hub id or open checkpoint.
        alpha: Scaling coefficient α.
        output: The directory to make; it appears under this name only when whole.
        dtype: Of the output's weights, as ``"bfloat16"`` or ``torch.bfloat16``; None keeps the target's.
        rounding: ``"nearest"``, or ``"stochastic"`` for bfloat16 outputs.
        seed: For stochastic rounding.
        shard_size: Bytes a weights file may have.
        overwrite: Replace an existing output once the new one is whole.
        resume: Go on with an interrupted run of the same inputs.
        restart: Discard an interrupted run.
        heads: Tensors to write in place of the tuned model's or the target's, by output name (a refitted head).
        companions: Makes further files of the directory, by name, from what was written; by default a
            ``gradfix.json`` with the facts.
        progress: Told the bytes written.

    Returns:
        What was written.

    Raises:
        GradfixError: if the inputs don't fit each other, a number is not finite, or the output can't be written.
    """
    started = time.perf_counter()
    if not math.isfinite(alpha):
        raise GradfixError(f"alpha: expected a finite number, found {alpha}")
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    target = target if isinstance(target, Checkpoint) else Checkpoint.open(target)
    if target.directory is not None:
        refuse_inside(Path(output), [target.directory, *target.files])
    placement = place(task_vector, target)
    specs = output_specs(placement, target, dtype)
    files, remarks = companion_files(placement, target, dtype)
    refuse_unloadable(merged_config(placement.vector, target.config), specs, target, str(output))
    settings = {"alpha": alpha, "rounding": rounding, "seed": seed}
    identity: dict[str, Any] = {
        "task_vector": placement.vector.origin,
        "target": combined_fingerprint(fingerprints(target)),
        "dtype": str(dtype),
        "heads": {name: tensor_fingerprint(head) for name, head in (heads or {}).items()},
        **settings,
    }
    total, done = sum(spec.nbytes for spec in specs.values()), 0
    writer_context = CheckpointWriter(
        Path(output),
        specs,
        identity=identity,
        shard_size=shard_size,
        overwrite=overwrite,
        resume=resume,
        restart=restart,
        verify=lambda directory: verify_written(directory, target, str(output)),
    )
    with writer_context as writer, ExitStack() as stack:
        replaced = {name: head.to(specs[name].dtype) for name, head in (heads or {}).items()}
        pool = stack.enter_context(workers())
        stream = _Stream(placement, target, alpha, dtype, rounding, seed, replaced, pool)
        for name, spec in specs.items():
            if name not in writer.done:
                writer.write(name, stream.blocks(name), finite=stream.changes(name))
                if name in stream.facts:
                    writer.facts[name] = asdict(stream.facts[name])
            done += spec.nbytes
            progress("writing weights", done, total, "bytes")
        writer.finish_weights()
        applied = Applied(
            output=str(output),
            alpha=alpha,
            tensors={
                name: TensorFacts(**facts) for name, facts in cast(Mapping[str, Any], writer.facts).items()
            },
            untouched=list(placement.untouched),
            added=list(placement.vector.additions.specs),
            dropped=list(placement.dropped),
            rule=placement.rule,
            matched_tokens=placement.matched_tokens,
            remarks=remarks,
            seconds=time.perf_counter() - started,
        )
        record = AppliedRecord(
            gradfix=__version__, identity=identity, applied=RecordedApplied.model_validate(applied)
        )
        if ranks().first:
            ours = companions(applied) if companions else {RECORD_FILE: record.written().encode()}
            for relative, content in {**files, **ours}.items():
                writer.add_file(relative, content)
        for folder in module_folders(target.model_directory) if target.model_directory is not None else ():
            writer.add_folder(folder)  # that of a module without settings has no file
    return applied


def output_specs(
    placement: Placement, target: Checkpoint, dtype: torch.dtype | None
) -> dict[str, TensorSpec]:
    """List the output's tensors.

    Args:
        placement: Where each comes from.
        target: θ_B.
        dtype: Of floating-point tensors; None keeps the target's.

    Returns:
        Specs by output name, in the order they are written.
    """
    specs = {}
    for name, theirs in placement.outputs.items():
        spec = placement.vector.additions.specs[name] if theirs is None else placement.base.specs[theirs]
        specs[name] = TensorSpec(dtype, spec.shape) if dtype and spec.dtype.is_floating_point else spec
    return specs


@dataclass
class _Stream:
    """The blocks of each output tensor, and the facts gathered while they pass."""

    placement: Placement
    target: Checkpoint
    alpha: float
    dtype: torch.dtype | None
    rounding: Rounding
    seed: int
    heads: Mapping[str, Tensor]
    pool: ThreadPoolExecutor
    facts: dict[str, TensorFacts] = field(default_factory=dict)

    def changes(self, name: str) -> bool:
        """Whether τ has something for the tensor; then its blocks are known to be finite."""
        theirs = self.placement.outputs[name]
        return name not in self.heads and theirs is not None and theirs in self.placement.vector.specs

    def blocks(self, name: str) -> Iterator[Tensor]:
        if name in self.heads:
            yield self.heads[name]
            return
        theirs = self.placement.outputs[name]
        source: TensorSource = self.placement.vector.additions if theirs is None else self.placement.base
        key = name if theirs is None else theirs
        if self.changes(name):
            yield from self._changed(name, key)
            return
        for rows in source.specs[key].row_blocks():
            block = source.read(key, rows)
            if block.is_floating_point():
                require_finite(block, self.target.location if theirs else "the tuned model", key)
                block = block.to(self.dtype or block.dtype)
            yield block

    def _changed(self, name: str, theirs: str) -> Iterator[Tensor]:
        spec, vector = self.placement.base.specs[theirs], self.placement.vector
        facts = self.facts[name] = TensorFacts(spec.numel)
        blocks = in_order(self.pool, partial(self._block, theirs), spec.row_blocks(BLOCKS * BLOCK), ahead=4)
        for block, wanted, lost in blocks:
            facts.wanted += wanted
            facts.lost += lost
            yield block
        facts.count(vector.tally(theirs))

    def _block(self, name: str, rows: slice | None) -> tuple[Tensor, int, int]:
        """Compute one block of the output, how many of its weights should change, and how many don't."""
        delta = self.placement.vector.read(name, rows)
        base = self.placement.base.read(name, rows)
        dtype = self.dtype or base.dtype
        if self.rounding == "stochastic":
            key = hashlib.sha256(f"{self.seed}\0{name}\0{rows and rows.start}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "little"))
            added = self._added_stochastically(delta, base, dtype, generator)
        else:
            added = add_rounded(base, delta, self.alpha, dtype)
        if not added.finite:
            self._refuse(added.values.dtype, base, name)
        return added.values, added.wanted, max(0, added.wanted - added.changed)

    def _added_stochastically(
        self, delta: Tensor, base: Tensor, dtype: torch.dtype, generator: torch.Generator
    ) -> Added:
        exact = add_scaled(base, delta, self.alpha)
        values = round_stochastically(exact, dtype, generator)
        wanted = count_nonzero(delta) if self.alpha else 0
        changed = count_different(values, base.to(dtype)) if wanted else 0
        return Added(values, wanted, changed, is_finite(values) and is_finite(exact))

    def _refuse(self, dtype: torch.dtype, base: Tensor, name: str) -> None:
        """Tell what is not finite: a number of the target, or the sum."""
        require_finite(base, self.target.location, name)
        wider = "" if dtype == torch.float32 else ", or --dtype float32"
        raise GradfixError(
            f"{self.target.location}: {name}: the sum leaves the range of {dtype}; choose a smaller alpha{wider}"
        )
