"""Choices and scores in an experiment tracker: refused beforehand where it is missing, told whole at the end."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gradfix.errors import GradfixError
from gradfix.recipes import TransportRecipe, validate
from gradfix.report.record import TransportRecord
from gradfix.transport.tracking import figures, tracked
from tests.builders import gradfix, job
from tests.report.records import transport_record

PLACES = {
    "source_base": "a",
    "source_tuned": "b",
    "target_base": "c",
    "task": "regression",
    "output": "out/moved",
}


def asked(name: str | None) -> TransportRecipe:
    return validate(TransportRecipe, {**PLACES, "support": "s.csv", "track": name, "seed": 5}, "test")


class Runs(ModuleType):
    """A tracker with the interface of wandb, and of trackio after it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.opened: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.ended: list[int | None] = []

    def init(self, **options: Any) -> "Runs":
        print("a run is open")  # as trackio does
        self.opened.append(options)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int | None = None) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def record() -> TransportRecord:
    return TransportRecord.model_validate(transport_record())


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_curve_choices_and_scores_are_logged(
    name: str,
    record: TransportRecord,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = Runs(name)
    monkeypatch.setitem(sys.modules, name, runs)
    with tracked(asked(name)) as log:
        assert (runs.opened[0]["project"], runs.opened[0]["name"]) == ("gradfix", "moved")
        assert runs.opened[0]["config"]["seed"] == 5
        log(record)
    *curve, (last, outcome) = runs.logged
    assert [values["curve/alpha"] for _, values in curve] == [point.alpha for point in record.alpha.curve]
    assert last == len(curve)
    judged = record.judgement
    assert judged is not None
    assert outcome["test/transported/accuracy"] == judged.transported.score
    assert outcome["test/control/low"] == judged.control.interval.low
    assert (outcome["test/gain"], outcome["test/gain/high"]) == (judged.gain.value, judged.gain.high)
    assert outcome["verdict"] == record.verdict
    assert all(isinstance(value, float | int | str) for _, values in runs.logged for value in values.values())
    assert runs.ended == [None]
    assert capsys.readouterr().out == ""  # where results stand


def test_a_failed_transport_ends_its_run_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs("wandb")
    monkeypatch.setitem(sys.modules, "wandb", runs)
    with pytest.raises(GradfixError, match="no room"), tracked(asked("wandb")):
        raise GradfixError("no room")
    assert runs.ended == [1]


def test_figures_that_are_not_taken_leave_the_output(
    record: TransportRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs("trackio")
    monkeypatch.setattr(runs, "log", lambda *_, **__: 1 / 0)
    monkeypatch.setitem(sys.modules, "trackio", runs)
    with (
        pytest.raises(GradfixError, match=r"out/moved is written, but trackio did not .*division by zero"),
        tracked(asked("trackio")) as log,
    ):
        log(record)


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_tracker_that_is_missing_is_named_beforehand(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    told = f"track {name}: can't be imported .* pip install {name}"
    with pytest.raises(GradfixError, match=told), tracked(asked(name)):
        raise AssertionError("nothing is begun")


def test_tensorboard_reads_what_was_logged(
    record: TransportRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="the extra track is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    with tracked(asked("tensorboard")) as log:
        log(record)
    events = EventAccumulator(str(tmp_path / "runs" / "moved"))
    events.Reload()
    *_, (_, outcome) = figures(record)
    for name, value in outcome.items():
        if not isinstance(value, str):
            assert events.Scalars(name)[0].value == pytest.approx(value)
    assert len(events.Scalars("curve/loss")) == len(record.alpha.curve)
    assert record.verdict.encode() in events.Tensors("verdict/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.slow
def test_a_transport_is_logged_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs("trackio")
    monkeypatch.setitem(sys.modules, "trackio", runs)
    work = job("regression", tmp_path)
    made = work.run(tmp_path / "out", alpha="0,0.5", test=work.held_out, track="trackio")
    assert runs.logged == list(figures(made.record))
    monkeypatch.setitem(sys.modules, "trackio", None)
    models = [part for name, path in work.models.items() for part in (f"--{name.replace('_', '-')}", path)]
    refused = gradfix("check", *models, "--task", work.task, "--support", "none.csv", "--track", "trackio")
    assert refused.exit_code == 1
    assert "--track trackio: can't be imported" in " ".join(refused.output.split())
