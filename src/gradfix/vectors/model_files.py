"""What makes weights a model: configuration, tokenizer, processor and generation files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.architecture import untied_config
from gradfix.vectors.task_vector import Placement, TaskVector

_COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_NOT_COMPANIONS = (
    "*.index.json",
    "gradfix*.json",
    "adapter_config.json",
    "trainer_state.json",
    "*_results.json",
)


def companion_files(
    placement: Placement, target: Checkpoint, dtype: torch.dtype | None
) -> dict[str, bytes | Path]:
    """Gather what makes weights a model: configuration, tokenizer, processor and generation files of the target.

    Where the tuned model brings a head, its architecture and labels come with it.

    Args:
        placement: Tells whether there is a head.
        target: θ_B.
        dtype: The output's dtype, where it differs from the target's.

    Returns:
        Contents or paths by file name.
    """
    files: dict[str, bytes | Path] = {}
    if target.directory is not None:
        for pattern in _COMPANIONS:
            for path in sorted(target.directory.glob(pattern)):
                if path.is_file() and not any(path.match(other) for other in _NOT_COMPANIONS):
                    files[path.name] = path
    config = merged_config(placement.vector, target.config)
    if dtype is not None and config:
        config["dtype"] = str(dtype).removeprefix("torch.")
    if config:
        files["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return files


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
        for key in (
            "architectures",
            "id2label",
            "label2id",
            "num_labels",
            "problem_type",
            "classifier_dropout",
        ):
            if key in task_vector.config:
                config[key] = task_vector.config[key]
    return config
