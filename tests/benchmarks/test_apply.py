"""The files that benchmarks/apply.py makes are those that the command takes."""

import sys
from pathlib import Path

import pytest

from tests.builders import gradfix

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import apply as bench
import llama_triple


def test_the_command_takes_the_benchmarks_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in {"HIDDEN": 64, "INTERMEDIATE": 96, "HEADS": 8, "KV_HEADS": 4, "VOCABULARY": 50}.items():
        monkeypatch.setattr(llama_triple, name, size)
    models = llama_triple.make_triple(tmp_path, 2, 1 << 16)
    votes = bench.make_votes(tmp_path / "votes.safetensors", models["target"], 2)
    sources = {"--source-base": "base", "--source-tuned": "tuned", "--target-base": "target"}
    asked = [part for option, name in sources.items() for part in (option, models[name])]
    done = gradfix("apply", *asked, "--votes", votes, "--output", tmp_path / "out", "--shard-size", 1 << 16)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
