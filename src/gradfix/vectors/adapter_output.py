"""An adapter written as peft and vLLM load it."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradfix._version import __version__
from gradfix.arithmetic import is_finite
from gradfix.checkpoints import Checkpoint, CheckpointWriter, TensorSpec
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
from gradfix.errors import GradfixError
from gradfix.progress import Progress, silent
from gradfix.ranks import ranks
from gradfix.report.facts import Applied as RecordedApplied
from gradfix.report.record import RECORD_FILE, AppliedRecord
from gradfix.vectors.applied import Applied, TensorFacts
from gradfix.vectors.model_files import reading_files
from gradfix.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class AdapterLayer:
    """One layer of an adapter to be written.

    Attributes:
        shape: Of the layer and its factors.
        up: B, [o, r].
        down: A, [r, i].
    """

    shape: LayerShape
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class AdapterOutput:
    """What an adapter will be made of.

    Attributes:
        layers: The adapted layers, by name in the module.
        whole: Modules saved whole, with their tensors by name in the module.
        modules: All layers of the module that could be adapted.
        dtype: Of the factors.
        task_type: What peft calls the task; None to leave it open.
        added: Tensors among the whole ones that only the tuned model has.
        biases: Biases of adapted layers, by name in the module.
        facts: What happened to each tensor of the vector.
        left_out: Tensors of the vector that the adapter has nothing for.
        retained: Share of the vector's squared norm that the adapter has; None where it has all of it.
    """

    layers: Mapping[str, AdapterLayer]
    whole: Mapping[str, Mapping[str, Tensor]]
    modules: Iterable[str]
    dtype: torch.dtype
    task_type: str | None = None
    added: Sequence[str] = ()
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, TensorFacts] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    retained: float | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The whole tensors: of modules, and biases, which peft keeps beside the layer's own weight."""
        whole = {name: value for module in self.whole.values() for name, value in module.items()}
        beside = {name.removesuffix("bias") + "base_layer.bias": value for name, value in self.biases.items()}
        return {**whole, **beside}

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
    alpha: float,
    output: str | Path,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    companions: Callable[[Applied], Mapping[str, bytes]] | None = None,
    progress: Progress = silent,
) -> Applied:
    """Write an adapter as a directory that ``PeftModel.from_pretrained`` puts on the target.

    Args:
        vector: What it adds, for the record.
        target: θ_B, on which the adapter stands.
        adapter: The adapter.
        alpha: The scaling coefficient that is in its factors, for the record.
        output: The directory to make; it appears under this name only when whole.
        overwrite: Replace an existing output once the new one is whole.
        resume: Go on with an interrupted run of the same inputs.
        restart: Discard an interrupted run.
        companions: Makes further files of the directory, by name, from what was written; by default a
            ``gradfix.json`` with the facts.
        progress: Told the bytes written.

    Returns:
        What was written.

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
        biases=bool(adapter.biases),
    )
    files["adapter_config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    identity: dict[str, Any] = {
        "task_vector": vector.origin,
        "target": combined_fingerprint(fingerprints(target)),
        "dtype": str(adapter.dtype),
        "alpha": alpha,
    }
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
        verify=lambda directory: _verify(directory, target),
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
            write(down, layer.down.to(adapter.dtype))
            write(up, layer.up.to(adapter.dtype))
        for name, value in whole.items():
            write(PREFIX + name, value)
        applied = Applied(
            output=str(output),
            alpha=alpha,
            tensors=dict(adapter.facts),
            untouched=[],
            added=list(adapter.added),
            dropped=[],
            rule=None,
            matched_tokens={},
            remarks=remarks,
            left_out=list(adapter.left_out),
            retained=adapter.retained,
            seconds=time.perf_counter() - started,
        )
        record = AppliedRecord(
            gradfix=__version__, identity=identity, applied=RecordedApplied.model_validate(applied)
        )
        if ranks().first:
            ours = companions(applied) if companions else {RECORD_FILE: record.written().encode()}
            for relative, content in {**files, **ours}.items():
                writer.add_file(relative, content)
    return applied


def _verify(directory: Path, target: Checkpoint) -> None:
    """Open a written adapter as its user will: each of its tensors must find its place in the target."""
    Checkpoint.open(directory, base=target)
