"""A vector of an adapter's coordinates, α (m ⊙ B), written as an adapter that peft loads."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradfix._version import __version__
from gradfix.checkpoints import Checkpoint, CheckpointWriter, TensorSpec
from gradfix.checkpoints.expressions import count_nonzero
from gradfix.checkpoints.files import refuse_inside
from gradfix.checkpoints.fingerprint import combined_fingerprint, fingerprints
from gradfix.checkpoints.lora.layout import (
    ADAPTER_FILE,
    PREFIX,
    LayerShape,
    adapter_config,
    adapter_specs,
    factor_keys,
)
from gradfix.checkpoints.tensors import is_finite
from gradfix.errors import GradfixError
from gradfix.progress import Progress, silent
from gradfix.report.facts import Applied as RecordedApplied
from gradfix.report.record import RECORD_FILE, AppliedRecord
from gradfix.vectors.applied import Applied, TensorFacts
from gradfix.vectors.model_files import reading_files
from gradfix.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class AdapterLayer:
    """One layer of an adapter to be written.

    Attributes:
        coordinates: Name of B in the vector.
        shape: Of the layer and its factors.
        down: A, [r, i].
    """

    coordinates: str
    shape: LayerShape
    down: Tensor


@dataclass(frozen=True)
class AdapterOutput:
    """What an adapter will be made of, beside the vector.

    Attributes:
        layers: The adapted layers, by name in the module.
        whole: Modules saved whole, with their tensors by name in the module.
        modules: All layers of the module that could be adapted.
        dtype: Of the factors.
        task_type: What peft calls the task; None to leave it open.
        added: Tensors among the whole ones that only the tuned model has.
    """

    layers: Mapping[str, AdapterLayer]
    whole: Mapping[str, Mapping[str, Tensor]]
    modules: Iterable[str]
    dtype: torch.dtype
    task_type: str | None = None
    added: Sequence[str] = ()
    remarks: Sequence[str] = field(default_factory=tuple)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The whole tensors of all modules."""
        return {name: value for module in self.whole.values() for name, value in module.items()}

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """The tensors of the adapter's file."""
        whole = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in self.tensors.items()}
        return adapter_specs({name: layer.shape for name, layer in self.layers.items()}, whole, self.dtype)


def write_adapter(
    vector: TaskVector,
    target: Checkpoint,
    adapter: AdapterOutput,
    *,
    alpha: float = 1.0,
    output: str | Path,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    companions: Callable[[Applied], Mapping[str, bytes]] | None = None,
    progress: Progress = silent,
) -> Applied:
    """Write α·(vector) as a directory that ``PeftModel.from_pretrained`` puts on the target.

    Args:
        vector: m ⊙ B, by layer.
        target: θ_B, on which the adapter stands.
        adapter: Everything else of it.
        alpha: Scaling coefficient α.
        output: The directory to make; it appears under this name only when whole.
        overwrite: Replace an existing output once the new one is whole.
        resume: Go on with an interrupted run of the same inputs.
        restart: Discard an interrupted run.
        companions: Makes further files of the directory, by name, from what was written; by default a
            ``gradfix.json`` with the facts.
        progress: Told the bytes written.

    Returns:
        What was written; its tensors are B, by layer.

    Raises:
        GradfixError: if a number is not finite or leaves the number format, or the output can't be written.
    """
    started = time.perf_counter()
    if not math.isfinite(alpha):
        raise GradfixError(f"alpha: expected a finite number, found {alpha}")
    if target.directory is not None:
        refuse_inside(Path(output), [target.directory, *target.files])
    specs, whole = adapter.specs, adapter.tensors
    files, remarks = reading_files(vector, target)
    config = adapter_config(
        {name: layer.shape for name, layer in adapter.layers.items()},
        list(adapter.whole),
        modules=adapter.modules,
        base=target.location,
        task_type=adapter.task_type,
    )
    files["adapter_config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    identity: dict[str, Any] = {
        "task_vector": vector.origin,
        "target": combined_fingerprint(fingerprints(target)),
        "dtype": str(adapter.dtype),
        "alpha": alpha,
    }
    facts: dict[str, TensorFacts] = {}
    total, done = sum(spec.nbytes for spec in specs.values()), 0
    writer_context = CheckpointWriter(
        Path(output),
        specs,
        identity=identity,
        shard_size=max(1, total),
        single_file=ADAPTER_FILE,
        overwrite=overwrite,
        resume=resume,
        restart=restart,
    )
    with writer_context as writer:

        def write(key: str, value: Tensor) -> None:
            nonlocal done
            if not is_finite(value):
                raise GradfixError(
                    f"{output}: {key}: leaves the range of {value.dtype}; choose a smaller alpha, or --dtype float32"
                )
            writer.write(key, [value.reshape(specs[key].shape).contiguous().cpu()])
            done += specs[key].nbytes
            progress("writing the adapter", done, total, "bytes")

        for name, layer in adapter.layers.items():
            down, up = factor_keys(name, layer.shape.kind)
            delta = vector.read(layer.coordinates)
            written = delta.mul(alpha).to(adapter.dtype)
            facts[layer.coordinates] = _facts(vector, layer.coordinates, delta, written, alpha)
            writer.facts[up] = asdict(facts[layer.coordinates])
            write(down, layer.down.to(adapter.dtype))
            write(up, written)
        for name in vector.specs.keys() - facts.keys():  # what is stored whole and changes, too
            delta = vector.read(name)
            facts[name] = _facts(vector, name, delta, delta, alpha)
        for name, value in whole.items():
            write(PREFIX + name, value)
        applied = Applied(
            output=str(output),
            alpha=alpha,
            tensors=facts,
            untouched=[],
            added=list(adapter.added),
            dropped=[],
            rule=None,
            matched_tokens={},
            remarks=[*adapter.remarks, *remarks],
            seconds=time.perf_counter() - started,
        )
        record = AppliedRecord(
            gradfix=__version__, identity=identity, applied=RecordedApplied.model_validate(applied)
        )
        ours = companions(applied) if companions else {RECORD_FILE: record.written().encode()}
        for relative, content in {**files, **ours}.items():
            writer.add_file(relative, content)
    return applied


def _facts(vector: TaskVector, name: str, delta: Tensor, written: Tensor, alpha: float) -> TensorFacts:
    found = TensorFacts(delta.numel())
    if alpha:
        found.wanted = count_nonzero(delta)
        found.lost = max(0, found.wanted - count_nonzero(written.float()))
    if tally := vector.tally(name):
        found.nonzero, found.kept = tally.coordinates, tally.kept
        found.square, found.kept_square = tally.square, tally.kept_square
        if tally.voted:
            found.voted, found.tied, found.net = tally.voted, tally.tied, tally.net
    return found
