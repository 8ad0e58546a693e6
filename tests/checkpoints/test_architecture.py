"""Names of a loaded model's parameters in its checkpoint, for every family."""

from pathlib import Path

import pytest
import torch
from torch import nn

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.architecture import checkpoint_names
from tests.triples import FAMILIES, save_triple


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_found_in_the_file_under_the_name_told(family: str, tmp_path: Path) -> None:
    triple = save_triple(family, tmp_path)
    checkpoint = Checkpoint.open(triple.target)
    for model in (triple.load(triple.target), FAMILIES[family](seed=2)):
        names = checkpoint_names(model)
        parameters = dict(model.named_parameters())
        assert set(parameters) <= set(names)
        for name, parameter in parameters.items():
            assert torch.equal(checkpoint[names[name]], parameter.detach())


def test_a_module_of_ones_own_stores_its_own_names() -> None:
    assert checkpoint_names(nn.Linear(2, 2)) == {"weight": "weight", "bias": "bias"}
