"""Parameters that take no memory: they know shape, dtype and device, and refuse to be computed with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradfix.errors import GradfixError


class Placeholder(Tensor):
    """A tensor without numbers, in the place of a parameter that is not there at the moment.

    Models ask their parameters where they are and in which number format; a placeholder answers as the parameter
    would. Whatever would read its numbers is refused by name: there is no way to a wrong result.
    """

    _name: str

    @staticmethod
    def __new__(cls, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Any:
        """Make one for a parameter of this name, shape, number format and device."""
        made = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=device)
        made._name = name
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Refuse to compute."""
        found = next((value for value in args if isinstance(value, Placeholder)), None)
        if func is torch.ops.aten.detach.default and found is not None:
            return Placeholder(found._name, found.shape, found.dtype, found.device)
        name = found._name if found is not None else "a weight"
        raise GradfixError(
            f"{name}: is used outside of the module that owns it, so it can't be fetched when it is needed; this "
            "model must be held in memory: give --memory a size that it fits in"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Placeholder({self._name!r}, {tuple(self.shape)}, {self.dtype})"


def placeholder(name: str, parameter: Tensor, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """Make a parameter without numbers.

    Args:
        name: The parameter's.
        parameter: Whose shape it has, on any device.
        dtype: Of the numbers that will be in its place.
        device: Of the numbers that will be in its place.

    Returns:
        A parameter that requires no gradient.
    """
    kept = dtype if parameter.is_floating_point() else parameter.dtype
    return nn.Parameter(Placeholder(name, parameter.shape, kept, device), requires_grad=False)
