import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path, PurePosixPath

import pytest
import torch
from safetensors.torch import load, save
from transformers import CLIPModel

from gradfix.demo import pair as store
from gradfix.demo.datasets import FASHION_MNIST, TASKS, load_task
from gradfix.demo.models import is_image_tower
from gradfix.demo.packing import pack, unpack
from gradfix.demo.run import CLOSE_MODELS, MODELS
from gradfix.errors import GradfixError
from studies.pair.build import OTHER_SIZES, full_plan
from studies.pair.finetune import zero_shot_accuracy


def test_the_pair_its_next_release_and_its_tunes_are_stored() -> None:
    expected = {"A", "B", "B-next", "B-next-digits"} | {f"{base}-{task}" for base in "AB" for task in TASKS}
    sizes = {f"{base}{end}" for base in OTHER_SIZES for end in ("", "-digits", "-mnist")}
    assert set(store.names()) == expected | sizes


@pytest.mark.parametrize("name", store.names())
def test_every_file_is_the_one_that_was_measured(name: str) -> None:
    entry = store.provenance()["checkpoints"][name]
    content = store.stored(name)
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert len(content) == entry["bytes"]
    tensors = load(content)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    if entry["task"]:
        assert all(is_image_tower(key) for key in tensors)


def test_no_other_file_is_stored_and_those_of_the_wheel_are_small() -> None:
    files = {path.name for path in store.CHECKPOINTS.iterdir()}
    assert files == {f"{name}{store.PACKED}" for name in store.names()} | {store.PROVENANCE, "README.md"}
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    left_out = re.findall(r'"(src/gradfix/demo/checkpoints/[^"]+)"', project)
    assert left_out
    folder = PurePosixPath("src/gradfix/demo/checkpoints")
    kept = {name for name in files if not any((folder / name).match(pattern) for pattern in left_out)}
    assert {"A.packed", "B.packed", "B-next.packed"} < kept
    assert {f"{model}{store.PACKED}" for model in (*MODELS.values(), *CLOSE_MODELS.values())} <= kept
    assert sum((store.CHECKPOINTS / name).stat().st_size for name in kept) < 4.6e6
    assert sum(path.stat().st_size for path in store.CHECKPOINTS.iterdir()) < 20e6


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="without Fashion-MNIST, other data would be used")
def test_the_provenance_tells_the_plan() -> None:
    """Seeds, sizes, schedules and data of what is stored are those that would be used again."""
    entries = store.provenance()["checkpoints"]
    plan = {name: json.loads(json.dumps(asdict(training))) for name, training in full_plan().items()}
    assert {name: {key: entries[name][key] for key in plan[name]} for name in plan} == plan


@pytest.mark.parametrize("with_base", [False, True])
def test_packing_keeps_every_bit(with_base: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**15), 2**15, (4, 5), generator=generator, dtype=torch.int16)
    tensors = {"b": bits.view(torch.float16), "a": torch.full((3,), float("nan"), dtype=torch.float16)}
    content = save(tensors)
    base = save({**{name: value.flip(0) for name, value in tensors.items()}, "c": bits.view(torch.float16)})
    other = base if with_base else None
    assert unpack(pack(content, other), other) == content


def test_what_the_wheel_leaves_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHECKPOINTS", tmp_path)
    with pytest.raises(GradfixError, match=r"B-mnist\.packed: is not in the installed package"):
        store.stored("B-mnist")


@pytest.mark.parametrize(
    "name", ["A", "B", "A-digits", "B-digits", "wider-digits", "deeper-digits", "smaller"]
)
def test_accuracies_are_those_of_the_provenance(name: str) -> None:
    task = load_task("digits")
    stated = store.provenance()["checkpoints"][name]["test_accuracy"]["digits"]
    # Two of a thousand images: other versions and processors round otherwise.
    assert zero_shot_accuracy(store.load_model(name), task, task.test) == pytest.approx(stated, abs=0.002)


def test_the_pair_leaves_room_and_tuning_fills_it() -> None:
    entries = store.provenance()["checkpoints"]
    for task in TASKS:
        zero_shot = entries["B"]["test_accuracy"][task]
        tuned = entries[f"B-{task}"]["test_accuracy"][task]
        assert zero_shot > 0.5  # chance is 0.1, or 0.04 on letters
        assert tuned > zero_shot + 0.05
        assert entries[f"A-{task}"]["test_accuracy"][task] > entries["A"]["test_accuracy"][task] + 0.04


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_a_target_of_another_size_is_one_and_is_loaded_as_one(name: str, tmp_path: Path) -> None:
    directory = store.load(f"{name}-digits", tmp_path / name)
    loaded = CLIPModel.from_pretrained(directory)
    size, _ = OTHER_SIZES[name]
    vision = loaded.config.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers) == (size.width, size.depth)
    other = store.load_model("B").config.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers) != (other.hidden_size, other.num_hidden_layers)
    text = store.load_model(name).text_model.state_dict()
    assert all(torch.equal(value, text[key]) for key, value in loaded.text_model.state_dict().items())


def test_a_directory_holds_exactly_the_stored_values(tmp_path: Path) -> None:
    directory = store.load("A-digits", tmp_path / "tuned")
    loaded = CLIPModel.from_pretrained(directory).state_dict()
    tower, base = load(store.stored("A-digits")), load(store.stored("A"))
    assert set(loaded) == set(base)
    for name, value in loaded.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, tower.get(name, base[name]).float()), name
    assert not torch.equal(tower["visual_projection.weight"], base["visual_projection.weight"])


def test_the_cache_is_filled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = store.load("B")
    weights = first / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert store.load("B") == first
    assert weights.stat().st_mtime_ns == made
    assert [path.name for path in first.parent.iterdir()] == ["B"]


def test_an_existing_directory_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(GradfixError, match="expected a directory that does not exist yet"):
        store.load("A", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(GradfixError, match="'C': expected one of A, B, A-digits"):
        store.load_model("C")


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray((store.CHECKPOINTS / "A.packed").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "A.packed").write_bytes(content)
    monkeypatch.setattr(store, "CHECKPOINTS", tmp_path)
    with pytest.raises(GradfixError, match=r"A\.packed: expected SHA-256 .* the file is damaged"):
        store.load_model("A")
