"""Answers that are generated beside the loss, and how they are graded."""

import sys
from typing import Any

import pytest
import torch

from gradfix.errors import GradfixError
from gradfix.evaluation.evaluate import evaluate
from gradfix.plugins import register
from gradfix.tasks import get_task
from gradfix.tasks.generation import grader
from tests import tiny
from tests.tasks.test_causal_lm import CHAT

ROWS = [{"prompt": "what is good", "completion": "city river"}, {"prompt": "the", "completion": "cat"}]


def by_hand(task: Any, model: Any, prompt: list[int], ends: set[int], most: int) -> str:
    """The likeliest token each time, one after the other."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + most:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    return str(task.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("template", [None, CHAT])
def test_the_answer_is_the_likeliest_after_the_prompt(template: str | None, tmp_path: Any) -> None:
    task = get_task("causal-lm", metric="exact_match", max_new_tokens=5)
    model: Any = task.load_model(tiny.save_tiny_gpt2(tmp_path / "m", chat_template=template))
    assert task.generates
    batch = task.encode(ROWS)
    found = evaluate(model, task, ROWS)
    for number, row in enumerate(ROWS):
        labels = batch["labels"][number]
        start = int((labels != -100).nonzero().min())
        prompt = batch["input_ids"][number, :start].tolist()
        assert found.predictions[number] == by_hand(task, model, prompt, {2}, 5)
        assert found.scores[number] == float(found.predictions[number] == row["completion"])
    assert found.metric == "exact_match"
    plain = get_task("causal-lm")
    plain.bind(tmp_path / "m")
    assert found.losses == evaluate(model, plain, ROWS).losses


def test_of_a_conversation_the_last_answer_is_generated(tmp_path: Any) -> None:
    task = get_task("causal-lm", metric="exact_match", max_new_tokens=3)
    model: Any = task.load_model(tiny.save_tiny_gpt2(tmp_path / "m", chat_template=CHAT))
    turns = [("user", "good"), ("assistant", "film"), ("user", "bad"), ("assistant", "cat")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    seen = []
    task._grade = lambda answer, right: seen.append((answer, right)) or 0.0
    evaluate(model, task, rows)
    ids = task.encode(rows)["input_ids"][0].tolist()
    cat = task.tokenizer.convert_tokens_to_ids("cat")
    assert seen == [(by_hand(task, model, ids[: len(ids) - ids[::-1].index(cat) - 1], {2}, 3), "cat")]


@register("metric")
def shared_words(prediction: str, reference: str, *, weight: float = 1.0) -> float:
    ours, theirs = set(prediction.split()), set(reference.split())
    return weight * len(ours & theirs) / max(1, len(ours | theirs))


def test_a_function_of_the_users_own_grades(tmp_path: Any) -> None:
    task = get_task("text-to-text", metric="shared-words,weight=0.5", max_new_tokens=4)
    model = task.load_model(tiny.save_tiny_t5(tmp_path / "m"))
    rows = [{"input": "question good", "target": "answer yes"}]
    found = evaluate(model, task, rows)
    assert found.scores == pytest.approx([shared_words(found.predictions[0], "answer yes") / 2])
    assert grader(f"{__name__}:shared_words")(" a b", "b c ") == pytest.approx(1 / 3)


def test_grades_that_are_none_are_refused() -> None:
    register("metric", name="lengths")(lambda prediction, reference: len(prediction))
    with pytest.raises(GradfixError, match="gave 3; expected a number from 0 to 1"):
        grader("lengths")("abc", "b")
    with pytest.raises(GradfixError, match=r"bleurt.*unknown; choose from exact_match, rouge_l, chrf"):
        get_task("text-to-text", metric="bleurt")
    with pytest.raises(GradfixError, match="with candidates"):
        get_task("text-to-text", metric="exact_match", candidates=["a", "b"])
    with pytest.raises(GradfixError, match="takes no metric"):
        get_task("text-classification", metric="exact_match")


@pytest.mark.parametrize(("name", "module"), [("rouge_l", "rouge_score.rouge_scorer"), ("chrf", "sacrebleu")])
def test_a_library_that_is_missing_is_named(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(GradfixError, match=r"pip install 'gradfix\[generation\]'"):
        grader(name)


def test_the_libraries_grade() -> None:
    pytest.importorskip("rouge_score", reason="the extra generation is not installed")
    pytest.importorskip("sacrebleu", reason="the extra generation is not installed")
    assert grader("rouge_l")("the cat sat", "the cat sat down") == pytest.approx(6 / 7)
    assert grader("chrf")("the cat", "the cat") == pytest.approx(1.0)
    assert 0 < grader("chrf")("the cats", "a cat") < 1


def test_results_are_judged_by_what_is_generated_and_settings_are_not(tmp_path: Any) -> None:
    task = get_task("causal-lm", max_new_tokens=4)
    model: Any = task.load_model(tiny.save_tiny_gpt2(tmp_path / "m"))
    rows = [*ROWS, {"prompt": "what is good the red car", "completion": "city"}, *ROWS]
    assert (task.generates, task.metric) == (False, "token_accuracy")
    judge = task.judging()
    assert (judge.generates, judge.metric) == (True, "exact_match")
    batch = task.encode(rows)
    together = evaluate(model, judge, rows, batch_size=5)  # prompts of several lengths
    for number, answer in enumerate(together.predictions):
        start = int((batch["labels"][number] != -100).nonzero().min())
        prompt = batch["input_ids"][number, :start].tolist()
        assert answer == by_hand(task, model, prompt, {2}, 4)
    for metric in ("token_accuracy", "exact_match"):
        given = get_task("causal-lm", metric=metric)
        assert given.judging() is given
        assert (given.metric, given.generates) == (metric, metric == "exact_match")


def test_long_answers_ask_for_another_metric(tmp_path: Any) -> None:
    long = [{"prompt": "what", "completion": "city " * 12}]
    said = get_task("causal-lm").doubts(long)
    assert "answers have 12 words (median)" in said[0]
    assert not get_task("causal-lm").doubts(ROWS)
    assert not get_task("causal-lm", metric="token_accuracy").doubts(long)
