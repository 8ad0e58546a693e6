"""Functions of the user's own: how they are found, what their parameters may be, and who may name them."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gradfix import plugins
from gradfix.errors import GradfixError
from gradfix.plugins import find, identity, is_path, named, register
from gradfix.recipes import load_recipe

SOURCE = """
def plain(prediction, reference):
    return float(prediction == reference)

def weighted(prediction, reference, *, share: float, near=2, name: str = "a", flag=False, length: int | None = None):
    return share, near, name, flag, length

def broken(prediction, reference):
    return {}["missing"]

def few(prediction):
    return 1.0

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the working directory, which is not on the path."""
    (tmp_path / "my_plugins.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield "my_plugins"
    sys.modules.pop("my_plugins", None)


@pytest.fixture(autouse=True)
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_registered", {})


def test_a_function_is_found_in_the_working_directory_and_reads_its_parameters(module: str) -> None:
    assert find("metric", f"{module}:plain")("a", "a") == 1.0
    read = find("metric", f"{module}:weighted, share=1, near=3, name=3, flag=true, length=null")("a", "b")
    assert read == (1.0, 3, "3", True, None)
    assert [type(value) for value in read[:4]] == [float, int, str, bool]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "absent_module:top",
            r"there is no module 'absent_module': expected absent_module\.py in .*, in a folder",
        ),
        ("my_plugins:plian", "my_plugins has no 'plian'; it has plain"),
        ("my_plugins:number", "expected a function, found a int"),
        ("my_plugins:weighted", "can't be called as .*'share'"),
        ("my_plugins:weighted,share=much", "parameter share: input should be a valid number.*found 'much'"),
        (
            "my_plugins:weighted,share=1,shade=2",
            "has no parameter 'shade'; it has share, near, name, flag, length",
        ),
        ("my_plugins:weighted,share", "expected parameter=value after a comma, found 'share'"),
        ("my_plugins:few", "can't be called as .*too many positional arguments"),
        ("f2", "metric 'f2': unknown; choose from accuracy, or name a function of yours as module:function"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(module: str, text: str, told: str) -> None:
    with pytest.raises(GradfixError, match=told) as refused:
        find("metric", text, known=["accuracy"])
    assert "\n" not in str(refused.value)


def test_what_a_plugin_raises_names_the_plugin(module: str) -> None:
    with pytest.raises(GradfixError, match=f"{module}:broken: raised KeyError: 'missing'"):
        find("metric", f"{module}:broken")("a", "b")


def test_a_module_that_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_failing.py").write_text("import absent_dependency")
    with pytest.raises(
        GradfixError, match=r"can't be imported \(ModuleNotFoundError: No module.*absent_dependency"
    ):
        find("metric", "my_failing:f")


def test_registered_functions_go_by_their_name() -> None:
    @register("metric")
    def close_to(prediction: float, reference: float, *, near: float = 1.0) -> float:
        return float(abs(prediction - reference) <= near)

    assert find("metric", "close-to,near=0.5")(1.0, 1.6) == 0.0
    assert named("metric", close_to) == "close-to"
    with pytest.raises(GradfixError, match="mask 'close-to': unknown"):
        find("mask", "close-to")
    with pytest.raises(GradfixError, match="register: 'masks': expected one of mask"):
        register("masks")  # type: ignore[arg-type]


def test_a_function_in_memory_is_named_by_its_place_or_registered(module: str) -> None:
    function: Callable[..., float] = find("metric", f"{module}:plain").function
    assert named("metric", function) == f"{module}:plain"

    def local(prediction: str, reference: str) -> float:
        return 0.5

    assert find("metric", named("metric", local))("a", "b") == 0.5
    with pytest.raises(GradfixError, match="expected a name or a function, found a int"):
        named("metric", 3)  # type: ignore[arg-type]


def test_another_source_is_another_identity(module: str, tmp_path: Path) -> None:
    before = identity("metric", f"{module}:plain")
    assert before != identity("metric", f"{module}:weighted,share=1")
    (tmp_path / "my_plugins.py").write_text(SOURCE + "\n# changed\n")
    assert identity("metric", f"{module}:plain") != before


@pytest.mark.parametrize(
    "text", ["agreement", "C:\\folder", "C:/folder", "a b:c", "owner/name", "a:", ":a", "1:2"]
)
def test_what_is_no_path_to_a_function(text: str) -> None:
    assert not is_path(text)


@pytest.mark.parametrize("line", ["mask: my_plugins:plain", "task: my_plugins:make,a=1", "align: a.b:c"])
def test_a_recipe_runs_no_function_by_itself(tmp_path: Path, line: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "command: transport\nsource_base: a\nsource_tuned: b\ntarget_base: c\noutput: d\nsupport: e\n"
        + ("" if "task" in line else "task: causal-lm\n")
        + line
    )
    with pytest.raises(
        GradfixError, match=r"names a function, and a recipe does not run code.*--trust-plugins"
    ):
        load_recipe(path)
