"""The studies: a miniature through the command line, and what tables, findings and figures make of records."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from gradfix.demo.bench import bench
from gradfix.evaluation.intervals import Interval, mean_interval
from studies import experiments, figures, run, tables, units
from studies.cells import Table, by_draw, method_table, paired, raw_csv, validated
from studies.cli import app
from studies.findings import CLAIMS, cases, finding, findings, verdict
from studies.plan import CELLS, QUICK, Scale, cost, plan, units_of
from studies.recipe import STUDIES as NAMES
from studies.recipe import StudiesRecipe
from studies.report_choices import hoeffding, majority_of_equals
from studies.reports import STUDIES
from studies.units import Unit, collect, read_unit, write_unit
from tests.report.records import page_of

pytestmark = pytest.mark.slow


def studies_command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


METHODS = ("zero-shot", "naive", "random", "mean", "force", "soft", "gradfix", "control", "oracle", "full")


@pytest.fixture
def cached_models(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpack the models into a folder of the tests'."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    bench.cache_clear()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[Unit]:
    """Replace every experiment by one that costs nothing; gives the units measured."""
    measured: list[Unit] = []

    def pretend(kind: str) -> Callable[[Unit], list[dict[str, Any]]]:
        def experiment(unit: Unit) -> list[dict[str, Any]]:
            measured.append(unit)
            if kind == "signs":
                return [
                    {
                        "voters": n,
                        "right": 0.5 + n / 1000 + unit.draw / 100,
                        "right_shuffled": 0.5,
                        "tied": 0.0,
                    }
                    for n in (1, 3)
                ]
            extra: list[dict[str, Any]] = [{}]
            if kind == "alphas":
                extra = [{"alpha": alpha, "validation_loss": (alpha - 0.2) ** 2} for alpha in (0.0, 0.1, 1.0)]
            if kind == "samplings":
                extra = [{"sampling": sampling} for sampling in experiments.SAMPLINGS]
            methods = ("few-shot",) if kind == "few-shot" else METHODS
            return [
                {
                    "method": method,
                    "score": 0.5 + place / 100 + unit.draw / 1000,
                    "retained": 0.4 + place / 200,
                    "retained_mnist": 0.3,
                    **each,
                }
                for place, method in enumerate(methods)
                for each in extra
                if "alpha" not in each or (each["alpha"] == 0) == (method == "zero-shot")
            ]

        return experiment

    for kind in experiments.EXPERIMENTS:
        monkeypatch.setitem(experiments.EXPERIMENTS, kind, pretend(kind))
    return measured


def test_every_study_is_planned_shown_and_known_to_the_command_line() -> None:
    assert tuple(CELLS) == tuple(STUDIES) == NAMES
    for scale in (Scale(), QUICK):
        for unit in plan(CELLS, scale):
            assert unit.experiment in experiments.EXPERIMENTS
            assert cost(unit) > 0
    assert Scale().draws >= 5


@pytest.mark.usefixtures("cached_models")
def test_a_miniature_study_through_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "VOTERS", (1, 3, 9))
    arguments = [
        "--quick", "--study", "signs", "--draws", 2, "--test-samples", 20, "--jobs", 1,
        "--output", tmp_path / "out", "--write-docs", tmp_path / "docs" / "results.md", "--json",
    ]  # fmt: skip
    result = studies_command(*arguments)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["units"] == {"signs": {"finished": 4, "planned": 4}}
    assert "the rest will take about" in result.stderr
    text = (tmp_path / "docs" / "results.md").read_text()
    assert text == (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "report.html").read_text() == page_of(
        json.loads((tmp_path / "out" / "tables.json").read_text())
    )
    command = "python -m studies --output tables --quick --draws 2 --test-samples 20 --study signs"
    assert f"`{command} --write-docs docs/results.md`" in text
    assert "*2 draws, 20 test images a task. " in text
    assert f"Made by `{command}`.*" in text
    assert (tmp_path / "docs" / "figures" / "signs.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "docs" / "figures" / "signs.svg").read_text().startswith("<?xml")
    rows = (tmp_path / "out" / "signs.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 * 3

    def refuse(unit: Unit) -> list[dict[str, Any]]:
        raise AssertionError(f"{unit} was measured again")

    monkeypatch.setitem(experiments.EXPERIMENTS, "signs", refuse)
    again = studies_command(*arguments)
    assert again.exit_code == 0, again.exception
    assert (tmp_path / "docs" / "results.md").read_text() == text


@pytest.mark.usefixtures("cached_models")
def test_experiments_on_the_real_pair_leave_the_target_where_it_was() -> None:
    here = bench("A→B", "digits", 60)
    before = {name: value.clone() for name, value in here.model.model.state_dict().items()}
    unit = Unit("alphas", "A→B", "digits", 1, 0, 60)
    found = {
        name: experiments.EXPERIMENTS[name](replace(unit, experiment=name)) for name in ("alphas", "masks")
    }
    after = here.model.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    start = here.model.evaluate(here.test).score
    assert by_draw([{**found["alphas"][0], "draw": 0}], "zero-shot") == {0: start}
    assert len(found["alphas"]) == 1 + 6 * len(experiments.ALPHAS)
    scores = {record["method"]: record["score"] for record in found["masks"]}
    assert scores["oracle agreement"] > start + 0.1
    assert scores["oracle magnitude"] < scores["oracle agreement"]


@pytest.mark.usefixtures("cached_models")
def test_the_truth_has_all_signs_right_and_a_shuffled_one_half() -> None:
    oracle = bench("A→B", "digits", 60).oracle
    assert oracle is not None
    assert experiments._right(oracle, oracle) == {"right": 1.0, "tied": 0.0}  # type: ignore[arg-type]
    assert experiments._right(-1.0 * oracle, oracle)["right"] == 0.0  # type: ignore[arg-type]


@pytest.mark.usefixtures("cached_models")
def test_sources_are_merged_for_the_next_release() -> None:
    unit = Unit("merge-sources", "A→B-next", "digits", 1, 0, 60)
    scores = {record["method"]: record["score"] for record in experiments.EXPERIMENTS[unit.experiment](unit)}
    assert scores["B alone, not masked"] > scores["zero-shot"] + 0.1  # a close release takes τ as it is
    assert {"mean, mask-then-merge", "ties, merge-then-mask", "control", "full"} <= scores.keys()


@pytest.mark.usefixtures("pretended")
def test_all_studies_make_a_page(tmp_path: Path) -> None:
    result = studies_command("--quick", "--jobs", 1, "--output", tmp_path / "out", "--draws", 5, "--json")
    assert result.exit_code == 0, result.exception
    text = (tmp_path / "out" / "results.md").read_text()
    for name, study in STUDIES.items():
        assert f"## {study.title}" in text
        for extension in ("csv", "png", "svg"):
            assert (tmp_path / "out" / f"{name}.{extension}").stat().st_size > 100, name
    assert "Measured so far" not in text
    assert "## What this shows" in text
    assert len(json.loads(result.stdout)["findings"]) == len(CLAIMS)
    assert "validation: digits 2: −1.0" in text
    # Made-up scores rise by a point a method in the order above, so the differences are known.
    assert "GradFix > the shuffled control: does not hold" in text
    assert "digits 1: −1.0" in text
    assert "| GradFix (majority, agreement) | +6.0 |" in text


def test_a_stopped_run_continues_where_it_was(tmp_path: Path, pretended: list[Unit]) -> None:
    recipe = StudiesRecipe(output=tmp_path, quick=True, study=["main", "pairs"], jobs=1)
    tables.tables(recipe)
    first = list(pretended)
    assert len(first) == len(set(first)) == len(plan(["main", "pairs"], QUICK))
    lost = units_of("pairs", QUICK)[0]
    lost.path(tmp_path / "units").unlink()
    pretended.clear()
    text = tables.tables(recipe.model_copy(update={"only_write": True}))
    assert pretended == []
    assert text["units"]["pairs"] == {
        "finished": len(units_of("pairs", QUICK)) - 1,
        "planned": len(units_of("pairs", QUICK)),
    }
    assert "Measured so far" in (tmp_path / "results.md").read_text()
    tables.tables(recipe)
    assert pretended == [lost]


def test_a_failing_experiment_fails_the_run_and_keeps_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(unit: Unit) -> list[dict[str, Any]]:
        if unit.draw:
            raise RuntimeError("broken")
        return []

    monkeypatch.setitem(experiments.EXPERIMENTS, "signs", fail)
    wanted = [Unit("signs", "A→B", "digits", 0, number, 20) for number in range(3)]
    with pytest.raises(RuntimeError, match="broken"):
        run.run(sorted(wanted, key=lambda unit: unit.draw), tmp_path)
    assert [read_unit(unit, tmp_path) for unit in wanted[1:]] == [None, None]


def test_half_measured_cells_and_other_checkpoints_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Unit("baselines", "A→B", "digits", 1, 0, 20)
    whole, half = cell, replace(cell, budget=2)
    for unit in (whole, replace(whole, draw=1), half):
        write_unit(unit, tmp_path, [{"method": "gradfix", "score": 0.5}], 1.0)
    wanted = [replace(each, draw=number) for each in (whole, half) for number in range(2)]
    assert {record["budget"] for record in collect(wanted, tmp_path, 2)} == {1}
    monkeypatch.setattr(units, "identity", lambda: "another")
    assert read_unit(whole, tmp_path) is None


def test_differences_are_paired_by_draw_and_bold_beyond_chance() -> None:
    records = [
        {"method": method, "draw": number, "score": base + shift}
        for number, base in enumerate((0.1, 0.3, 0.5, 0.7, 0.9))
        for method, shift in (("zero-shot", 0.0), ("gradfix", 0.02 + 0.001 * number))
    ]
    difference = paired(by_draw(records, "gradfix"), by_draw(records, "zero-shot"))
    expected = mean_interval([0.02, 0.021, 0.022, 0.023, 0.024])
    assert difference is not None
    assert (difference.value, difference.low) == pytest.approx((expected.value, expected.low))
    table = method_table("t", {"1": records}, against="zero-shot")
    assert "| GradFix (majority, agreement) | **+2.2 ± 0.2** |" in table.markdown()
    assert "new base as it is" not in table.markdown()
    wide = Table("t", "", ["x"], {"row": [Interval(-0.01, -0.03, 0.01, 3, "student-t")]}, points=True)
    assert "| row | −1.0 ± 2.0 |" in wide.markdown()
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert raw_csv([{"a": 1, "setting": {"alpha": 0.5}}, {"b": 2}]) == "a,alpha,b\n1,0.5,\n,,2\n"


@pytest.mark.parametrize(
    ("text", "difference", "expected"),
    [
        ("GradFix > the shuffled control", (0.03, 0.01, 0.05), "holds"),
        ("GradFix > the shuffled control", (0.03, -0.01, 0.07), "holds, within chance"),
        ("GradFix > the shuffled control", (-0.01, -0.04, 0.02), "does not hold"),
        ("GradFix > the shuffled control", (0.0, 0.0, 0.0), "does not hold"),
        ("agreement ≥ force", (0.0, 0.0, 0.0), "holds, within chance"),
        ("naive addition ≈ the new base as it is", (0.005, -0.005, 0.015), "holds"),
        ("naive addition ≈ the new base as it is", (0.01, -0.02, 0.04), "holds, within chance"),
        ("naive addition ≈ the new base as it is", (0.05, 0.04, 0.06), "does not hold"),
    ],
)
def test_verdicts(text: str, difference: tuple[float, float, float], expected: str) -> None:
    claim = next(claim for claim in CLAIMS if claim.text == text)
    assert verdict(claim, Interval(*difference, 5, "student-t")) == expected


def test_findings_follow_the_records() -> None:
    def records(oracle: float) -> list[dict[str, Any]]:
        scores = {"oracle": oracle, "full": 0.96, "gradfix": 0.75, "mean": 0.7}
        return [
            {"experiment": "baselines", "pair": "A→B", "task": "digits", "budget": budget, "draw": number}
            | {"method": method, "score": score + number * len(method) / 10_000}
            for budget in (1, 10)
            for number in range(5)
            for method, score in scores.items()
        ]

    lines = [found.markdown() for found in findings(records(0.95))]
    assert len(lines) == 2  # only what was measured is judged
    assert lines[0].startswith(
        "- **majority ≥ mean vote at 1 and 2 samples a class: holds** (beyond chance in 1 of 1)"
    )
    assert "validation" not in lines[0]
    assert "digits 1: +5.1 ± 0.1" in lines[0]
    assert "digits 10" not in lines[0]
    assert "oracle mask ≥ 90 % of full fine-tuning: holds** (beyond chance in 2 of 2)" in lines[1]
    assert (
        "oracle mask ≥ 90 % of full fine-tuning: does not hold** (beyond chance in 0 of 2, the opposite in 2)"
        in findings(records(0.8))[1].markdown()
    )
    claim = CLAIMS[1]
    mixed = [*cases(claim, records(0.9)), *cases(claim, records(0.9))]
    mixed[1] = replace(mixed[1], difference=Interval(-0.02, -0.03, -0.01, 3, "student-t"))
    assert (
        "holds in 1 of 2 cases** (beyond chance in 1 of 2, the opposite in 1)"
        in finding(claim, mixed).markdown()
    )


def test_validation_chooses_alpha_for_each_draw_and_method() -> None:
    cell = {"experiment": "alphas", "pair": "A→B", "task": "digits", "budget": 1}
    losses = {"gradfix": ((0.5, 0.9), (1.0, 0.8)), "naive": ((0.5, 1.1), (1.0, 1.2))}
    records = [
        {**cell, "draw": number, "method": method, "alpha": alpha, "score": alpha, "validation_loss": loss}
        for number in range(2)
        for method, curve in {"zero-shot": ((0.0, 1.0),), **losses}.items()
        for alpha, loss in curve
    ]
    chosen = validated(records)
    assert by_draw(chosen, "gradfix", "alpha") == {0: 1.0, 1: 1.0}
    assert by_draw(chosen, "naive", "alpha") == {0: 0.0, 1: 0.0}  # doing nothing is a candidate
    assert by_draw(chosen, "zero-shot") == {0: 0.0, 1: 0.0}
    records[1]["validation_loss"] = 0.1
    assert by_draw(validated(records), "gradfix", "alpha") == {0: 0.5, 1: 1.0}


def test_figures_are_the_same_bytes_every_time() -> None:
    interval = mean_interval([0.5, 0.6, 0.7])
    curves = figures.Curves(
        [figures.Panel("t", {"a": [(1.0, interval), (2.0, interval)]}, {"base": 0.4})],
        "samples",
        "accuracy, %",
    )
    dots = figures.Dots({"t": {"a": interval}}, "accuracy, %")
    for figure in (curves, dots):
        first, second = figures.draw(figure), figures.draw(figure)
        assert first == second
        assert b"accuracy, %" in first["svg"] or b"accuracy" in first["svg"]


def test_a_method_has_one_colour_in_all_panels_also_where_another_is_missing() -> None:
    interval = mean_interval([0.5, 0.6])
    first = figures.Panel("first", {"few-shot": [(1.0, interval)], "oracle": [(1.0, interval)]})
    second = figures.Panel("second", {"oracle": [(1.0, interval)]})
    svg = figures.draw(figures.Curves([first, second], "samples", "accuracy, %"))["svg"].decode().lower()
    colours = [svg.count(f"stroke: {colour.lower()}") for colour in figures.COLOURS[:2]]
    assert colours[1] > colours[0] > 0


def test_a_row_stands_beside_its_own_dot_also_where_a_panel_lacks_another() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    interval = mean_interval([0.5, 0.6])
    rows = ["a", "b", "c"]
    dots = {"a": interval, "c": interval}
    figures._dots(axes, "t", dots, rows, figures.Dots({"t": dots, "u": {"b": interval}}, "accuracy, %"))
    labels = [text.get_text() for text in axes.get_yticklabels()]
    places = dict(zip(labels, axes.get_yticks().tolist(), strict=True))
    assert list(places) == rows
    assert axes.lines[0].get_ydata().tolist() == [places["a"], places["c"]]


def test_the_bound_is_hoeffdings() -> None:
    assert hoeffding(10, 0.5) == 0.0
    assert hoeffding(50, 0.7) == pytest.approx(1 - 0.018315638888734)
    assert majority_of_equals(3, 0.6) == pytest.approx(0.6**3 + 3 * 0.6**2 * 0.4)
    for samples in (1, 9, 81):
        assert hoeffding(samples, 0.6) <= majority_of_equals(samples, 0.6)


def test_an_unknown_study_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    result = studies_command("--output", tmp_path / "out", "--study", "mian")
    assert (result.exit_code, "found 'mian'" in result.stderr) == (2, True)
    assert not (tmp_path / "out").exists()
