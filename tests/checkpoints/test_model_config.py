"""Configurations are held against what models have before anyone reads of them."""

import json
from pathlib import Path

import pytest
import torch

from gradfix.checkpoints import CheckpointWriter, TensorSpec, write_safetensors
from gradfix.checkpoints.architecture import architecture_of
from gradfix.checkpoints.lora.config import read_lora_config
from gradfix.checkpoints.model_config import read_model_config
from gradfix.errors import GradfixError


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 2**31}, "2147483648 layers, at most 1000"),
        ({"text_config": {"n_layer": 10**6}}, "text_config: n_layer: 1000000 layers"),
        ({"hidden_size": 2**40}, "hidden_size: 1099511627776"),
        ({"num_experts": -7}, "num_experts: -7"),
        ({"dtype": "bfloat61"}, "dtype: expected a number format of torch"),
        ({"torch_dtype": "nn"}, "torch_dtype: expected a number format"),
        ({"architectures": "Bert"}, "architectures: input should be a valid list"),
        ({"id2label": {"zero": "a"}}, "id2label.*valid integer"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"text_config": []}, "text_config"),
    ],
)
def test_a_key_that_no_model_has_so_is_named(config: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(GradfixError, match=f"config.json: .*{message}"):
        read_model_config(tmp_path / "config.json")


def test_odd_but_real_configurations_pass(tmp_path: Path) -> None:
    config = {
        "time_step_limit": [0.0, float("inf")],
        "id2label": {"0": 0, "1": None},
        "vision_feature_layer": -2,
        "dtype": "auto",
        "architectures": None,
        "max_position_embeddings": -1,
        "torch_dtype": "torch.float16",
        "auto_map": {"AutoModel": "a.B"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_model_config(tmp_path / "config.json") == config


def test_a_model_without_end_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradfix.checkpoints.architecture.bounded_build.__wrapped__.__defaults__", (100,))
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 5}
    assert architecture_of({"architectures": ["BertModel"], "num_hidden_layers": 99, **sizes}) is None


def test_a_pattern_that_takes_for_ever_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"(a|aa)+b": 3}})
    )
    config = read_lora_config(path)
    assert config.rank_of("model.aab") == 3
    with pytest.raises(GradfixError, match=r"pattern of modules .*takes more than"):
        config.rank_of("a" * 200)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2]
)
def test_no_writer_writes_a_number_that_is_none(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    block = torch.tensor([1.0, value]).to(dtype)
    specs = {"w": TensorSpec(dtype, (2,))}
    with pytest.raises(GradfixError, match="w: 1 numbers are infinite or not a number"):
        write_safetensors(tmp_path / "a.safetensors", specs, lambda _: [block], {})
    with (
        pytest.raises(GradfixError, match="w: 1 numbers are infinite or not a number"),
        CheckpointWriter(tmp_path / "out", specs, identity={}) as writer,
    ):
        writer.write("w", [block])
    assert not list(tmp_path.iterdir())
