"""What the architecture named by a config says about its tensors; transformers is asked only when needed."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

_BUILD_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    ArithmeticError,
)
"""What building a model from a config of another version, or a wrong one, raises."""


@dataclass(frozen=True)
class Architecture:
    """What a model class declares about the names of its tensors.

    Attributes:
        names: All names as a saved file spells them, aliases of tied weights included.
        ties: Each alias of a tied tensor to the name of its source, spelled so too.
        transposed: Names of weights stored input first, as transformers' Conv1D does, spelled so too.
        stored: Each name in the model to its name in a saved file.
    """

    names: tuple[str, ...]
    ties: Mapping[str, str]
    transposed: frozenset[str]
    stored: Mapping[str, str]


def may_tie(config: Mapping[str, Any]) -> bool:
    """Tell from a config alone whether its model may tie weights.

    It spares the second or two of importing transformers. Only ``tie_word_embeddings`` makes transformers
    tie, and its default depends on the architecture. T5 and its kind tie in spite of a False, which means
    something else there, so encoder-decoders are always asked.

    Args:
        config: A model's ``config.json``.

    Returns:
        False if nothing is tied; True if the architecture has to be asked.
    """
    if not config.get("architectures"):
        return False
    nested = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    if config.get("is_encoder_decoder") or str(config.get("model_type", "")).endswith("t5"):
        return True
    with_words = [part for part in nested if "vocab_size" in part or part.get("tie_word_embeddings")]
    return any(part.get("tie_word_embeddings") is not False for part in with_words)


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """Build the model that a config describes, without memory for its weights, and ask it for its names.

    Only classes of transformers itself are built; code that a checkpoint brings along is never run.

    Args:
        config: A model's ``config.json``.

    Returns:
        What it declares; None if transformers has no such class or can't build it from this config.
    """
    return _architecture(json.dumps(config, sort_keys=True, default=str))


@lru_cache(maxsize=8)
def _architecture(config_json: str) -> Architecture | None:
    model: Any = _skeleton(config_json)
    if model is None:
        return None
    from transformers.pytorch_utils import Conv1D

    try:
        ties = dict(model.get_expanded_tied_weights_keys(all_submodels=True))
        stored = checkpoint_names(model)
    except _BUILD_ERRORS:
        return None
    transposed = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)]
    return Architecture(
        names=tuple(stored.values()),
        ties={stored.get(a, a): stored.get(b, b) for a, b in _to_source(ties).items()},
        transposed=frozenset(stored.get(name, name) for name in transposed),
        stored=stored,
    )


def skeleton(config: Mapping[str, Any]) -> nn.Module | None:
    """Build the model that a config describes, without memory for its weights.

    Args:
        config: A model's ``config.json``.

    Returns:
        A module on the meta device, not to be changed; None if transformers has no such class or can't build it from
        this config.
    """
    return _skeleton(json.dumps(config, sort_keys=True, default=str))


def untied_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Say in a configuration that input and output embeddings are two tensors.

    Args:
        config: A model's ``config.json``.

    Returns:
        The same with the switch off, also in the towers that have one.
    """
    towers = {
        key: {**value, "tie_word_embeddings": False}
        for key, value in config.items()
        if isinstance(value, Mapping) and ("tie_word_embeddings" in value or key == "text_config")
    }
    return {**config, **towers, "tie_word_embeddings": False}


@lru_cache(maxsize=8)
def _skeleton(config_json: str) -> nn.Module | None:
    config = json.loads(config_json)
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        return None
    import transformers

    found = getattr(transformers, names[0], None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        return None
    model_class: Any = found
    try:
        with _quiet(transformers), torch.device("meta"):
            model: nn.Module = model_class(model_class.config_class.from_dict(config))
    except _BUILD_ERRORS:
        return None
    return model


def _to_source(ties: dict[str, str]) -> dict[str, str]:
    """Follow chains, so that every alias points at a name that is no alias."""
    resolved = {}
    for alias, source in ties.items():
        seen = {alias}
        while source in ties and source not in seen:
            seen.add(source)
            source = ties[source]
        if source != alias and source not in seen:
            resolved[alias] = source
    return resolved


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' remarks on a config from a reader who only asked for names."""
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


def checkpoint_names(model: nn.Module) -> dict[str, str]:
    """Map the names of a model's parameters to the names under which its checkpoint stores them.

    Args:
        model: Any module. One that transformers does not know is taken to store its own names.

    Returns:
        Parameter name to checkpoint name, tied names included. Parameters that are stored in another form (merged
        or split when saved, as the experts of some mixtures are) are left out.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if not hasattr(model, "save_pretrained"):
        return {name: name for name in names}
    from transformers.core_model_loading import revert_weight_conversion

    # Tensors without memory stand for the parameters: what comes back as the same object was only renamed.
    stands_for: dict[str, torch.Tensor] = {
        name: torch.empty_like(parameter, device="meta")
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    known_model: Any = model
    stored = revert_weight_conversion(known_model, dict(stands_for))
    stored_names = {id(tensor): name for name, tensor in stored.items()}
    return {
        name: stored_names[id(tensor)] for name, tensor in stands_for.items() if id(tensor) in stored_names
    }
