"""Where each weight of the model in memory is stored: in the target, or with the tuned head."""

from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class StoredAs:
    """Where a parameter's or buffer's value at θ_B is stored.

    Attributes:
        theirs: Names in the target; several where it stores another form, such as one tensor an expert.
        addition: Or the name with the tuned model's head.
        memory: The name in the module that is stored, of a tied parameter that has several.
    """

    theirs: tuple[str, ...] = ()
    addition: str | None = None
    memory: str = field(default="", compare=False)


NOT_STORED = StoredAs()


def stored_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Give the buffers that a checkpoint holds: those of the model's state, not what it computes when it is made."""
    state = model.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in state}
