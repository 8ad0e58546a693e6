"""`gradfix inspect` beside the same facts computed plainly from all tensors at once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gradfix.checkpoints.architecture import checkpoint_names
from gradfix.errors import GradfixError
from gradfix.transport.inspection import by_block, inspect
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes
from tests.builders import gradfix
from tests.triples import Triple, random_votes, save_triple


@pytest.fixture(scope="module")
def triple(tmp_path_factory: pytest.TempPathFactory) -> Triple:
    return save_triple("bert", tmp_path_factory.mktemp("models"))


def votes_file(triple: Triple, path: Path) -> Votes:
    model = triple.load(triple.target)
    votes = random_votes(model).renamed(checkpoint_names(model))
    votes.save(path)
    return votes


def found(*arguments: Any) -> tuple[dict[str, Any], str]:
    result = gradfix("inspect", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def test_votes(triple: Triple, tmp_path: Path) -> None:
    votes = votes_file(triple, tmp_path / "votes.safetensors")
    said, printed = found(tmp_path / "votes.safetensors")
    everything = torch.cat([votes[name].flatten().float() for name in votes])
    assert said["kind"] == "votes"
    assert said["facts"]["ties"] == pytest.approx((everything == 0).float().mean().item())
    assert said["facts"]["mean margin"] == pytest.approx(everything.abs().mean().item() / 5)
    for name, facts in said["tensors"].items():
        assert facts["ties"] == pytest.approx((votes[name] == 0).float().mean().item())
        assert facts["margin"] == pytest.approx(votes[name].abs().float().mean().item() / 5)
    assert "samples: 5" in printed
    assert "--votes" in printed


def test_a_task_vector(triple: Triple, tmp_path: Path) -> None:
    tau = TaskVector.between(str(triple.base), str(triple.tuned))
    tau.save(tmp_path / "tau.safetensors")
    said, printed = found(tmp_path / "tau.safetensors")
    assert said["kind"] == "task vector"
    assert said["facts"]["norm"] == pytest.approx(tau.norm())
    for name, facts in said["tensors"].items():
        assert facts["norm"] == pytest.approx(tau[name].norm().item(), rel=1e-5)
        assert facts["kept"] == pytest.approx((tau[name] != 0).float().mean().item())
    assert "norm" in printed


def test_an_output_of_apply_tells_what_was_kept(triple: Triple, tmp_path: Path) -> None:
    votes = votes_file(triple, tmp_path / "votes.safetensors")
    applied = gradfix(
        "apply", "--source-base", triple.base, "--source-tuned", triple.tuned, "--target-base", triple.target,
        "--votes", tmp_path / "votes.safetensors", "--output", tmp_path / "out",
    )  # fmt: skip
    assert applied.exit_code == 0, applied.stderr
    said, printed = found(tmp_path / "out")
    tau = TaskVector.between(str(triple.base), str(triple.tuned))
    assert said["kind"] == "transport"
    facts = json.loads((tmp_path / "out" / "gradfix.json").read_text())["applied"]["tensors"]
    for name in tau:
        kept = (tau[name].sign() == votes[name].sign()) & (tau[name] != 0)
        assert said["tensors"][name]["kept"] == pytest.approx(
            kept.sum().item() / (tau[name] != 0).sum().item()
        )
        assert said["tensors"][name]["norm_kept"] == pytest.approx((tau[name] * kept).norm().item(), rel=1e-4)
        # gathered while the weights were written, beside the same counted from the whole file
        assert facts[name]["voted"] == votes[name].numel()
        assert facts[name]["tied"] == (votes[name] == 0).sum().item()
        assert facts[name]["net"] == votes[name].abs().sum().item()
    assert "kept" in printed


def test_a_plain_checkpoint_gets_a_helpful_answer(triple: Triple) -> None:
    said, printed = found(triple.target)
    assert said["kind"] == "checkpoint"
    assert said["facts"]["elements"] == sum(facts["elements"] for facts in said["tensors"].values())
    assert "gradfix diff" in printed


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    assert gradfix("inspect", tmp_path / "nowhere.safetensors").exit_code == 1
    (tmp_path / "gradfix.json").write_text('{"applied": 3}')
    with pytest.raises(GradfixError, match=r"gradfix\.json: damaged: gradfix: Field required"):
        inspect(tmp_path)


def test_a_block_adds_norms_as_lengths_and_shares_by_elements() -> None:
    (block,) = by_block({
        "h.0.mlp.c_fc.weight": {"elements": 30, "norm": 3.0, "kept": 0.1},
        "h.0.mlp.c_proj.weight": {"elements": 10, "norm": 4.0, "kept": 0.5},
    })  # fmt: skip
    assert (block.name, block.tensors, block.elements) == ("0", 2, 40)
    assert block.value("norm") == pytest.approx(5.0)
    assert block.value("kept") == pytest.approx(0.2)
    assert block.value("ties") is None
