"""The main job: inputs, checks, methods, selection, decision, pipeline, record.

The room has the name of the public function, ``gradfix.transport(…)``, and importing a room binds it to its name in the
package: so the room itself can be called.
"""

import sys
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    @property
    def __signature__(self) -> Signature:
        from gradfix.transport.pipeline import transport

        return signature(transport)

    def __call__(self, *args: Any, **options: Any) -> Any:
        from gradfix.transport.pipeline import transport

        return transport(*args, **options)


sys.modules[__name__].__class__ = _Room
