"""Task vectors: differences after upcasting, arithmetic, norms, and the file they are saved in."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from gradfix.checkpoints import Checkpoint, SafetensorsFile
from gradfix.errors import GradfixError
from gradfix.vectors.task_vector import TaskVector, moments
from tests.triples import FAMILIES, save_triple


def write(path: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_the_difference_of_two_saved_models_equals_the_difference_in_memory(
    family: str, tmp_path: Path
) -> None:
    triple = save_triple(family, tmp_path)
    tau = TaskVector.between(triple.base, triple.tuned)
    before, after = (load_file(directory / "model.safetensors") for directory in (triple.base, triple.tuned))
    assert set(tau) == set(after)
    for name in tau:
        assert torch.equal(tau[name], after[name] - before[name])
    expected = torch.cat([(after[name] - before[name]).flatten() for name in tau]).double().norm()
    assert tau.norm() == pytest.approx(float(expected), rel=1e-12)


def test_bfloat16_models_are_subtracted_in_float32(tmp_path: Path) -> None:
    base, tuned = torch.tensor([1.0, 256.0]).bfloat16(), torch.tensor([1.0078125, -1.0]).bfloat16()
    tau = TaskVector.between(
        write(tmp_path / "a.safetensors", w=base), write(tmp_path / "b.safetensors", w=tuned)
    )
    assert tau["w"].dtype == torch.float32
    assert tau["w"].tolist() == [0.0078125, -257.0]  # −257 is no bfloat16


@given(rows=st.integers(1, 9), cut=st.tuples(st.integers(0, 9), st.integers(0, 9)), factor=st.floats(-3, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_arithmetic_is_that_of_the_tensors_on_any_range_of_rows(
    tmp_path: Path, rows: int, cut: tuple[int, int], factor: float
) -> None:
    a, b, c = (torch.randn(rows, 3) for _ in range(3))
    files = [write(tmp_path / f"{i}.safetensors", w=t) for i, t in enumerate((a, b, c))]
    first, second = TaskVector.between(files[0], files[1]), TaskVector.between(files[0], files[2])
    part = slice(min(cut), min(max(cut), rows)) if min(cut) < rows else slice(0, rows)
    for lazy, expected in [
        (first + second, (b - a) + (c - a)),
        (first - second, (b - a) - (c - a)),
        (factor * first, (b - a) * factor),
        (-first, a - b),
    ]:
        assert torch.equal(lazy.read("w", part), expected[part])
    x, y = (b - a).double().flatten(), (c - a).double().flatten()
    assert moments(first, second) == pytest.approx(
        (float(x @ y), float(x @ x), float(y @ y)), rel=1e-9, abs=1e-12
    )
    if x.norm() and y.norm():
        assert first.cosine(second) == pytest.approx(float(x @ y / (x.norm() * y.norm())), rel=1e-6, abs=1e-9)


def test_a_saved_vector_is_the_same_vector(tmp_path: Path) -> None:
    triple = save_triple("bert", tmp_path)
    tau = TaskVector.between(triple.base, triple.tuned)
    tau.save(tmp_path / "tau.safetensors")
    loaded = TaskVector.load(tmp_path / "tau.safetensors")
    assert list(loaded) == list(tau)
    assert all(torch.equal(loaded[name], tau[name]) for name in tau)
    assert loaded.origin == tau.origin
    assert loaded.config == tau.config
    with pytest.raises(GradfixError, match="exists"):
        tau.save(tmp_path / "tau.safetensors")
    with pytest.raises(GradfixError, match=r"not a task vector.*gradfix diff"):
        TaskVector.load(triple.base / "model.safetensors")


def test_a_head_of_the_tuned_model_is_an_addition_and_survives_saving(tmp_path: Path) -> None:
    base = write(tmp_path / "a.safetensors", w=torch.zeros(2), old_head=torch.zeros(1))
    tuned = write(tmp_path / "b.safetensors", w=torch.ones(2), head=torch.full((3,), 7.0))
    tau = TaskVector.between(base, tuned)
    tau.save(tmp_path / "tau.safetensors")
    for vector in (tau, TaskVector.load(tmp_path / "tau.safetensors")):
        assert list(vector) == ["w"]
        assert vector.additions.read("head").tolist() == [7.0, 7.0, 7.0]
        assert vector.origin["base_only"] == ["old_head"]


def test_models_that_don_t_belong_together_are_refused_by_name(tmp_path: Path) -> None:
    base = write(tmp_path / "a.safetensors", w=torch.zeros(2), v=torch.zeros(2))
    with pytest.raises(GradfixError, match=r"w \[3\] against \[2\].*must come from this base"):
        TaskVector.between(base, write(tmp_path / "b.safetensors", w=torch.zeros(3), v=torch.zeros(2)))
    with pytest.raises(GradfixError, match=r"no tensor has a counterpart.*found x against v, w"):
        TaskVector.between(base, write(tmp_path / "c.safetensors", x=torch.zeros(3)))
    left = TaskVector.between(base, write(tmp_path / "d.safetensors", w=torch.ones(2), v=torch.ones(2)))
    right = TaskVector.between(
        write(tmp_path / "e.safetensors", w=torch.zeros(2)),
        write(tmp_path / "f.safetensors", w=torch.ones(2)),
    )
    with pytest.raises(GradfixError, match="keys or shapes differ: v"):
        left + right


@pytest.mark.parametrize(("bad", "model"), [(float("nan"), "tuned"), (float("inf"), "base")])
def test_a_number_that_is_not_finite_is_traced_to_model_and_key(
    tmp_path: Path, bad: float, model: str
) -> None:
    tensors = {"base": torch.zeros(4), "tuned": torch.ones(4)}
    tensors[model][2] = bad
    files = {name: write(tmp_path / f"{name}.safetensors", w=tensor) for name, tensor in tensors.items()}
    tau = TaskVector.between(files["base"], files["tuned"])
    with pytest.raises(
        GradfixError, match=rf"{model}\.safetensors: w: expected finite numbers, found 1 NaN or infinite"
    ):
        tau["w"]


def test_large_finite_numbers_are_not_mistaken_for_infinite_ones(tmp_path: Path) -> None:
    base, tuned = torch.zeros(3), torch.full((3,), 3e38)  # their sum overflows float32
    tau = TaskVector.between(
        write(tmp_path / "a.safetensors", w=base), write(tmp_path / "b.safetensors", w=tuned)
    )
    assert torch.equal(tau["w"], tuned)


def test_a_damaged_task_vector_file_is_refused_where_it_is_read(tmp_path: Path) -> None:
    triple = save_triple("bert", tmp_path)
    TaskVector.between(triple.base, triple.tuned).save(tmp_path / "tau.safetensors")
    path = tmp_path / "tau.safetensors"
    vector = TaskVector.load(path)
    name, entry = list(SafetensorsFile(path)._entries.items())[-1]
    raw = bytearray(path.read_bytes())
    looked_at = entry.start  # the first value of a tensor enters its fingerprint
    raw[looked_at : looked_at + 4] = raw[looked_at + 4 : looked_at + 8]
    path.write_bytes(raw)
    with pytest.raises(GradfixError, match="not those that it was written with"):
        TaskVector.load(path)
    raw[looked_at : looked_at + 4] = torch.tensor([float("nan")]).numpy().tobytes()
    path.write_bytes(raw)
    with pytest.raises(GradfixError, match=r"tau\.safetensors: .*expected finite numbers, found 1 NaN"):
        vector[name]


def test_a_task_vector_whose_origin_was_edited_is_refused(tmp_path: Path) -> None:
    triple = save_triple("bert", tmp_path)
    path = tmp_path / "tau.safetensors"
    TaskVector.between(triple.base, triple.tuned).save(path)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"difference", b"Difference"))
    with pytest.raises(GradfixError, match="not those that it was written with"):
        TaskVector.load(path)


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    plain = save({"w": torch.ones(2)}, {"pad": ""})
    filled = save({"w": torch.ones(2)}, {"pad": "x" * (640 - int.from_bytes(plain[:8], "little"))})
    assert filled[:2] == b"\x80\x02"
    (tmp_path / "a.safetensors").write_bytes(filled)
    assert torch.equal(SafetensorsFile(tmp_path / "a.safetensors").read("w"), torch.ones(2))


def test_the_cosine_of_nothing_is_refused(tmp_path: Path) -> None:
    base = Checkpoint.open(write(tmp_path / "a.safetensors", w=torch.ones(2)))
    nothing = TaskVector.between(base, base)
    with pytest.raises(GradfixError, match="exactly zero"):
        nothing.cosine(nothing)
