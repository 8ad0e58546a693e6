"""What commands say of the rows they are given, in the words that were typed."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradfix.tasks import get_task
from tests import tiny
from tests.builders import gradfix, job

LABELS = tiny.SENTIMENTS


def jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_bert_classifier(tmp_path_factory.mktemp("bert"))


def evaluate(model: Path, data: Path, *more: object, task: str = "text-classification") -> Any:
    return gradfix("evaluate", "--task", task, "--model", model, "--data", data, *more)


def refusal(result: Any, code: int = 1) -> str:
    assert result.exit_code == code, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("gradfix ")]
    assert "Traceback" not in result.stderr
    return line


@pytest.mark.slow
def test_check_and_transport_count_a_row_given_twice_once(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    rows = [dict(row) for row in work.rows]
    support = jsonl(tmp_path / "support.jsonl", [*rows, rows[1], rows[4], rows[1]])
    models = [part for kind, path in work.models.items() for part in ("--" + kind.replace("_", "-"), path)]
    asked = [*models, "--task", work.task, "--support", support]
    said = gradfix("check", *asked)
    assert said.exit_code == 0, said.stderr
    n = len(rows)
    expected = (
        f"warning: a row given twice counts once: line {n + 1} of {support} repeats line 2 of {support}, "
        f"line {n + 2} of {support} repeats line 5 of {support}, line {n + 3} of {support} repeats line 2 of {support}"
    )
    assert expected in said.stderr
    done = gradfix("transport", *asked, "--output", tmp_path / "out", "--method", "auto", "--steps", "2")
    assert done.exit_code == 0, done.stderr
    assert expected in done.stderr
    record = json.loads((tmp_path / "out" / "gradfix.json").read_text())
    assert [entry["row"] for entry in record["support"]] == [f"line {i + 1} of {support}" for i in range(n)]
    counted = gradfix(
        "votes", "--target-base", work.models["target_base"], "--source-base", work.models["source_base"],
        "--source-tuned", work.models["source_tuned"], "--task", work.task, "--support", support,
        "--output", tmp_path / "votes.safetensors", "--json",
    )  # fmt: skip
    assert counted.exit_code == 0, counted.stderr
    assert expected in counted.stderr
    assert f"{n} samples" in counted.stderr or json.loads(counted.stdout)["samples"] == n


@pytest.mark.slow
def test_an_unlabelled_input_that_is_labelled_elsewhere_does_not_vote_again(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    rows = [dict(row) for row in work.rows]
    unlabelled = [
        {"text": row["text"], "label": LABELS[0]} for row in [rows[0], *work.held_out[:2], work.held_out[0]]
    ]
    work.run(tmp_path / "out", support=rows, unlabelled=unlabelled)
    record = json.loads((tmp_path / "out" / "gradfix.json").read_text())
    said = [finding["text"] for finding in record["check"]["findings"]]
    assert "a row given twice counts once: row 0 repeats row 0, row 3 repeats row 1" in said
    assert record["observation"]["unlabelled"] == 2


PAIRS = [
    {"premise": "good film", "hypothesis": "bad food", "genre": "music night", "label": LABELS[0]},
    {"premise": "dull car", "hypothesis": "great dog", "genre": "music day", "label": LABELS[1]},
]


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence2", "sentence1"), ("text_a", "text_b"),
        ("question", "sentence"), ("question1", "question2"), ("text", "text_pair"), ("sentence_A", "sentence_B"),
    ],
)  # fmt: skip
def test_one_text_of_two_is_not_read_alone(classifier: Path, tmp_path: Path, text: str, other: str) -> None:
    names = {"premise": text, "hypothesis": other}
    rows = [{names.get(column, column): value for column, value in row.items()} for row in PAIRS]
    data = jsonl(tmp_path / "d.jsonl", rows)
    line = refusal(evaluate(classifier, data, "--column", f"text={text}"))
    assert line == (
        f"gradfix evaluate: line 1 of {data}: has a second text in column {other!r} beside {text!r}; give "
        f"--column text_pair={other}, or --column text_pair= to leave it out"
    )
    alone = evaluate(classifier, data, "--column", f"text={text}", "--column", "text_pair=")
    both = evaluate(classifier, data, "--column", f"text={text}", "--column", f"text_pair={other}")
    assert (alone.exit_code, both.exit_code) == (0, 0), alone.stderr + both.stderr
    assert f"not read by text-classification: the text of {other!r}, 'genre'" in alone.stderr
    assert "the text of 'genre'; it reads" in both.stderr
    losses = [re.search(r"loss [\d.]+", result.stdout).group() for result in (alone, both)]
    assert losses[0] != losses[1]


def test_short_and_numeric_columns_are_not_taken_for_texts() -> None:
    task = get_task("text-classification")
    rows = [{"text": "good film", "label": "x", "id": f"id-{n}", "n": n, "note": None} for n in range(3)]
    assert task.unread_texts(rows) == []
    assert task.unread_texts([{**row, "title": "a b"} for row in rows]) == ["title"]
    assert get_task("zero-shot-image-classification").unread_texts([{"caption": "a b", "image": b""}]) == []


@pytest.mark.parametrize(
    ("rows", "more", "said", "in_recipe"),
    [
        (
            [{"sentence": "a", "label": "x"}],
            [],
            "name the column with --column text=NAME",
            "column: [text=NAME]",
        ),
        (
            [{"text": "a", "label": "x"}],
            ["--candidate", "a"],
            "takes no --candidate; leave it out",
            "takes no candidate:",
        ),
        (
            [{"text": "a", "label": "x"}],
            ["--column", "premise=a"],
            "no column of the role 'premise'",
            "role 'premise'",
        ),
    ],
)
def test_options_are_spelled_as_they_were_typed(
    classifier: Path, tmp_path: Path, rows: list, more: list[str], said: str, in_recipe: str
) -> None:
    data = jsonl(tmp_path / "d.jsonl", rows)
    assert said in refusal(evaluate(classifier, data, *more))
    options = {
        "command": "evaluate",
        "task": "text-classification",
        "model": str(classifier),
        "data": str(data),
    }
    keys = {"--candidate": "candidate", "--column": "column"}
    options |= {keys[key]: [value] for key, value in zip(more[::2], more[1::2], strict=True)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(options))
    assert in_recipe in refusal(gradfix("run", tmp_path / "recipe.yaml"))


def test_numbers_in_a_csv_file_are_no_class_names(tmp_path: Path) -> None:
    clip = tiny.save_tiny_clip(tmp_path / "clip")
    tiny.images(1)[0]["image"].save(tmp_path / "a.png")
    data = tmp_path / "d.csv"
    data.write_text(f"image,label\n{tmp_path / 'a.png'},0\n{tmp_path / 'a.png'},1\n")
    line = refusal(evaluate(clip, data, task="zero-shot-image-classification"))
    assert "column 'label': holds numbers (0, 1); give the names of the classes with --label" in line
    named = evaluate(clip, data, "--label", "dog", "--label", "cat", task="zero-shot-image-classification")
    assert named.exit_code == 0, named.stderr


def test_labels_of_csv_are_names_as_written_and_else_ids(tmp_path: Path) -> None:
    """The measure is the same as for json, of every spelling that csv readers take for something else."""
    for number, names in enumerate(
        (["01", "02", "1"], ["None", "NA"], ["true", "False"], ["1.0", "2.0"], ["a", "b"])
    ):
        model = tiny.save_tiny_bert_classifier(tmp_path / f"m{number}", labels=names)
        rows = [{"text": "good film", "label": name} for name in names]
        data = tmp_path / f"d{number}.csv"
        data.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
        found = [evaluate(model, file) for file in (data, jsonl(tmp_path / f"d{number}.jsonl", rows))]
        assert [result.exit_code for result in found] == [0, 0], found[0].stderr
        assert found[0].stderr == found[1].stderr
    ids = tmp_path / "ids.csv"
    ids.write_text("text,label\ngood film,0\nbad food,1\n")
    assert evaluate(tmp_path / "m4", ids).exit_code == 0
    for wrong, number in (("01", 4), ("", 4), ("2", 4), ("0", 0), ("NA", 4), ("True", 2)):
        ids.write_text(f"text,label\ngood film,{wrong}\n")
        assert "line 2 of" in refusal(evaluate(tmp_path / f"m{number}", ids))


def test_the_encoding_is_asked_for_and_given(classifier: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.csv"
    data.write_bytes("text,label\ngood café,positive\n".encode("latin-1"))
    line = refusal(evaluate(classifier, data))
    assert line.startswith(
        f"gradfix evaluate: {data}: line 2, byte 19 (0xe9): is not utf-8; say how the file is written"
    )
    assert "with --encoding, such as latin-1" in line
    assert evaluate(classifier, data, "--encoding", "latin-1").exit_code == 0
    for name in ("klingon", "rot13"):
        wrong = refusal(evaluate(classifier, data, "--encoding", name), code=2)
        assert f"--encoding: no encoding called {name!r} is known" in wrong


CHAT = "{% for m in messages %}<s> {{ m['role'] }}\n{{ m['content'] }} </s> {% endfor %}"


def test_check_shows_a_conversation_as_the_model_reads_it(tmp_path: Path) -> None:
    for name in ("source_base", "source_tuned", "target_base"):
        tiny.save_tiny_gpt2(tmp_path / name, seed=len(name), chat_template=CHAT)
    turns = ["what is the film", "bad", "where is the dog", "one house"]
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)
    ]
    data = jsonl(tmp_path / "d.jsonl", [{"messages": messages}])
    models = [part for kind in ("source-base", "source-tuned", "target-base")
              for part in (f"--{kind}", tmp_path / kind.replace("-", "_"))]  # fmt: skip
    said = gradfix("check", *models, "--task", "causal-lm", "--support", data)
    assert (
        f"note: line 1 of {data} as the model reads it, what it has to predict in ⟦ ⟧: "
        "<s> user what is the film </s> <s> assistant⟦ bad </s>⟧"
    ) in said.stderr.replace("⟦bad", "⟦ bad")
    assert said.stderr.count("⟦") == 3
