"""Which files of a directory are its weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gradfix.checkpoints.reading.index import ShardedWeights, WeightFile
from gradfix.checkpoints.reading.json_files import read_json_object
from gradfix.checkpoints.reading.pickled import PickledFile
from gradfix.checkpoints.reading.safetensors_file import SafetensorsFile
from gradfix.errors import GradfixError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
INDEX_SUFFIX = ".index.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The weights of a Hugging Face directory, the preferred first; each may be an index of shards instead."""


@dataclass(frozen=True)
class Found:
    """Where the weights of a location are.

    Attributes:
        weights: A file with weights, or the index of several.
        directory: The directory with config and tokenizer; None if there is no config beside the file.
        adapter: Whether the weights are those of an adapter, which needs a base.
    """

    weights: Path
    directory: Path | None
    adapter: bool = False


@dataclass(frozen=True)
class Located:
    """Weights that were found, not opened yet.

    Attributes:
        found: Where they are, or will be once fetched from the Hub.
        location: What to call them; of a model on the Hub its id and commit.
        open: Opens them; those that are still on the Hub by their headers.
    """

    found: Found
    location: str
    open: Callable[[], WeightFile]


def locate_weights(path: Path) -> Found:
    """Find the weights of a local path.

    Args:
        path: A directory, a file with weights, or the index of shards.

    Returns:
        Where they are.

    Raises:
        GradfixError: If there are none, or several and no rule says which.
    """
    if not path.is_dir():
        adapter = path.name in ADAPTER_WEIGHTS and (path.parent / ADAPTER_CONFIG).exists()
        described = adapter or (path.parent / "config.json").exists()
        return Found(path, path.parent if described else None, adapter)
    weights = model_weights(path)
    adapters = [path / name for name in ADAPTER_WEIGHTS if (path / name).exists()]
    has_adapter = (path / ADAPTER_CONFIG).exists()
    if weights is not None and has_adapter and adapters:
        raise GradfixError(
            f"{path}: holds both a whole model ({weights.name}) and an adapter ({adapters[0].name}): "
            "give the path of the file that is meant"
        )
    if weights is not None:
        return Found(weights, path)
    if has_adapter:
        if not adapters:
            raise GradfixError(
                f"{path}: has {ADAPTER_CONFIG} but neither of {', '.join(ADAPTER_WEIGHTS)}: download it again"
            )
        return Found(adapters[0], path, adapter=True)
    return Found(_only_file(path), path)


def model_weights(directory: Path, exists: Callable[[Path], bool] = Path.exists) -> Path | None:
    """Find the weights of a whole model in a Hugging Face directory.

    Args:
        directory: The directory; an index in it is read.
        exists: Whether there is a file; of a model on the Hub it may be there only.

    Returns:
        The file or index of the preferred format; None if there is none.

    Raises:
        GradfixError: If two of them contradict each other.
    """
    for name in WEIGHTS:
        single, index = directory / name, directory / (name + INDEX_SUFFIX)
        if exists(single) and exists(index) and name not in _shards(index):
            # transformers takes the single file, most other readers the index: whichever is stale, someone
            # would transport a model that was not meant
            raise GradfixError(
                f"{directory}: holds both {single.name} and {index.name}, and readers disagree on which counts: "
                "remove the stale one, or give the path of the file that is meant"
            )
        if exists(index):
            return index
        if exists(single):
            return single
    return None


def _shards(index: Path) -> set[object]:
    weight_map = read_json_object(index).get("weight_map")
    return set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()


def _only_file(directory: Path) -> Path:
    for pattern in ("*.safetensors" + INDEX_SUFFIX, "*.safetensors", "*.bin", "*.pt", "*.pth"):
        candidates = sorted(directory.glob(pattern))
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise GradfixError(
                f"{directory}: expected {WEIGHTS[0]} or its index, found {len(candidates)} files {pattern} "
                f"({candidates[0].name}, …): give the path of the one that is meant"
            )
    raise GradfixError(
        f"{directory}: holds no weights: expected {WEIGHTS[0]}, {WEIGHTS[0]}{INDEX_SUFFIX}, {WEIGHTS[1]} or "
        f"{ADAPTER_CONFIG}: check the path, or save the model again"
    )


def open_file(path: Path) -> WeightFile:
    """Open one file with weights.

    Args:
        path: A safetensors file or a file of ``torch.save``.

    Returns:
        The opened file; nothing but its header has been read.
    """
    return PickledFile(path) if path.suffix in PICKLE_SUFFIXES else SafetensorsFile(path)


def open_weights(
    path: Path,
    open_one: Callable[[Path], WeightFile] = open_file,
    exists: Callable[[Path], bool] = Path.exists,
) -> WeightFile:
    """Open a file with weights, or the shards of an index.

    Args:
        path: A safetensors file, a file of ``torch.save``, or an index (``*.index.json``).
        open_one: Opens one file.
        exists: Whether there is a file.

    Returns:
        The opened files; nothing but headers has been read.

    Raises:
        GradfixError: If anything is missing or malformed.
    """
    if path.name.endswith(INDEX_SUFFIX):
        return ShardedWeights(path, open_one, exists)
    if path.suffix == ".json":
        raise GradfixError(
            f"{path}: is no file with weights: give the weights, their index, or the directory"
        )
    return open_one(path)
