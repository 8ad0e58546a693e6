"""A target whose files hold one tensor an expert: filled, moved, and asked for votes as it is stored."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from gradfix.checkpoints import Checkpoint
from gradfix.evaluation.target_model import TargetModel
from gradfix.tasks import get_task
from gradfix.vectors.apply import apply
from gradfix.vectors.masks import mask
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector
from tests import tiny
from tests.models import VOCABULARY
from tests.triples import perturbed

ROWS = [{"prompt": "a photo of", "completion": word} for word in ("good day", "bad night", "red house")]
EXPERT = "model.layers.0.block_sparse_moe.experts.1.w3.weight"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    for name, scale, seed in (("a", 0.0, 0), ("t", 0.05, 1), ("b", 0.05, 2)):
        torch.manual_seed(0)
        perturbed(MixtralForCausalLM(config), scale, seed=seed).save_pretrained(tmp_path / name)
        tiny.tokenizer(pad=False).save_pretrained(tmp_path / name)
    return tmp_path


def loaded(folders: Path) -> TargetModel:
    target = Checkpoint.open(folders / "b")
    task = get_task("causal-lm")
    task.bind(folders / "b")
    return TargetModel.load(task, target, place(TaskVector.between(folders / "a", folders / "t"), target))


def test_the_model_moves_to_what_is_written_and_back(folders: Path) -> None:
    model = loaded(folders)
    before = MixtralForCausalLM.from_pretrained(folders / "b").state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    model.move(model.vector, 0.5)
    apply(model.vector, folders / "b", alpha=0.5, output=folders / "o")
    written = MixtralForCausalLM.from_pretrained(folders / "o").state_dict()
    assert all(torch.equal(value, written[name]) for name, value in model.model.state_dict().items())
    assert EXPERT in model.vector
    assert torch.allclose(model.displacement()[EXPERT], model.vector[EXPERT] * 0.5, atol=1e-6)
    model.restore()
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


def test_experts_vote_under_the_names_of_the_files(folders: Path) -> None:
    model = loaded(folders)
    votes = model.votes(ROWS)
    assert votes.specs.keys() == Checkpoint.open(folders / "b").specs.keys()
    expected = torch.zeros(model.vector.specs[EXPERT].shape)
    clear = torch.ones_like(expected, dtype=torch.bool)  # rounding may decide the sign of almost nothing
    for row in ROWS:
        model.model.zero_grad()
        model.task.loss(model.model, model.task.encode([row])).sum().backward()
        gradient = model.model.model.layers[0].mlp.experts.gate_up_proj.grad[1, 24:]
        expected -= gradient.sign()
        clear &= (gradient == 0) | (gradient.abs() > 1e-6 * gradient.abs().max())
    assert clear.float().mean() > 0.9
    assert torch.equal(votes[EXPERT][clear].float(), expected[clear])
    assert votes[EXPERT].any()
    votes.check_target(Checkpoint.open(folders / "b"))
    kept = mask(model.vector, votes)[EXPERT]
    agree = (expected.sign() == model.vector[EXPERT].sign()) & (expected != 0)
    assert torch.equal((kept != 0)[clear], agree[clear])


def test_the_slope_counts_the_experts(folders: Path) -> None:
    model = loaded(folders)
    slope = model.slope(model.vector, ROWS)
    step = 1e-3
    model.move(model.vector, step)
    after = model.evaluate(ROWS).loss
    model.move(model.vector, -step)
    assert slope == pytest.approx((after - model.evaluate(ROWS).loss) / (2 * step), rel=0.05)


def test_one_expert_may_change_alone(folders: Path) -> None:
    state = load_file(folders / "a" / "model.safetensors")
    save_file(
        {**state, EXPERT: state[EXPERT] + 1}, folders / "t" / "model.safetensors", metadata={"format": "pt"}
    )
    model = loaded(folders)
    model.vote_where(model.vector)
    votes = model.votes(ROWS)
    # experts that share a tensor in memory vote with it
    assert {name.rsplit(".", 2)[1] for name in votes} == {"w1", "w3"}
    one = TaskVector(source=model.vector.source, placement=model.vector.placement, config=model.vector.config)
    model.move(one, 1.0)
    moved = model.model.model.layers[0].mlp.experts.gate_up_proj
    before = MixtralForCausalLM.from_pretrained(folders / "b").model.layers[0].mlp.experts.gate_up_proj
    assert torch.allclose(moved[1, 24:], before[1, 24:] + 1)
    assert torch.equal(moved[0], before[0])


def test_a_vector_of_a_part_of_the_experts_leaves_the_others(folders: Path) -> None:
    model = loaded(folders)
    from gradfix.checkpoints.expressions import Selection

    part = model.vector.derive(Selection(model.vector.source, {EXPERT: EXPERT}))
    model.move(part, 1.0)
    moved = model.model.model.layers[0].mlp.experts.gate_up_proj
    before = MixtralForCausalLM.from_pretrained(folders / "b").model.layers[0].mlp.experts.gate_up_proj
    assert torch.allclose(moved[1, 24:], before[1, 24:] + model.vector[EXPERT], atol=1e-6)
    assert torch.equal(moved[1, :24], before[1, :24])


@pytest.mark.parametrize("spelling", ["in memory", "as stored"])
def test_the_output_is_spelled_as_the_target_is(folders: Path, spelling: str) -> None:
    target = MixtralForCausalLM.from_pretrained(folders / "b")
    target.save_pretrained(folders / "b2", save_original_format=spelling == "as stored")
    apply(TaskVector.between(folders / "a", folders / "t"), folders / "b2", output=folders / "o")
    written, names = (Checkpoint.open(folders / name).specs.keys() for name in ("o", "b2"))
    assert written == names
    assert ("model.layers.0.mlp.experts.gate_up_proj" in written) == (spelling == "in memory")
