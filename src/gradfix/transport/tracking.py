"""The choices and scores of a transport in an experiment tracker: trackio, Weights & Biases or TensorBoard."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, Protocol

from gradfix.errors import GradfixError, option
from gradfix.ranks import ranks
from gradfix.recipes import TransportRecipe
from gradfix.report.record import TransportRecord

PROJECT = "gradfix"
Values = dict[str, float | str]


class Tracker(Protocol):
    """One run of a tracker."""

    def log(self, values: Values, step: int) -> None:
        """Take numbers and texts by name."""

    def finish(self, *, failed: bool) -> None:
        """Take no more."""


@contextmanager
def tracked(recipe: TransportRecipe) -> Iterator[Callable[[TransportRecord], None]]:
    """Open a run of the tracker that was asked for, and end it as the transport ends.

    Args:
        recipe: The options; they are the run's configuration.

    Yields:
        What logs the record of the transport.

    Raises:
        GradfixError: If the tracker can't be used, before anything is done; or if it does not take the figures, when
            the output is on the disk.
    """
    if recipe.track is None or not ranks().first:
        yield lambda record: None
        return
    tracker = opened(recipe.track, recipe)

    def log(record: TransportRecord) -> None:
        try:
            for step, values in figures(record):
                tracker.log(values, step)
        except Exception as error:  # a tracker raises whatever its service or disk makes it
            reason = " ".join(str(error).split())[:200]
            raise GradfixError(
                f"{recipe.output} is written, but {recipe.track} did not take its figures ({reason}); they stand in "
                "its gradfix.json"
            ) from error

    try:
        yield log
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish(failed=False)


def require_tracker(name: str) -> Any:
    """Import a tracker.

    Args:
        name: One that a recipe can name.

    Returns:
        Its module, or what TensorBoard's files are written with.

    Raises:
        GradfixError: If it is not installed.
    """
    try:
        if name == "tensorboard":
            importlib.import_module(name)
            return importlib.import_module("torch.utils.tensorboard").SummaryWriter
        return importlib.import_module(name)
    except ImportError as error:
        raise GradfixError(
            f"{option('track')} {name}: can't be imported ({error}); install it: pip install {name}"
        ) from error


def opened(name: str, recipe: TransportRecipe) -> Tracker:
    """Open a run.

    Args:
        name: The tracker.
        recipe: Its configuration; the run is called by its output.

    Returns:
        The run.

    Raises:
        GradfixError: If the tracker is not installed, or opens none.
    """
    module, title = require_tracker(name), re.sub(r"[^\w.-]", "-", recipe.output.name)
    options = recipe.model_dump(mode="json")
    try:
        if name == "tensorboard":
            return _TensorBoard(module(f"runs/{title}"), recipe.dump())
        return _Runs(module, title, options)
    except Exception as error:  # such as wandb's, where nobody is logged in
        reason = " ".join(str(error).split())[:200]
        raise GradfixError(f"{option('track')} {name}: opens no run ({reason})") from error


class _Runs:
    """A run of wandb, or of trackio, which has the same interface; what it prints is no result, and goes to stderr."""

    def __init__(self, module: Any, title: str, options: dict[str, Any]) -> None:
        self._module = module
        with redirect_stdout(sys.stderr):
            self._run = module.init(project=PROJECT, name=title, config=options)

    def log(self, values: Values, step: int) -> None:
        with redirect_stdout(sys.stderr):
            self._module.log(values, step=step)

    def finish(self, *, failed: bool) -> None:
        with redirect_stdout(sys.stderr):
            if failed and self._module.__name__ == "wandb":
                self._run.finish(exit_code=1)
            else:
                self._module.finish()


class _TensorBoard:
    """A file of events under ``runs``, where TensorBoard looks for it."""

    def __init__(self, writer: Any, recipe: str) -> None:
        self._writer = writer
        writer.add_text("recipe", f"```yaml\n{recipe}```")

    def log(self, values: Values, step: int) -> None:
        for name, value in values.items():
            add = self._writer.add_text if isinstance(value, str) else self._writer.add_scalar
            add(name, value, step)

    def finish(self, *, failed: bool) -> None:
        self._writer.close()


def figures(record: TransportRecord) -> Iterator[tuple[int, Values]]:
    """Tell what a transport chose and measured.

    Args:
        record: What ``gradfix.json`` holds.

    Yields:
        Step by step, numbers and texts by name: the curve along α first, the outcome last.
    """
    step = 0
    for step, point in enumerate(record.alpha.curve):
        yield (
            step,
            {"curve/alpha": point.alpha, "curve/loss": point.loss, f"curve/{record.metric}": point.score},
        )
    found: dict[str, float | str | None] = {"verdict": record.verdict, "alpha": record.alpha.alpha}
    found["certificate/slope"] = record.certificate.slope
    if record.method is not None:
        found["method"] = record.method.name
        for one in record.method.candidates:
            found[f"candidates/{one.name}/loss"] = one.loss
            found[f"candidates/{one.name}/score"] = one.score
    judged = record.judgement
    if judged is not None:
        for name, measured in (
            ("base", judged.base),
            ("naive", judged.naive),
            ("control", judged.control),
            ("transported", judged.transported),
        ):
            if measured is not None:
                place = f"{judged.data}/{name}"
                found |= {f"{place}/{measured.metric}": measured.score, f"{place}/loss": measured.loss}
                found |= _ends(place, measured.interval.low, measured.interval.high)
        for name, difference in (("gain", judged.gain), ("over_control", judged.over_control)):
            place = f"{judged.data}/{name}"
            found |= {place: difference.value, **_ends(place, difference.low, difference.high)}
    yield step + 1, {name: value for name, value in found.items() if value is not None}


def _ends(place: str, low: float | None, high: float | None) -> Mapping[str, float | None]:
    return {f"{place}/low": low, f"{place}/high": high}
