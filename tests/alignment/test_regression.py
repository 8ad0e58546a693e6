"""Alignment by regression: where blocks write, what is recorded, and twins in other coordinates that are recovered."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradfix.alignment import regression
from gradfix.alignment.activations import Activations, Point
from gradfix.alignment.blocks import Writer, find_writers
from gradfix.alignment.regression import SHUFFLED, SOURCE, TARGET, TUNED, Fitted, fit_blocks
from gradfix.alignment.rows import MeanOverTokens, Rows, each_token
from gradfix.errors import GradfixError
from gradfix.tasks import get_task
from tests import tiny
from tests.alignment.twins import inputs_of, model_of, outputs_of, random_maps, twin_of
from tests.models import tiny_bert, tiny_t5

FAMILIES = ["bert", "gpt2", "t5", "clip", "vit", "llama"]
SAMPLES = 48
ROTATED = {"t5", "llama"}  # their norms allow any rotation of the stream; the others' permutations only


def runner(model: nn.Module) -> Callable[[Any], Any]:
    if model.config.model_type == "clip":  # as its task runs it: texts are of the classes, not of the samples
        return lambda batch: model.get_image_features(pixel_values=batch["pixel_values"])
    return lambda batch: model(**batch)


def whole(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def writers_of(model: nn.Module) -> list[Writer]:
    return find_writers(
        model, runner(model), inputs_of(model)[0], {name for name, _ in model.named_parameters()}
    )


def tuned_from(model: nn.Module, scale: float = 0.1, seed: int = 7) -> nn.Module:
    """A fine-tune that changes what blocks write, so that a regression can make the very same change."""
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for writer in writers_of(model):
            weight = tuned.get_parameter(writer.weight)
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=scale)
    return tuned


def fitted(activations: Activations, source: nn.Module, target: nn.Module, **models: nn.Module) -> Fitted:
    """Record models under their keywords, and fit the target to one of them."""
    writers = writers_of(source)
    points = [writer.stream for writer in writers]
    for key, model in {SOURCE: source, TARGET: target, **models}.items():
        activations.record(key, model, runner(model), inputs_of(model, SAMPLES), points)
    return fit_blocks(target, runner(target), whole(inputs_of(target, SAMPLES)), writers, activations)


def moved(model: nn.Module, found: Fitted) -> nn.Module:
    result = copy.deepcopy(model)
    with torch.no_grad():
        for name, change in found.changes.items():
            result.get_parameter(name).add_(change)
    return result


def twins(family: str) -> tuple[nn.Module, nn.Module]:
    model = model_of(family)
    maps = random_maps(model, rotate_streams=family in ROTATED, rotate_heads=True)
    return model, twin_of(model, maps)


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_twin_in_other_coordinates_learns_what_the_fine_tune_changed(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = twins(family)
    tuned = tuned_from(source)
    before, wanted = outputs_of(source), outputs_of(tuned)
    assert torch.allclose(outputs_of(target), before, atol=1e-3)
    distance = (wanted - before).norm()
    assert distance > 0.05 * before.norm()
    with Activations(each_token(SAMPLES)) as activations:
        carried = moved(target, fitted(activations, source, target, **{TUNED: tuned}))
        assert (outputs_of(carried) - wanted).norm() < 0.7 * distance
    # Without a ridge to shrink it, nothing is lost.
    monkeypatch.setattr(regression, "RIDGES", (1e-8,))
    with Activations(each_token(SAMPLES)) as activations:
        found = fitted(activations, source, target, **{TUNED: tuned})
        carried = moved(target, found)
        assert (outputs_of(carried) - wanted).norm() < 0.02 * distance
    assert len(found.blocks) == len(writers_of(source))
    for fit in found.blocks.values():
        assert fit.residual < 1e-3
        assert fit.unexplained < 1e-3
    for name, change in found.changes.items():
        assert change.shape == target.get_parameter(name).shape


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_a_task_vector_of_zeros_changes_nothing(family: str) -> None:
    source, target = model_of(family), model_of(family, seed=3)
    with Activations(each_token(SAMPLES)) as activations:
        found = fitted(activations, source, target, **{TUNED: copy.deepcopy(source)})
        # What is left is how batches of two sizes round.
        assert torch.allclose(outputs_of(moved(target, found)), outputs_of(target), atol=1e-4)
        assert all(change.abs().max() < 1e-4 for change in found.changes.values())


def test_the_control_is_fitted_to_a_recording_of_its_own() -> None:
    source, target = twins("bert")
    one, other = tuned_from(source, seed=7), tuned_from(source, seed=8)
    with Activations(each_token(SAMPLES)) as activations:
        first = fitted(activations, source, target, **{TUNED: one, SHUFFLED: other})
        kept = {name: change.clone() for name, change in first.changes.items()}
        batch = whole(inputs_of(target, SAMPLES))
        control = fit_blocks(target, runner(target), batch, writers_of(source), activations, tuned=SHUFFLED)
        assert all(torch.equal(first.changes[name], kept[name]) for name in kept)
        changes = {name: change.clone() for name, change in control.changes.items()}
    with Activations(each_token(SAMPLES)) as activations:
        alone = fitted(activations, source, target, **{TUNED: other})
        assert changes.keys() == alone.changes.keys()
        for name, change in alone.changes.items():
            assert torch.equal(changes[name], change)
            assert not torch.allclose(kept[name], change, atol=1e-3)


class Noisy(nn.Module):
    """A block whose output has noise that no input explains."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.generator = block, torch.Generator().manual_seed(0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.block(*args, **kwargs)
        noise = torch.randn(output.shape, generator=self.generator)
        return output + noise


def test_a_block_whose_change_can_not_be_explained_is_left_alone() -> None:
    source, target = twins("bert")
    tuned = copy.deepcopy(source)
    layer = tuned.get_submodule("bert.encoder.layer.1.output")
    layer.LayerNorm = nn.Sequential()  # the name stays a point; noise comes before it
    layer.dense = Noisy(layer.dense)
    with Activations(each_token(SAMPLES)) as activations:
        found = fitted(activations, source, target, **{TUNED: tuned})
    last = found.blocks["bert.encoder.layer.1.output.dense.weight"]
    assert last.unexplained == 1.0
    assert not [name for name in found.changes if "layer.1" in name]


@pytest.mark.parametrize(("rows", "width"), [(40, 6), (5, 12)])
@pytest.mark.parametrize("intercept", [True, False])
def test_ridge_regression_is_the_same_from_columns_and_from_rows(
    rows: int, width: int, intercept: bool
) -> None:
    generator = torch.Generator().manual_seed(rows)
    u = torch.randn(rows, width, generator=generator) + 1
    y = torch.randn(rows, 3, generator=generator) - 2
    weight, bias = regression._ridge(u, y, 0.1, intercept)
    centred, wanted = (u - u.mean(0), y - y.mean(0)) if intercept else (u, y)
    strength = 0.1 * float(centred.square().sum()) / width
    # The same as least squares with rows added that pull towards 0.
    stacked = torch.cat([centred, strength**0.5 * torch.eye(width)])
    plain = torch.linalg.lstsq(stacked, torch.cat([wanted, torch.zeros(width, 3)])).solution.T
    assert torch.allclose(weight, plain, atol=1e-4)
    if intercept:
        assert bias is not None
        # An intercept is not shrunk: what is left has a mean of 0.
        assert torch.allclose((y - u @ weight.T - bias).mean(0), torch.zeros(3), atol=1e-5)
    else:
        assert bias is None


@pytest.mark.parametrize("place", ["find", "watch", "fit"])
def test_hooks_come_off_also_after_an_error(place: str) -> None:
    source, target = twins("bert")
    writers = writers_of(source)
    points = [writer.stream for writer in writers]

    def broken(batch: Any) -> Any:
        target(**batch)
        raise RuntimeError("broken")

    batch = whole(inputs_of(target, SAMPLES))
    with Activations(each_token(SAMPLES)) as activations:
        fitted(activations, source, target, **{TUNED: tuned_from(source)})
        assert (hooks(source), hooks(target)) == (0, 0)
        stages: dict[str, Callable[[], Any]] = {
            "find": lambda: find_writers(target, broken, batch, set()),
            "watch": lambda: activations.record("again", target, broken, [batch], points),
            "fit": lambda: fit_blocks(target, broken, batch, writers, activations),
        }
        with pytest.raises(RuntimeError, match="broken"):
            stages[place]()
        assert hooks(target) == 0


def test_a_fit_leaves_the_weights_as_they_are() -> None:
    source, target = twins("gpt2")
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with Activations(each_token(SAMPLES)) as activations:
        fitted(activations, source, target, **{TUNED: tuned_from(source)})
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


LENGTHS = [4, 7, 2, 9, 5]


def texts(pad_to: int, lengths: Sequence[int]) -> dict[str, Tensor]:
    """Texts of given lengths whose words don't depend on the padding."""
    ids = torch.zeros(len(lengths), pad_to, dtype=torch.long)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(length)
        ids[row, :length] = torch.randint(5, 96, (length,), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(pad_to) < torch.tensor(lengths)[:, None]).long(),
    }


@pytest.mark.parametrize("pooled", [False, True])
def test_padding_is_never_recorded_and_batches_make_no_difference(pooled: bool) -> None:
    model = tiny_bert()
    point = Point("bert.encoder.layer.0.output", "out")
    apart = [texts(7, LENGTHS[:2]), texts(9, LENGTHS[2:4]), texts(5, LENGTHS[4:])]
    rows = Rows(MeanOverTokens(), MeanOverTokens()) if pooled else each_token(5)
    with Activations(rows) as activations:
        activations.record("apart", model, runner(model), apart, [point])
        activations.record("together", model, runner(model), [texts(12, LENGTHS)], [point])
        activations.record("alone", model, runner(model), [texts(n, [n]) for n in LENGTHS], [point])
        one, two, three = (activations.read(key, point).clone() for key in ("apart", "together", "alone"))
    assert len(one) == (len(LENGTHS) if pooled else sum(LENGTHS))
    assert torch.allclose(one, two, atol=1e-5)
    assert torch.allclose(one, three, atol=1e-5)


def test_an_encoders_and_a_decoders_tokens_are_told_apart_whatever_their_lengths(tmp_path: Path) -> None:
    task = get_task("text-to-text")
    task.bind(tiny.save_tiny_t5(tmp_path / "t5"))
    model = tiny_t5(pad_token_id=0, eos_token_id=2)
    rows = [
        {"input": "film book good", "target": "yes no"},
        {"input": "cat", "target": "dog tree house"},
        {"input": "red", "target": "green blue red and"},
        {"input": "very really so loved", "target": "no"},
    ]  # in the first two samples inputs are as long as targets, once both are padded
    points = [Point("encoder.block.0", "out"), Point("decoder.block.0", "out")]
    with Activations(each_token(4)) as activations:
        run = lambda batch: task.loss(model, batch)  # noqa: E731
        activations.record("apart", model, run, [task.encode(rows[:2]), task.encode(rows[2:])], points)
        activations.record("alone", model, run, [task.encode([row]) for row in rows], points)
        for point, length in zip(points, (13, 14), strict=True):
            apart, alone = activations.read("apart", point), activations.read("alone", point)
            assert len(alone) == length
            assert apart.shape == alone.shape, point
            assert torch.allclose(apart, alone, atol=1e-4)


def test_long_texts_give_a_few_tokens_each_evenly_spread() -> None:
    model = tiny_bert()
    point = Point("bert.embeddings", "out")
    with Activations(each_token(3, rows=12)) as activations:
        activations.record("all", model, runner(model), [texts(40, [40, 4, 2])], [point])
        found = activations.read("all", point).clone()
    with torch.no_grad():
        values = model.get_submodule("bert.embeddings")(input_ids=texts(40, [40, 4, 2])["input_ids"])
    expected = torch.cat([values[0, [0, 10, 20, 30]], values[1, :4], values[2, :2]])
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_model_without_affine_maps_is_refused_by_name() -> None:
    class Table(nn.Sequential):
        pass

    model = Table(nn.Embedding(4, 4), nn.LayerNorm(4))
    with pytest.raises(GradfixError, match=r"Table: has no linear map and no convolution .*--align none"):
        find_writers(model, model, torch.tensor([1, 2]), {"0.weight", "1.weight", "1.bias"})


def test_a_bias_that_may_not_change_is_not_written() -> None:
    model = model_of("bert")
    weights = {name for name, _ in model.named_parameters() if name.endswith("weight")}
    assert [writer.bias for writer in find_writers(model, runner(model), inputs_of(model)[0], weights)] == [
        None,
        None,
    ]


EXPECTED = {
    "bert": [
        (f"bert.encoder.layer.{n}.output.dense", Point(f"bert.encoder.layer.{n}.output.LayerNorm", "in"))
        for n in (0, 1)
    ],
    "gpt2": [(f"transformer.h.{n}.mlp.c_proj", Point(f"transformer.h.{n}", "out")) for n in (0, 1)],
    "t5": [
        *((f"encoder.block.{n}.layer.1.DenseReluDense.wo", Point(f"encoder.block.{n}", "out")) for n in (0, 1)),
        *((f"decoder.block.{n}.layer.2.DenseReluDense.wo", Point(f"decoder.block.{n}", "out")) for n in (0, 1)),
    ],
    "clip": [
        *(
            (f"vision_model.encoder.layers.{n}.mlp.fc2", Point(f"vision_model.encoder.layers.{n}", "out"))
            for n in (0, 1)
        ),
        ("visual_projection", Point("visual_projection", "out")),
    ],
    "vit": [(f"vit.layers.{n}.mlp.fc2", Point(f"vit.layers.{n}", "out")) for n in (0, 1)],
    "llama": [(f"model.layers.{n}.mlp.down_proj", Point(f"model.layers.{n}", "out")) for n in (0, 1)],
}  # fmt: skip
OLDER_VIT = [(f"vit.encoder.layer.{n}.output.dense", Point(f"vit.encoder.layer.{n}", "out")) for n in (0, 1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_writers_of_a_family_are_found(family: str) -> None:
    model = model_of(family)
    found = writers_of(model)
    # Releases of transformers call ViT's modules by other names.
    older = family == "vit" and hasattr(model.vit, "encoder")
    expected = OLDER_VIT if older else EXPECTED[family]
    assert [(writer.module, writer.stream) for writer in found] == expected
    for writer in found:
        assert model.get_parameter(writer.weight) is model.get_submodule(writer.module).weight
        assert (writer.bias is None) == (family in {"t5", "llama"} or writer.module.endswith("_projection"))
        assert writer.source == Point(writer.module, "in")
