"""Run transformers models without leaving a trace: inputs, backbones, pooling, modes."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

OURS = frozenset(
    {"labels", "classes", "truncated", "words_at", "tags", "answers", "context", "offsets", "reference"}
)
"""What tasks put into a batch for themselves."""


def placed(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of a model, on its device and in its floating type.

    Args:
        model: The model.
        batch: Encoded samples.

    Returns:
        The tensors of ``batch`` without what is ours, ``labels`` among it, since each task computes its own loss, one
        value a sample. Token types go only to models that name them, as tokenizers make
        them for some that don't.
    """
    accepted = inspect.signature(model.forward).parameters
    untyped = "input_ids" in accepted and "token_type_ids" not in accepted
    ours = OURS | ({"token_type_ids"} if untyped else set())
    reference = next(model.parameters())
    return {
        key: value.to(reference.device, reference.dtype if value.is_floating_point() else None)
        for key, value in batch.items()
        if key not in ours
    }


def backbone(model: nn.Module) -> nn.Module:
    """The pre-trained part of a transformers model, without its head.

    Args:
        model: A transformers model.

    Returns:
        The module that ``base_model_prefix`` names; the model itself where there is none.
    """
    inner = getattr(model, getattr(model, "base_model_prefix", ""), None)
    return inner if isinstance(inner, nn.Module) else model


def outside_backbone(model: nn.Module) -> list[str]:
    """The parameters of a model's head.

    Args:
        model: A transformers model.

    Returns:
        Names of the parameters that the backbone does not hold; a head tied to it is not listed.
    """
    inner = backbone(model)
    if inner is model:
        return []
    held = {id(parameter) for parameter in inner.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) not in held]


def mean_over_tokens(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Average the hidden states of each sample.

    Args:
        hidden: ``[B, L, d]`` of tokens or patches, or ``[B, d, height, width]`` of a convolutional network.
        mask: ``[B, L]``, 1 at real tokens; all by default.

    Returns:
        ``[B, d]`` float32.
    """
    hidden = hidden.float()
    if hidden.dim() == 4:
        return hidden.mean(dim=(2, 3))
    if mask is None:
        return hidden.mean(dim=1)
    weights = mask.to(hidden)[..., None]
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients, with the mode of every module put back afterwards.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True
