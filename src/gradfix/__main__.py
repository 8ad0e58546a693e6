"""Where the ``gradfix`` command starts: Ctrl-C has its answer before anything that takes time is imported."""

import atexit
import gc
import os

from gradfix.interrupts import end_at_once


def main() -> None:
    """Run the ``gradfix`` command."""
    end_at_once()
    # A model's class imports thousands of modules that stay: to look for garbage after every 700 of their objects
    # makes the import a fifth longer.
    gc.set_threshold(50_000, 50, 10)
    # Nor is there anything to find among them when the process ends.
    atexit.register(gc.freeze)
    # Torch asks for it once, when it first allocates. With small pages, each page of the weights and activations that
    # come and go is a fault of its own.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from gradfix.cli import main as run

    run()


if __name__ == "__main__":
    main()
