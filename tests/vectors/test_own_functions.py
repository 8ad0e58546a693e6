"""Masks and merge methods of the user's own that can't be what they are said to be."""

from typing import Any

import pytest
import torch
from torch import Tensor

import gradfix as gf
from gradfix.checkpoints.expressions import Given
from gradfix.errors import GradfixError
from gradfix.recipes import CompareRecipe, TransportRecipe, validate
from gradfix.vectors.mask_strategies import find_strategy
from gradfix.vectors.merge_methods import find_method
from gradfix.vectors.task_vector import TaskVector

HERE = __name__
MODELS = {
    "source_base": "a",
    "source_tuned": "b",
    "target_base": "c",
    "output": "d",
    "task": "text-classification",
}


@pytest.fixture
def tau() -> TaskVector:
    return TaskVector(Given({"w": torch.tensor([[1.0, -2.0], [0.5, 3.0]])}))


def nothing(tau: Tensor, signal: Tensor, block: Any) -> None:
    return None


def cut(blocks: list[Tensor]) -> Tensor:
    return blocks[0][:1]


def no_blocks(blocks: list[Tensor]) -> str:
    return "merged"


def test_what_a_mask_may_be_registered_with(tau: TaskVector) -> None:
    gf.register("mask", needs="signals", name="odd-needs")(lambda tau, signal, block: tau)
    with pytest.raises(
        GradfixError, match="mask 'odd-needs': registered with needs='signals'; expected needs, one of"
    ):
        find_strategy("odd-needs")
    gf.register("mask", wants="signs", name="odd-fact")(lambda tau, signal, block: tau)
    with pytest.raises(GradfixError, match="mask 'odd-fact': registered with wants"):
        find_strategy("odd-fact")


def test_a_mask_that_returns_nothing_is_refused(tau: TaskVector) -> None:
    with pytest.raises(GradfixError, match=r"nothing: returned a NoneType; expected a tensor .* of float32"):
        gf.mask(tau, tau, strategy=f"{HERE}:nothing")["w"]


def test_what_a_merge_method_may_be_registered_with() -> None:
    gf.register("merge", thins="most", name="odd-thins")(lambda blocks: blocks[0])
    with pytest.raises(
        GradfixError, match=r"merge 'odd-thins': registered with .*expected thins, smallest or random"
    ):
        find_method("odd-thins")


@pytest.mark.parametrize(("name", "found"), [("cut", r"shape \[1, 2\]"), ("no_blocks", "a str")])
def test_a_merge_method_that_returns_another_shape_is_refused(name: str, found: str, tau: TaskVector) -> None:
    with pytest.raises(GradfixError, match=rf"{name}: returned {found}; expected a tensor \[2, 2\]"):
        gf.merge([tau, tau], method=f"{HERE}:{name}")["w"]


def test_a_mask_of_ones_own_that_compares_sizes_masks_before_a_merge(tau: TaskVector) -> None:
    gf.register("mask", needs="magnitudes", name="sizes-alone")(lambda tau, signal, block: tau)
    with pytest.raises(
        GradfixError, match="mask 'sizes-alone' compares sizes: mask each vector before merging"
    ):
        gf.merge([tau, tau], [tau, tau], strategy="sizes-alone")


def test_a_function_that_is_not_there_is_refused_under_the_options_name() -> None:
    with pytest.raises(GradfixError, match=r"^transport: mask: .*no_such"):
        validate(TransportRecipe, {**MODELS, "support": "e", "mask": f"{HERE}:no_such"}, "transport")


def test_a_split_of_validation_data_that_are_not_given_is_refused() -> None:
    with pytest.raises(GradfixError, match="validation_split: there is no validation data; leave it out"):
        validate(CompareRecipe, {**MODELS, "data": "e", "test": "f", "validation_split": "dev"}, "compare")
