"""τ in other coordinates: a twin is recovered exactly, whatever the family."""

from collections.abc import Mapping
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from gradfix.alignment.activations import Activations, Point
from gradfix.alignment.rotation.maps import Rotation
from gradfix.alignment.rotation.rotate import Rotated, RotationAlignment, rotation, rotation_points
from gradfix.alignment.rotation.spaces import Place
from gradfix.alignment.rows import each_token
from gradfix.checkpoints.expressions import Given
from gradfix.errors import GradfixError
from gradfix.vectors.task_vector import TaskVector
from tests.alignment.twins import (
    MODELS,
    UNIT_GAIN,
    model_of,
    moved,
    outputs_of,
    random_maps,
    recorded,
    twin_of,
    vector_of,
    weights_of,
)


def change_of(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {name: torch.randn(value.shape, generator=generator) for name, value in weights_of(model).items()}


def aligned(
    model: nn.Module,
    twin: nn.Module,
    tau: Mapping[str, Tensor],
    method: Literal["procrustes", "permutation"],
) -> RotationAlignment:
    with Activations(each_token(12, rows=400)) as activations:
        recorded(activations, source=model, target=twin)
        names = {name: f"stored.{name}" for name in weights_of(model)}
        return rotation(
            vector_of({names[name]: value for name, value in tau.items()}),
            twin,
            names,
            activations,
            source="source",
            target="target",
            method=method,
        )


@pytest.mark.parametrize("family", MODELS)
def test_a_twin_computes_the_same(family: str) -> None:
    model = model_of(family)
    maps = random_maps(model, rotate_streams=family in UNIT_GAIN, rotate_heads=True)
    twin = twin_of(model, maps)
    ours, theirs = weights_of(model), weights_of(twin)
    assert sum(not torch.equal(ours[name], theirs[name]) for name in ours) > 15
    torch.testing.assert_close(outputs_of(twin), outputs_of(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", MODELS)
def test_a_known_permutation_is_recovered(family: str) -> None:
    model = model_of(family)
    maps = random_maps(model, rotate_streams=False, rotate_heads=False)
    tau = change_of(model)
    found = aligned(model, twin_of(model, maps), tau, "permutation")
    for name, value in moved(tau, model, maps).items():
        torch.testing.assert_close(found.vector[f"stored.{name}"], value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("family", MODELS)
def test_a_known_rotation_is_recovered(family: str) -> None:
    model = model_of(family)
    maps = random_maps(model, rotate_streams=family in UNIT_GAIN, rotate_heads=True)
    tau = change_of(model)
    found = aligned(model, twin_of(model, maps), tau, "procrustes")
    for name, value in moved(tau, model, maps).items():
        torch.testing.assert_close(found.vector[f"stored.{name}"], value, rtol=1e-4, atol=1e-3, msg=name)
    assert found.residuals
    for name, sides in found.residuals.items():
        assert max(sides.values()) < 1e-4, name


def test_unrelated_models_leave_most_unexplained_on_held_out_inputs() -> None:
    found = aligned(model_of("gpt2", 0), model_of("gpt2", 1), change_of(model_of("gpt2")), "procrustes")
    residuals = [value for sides in found.residuals.values() for value in sides.values()]
    assert 0.3 < sum(residuals) / len(residuals) <= 1


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(GradfixError, match=r"Linear.*known are bert, .*--align none"):
        rotation_points(nn.Linear(2, 2))


def test_only_what_is_asked_for_is_recorded() -> None:
    model = model_of("clip")
    names = [name for name, _ in model.named_parameters() if name.startswith("visual_projection")]
    points = rotation_points(model, names)
    assert Point("visual_projection", "out") in points
    assert not any("text" in point.module for point in points)
    assert not any("self_attn" in point.module or "fc" in point.module for point in points)


class Counting(Given):
    """A source that remembers what was read of it."""

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        READS.append((name, rows))
        return super().read(name, rows)


READS: list[tuple[str, slice | None]] = []


def test_tensors_are_read_when_asked_and_whole_only_where_rows_turn() -> None:
    READS.clear()
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    tensors = {
        name: torch.randn(6, 6, generator=torch.Generator().manual_seed(n)) for n, name in enumerate("abc")
    }
    places = {"a": Place(((), ("s",))), "b": Place((("s",), ())), "c": Place(((), ()))}
    vector = TaskVector(Rotated(Counting(tensors), places, {"s": Rotation(turn)}))
    assert not READS
    some, more = slice(0, 2), slice(2, 5)
    torch.testing.assert_close(vector.read("a", some), tensors["a"][some] @ turn)
    torch.testing.assert_close(vector.read("b", some), (turn.T @ tensors["b"])[some])
    torch.testing.assert_close(vector.read("b", more), (turn.T @ tensors["b"])[more])
    torch.testing.assert_close(vector.read("c", some), tensors["c"][some])
    expected = [("a", some), ("b", None), ("c", some)]
    assert expected == READS


def test_maps_that_are_not_square_and_those_of_other_widths_are_placed_right() -> None:
    model = model_of("llama")
    maps = random_maps(model, rotate_streams=True, rotate_heads=True)
    tau = change_of(model)
    turned = moved(tau, model, maps)
    outward, inward = (
        maps[space].apply(torch.eye(width))
        for space, width in (("model.layers.0.self_attn.key", 8), ("stream", 16))
    )
    name = "model.layers.0.self_attn.k_proj.weight"
    torch.testing.assert_close(turned[name], outward.T @ tau[name] @ inward, rtol=1e-4, atol=1e-5)
    name = "model.norm.weight"
    expected = (inward.T @ torch.diag(tau[name]) @ inward).diagonal()
    torch.testing.assert_close(turned[name], expected, rtol=1e-4, atol=1e-5)
