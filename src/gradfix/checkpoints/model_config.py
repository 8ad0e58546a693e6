"""A model's ``config.json``, held against what gradfix and transformers take for granted before anyone reads of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, StrictBool, field_validator, model_validator

from gradfix.checkpoints.reading.json_files import read_json_object
from gradfix.errors import GradfixError
from gradfix.text_files import validated

MAX_LAYERS = 1000
"""More than any model has; 2³¹ of them are built one by one until memory ends."""

MAX_SIZE = 2**31 - 1
Scalar = str | int | float | bool | None


class ModelConfig(BaseModel):
    """The keys that gradfix reads itself; all others pass, as long as their numbers are those of a model."""

    model_config = ConfigDict(extra="allow")

    architectures: list[str] | None = None
    model_type: str | None = None
    vocab_size: int | None = Field(None, ge=0, le=MAX_SIZE)
    max_position_embeddings: int | None = Field(None, ge=-1, le=MAX_SIZE)
    tie_word_embeddings: StrictBool | None = None
    is_encoder_decoder: StrictBool | None = None
    id2label: dict[int, Scalar] | None = None
    label2id: dict[str, int] | None = None
    num_labels: int | None = Field(None, ge=0, le=MAX_SIZE)
    auto_map: dict[str, Any] | None = None
    dtype: str | dict[str, Any] | None = None
    torch_dtype: str | dict[str, Any] | None = None
    text_config: "ModelConfig | None" = None
    vision_config: "ModelConfig | None" = None

    @field_validator("dtype", "torch_dtype")
    @classmethod
    def _known(cls, dtype: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        known = not isinstance(dtype, str) or dtype == "auto"
        if not known and not isinstance(getattr(torch, str(dtype).removeprefix("torch."), None), torch.dtype):
            raise ValueError("expected a number format of torch, such as float32 or bfloat16")
        return dtype

    @model_validator(mode="before")
    @classmethod
    def _of_a_model(cls, config: Any) -> Any:
        if isinstance(config, Mapping):
            for key, number in _integers(config):
                if "layer" in key and number > MAX_LAYERS:
                    raise ValueError(f"{key}: {number} layers, at most {MAX_LAYERS} expected")
                if any(
                    key.startswith(word) or key.endswith(word) for word in ("num", "size", "dim")
                ) and not (-1 <= number <= MAX_SIZE):
                    raise ValueError(f"{key}: {number}, expected a number of 0 to {MAX_SIZE}")
        return config


def _integers(config: Mapping[Any, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, int) and not isinstance(value, bool):
            yield str(key)[:80], value


def read_model_config(path: Path) -> dict[str, Any]:
    """Read a ``config.json``.

    Args:
        path: The file.

    Returns:
        Its content as it stands.

    Raises:
        GradfixError: If it is no JSON object, or a key can't be what models have there.
    """
    config = read_json_object(path, finite=False)  # some models have infinite limits
    validated(ModelConfig, config, str(path), "download the model's config.json again, or mend the key")
    return config


def custom_code(directory: Path | None, config: Mapping[str, Any]) -> list[str]:
    """Name what a model's files ask to run of their own repository.

    Args:
        directory: Where config and tokenizer are; None where there is none.
        config: The model's ``config.json``.

    Returns:
        For each file with an ``auto_map``, its name and the classes.
    """
    found = {"config.json": config.get("auto_map")}
    for name in ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        path = None if directory is None else directory / name
        if path is not None and path.exists():
            try:
                found[name] = read_json_object(path, finite=False).get("auto_map")
            except GradfixError:  # whoever reads the file for more than its name will say what is wrong
                continue
    return [f"{name} names {_classes(map_)}" for name, map_ in found.items() if map_]


def _classes(auto_map: Any) -> str:
    values = auto_map.values() if isinstance(auto_map, Mapping) else [auto_map]
    return ", ".join(str(value)[:80] for value in values)
