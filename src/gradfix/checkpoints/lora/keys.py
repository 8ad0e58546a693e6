"""What each tensor in the file of a LoRA adapter is."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gradfix.errors import GradfixError

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.(weight|bias))?$"
)


@dataclass
class Factors:
    """The tensors of one adapted module, by their keys in the adapter's file.

    Attributes:
        down: A.
        up: B.
        magnitude: DoRA's magnitudes; None without.
        bias: The bias of B; None without.
        embedding: Whether the module is an embedding.
    """

    down: str = ""
    up: str = ""
    magnitude: str | None = None
    bias: str | None = None
    embedding: bool = False


@dataclass
class AdapterKeys:
    """The tensors of an adapter, sorted by what they do.

    Attributes:
        modules: Factors by module name, as the adapted model calls it.
        whole: Tensors stored whole (heads, biases), by parameter name: they replace the base's or are new.
    """

    modules: dict[str, Factors] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)


def sort_keys(path: Path, keys: Iterable[str]) -> AdapterKeys:
    """Sort the keys of an adapter's file.

    Args:
        path: The file, for messages.
        keys: Its tensors' names.

    Returns:
        What each is.

    Raises:
        GradfixError: If a tensor is of no known kind, or a module lacks one of its factors.
    """
    sorted_keys = AdapterKeys()
    for key in sorted(keys):
        name = key.removeprefix(_PREFIX)
        factor = _FACTOR.search(name)
        if factor is not None:
            _add_factor(
                sorted_keys.modules.setdefault(name[: factor.start()], Factors()), key, *factor.groups()
            )
        elif ".original_module." in name:
            continue  # the frozen copy that peft keeps of a module it saves whole
        elif "lora_" in name or "token_adapter" in name or "trainable_tokens" in name:
            raise GradfixError(
                f"{path}: tensor {key!r} is of no kind that is supported: merge the adapter with peft and give the "
                "result"
            )
        elif ".modules_to_save." in name:
            sorted_keys.whole[name.replace(".modules_to_save.", ".")] = key
        else:
            sorted_keys.whole.setdefault(name.replace(".base_layer.", "."), key)
    for module, factors in sorted_keys.modules.items():
        if not factors.down or not factors.up:
            raise GradfixError(
                f"{path}: module {module!r}: expected both lora_A and lora_B, found only one: save the "
                "adapter again"
            )
    return sorted_keys


def _add_factor(factors: Factors, key: str, kind: str, part: str | None) -> None:
    if kind == "lora_magnitude_vector":
        factors.magnitude = key
    elif part == "bias":
        factors.bias = key
    elif kind.endswith("A"):
        factors.down = key
    else:
        factors.up = key
    factors.embedding |= "embedding" in kind
