"""How a sentence-transformers directory makes one vector of a text: its pooling, prompt and length."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradfix.errors import GradfixError
from gradfix.tasks.forward import mean_over_tokens
from gradfix.tasks.loading import read_model_file

KNOWN = {"Transformer", "Pooling", "Normalize"}
"""Modules that are followed; vectors are normalised for cosines in any case."""


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[:, 0].float()


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden)), mask.sum(dim=1) - 1].float()


def _largest(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.float().masked_fill(mask[..., None] == 0, -torch.inf).amax(dim=1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean_tokens": mean_over_tokens,
    "cls_token": _first,
    "lasttoken": _last,
    "max_tokens": _largest,
}
"""From hidden states ``[B, L, d]`` and a mask ``[B, L]`` to ``[B, d]``, by the names of 1_Pooling/config.json."""


@dataclass(frozen=True)
class Pooling:
    """How texts become vectors.

    Attributes:
        name: One of `POOLINGS`.
        length: Tokens at most; None where the directory says nothing.
        prompt: What stands before every text.
    """

    name: str = "mean_tokens"
    length: int | None = None
    prompt: str = ""

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool.

        Args:
            hidden: ``[B, L, d]``.
            mask: ``[B, L]``, 1 at real tokens.

        Returns:
            ``[B, d]`` float32.
        """
        return POOLINGS[self.name](hidden, mask)


def read_pooling(location: str | Path) -> Pooling:
    """Read how a model makes vectors of texts.

    Args:
        location: A model directory or Hub id.

    Returns:
        The pooling; the mean over tokens for a model that sentence-transformers did not write.

    Raises:
        GradfixError: If there is a module that is not known here, or the pooling is none of `POOLINGS`.
    """
    modules = read_model_file(location, "modules.json")
    if modules is None:
        return Pooling()
    paths = {}
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in KNOWN:
            raise GradfixError(
                f"{location}: modules.json has a {kind} ({module.get('path')!r}), which is not run here; expected "
                f"{', '.join(sorted(KNOWN))}"
            )
        paths[kind] = str(module.get("path") or "")
    if paths.get("Transformer"):
        raise GradfixError(
            f"{location}: modules.json has its transformer in {paths['Transformer']!r}; give a model saved by a newer "
            "sentence-transformers, whose weights lie in the directory itself"
        )
    settings: dict[str, Any] = read_model_file(location, "sentence_bert_config.json") or {}
    prompts: dict[str, Any] = read_model_file(location, "config_sentence_transformers.json") or {}
    prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name") or "", "")
    pooling: dict[str, Any] = (
        read_model_file(location, f"{paths.get('Pooling', '1_Pooling')}/config.json") or {}
    )
    return Pooling(_pooling_name(pooling, location), settings.get("max_seq_length"), prompt)


def _pooling_name(config: dict[str, Any], location: str | Path) -> str:
    """One name: of flags as older versions write them, or of ``pooling_mode``."""
    mode = config.get("pooling_mode")
    names = [
        key.removeprefix("pooling_mode_")
        for key, on in config.items()
        if key.startswith("pooling_mode_") and on
    ]
    if isinstance(mode, str):
        names = [{"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}.get(mode, mode)]
    if len(names) != 1 or names[0] not in POOLINGS:
        raise GradfixError(
            f"{location}: its pooling {' and '.join(map(str, names)) or 'is not said'} is not known here; expected "
            f"one of {', '.join(POOLINGS)}"
        )
    return names[0]
