"""Rooms with the name of a public function: importing a room binds it to that name, so the room itself is called."""

import sys
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    __function__: tuple[str, str]

    @property
    def __signature__(self) -> Signature:
        return signature(self._called())

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._called()(*args, **options)

    def _called(self) -> Any:
        home, name = self.__function__
        return getattr(import_module(home), name)


def make_callable(room: str, home: str, name: str) -> None:
    """Let a room be called in place of a function, which is imported with the first call.

    Args:
        room: Its full name.
        home: The module of the function.
        name: The function's.
    """
    module = sys.modules[room]
    module.__class__ = _Callable
    module.__function__ = home, name  # type: ignore[attr-defined]
