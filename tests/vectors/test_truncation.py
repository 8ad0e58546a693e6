"""Any vector as an adapter: the best factors of each matrix, and everything else saved whole or left out."""

import json
import re
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.lora.truncated import truncate
from gradfix.errors import GradfixError
from gradfix.vectors.task_vector import TaskVector
from gradfix.vectors.truncation import Extraction
from tests.adapters import QUIET
from tests.builders import gradfix
from tests.triples import Triple, save_triple

pytestmark = [*QUIET]


def decaying(outputs: int, inputs: int, seed: int = 0) -> torch.Tensor:
    """A matrix whose singular values fall slowly, as those of fine-tunes do."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(outputs, inputs, generator=generator)
    u, sigma, v = torch.linalg.svd(matrix, full_matrices=False)
    return u * (sigma / torch.arange(1, len(sigma) + 1) ** 0.5) @ v


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (7, 5), (1, 9)])
@pytest.mark.parametrize("rank", [1, 8, 1000])
def test_factors_keep_as_much_as_the_exact_decomposition(shape: tuple[int, int], rank: int) -> None:
    matrix = decaying(*shape)
    up, down = truncate(matrix, rank=rank)
    assert up.shape[1] == down.shape[0] == min(rank, *shape)
    exact = torch.linalg.svdvals(matrix.double())
    best = float(exact[: up.shape[1]].square().sum())
    kept = float((up @ down).double().square().sum())
    assert kept > 0.999 * best
    torch.testing.assert_close(up.T @ up, down @ down.T, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_energy_is_reached_by_the_smallest_rank(energy: float) -> None:
    matrix = decaying(120, 90)
    up, down = truncate(matrix, energy=energy)
    squares = torch.linalg.svdvals(matrix.double()).square()
    shares = squares.cumsum(0) / squares.sum()
    smallest = int((shares < energy * (1 - 1e-5)).sum()) + 1
    assert abs(up.shape[1] - smallest) <= 1
    assert float((up @ down).double().square().sum() / squares.sum()) > energy - 1e-3
    few, _ = truncate(matrix, rank=3, energy=energy)
    assert few.shape[1] == 3


def test_a_matrix_of_zeros_has_no_factors() -> None:
    assert truncate(torch.zeros(4, 6), rank=2)[0].shape == (4, 0)


def adapted(triple: Triple, output: Path, base: Path) -> nn.Module:
    return peft.PeftModel.from_pretrained(triple.load(base), output).eval()


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2", "llama", "qwen2", "clip", "vit"])
def test_of_full_rank_peft_merges_it_to_the_tuned_model(family: str, tmp_path: Path) -> None:
    triple = save_triple(family, tmp_path)
    result = gradfix(
        "extract", "--source-base", triple.base, "--source-tuned", triple.tuned, "--energy", 1, "--output",
        tmp_path / "out", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    merged = adapted(triple, tmp_path / "out", triple.base).merge_and_unload()
    tuned = dict(triple.load(triple.tuned).named_parameters(remove_duplicate=False))
    before = dict(triple.load(triple.base).named_parameters(remove_duplicate=False))
    left = set(facts["left_out"])
    changed = [name for name, _ in triple.load(triple.base).named_parameters()]
    total = lost = 0.0
    for name, value in merged.state_dict().items():
        if name not in tuned:
            continue  # a buffer
        change = float((tuned[name] - before[name]).detach().double().square().sum()) * (name in changed)
        total += change
        if torch.equal(value, before[name]):
            lost += change
            continue
        torch.testing.assert_close(
            value, tuned[name], rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text
        )
    assert facts["retained"] == pytest.approx(1 - lost / total, abs=1e-3)
    assert (lost > 0) == bool(left), (left, lost)


def test_the_retained_share_is_told_by_layer_and_in_total(tmp_path: Path) -> None:
    triple = save_triple("llama", tmp_path)
    tau = TaskVector.between(triple.base, triple.tuned)
    found = Extraction(tau, Checkpoint.open(triple.base), rank=2, whole="leave")
    output = found.output(1.0)
    kept = whole = 0.0
    for name in tau.specs:
        square = float(tau.read(name).double().square().sum())
        whole += square
        if name in output.facts:
            exact = torch.linalg.svdvals(tau.read(name).double()).square()
            retained = output.facts[name].retained
            assert retained == pytest.approx(float(exact[:2].sum()) / square, rel=1e-3)
            assert output.facts[name].rank == 2
            kept += retained * square
        else:
            assert name in output.left_out
    assert output.retained == pytest.approx(kept / whole, rel=1e-6)
    # the vector says what the adapter does
    name = next(iter(output.facts))
    assert torch.linalg.matrix_rank(found.vector.read(name)) == 2
    part = slice(1, 5)
    torch.testing.assert_close(found.vector.read(name, part), found.vector.read(name)[part])


@pytest.mark.slow
def test_apply_writes_an_adapter_of_a_masked_vector(tmp_path: Path) -> None:
    triple = save_triple("bert", tmp_path)
    common = ["--source-base", triple.base, "--source-tuned", triple.tuned, "--target-base", triple.target]
    shared = [*common, "--mask", "random", "--alpha", 0.5]
    dense = gradfix("apply", *shared, "--output", tmp_path / "dense")
    thin = gradfix(
        "apply", *shared, "--output", tmp_path / "thin", "--output-format", "lora", "--energy", 1, "--json"
    )
    assert (dense.exit_code, thin.exit_code) == (0, 0), dense.stderr + thin.stderr
    assert "of the squared norm is retained" in thin.stderr
    facts = json.loads(thin.stdout)
    assert 0.3 < facts["kept_share"] < 0.7
    merged = adapted(triple, tmp_path / "thin", triple.target).merge_and_unload().state_dict()
    expected = triple.load(tmp_path / "dense").state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_merge_writes_an_adapter(tmp_path: Path) -> None:
    triple = save_triple("llama", tmp_path)
    for name in ("one", "two"):
        made = gradfix(
            "diff", "--source-base", triple.base, "--source-tuned", triple.tuned, "--output", tmp_path / name
        )
        assert made.exit_code == 0, made.stderr
    vectors = ["--task-vector", tmp_path / "one", "--task-vector", tmp_path / "two"]
    asked = [
        *vectors,
        "--target-base",
        triple.target,
        "--output-format",
        "lora",
        "--output",
        tmp_path / "out",
    ]
    assert gradfix("merge", *asked).exit_code == 2
    result = gradfix("merge", *asked, "--rank", 4, "--whole", "leave")
    assert result.exit_code == 0, result.stderr
    assert "left out, an adapter has nothing for it" in result.stderr
    keys = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all("lora_" in key for key in keys)
    assert adapted(triple, tmp_path / "out", triple.target) is not None


def test_what_no_adapter_can_say_is_refused(tmp_path: Path) -> None:
    triple = save_triple("bert", tmp_path)
    config = json.loads((triple.base / "config.json").read_text())
    (triple.base / "config.json").write_text(json.dumps({**config, "architectures": ["Unheard"]}))
    tau = TaskVector.between(triple.base, triple.tuned)
    with pytest.raises(GradfixError, match="its layers are not known and no adapter"):
        Extraction(tau, Checkpoint.open(triple.base), rank=2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--rank", 4], "--rank: only with --output-format lora"),
        (["--output-format", "lora"], "give --rank or --energy"),
        (
            ["--output-format", "lora", "--rank", 4, "--rounding", "stochastic"],
            "--rounding: .*writes no weights",
        ),
    ],
)
def test_options_that_say_nothing_together_are_refused(
    options: list[object], reason: str, tmp_path: Path
) -> None:
    result = gradfix(
        "apply", "--source-base", "a", "--source-tuned", "b", "--target-base", "c", "--output", tmp_path / "d", *options
    )  # fmt: skip
    assert result.exit_code == 2
    assert re.search(reason, result.stderr), result.stderr
