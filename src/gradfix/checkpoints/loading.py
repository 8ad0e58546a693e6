"""Would transformers load these weights whole? Answered by its own loader, on names and shapes alone."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from gradfix.checkpoints.architecture import architecture_of
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.errors import listed

_LOAD_ERRORS = (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class LoadingFaults:
    """What `from_pretrained` finds wrong with weights, by the names that the model in memory has.

    Attributes:
        missing: Parameters that no stored tensor fills: they would be newly initialised.
        unexpected: Stored tensors that the architecture has no place for: they would be left out.
        mismatched: Parameters whose stored tensor has another shape.
        failure: Why loading ends in an error; empty if it doesn't.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    failure: str = ""

    def beyond(self, other: "LoadingFaults") -> "LoadingFaults":
        """Leave out the faults that another model has, too.

        Args:
            other: Faults of the model that this one was made from, maybe under names with another prefix.

        Returns:
            What is wrong here and wasn't there.
        """

        def new(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name for name in ours if not any(_same(name, known) for known in theirs))

        return LoadingFaults(
            new(self.missing, other.missing),
            new(self.unexpected, other.unexpected),
            new(self.mismatched, other.mismatched),
            "" if other.failure else self.failure,
        )

    def __str__(self) -> str:
        """Say the faults in one line; empty where there are none."""
        kinds = (
            ("no weights for, so newly initialised", self.missing),
            ("no place for", self.unexpected),
            ("another shape than its config says", self.mismatched),
        )
        said = [f"{kind}: {listed(sorted(names))}" for kind, names in kinds if names]
        return "; ".join([*said, *([self.failure] if self.failure else [])])


def _same(one: str, other: str) -> bool:
    """Whether two names are one parameter, of a network that stands alone or in a model with a head."""
    return f".{one}".endswith(f".{other}") or f".{other}".endswith(f".{one}")


def loading_faults(config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> LoadingFaults | None:
    """Let transformers load weights of these names and shapes, on the meta device: no weight is read.

    Args:
        config: The model's ``config.json``.
        specs: Its stored tensors.

    Returns:
        What is wrong; None where transformers has no such class, or can't build it, so that nobody knows.
    """
    if architecture_of(config) is None:
        return None
    import transformers

    model_class: Any = getattr(transformers, config["architectures"][0])
    state = {name: torch.empty(spec.shape, dtype=spec.dtype, device="meta") for name, spec in specs.items()}
    try:
        with _quiet(transformers):
            settings = model_class.config_class.from_dict(json.loads(json.dumps(config, default=str)))
            _, report = model_class.from_pretrained(
                None,
                config=settings,
                state_dict=state,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except _LOAD_ERRORS as error:
        lines = str(error).splitlines()
        return LoadingFaults(
            failure=f"loading fails ({type(error).__name__}: {lines[0] if lines else 'no reason'})"
        )
    return LoadingFaults(
        tuple(report["missing_keys"]),
        tuple(report["unexpected_keys"]),
        tuple(name for name, *_ in report["mismatched_keys"]),
    )


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' own report from a reader who gets ours."""
    log = transformers.utils.logging
    level, shown = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if shown:
            log.enable_progress_bar()
