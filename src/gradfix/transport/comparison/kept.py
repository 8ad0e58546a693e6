"""The draws of a comparison that are done, kept beside its output until all are: a run that was ended goes on.

A draw counts only for the same question: the same options, version, and the same files, by size and time of change.
What is read of the Hub counts by its id, and rows in memory by their content.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gradfix._version import __version__
from gradfix.evaluation.binding import Rows
from gradfix.plugins import Kind, identity, is_plugin
from gradfix.recipes import CompareRecipe
from gradfix.report.record import Outcome as RecordedOutcome
from gradfix.tasks.data import row_hash
from gradfix.transport.comparison.draws import Outcome

IDLE = ("output", "overwrite", "samples_per_class", "seeds", "device", "memory", "processes")
"""Options that change no draw, or say which draws there are."""


class KeptDraws:
    """Outcomes by draw, a line each in a file beside the output.

    Args:
        recipe: The options.
        rows: Rows in memory, by option.
        own_task: The task is the caller's own: its functions have no identity, so nothing is kept in a file.
        path: The file, in place of the one beside the output.
    """

    def __init__(
        self, recipe: CompareRecipe, rows: Mapping[str, Rows], *, own_task: bool, path: Path | None = None
    ) -> None:
        self.path: Path | None = path
        self._found: dict[tuple[int, int], dict[str, Outcome]] = {}
        if own_task:
            return
        if recipe.output is not None and path is None:
            self.path = recipe.output.absolute().parent / f".{recipe.output.name}.draws.jsonl"
        self._identity = _identity(recipe, rows)
        self.read()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, budget: int, seed: int) -> dict[str, Outcome] | None:
        """Give a draw that is done.

        Args:
            budget: Samples a class.
            seed: Of the draw.

        Returns:
            Its outcomes by method; None if it is still to do.
        """
        return self._found.get((budget, seed))

    def found(self, budget: int, seed: int) -> dict[str, Outcome]:
        """Give a draw that is known to be done.

        Args:
            budget: Samples a class.
            seed: Of the draw.

        Returns:
            Its outcomes by method.
        """
        return self._found[budget, seed]

    def read(self, path: Path | None = None) -> None:
        """Read what a file holds now: other processes may have added draws.

        Args:
            path: The file; its own if None.
        """
        self._found.update(self._read(path or self.path))

    def add(self, budget: int, seed: int, outcomes: Mapping[str, Outcome]) -> None:
        """Keep a draw.

        Args:
            budget: Samples a class.
            seed: Of the draw.
            outcomes: By method.
        """
        self._found[budget, seed] = dict(outcomes)
        if self.path is None:
            return
        content = {name: asdict(outcome) for name, outcome in outcomes.items()}
        line = json.dumps({"of": self._identity, "budget": budget, "seed": seed, "outcomes": content})
        # One write to the end of the file: lines of several processes don't mix.
        with self.path.open("ab", buffering=0) as file:
            file.write(f"{line}\n".encode())
            os.fsync(file.fileno())

    def discard(self) -> None:
        """Delete the file: the whole table is written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self, path: Path | None) -> Iterator[tuple[tuple[int, int], dict[str, Outcome]]]:
        if path is None or not path.is_file():
            return
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                content = json.loads(line)
                if content["of"] != self._identity:
                    continue
                outcomes = {
                    name: Outcome(**RecordedOutcome.model_validate(each).model_dump())
                    for name, each in content["outcomes"].items()
                }
                yield (int(content["budget"]), int(content["seed"])), outcomes
            except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
                continue  # the line that was being written when the run ended


def identity_of(recipe: CompareRecipe, rows: Mapping[str, Rows]) -> str:
    """Tell one comparison from another, whatever its output is called.

    Args:
        recipe: The options.
        rows: Rows in memory, by option.

    Returns:
        A digest of options, budgets, draws, version, functions of the user's own, and files by size and time of change.
    """
    draws = f"{_identity(recipe, rows)} {recipe.samples_per_class} {recipe.seeds}"
    return hashlib.sha256(draws.encode()).hexdigest()


def _identity(recipe: CompareRecipe, rows: Mapping[str, Rows]) -> str:
    options = {key: value for key, value in recipe.model_dump(mode="json").items() if key not in IDLE}
    files = {place: list(_files(Path(place))) for place in recipe.inputs()}
    given = {name: [row_hash(row) for row in held] for name, held in sorted(rows.items())}
    own: list[tuple[Kind, str]] = [("mask", name) for name in recipe.own_masks()]
    own += [("alignment", recipe.align)] if is_plugin("alignment", recipe.align) else []
    own += [("task", recipe.task)] if is_plugin("task", recipe.task) else []
    facts: dict[str, Any] = {
        "gradfix": __version__,
        "options": options,
        "files": files,
        "rows": given,
        "functions": [identity(kind, name) for kind, name in own],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _files(place: Path) -> Iterator[tuple[str, int, int]]:
    paths = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    for path in paths:
        facts = path.stat()
        yield str(path), facts.st_size, facts.st_mtime_ns
