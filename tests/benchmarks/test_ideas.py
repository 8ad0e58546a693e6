"""Task vectors turned on both sides: the solver is the package's, and gradients belong to what a matrix reads."""

import sys
from pathlib import Path

import torch
from torch.nn.functional import one_hot

from gradfix.alignment.rotation.maps import procrustes

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import ideas
from ideas_pair import Side


def test_free_directions_are_turned_as_in_the_package_as_they_come_or_not_at_all() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 5, 12, generator=generator)
    found = {
        free: ideas.rotation(source, target, free) for free in (ideas.NEAREST, ideas.ARBITRARY, ideas.DROPPED)
    }
    torch.testing.assert_close(found[ideas.NEAREST], procrustes(source, target), atol=1e-5, rtol=0)
    for free in (ideas.NEAREST, ideas.ARBITRARY):
        torch.testing.assert_close(found[free] @ found[free].T, torch.eye(12), atol=1e-5, rtol=0)
    known = found[ideas.DROPPED]
    assert torch.linalg.svdvals(known).round().sum() == 4  # five rows, less their mean
    assert found[ideas.NEAREST].trace() > found[ideas.ARBITRARY].trace()
    centred = source - source.mean(0)
    for one in found.values():
        torch.testing.assert_close(centred @ one, centred @ known, atol=1e-5, rtol=0)


def test_gradients_times_what_is_read_are_those_of_the_weights() -> None:
    side = Side("B", "digits")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 28, 28, generator=generator)
    targets = one_hot(torch.tensor([0, 4, 9]), 10).float()
    for name, (read, output, gradient) in side.maps(images, targets).items():
        weight = side.weights[f"{name}.weight"].clone().requires_grad_()
        loss = -(side.logits({f"{name}.weight": weight}, images).log_softmax(1) * targets).sum()
        torch.testing.assert_close(
            gradient.T @ read, torch.autograd.grad(loss, weight)[0], atol=1e-3, rtol=1e-3
        )
        assert output.shape == gradient.shape
