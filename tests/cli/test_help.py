"""What a user meets first: help, version, completion, and where results and progress go."""

import inspect
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from gradfix import __version__
from gradfix.cli.console import Console
from gradfix.recipes import load_recipe, recipes
from gradfix.recipes.fields import COLUMNS
from gradfix.recipes.groups import FIRST, GROUPS, MATTER_FIRST, group_of
from gradfix.recipes.transport import TransportRecipe
from gradfix.tasks.base import TASKS
from tests import tiny
from tests.builders import gradfix


def test_the_version_by_every_door() -> None:
    assert gradfix("--version").stdout == f"gradfix {__version__}\n"
    module = subprocess.run(
        [sys.executable, "-m", "gradfix", "--version"],
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert module.stdout == f"gradfix {__version__}\n"
    assert "--install-completion" in gradfix("-h").stdout


@pytest.mark.parametrize("command", sorted(recipes()))
def test_help_lists_each_option_once_under_a_heading(command: str) -> None:
    kind = recipes()[command]
    words = command.split()
    shown = gradfix(*words, "-h").stdout
    assert shown == gradfix(*words, "--help").stdout
    named = [name for names in GROUPS.values() for name in names]
    assert len(set(named)) == len(named)
    required = {name for name, field in kind.model_fields.items() if field.is_required()}
    for name, field in kind.model_fields.items():
        if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("argument")):
            assert f"\n  --{name.replace('_', '-')} " in shown, name
    first = [name for name in kind.model_fields if group_of(kind, name) == FIRST]
    assert command not in MATTER_FIRST or len(first) <= 10, first
    assert required <= set(first)


def test_help_names_the_columns_of_each_task() -> None:
    assert COLUMNS.keys() == TASKS.keys()
    shown = gradfix("transport", "-h").stdout
    for name, columns in COLUMNS.items():
        assert f"{name}  " in shown
        assert columns in shown
        parameters = inspect.signature(TASKS[name]).parameters.values()
        roles = {each.name for each in parameters if each.kind is not each.KEYWORD_ONLY}
        assert roles <= set(columns.replace(",", " ").replace(";", " ").split()), roles


def test_what_was_measured_is_on_stdout(tmp_path: Path) -> None:
    model = tiny.save_tiny_bert_classifier(tmp_path / "model")
    data = tmp_path / "d.csv"
    data.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in tiny.texts(9)))
    asked = ["evaluate", "--model", model, "--task", "text-classification", "--data", data]
    result = gradfix(*asked)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("accuracy ")
    assert "accuracy" not in result.stderr
    machine = gradfix(*asked, "--json")
    assert machine.stdout.startswith("{")
    assert "accuracy" in machine.stderr


def test_one_bar_at_a_time() -> None:
    written = io.StringIO()
    with Console(as_json=False) as console:
        console.err = RichConsole(file=written, force_terminal=True, width=80)
        for number in range(3):
            console.progress("trying GradFix", number, 3, "parts")
            console.progress("counting votes", 10 * number, 20, "samples")
        assert console._bars is not None
        assert [task.description for task in console._bars.tasks if task.visible] == ["counting votes"]
        console.progress("trying GradFix", 3, 3, "parts")
        assert [task.description for task in console._bars.tasks if task.visible] == ["trying GradFix"]
    assert "3 of 3 parts" in written.getvalue()


def test_without_a_terminal_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    written, now = io.StringIO(), [0.0]
    monkeypatch.setattr("gradfix.cli.console.time.monotonic", lambda: now[0])
    with Console(as_json=False) as console:
        console.err = RichConsole(file=written, width=80)
        for second in range(100):
            now[0] = float(second)
            console.progress("comparing", second, 100, "draws")
    assert written.getvalue().splitlines() == [f"comparing: {n} of 100 draws" for n in (30, 60, 90)]


def test_a_recipe_may_write_numbers_as_numbers(tmp_path: Path) -> None:
    head = "command: transport\ntask: causal-lm\nsource_base: a\nsource_tuned: b\ntarget_base: c\noutput: d\n"
    path = tmp_path / "recipe.yaml"
    for written, alphas in (("0.3", [0.3]), ("1", [1.0]), ("[0, 0.5]", [0.0, 0.5]), ("0,0.5", [0.0, 0.5])):
        path.write_text(f"{head}alpha: {written}\n")
        recipe = load_recipe(path)
        assert isinstance(recipe, TransportRecipe)
        assert recipe.alphas() == alphas
    path.write_text(f"{head}label: [0, '1', two]\n")
    assert load_recipe(path).model_dump()["label"] == ["0", "1", "two"]
    path.write_text(f"{head}label: [yes, no]\n")
    with pytest.raises(Exception, match="label: found True: put names in quotes"):
        load_recipe(path)
