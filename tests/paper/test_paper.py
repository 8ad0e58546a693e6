"""The paper's tables end to end: tiny models from a Hub on this machine, tiny data, the whole commands."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file

from gradfix.errors import GradfixError
from gradfix.paper import finetune, run
from gradfix.paper.study import HERE, load_study
from gradfix.recipes.paper import PaperFinetuneRecipe, PaperVisionRecipe
from tests import tiny
from tests.builders import gradfix, tuned_from
from tests.fake_hub import FakeHub, serve, use


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    found = FakeHub()
    huggingface_hub.close_session()
    with serve(found) as endpoint:
        use(endpoint, tmp_path / "cache", monkeypatch)
        yield found
        huggingface_hub.close_session()


def _vision(root: Path, hub: FakeHub) -> Path:
    """A study of two tasks on one tiny pair of CLIPs."""
    old, new = tiny.save_tiny_clip(root / "old", seed=0), tiny.save_tiny_clip(root / "new", seed=2)
    hub.push("org/old", old)
    hub.push("org/new", new)
    for name in ("colours", "shades"):
        hub.push(f"org/old_{name}", tuned_from(root / name, old, "AutoModel"))
    for split, count, seed in (("train", 18, 0), ("test", 24, 1)):
        tiny.save_image_folder(root / "data" / split, tiny.images(count, seed=seed))
    (root / "prompts.txt").write_text("a photo of a {}.\nthe {} photo.\n")
    task = {
        "data": str(root / "data"),
        "templates": "prompts.txt",
        "classes": 3,
        "test_samples": 24,
        "megabytes": 5,
    }
    study = {
        "task": "zero-shot-image-classification",
        "source_base": "org/old",
        "source_tuned": "org/old_{task}",
        "target_base": "org/new",
        "default": ["colours", "shades"],
        "tasks": {"colours": task, "shades": dict(task, templates=str(root / "prompts.txt"))},
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
        "--seeds", 1, "--methods", "naive", "--limit", 12,
    ]  # fmt: skip
    done = gradfix(*command)
    assert done.exit_code == 0, done.output
    table = (tmp_path / "out" / "paper.md").read_text()
    assert "| 2 samples a class | colours | shades |" in table
    row = next(line for line in table.splitlines() if line.startswith("| naive addition"))
    content = json.loads((tmp_path / "out" / "paper.json").read_text())
    score = next(line for line in content["tasks"]["colours"] if line["method"] == "naive")["score"]["value"]
    assert f"{score * 100:.1f} (50.0, {score * 100 - 50:+.1f})".replace("-", "−") in row
    assert "everything is tiny" in table
    record = json.loads((tmp_path / "out" / "tasks" / "colours-12" / "comparison.json").read_text())
    assert record["caption"].startswith("accuracy on 12 test samples")
    assert hub.weight_bytes("org/old_colours") > 0

    monkeypatch.setattr(run, "compare", lambda *_, **__: pytest.fail("what was finished is measured again"))
    assert gradfix(*command).exit_code == 0
    other = gradfix(*command, "--batch-size", 7)
    assert "was made with other options" in other.output


def test_a_dry_run_fetches_nothing_and_builds_no_model(tmp_path: Path, hub: FakeHub) -> None:
    done = gradfix(
        "paper", "vision", "--study", _vision(tmp_path, hub), "--output", tmp_path / "out", "--dry-run"
    )
    assert done.exit_code == 0, done.output
    assert "org/old_shades: about 1 MB" in done.output
    assert "to download: about 0.01 GB" in done.output
    assert not hub.sent
    assert not (tmp_path / "out").exists()


def _language(root: Path) -> Path:
    tiny.save_tiny_t5(root / "old", seed=0, dropout_rate=0.1)
    tiny.save_tiny_t5(root / "new", seed=2)
    for split, count, seed in (("train", 24, 0), ("test", 18, 1)):
        rows = [
            {"premise": row["text"], "hypothesis": "it is good", "label": row["label"]}
            for row in tiny.texts(count, seed=seed)
        ]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "data": str(root / "data"),
        "columns": {"text": "premise", "text_pair": "hypothesis"},
        "prompt": "question {premise} {hypothesis}",
        "answers": {"negative": "no", "neutral": "maybe", "positive": "yes"},
        "classes": 3,
        "test_samples": 18,
    }
    (root / "data").mkdir()
    for split in ("train", "test"):
        shutil.move(root / f"{split}.jsonl", root / "data" / f"{split}.jsonl")
    study = {
        "task": "text-classification",
        "source_base": str(root / "old"),
        "target_base": str(root / "new"),
        "default": ["inference"],
        "tasks": {"inference": task},
        "model_megabytes": [1, 1],
        "gigaflops": 0.001,
    }
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


@pytest.mark.slow
def test_a_table_of_texts_from_fine_tunes_made_here(tmp_path: Path) -> None:
    study = _language(tmp_path)
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
        "--methods", "naive",
    ]  # fmt: skip
    alone = gradfix(*table)
    assert "make them with `gradfix paper finetune" in alone.output
    done = gradfix(*table, "--source-tuned", f"{tuned}/{{task}}")
    assert done.exit_code == 0, done.output
    assert "| new base, answers generated | " in (tmp_path / "out" / "paper.md").read_text()
    assert 0 <= json.loads((tmp_path / "out" / "paper.json").read_text())["generated"]["inference"] <= 1


@pytest.mark.slow
def test_a_fine_tune_that_was_ended_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "KEPT_EVERY", 2)
    study, folder = load_study("language", _language(tmp_path))

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
    for table in ("vision", "language"):
        study, folder = load_study(table)
        assert folder == HERE
        assert len(study.default) == 5
        for task in study.tasks.values():
            assert task.templates is None or "{}" in (folder / task.templates).read_text()
            assert task.prompt is None or set(task.answers.values())
    assert study.source_tuned is None
    with pytest.raises(GradfixError, match="no such task"):
        study.chosen(["imagenet"])
    with pytest.raises(ValueError, match="in it"):
        PaperVisionRecipe(output=Path("out"), source_tuned="org/one")
