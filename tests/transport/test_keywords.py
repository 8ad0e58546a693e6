"""The keywords of the public functions and the fields of their recipes are the same options."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gradfix as gf
from gradfix.recipes import CheckRecipe, CountRecipe, EvaluateRecipe, Recipe, TableRecipe, TransportRecipe
from tests.builders import job

FUNCTIONS: dict[str, tuple[Callable[..., Any], type[Recipe]]] = {
    "transport": (gf.transport, TransportRecipe),
    "check": (gf.check, CheckRecipe),
    "compare": (gf.compare, TableRecipe),
    "evaluate": (gf.evaluate, EvaluateRecipe),
    "votes": (gf.votes, CountRecipe),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_option_is_a_keyword_with_the_recipes_default(name: str) -> None:
    function, recipe = FUNCTIONS[name]
    keywords = inspect.signature(function).parameters
    fields = recipe.model_fields
    assert keywords.keys() - {"progress", "columns"} == fields.keys()
    for option, field in fields.items():
        default = keywords[option].default
        if field.is_required():
            assert default is inspect.Parameter.empty, option
        else:
            expected = field.get_default(call_default_factory=True)
            assert (list(default) if isinstance(default, tuple) else default) == expected, option
    assert not any(each.kind is each.VAR_KEYWORD for each in keywords.values())
    assert {each.annotation for each in keywords.values()}.isdisjoint({inspect.Parameter.empty, Any})


def test_numbers_are_given_as_numbers(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    one = work.run(tmp_path / "one", alpha=0.3)
    several = work.run(tmp_path / "several", alpha=(0.0, 0.3))
    assert one.record.recipe["alpha"] == "0.3"
    assert several.record.recipe["alpha"] == "0.0,0.3"
