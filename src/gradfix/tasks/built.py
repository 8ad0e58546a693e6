"""Tasks that build their model themselves, so that weights need no directory around them."""

from abc import abstractmethod
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from gradfix.errors import GradfixError
from gradfix.tasks.base import ModelTask


class BuildsModel(ModelTask):
    """A task whose model is made by a function, and filled from files tensor by tensor."""

    builds_model = True

    @abstractmethod
    def built(self) -> Any:
        """Build the architecture, with random weights; a copy of it is used.

        Returns:
            The module.
        """

    @override
    def bind(self, location: str | Path, *, trust_remote_code: bool = False) -> None:
        """Take nothing: the task brings what it needs."""

    @override
    def _bind_processors(self, location: str | Path, trust_remote_code: bool) -> None:
        pass

    @override
    def load_model(
        self,
        location: str | Path,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str = "cpu",
        trust_remote_code: bool = False,
        **config: Any,
    ) -> nn.Module:
        """Build the module, in eval mode; :class:`gradfix.evaluation.target_model.TargetModel` fills it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # what no file holds (a table drawn at random) is then the same in every run
            built = self.built()
        if not isinstance(built, nn.Module):
            raise GradfixError(f"{self.name}: build returned {type(built).__name__}; expected a module")
        try:
            module = deepcopy(built)
        except (RuntimeError, TypeError) as error:
            raise GradfixError(
                f"{self.name}: the module that build returned can't be copied ({' '.join(str(error).split())})"
            ) from error
        return module.to(device=device, dtype=dtype if isinstance(dtype, torch.dtype) else None).eval()
