"""Codes are no weights: whatever a library stores them as, a model that holds them is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from gradfix.transport.inspection import inspect
from gradfix.vectors.task_vector import TaskVector
from tests import models

LAYER = "bert.encoder.layer.0.attention.self.query"


def _codes(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.ones(shape, dtype=dtype)


SCALES = torch.ones(16)
LAYOUTS: dict[str, dict[str, Tensor]] = {
    "fp8": {"weight": torch.ones(16, 16).to(torch.float8_e4m3fn), "weight_scale_inv": SCALES},
    "fp8 without scales": {"weight": torch.ones(16, 16).to(torch.float8_e5m2)},
    "bitsandbytes int8": {"weight": _codes(16, 16, dtype=torch.int8), "SCB": SCALES},
    "bitsandbytes nf4": {"weight": _codes(128, 1), "weight.absmax": SCALES, "weight.quant_map": SCALES},
    "GPTQ": {
        "qweight": _codes(2, 16, dtype=torch.int32),
        "qzeros": _codes(1, 2, dtype=torch.int32),
        "scales": SCALES.half(),
        "g_idx": _codes(16, dtype=torch.int32),
    },
    "AWQ": {"qweight": _codes(16, 2, dtype=torch.int32), "qzeros": _codes(1, 2, dtype=torch.int32)},
    "compressed-tensors": {
        "weight_packed": _codes(16, 2, dtype=torch.int32),
        "weight_scale": SCALES,
        "weight_shape": _codes(2, dtype=torch.int64),
    },
    "HQQ": {"W_q": _codes(16, 8), "scale": SCALES, "zero": SCALES},
    "quanto": {"weight._data": _codes(16, 16, dtype=torch.int8), "weight._scale": SCALES},
    "torchao": {"_weight_qdata": _codes(16, 16, dtype=torch.int8), "_weight_scale": SCALES},
    "AQLM": {"codes": _codes(16, 2, 1, dtype=torch.int8), "codebooks": torch.ones(1, 4, 1, 8)},
    "a library nobody knows": {"mystery": _codes(4, 16, dtype=torch.int16), "grid": SCALES},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.tiny_bert(seed=0).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def _packed(folder: Path, layout: str, **config: object) -> Path:
    path = folder.parent / "packed"
    path.mkdir()
    plain = Checkpoint.open(folder)
    state = {name: plain[name] for name in plain if not name.startswith(f"{LAYER}.weight")}
    save_file(
        {**state, **{f"{LAYER}.{k}": v.clone() for k, v in LAYOUTS[layout].items()}},
        path / "model.safetensors",
    )
    described = json.loads((folder / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**described, **config}))
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_are_refused_in_every_role_without_a_word_in_the_config(folder: Path, layout: str) -> None:
    packed = _packed(folder, layout)
    for base, tuned in ((packed, folder), (folder, packed)):
        with pytest.raises(GradfixError, match=f"{packed}: is quantised .*{LAYER}.* before quantisation"):
            TaskVector.between(base, tuned)
    with pytest.raises(GradfixError, match=f"{packed}: is quantised"):
        Checkpoint.open(packed)


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"text_config": {"quantization_config": {"quant_method": "gptq"}}},
        {"compression_config": {"quant_method": "gptq"}},
    ],
)
def test_the_library_is_named_after_the_config(folder: Path, config: dict[str, object]) -> None:
    with pytest.raises(GradfixError, match=r"is quantised \(gptq\).* with GPTQModel"):
        Checkpoint.open(_packed(folder, "GPTQ", **config))


def test_a_config_that_outlived_its_codes_is_refused_with_a_remedy_of_its_own(folder: Path) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), "quantization_config": {"quant_method": "bitsandbytes"}}
    path.write_text(json.dumps(config))
    with pytest.raises(
        GradfixError, match=r"bitsandbytes.*look like plain weights; remove quantization_config"
    ):
        Checkpoint.open(folder)


def test_a_file_beside_no_config_is_judged_by_its_tensors(folder: Path) -> None:
    packed = _packed(folder, "GPTQ")
    (packed / "config.json").unlink()
    with pytest.raises(GradfixError, match=r"is quantised \(GPTQ\)"):
        Checkpoint.open(packed / "model.safetensors")


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2, dtype=torch.complex64)}, tmp_path / "model.safetensors")
    with pytest.raises(GradfixError, match="'weight' holds complex numbers"):
        Checkpoint.open(tmp_path)


def test_integer_buffers_of_a_plain_model_are_no_codes(folder: Path) -> None:
    plain = Checkpoint.open(folder)
    buffers = {
        "bert.embeddings.position_ids": torch.arange(64).expand(1, -1).clone(),
        "bert.encoder.layer.0.attention.self.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
        "bert.encoder.layer.0.attention.relative_position_index": torch.ones(8, 8, dtype=torch.int64),
    }
    save_file({**{name: plain[name] for name in plain}, **buffers}, folder / "model.safetensors")
    assert buffers.keys() <= Checkpoint.open(folder).keys()


def test_an_adapter_of_codes_is_refused(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    factors = {
        f"base_model.model.{LAYER}.lora_{x}.weight": torch.ones(4, 4).to(torch.float8_e4m3fn) for x in "AB"
    }
    save_file(factors, adapter / "adapter_model.safetensors")
    with pytest.raises(GradfixError, match=f"{adapter}.* is quantised"):
        Checkpoint.open(adapter)


def test_inspect_shows_what_it_would_not_compute_with(folder: Path) -> None:
    assert inspect(folder).facts["quantised"] is None
    assert inspect(_packed(folder, "GPTQ")).facts["quantised"] == f"{LAYER}.qweight holds codes"
