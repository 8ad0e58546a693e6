"""The pages of the documentation that hold Python are run as a reader would."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from gradfix.tasks.base import TASKS
from gradfix.vectors.mask_strategies import STRATEGIES
from gradfix.votes.fast.rules.registry import RULES

DOCS = Path(__file__).parents[1] / "docs"


def run_page(name: str) -> None:
    """Run a page's blocks of Python one after the other, as one program."""
    space: dict[str, Any] = {"__name__": "page"}
    page = (DOCS / name).read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
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


def test_the_examples_of_extending_run() -> None:
    before = [set(registry) for registry in (TASKS, STRATEGIES, RULES)]
    try:
        run_page("extending.md")
        added = [
            set(registry) - old for registry, old in zip((TASKS, STRATEGIES, RULES), before, strict=True)
        ]
        assert added == [{"smoothed-text-classification"}, {"largest"}, {"prelu"}]
    finally:  # what the page registers stays in the page
        for registry, old in zip((TASKS, STRATEGIES, RULES), before, strict=True):
            for name in set(registry) - old:
                del registry[name]
