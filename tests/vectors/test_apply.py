"""A directory that apply writes: loads with from_pretrained, and equals θ_B + α (m ⊙ τ) to the bit."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.architecture import checkpoint_names
from gradfix.errors import GradfixError
from gradfix.vectors.apply import apply, round_stochastically
from gradfix.vectors.masks import mask
from gradfix.vectors.task_vector import TaskVector
from tests.models import tiny_bert, tiny_bert_masked_lm
from tests.triples import FAMILIES, perturbed, random_votes, save_triple


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_written_model_is_the_sum_computed_in_memory(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    triple = save_triple(family, tmp_path, dtype=dtype)
    model = triple.load(triple.target)
    votes = random_votes(model)
    masked = mask(TaskVector.between(triple.base, triple.tuned), votes.renamed(checkpoint_names(model)))
    alpha = 0.7
    applied = apply(masked, triple.target, alpha=alpha, output=tmp_path / "output")

    before, after = (triple.load(directory).state_dict() for directory in (triple.base, triple.tuned))
    written, start = triple.load(tmp_path / "output").state_dict(), model.state_dict()
    for name, v in votes.items():
        tau = after[name].float() - before[name].float()
        kept = torch.where((tau.sign() == v.sign()) & (tau != 0), tau, torch.zeros(()))
        assert torch.equal(written[name], (start[name].float() + alpha * kept).to(dtype)), name
    assert 0 < (applied.kept_share or 0) < 1
    assert applied.untouched == applied.added == applied.dropped == []


def test_a_zero_alpha_gives_the_target_back_byte_for_byte(tmp_path: Path) -> None:
    triple = save_triple("llama", tmp_path, dtype=torch.bfloat16)
    apply(TaskVector.between(triple.base, triple.tuned), triple.target, alpha=0.0, output=tmp_path / "output")
    ours, theirs = (
        load_file(directory / "model.safetensors") for directory in (tmp_path / "output", triple.target)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].view(torch.int16), theirs[name].view(torch.int16)) for name in ours)


def test_sharded_inputs_and_outputs_are_the_same_model(tmp_path: Path) -> None:
    triple = save_triple("gpt2", tmp_path, shard_size="20KB")
    assert (triple.base / "model.safetensors.index.json").exists()
    tau = TaskVector.between(triple.base, triple.tuned)
    apply(tau, triple.target, output=tmp_path / "one")
    apply(tau, triple.target, output=tmp_path / "many", shard_size=20_000)
    assert (tmp_path / "many" / "model.safetensors.index.json").exists()
    one, many = (triple.load(tmp_path / name).state_dict() for name in ("one", "many"))
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_a_new_head_comes_with_its_labels_and_replaces_the_pretraining_head(tmp_path: Path) -> None:
    base, target = tiny_bert_masked_lm(seed=0), tiny_bert_masked_lm(seed=2)
    tuned = tiny_bert(
        seed=5, id2label={0: "no", 1: "yes", 2: "maybe"}, label2id={"no": 0, "yes": 1, "maybe": 2}
    )
    tuned.bert.load_state_dict(base.bert.state_dict(), strict=False)
    perturbed(tuned, 1e-2, seed=1)
    for name, model in (("base", base), ("target", target), ("tuned", tuned)):
        model.save_pretrained(tmp_path / name)
    applied = apply(
        TaskVector.between(tmp_path / "base", tmp_path / "tuned"),
        tmp_path / "target",
        output=tmp_path / "output",
    )
    loaded, info = type(tuned).from_pretrained(tmp_path / "output", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert torch.equal(loaded.classifier.weight, tuned.classifier.weight)
    name = "encoder.layer.0.output.dense.weight"
    start, before, after = (m.bert.state_dict()[name] for m in (target, base, tuned))
    assert torch.equal(loaded.bert.state_dict()[name], start + (after - before))
    assert set(applied.added) == {
        "classifier.weight",
        "classifier.bias",
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    }
    assert all(name.startswith("cls.") for name in applied.dropped)


def test_what_the_number_format_swallows_is_counted(tmp_path: Path) -> None:
    ones = torch.ones(1000)
    save_file({"w": ones}, tmp_path / "base.safetensors")
    save_file({"w": ones + torch.tensor([1e-3, 0.0]).repeat(500)}, tmp_path / "tuned.safetensors")
    save_file({"w": ones.bfloat16()}, tmp_path / "target.safetensors")
    tau = TaskVector.between(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    lost = apply(tau, tmp_path / "target.safetensors", output=tmp_path / "lost")
    assert lost.lost_share == 1.0
    assert any("100.0% of the changed weights were rounded back" in note for note in lost.notes())
    wide = apply(tau, tmp_path / "target.safetensors", output=tmp_path / "wide", dtype=torch.float32)
    assert wide.lost_share == 0.0
    drawn = apply(tau, tmp_path / "target.safetensors", output=tmp_path / "drawn", rounding="stochastic")
    assert (
        0.7 < drawn.lost_share < 0.95
    )  # a step of bfloat16 above 1 is 1/128, so one change in eight is taken
    again = apply(tau, tmp_path / "target.safetensors", output=tmp_path / "again", rounding="stochastic")
    assert again.lost_share == drawn.lost_share


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), st.integers(0, 2**31))
def test_stochastic_rounding_lands_on_a_neighbour(values: list[float], seed: int) -> None:
    exact = torch.tensor(values)
    rounded = round_stochastically(exact, torch.bfloat16, torch.Generator().manual_seed(seed)).float()
    below = (exact.view(torch.int32) & -(1 << 16)).view(torch.float32)
    above = ((exact.view(torch.int32) & -(1 << 16)) + (1 << 16)).view(torch.float32)
    assert bool(((rounded == below) | (rounded == above)).all())
    assert bool((rounded == exact)[exact == below].all())


def test_stochastic_rounding_is_right_on_average() -> None:
    exact = torch.full((200_000,), 1.0 + 1 / 512)  # a quarter of the way to the next bfloat16
    rounded = round_stochastically(exact, torch.bfloat16, torch.Generator().manual_seed(0)).float()
    assert float(rounded.double().mean()) == pytest.approx(1.0 + 1 / 512, abs=1e-4)
    with pytest.raises(GradfixError, match="bfloat16 outputs"):
        round_stochastically(exact, torch.float16, torch.Generator())


def test_the_record_says_what_was_made_from_what(tmp_path: Path) -> None:
    triple = save_triple("bert", tmp_path)
    apply(TaskVector.between(triple.base, triple.tuned), triple.target, alpha=0.5, output=tmp_path / "output")
    record = json.loads((tmp_path / "output" / "gradfix.json").read_text())
    assert record["identity"]["alpha"] == 0.5
    assert record["applied"]["tensors"].keys() == Checkpoint.open(triple.target).specs.keys()


def test_a_damaged_target_leaves_nothing_behind(tmp_path: Path) -> None:
    triple = save_triple("bert", tmp_path)
    tensors = load_file(triple.target / "model.safetensors")
    tensors["bert.pooler.dense.weight"][0, 0] = float("nan")
    save_file(tensors, triple.target / "model.safetensors", metadata={"format": "pt"})
    present = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(
        GradfixError, match=r"target: bert\.pooler\.dense\.weight: expected finite numbers, found 1 NaN"
    ):
        apply(TaskVector.between(triple.base, triple.tuned), triple.target, output=tmp_path / "output")
    assert sorted(path.name for path in tmp_path.iterdir()) == present


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("part", ["copied", "changed", "added", "head"])
def test_what_overflows_the_output_is_refused_wherever_it_comes_from(
    part: str, rounding: str, tmp_path: Path
) -> None:
    # The largest float32 is infinite in bfloat16.
    large, small = torch.tensor([torch.finfo(torch.float32).max, 1.0]), torch.ones(2)
    tensors = {
        "base": {"shared": small},
        "tuned": {"shared": small * 2, "new": large if part == "added" else small},
        "target": {
            "shared": large if part == "changed" else small,
            "own": large if part == "copied" else small,
        },
    }
    files = {name: tmp_path / f"{name}.safetensors" for name in tensors}
    for name, content in tensors.items():
        save_file({key: value.clone() for key, value in content.items()}, files[name])
    told = r"the sum leaves the range of torch.bfloat16; choose a smaller alpha, or --dtype float32"
    with pytest.raises(
        GradfixError, match=told if part == "changed" else "infinite or not a number in torch.bfloat16"
    ):
        apply(
            TaskVector.between(files["base"], files["tuned"]),
            files["target"],
            output=tmp_path / "out",
            dtype="bfloat16",
            rounding=rounding,
            heads={"new": large} if part == "head" else None,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_that_is_no_number_is_refused_in_python_too(alpha: float, tmp_path: Path) -> None:
    triple = save_triple("bert", tmp_path)
    with pytest.raises(GradfixError, match="alpha: expected a finite number"):
        apply(
            TaskVector.between(triple.base, triple.tuned), triple.target, alpha=alpha, output=tmp_path / "o"
        )


def test_vectors_scaled_or_added_beyond_float32_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "a.safetensors")
    save_file({"w": torch.full((2,), 3e38)}, tmp_path / "b.safetensors")
    tau = TaskVector.between(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    for vector in (tau + tau, tau * 1e39, tau * float("nan")):
        with pytest.raises(GradfixError, match=r"NaN or infinite|infinite or not a number"):
            vector.save(tmp_path / "o.safetensors")
    assert not (tmp_path / "o.safetensors").exists()
