"""NaN and infinities in every parameter of three models: none is passed on, whichever of the models holds it."""

import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.campaigns.results import Result
from tests.campaigns.runner import runner
from tests.triples import save_triple

FAMILIES = ("bert", "gpt2", "vit")
VALUES = (math.nan, math.inf, -math.inf)


def numbers(root: Path, seed: int, count: int) -> Result:
    """Put a number that is none into one parameter after the other.

    Args:
        root: A folder to work in.
        seed: Of the order, and of which of the three models it is put into.
        count: At most so many.

    Returns:
        What was not refused, or without the name of the parameter.
    """
    result, draw = Result("NaN and infinities"), random.Random(seed)
    folder = root / "numbers"
    for family in FAMILIES:
        save_triple(family, folder / family)
    cases = list(_cases(folder))
    draw.shuffle(cases)
    for family, name, value in cases[:count]:
        model = draw.choice(("base", "tuned", "target"))
        path = folder / family / model / "model.safetensors"
        content = path.read_bytes()
        tensors = load_file(path)
        tensors[name].view(-1)[draw.randrange(tensors[name].numel())] = value
        save_file(tensors, path, metadata={"format": "pt"})
        outcome = runner().run(
            *[
                "apply",
                "--source-base",
                "base",
                "--source-tuned",
                "tuned",
                "--target-base",
                "target",
                "--output",
                "out",
            ],
            cwd=folder / family,
        )
        path.write_bytes(content)
        found = outcome.fault
        if not found and (outcome.status != 1 or name not in outcome.stderr):
            found = f"status {outcome.status}: {outcome.stderr[-200:]}"
        if not found and (folder / family / "out").exists():
            found = "it was written"
        result.add(f"{value} in {name} of the {model} {family}", found, outcome)
    shutil.rmtree(folder)
    return result


def _cases(folder: Path) -> Iterator[tuple[str, str, float]]:
    for family in FAMILIES:
        for name in load_file(folder / family / "base" / "model.safetensors"):
            yield from ((family, name, value) for value in VALUES)
