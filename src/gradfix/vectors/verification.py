"""Does what is written load as its user will load it? Asked before writing, and of the files before they get a name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradfix.checkpoints import Checkpoint, TensorSpec
from gradfix.checkpoints.loading import LoadingFaults, loading_faults
from gradfix.errors import GradfixError, listed
from gradfix.vectors.brought import MODULES, module_folders, module_paths

_FORMATS = {"dtype", "torch_dtype"}
"""Settings that say in which number format weights are stored, which changes no name and no shape."""


def refuse_unloadable(
    config: Mapping[str, Any], specs: Mapping[str, TensorSpec], target: Checkpoint, what: str
) -> None:
    """Refuse weights that from_pretrained would load otherwise than whole.

    What is wrong with the target, too (a pre-training head that its class doesn't have), is no fault of the output.

    Args:
        config: The output's ``config.json``.
        specs: Its tensors.
        target: θ_B.
        what: The output, for the message.

    Raises:
        GradfixError: naming weights that are missing, unexpected or of another shape.
    """
    if _loads_alike(config, specs, target):
        return  # and spare the import of the model's class, which takes as long as a billion weights
    faults = loading_faults(config, specs)
    if faults is None or not str(faults):
        return
    own = loading_faults(target.config, target.specs) or LoadingFaults()
    if said := str(faults.beyond(own)):
        raise GradfixError(
            f"{what}: would not load as {config['architectures'][0]}: {said}; give models of one architecture, "
            "or a tuned model saved whole with its config.json"
        )


def _loads_alike(config: Mapping[str, Any], specs: Mapping[str, TensorSpec], target: Checkpoint) -> bool:
    """Whether all that decides how weights are loaded is the target's: what is wrong with one is with the other."""

    def decides(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in settings.items() if key not in _FORMATS}

    def shapes(tensors: Mapping[str, TensorSpec]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(spec.shape) for name, spec in tensors.items()}

    return decides(config) == decides(target.config) and shapes(specs) == shapes(target.specs)


def verify_written(directory: Path, target: Checkpoint, what: str) -> None:
    """Open a written model directory as its user will.

    Args:
        directory: Complete, but not under its final name yet.
        target: θ_B.
        what: The output, for messages.

    Raises:
        GradfixError: if weights are missing, unexpected, of another shape, or a module's folder is not there.
    """
    written = Checkpoint.open(directory)
    refuse_unloadable(written.config, written.specs, target, what)
    there = module_folders(target.model_directory) if target.model_directory is not None else []
    absent = [name for name in module_paths(directory) if name in there and not (directory / name).is_dir()]
    if absent:
        raise GradfixError(
            f"{what}: {MODULES} names {listed(absent)}, which could not be carried over; try again"
        )
