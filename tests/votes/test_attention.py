"""The backward pass of attention in float32 gives what torch's own does, and nearer to the truth."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gradfix.votes.fast import attention
from gradfix.votes.fast.attention import WideAttention
from gradfix.votes.fast.recorder import Recorder

MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"is_causal": True},
    "boolean": {"attn_mask": torch.ones(9, 9, dtype=torch.bool).tril().expand(3, 1, 9, 9)},
    "added": {"attn_mask": torch.linspace(-3, 3, 81).view(1, 1, 9, 9).bfloat16()},
    "scaled": {"scale": 0.3},
}


def attend(dtype: torch.dtype, heads: int = 4, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """Attend, and give the output and the gradients of query, key and value."""
    generator = torch.Generator().manual_seed(0)
    factors = [
        torch.randn(3, count, 9, 8, generator=generator).bfloat16().to(dtype).requires_grad_()
        for count in (4, heads, heads)
    ]
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        options["attn_mask"] = mask.to(dtype)
    output = functional.scaled_dot_product_attention(*factors, enable_gqa=heads != 4, **options)
    output.backward(torch.randn(3, 4, 9, 8, generator=generator).bfloat16().to(dtype))
    return output.detach(), [factor.grad for factor in factors if factor.grad is not None]


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    return sum(
        float((one.double() - other).norm() / other.norm()) for one, other in zip(found, exact, strict=True)
    )


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("mask", MASKS)
def test_gradients_are_nearer_to_the_truth_and_the_output_is_the_same(mask: str, heads: int) -> None:
    _, exact = attend(torch.float64, heads, **MASKS[mask])
    output, plain = attend(torch.bfloat16, heads, **MASKS[mask])
    with WideAttention():
        same, wide = attend(torch.bfloat16, heads, **MASKS[mask])
    assert torch.equal(same, output)
    assert [gradient.dtype for gradient in wide] == [torch.bfloat16] * 3
    assert 0 < error(wide, exact) < error(plain, exact)


def test_what_is_longer_or_in_another_format_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.Attention, "apply", lambda *_: pytest.fail("it was replaced"))
    with WideAttention():
        attend(torch.float32)
        monkeypatch.setattr(attention, "LONGEST", 8)
        attend(torch.bfloat16)


def test_a_recorded_pass_has_the_same_gradients() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 8).bfloat16())
    x = torch.randn(3, 2, 9, 8).bfloat16()

    def gradient(mode: Any) -> Tensor:
        leaf = x.clone().requires_grad_()
        with mode:
            hidden = functional.linear(leaf, weight)
            losses = functional.scaled_dot_product_attention(hidden, hidden, hidden).float().square()
            losses = losses.flatten(1).sum(1)
        if isinstance(mode, Recorder):
            mode.backward(losses, lambda *_: None, [leaf])
        else:
            losses.sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    recorded = gradient(Recorder({"weight": weight}, 3))
    assert torch.equal(recorded, gradient(WideAttention()))
    assert not torch.equal(recorded, gradient(torch.enable_grad()))
