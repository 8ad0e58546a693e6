"""How long `compare` takes on the demo's pair: two budgets, three draws, every row of the table.

python benchmarks/compare.py [--budgets 1 5] [--draws 3]

The models are those of the demo, a few million parameters each; the target was pre-trained apart from the source. The
test data are all 899 digits that the package carries for it.
"""

import argparse
import os
import sys
import time

import gradfix as gf
from gradfix.demo import load, load_task


def tell(stage: str, done: int, total: int, unit: str = "") -> None:
    """Say how far it is."""
    print(f"{stage}: {done} of {total}", file=sys.stderr)


def main() -> None:
    """Compare, and print the table and the time."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--budgets", type=int, nargs="+", default=[1, 5], help="samples a class")
    arguments.add_argument("--draws", type=int, default=3)
    given = arguments.parse_args()
    digits = load_task("digits")
    started = time.perf_counter()
    table = gf.compare(
        source_base=load("A"),
        source_tuned=load("A-digits"),
        target_base=load("B"),
        target_tuned=load("B-digits"),
        task="zero-shot-image-classification",
        label=digits.class_names,
        templates=digits.templates,
        data=digits.rows("train"),
        test=digits.rows("test"),
        samples_per_class=tuple(given.budgets),
        seeds=given.draws,
        progress=tell,
    )
    seconds = time.perf_counter() - started
    print(table)
    for line in table.lines:
        print(
            f"{line.budget} a class, {line.method}: {sum(one.seconds for one in line.outcomes):.0f} s alone"
        )
    print(
        f"{len(given.budgets)} budgets, {given.draws} draws each: {seconds:.0f} s on {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
