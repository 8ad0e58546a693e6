"""The settings of a LoRA adapter that decide its weights; what gradfix doesn't know is refused."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from gradfix.checkpoints.reading.json_files import read_json_object
from gradfix.errors import GradfixError

_NEUTRAL = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_bias",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
"""Settings of where and how an adapter is trained: its tensors say the rest."""

_READ = frozenset(
    {
        "alpha_pattern",
        "ensure_weight_tying",
        "fan_in_fan_out",
        "lora_alpha",
        "r",
        "rank_pattern",
        "target_parameters",
        "use_dora",
        "use_rslora",
    }
)
PATTERN_SECONDS = 1.0
"""Longest match of one name: patterns of modules take microseconds."""

_PLAIN_INITS = ("gaussian", "eva", "orthogonal")
"""Initialisations that leave the base as it is; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA subtract from it."""


@dataclass(frozen=True)
class LoraConfig:
    """The settings that decide which dense product an adapter stands for.

    Attributes:
        path: The file they come from.
        rank: Rank r of modules without a pattern.
        alpha: Numerator of the scaling of modules without a pattern.
        ranks: Pattern of module names to their rank.
        alphas: Pattern of module names to their alpha.
        root: Whether the scaling is alpha/√r (rank-stabilised LoRA, arXiv 2312.03732) instead of alpha/r.
        transposed: Whether the last layer adapted stores its weight input first, as Conv1D does.
        dora: Whether magnitudes are trained apart from directions (DoRA, arXiv 2402.09353).
        tied: Whether tied layers were trained as one.
        generates: Whether the adapted model has an output over the vocabulary, or may have.
        base: The base model it names, and its revision.
        task_type: What peft calls its task; None if it doesn't say.
        parameters: Names, or their ends, of parameters that are adapted and no layer's weight.
        peft_version: Of the peft that saved it; (0,) if it doesn't say.
    """

    path: Path
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    root: bool
    transposed: bool
    dora: bool
    tied: bool
    generates: bool
    base: tuple[str | None, str | None]
    task_type: str | None = None
    parameters: tuple[str, ...] = ()
    peft_version: tuple[int, ...] = (0,)

    def rank_of(self, module: str) -> int:
        """The rank of a module.

        Args:
            module: Its name in the base model.

        Returns:
            r.
        """
        return self.ranks.get(self._key(self.ranks, module), self.rank)

    def scaling(self, module: str) -> float:
        """What the product B A of a module is multiplied with.

        Args:
            module: Its name in the base model.

        Returns:
            alpha/r, or alpha/√r for rank-stabilised LoRA.
        """
        rank = self.rank_of(module)
        alpha = self.alphas.get(self._key(self.alphas, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.root else rank)

    def _key(self, patterns: Mapping[str, Any], module: str) -> str:
        # peft's rule (peft.utils.other.get_pattern_key): the first pattern that matches whole trailing
        # components
        for key in patterns:
            if self._matches(key, module):
                return key
        return module

    def _matches(self, pattern: str, module: str) -> bool:
        try:
            return regex.match(rf"(.*\.)?({pattern})$", module, timeout=PATTERN_SECONDS) is not None
        except regex.error as error:
            reason = f"is no regular expression: {error}"
        except TimeoutError:
            reason = f"takes more than {PATTERN_SECONDS:.0f} s to match one name, as repetitions inside repetitions do"
        raise GradfixError(
            f"{self.path}: the pattern of modules {pattern!r:.80} {reason}: spell the modules out"
        )


def read_lora_config(path: Path) -> LoraConfig:
    """Read and judge the settings of an adapter.

    Args:
        path: Its ``adapter_config.json``.

    Returns:
        The settings that decide the weights.

    Raises:
        GradfixError: If the adapter is no LoRA, or a setting changes its weights in a way that isn't
            supported.
    """
    config = read_json_object(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise GradfixError(
            f"{path}: peft_type: expected 'LORA', found {kind!r}: merge the adapter with peft and give the "
            "result"
        )
    for key in sorted(config.keys() - _NEUTRAL - _READ):
        if config[key]:
            raise GradfixError(
                f"{path}: {key}: {config[key]!r:.80} is not supported: merge the adapter with peft and give "
                "the result"
            )
    initial = config.get("init_lora_weights", True)
    if isinstance(initial, str) and initial.lower() not in (*_PLAIN_INITS, "true", "false"):
        raise GradfixError(
            f"{path}: init_lora_weights: {initial!r} changes the base's own weights, which is not supported: save "
            "the adapter with path_initial_model_for_weight_conversion, or merge it with peft"
        )
    return LoraConfig(
        path=path,
        rank=_number(path, "r", config.get("r"), whole=True),
        alpha=_number(path, "lora_alpha", config.get("lora_alpha")),
        ranks=_numbers(path, "rank_pattern", config.get("rank_pattern"), whole=True),
        alphas=_numbers(path, "alpha_pattern", config.get("alpha_pattern")),
        root=bool(config.get("use_rslora")),
        transposed=bool(config.get("fan_in_fan_out")),
        dora=bool(config.get("use_dora")),
        tied=bool(config.get("ensure_weight_tying")),
        generates=config.get("task_type") in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"),
        base=(_text(path, config, "base_model_name_or_path"), _text(path, config, "revision")),
        task_type=str(config["task_type"]) if config.get("task_type") else None,
        parameters=_names(path, config.get("target_parameters")),
        peft_version=tuple(
            int(part) for part in re.findall(r"\d+", str(config.get("peft_version") or "0"))[:2]
        ),
    )


def _text(path: Path, config: Mapping[str, Any], key: str) -> str | None:
    value = config.get(key)
    if not isinstance(value, str | type(None)):
        raise GradfixError(f"{path}: {key}: expected a text, found {value!r:.80}: save the adapter again")
    return value or None


def _names(path: Path, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | type(None)) or not all(isinstance(name, str) for name in value or ()):
        raise GradfixError(
            f"{path}: target_parameters: expected a list of names, found {value!r:.80}: save the adapter again"
        )
    return tuple(value or ())


def _number(path: Path, key: str, value: object, *, whole: bool = False) -> Any:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or (whole and not (isinstance(number, int) and number > 0)):
        wanted = "an integer > 0" if whole else "a number"
        raise GradfixError(f"{path}: {key}: expected {wanted}, found {value!r:.80}: save the adapter again")
    return number


def _numbers(path: Path, key: str, value: object, *, whole: bool = False) -> dict[str, Any]:
    if not value:
        return {}
    if not isinstance(value, dict):
        raise GradfixError(f"{path}: {key}: expected an object, found {value!r:.80}: save the adapter again")
    return {name: _number(path, f"{key}[{name!r}]", number, whole=whole) for name, number in value.items()}
