"""A part of the matrix of docs/compatibility.md: commands against independent arithmetic on state dicts."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import matrix

PART = {
    "Mixtral": ("in-memory names", "wrapped names"),
    "ViT": ("raw state dict", "LoRA"),
    "GPT-NeoX": ("raw state dict",),
    "Gemma 3": ("in-memory names",),
    "Qwen2": ("shards", "raw state dict"),
}


@pytest.fixture(scope="module", params=PART)
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, "matrix.Bench"]]:
    with matrix.quiet():
        yield request.param, matrix.Bench(matrix.FAMILIES[request.param], tmp_path_factory.mktemp("matrix"))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("command", ["apply", "merge"])
def test_what_is_written_is_what_arithmetic_says(bench: tuple[str, "matrix.Bench"], command: str) -> None:
    family, models = bench
    for way in PART[family]:
        with matrix.quiet():
            cell = models.run(way, command)
        assert (way, cell) == (way, matrix.Cell("right"))


def test_a_wrong_tensor_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradfix.arithmetic.add_scaled", lambda base, delta, alpha: base)
    with matrix.quiet():
        assert (
            matrix.Bench(matrix.FAMILIES["Llama"], tmp_path).run("save_pretrained", "apply").verdict
            == "WRONG"
        )
