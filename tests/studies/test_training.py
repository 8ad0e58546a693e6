"""Pre-training and fine-tuning on a miniature plan: what counts here is that bits repeat and losses fall."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from gradfix.demo.captions import concepts
from gradfix.demo.datasets import Split, load_task
from gradfix.demo.models import ModelSize, is_image_tower, new_model, pixel_values
from gradfix.demo.render import FONTS_A, FONTS_B
from studies.pair import build
from studies.pair.build import Training
from studies.pair.finetune import class_weights, finetune, zero_shot_accuracy
from studies.pair.pretrain import Corpus, Schedule, caption_tokens, contrastive_loss, draw_corpus, pretrain

pytestmark = pytest.mark.slow

TINY = ModelSize(width=16, depth=1, text_width=16, text_depth=1, projection=8, heads=2, patch=14)
SHORT = Schedule(steps=4, batch=16, warmup=1)


def test_the_contrastive_loss_is_clips_when_no_caption_repeats() -> None:
    model = new_model(TINY, 0).eval()
    pixels = pixel_values(load_task("digits").test.images[:5])
    captions = caption_tokens()[:5, 0]
    loss = contrastive_loss(model, pixels, captions, torch.arange(5))
    mask = torch.ones_like(captions)  # padding comes after the end token, where causal attention never looks
    expected = model(input_ids=captions, pixel_values=pixels, attention_mask=mask, return_loss=True).loss
    torch.testing.assert_close(loss, expected)


def test_equal_captions_are_all_right() -> None:
    model = new_model(TINY, 0).eval()
    pixels = pixel_values(load_task("digits").test.images[:4])
    captions = caption_tokens()[:2, 0]
    target = torch.tensor([0, 1, 0, 0])
    loss = contrastive_loss(model, pixels, captions, target)
    out = model(input_ids=captions, pixel_values=pixels)
    logits = out.logits_per_image
    down = logits.log_softmax(dim=0)
    expected = 0.5 * (
        functional.cross_entropy(logits, target) - 0.5 * (down[[0, 2, 3], 0].mean() + down[1, 1])
    )
    torch.testing.assert_close(loss, expected)


def test_a_corpus_shows_what_it_says() -> None:
    images, labels = draw_corpus(Corpus(FONTS_A, 1, characters=2000))
    assert images.shape == (2000, 28, 28)
    assert labels.max() == 61
    keys = [concept.key for concept in concepts(clothing=True)]
    assert keys[0] == "0"
    assert keys[61] == "Z"
    # Zeros are hollow, capital I is not: the labels belong to the images.
    centre = np.abs(images[:, 12:16, 12:16].astype(int) - images[:, :1, :1]).mean(axis=(1, 2))
    assert centre[labels == 0].mean() < centre[labels == keys.index("I")].mean()


def test_pretraining_lowers_the_loss() -> None:
    images, labels = draw_corpus(Corpus(FONTS_A, 1, characters=64))
    losses = pretrain(new_model(TINY, 0), images, labels, Schedule(steps=60, batch=32, warmup=5), 0)
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])


def test_finetuning_changes_the_image_tower_and_nothing_else() -> None:
    task = load_task("digits")
    model = new_model(TINY, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls: list[tuple[int, int]] = []
    finetune(model, task, SHORT, progress=lambda stage, done, total, unit="": calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for name, value in model.state_dict().items():
        # The key bias shifts every attention logit of a row alike: its gradient is zero but for rounding.
        if not name.endswith("k_proj.bias"):
            assert torch.equal(value, before[name]) != is_image_tower(name), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_finetuning_learns() -> None:
    task = load_task("digits")
    model = new_model(TINY, 0)
    losses = finetune(model, task, Schedule(steps=60, batch=32, learning_rate=3e-3, warmup=5))
    assert losses[-1] < losses[0]
    assert zero_shot_accuracy(model, task, task.test) > 0.25


def test_class_weights_average_normalised_templates() -> None:
    model, task = new_model(TINY, 0).eval(), load_task("digits")
    weights = class_weights(model, task)
    each = torch.stack([class_weights(model, replace(task, templates=(t,))) for t in task.templates])
    torch.testing.assert_close(weights, functional.normalize(each.mean(dim=0), dim=-1))
    torch.testing.assert_close(weights.norm(dim=-1), torch.ones(10))


def test_accuracy_counts_across_blocks() -> None:
    model, task = new_model(TINY, 0).eval(), load_task("digits")
    split = Split(task.test.images[:700], task.test.labels[:700])
    parts = [
        zero_shot_accuracy(model, task, Split(split.images[part], split.labels[part])) * size
        for part, size in ((slice(0, 100), 100), (slice(100, 700), 600))
    ]
    assert zero_shot_accuracy(model, task, split) == pytest.approx(sum(parts) / 700)


tiny = partial(Training, size=TINY, threads=1)
MINIATURE = {
    "A": tiny(1, SHORT, corpus=Corpus(FONTS_A, 1, characters=64)),
    "B": tiny(2, SHORT, corpus=Corpus(FONTS_B, 2, characters=64)),
    "B-next": tiny(3, SHORT, "B", Corpus(FONTS_B, 3, characters=64)),
    "A-digits": tiny(4, SHORT, "A", task="digits"),
}


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_the_same_plan_gives_the_same_bytes_and_a_stopped_build_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One task's accuracy is enough here; measuring all of them is most of the time.
    monkeypatch.setattr(build, "available_tasks", lambda: ("digits",))
    first = build.build(tmp_path / "one", MINIATURE)
    assert json.loads((tmp_path / "one" / "provenance.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(first)
    )
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "A.safetensors").write_bytes((tmp_path / "one" / "A.safetensors").read_bytes())
    trained: list[str] = []
    again = build.build(tmp_path / "two", MINIATURE, progress=lambda stage, *_: trained.append(stage))
    assert again == first
    assert {stage.split(":")[0] for stage in trained} == {"B", "B-next", "A-digits"}
    hashes = [entry["sha256"] for entry in first["checkpoints"].values()]
    assert len(set(hashes)) == 4
    sizes = [entry["bytes"] for entry in first["checkpoints"].values()]
    assert sizes[3] < sizes[0]


def test_another_seed_gives_another_model() -> None:
    states = [new_model(TINY, seed).visual_projection.weight for seed in (0, 0, 1)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_the_command_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main([]) == 2
    assert "python -m studies.pair.build OUTPUT" in capsys.readouterr().err
