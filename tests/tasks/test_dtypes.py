import pytest
import torch

from gradfix.tasks import TASKS, PreferencePairs, get_task
from tests import tiny
from tests.builders import more_tasks

CASES = {
    "text-classification": (tiny.save_tiny_bert_classifier, tiny.texts(4), {}),
    "text-to-text": (
        tiny.save_tiny_t5,
        [{"input": "good", "target": "yes"}, {"input": "the bad car", "target": "no"}],
        {},
    ),
    "causal-lm": (
        tiny.save_tiny_gpt2,
        [{"prompt": "good", "completion": " film"}, {"prompt": "a", "completion": " b c"}],
        {},
    ),
    "preference-pairs": (
        tiny.save_tiny_gpt2,
        [
            {"prompt": "good", "chosen": " film", "rejected": " b c"},
            {"prompt": "a", "chosen": " no", "rejected": " the"},
        ],
        {},
    ),
    "zero-shot-image-classification": (
        tiny.save_tiny_clip,
        tiny.images(3),
        {"labels": ["red", "green", "blue"]},
    ),
    "image-classification": (tiny.save_tiny_vit, tiny.images(3), {}),
    **{name: (save, rows(3), {}) for name, (save, _, rows) in more_tasks().items()},
}


@pytest.mark.parametrize("name", TASKS)
def test_a_model_in_bfloat16_has_losses_in_float32_near_its_own(name, tmp_path):
    save, rows, options = CASES[name]
    directory = save(tmp_path)
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        task = get_task(name, **options)
        model = task.load_model(directory, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        task.prepare(model)
        if isinstance(task, PreferencePairs):
            task.stand_alone()
        batch = task.encode(rows)
        losses = task.loss(model, batch)
        losses.sum().backward()
        measured = task.measure(model, batch)
        assert losses.dtype == measured.losses.dtype == measured.scores.dtype == torch.float32
        assert task.features(model, batch).dtype == torch.float32
        assert len(measured.predictions) == len(rows) == len(measured.scores)
        assert all(len(value) == len(rows) for value in batch.values())
        assert set(task.columns.values()) <= set(rows[0])
        results[dtype] = losses.detach()
    assert torch.allclose(results[torch.float32], results[torch.bfloat16], rtol=0.1, atol=0.1)
    assert not torch.equal(results[torch.float32], results[torch.bfloat16])
