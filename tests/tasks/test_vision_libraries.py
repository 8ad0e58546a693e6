"""Ready-made tasks of open_clip and timm: transports of tiny models, and what is refused. They need both libraries."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import gradfix as gf
from gradfix.errors import GradfixError
from gradfix.tasks.vision_libraries import OpenClip, Timm


def imports(name: str) -> bool:
    if importlib.util.find_spec(name) is None:
        return False
    try:
        __import__(name)
    except (ImportError, RuntimeError):  # torchvision beside another torch than its own
        return False
    return True


needs_timm = pytest.mark.skipif(not imports("timm"), reason="timm can't be imported")
needs_open_clip = pytest.mark.skipif(not imports("open_clip"), reason="open_clip can't be imported")
LABELS = ["dark", "bright"]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 100, (count, 40, 40, 3), generator=generator, dtype=torch.uint8)
    return [
        {"image": Image.fromarray((value + 120 * (number % 2)).numpy()), "label": LABELS[number % 2]}
        for number, value in enumerate(values)
    ]


def saved(folder: Path, model: nn.Module, seed: int = 1) -> dict[str, str]:
    """Save a base, what training made of it, and a new base."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, scale in (("source_base", 0.0), ("source_tuned", 0.02), ("target_base", 0.02)):
        state = {
            key: value + scale * torch.randn(value.shape, generator=generator)
            if value.is_floating_point()
            else value
            for key, value in model.state_dict().items()
        }
        found[name] = str(folder / f"{name}.safetensors")
        save_file({key: value.contiguous().clone() for key, value in state.items()}, found[name])
    return found


@needs_timm
@pytest.mark.slow
def test_a_model_of_timm_is_transported(tmp_path: Path) -> None:
    import timm

    models = saved(tmp_path, timm.create_model("test_vit", num_classes=2))
    task = Timm("test_vit", LABELS)
    result = gf.transport(
        **models, task=task, support=rows(8, 0), test=rows(12, 1), method="gradfix", output=tmp_path / "out"
    )
    assert result.judgement is not None
    written = timm.create_model("test_vit", num_classes=2).eval()
    written.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    pixels = task.encode(rows(12, 1))["pixel_values"]
    with torch.no_grad():
        predicted = written(pixels).argmax(1).tolist()
    right = sum(LABELS[index] == row["label"] for index, row in zip(predicted, rows(12, 1), strict=True))
    assert result.judgement.transported.score == right / 12
    assert {name.split(".")[0] for name in task.head(written)} == {"head"}
    assert task.features(written, {"pixel_values": pixels}).shape == (12, written.num_features)
    # The head can be refitted, and the task can be named on the command line.
    gf.transport(**models, task=task, support=rows(8, 0), alpha=1.0, head="probe", output=tmp_path / "probe")
    named = gf.evaluate(
        model=tmp_path / "out" / "model.safetensors", task="gradfix.tasks:Timm,architecture=test_vit", label=LABELS,
        data=rows(12, 1),
    )  # fmt: skip
    assert named.score == result.judgement.transported.score


@needs_timm
def test_what_timm_does_not_have_is_refused() -> None:
    with pytest.raises(GradfixError, match=r"has no architecture 'vit_tiny_pach16_224'; it has .*vit"):
        Timm("vit_tiny_pach16_224", LABELS)
    with pytest.raises(GradfixError, match="labels: expected the names of the classes"):
        Timm("test_vit")


@needs_timm
def test_a_head_of_timm_that_is_no_linear_layer_is_not_refitted() -> None:
    model = nn.Identity()
    model.get_classifier = lambda: model
    with pytest.raises(GradfixError, match="test_vit: its head does not end in a linear layer"):
        Timm("test_vit", LABELS).last_layer(model)


@pytest.fixture
def tiny_clip(tmp_path: Path) -> str:
    import open_clip

    (tmp_path / "tiny-for-tests.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "tiny-for-tests.json")
    return "tiny-for-tests"


@needs_open_clip
@pytest.mark.slow
def test_a_model_of_open_clip_is_transported_by_its_image_tower(tmp_path: Path, tiny_clip: str) -> None:
    import open_clip

    model = open_clip.create_model(tiny_clip).eval()
    models = saved(tmp_path, model)
    task = OpenClip(tiny_clip, LABELS, templates=["a {} picture", "a photo that is {}"])
    result = gf.transport(
        **models, task=task, support=rows(8, 0), test=rows(12, 1), method="gradfix", output=tmp_path / "out"
    )
    assert result.judgement is not None
    before, after = load_file(models["target_base"]), load_file(tmp_path / "out" / "model.safetensors")
    if result.alpha.alpha:
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed
        assert all(name.startswith("visual.") for name in changed)
    # By hand, as open_clip's README does it.
    model.load_state_dict(after)
    tokenizer = open_clip.get_tokenizer(tiny_clip)
    with torch.no_grad():
        weights = []
        for label in LABELS:
            texts = model.encode_text(
                tokenizer([f"a {label} picture", f"a photo that is {label}"]), normalize=True
            )
            weights.append(nn.functional.normalize(texts.mean(0), dim=0))
        images = model.encode_image(task.encode(rows(12, 1))["pixel_values"], normalize=True)
        predicted = (images @ torch.stack(weights).T).argmax(1).tolist()
    right = sum(LABELS[index] == row["label"] for index, row in zip(predicted, rows(12, 1), strict=True))
    assert result.judgement.transported.score == right / 12


@needs_open_clip
def test_what_open_clip_does_not_have_is_refused() -> None:
    with pytest.raises(GradfixError, match=r"has no architecture 'ViT-B-33'; it has .*ViT-B"):
        OpenClip("ViT-B-33", LABELS)
    with pytest.raises(GradfixError, match=r"has no weights 'laion'; pretrained: expected one of .*openai"):
        OpenClip("ViT-B-32", LABELS, pretrained="laion")
    with pytest.raises(GradfixError, match=r"prepare images in \d ways: give pretrained, the tag of yours"):
        OpenClip("ViT-L-14", LABELS)


@needs_open_clip
def test_a_model_without_two_towers_is_refused(tiny_clip: str) -> None:
    with pytest.raises(GradfixError, match="has no encode_image, so it cannot classify zero-shot"):
        OpenClip(tiny_clip, LABELS)._require_towers(nn.Module())


@pytest.mark.skipif(imports("timm"), reason="timm can be imported")
def test_a_library_that_is_not_there_is_named_with_what_installs_it() -> None:
    with pytest.raises(GradfixError, match=r"timm: can't be imported .*pip install timm"):
        Timm("test_vit", LABELS)
