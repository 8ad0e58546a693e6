import hashlib
import json
import os

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from gradfix.errors import GradfixError
from gradfix.tasks.data import Row, load_rows, origin, row_hash
from gradfix.tasks.data_files import read_text
from gradfix.tasks.repeated_rows import distinct
from tests import tiny

ROWS = [{"text": "good film", "label": "positive"}, {"text": "bad, film", "label": "negative"}]


@pytest.fixture(autouse=True)
def no_network_and_no_cache(monkeypatch, tmp_path):
    """Every read may write only into its own scratch directory."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "must-stay-empty")
    yield
    assert not (tmp_path / "must-stay-empty").exists()


def save(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind in {"csv", "tsv"}:
        mark = {"csv": ",", "tsv": "\t"}[kind]
        path.write_text(
            mark.join(["text", "label"]) + "".join(f'\n"{r["text"]}"{mark}{r["label"]}' for r in ROWS)
        )
    else:
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    rows = load_rows(save(tmp_path, kind))
    assert [dict(row) for row in rows] == ROWS
    assert rows.column_names == ["text", "label"]
    assert [row_hash(row) for row in rows] == [row_hash(row) for row in ROWS]
    place = {"jsonl": "line 2", "csv": "line 3", "tsv": "line 3"}.get(kind, "row 1")
    assert rows[1].origin == f"{place} of {tmp_path / f'rows.{kind}'}"


def test_reading_leaves_nothing_behind(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    rows = load_rows(save(tmp_path, "jsonl"))
    assert not os.listdir(scratch)
    assert rows[0]["text"] == "good film"
    assert datasets.utils.are_progress_bars_disabled() is False


def test_a_file_changed_in_place_is_read_anew(tmp_path):
    path = save(tmp_path, "jsonl")
    load_rows(path)
    path.write_text(path.read_text().replace("good", "fine"))
    assert load_rows(path)[0]["text"] == "fine film"


def test_chosen_rows_keep_their_origin(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"text": str(n), "label": n}) + "\n" for n in range(9)))
    rows = load_rows(path)
    chosen = rows.select([7, 2]).select([1])
    assert len(chosen) == 1
    assert chosen[0].origin == f"line 3 of {path}"
    assert [row["label"] for row in rows[6:]] == [6, 7, 8]
    assert rows[6:][-1].origin == f"line 9 of {path}"
    assert origin({"text": "x"}, 4) == "row 4"


def test_an_image_folder_has_its_folders_as_classes(tmp_path):
    folder = tiny.save_image_folder(tmp_path / "shots", tiny.images(5, labels=("red", "blue")))
    rows = load_rows(folder)
    assert rows.class_names == {"label": ["blue", "red"]}
    assert sorted(row["label"] for row in rows) == ["blue", "blue", "red", "red", "red"]
    assert all(row["image"]["path"].endswith(".png") for row in rows)


def test_a_directory_that_datasets_wrote_keeps_its_splits_and_names(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    data = {"text": list("abcd"), "label": [1, 0, -1, 1]}
    splits = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict(data, features=features) for name in ("train", "test")}
    )
    splits.save_to_disk(tmp_path / "saved")
    with pytest.raises(GradfixError, match=r"has several splits \(train, test\); name one"):
        load_rows(tmp_path / "saved")
    rows = load_rows(tmp_path / "saved", split="test")
    assert [row["label"] for row in rows] == ["yes", "no", None, "yes"]
    assert [row["text"] for row in load_rows(tmp_path / "saved", split="test[1:3]")] == ["b", "c"]
    assert [row["text"] for row in load_rows(tmp_path / "saved", split="test[:50%]")] == ["a", "b"]
    with pytest.raises(GradfixError, match=r"has no split 'dev', only train, test"):
        load_rows(tmp_path / "saved", split="dev")


def test_unreadable_data_is_refused(tmp_path):
    empty, broken, other = tmp_path / "empty.jsonl", tmp_path / "broken.jsonl", tmp_path / "rows.xlsx"
    empty.write_text("")
    broken.write_text('{"text": "a"}\n{"text": ')
    other.write_text("x")
    (tmp_path / "nothing").mkdir()
    for location, message in [
        (tmp_path / "none.jsonl", "none.jsonl: no such file or directory"),
        ("none.csv", "none.csv: no such file or directory"),
        (broken, r"broken.jsonl: line 2: is not json: Expecting value \(column 10\)"),
        (other, r"unknown kind of file '.xlsx'; expected .csv, .json"),
        (empty, "empty.jsonl: holds no rows"),
        (tmp_path / "nothing", "nothing: cannot be read as data"),
    ]:
        with pytest.raises(GradfixError, match=message) as caught:
            load_rows(location)
        assert "\n" not in str(caught.value)


def test_a_hash_is_of_the_columns_that_count(tmp_path):
    row = {"text": "good", "label": 1, "id": 7}
    text = '{"label":1,"text":"good"}'
    assert row_hash(row, ["text", "label"]) == hashlib.sha256(text.encode()).hexdigest()
    assert row_hash(row, ["label", "text"]) == row_hash({"label": 1, "text": "good"})
    assert row_hash(row) != row_hash(row, ["text", "label"])
    assert row_hash({"text": "é"}) != row_hash({"text": "e"})
    values = torch.arange(4.0)
    assert row_hash({"x": values}) == row_hash({"x": torch.arange(8.0)[:4]})
    for other in (values + 1, values.reshape(2, 2), values.bfloat16()):
        assert row_hash({"x": values}) != row_hash({"x": other})
    assert row_hash({"turns": [{"role": "user", "content": "a"}]}) != row_hash(
        {"turns": [{"role": "user", "content": "b"}]}
    )


def test_images_are_hashed_by_their_content(tmp_path):
    image = tiny.images(1)[0]["image"]
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for path in (first, second):
        image.save(path)
    by_bytes = row_hash({"image": first.read_bytes()})
    for form in ({"bytes": None, "path": str(second)}, {"bytes": first.read_bytes(), "path": "x"}, second):
        assert row_hash({"image": form}) == by_bytes
    assert row_hash({"image": image}) == row_hash({"image": Image.open(second)})
    assert row_hash({"image": image}) != row_hash({"image": image.rotate(180)})
    indexed = image.quantize(8)
    recoloured = indexed.copy()
    recoloured.putpalette(indexed.getpalette()[::-1])
    assert row_hash({"image": indexed}) != row_hash({"image": recoloured})
    pixels = np.asarray(image)
    assert row_hash({"image": pixels}) != row_hash({"image": pixels.reshape(-1)})


def test_a_row_is_a_dict():
    row = Row({"text": "good"}, "row 3 of x")
    assert row == {"text": "good"}
    assert origin(row, 0) == "row 3 of x"


def test_repeated_rows_are_left_out_and_both_are_named(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("text,label,id\na,01,1\nb,01,2\na,01,3\na,02,4\nb,01,5\n")
    rows = load_rows(path)
    kept, repeats = distinct(rows, lambda row: ["text", "label"])
    assert [row["id"] for row in kept] == ["1", "2", "4"]
    assert not kept.typed
    assert repeats == [(f"line 4 of {path}", f"line 2 of {path}"), (f"line 6 of {path}", f"line 3 of {path}")]
    assert distinct(rows, lambda row: ["id"]) == (rows, [])
    kept, repeats = distinct([{"text": "x"}, {"text": "b"}, {"text": "x"}], lambda row: ["text"], known=rows)
    assert [row.origin for row in kept] == ["row 0"]
    assert repeats == [("row 1", f"line 3 of {path}"), ("row 2", "row 0")]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GradfixError, match="pipe: is not a regular file"):
        load_rows(tmp_path / "pipe")
    with pytest.raises(GradfixError, match="pipe: is not a regular file"):
        read_text(tmp_path / "pipe")


def test_a_file_that_does_not_fit_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("gradfix.tasks.data_files.MAX_ROWS_BYTES", 10)
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    with pytest.raises(GradfixError, match=r"rows\.csv: is too long"):
        load_rows(tmp_path / "rows.csv")


def test_a_hub_out_of_reach_is_asked_once(monkeypatch):
    asked = []

    def nowhere(self, name, **_):
        asked.append(name)
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", nowhere)
    with pytest.raises(
        GradfixError, match=r"some/rows: is no local path .* \(no route to host\): connect, or"
    ):
        load_rows("some/rows")
    assert asked == ["some/rows"]
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
