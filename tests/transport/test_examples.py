"""Examples of a record: what went in, what was said, and what would have been right."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gradfix.evaluation.evaluate import Evaluation
from gradfix.evaluation.intervals import score_interval
from gradfix.report.sections.examples import examples_section
from gradfix.tasks import get_task
from gradfix.transport.examples import changed_examples
from tests import tiny

CHAT = "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"


def measured(scores: list[float], predictions: list[Any]) -> Evaluation:
    return Evaluation(
        task="t", metric="m", n=len(scores), score=sum(scores) / len(scores), interval=score_interval(scores), loss=1.0,
        truncated=0, seconds=0.0, scores=scores, losses=[1.0] * len(scores), predictions=predictions,
    )  # fmt: skip


def shown(task: Any, row: dict[str, Any]) -> dict[str, Any]:
    (example,) = changed_examples(task, [row], measured([0.25], ["a"]), measured([0.75], ["b"])).shown
    return example.model_dump(include={"input", "label", "before", "after"})


@pytest.mark.parametrize("name", ["messages", "turns"])
def test_a_conversation_is_shown_with_its_answers(tmp_path: Path, name: str) -> None:
    task = get_task("causal-lm", **({} if name == "messages" else {"messages": name}))
    task.bind(tiny.save_tiny_gpt2(tmp_path, chat_template=CHAT))
    turns = [("user", "good film"), ("assistant", "yes"), ("user", "bad dog"), ("assistant", "no maybe")]
    row = {name: [{"role": role, "content": content} for role, content in turns]}
    task.check([row])
    assert shown(task, row) == {
        "input": {"messages": [{"role": role, "content": content} for role, content in turns]},
        "label": "yes\nno maybe",
        "before": "a",
        "after": "b",
    }


def test_of_a_long_conversation_the_ends_are_shown(tmp_path: Path) -> None:
    task = get_task("causal-lm")
    task.bind(tiny.save_tiny_gpt2(tmp_path, chat_template=CHAT))
    row = {"messages": [{"role": ("user", "assistant")[n % 2], "content": f"good {n}"} for n in range(20)]}
    task.check([row])
    turns = shown(task, row)["input"]["messages"]
    assert [turn["content"] for turn in turns] == ["good 0", "12 more", *(f"good {n}" for n in range(13, 20))]


def test_an_instruction_is_shown_with_what_it_is_about(tmp_path: Path) -> None:
    task = get_task("causal-lm")
    task.bind(tiny.save_tiny_gpt2(tmp_path))
    row = {"instruction": "what is it", "input": "the red car", "output": "yes"}
    task.check([row])
    found = shown(task, row)
    assert found["input"] == {"prompt": "what is it", "input": "the red car"}
    assert found["label"] == "yes"


def test_a_class_is_shown_by_its_name(tmp_path: Path) -> None:
    task = get_task("text-classification")
    task.bind(tiny.save_tiny_bert_classifier(tmp_path))
    found = shown(task, {"text": "good film", "label": 2})
    assert (found["input"], found["label"]) == ({"text": "good film"}, tiny.SENTIMENTS[2])


@pytest.mark.parametrize(
    ("was", "now", "said", "lead"),
    [
        (
            0.25,
            0.4,
            "25% of it right before, 40% now; right: yes",
            "1 samples were answered better than before, 0 worse",
        ),
        (
            0.4,
            0.25,
            "40% of it right before, 25% now; right: yes",
            "0 samples were answered better than before, 1 worse",
        ),
        (0.0, 1.0, "✓ now right", "1 samples went from wrong to right, 0 from right to wrong"),
    ],
)
def test_the_page_says_how_much_of_an_answer_is_right(
    tmp_path: Path, was: float, now: float, said: str, lead: str
) -> None:
    task = get_task("causal-lm")
    task.bind(tiny.save_tiny_gpt2(tmp_path))
    row = {"prompt": "good", "completion": "yes"}
    record = SimpleNamespace(
        examples=changed_examples(task, [row], measured([was], ["a"]), measured([now], ["b"]))
    )
    section = examples_section(record)
    assert section.lead.startswith(lead)
    assert said in str(section.parts[0])
