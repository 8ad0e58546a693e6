"""The demo, with one draw: every row of its table, its files, and the model that it writes."""

import json
from pathlib import Path

import pytest
from PIL import Image
from transformers import CLIPModel

from gradfix.demo import run as module
from gradfix.errors import GradfixError
from gradfix.report import report_of
from tests.builders import gradfix
from tests.report.browser import CHROMIUM, check_page, launched, needs_browser

pytestmark = pytest.mark.slow


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWS", 1)
    monkeypatch.setattr(module, "SAMPLES_PER_CLASS", 2)
    monkeypatch.setattr(module, "SETTINGS", module.SelectionSettings(stops=(3,), most_steps=3, more_rates=()))


def test_the_demos_json_has_every_row_and_its_folder_what_it_says(quick: None, tmp_path: Path) -> None:
    result = gradfix("demo", "--output", tmp_path / "demo", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [row["method"] for row in found["rows"]] == [
        "zero-shot", "naive", "gradfix", "control", "auto", "auto-control", "few-shot", "oracle", "full",
    ]  # fmt: skip
    scores = {row["method"]: row["score"]["value"] for row in found["rows"]}
    assert scores["oracle"] > 0.9 * scores["full"]
    assert scores["gradfix"] > scores["zero-shot"]
    assert scores["auto"] > scores["auto-control"]
    close = found["close_release"]["judgement"]
    assert close["naive"]["score"] > close["control"]["score"]
    assert CLIPModel.from_pretrained(found["model"]).num_parameters() > 600_000
    with Image.open(tmp_path / "demo" / "digits.png") as picture:
        assert picture.width > 1000
    assert "GradFix" in (tmp_path / "demo" / "table.md").read_text()
    assert "█" in result.stderr
    assert found["command"].split()[0] == "gradfix"
    assert len(list((tmp_path / "demo" / "support").rglob("*.png"))) == 20
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page == report_of(tmp_path / "demo")
    assert (tmp_path / "demo" / "model" / "report.html").read_text() == report_of(tmp_path / "demo" / "model")
    if CHROMIUM is None:
        pytest.skip(f"all but the browser was tested: {needs_browser.kwargs['reason']}")
    with launched() as browser:
        check_page(browser, tmp_path / "demo" / "report.html", "report")


def test_only_a_demos_folder_is_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    for options in ([], ["--overwrite"]):
        result = gradfix("demo", "--output", mine, *options)
        assert result.exit_code == 1
        assert (mine / "thesis.tex").exists()
    with pytest.raises(GradfixError, match="not the folder of a demo"):
        module.demo(mine, overwrite=True)
    (mine / "models").mkdir()
    with pytest.raises(GradfixError, match="not the folder of a demo"):
        module.demo(mine, overwrite=True)


def test_a_demo_replaces_what_a_demo_wrote_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    module._make_room(folder, overwrite=False)
    theirs = ("model", "models/old-base", "close-release/model", "support")
    mine = ("model-again", "models/mine", "notes")
    for name in (*theirs, *mine):
        (folder / name).mkdir()
        (folder / name / "file").write_text("text")
    (folder / "table.md").symlink_to(folder / "notes" / "file")
    (folder / "digits.png").write_text("text")
    module._make_room(folder, overwrite=True)
    left = {str(path.relative_to(folder)) for path in folder.rglob("file")}
    assert left == {f"{name}/file" for name in mine}
    assert not (folder / "table.md").is_symlink()
    assert not (folder / "digits.png").exists()
