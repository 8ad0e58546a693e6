"""Experts that are one parameter (PEFT's target_parameters): read as peft merges them."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from gradfix.vectors.task_vector import TaskVector
from tests.adapters import QUIET, save_adapter
from tests.evaluation.families import DECODER, EXPERTS, QWEN_EXPERTS

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")]

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "one parameter": ("Mixtral", dict(EXPERTS), {"target_parameters": BOTH[1:]}),
    "two of one module": ("Mixtral", dict(EXPERTS), {"target_parameters": BOTH, "use_rslora": True}),
    "ranks by pattern": (
        "Qwen3Moe",
        dict(QWEN_EXPERTS),
        {"target_parameters": BOTH, "rank_pattern": {"experts.down_proj": 2}, "target_modules": ["q_proj"]},
    ),
    "input first": (
        "GptOss",
        {**EXPERTS, "head_dim": 8, "intermediate_size": 16, "layer_types": None},
        {"target_parameters": BOTH},
    ),
}


def base(root: Path, kind: str, settings: dict[str, Any]) -> Path:
    config = getattr(transformers, f"{kind}Config")(**{**DECODER, "num_hidden_layers": 2, **settings})
    torch.manual_seed(0)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(root / "base")
    return root / "base"


def adapter(root: Path, where: Path, **settings: Any) -> Path:
    settings = {"r": 4, "target_modules": [], "task_type": "CAUSAL_LM", **settings}
    return save_adapter(root / "adapter", where, "AutoModelForCausalLM", **settings)


@pytest.mark.parametrize("name", KINDS)
def test_experts_are_read_as_peft_merges_them(name: str, tmp_path: Path) -> None:
    kind, shape, settings = KINDS[name]
    place = base(tmp_path, kind, shape)
    saved = adapter(tmp_path, place, **settings)
    model = transformers.AutoModelForCausalLM.from_pretrained(place)
    peft.PeftModel.from_pretrained(model, saved).merge_and_unload().save_pretrained(tmp_path / "merged")
    merged, found, plain = (
        Checkpoint.open(tmp_path / "merged"),
        Checkpoint.open(saved, base=place),
        Checkpoint.open(place),
    )
    assert found.specs.keys() == merged.specs.keys()
    changed = 0
    for tensor in merged:
        torch.testing.assert_close(found[tensor], merged[tensor], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.read(tensor, slice(1, 2)), found[tensor][1:2])
        changed += "expert" in tensor and not torch.equal(merged[tensor], plain[tensor])
    assert changed
    parts = TaskVector.between(place, saved).adapter
    assert parts is not None
    assert "which are no layers' weights" in str(parts.obstacle)


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    kind, shape, settings = KINDS["two of one module"]
    place = base(tmp_path, kind, shape)
    saved = adapter(tmp_path, place, **settings)
    other = base(tmp_path / "other", kind, {**shape, "num_local_experts": 2})
    with pytest.raises(GradfixError, match=r"experts\.gate_up_proj: expected factors of rank 4 for \[2, "):
        Checkpoint.open(saved, base=other)
    dense = base(tmp_path / "dense", "Llama", {})
    with pytest.raises(GradfixError, match=r"has none of the parameters .*give the base it was trained on"):
        Checkpoint.open(saved, base=dense)
    tensors = load_file(saved / "adapter_model.safetensors")
    fewer = {key: value for key, value in tensors.items() if ".base_layer." not in key}
    save_file(fewer, saved / "adapter_model.safetensors")
    with pytest.raises(GradfixError, match=r"expected factors for .*gate_up_proj.*found 1"):
        Checkpoint.open(saved, base=place)


def test_square_experts_of_an_old_peft_are_refused(tmp_path: Path) -> None:
    kind, shape, settings = KINDS["one parameter"]
    place = base(tmp_path, kind, {**shape, "intermediate_size": DECODER["hidden_size"]})
    saved = adapter(tmp_path, place, **settings)
    Checkpoint.open(saved, base=place)
    config = json.loads((saved / "adapter_config.json").read_text())
    (saved / "adapter_config.json").write_text(json.dumps({**config, "peft_version": "0.17.1"}))
    with pytest.raises(GradfixError, match=r"is square.*save the adapter again"):
        Checkpoint.open(saved, base=place)
