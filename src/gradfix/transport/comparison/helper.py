"""Another process that computes draws of a comparison: ``python -m gradfix.transport.comparison.helper JOB``."""

import pickle
import sys
from pathlib import Path

from gradfix.transport.comparison.compare import prepared
from gradfix.transport.comparison.sharing import Claims


def main(job: str) -> None:
    """Compute the draws that nobody else has.

    Args:
        job: The file that the first process wrote for this one: recipe, rows, file of draws, folder of claims.
    """
    recipe, rows, kept, claims = pickle.loads(Path(job).read_bytes())
    with prepared(recipe, rows, kept=kept) as ready:
        ready.compute(Claims(claims))


if __name__ == "__main__":
    main(sys.argv[1])
