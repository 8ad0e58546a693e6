"""Votes at the price of about one backward pass.

Importing this package imports every module in ``rules``, so that a file there is all that a new kind of layer needs.
"""

from importlib import import_module
from pkgutil import iter_modules

from gradfix.votes.fast import rules

for _module in iter_modules(rules.__path__):
    import_module(f"{rules.__name__}.{_module.name}")
