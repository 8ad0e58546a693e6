"""The page of a record: nothing from a file runs, nothing is asked of anybody, nothing empty is drawn."""

import copy
import dataclasses
import html
import html.parser
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from gradfix.errors import GradfixError
from gradfix.evaluation import certificate, evaluate, intervals, judgement
from gradfix.report import facts, report, report_of
from gradfix.report.markup import embedded_json, render
from gradfix.report.pages import comparison_verdict
from gradfix.report.record import AppliedRecord, ComparisonRecord, TransportRecord, read_applied
from gradfix.report.sections.results import score_range
from gradfix.report.static import card_figures
from gradfix.report.verdict import share_from_source, transport_verdict
from gradfix.report.writing import layout
from gradfix.transport import checks, folds, selection
from gradfix.vectors import apply
from gradfix.votes import stability
from tests.builders import gradfix
from tests.report.records import (
    EVIL,
    RECORDS,
    comparison_record,
    demo_record,
    interval,
    page_of,
    transport_record,
)


def transported(**other: Any) -> TransportRecord:
    return TransportRecord.model_validate({**transport_record(), **other})


class Reader(html.parser.HTMLParser):
    """What a browser would make of a page: its elements, the text of each script, and all addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.figures: list[Any] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.sections: list[str] = []
        self.words = ""
        self._within: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        given = dict(attributes)
        self.addresses += [
            given[key] or "" for key in ("src", "href", "srcset", "action", "data") if key in given
        ]
        self.handlers += [key for key in given if key.startswith("on")]
        if name == "section":
            self.sections.append(given["id"] or "")
        if name == "script":
            self._within = given
            self.scripts.append("")

    def handle_endtag(self, name: str) -> None:
        if name == "script" and self._within is not None:
            if "data-figure" in self._within:
                self.figures.append(json.loads(self.scripts[-1]))
            self._within = None

    def handle_data(self, text: str) -> None:
        if self._within is not None:
            self.scripts[-1] += text
        else:
            self.words += text


@pytest.mark.parametrize("kind", RECORDS)
def test_names_and_texts_are_shown_and_never_run(kind: str) -> None:
    plain, evil = Reader(page_of(RECORDS[kind]())), Reader(page_of(RECORDS[kind](EVIL)))
    assert evil.tags == plain.tags  # the text made no element
    assert evil.handlers == []
    assert EVIL in evil.words
    for figure in evil.figures:
        for text in re.findall(r'"((?:[^"\\]|\\.)*)"', json.dumps(figure)):
            assert "<script" not in text
            assert "<img" not in text


@pytest.mark.parametrize("kind", RECORDS)
def test_a_page_asks_for_nothing(kind: str) -> None:
    page = Reader(page_of(RECORDS[kind]()))
    assert [a for a in page.addresses if not a.startswith(("#", "data:"))] == []
    assert "default-src 'none'" in html.unescape(page_of(RECORDS[kind]())[:2000])


def test_a_picture_from_elsewhere_is_not_loaded() -> None:
    record = transport_record()
    record["examples"]["shown"][0]["input"] = {"image": {"image": "https://example.org/track.png"}}
    assert "example.org" not in report(record)


@pytest.mark.parametrize("kind", RECORDS)
def test_the_same_record_gives_the_same_bytes_and_under_six_megabytes(kind: str) -> None:
    page = page_of(RECORDS[kind]())
    assert page == page_of(json.loads(json.dumps(RECORDS[kind]())))
    assert len(page.encode()) < 6_000_000
    assert page.count("plotly.js v") == 1  # once, however many figures


@pytest.mark.parametrize("kind", RECORDS)
def test_figures_are_what_plotly_takes(kind: str) -> None:
    import plotly.graph_objects as go

    figures = Reader(page_of(RECORDS[kind]())).figures
    assert len(figures) >= 2
    for figure in figures:
        assert go.Figure(figure).data  # raises for an unknown or wrong property
        for trace in figure["data"]:
            assert len(trace["x"]) > 0


def test_a_record_of_another_version_or_kind_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "gradfix.json").write_text(json.dumps({**transport_record(), "version": 2}))
    with pytest.raises(
        GradfixError, match=r"gradfix\.json: gradfix-transport of version 2, this gradfix reads 1"
    ):
        report_of(tmp_path)
    (tmp_path / "gradfix.json").write_text(json.dumps({"gradfix": "0.1.0", "applied": {}}))
    with pytest.raises(GradfixError, match=r"expected a record of gradfix .*, found format None"):
        report_of(tmp_path)
    (tmp_path / "gradfix.json").write_text('{"format": ')
    with pytest.raises(GradfixError, match="not valid JSON"):
        report_of(tmp_path)
    (tmp_path / "gradfix.json").write_text(
        json.dumps({**transport_record(), "judgement": {"gain": 3, "base": 1}})
    )
    with pytest.raises(GradfixError, match=r"gradfix\.json: damaged"):
        report_of(tmp_path)
    (tmp_path / "gradfix.json").unlink()
    with pytest.raises(GradfixError, match=r"expected one of demo\.json, .*found none"):
        report_of(tmp_path)


def test_every_section_is_there_once() -> None:
    sections = Reader(report(transport_record(stepwise=True))).sections
    assert sections == [
        "results", "advice", "method", "alpha", "steps", "examples", "coverage", "votes", "alignment", "format",
        "cost", "inputs",
    ]  # fmt: skip
    assert {"comparison", "close"} < set(Reader(report(demo_record())).sections)
    assert Reader(report(comparison_record())).sections == ["comparison", "retention", "cost", "inputs"]


def test_a_way_in_steps_has_its_curve_among_the_steps_alone() -> None:
    alone, stepwise = (report(transport_record(stepwise=stepwise)) for stepwise in (False, True))
    assert "held-out loss" in " ".join(Reader(alone).scripts[:-2])
    names = [trace.get("name") for figure in Reader(stepwise).figures for trace in figure["data"]]
    assert "held-out loss" not in names
    assert "predicted by the gradient" in names


SECTIONS = sorted(
    name
    for name, field in TransportRecord.model_fields.items()
    if not field.is_required() and name != "version"
)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(SECTIONS)))
def test_what_is_missing_is_left_out(absent: set[str]) -> None:
    record = {key: value for key, value in transport_record().items() if key not in absent}
    page = layout(TransportRecord.model_validate(record))
    names = {section.name for section in page.sections}
    for key, section in (("examples", "examples"), ("alignment", "alignment"), ("method", "method")):
        assert (section in names) == (key not in absent)
    assert all(section.lead or section.parts for section in page.sections)
    assert page.verdict.headline


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
@example(1564030)  # a task that is null
def test_a_record_with_holes_gives_a_page_or_a_refusal(seed: int) -> None:
    record = copy.deepcopy(transport_record())
    draw = random.Random(seed)
    where: Any = record
    for _ in range(draw.randint(1, 4)):
        keys = [key for key, value in where.items() if isinstance(value, dict) and value and key != "tensors"]
        if not keys:
            break
        where = where[draw.choice(keys)]
    key = draw.choice([key for key in where if key not in {"format", "version"}])
    where[key] = draw.choice([None, 3, "text", [], {}])
    try:
        assert report(record).startswith("<!doctype html>")
    except GradfixError as error:
        assert "damaged" in str(error)  # noqa: PT017 - either is right


def numbers_in(part: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all numbers of a document."""
    if isinstance(part, dict | list):
        pairs = part.items() if isinstance(part, dict) else enumerate(part)
        return [place for key, value in pairs for place in numbers_in(value, (*where, key))]
    return [where] if isinstance(part, int | float) and not isinstance(part, bool) else []


PLACES = [place for place in numbers_in(transport_record()) if place != ("version",)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from((-1, 0, 1e308, -1e308, 2**64))), max_size=3)
)
@example([(("applied", "tensors", next(iter(transport_record()["applied"]["tensors"])), "square"), -1)])
@example([(("judgement", "gain", "high"), 1e308), (("judgement", "gain", "low"), -1e308)])
@example([(("seconds", name), 1e308) for name in transport_record()["seconds"]])
def test_a_record_with_odd_numbers_gives_a_page_or_a_refusal(
    odd: list[tuple[tuple[Any, ...], float]],
) -> None:
    record = copy.deepcopy(transport_record())
    for place, number in odd:
        part: Any = record
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = number
    try:
        assert report(record).startswith("<!doctype html>")
    except GradfixError as error:
        assert "damaged" in str(error)  # noqa: PT017 - either is right


@pytest.mark.parametrize(
    ("gain", "over", "says"),
    [
        (
            interval(0.1, 0.03),
            interval(0.05, 0.02),
            "and 5.0 points better than the control, a shuffled copy",
        ),
        (
            interval(0.1, 0.03),
            interval(0.05, 0.02),
            "About 50 % of the gain comes from the source fine-tune, the rest",
        ),
        (
            interval(0.1, 0.03),
            interval(0.01, 0.02),
            "does as well within chance: +1.0 points over it (−1.0 to +3.0)",
        ),
        (interval(0.1, 0.03), interval(0.01, 0.02), "So the labelled samples made the difference"),
        (
            interval(0.1, 0.03),
            interval(-0.05, 0.02),
            "same samples, is 5.0 points better still (−7.0 to −3.0)",
        ),
        (interval(0.1, 0.03), interval(0.12, 0.02), "About 100 % of the gain"),
        (interval(0.01, 0.03), interval(0.01, 0.02), "can't be told apart"),
        (interval(-0.1, 0.03), interval(-0.01, 0.02), "10.0 points worse"),
        (interval(0.1, None), interval(0.1, None), "can be chance"),
    ],
)
def test_the_verdict_says_how_much_how_sure_and_from_where(gain: Any, over: Any, says: str) -> None:
    record = transported(judgement={**transport_record()["judgement"], "gain": gain, "over_control": over})
    assert record.judgement is not None
    verdict = transport_verdict(record)
    assert says in " ".join((verdict.headline, *verdict.beside)).replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert verdict.headline.count(". ") == 0  # one sentence, to be quoted
    share = share_from_source(record.judgement)
    assert share is None or 0 <= share <= 1


def test_the_verdict_without_test_data_says_what_the_samples_tell_and_asks_for_them() -> None:
    curve = [{"alpha": 0.0, "loss": 2.0, "score": 0.25}, {"alpha": 0.5, "loss": 1.0, "score": 0.75}]
    alpha = {"alpha": 0.5, "chosen_on": "cross-fit", "samples": 8, "curve": curve}
    verdict = transport_verdict(transported(judgement=None, alpha=alpha))
    told = verdict.headline.replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert (
        told
        == "On 8 samples held out in turn, the loss went from 2 to 1 and the score from 25.0 % to 75.0 % at α = 0.5."
    )
    assert verdict.beside == ("Give --test data for a verdict with an interval and a control.",)


CURVE = [{"alpha": 0.1 * number, "loss": 1.0, "score": 0.5} for number in range(1, 8)]
TRIED = {"loss": 1.0, "score": 0.5}


@pytest.mark.parametrize(
    ("choice", "method", "says"),
    [
        ({"chosen_on": "given"}, None, "Nothing was added to the new base: α = 0 was given."),
        (
            {"chosen_on": "validation", "samples": 40, "curve": CURVE},
            None,
            "on 40 validation samples nothing",
        ),
        (
            {"chosen_on": "validation", "samples": 40, "curve": CURVE},
            None,
            "tried (7 values of α) is better",
        ),
        (
            {"chosen_on": "cross-fit", "samples": 9},
            {
                "name": "a",
                "why": "",
                "candidates": [{**TRIED, "name": n, "label": f"the {n}"} for n in "abc"],
            },
            "on 9 samples held out in turn nothing that was tried (the b, the c) is better",
        ),
    ],
)
def test_the_verdict_says_plainly_when_nothing_was_worth_it(choice: Any, method: Any, says: str) -> None:
    verdict = transport_verdict(transported(judgement=None, alpha={"alpha": 0.0, **choice}, method=method))
    assert verdict.state == "nothing"
    assert says in verdict.text


def test_the_verdict_of_a_comparison_is_at_the_largest_budget() -> None:
    verdict = comparison_verdict(ComparisonRecord.model_validate(comparison_record()).rows, "accuracy")
    assert verdict.headline.startswith("With 5 labelled samples a class")
    assert " %" not in verdict.text  # a line may end there
    assert any("Few-shot fine-tuning" in sentence for sentence in verdict.beside)
    assert comparison_verdict([], "accuracy").headline == "How the methods compare."


def test_report_writes_what_the_output_already_has(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(json.dumps(comparison_record()))
    result = gradfix("report", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "report.html").read_text() == report(comparison_record())
    assert json.loads(result.stdout)["output"] == str(tmp_path / "report.html")
    assert gradfix("report", tmp_path / "nowhere").exit_code == 1


def test_json_in_a_script_reads_back() -> None:
    value = {"text": "</script><!-- & \u2028", "n": [1.5, float("nan"), None]}
    written = embedded_json(value)
    assert not set("<>&") & set(written)
    assert json.loads(written) == {"text": "</script><!-- & \u2028", "n": [1.5, None, None]}


def test_text_in_a_template_is_escaped() -> None:
    advice = [{"title": "<b>", "reason": Markup("<i>"), "option": '"><x'}]
    assert "<strong>&lt;b&gt;</strong><p><i></p><code>&#34;&gt;&lt;x</code>" in render(
        "advice.html", advice=advice
    )


def test_card_figures_are_small_and_the_same_every_time() -> None:
    first, again = card_figures(transported()), card_figures(transported())
    assert sorted(first) == ["gradfix-alpha.png", "gradfix-results.png"]
    assert first == again
    assert all(len(content) < 60_000 for content in first.values())
    assert card_figures(transported(judgement=None, alpha={"alpha": 1.0, "chosen_on": "given"})) == {}


def test_every_part_of_a_record_is_an_attribute_of_what_it_tells_of() -> None:
    for part, result in {
        facts.Interval: intervals.Interval,
        facts.EvaluatedSamples: evaluate.Evaluation,
        facts.Judgement: judgement.Judgement,
        facts.Finding: checks.Finding,
        facts.Check: checks.Findings,
        facts.Stability: stability.Stability,
        facts.Candidate: selection.Candidate,
        facts.AlphaPoint: folds.AlphaPoint,
        facts.Alpha: folds.AlphaChoice,
        facts.Descent: certificate.Descent,
        facts.Certificate: certificate.Certificate,
        facts.TensorFacts: apply.TensorFacts,
        facts.Applied: apply.Applied,
    }.items():
        there = {field.name for field in dataclasses.fields(result)} | set(dir(result))
        assert set(part.model_fields) <= there, part


def test_what_apply_wrote_is_read_with_and_without_a_format(tmp_path: Path) -> None:
    applied = {**transport_record()["applied"], "tensors": {}}
    record = AppliedRecord(
        gradfix="0.1.0", identity={"alpha": 1}, applied=facts.Applied.model_validate(applied)
    )
    path = tmp_path / "gradfix.json"
    path.write_text(record.written())
    assert read_applied(path) == record
    path.write_text(json.dumps({"gradfix": "0.1.0", "identity": {"alpha": 1}, "applied": applied}))
    assert read_applied(path) == record
    path.write_text(json.dumps({**json.loads(record.written()), "version": 2}))
    with pytest.raises(
        GradfixError, match=r"gradfix\.json: gradfix-applied of version 2, this gradfix reads 1"
    ):
        read_applied(path)


@pytest.mark.parametrize(
    "damage", [{"version": None}, {"alpha": None}, {"alpha": {"alpha": "x"}}, {"support": 3}]
)
def test_a_damaged_record_is_refused_in_one_line(damage: dict[str, Any]) -> None:
    with pytest.raises(GradfixError) as refused:
        report({**transport_record(), **damage})
    assert "\n" not in str(refused.value)
    assert next(iter(damage)) in str(refused.value)


def test_the_page_of_a_demo_is_made_of_two_files(tmp_path: Path) -> None:
    whole = demo_record()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "gradfix.json").write_text(json.dumps(whole["transport"]))
    (tmp_path / "demo.json").write_text(json.dumps({k: v for k, v in whole.items() if k != "transport"}))
    assert report_of(tmp_path) == report(whole)
    (tmp_path / "model" / "gradfix.json").write_text(json.dumps({**whole["transport"], "version": 7}))
    with pytest.raises(GradfixError, match=r"model/gradfix\.json: gradfix-transport of version 7"):
        report_of(tmp_path)


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    record = transported()
    (tmp_path / "gradfix.json").write_text(record.written())
    assert report_of(tmp_path) == report(record)
    assert "options" not in json.loads(record.written())


@pytest.mark.parametrize("ends", [(0.0, 0.02, 0.4), (0.6, 0.99, 1.0), (0.0, 0.5, 1.0), (0.5, 0.5, 0.5)])
def test_an_axis_of_scores_ends_where_scores_end(ends: tuple[float, float, float]) -> None:
    low, value, high = ends
    interval = facts.Interval(value=value, low=low, high=high, n=9, method="wilson")
    first, last = score_range([interval])
    assert 0 <= first <= low * 100 <= high * 100 <= last <= 100
    assert first < last
