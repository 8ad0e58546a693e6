"""Several adapters on one base, in order and with weights."""

from pathlib import Path

import pytest
import torch

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.lora.factors import placed
from gradfix.checkpoints.lora.stack import stacked
from gradfix.errors import GradfixError
from gradfix.recipes import DiffRecipe
from gradfix.vectors.task_vector import TaskVector
from tests import models
from tests.adapters import QUIET, save_adapter

pytestmark = [*QUIET]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    models.tiny_bert(seed=0, num_labels=2).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter(base: Path, name: str, targets: list[str], **settings: object) -> Path:
    settings = {"task_type": "SEQ_CLS", "target_modules": targets, **settings}
    return save_adapter(base.parent / name, base, "AutoModelForSequenceClassification", **settings)


def test_a_location_is_read_as_a_sum(tmp_path: Path) -> None:
    assert stacked("a+0.5*b") == [(1.0, "a"), (0.5, "b")]
    assert stacked("1e+1*a + -2*org/b@main") == [(10.0, "a"), (-2.0, "org/b@main")]
    assert stacked("0.5*a") == [(0.5, "a")]
    assert stacked("a-b") is None
    (tmp_path / "a+b").mkdir()
    assert stacked(str(tmp_path / "a+b")) is None
    recipe = DiffRecipe(source_base="base", source_tuned="a+1e+1*b", output=tmp_path / "out")
    assert recipe.inputs() == ["base", "a", "b"]  # an output in place of one of them is refused
    with pytest.raises(GradfixError, match=r"a\+\+b: expected adapters with \+ between them"):
        stacked("a++b")


def test_changes_add_up_densely_and_as_factors(base: Path) -> None:
    first = adapter(base, "first", ["query", "value"], r=2, modules_to_save=["pooler"])
    second = adapter(base, "second", ["query", "key"], r=4, use_rslora=True)
    plain = Checkpoint.open(base)
    one = Checkpoint.open(first, base=base)
    other = Checkpoint.open(second, base=base)
    location = f"{first}+0.5*{second}"
    both = Checkpoint.open(location, base=base)
    assert both.location == location
    for name in plain:
        if name.startswith("classifier"):  # whole in both: the later one's, half of the way
            expected = one[name].double().lerp(other[name].double(), 0.5)
        else:
            expected = one[name].double() + 0.5 * (other[name].double() - plain[name].double())
        torch.testing.assert_close(both[name].double(), expected, rtol=1e-5, atol=1e-6)
    parts = TaskVector.between(base, location).adapter
    assert parts is not None
    for name, update in parts.updates.items():
        factors = placed(update)
        assert (
            update.specs[0].shape[1]
            == factors.rank
            == (6 if "query" in name else 2 if "value" in name else 4)
        )
        dense = both[name].double() - plain[name].double()
        torch.testing.assert_close((factors.up @ factors.down).double(), dense, rtol=1e-4, atol=1e-6)


def test_what_cannot_stand_on_one_another_is_refused(base: Path) -> None:
    first = adapter(base, "first", ["query"])
    scaled = adapter(base, "scaled", ["query"], use_dora=True)
    with pytest.raises(GradfixError, match=r"rescales .*DoRA.*taken 2 times"):
        Checkpoint.open(f"{first}+2*{scaled}", base=base)
    with pytest.raises(GradfixError, match="base is no adapter: only adapters are added"):
        Checkpoint.open(f"{first}+{base}", base=base)
    whole = adapter(base, "whole", ["key"], modules_to_save=["query"])
    with pytest.raises(GradfixError, match="stored whole by a later one"):
        Checkpoint.open(f"{first}+{whole}", base=base)
