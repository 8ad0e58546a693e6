"""What makes weights a model: configuration, tokenizer, processor and generation files."""

import json
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.architecture import untied_config
from gradfix.checkpoints.writing.manifest import MANIFEST_FILE
from gradfix.errors import GradfixError, listed
from gradfix.vectors.brought import brought, module_folders
from gradfix.vectors.task_vector import Placement, TaskVector

_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".gguf", ".onnx", ".onnx_data",
    ".pb", ".tflite", ".npz", ".mlmodel", ".index.json",
)  # fmt: skip
_NOT_COMPANIONS = ("gradfix*.json", "adapter_config.json", "trainer_state.json", "*_results.json")
_NOT_MODEL_FOLDERS = ("checkpoint-*", "runs", "wandb", "__pycache__", "*.partial-*", "*.replaced-*")
_OF_A_TRANSPORT = ("report.html", "recipe.yaml", "README.md")
"""What `gradfix transport` writes of its own run: it says nothing of a model made from its output."""


def companion_files(
    placement: Placement, target: Checkpoint, dtype: torch.dtype | None
) -> tuple[dict[str, bytes | Path], list[str]]:
    """Gather what makes weights a model: everything of the target that is no weights, and what the tuned model brings.

    Code is copied and never run. Where the tuned model brings a head, its architecture and labels come with it.

    Args:
        placement: Tells whether there is a head, and where the tuned model is.
        target: θ_B.
        dtype: The output's dtype, where it differs from the target's.

    Returns:
        Contents or paths by file name, and what to say about them.
    """
    folder, vector = target.model_directory, placement.vector
    files: dict[str, bytes | Path] = dict(_carried(folder)) if folder is not None else {}
    extras = brought(vector.directory, vector.base_directory, folder)
    files |= extras.files
    config = merged_config(vector, target.config)
    if dtype is not None and config:
        config = {"dtype": None, **config}
        _say_dtype(config, str(dtype).removeprefix("torch."))
    if config:
        files["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return files, extras.remarks + _label_remarks(vector, target.config)


_OF_READING = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.spm",
    "tekken.json", "chat_template*", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip
"""What turns inputs into what a model reads: an adapter comes with it, and without its base's configuration."""


def reading_files(vector: TaskVector, target: Checkpoint) -> tuple[dict[str, bytes | Path], list[str]]:
    """Gather what an adapter needs beside its weights: the target's tokenizer or processor.

    Args:
        vector: Tells where the tuned model is.
        target: θ_B.

    Returns:
        Contents or paths by file name, and what to say about what the tuned model brings.
    """
    folder = target.directory
    found: dict[str, bytes | Path] = dict(_carried(folder)) if folder is not None else {}
    extras = brought(vector.directory, vector.base_directory, target.model_directory)
    files = {**found, **extras.files}
    kept = {
        name: content
        for name, content in files.items()
        if any(fnmatch(name, pattern) for pattern in _OF_READING)
    }
    remarks = [remark for remark in extras.remarks if not remark.startswith(("generation", "modules taken"))]
    return kept, remarks


def _carried(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a model but its weights, links followed; the weights of modules that follow it are files of it."""
    modules = module_folders(folder)
    skipped = (*_NOT_COMPANIONS, *(_OF_A_TRANSPORT if (folder / "gradfix.json").is_file() else ()))
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and not any(fnmatch(name, pattern) for pattern in _NOT_MODEL_FOLDERS)
            and not (here / name / MANIFEST_FILE).is_file()
        )
        relative = here.relative_to(folder)
        of_module = any(relative.is_relative_to(module) for module in modules)
        for name in sorted(names):
            at_root_only = here == folder and any(fnmatch(name, pattern) for pattern in skipped)
            weights = name.endswith(_WEIGHTS) and not of_module
            if not name.startswith(".") and not at_root_only and not weights and (here / name).is_file():
                yield (relative / name).as_posix(), here / name


def _say_dtype(config: dict[str, Any], dtype: str) -> None:
    """Put the output's dtype under each key that states one: torch_dtype of transformers 4, those of towers."""
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            config[key] = dtype
        elif isinstance(value, dict) and key.endswith("_config"):
            config[key] = dict(value)
            _say_dtype(config[key], dtype)


def merged_config(task_vector: TaskVector, target_config: Mapping[str, Any]) -> dict[str, Any]:
    """Give the target's configuration the tuned model's architecture and labels, where it brings a head.

    Args:
        task_vector: Its additions and configuration tell.
        target_config: θ_B's ``config.json``.

    Returns:
        The output's configuration.
    """
    config = dict(target_config)
    if config and task_vector.placement is not None and task_vector.placement.untied:
        config = untied_config(config)
    if task_vector.additions.specs and config:
        for key in _OF_A_HEAD:
            if key in task_vector.config:
                config[key] = task_vector.config[key]
    elif _names_classes(task_vector.config, config):
        config |= {
            key: task_vector.config[key] for key in ("id2label", "label2id") if key in task_vector.config
        }
    return config


_OF_A_HEAD = ("architectures", "id2label", "label2id", "num_labels", "problem_type", "classifier_dropout")


def _names_classes(tuned: Mapping[str, Any], target: Mapping[str, Any]) -> bool:
    """Whether the tuned model has names for as many classes of one head, which the target only numbers."""
    ours, theirs = tuned.get("id2label"), target.get("id2label") or {}
    return (
        isinstance(ours, Mapping)
        and tuned.get("architectures") == target.get("architectures")
        and not _numbered(ours)
        and _numbered(theirs)
        and len(ours) == len(theirs or (0, 1))  # two where a config says nothing
    )


def _numbered(labels: Mapping[Any, Any]) -> bool:
    return all(str(name) == f"LABEL_{key}" for key, name in labels.items())


def _label_remarks(task_vector: TaskVector, target: Mapping[str, Any]) -> list[str]:
    """Say where classes of the tuned model and of the target, which share a head, have other names."""
    ours, theirs = task_vector.config.get("id2label"), target.get("id2label")
    if task_vector.additions.specs or not ours or not theirs or _numbered(ours) or _numbered(theirs):
        return []
    names = [{str(key): str(name) for key, name in labels.items()} for labels in (ours, theirs)]
    if names[0] == names[1]:
        return []
    if sorted(names[0].values()) == sorted(names[1].values()):
        raise GradfixError(
            f"the new base has the tuned model's classes in another order ({listed(list(names[1].values()))} against "
            f"{listed(list(names[0].values()))}), so its head's rows are of other classes; give a base without a head"
        )
    return [
        f"the classes are the new base's, {listed(list(names[1].values()))}; the tuned model's head has "
        f"{listed(list(names[0].values()))}"
    ]
