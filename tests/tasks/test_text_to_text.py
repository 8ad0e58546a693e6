import pytest
import torch

from gradfix.errors import GradfixError
from gradfix.evaluation.evaluate import evaluate
from gradfix.tasks import get_task
from tests import tiny

ANSWERS = ["yes", "no maybe", "the answer is not known"]
ROWS = [
    {"input": "what is the capital", "target": "yes"},
    {"input": "good", "target": "no maybe"},
    {"input": "the red car and the blue car", "target": "the answer is not known"},
]
# The words of the last answer that the tokenizer doesn't know are <unk>, as in real life.


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.save_tiny_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def loaded(directory):
    task = get_task("text-to-text")
    return task, task.load_model(directory)


@pytest.fixture(scope="module")
def choosing(directory):
    task = get_task("text-to-text", candidates=ANSWERS)
    task.bind(directory)
    return task


def test_the_loss_is_a_mean_over_each_samples_own_tokens(loaded):
    task, model = loaded
    batch = task.encode(ROWS)
    losses = task.loss(model, batch)
    for index, row in enumerate(ROWS):
        inputs = task.tokenizer(row["input"], return_tensors="pt")
        labels = task.tokenizer(row["target"], return_tensors="pt")["input_ids"]
        assert torch.isclose(losses[index], model(**inputs, labels=labels).loss, atol=1e-5)
    assert losses.std() > 0.001
    losses.sum().backward()


def test_padding_changes_no_loss(loaded):
    task, model = loaded
    alone = torch.cat([task.loss(model, task.encode([row])) for row in ROWS])
    assert torch.allclose(task.loss(model, task.encode(ROWS)), alone, atol=1e-6)
    features = torch.cat([task.features(model, task.encode([row])) for row in ROWS])
    assert torch.allclose(task.features(model, task.encode(ROWS)), features, atol=1e-5)


def test_the_candidate_with_the_smallest_loss_is_chosen(loaded, choosing):
    _, model = loaded
    table = torch.stack(
        [
            choosing.loss(model, choosing.encode([{**row, "target": answer} for row in ROWS]))
            for answer in ANSWERS
        ],
        dim=1,
    )
    measured = choosing.measure(model, choosing.encode(ROWS))
    assert torch.allclose(measured.losses, table.diagonal(), atol=1e-5)
    assert measured.predictions == [ANSWERS[index] for index in table.argmin(dim=1)]
    assert measured.scores.tolist() == (table.argmin(dim=1) == torch.arange(3)).float().tolist()
    assert choosing.metric == "accuracy"
    assert choosing.classes(ROWS) == [0, 1, 2]


def test_a_target_must_be_a_candidate(choosing):
    with pytest.raises(
        GradfixError, match="row 0: target 'perhaps' is not among the candidates yes, no maybe, the"
    ):
        choosing.encode([{"input": "good", "target": "perhaps"}])
    with pytest.raises(GradfixError, match="no sample of the candidates no maybe, the answer is not known"):
        choosing.check(ROWS[:1], support=True)
    choosing.check(ROWS[:1])
    with pytest.raises(GradfixError, match="candidates: expected at least two different texts"):
        get_task("text-to-text", candidates=["yes", "yes"])


def test_without_candidates_the_answer_is_generated(loaded):
    task, model = loaded
    inputs = task.tokenizer(ROWS[0]["input"], return_tensors="pt")
    greedy = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    answer = task.tokenizer.decode(greedy[0], skip_special_tokens=True).strip()
    assert answer
    rows = [{**ROWS[0], "target": f"{answer} "}, ROWS[1]]
    result = evaluate(model, task, rows, batch_size=1)
    assert result.metric == "exact_match"
    assert result.predictions[0] == answer
    assert result.scores == [1.0, 0.0]
    assert result.losses == pytest.approx(task.loss(model, task.encode(rows)).tolist(), abs=1e-5)


def test_the_models_own_sampling_does_not_reach_a_measurement(loaded):
    task, model = loaded
    before = evaluate(model, task, ROWS).predictions
    held = model.generation_config.do_sample
    model.generation_config.do_sample = True
    try:
        assert evaluate(model, task, ROWS).predictions == before
    finally:
        model.generation_config.do_sample = held


def test_a_prefix_and_truncation(directory):
    task = get_task("text-to-text", prefix="question ", max_length=4)
    task.bind(directory)
    rows = [{"input": "good", "target": "yes"}, {"input": "good", "target": "yes " * 9}]
    batch = task.encode(rows)
    assert task.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == "question good"
    assert batch["truncated"].tolist() == [False, True]
    assert batch["labels"].shape == (2, 4)
    with pytest.raises(GradfixError, match="row 1: 10 tokens"):
        task.encode(rows, strict=True)
