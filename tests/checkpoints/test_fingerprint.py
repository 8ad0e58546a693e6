"""Fingerprints are the same for a tensor and its stored rows, and differ where weights do."""

import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from gradfix.checkpoints import Checkpoint, SafetensorsFile
from gradfix.checkpoints.fingerprint import (
    combined_fingerprint,
    fingerprints,
    stored_fingerprint,
    tensor_fingerprint,
)
from gradfix.checkpoints.tensors import TensorSpec


class Stored:
    """Tensors that count the rows read."""

    def __init__(self, tensors):
        self.tensors, self.rows = tensors, Counter()
        self.specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}

    def read(self, name, rows=None):
        part = self.tensors[name] if rows is None else self.tensors[name][rows]
        self.rows[name] += len(part) if part.ndim else 1
        return part


@given(st.lists(st.integers(0, 90), max_size=3))
def test_stored_rows_have_the_tensors_fingerprint(shape):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert stored_fingerprint(Stored({"w": tensor}), "w") == tensor_fingerprint(tensor)


def test_few_rows_are_read():
    stored = Stored({"w": torch.randn(5000, 8)})
    stored_fingerprint(stored, "w")
    assert stored.rows["w"] <= 64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
def test_of_a_file_single_numbers_are_read_and_no_rows(dtype, tmp_path, monkeypatch):
    tensors = {
        name: torch.randn(101, 53, generator=torch.Generator().manual_seed(seed))
        for seed, name in enumerate("ab")
    }
    tensors = {name: tensor.mul(50).to(dtype) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in tensors}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = Checkpoint.open(tmp_path / "model.safetensors.index.json")
    monkeypatch.setattr(SafetensorsFile, "read", lambda *_: pytest.fail("a row was read"))
    assert fingerprints(checkpoint) == {name: tensor_fingerprint(tensor) for name, tensor in tensors.items()}


def test_precision_does_not_matter_but_values_and_shapes_do():
    tensor = torch.randn(30, 20)
    assert tensor_fingerprint(tensor.bfloat16()) == tensor_fingerprint(tensor.bfloat16().double())
    assert tensor_fingerprint(tensor) == tensor_fingerprint(tensor.bfloat16())
    assert tensor_fingerprint(tensor) != tensor_fingerprint(tensor.view(20, 30))
    assert tensor_fingerprint(tensor) != tensor_fingerprint(tensor + 0.01)
    assert tensor_fingerprint(torch.zeros(3)) == tensor_fingerprint(-torch.zeros(3))


def test_a_model_is_fingerprinted_with_its_buffers_and_tied_names():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.tied = model[0]
    found = fingerprints(model)
    assert {"0.weight", "tied.weight", "1.running_mean"} <= set(found)
    assert fingerprints(model, ["0.weight", "absent"]) == {"0.weight": found["0.weight"]}
    assert fingerprints(Stored(dict(model.state_dict())), ["0.weight"]) == {"0.weight": found["0.weight"]}


@pytest.mark.parametrize("change", [{"a": "1", "b": "3"}, {"a": "1"}])
def test_one_fingerprint_for_all(change):
    assert combined_fingerprint({"a": "1", "b": "2"}) == combined_fingerprint({"b": "2", "a": "1"})
    assert combined_fingerprint({"a": "1", "b": "2"}) != combined_fingerprint(change)
