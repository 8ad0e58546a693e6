"""Options that no command can follow are refused before anything is read."""

from pathlib import Path
from typing import Any

import pytest

from gradfix.errors import GradfixError
from gradfix.recipes import Recipe, load_recipe, recipes, validate

MODELS = {"source_base": "a", "source_tuned": "b", "target_base": "c", "output": "d"}
SAMPLES = {"task": "text-classification", "support": "e"}
COMPARE = {**MODELS, "task": "text-classification", "data": "e", "test": "f"}
MERGE = {"task_vector": ["a", "b"], "output": "d"}

VALID: dict[str, dict[str, Any]] = {
    "apply": MODELS,
    "compare": COMPARE,
    "evaluate": {"task": "text-classification", "model": "m", "data": "e"},
    "extract": {"source_base": "a", "source_tuned": "b", "output": "d", "rank": 2},
    "merge": MERGE,
    "transport": {**MODELS, **SAMPLES},
    "votes": {"target_base": "c", "output": "d", **SAMPLES},
}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("votes", {"output": ""}, "output: expected a path or a name, found an empty text"),
    ("merge", {"task_vector": ["a", ""]}, "task_vector: expected a path or a name"),
    ("votes", {"seed": -1}, "seed: Input should be greater than or equal to 0"),
    ("votes", {"seed": 2**32}, "seed: Input should be less than"),
    ("votes", {"batch_size": 10**20}, "batch_size: Input should be less than or equal to"),
    ("votes", {"max_length": 0}, "max_length: Input should be greater than or equal to 1"),
    ("votes", {"label": ["yes", True]}, "put names in quotes"),
    ("votes", {"column": ["text"]}, "expected role=name, found 'text'"),
    ("votes", {"encoding": "klingon"}, "no encoding called 'klingon' is known"),
    ("votes", {"memory": "much"}, "expected a size such as 5GB"),
    ("votes", {"data": "x"}, "give either support or data, not both"),
    ("votes", {"samples_per_class": 2}, "data and samples_per_class go together"),
    ("votes", {"support": None}, "give support, or data with samples_per_class"),
    ("votes", {"source_base": "a"}, "source_base and source_tuned go together"),
    ("compare", {"methods": ["best"]}, "or module:function, found 'best'"),
    ("compare", {"methods": ["oracle"]}, "methods oracle needs target_tuned"),
    ("transport", {"method": "auto", "mask": "force"}, "method auto chooses mask itself"),
    ("transport", {"mask": "none", "vote": "mean"}, "vote: mask none asks for no votes; leave it out"),
    ("transport", {"mask": "soft", "vote": "mean"}, "a mean vote is one ballot"),
    ("transport", {"alpha": "0,nan"}, "expected auto, a number or numbers"),
    ("transport", {"alpha": "-1"}, "expected auto, a number or numbers"),
    ("apply", {"alpha": float("nan")}, "alpha: Input should be a finite number"),
    ("apply", {"shard_size": "inf"}, "expected a size such as 5GB"),
    ("apply", {"source_tuned": None}, "give either source_base and source_tuned, or task_vector"),
    ("apply", {"task_vector": "t"}, "give either source_base and source_tuned, or task_vector"),
    ("apply", {"mask": "agreement"}, "mask agreement needs votes"),
    ("apply", {"rank": 2}, "rank: only with output_format lora"),
    ("apply", {"output_format": "lora"}, "output_format lora: give rank or energy"),
    ("apply", {"output_format": "lora", "rank": 2, "shard_size": "1GB"}, "lora writes no weights"),
    ("extract", {"rank": None}, "give rank or energy"),
    ("merge", {"votes": ["v"]}, "give votes for each of the 2 task vectors, or none"),
    ("merge", {"mask": "agreement"}, "mask agreement needs votes"),
    ("merge", {"alpha": 1.0}, "alpha: only with target_base"),
    ("merge", {"test": ["e", "f"]}, "test: only with samples"),
    ("merge", {"target_base": "c", "samples": ["e"]}, "samples: expected one for each of the 2"),
    (
        "merge",
        {"target_base": "c", "samples": ["e", "f"], "task": ["t"], "coefficients": "each", "alpha": 1.0},
        "coefficients each chooses α; leave out alpha",
    ),
]


def _kind(command: str) -> type[Recipe]:
    return recipes()[command]


@pytest.mark.parametrize("command", VALID)
def test_options_that_fit_are_taken(command: str) -> None:
    recipe = validate(_kind(command), VALID[command], "here")
    assert recipe.command == command


@pytest.mark.parametrize(("command", "changed", "words"), REFUSED)
def test_options_that_do_not_fit_are_named(command: str, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(GradfixError) as refused:
        validate(_kind(command), {**VALID[command], **changed}, "here")
    assert words in str(refused.value)


@pytest.mark.parametrize("content", ["command: dance", "- apply", "command: [apply]", "output: x"])
def test_a_recipe_names_its_command(content: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(GradfixError, match="command: expected one of apply, "):
        load_recipe(path)
