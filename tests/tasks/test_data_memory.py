"""Rows that a program already has, of every library that people hold them in."""

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from gradfix.errors import GradfixError
from gradfix.tasks.data_memory import rows_in_memory
from gradfix.tasks.images import read_image

ROWS = [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}]
NAMES = ["no", "yes"]


class Pairs(Dataset[tuple[Any, int]]):
    """As torchvision's: tuples of an image and a class's number."""

    classes = NAMES

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index >= 3:
            raise IndexError(index)
        return torch.full((3, 4, 4), index / 4), index % 2


class Flipping(Pairs):
    def __getitem__(self, index: int) -> tuple[Any, int]:
        return torch.rand(3, 4, 4), 0


class Streaming(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield ROWS[0]


def test_a_list_of_mappings_is_taken_as_it_is() -> None:
    assert rows_in_memory(ROWS, "support") is ROWS


def test_a_dataset_gives_classes_by_name_or_number() -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)}
    )
    data = datasets.Dataset.from_list([{**row, "label": NAMES.index(row["label"])} for row in ROWS], features)
    rows = rows_in_memory(data, "support")
    assert [dict(row) for row in rows] == ROWS
    assert rows[1].origin == "row 1 of the rows of support"  # type: ignore[attr-defined]
    numbered = rows_in_memory(data, "support", class_names=False)
    assert [row["label"] for row in numbered] == [1, 0]
    assert [dict(row) for row in rows_in_memory(data.with_format("torch"), "support")] == ROWS
    with pytest.raises(GradfixError, match=r"one split of a DatasetDict, as data\['train'\]"):
        rows_in_memory(datasets.DatasetDict(train=data), "support")


def test_frames() -> None:
    frame = pandas.DataFrame([*ROWS, {"text": "so", "label": None}], index=[7, 8, 9])
    assert [dict(row) for row in rows_in_memory(frame, "support")] == [*ROWS, {"text": "so", "label": None}]
    numbers = rows_in_memory(pandas.DataFrame({"text": ["a", "b"], "label": [0, 1]}), "support")
    assert [type(row["label"]) for row in numbers] == [int, int]


def test_tuples_have_the_columns_that_are_named() -> None:
    rows = rows_in_memory(Pairs(), "support", ("image", "label"))
    assert [row["label"] for row in rows] == ["no", "yes", "no"]
    assert [row["label"] for row in rows_in_memory(Subset(Pairs(), [1]), "support", ("image", "label"))] == [
        "yes"
    ]
    plain = rows_in_memory(Pairs(), "support", ("image", "label"), class_names=False)
    assert [row["label"] for row in plain[1:]] == [1, 0]
    assert len(list(rows)) == 3
    pairs = [(np.zeros((2, 2)), torch.tensor(1))]
    assert rows_in_memory(pairs, "support", ("pixels", "label"))[0]["label"] == 1
    with pytest.raises(
        GradfixError, match=r"tuples of 2 parts and nothing says .* columns=\('image', 'label'\)"
    ):
        rows_in_memory(Pairs(), "support")
    with pytest.raises(GradfixError, match="columns= names 3"):
        rows_in_memory(Pairs(), "support", ("a", "b", "c"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Streaming(), r"a Streaming has no rows by number; give a list or a data set, such as list\(rows\)"),
        (DataLoader(Pairs()), "such as the data set of a DataLoader"),
        (iter(ROWS), "has no rows by number"),
        ({"text": ["a"], "label": ["b"]}, "found a mapping of 'text', 'label'; give a list"),
        (["good", "bad"], "mappings or tuples, found str"),
    ],
)
def test_what_holds_no_rows_is_told_what_to_give(value: Any, message: str) -> None:
    with pytest.raises(GradfixError, match=f"support: .*{message}"):
        rows_in_memory(value, "support")


def test_rows_that_differ_each_time_are_refused() -> None:
    with pytest.raises(
        GradfixError, match="another one each time it is read; give a data set without random"
    ):
        rows_in_memory(Flipping(), "support", ("image", "label"))


def test_tensors_are_images_as_torchvision_gives_them() -> None:
    values = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    expected = Image.fromarray(values.permute(1, 2, 0).numpy())
    assert read_image(values, "row 0").tobytes() == expected.tobytes()
    assert read_image(values / 255, "row 0").tobytes() == expected.tobytes()
    grey = read_image(torch.full((1, 2, 2), 0.5), "row 0")
    assert grey.getpixel((0, 0)) == (128, 128, 128)
    for wrong, message in (
        (values.float() - 100, "from 0 to 1, found .*not normalised yet"),
        (values[0], r"1, 3 or 4 channels, found \[4, 4\]"),
        (values.long(), "found torch.int64"),
    ):
        with pytest.raises(GradfixError, match=message):
            read_image(wrong, "row 0")
