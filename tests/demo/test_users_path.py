"""The lab's models and tasks go through the same code as users' own."""

import pytest
import torch
from torch.nn import functional

from gradfix.demo import load, load_task
from gradfix.demo.models import is_image_tower, pixel_values
from gradfix.tasks import get_task
from studies.pair.finetune import class_weights, zero_shot_logits

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["digits", "letters"])
def test_the_library_task_measures_what_fine_tuning_minimised(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lab_task = load_task(name)
    directory = load("B", tmp_path_factory.mktemp("lab") / "B")
    task = get_task(
        "zero-shot-image-classification", labels=lab_task.class_names, templates=lab_task.templates
    )
    task.bind(directory)
    model = task.load_model(directory)
    task.prepare(model)
    rows = lab_task.rows("validation")[:50]
    task.check(rows)
    with torch.no_grad():
        losses = task.loss(model, task.encode(rows))
        pixels = pixel_values(lab_task.validation.images[:50])
        logits = zero_shot_logits(model, class_weights(model, lab_task), pixels)
    labels = torch.from_numpy(lab_task.validation.labels[:50])
    torch.testing.assert_close(losses, functional.cross_entropy(logits, labels, reduction="none"))
    assert set(task.voters(model)) == {name for name, _ in model.named_parameters() if is_image_tower(name)}
