"""A real encoder's fine-tune carried over to a release with another tokenizer.

    python benchmarks/other_tokenizer.py --write docs/other-shapes.md

The old base, its fine-tune and the task are those of language.py. The new release has its layers, and byte pairs, told
upper from lower case, where the old one has word pieces; it was trained further on the docstrings of Python's standard
library. Every row is one of ``gradfix compare``. What is prepared stays in the work directory and is made once.
"""

import argparse
import json
import sysconfig
import tempfile
from pathlib import Path

from docstrings import prose
from language import RELEASE_STEPS, compare, comparison, prepare_source, stage, table, tune

TARGET = "byte-pairs"
BUDGETS, SEEDS = (5,), 3
START, END = "<!-- tokenizer -->", "<!-- end of tokenizer -->"


def main() -> None:
    """Prepare what is missing, run the command, print or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", type=Path, default=Path(tempfile.gettempdir()) / "gradfix-bench-language"
    )
    parser.add_argument("--samples-per-class", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="draws a budget")
    parser.add_argument("--write", type=Path, help="put the table into this page")
    options = parser.parse_args()
    work: Path = options.workdir
    prepare_source(work)
    stage(work, f"release of {TARGET}", work / TARGET, lambda: release(work))
    stage(work, f"fine-tune of {TARGET}", work / f"{TARGET}-tuned", lambda: tune(work, TARGET))
    for budget in options.samples_per_class:
        compare(work, budget, options.seeds, target=TARGET)
    text = page(work, tuple(options.samples_per_class), options.seeds)
    print(text)
    if options.write is not None:
        before, _, rest = options.write.read_text(encoding="utf-8").partition(START)
        written = f"{before}{START}\n\n{text}\n\n{END}{rest.partition(END)[2]}"
        options.write.write_text(written, encoding="utf-8")


def release(work: Path) -> None:
    """Make the release with another tokenizer."""
    from encoder import other_tokenizer

    texts = prose(Path(sysconfig.get_path("stdlib")))
    other_tokenizer(work / "old", texts, work / TARGET, steps=RELEASE_STEPS)


def page(work: Path, budgets: tuple[int, ...], seeds: int) -> str:
    """Lay out accuracy by method and budget, as Markdown."""
    found = [
        json.loads((comparison(work, one, seeds, TARGET) / "comparison.json").read_text()) for one in budgets
    ]
    rows = {(row["method"], row["budget"]): row for one in found for row in one["rows"]}
    caption = found[0]["caption"]
    return f"{table(rows, budgets, 'score')}\n\n{caption[0].upper()}{caption[1:]}."


if __name__ == "__main__":
    main()
