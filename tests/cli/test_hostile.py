"""What a command line does with recipes that want more than they may, and with ends that nobody foresaw."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from gradfix.cli.command import LONGEST_LINE, one_line, refusals
from gradfix.interrupts import end_at_once
from gradfix.recipes import DemoRecipe, TransportRecipe, load_recipe, recipes
from gradfix.recipes.base import ASKED_EACH_TIME
from tests.cli.test_cli import gradfix, sources
from tests.triples import Triple, save_triple

TRUSTING = (
    "command: transport\nsource_base: a\nsource_tuned: b\ntarget_base: c\noutput: d\ntask: causal-lm\nsupport: e\n"
    "trust_remote_code: true\noverwrite: true\nrestart: true\n"
)


@pytest.fixture(scope="module")
def triple(tmp_path_factory: pytest.TempPathFactory) -> Triple:
    return save_triple("bert", tmp_path_factory.mktemp("triple"))


def test_a_file_never_widens_trust(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(TRUSTING)
    recipe = load_recipe(path)
    assert isinstance(recipe, TransportRecipe)
    assert not (recipe.trust_remote_code)
    assert not (recipe.overwrite)
    assert not (recipe.restart)
    asked = load_recipe(path, trust_remote_code=True, overwrite=True)
    assert isinstance(asked, TransportRecipe)
    assert asked.trust_remote_code
    assert asked.overwrite


def test_every_option_that_runs_code_or_deletes_is_asked_for_each_time() -> None:
    for kind in recipes().values():
        for name in {"trust_remote_code", "overwrite", "restart"} & set(kind.model_fields):
            assert kind.model_fields[name].json_schema_extra == ASKED_EACH_TIME, (kind, name)
    assert DemoRecipe.model_fields["overwrite"].json_schema_extra == ASKED_EACH_TIME


def test_run_takes_trust_from_the_command_line_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setitem(
        __import__("gradfix.cli.command", fromlist=["JOBS"]).JOBS,
        "transport",
        lambda recipe, _: seen.append(recipe.trust_remote_code),
    )
    (tmp_path / "recipe.yaml").write_text(TRUSTING)
    assert gradfix("run", tmp_path / "recipe.yaml").exit_code == 0
    assert gradfix("run", tmp_path / "recipe.yaml", "--trust-remote-code").exit_code == 0
    assert seen == [False, True]


def test_check_names_code_that_a_repository_brings(triple: Triple, tmp_path: Path) -> None:
    content = json.loads((triple.target / "config.json").read_text())
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for path in triple.target.iterdir():
        (hostile / path.name).write_bytes(path.read_bytes())
    (hostile / "config.json").write_text(json.dumps({**content, "auto_map": {"AutoConfig": "evil.Config"}}))
    (hostile / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["evil.Tokenizer", null]}}'
    )
    found = gradfix("check", *sources(triple), "--target-base", hostile)
    assert found.exit_code == 0, found.stderr
    assert "config.json names evil.Config, code of its own repository" in found.stderr
    assert "tokenizer_config.json names ['evil.Tokenizer', None]" in found.stderr


@pytest.mark.parametrize("place", ["target", "target/inside", "."])
def test_an_output_never_replaces_what_is_read(triple: Triple, place: str) -> None:
    root = triple.target.parent
    before = {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}
    end = gradfix(
        "apply", *sources(triple), "--target-base", triple.target, "--output", root / place, "--overwrite"
    )
    assert end.exit_code == 1
    assert "nothing is written over what is read" in end.stderr
    assert {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))} == before


@pytest.mark.parametrize(
    "wrong",
    [
        ["--alpha", "nan"],
        ["--alpha", "inf"],
        ["--alpha", "1e400"],
        ["--shard-size", "inf"],
        ["--shard-size", "1e30GB"],
    ],
)
def test_numbers_that_are_none_are_refused_before_anything_is_read(wrong: list[str], tmp_path: Path) -> None:
    end = gradfix("apply", "--task-vector", "t", "--target-base", "b", "--output", tmp_path / "o", *wrong)
    assert (end.exit_code, len(end.stderr.strip().splitlines())) == (2, 1), end.stderr


def test_an_error_that_nobody_foresaw_is_one_line_and_status_70(
    triple: Triple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("one\ntwo \x1b[31m")

    monkeypatch.setattr("gradfix.arithmetic.add_scaled", fail)
    command = ["apply", *sources(triple), "--target-base", triple.target, "--output", tmp_path / "o"]
    end = gradfix(*command)
    assert end.exit_code == 70
    assert (
        end.stderr.strip().splitlines()[-1].startswith("gradfix apply: unexpected ZeroDivisionError: one two")
    )
    assert "\x1b" not in end.stderr
    assert isinstance(gradfix(*command, "--debug").exception, ZeroDivisionError)


def test_a_message_is_one_readable_line() -> None:
    assert one_line("a\n b\x07\u202ec") == "a b\ufffd\ufffdc"
    assert len(one_line("x" * 10_000)) == LONGEST_LINE


def test_evaluate_and_report_replace_nothing_unasked(triple: Triple, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("mine")
    options = ["--model", triple.target, "--task", "text-classification", "--data", tmp_path / "rows.jsonl"]
    end = gradfix("evaluate", *options, "--output", tmp_path / "notes.json")
    assert (end.exit_code, "exists already" in end.stderr) == (1, True)
    end = gradfix("evaluate", *options, "--output", tmp_path / "missing" / "o.json")
    assert (end.exit_code, "create it first" in end.stderr) == (1, True)
    other = ["--source-base", triple.base, "--source-tuned", triple.tuned, "--target-base", triple.target]
    long = [*other, "--task", "text-classification", "--data", "rows.jsonl", "--test", "rows.jsonl"]
    end = gradfix("compare", *long, "--output", tmp_path / "missing" / "table")
    assert (end.exit_code, "create it first" in end.stderr) == (1, True)
    end = gradfix("evaluate", *options, "--output", tmp_path)
    assert end.exit_code == 1
    assert (tmp_path / "notes.json").read_text() == "mine"


_INTERRUPTED = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of the background has it ignored

class Interrupting:
    before, seen = int(sys.argv.pop()), -1

    def find_spec(self, name, *_):
        self.seen += self.seen >= 0 or name == "gradfix.cli"
        if self.seen == self.before:
            self.seen = -10**9
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from gradfix.__main__ import main
main()
"""


def test_hardly_anything_is_imported_before_an_interrupt_has_its_answer() -> None:
    tell = (
        "import sys; before = set(sys.modules); import gradfix.interrupts; print(*set(sys.modules) - before)"
    )
    found = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, check=True)
    assert not {"typing", "contextlib", "importlib", "re"} & set(found.stdout.split())


def status_of(work: Callable[[], None]) -> int:
    """Do something as a command does it that Ctrl-C may end."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        end_at_once()
        with pytest.raises(typer.Exit) as end, refusals("apply", debug=False):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    return end.value.exit_code


def test_an_interrupt_that_a_library_makes_an_error_of_its_own_stays_one() -> None:
    def interrupted() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ModuleNotFoundError("Could not import module") from None

    assert status_of(interrupted) == 130


def test_an_interrupt_where_python_goes_on_after_any_error_ends_all_the_same(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Tidied:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def interrupted() -> None:
        Tidied()
        time.sleep(60)
        raise AssertionError("it waited to the end")

    hook = sys.unraisablehook
    assert status_of(interrupted) == 130
    assert capfd.readouterr().err == "interrupted\n"
    assert sys.unraisablehook is hook


@pytest.mark.slow
@pytest.mark.parametrize("module", [0, 20, 250, 600])
def test_an_interrupt_during_imports_is_one_line(module: int) -> None:
    end = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, "inspect", "/", str(module)], capture_output=True, text=True
    )
    assert (end.returncode, end.stderr, end.stdout) == (130, "interrupted\n", "")
