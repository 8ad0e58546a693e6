"""The keywords of ``gradfix.transport`` and the fields of its recipe are the same options."""

import inspect
from pathlib import Path

from gradfix.recipes import TransportRecipe
from gradfix.transport.pipeline import transport
from tests.builders import job


def test_each_option_is_a_keyword_with_the_recipes_default() -> None:
    keywords = inspect.signature(transport).parameters
    fields = TransportRecipe.model_fields
    assert keywords.keys() - {"progress"} == fields.keys()
    for name, field in fields.items():
        default = keywords[name].default
        if field.is_required():
            assert default is inspect.Parameter.empty, name
        else:
            expected = field.get_default(call_default_factory=True)
            assert (list(default) if isinstance(default, tuple) else default) == expected, name


def test_numbers_are_given_as_numbers(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    one = work.run(tmp_path / "one", alpha=0.3)
    several = work.run(tmp_path / "several", alpha=(0.0, 0.3))
    assert one.record.recipe["alpha"] == "0.3"
    assert several.record.recipe["alpha"] == "0.0,0.3"
