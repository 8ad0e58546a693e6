"""Adapters by the keys of kohya's trainers and of diffusers are the same adapters."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from tests import models
from tests.adapters import QUIET, save_adapter
from tests.builders import gradfix

pytestmark = [*QUIET]

Tensors = dict[str, torch.Tensor]
ALPHA, RANK = 6.0, 3


def kohya(tensors: Tensors) -> Tensors:
    """Dots become underscores, and each layer has an alpha."""
    found: Tensors = {}
    for key, value in tensors.items():
        module, factor = key.removeprefix("base_model.model.").rsplit(".lora_", 1)
        flat = "lora_te_" + module.replace(".", "_")
        found[f"{flat}.lora_{'down' if factor.startswith('A') else 'up'}.weight"] = value
        found[f"{flat}.alpha"] = torch.tensor(ALPHA)
    return found


def scaled(tensors: Tensors) -> Tensors:
    """Without an alpha the product counts as it is."""
    return {key: value * (ALPHA / RANK if "lora_B" in key else 1) for key, value in tensors.items()}


def diffusers(tensors: Tensors) -> Tensors:
    return {
        key.replace("base_model.model.", "text_encoder."): value for key, value in scaled(tensors).items()
    }


def old_diffusers(tensors: Tensors) -> Tensors:
    names = {".lora_A.": ".lora_linear_layer.down.", ".lora_B.": ".lora_linear_layer.up."}
    found = diffusers(tensors)
    for old, new in names.items():
        found = {key.replace(old, new): value for key, value in found.items()}
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("styles")
    models.tiny_clip().save_pretrained(root / "base")
    adapter = save_adapter(
        root / "adapter", root / "base", "CLIPModel", r=RANK, lora_alpha=ALPHA,
        target_modules=["q_proj", "fc1", "patch_embedding"],
    )  # fmt: skip
    return root / "base", adapter


@pytest.mark.parametrize("style", [kohya, diffusers, old_diffusers])
def test_the_same_weights_in_every_style(
    style: Callable[[Tensors], Tensors], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = pair
    expected = Checkpoint.open(adapter, base=base)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {key: value.contiguous() for key, value in style(tensors).items()}, tmp_path / "lora.safetensors"
    )
    found = Checkpoint.open(tmp_path / "lora.safetensors", base=base)
    assert found.adapter is not None
    assert expected.adapter is not None
    assert found.adapter.updates.keys() == expected.adapter.updates.keys()
    assert not found.adapter.unplaced
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-7)


def test_what_finds_no_place_is_counted_and_nothing_at_all_is_refused(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = pair
    tensors = kohya(load_file(adapter / "adapter_model.safetensors"))
    strange = {key.replace("lora_te_", "lora_unet_unheard_"): value.clone() for key, value in tensors.items()}
    file = tmp_path / "lora.safetensors"
    save_file({**tensors, **strange}, file)
    layers = sum("lora_up" in key for key in tensors)
    result = gradfix("diff", "--source-base", base, "--source-tuned", file, "--output", tmp_path / "tau")
    assert result.exit_code == 0, result.stderr
    assert f"{layers} of its {2 * layers} layers are not in" in result.stderr
    save_file(strange, file)
    refused = gradfix("diff", "--source-base", base, "--source-tuned", file, "--output", tmp_path / "none")
    assert refused.exit_code == 1
    assert f"none of its {layers} layers is in the base" in refused.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {**tensors, "lora_te_x.hada_w1_a": torch.ones(2)}, r"hada_w1_a: is of no kind"),
        (lambda tensors: {**tensors, "lora_te_x.dora_scale": torch.ones(2)}, r"dora_scale: is of no kind"),
        (lambda tensors: dict(list(tensors.items())[2:]), r"expected two factors|is of no kind"),
    ],
)
def test_other_kinds_are_refused_by_name(
    change: Callable[[Tensors], Tensors], message: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = pair
    tensors = kohya(load_file(adapter / "adapter_model.safetensors"))
    save_file(change(dict(sorted(tensors.items()))), tmp_path / "lora.safetensors")
    with pytest.raises(GradfixError, match=message):
        Checkpoint.open(tmp_path / "lora.safetensors", base=base)


def test_an_adapter_alone_is_refused_by_what_it_lacks(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(tensors, tmp_path / "peft.safetensors")
    with pytest.raises(GradfixError, match=r"whose scaling is in its adapter_config.json: give the folder"):
        Checkpoint.open(tmp_path / "peft.safetensors", base=base)
    save_file(kohya(tensors), tmp_path / "kohya.safetensors")
    with pytest.raises(GradfixError, match=r"names no base model: pass the base"):
        Checkpoint.open(tmp_path / "kohya.safetensors")


def test_the_scaling_that_diffusers_notes_in_the_header(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    expected = Checkpoint.open(adapter, base=base)
    tensors = load_file(adapter / "adapter_model.safetensors")
    plain = {key.replace("base_model.model.", "text_encoder."): value for key, value in tensors.items()}
    noted = {"text_encoder.r": RANK, "text_encoder.lora_alpha": ALPHA}
    save_file(plain, tmp_path / "noted.safetensors", {"lora_adapter_metadata": json.dumps(noted)})
    found = Checkpoint.open(tmp_path / "noted.safetensors", base=base)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-7)
    noted["text_encoder.alpha_pattern"] = {"q_proj": 8}
    save_file(plain, tmp_path / "noted.safetensors", {"lora_adapter_metadata": json.dumps(noted)})
    with pytest.raises(GradfixError, match="text_encoder: has settings beside rank and alpha"):
        Checkpoint.open(tmp_path / "noted.safetensors", base=base)
