"""Outputs pushed to a Hub on this machine: private, refused beforehand, and on the disk where the push fails."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from gradfix.checkpoints.writing.publishing import pushing
from gradfix.errors import GradfixError
from gradfix.recipes import ApplyRecipe, TransportRecipe, load_recipe, validate
from tests.builders import gradfix
from tests.fake_hub import FakeHub, serve, use
from tests.triples import Triple, save_triple

ANNA = {"name": "anna", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "write"}}}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    found = FakeHub()
    found.users = {"hf_anna": ANNA, "hf_reader": {"name": "bob", "auth": {"accessToken": {"role": "read"}}}}
    with serve(found) as endpoint:
        use(endpoint, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        yield found


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    (folder / "sub").mkdir(parents=True)
    (folder / "README.md").write_text("---\ntags: [gradfix]\n---\n# card\n")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "sub" / "empty.json").write_text("{}")
    return folder


@pytest.mark.parametrize(("repository", "name"), [("lab/moved", "lab/moved"), ("moved", "anna/moved")])
def test_an_output_is_pushed_into_a_private_repository(
    repository: str, name: str, hub: FakeHub, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_anna")
    told: list[str] = []
    with pushing(repository, output, told.append):
        assert not hub.commits
    (files,) = hub.commits[name].values()
    assert files == {
        path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()
    }
    assert hub.private == {name}
    assert told[0].endswith(f"/{name}")


@pytest.mark.parametrize(
    ("token", "repository", "why"),
    [
        (None, "lab/moved", "there is no token: log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "lab/moved", "the Hub does not take the token"),
        ("hf_reader", "bob/moved", "the token of bob may only read"),
        ("hf_anna", "others/moved", "the token is of anna, lab; give one of these in front of the name"),
    ],
)
def test_what_can_not_be_pushed_is_refused_beforehand(
    token: str | None, repository: str, why: str, hub: FakeHub, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    done = []
    with pytest.raises(GradfixError, match=why), pushing(repository, output):
        done.append("hours of work")
    assert not done
    assert not hub.commits


def test_where_a_push_fails_the_output_stays_and_the_command_is_told(
    hub: FakeHub, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_anna")
    hub.full = True
    again = f"push it with: hf upload lab/moved {output} . --private"
    told = f"is written, but could not be pushed .*{again}"
    with pytest.raises(GradfixError, match=told), pushing("lab/moved", output):
        pass
    assert (output / "model.safetensors").exists()


def test_commands_that_write_models_push_them(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triple: Triple = save_triple("bert", tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_anna")
    options: dict[str, Any] = {
        "--source-base": triple.base, "--source-tuned": triple.tuned, "--target-base": triple.target,
        "--output": tmp_path / "out", "--push-to-hub": "lab/moved",
    }  # fmt: skip
    asked = [part for pair in options.items() for part in pair]
    checked = gradfix("check", *asked)
    assert checked.exit_code == 0, checked.output
    assert not hub.commits
    made = gradfix("apply", *asked)
    assert made.exit_code == 0, made.output
    assert "pushed to http://" in made.stderr
    (files,) = hub.commits["lab/moved"].values()
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused = gradfix("check", *asked)
    assert refused.exit_code == 1
    assert "does not take the token" in " ".join(refused.output.split())


def test_a_recipe_pushes_nothing_by_itself(tmp_path: Path) -> None:
    places = {"source_base": "a", "source_tuned": "b", "target_base": "c", "output": str(tmp_path / "out")}
    recipe = validate(ApplyRecipe, {**places, "push_to_hub": "lab/moved"}, "test")
    (tmp_path / "recipe.yaml").write_text(recipe.dump())
    assert load_recipe(tmp_path / "recipe.yaml").pushed_to is None
    for wrong in ("a/b/c", "with blank", "-dash", "a..b"):
        with pytest.raises(GradfixError, match="push_to_hub: "):
            validate(TransportRecipe, {**places, "task": "causal-lm", "push_to_hub": wrong}, "test")
