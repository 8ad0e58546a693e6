"""Folders: what is a class, what a split, and what is neither."""

import json
from pathlib import Path

import datasets
import pytest
from PIL import Image

from gradfix.errors import GradfixError
from gradfix.tasks.data import load_rows


def images(root: Path, *names: str) -> Path:
    """One pixel an image, of a colour of its own."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1), (number, 0, 0)).save(path)
    return root


def lines(path: Path, *texts: str, **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in texts))
    return path


def texts(location: Path, **options: object) -> list[str]:
    return [row["text"] for row in load_rows(location, **options)]


def message_of(location: object, **options: object) -> str:
    with pytest.raises(GradfixError) as caught:
        load_rows(location, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "classes",
    [
        ["train", "plane"],
        ["test", "exam", "dev"],
        ["train", "test"],
        ["_hidden", "a b", "[x]", "ünï"],
        ["train-00000-of-00001", "my_test_folder", "val"],
    ],
)
def test_a_folder_is_a_class_whatever_it_is_called(tmp_path: Path, classes: list[str]) -> None:
    root = images(
        tmp_path / "test" / "validation[1]", *(f"{name}/{n}.png" for name in classes for n in range(2))
    )
    rows = load_rows(root)
    assert rows.class_names == {"label": sorted(classes)}
    assert [row["label"] for row in rows] == [name for name in sorted(classes) for _ in range(2)]
    for row in rows:
        assert Path(row["image"]["path"]).parent.name == row["label"]


def test_a_folder_of_one_class_has_it_as_label(tmp_path: Path) -> None:
    assert [row["label"] for row in load_rows(images(tmp_path, "cat/a.png", "cat/b.png"))] == ["cat", "cat"]


def test_folders_of_classes_within_folders_of_splits(tmp_path: Path) -> None:
    root = images(
        tmp_path, "train/cat/a.png", "train/dog/b.png", "val/cat/c.png", "val/dog/d.png", "val/dog/e.png"
    )
    assert "has several splits (train, val); name one" in message_of(root)
    assert [row["label"] for row in load_rows(root, split="train")] == ["cat", "dog"]
    assert [row["label"] for row in load_rows(root, split="val")] == ["cat", "dog", "dog"]
    assert [row["label"] for row in load_rows(root, split="validation[1:]")] == ["dog", "dog"]
    assert load_rows(root, split="validation[1:]")[0].origin == f"row 1 of {root}"
    assert "has no split 'test', only train, val" in message_of(root, split="test")
    assert [row["label"] for row in load_rows(root / "val")] == ["cat", "dog", "dog"]


def test_what_is_no_class_and_no_split_is_refused(tmp_path: Path) -> None:
    deep = images(tmp_path / "deep", "animals/cat/a.png", "animals/dog/b.png")
    assert "expected one folder a class with its images in it, found animals/cat/a.png" in message_of(deep)
    mixed = images(tmp_path / "mixed", "cat/a.png", "sheet.png")
    assert "found sheet.png; give the folder that holds the classes" in message_of(mixed)
    half = images(tmp_path / "half", "train/cat/a.png", "holdout/cat/b.png")
    assert "expected one folder a class" in message_of(half)
    lost = images(tmp_path / "lost", "cat/a.png")
    (lost / "dog").mkdir()
    (lost / "dog" / "b.heic").write_bytes(b"an image of a kind that Pillow does not open")
    assert "none of its files is an image that Pillow opens (found b.heic)" in message_of(lost)
    assert "has no splits, so leave out the split 'train'" in message_of(
        images(tmp_path / "x", "a/a.png"), split="train"
    )


def test_what_is_not_data_is_passed_over(tmp_path: Path) -> None:
    root = images(
        tmp_path, "cat/a.png", "dog/b.PNG", ".thumbs/c.png", "__MACOSX/cat/a.png", "cat/.hidden.png"
    )
    (root / "readme.txt").write_text("two animals")
    (root / "cat" / "Thumbs.db").write_bytes(b"x")
    assert [row["label"] for row in load_rows(root)] == ["cat", "dog"]


def test_images_without_folders_have_no_label(tmp_path: Path) -> None:
    rows = load_rows(images(tmp_path, "b.png", "a.png"))
    assert rows.column_names == ["image"]
    assert [Path(row["image"]["path"]).name for row in rows] == ["a.png", "b.png"]


def test_a_link_that_leads_back_up_is_followed_once(tmp_path: Path) -> None:
    root = images(tmp_path / "root", "cat/a.png", "dog/b.png")
    (root / "cat" / "again").symlink_to(root)
    elsewhere = images(tmp_path / "elsewhere", "c.png")
    (root / "fox").symlink_to(elsewhere)
    assert [row["label"] for row in load_rows(root)] == ["cat", "dog", "fox"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_called_metadata_says_what_images_show(tmp_path: Path, kind: str) -> None:
    root = images(tmp_path / "shots", "a.png", "more/b.png")
    said = [("a.png", "01", "one"), ("more/b.png", "02", "two")]
    rows = [dict(zip(("file_name", "label", "caption"), row, strict=True)) for row in said]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    if kind == "csv":
        content = "file_name,label,caption\n" + "".join(",".join(row) + "\n" for row in said)
    (root / f"metadata.{kind}").write_text(content)
    read = load_rows(root)
    assert [(Path(row["image"]["path"]).name, row["label"], row["caption"]) for row in read] == [
        ("a.png", "01", "one"),
        ("b.png", "02", "two"),
    ]
    for name in ("c.png", "../other.png", ""):
        images(tmp_path, "other.png")
        (root / f"metadata.{kind}").write_text(content.replace("a.png", name))
        line = {"csv": 2, "jsonl": 1}[kind]
        said = f"line {line} of {root}/metadata.{kind}: file_name: no image {name!r} in this folder"
        assert said in message_of(root)


def test_images_beside_a_table_of_another_name_are_refused(tmp_path: Path) -> None:
    root = images(tmp_path, "a.png", "b.png")
    (root / "labels.csv").write_text("file,label\na.png,x\n")
    assert "holds images and data files (labels.csv); name the file, or call it metadata" in message_of(root)


def test_files_are_splits_by_their_whole_name(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        lines(tmp_path / "splits" / f"{name}.jsonl", name)
    assert texts(tmp_path / "splits", split="test") == ["test"]
    for number in (1, 0):
        lines(tmp_path / "hub" / "data" / f"train-{number:05}-of-00002.jsonl", str(number))
    lines(tmp_path / "hub" / "data" / "dev-00000-of-00001.jsonl", "dev")
    assert texts(tmp_path / "hub", split="train") == ["0", "1"]
    assert texts(tmp_path / "hub", split="validation") == ["dev"]
    for name in ("latest", "contest", "my-test-notes", "train_2"):
        lines(tmp_path / "plain" / f"{name}.jsonl", name)
    assert texts(tmp_path / "plain") == ["contest", "latest", "my-test-notes", "train_2"]
    for name in ("a", "b"):
        lines(tmp_path / "folders" / "test" / f"{name}.jsonl", name)
    assert texts(tmp_path / "folders") == ["a", "b"]


def test_files_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    lines(tmp_path / "some" / "train.jsonl", "a")
    lines(tmp_path / "some" / "extra.jsonl", "b")
    assert "train.jsonl is of the split 'train', extra.jsonl of none; name the file" in message_of(
        tmp_path / "some"
    )
    lines(tmp_path / "both" / "train" / "test.jsonl", "a")
    assert "train/test.jsonl names several splits (test, train)" in message_of(tmp_path / "both")
    lines(tmp_path / "kinds" / "a.jsonl", "a")
    (tmp_path / "kinds" / "b.csv").write_text("text\nb\n")
    assert "holds files of several kinds (.csv, .jsonl); name one of them" in message_of(tmp_path / "kinds")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").write_text("a")
    assert "holds neither images nor .csv, .json, .jsonl, .parquet, .tsv files" in message_of(
        tmp_path / "none"
    )


def test_cells_of_several_files_are_text(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name},01\n")
    rows = load_rows(tmp_path)
    assert [dict(row) for row in rows] == [{"text": "a", "label": "01"}, {"text": "b", "label": "01"}]
    assert not rows.typed


def test_a_folder_that_declares_itself_is_read_as_it_says(tmp_path: Path) -> None:
    root = tmp_path / "declared"
    (root / "old").mkdir(parents=True)
    (root / "old" / "test.csv").write_text("text,label\na,01\nNA,None\n")
    (root / "other.csv").write_text("text,label\nno,no\n")
    (root / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: old/test.csv\n"
        "- config_name: second\n  data_files: other.csv\n"
        "- config_name: bars\n  data_files: bars.csv\n  sep: '|'\n---\nWords.\n"
    )
    assert [dict(row) for row in load_rows(root, configuration="main")] == [
        {"text": "a", "label": "01"},
        {"text": "NA", "label": "None"},
    ]
    assert texts(root, configuration="second") == ["no"]
    (root / "bars.csv").write_text("text|label\na|x\n")
    assert dict(load_rows(root, configuration="bars")[0]) == {"text": "a", "label": "x"}
    (root / "other.csv").write_bytes("text,label\ncafé,no\n".encode("latin-1"))
    assert "other.csv: line 2, byte 14 (0xe9): is not utf-8" in message_of(root, configuration="second")
    assert texts(root, configuration="second", encoding="latin-1") == ["café"]
    assert "cannot be read as data" in message_of(root, configuration="third")
    root.rename(tmp_path / "run[12]")
    assert "run[12]: its README declares data files" in message_of(tmp_path / "run[12]")


@pytest.mark.parametrize(
    "head", ["configs: [{", "configs: !!python/name:os.system", "configs: " + "[" * 5_000]
)
def test_a_declaration_that_cannot_be_read_is_refused(tmp_path: Path, head: str) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n")
    with pytest.raises(GradfixError, match=r"README\.md: "):
        load_rows(tmp_path)
    (tmp_path / "README.md").write_text("---\ntitle: [{\ndate: 2026-13-45\n---\n")
    assert len(load_rows(tmp_path)) == 1


def test_json_that_is_declared_keeps_its_dates(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", "a", when="2020-01-01T00:00:00")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: '*.jsonl'\n---\n"
    )
    assert load_rows(tmp_path)[0]["when"] == "2020-01-01T00:00:00"


def test_declared_types_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,1\n")
    (tmp_path / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n"
        "      class_label:\n        names:\n          '0': no\n          '1': 'yes'\n---\n"
    )
    assert dict(load_rows(tmp_path)[0]) == {"text": "a", "label": "yes"}


def test_what_datasets_wrote_is_read_with_its_classes(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "y"])}
    )
    made = datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, features=features)
    datasets.DatasetDict({"dev": made, "train": made}).save_to_disk(str(tmp_path / "saved"))
    assert dict(load_rows(tmp_path / "saved", split="dev")[0]) == {"text": "a", "label": "y"}
    assert "split 'dev[a]'" in message_of(tmp_path / "saved", split="dev[a]")
