"""The paper's tables end to end: tiny models from a Hub on this machine, tiny data, the whole commands."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file

import gradfix as gf
from gradfix.errors import GradfixError
from gradfix.paper import finetune, run
from gradfix.paper.data import task_rows, training_rows
from gradfix.paper.study import HERE, StudyTask, load_study
from gradfix.recipes.paper import PaperFinetuneRecipe, PaperVisionRecipe
from gradfix.tasks.zero_shot import read_templates
from tests import tiny
from tests.builders import gradfix, tuned_from
from tests.fake_hub import FakeHub, serve, use, use_data


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    found = FakeHub()
    huggingface_hub.close_session()
    with serve(found) as endpoint:
        use(endpoint, tmp_path / "cache", monkeypatch)
        use_data(endpoint, tmp_path / "cache", monkeypatch)
        yield found
        huggingface_hub.close_session()


def _vision(root: Path, hub: FakeHub) -> Path:
    """A study of two tasks on one tiny pair of CLIPs; the labels of the second are truth values."""
    old, new = tiny.save_tiny_clip(root / "old", seed=0), tiny.save_tiny_clip(root / "new", seed=2)
    hub.push("org/old", old)
    hub.push("org/new", new)
    for name in ("colours", "red"):
        hub.push(f"org/old_{name}", tuned_from(root / name, old, "AutoModel"))
    splits = {
        split: tiny.images(count, seed=seed) for split, count, seed in (("train", 18, 0), ("test", 24, 1))
    }
    hub.push_data(
        "org/colours", root / "colours-data", splits, image=datasets.Image(),
        label=datasets.ClassLabel(names=["red", "green", "blue"]),
    )  # fmt: skip
    truth = {
        split: [{"picture": row["image"], "is_red": row["label"] == "red"} for row in rows]
        for split, rows in splits.items()
    }
    hub.push_data(
        "org/red", root / "red-data", truth, picture=datasets.Image(), is_red=datasets.Value("bool")
    )
    (root / "prompts.txt").write_text("a photo of a {}.\nthe {} photo.\n")
    task = {
        "data": "org/colours",
        "templates": "prompts.txt",
        "classes": 3,
        "test_samples": 24,
        "megabytes": 5,
    }
    red = {
        **task,
        "data": "org/red",
        "templates": str(root / "prompts.txt"),
        "columns": {"image": "picture", "label": "is_red"},
        "names": {"False": "blue house", "True": "red house"},
        "classes": 2,
    }
    study = {
        "task": "zero-shot-image-classification",
        "source_base": "org/old",
        "source_tuned": "org/old_{task}",
        "target_base": "org/new",
        "default": ["colours", "red"],
        "tasks": {"colours": task, "red": red},
        "figures": {"naive": {"colours": 50.0}},
        "notes": ["everything is tiny"],
        "model_megabytes": [1, 1],
        "gigaflops": 0.001,
    }
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


@pytest.mark.slow
def test_a_table_of_images_from_ids_of_the_hub(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        "paper", "vision", "--study", _vision(tmp_path, hub), "--output", tmp_path / "out", "--samples-per-class", 2,
        "--seeds", 1, "--methods", "naive", "--methods", "permutation", "--limit", 12,
    ]  # fmt: skip
    done = gradfix(*command)
    assert done.exit_code == 0, done.output
    table = (tmp_path / "out" / "paper.md").read_text()
    assert "| 2 samples a class | colours | red |" in table
    content = json.loads((tmp_path / "out" / "paper.json").read_text())
    found = {line["method"]: line["score"]["value"] for line in content["tasks"]["colours"]}
    ends = ("", "-by-validation", "-best-on-test")
    assert list(found) == [
        "zero-shot",
        *(f"{name}{end}" for name in ("naive", "permutation") for end in ends),
    ]
    for method, label in (
        ("naive", "naive addition"),
        ("naive-by-validation", "naive addition: α on validation data"),
        ("naive-best-on-test", "naive addition: best α on test"),
    ):
        row = next(line for line in table.splitlines() if line.startswith(f"| {label} |"))
        score = found[method] * 100
        assert f"{score:.1f} (50.0, {score - 50:+.1f})".replace("-", "−") in row
    assert found["naive-best-on-test"] >= max(
        found["naive"], found["naive-by-validation"], found["zero-shot"]
    )
    assert "chosen on the test data: bounds, no results" in table
    assert "everything is tiny" in table
    record = json.loads((tmp_path / "out" / "tasks" / "red-12" / "comparison.json").read_text())
    assert record["caption"].startswith("accuracy on 12 test samples")
    assert record["recipe"]["label"] == ["blue house", "red house"]
    assert hub.weight_bytes("org/old_colours") > 0

    monkeypatch.setattr(run, "compare", lambda *_, **__: pytest.fail("what was finished is measured again"))
    assert gradfix(*command).exit_code == 0
    other = gradfix(*command, "--batch-size", 7)
    assert "was made with other options" in other.output


def test_no_sample_both_shapes_and_validates(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = [{"text": str(number), "label": "ab"[number % 3 == 0]} for number in range(40)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = StudyTask(data=str(tmp_path), classes=2, test_samples=40)
    pool, held = training_rows(task, pool=20, validation=1000)
    assert (len(pool), len(held)) == (20, 8)
    texts = [{row["text"] for row in rows} for rows in (pool, held)]
    assert not texts[0] & texts[1]
    assert [sum(row["label"] == "a" for row in rows) for rows in (pool, held)] == [10, 4]
    assert not len(training_rows(task, pool=20, validation=0)[1])


def test_a_label_that_the_study_does_not_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"label": 0}\n{"label": 2}\n')
    task = StudyTask(
        data=str(tmp_path / "rows.jsonl"), split="train", names={"0": "angry"}, classes=1, test_samples=1
    )
    with pytest.raises(GradfixError, match="has no splits"):
        task_rows(task, test=False)
    with pytest.raises(GradfixError, match=r"has no column 'cls', only label; give a study of your own"):
        task_rows(task.model_copy(update={"split": None, "columns": {"label": "cls"}}), test=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "rows.jsonl").rename(tmp_path / "data" / "train.jsonl")
    rows = task_rows(task.model_copy(update={"data": str(tmp_path / "data")}), test=False)
    assert rows[0]["label"] == rows[:1][0]["label"] == "angry"
    with pytest.raises(
        GradfixError, match=r"line 2 of .*column 'label': found 2, which the study's names lack"
    ):
        rows[1]


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_is_refused_leaves_no_folder_that_was_not_there(
    there: bool, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise GradfixError("these data are refused")

    monkeypatch.setattr(run, "training_rows", refused)
    output = tmp_path / "out"
    if there:
        output.mkdir()
    done = gradfix("paper", "vision", "--study", _vision(tmp_path, hub), "--output", output)
    assert "these data are refused" in done.output
    assert output.exists() == there
    assert not there or not list(output.iterdir())


def test_a_dry_run_fetches_nothing_and_builds_no_model(tmp_path: Path, hub: FakeHub) -> None:
    done = gradfix(
        "paper", "vision", "--study", _vision(tmp_path, hub), "--output", tmp_path / "out", "--dry-run"
    )
    assert done.exit_code == 0, done.output
    assert "org/old_red: about 1 MB" in done.output
    assert "org/colours: about 5 MB" in done.output
    assert "to download: about 0.01 GB" in done.output
    assert not hub.sent
    assert not (tmp_path / "out").exists()
    assert (
        PaperVisionRecipe(output=Path("out")).inputs() == []
    )  # else checkpoints, and torch, would be imported


def _texts() -> dict[str, list[dict[str, Any]]]:
    """Pairs of texts as the Hub has them, one of them without a label."""
    splits = {}
    for split, count, seed in (("train", 24, 0), ("test", 18, 1)):
        rows = [
            {"premise": row["text"], "hypothesis": "it is good", "label": row["label"]}
            for row in tiny.texts(count, seed=seed)
        ]
        splits[split] = [*rows, {**rows[0], "label": None}]
    return splits


def _language(root: Path, data: str, old: str, new: str) -> Path:
    task = {
        "data": data,
        "columns": {"text": "premise", "text_pair": "hypothesis"},
        "prompt": "question {premise} {hypothesis}",
        "answers": {"negative": "no", "neutral": "maybe", "positive": "yes"},
        "classes": 3,
        "test_samples": 18,
    }
    study = {
        "task": "text-classification",
        "source_base": old,
        "target_base": new,
        "default": ["inference"],
        "tasks": {"inference": task},
        "model_megabytes": [1, 1],
        "gigaflops": 0.001,
    }
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


@pytest.mark.slow
def test_a_table_of_texts_from_ids_of_the_hub_and_fine_tunes_made_here(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("org/t5", tiny.save_tiny_t5(tmp_path / "old", seed=0, dropout_rate=0.1))
    hub.push("org/flan", tiny.save_tiny_t5(tmp_path / "new", seed=2))
    text = datasets.Value("string")
    hub.push_data(
        "org/inference", tmp_path / "pairs", _texts(), premise=text, hypothesis=text,
        label=datasets.ClassLabel(names=list(tiny.SENTIMENTS)),
    )  # fmt: skip
    study = _language(tmp_path, "org/inference", "org/t5", "org/flan")
    tuned = tmp_path / "tuned"
    made = gradfix(
        "paper", "finetune", "--study", study, "--output", tuned, "--steps", 6, "--batch-size", 8,
        "--learning-rate", 0.003,
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    config = json.loads((tuned / "inference" / "config.json").read_text())
    assert sorted(config["id2label"].values()) == ["negative", "neutral", "positive"]
    table = [
        "paper", "language", "--study", study, "--output", tmp_path / "out", "--samples-per-class", 2, "--seeds", 1,
        "--methods", "naive", "--methods", "permutation",
    ]  # fmt: skip
    alone = gradfix(*table)
    assert "make them with `gradfix paper finetune" in alone.output
    done = gradfix(*table, "--source-tuned", f"{tuned}/{{task}}")
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "out" / "paper.json").read_text())
    generated = content["generated"]["inference"]
    assert (
        f"| new base, answers generated | {generated * 100:.1f} |"
        in (tmp_path / "out" / "paper.md").read_text()
    )
    asked = [
        {
            "input": f"question {row['premise']} {row['hypothesis']}",
            "target": {"negative": "no", "neutral": "maybe", "positive": "yes"}[row["label"]],
        }
        for row in _texts()["test"][:-1]
    ]
    by_hand = gf.evaluate(
        model=tmp_path / "new", task="text-to-text", data=asked, candidate=["no", "maybe", "yes"]
    )
    assert generated == by_hand.score
    monkeypatch.setattr(
        run, "evaluate", lambda *_, **__: pytest.fail("what was generated is generated again")
    )
    assert gradfix(*table, "--source-tuned", f"{tuned}/{{task}}").exit_code == 0
    assert {line["method"] for line in content["tasks"]["inference"]} >= {
        "permutation", "naive-by-validation", "naive-best-on-test",
    }  # fmt: skip


@pytest.mark.slow
def test_a_fine_tune_that_was_ended_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "KEPT_EVERY", 2)
    tiny.save_tiny_t5(tmp_path / "old", seed=0, dropout_rate=0.1)
    (tmp_path / "data").mkdir()
    for split, rows in _texts().items():
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = [str(tmp_path / name) for name in ("data", "old", "new")]
    study, folder = load_study("language", _language(tmp_path, *places))

    def made(output: Path, stop: int | None = None, **changes: Any) -> Path:
        recipe = PaperFinetuneRecipe(output=output, steps=5, batch_size=8, learning_rate=1e-3, **changes)

        def progress(stage: str, done: int, total: int, unit: str) -> None:
            if done == stop:
                raise KeyboardInterrupt

        return finetune.run(study, study.chosen([]), recipe, folder, progress=progress)[0]

    whole = made(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "ended", stop=3)
    assert not (tmp_path / "ended" / "inference").exists()
    with pytest.raises(GradfixError, match="unfinished run of other options"):
        made(tmp_path / "ended", seed=1)
    again = made(tmp_path / "ended")
    assert not (tmp_path / "ended" / "inference.partial").exists()
    weights = [load_file(path / "model.safetensors") for path in (whole, again)]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


def test_the_package_brings_both_studies_with_their_prompts() -> None:
    for table, count in (("vision", 20), ("language", 5)):
        study, folder = load_study(table)
        assert len(study.tasks) == count
        assert folder == HERE
        assert len(study.default) == 5
        for task in study.tasks.values():
            assert task.templates is None or read_templates(folder / task.templates)
            assert task.prompt is None or set(task.answers.values())
    assert study.source_tuned is None
    with pytest.raises(GradfixError, match="no such task"):
        study.chosen(["imagenet"])
    with pytest.raises(ValueError, match="in it"):
        PaperVisionRecipe(output=Path("out"), source_tuned="org/one")
