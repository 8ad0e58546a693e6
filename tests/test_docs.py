"""The pages of the documentation that hold Python are run as a reader would."""

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gradfix import plugins
from gradfix.votes.fast.rules.registry import RULES

DOCS = Path(__file__).parents[1] / "docs"


def run_page(name: str) -> None:
    """Run a page's blocks of Python one after the other, as one program."""
    space: dict[str, Any] = {"__name__": "page"}
    page = (DOCS / name).read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        module = re.match(r"# (\w+\.py)\n", block)
        if module:  # a file of the reader's, to be imported from where it lies
            Path(module[1]).write_text(block, encoding="utf-8")
        else:
            exec(compile(block, name, "exec"), space)


@pytest.mark.slow
def test_the_examples_of_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page("python.md")
    assert (tmp_path / "digits-on-next" / "report.html").exists()
    first = re.findall(
        r"```python\n(.*?)```", (DOCS / "python.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 8


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((DOCS / "first-transport.ipynb").read_text(encoding="utf-8"))
    space: dict[str, Any] = {"__name__": "notebook"}
    shown = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            *before, last = ast.parse("".join(cell["source"])).body
            assert isinstance(last, ast.Expr)  # a notebook shows it
            exec(compile(ast.Module(before, []), "notebook", "exec"), space)
            value = eval(compile(ast.Expression(last.value), "notebook", "eval"), space)
            shown.append(value._repr_html_())
    assert [html.count("<table>") for html in shown] == [1, 1, 2]


@pytest.mark.slow
def test_the_examples_of_extending_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(plugins, "_registered", {})
    before = set(RULES)
    try:
        run_page("extending.md")
        assert set(RULES) - before == {"prelu"}
        assert plugins.registered("mask") == ["unanimous"]
        own = sys.modules["my_plugins"]
        assert torch.equal(
            own.trimmed([torch.tensor([1.0, 9.0]), torch.tensor([3.0, 5.0]), torch.tensor([2.0, 7.0])]),
            torch.tensor([2.0, 7.0]),
        )
        # What the commands of the page name is what they take.
        page = (DOCS / "extending.md").read_text(encoding="utf-8")
        named = re.findall(r"--(mask|align|methods|method|metric) (my_plugins:\S+)", page)
        kinds = {
            "mask": "mask",
            "methods": "mask",
            "align": "alignment",
            "method": "merge",
            "metric": "metric",
        }
        found = [plugins.find(kinds[option], text) for option, text in named]
        assert len(found) == 5
        assert found[-1]("The cat", "the dog") == 0.0
    finally:  # what the page registers stays in the page
        sys.modules.pop("my_plugins", None)
        for name in set(RULES) - before:
            del RULES[name]
