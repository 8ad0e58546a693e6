"""Another process that computes draws of a comparison: ``python -m gradfix.transport.comparison.helper``."""

import os
import pickle
import sys
from pathlib import Path

from gradfix.transport.comparison.compare import prepared
from gradfix.transport.comparison.sharing import Claims


def main() -> None:
    """Compute the draws that nobody else has, once the first process says on stdin where it is written which.

    The file holds recipe, rows, file of draws and folder of claims. Where it needs no help, or has ended, it says
    nothing.
    """
    job = os.fsdecode(sys.stdin.buffer.read())
    if job:
        recipe, rows, kept, claims = pickle.loads(Path(job).read_bytes())
        with prepared(recipe, rows, kept=kept) as ready:
            ready.compute(Claims(claims))


if __name__ == "__main__":
    main()
