"""Codes are read as the numbers that they stand for, whatever library made them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from tests import models
from tests.quantised import FORMATS, quantise

LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    models.tiny_llama(seed=0).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.mark.parametrize("method", FORMATS)
def test_codes_are_read_as_what_they_stand_for(plain: Path, method: str) -> None:
    packed = quantise(plain, plain.parent / method, method)
    found = Checkpoint.open(packed, dequantise=True)
    dense = Checkpoint.open(packed.with_suffix(".dense"))
    assert found.quantised == FORMATS[method](torch.ones(64, 64))[2]["quant_method"]
    assert found.specs.keys() == dense.specs.keys()
    for name in dense:
        torch.testing.assert_close(found[name], dense[name], rtol=1e-6, atol=1e-7)
        assert found.specs[name].shape == dense.specs[name].shape
        assert torch.equal(found.read(name, slice(1, 3)), found[name][1:3])
    with pytest.raises(GradfixError, match="is quantised"):
        Checkpoint.open(packed)


def test_a_plain_model_is_read_as_it_is(plain: Path) -> None:
    found = Checkpoint.open(plain, dequantise=True)
    assert found.quantised is None
    assert not any("codes" in note for note in found.notes)


@pytest.mark.parametrize(
    ("method", "settings", "part", "reason"),
    [
        ("gptq", {"bits": 3}, None, "gptq quantisation with 3 bits is not read"),
        ("gptq", {"checkpoint_format": "marlin"}, None, "'marlin' is not read"),
        ("awq", {"version": "gemv"}, None, "'gemv' is not read, gemm is"),
        ("gptq", {"quant_method": "other"}, None, "qweight of other quantisation"),
        ("fp8", {"weight_block_size": [16, 16]}, None, r"weight_scale_inv .* no scale of"),
        ("gptq", {}, "scales", "don't fit 4 bits"),
        ("nf4", {}, "weight", "for .* codes of 4 bits"),
        ("nf4", {}, "weight.absmax", "don't fit one another"),
        ("int8", {}, "SCB", "SCB .* beside a weight"),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    plain: Path, method: str, settings: dict[str, object], part: str | None, reason: str
) -> None:
    packed = quantise(plain, plain.parent / method, method)
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] |= settings
    (packed / "config.json").write_text(json.dumps(config))
    if part is not None:
        tensors = load_file(packed / "model.safetensors")
        tensors[f"{LAYER}.{part}"] = tensors[f"{LAYER}.{part}"][:-1].clone()
        save_file(tensors, packed / "model.safetensors")
    with pytest.raises(GradfixError, match=f"{packed}: {LAYER if part else 'model.*'}.*{reason}"):
        Checkpoint.open(packed, dequantise=True).read(f"{LAYER}.weight")


def test_bitsandbytes_reads_the_same(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    for kind, nested in (("nf4", False), ("nf4", True), ("fp4", True)):
        codes, state = functional.quantize_4bit(
            weight, quant_type=kind, compress_statistics=nested, blocksize=64
        )
        stored = {f"layer.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        save_file({"layer.weight": codes, **stored}, tmp_path / "model.safetensors")
        found = Checkpoint.open(tmp_path / "model.safetensors", dequantise=True)["layer.weight"]
        torch.testing.assert_close(found, functional.dequantize_4bit(codes, state), rtol=1e-5, atol=1e-6)
    codes, scales, _ = functional.int8_vectorwise_quant(weight)
    save_file({"layer.weight": codes, "layer.SCB": scales}, tmp_path / "model.safetensors")
    found = Checkpoint.open(tmp_path / "model.safetensors", dequantise=True)["layer.weight"]
    torch.testing.assert_close(found, functional.int8_vectorwise_dequant(codes, scales), rtol=1e-5, atol=1e-6)
