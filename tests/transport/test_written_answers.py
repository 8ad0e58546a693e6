"""Answers that the tuned source writes to prompts: what they are, who sees them, and what is said of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from gradfix.alignment import source
from gradfix.alignment.written import write_rows
from gradfix.errors import GradfixError
from gradfix.evaluation.target_model import _sample_ids
from tests import tiny
from tests.builders import Job, job, loaded, watched
from tests.evaluation.test_streaming import small_memory
from tests.transport.test_apart import qwen3

PROMPTS = [f"user {word} {other}" for word in tiny.WORDS[5:15] for other in ("good", "river")]
MOST = 8  # twice the tokens of the longest labelled completion, "assistant … yes" and the end


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A language model that two words end, too: one with random weights hardly says its end of text."""
    made = job("causal-lm", tmp_path_factory.mktemp("models"))
    words = transformers.AutoTokenizer.from_pretrained(made.models["source_base"])
    for kind in ("source_base", "source_tuned"):
        file = made.models[kind] / "generation_config.json"
        settings = json.loads(file.read_text())
        settings["eos_token_id"] = words.convert_tokens_to_ids(["</s>", "question", "very"])
        file.write_text(json.dumps(settings))
    return made


def by_transformers(work: Job, prompts: list[str]) -> list[str | None]:
    """What the tuned source answers to whoever asks it through transformers; None for what does not end."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(work.models["source_tuned"])
    words = transformers.AutoTokenizer.from_pretrained(work.models["source_tuned"])
    ends = set(model.generation_config.eos_token_id)
    found: list[str | None] = []
    for prompt in prompts:
        ids = words(prompt, return_tensors="pt")["input_ids"]
        new = model.generate(ids, do_sample=False, max_new_tokens=MOST, pad_token_id=0)[0, ids.shape[1] :]
        found.append(words.decode(new[:-1]) if int(new[-1]) in ends else None)
    return found


@pytest.mark.slow
def test_what_the_tuned_source_answers_votes_and_never_judges(
    work: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = by_transformers(work, PROMPTS)
    expected = [
        {"prompt": prompt, "completion": f" {answer}"}
        for prompt, answer in zip(PROMPTS, answers, strict=True)
        if answer
    ]
    assert None in answers
    assert "" in answers
    assert len(expected) > 3
    walks = watched(monkeypatch)
    known = {"prompt": work.rows[0]["prompt"]}  # labelled already, so nobody is asked
    # What some rows have for an answer is not looked at.
    unlabelled = [
        known,
        *({"prompt": prompt, "completion": "no" * (n % 2)} for n, prompt in enumerate(PROMPTS)),
    ]
    done = work.run(tmp_path / "out", align="regression", unlabelled=unlabelled)
    written = set(_sample_ids(loaded(work).task, expected))
    everybody = set(_sample_ids(loaded(work).task, work.rows))
    assert done.record.observation.unlabelled == len(PROMPTS)
    assert done.record.observation.inputs == len(expected)
    assert done.record.observation.labelled_by_source == len(expected)
    assert done.record.votes.samples == len(work.rows) + len(expected)
    assert set().union(*(judges for _, _, judges in walks.seen)) == everybody
    for _, shaped, judges in walks.seen:
        assert shaped == (everybody - judges) | written
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"Beside them {len(expected)} samples with answers of the tuned old model took part" in page
    notes = [finding.text for finding in done.compatibility.findings]
    assert any(
        f"wrote {len(expected)} of {len(PROMPTS)} answers (left out: {answers.count('')} blank, "
        f"{answers.count(None)} not ended within {MOST} tokens)" in note
        for note in notes
    ), notes


def test_a_source_that_ends_no_answer_is_refused(tmp_path: Path) -> None:
    work = job("causal-lm", tmp_path)
    with pytest.raises(GradfixError, match=r"none of the 2 answers .* \(2 not ended within 8 tokens\)"):
        work.run(tmp_path / "out", unlabelled=[{"prompt": "user yes no"}, {"prompt": "good"}])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_source_that_is_fetched_block_by_block_writes_nothing(work: Job, tmp_path: Path) -> None:
    with pytest.raises(
        GradfixError, match=r"each token would read the whole checkpoint; leave out --unlabelled"
    ):
        work.run(tmp_path / "out", memory=small_memory(work), unlabelled=[{"prompt": PROMPTS[0]}])
    assert not (tmp_path / "out").exists()


def noted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rows that the source writes, as they come."""
    rows: list[Any] = []

    def writing(*given: Any, **options: Any) -> Any:
        rows.extend(found := write_rows(*given, **options))
        return found

    monkeypatch.setattr(source, "write_rows", writing)
    return rows


@pytest.mark.slow
def test_drawn_answers_to_a_labelled_prompt_are_held_out_with_its_own(
    work: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks, rows = watched(monkeypatch), noted(monkeypatch)
    done = work.run(tmp_path / "out", align="none", generate_inputs=4)
    task = loaded(work).task
    own = dict(zip(_sample_ids(task, work.rows), work.rows, strict=True))
    drawn = dict(zip(_sample_ids(task, rows), rows, strict=True))
    assert len(drawn) > len(own)
    assert not drawn.keys() & own.keys()
    assert {row["prompt"] for row in rows} <= {row["prompt"] for row in work.rows}
    assert done.record.observation.unlabelled == 4 * len(own)
    assert done.record.observation.labelled_by_source == len(drawn)
    assert done.record.votes.samples == len(own) + len(drawn)
    assert walks.seen
    for _, shaped, judges in walks.seen:
        asked = {own[judge]["prompt"] for judge in judges}
        expected = {name for name, row in {**own, **drawn}.items() if row["prompt"] not in asked}
        assert judges <= own.keys()
        assert shaped == expected


@pytest.mark.slow
def test_where_shapes_differ_drawn_answers_are_what_is_aligned_on(
    work: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = qwen3(tmp_path, work.models["target_base"])
    apart, rows = replace(work, models={**work.models, "target_base": other}), noted(monkeypatch)
    done = apart.run(tmp_path / "out", method="auto", generate_inputs=4, finetune_steps=2, steps=1)
    assert done.record.alignment.inputs == len(rows) > len(work.rows)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("text-classification", {}, "text-classification writes no texts of its own; leave it out"),
        (
            "text-to-text",
            {"candidate": ["a", "b"]},
            "text-to-text writes no texts of its own where it ranks candidates",
        ),
    ],
)
def test_a_task_that_writes_nothing_draws_nothing(
    task: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    made = job(task, tmp_path)
    if options:
        made.rows = [{**row, "target": "ab"[number % 2]} for number, row in enumerate(made.rows)]
    with pytest.raises(GradfixError, match=f"--generate-inputs: {message}"):
        made.run(tmp_path / "out", generate_inputs=2, **options)
