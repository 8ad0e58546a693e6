"""Tagging words, several labels, numbers, spans and sentence vectors: losses beside the model's own, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from gradfix.data import load_rows
from gradfix.errors import GradfixError
from gradfix.evaluation.evaluate import evaluate
from gradfix.tasks import get_task
from tests import tiny
from tests.builders import more_tasks

Loaded = dict[str, tuple[Any, Any, Any]]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    found = {}
    for name, (build, _, rows) in more_tasks().items():
        task = get_task(name)
        found[name] = task, task.load_model(build(tmp_path_factory.mktemp("m") / "model")), rows(7)
    return found


@pytest.mark.parametrize("name", more_tasks())
def test_a_sample_has_one_loss_whatever_stands_beside_it(name: str, loaded: Loaded) -> None:
    task, model, rows = loaded[name]
    together = task.loss(model, task.encode(rows))
    alone = torch.cat([task.loss(model, task.encode([row])) for row in rows])
    assert together.shape == (7,)
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.std() > 1e-3
    measured = evaluate(model, task, rows, batch_size=3)
    assert measured.losses == pytest.approx(together.tolist(), abs=1e-5)
    assert measured.score == pytest.approx(evaluate(model, task, rows).score)
    assert measured.metric == task.metric
    assert all(0 <= grade <= 1 for grade in measured.grades)
    json.dumps(measured.predictions)
    assert task.shown(rows[0])[1]


@pytest.mark.parametrize("name", [name for name in more_tasks() if name != "sentence-embeddings"])
def test_the_mean_loss_is_the_models_own(name: str, loaded: Loaded) -> None:
    task, model, rows = loaded[name]
    batch = task.encode(rows[:1])  # a sample of one: the models' own means are over tokens
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    if name == "question-answering":
        inputs |= dict(zip(("start_positions", "end_positions"), batch["labels"].unbind(dim=1), strict=True))
    else:
        inputs["labels"] = batch["labels"]
    assert torch.isclose(task.loss(model, batch)[0], model(**inputs).loss, atol=1e-6)


def test_a_words_tag_stands_at_its_first_piece(loaded: Loaded) -> None:
    task, _, _ = loaded["token-classification"]
    batch = task.encode([{"tokens": ["good", "book-film", "city"], "tags": ["O", 1, "B-LOC"]}])
    pieces = task.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert pieces == ["<s>", "good", "book", "<unk>", "film", "city", "</s>"]
    assert batch["labels"][0].tolist() == [-100, 0, 1, -100, -100, 3, -100]


def test_a_word_beyond_the_context_counts_as_outside(tmp_path: Path, loaded: Loaded) -> None:
    _, model, _ = loaded["token-classification"]
    task = get_task("token-classification", max_length=4)
    task.bind(tiny.save_tiny_bert_tagger(tmp_path / "m"))
    row = {"tokens": ["good", "book", "city"], "tags": ["O", "O", "B-LOC"]}
    found = evaluate(model, task, [row])
    assert found.truncated == 1
    assert found.predictions[0].split()[2] == "O"
    assert found.also["recall"] == 0.0
    with pytest.raises(GradfixError, match="5 tokens, longer than"):
        task.encode([row], strict=True)


def test_tags_without_a_scheme_are_counted_word_by_word(tmp_path: Path) -> None:
    task = get_task("token-classification")
    model = task.load_model(tiny.save_tiny_bert_tagger(tmp_path / "m", labels=("NOUN", "VERB", "DET")))
    rows = [{"tokens": ["the", "cat"], "tags": ["DET", "NOUN"]}, {"tokens": ["dog"], "tags": ["NOUN"]}]
    found = evaluate(model, task, rows)
    right = sum(map(str.__eq__, " ".join(found.predictions).split(), ["DET", "NOUN", "NOUN"]))
    assert (found.metric, found.score) == ("accuracy", pytest.approx(right / 3))


def test_tags_of_a_data_set_are_read_by_name(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=["B-X", "O"])),
        }
    )
    datasets.Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[1, 0]]}, features=features).save_to_disk(
        str(tmp_path / "d")
    )
    assert load_rows(tmp_path / "d")[0]["tags"] == ["O", "B-X"]


def test_answers_are_given_as_they_stand_in_the_context(loaded: Loaded) -> None:
    task, model, _ = loaded["question-answering"]
    context = "the  River is red , the cat is NOT"
    row = {
        "question": "what ?",
        "context": context,
        "answers": {"text": ["River", "red"], "answer_start": [5, 14]},
    }
    batch = task.encode([row])
    first, last = batch["labels"][0].tolist()
    assert first == last
    assert batch["offsets"][0, first].tolist() == [5, 10]
    measured = task.measure(model, batch)
    assert measured.predictions[0] in context
    assert measured.predictions[0]


def test_no_answer_is_given_only_where_some_question_has_none(tmp_path: Path) -> None:
    task = get_task("question-answering")
    model = task.load_model(tiny.save_tiny_bert_reader(tmp_path / "m"))
    with torch.no_grad():
        model.qa_outputs.weight.zero_()  # all spans are equal, the first token included
        model.qa_outputs.bias.zero_()
    rows = [{"question": "what ?", "context": "the cat", "answers": {"text": ["cat"], "answer_start": [4]}}]
    task.check(rows)
    assert evaluate(model, task, rows).predictions == ["the"]
    task.check(
        [*rows, {"question": "who ?", "context": "the cat", "answers": {"text": [], "answer_start": []}}]
    )
    assert evaluate(model, task, rows).predictions == [""]


def test_alike_texts_are_nearer(loaded: Loaded, tmp_path: Path) -> None:
    _, model, _ = loaded["sentence-embeddings"]
    rows = [
        {"a": "good film", "b": "good film", "c": "the city river", "s": 1.0},
        {"a": "the cat", "b": "red car", "c": "the cat", "s": 0.2},
    ]
    directory = tiny.save_tiny_sentence_bert(tmp_path / "m")
    pairs = get_task("sentence-embeddings", anchor="a", positive="b", score="s")
    triplets = get_task("sentence-embeddings", anchor="a", positive="b", negative="c")
    found = {}
    for task in (pairs, triplets):
        task.bind(directory)
        task.check(rows)
        found[task.metric] = evaluate(model, task, rows)
    assert found["triplet_accuracy"].predictions == ["positive", "negative"]
    assert found["spearman"].score == pytest.approx(1.0)

    def vector(text: str) -> torch.Tensor:
        inputs = pairs.tokenizer([text], return_tensors="pt")
        return model(**inputs).last_hidden_state[0].mean(dim=0)

    cosine = cosine_similarity(vector("the cat"), vector("red car"), dim=0)
    assert found["spearman"].losses[1] == pytest.approx((cosine.item() - 0.2) ** 2, abs=1e-5)


def test_pooling_is_that_of_the_directory(tmp_path: Path) -> None:
    directory = tiny.save_tiny_sentence_bert(tmp_path / "m", pooling="cls_token")
    task = get_task("sentence-embeddings")
    model = task.load_model(directory)
    batch = task.encode([{"anchor": "good film", "positive": "the cat"}])
    hidden = model(input_ids=batch["anchor.input_ids"]).last_hidden_state[0, 0]
    assert torch.allclose(task.features(model, batch)[0], hidden / hidden.norm(), atol=1e-6)
    assert task.limit == 32
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(GradfixError, match="weightedmean_tokens is not known"):
        get_task("sentence-embeddings").bind(directory)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "token-classification",
            {"tokens": "good film", "tags": ["O"]},
            "expected a list of words, found str",
        ),
        (
            "token-classification",
            {"tokens": ["good", "film"], "tags": ["O"]},
            "a tag for each of 2 words, found 1",
        ),
        ("token-classification", {"tokens": ["good"], "tags": ["B-ORG"]}, "unknown label 'B-ORG'"),
        (
            "multi-label-classification",
            {"text": "good", "labels": "positive"},
            "expected a list of labels, found str",
        ),
        ("multi-label-classification", {"text": "good", "labels": [0, 1, 1]}, "ids of labels or a 0 or 1"),
        ("multi-label-classification", {"text": "good", "labels": [1.0, 0.0]}, "expected 3 values"),
        ("regression", {"text": "good", "label": "high"}, "expected a number, found 'high'"),
        ("regression", {"text": "good", "label": float("nan")}, "expected a number, found nan"),
        (
            "question-answering",
            {"question": "who ?", "context": "the cat", "answers": {"text": ["dog"], "answer_start": [4]}},
            "'dog' is said to begin at character 4 of the context, where 'cat' stands",
        ),
        ("question-answering", {"question": "who ?", "context": "the cat", "answers": "cat"}, "answer_start"),
        ("sentence-embeddings", {"anchor": "a", "positive": "b", "score": 3}, "'score' that is not read"),
    ],
)
def test_rows_that_can_not_be_used(name: str, row: dict[str, Any], message: str, loaded: Loaded) -> None:
    with pytest.raises(GradfixError, match=message):
        loaded[name][0].check([row])


def test_no_label_at_all_is_an_answer(loaded: Loaded) -> None:
    task, _, _ = loaded["multi-label-classification"]
    rows = [{"text": "good", "labels": []}, {"text": "film", "labels": [0.0, 1.0, 1.0]}]
    assert task.encode(rows)["labels"].tolist() == [[0, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        ("text-classification", "multi-label-classification", "says multi_label_classification"),
        ("text-classification", "regression", "says regression .its one output.; give task regression"),
        (
            "text-classification",
            "token-classification",
            "BertForTokenClassification.*give task token-classification",
        ),
        ("regression", "multi-label-classification", "give task multi-label-classification"),
        ("question-answering", "token-classification", "a head of another kind"),
    ],
)
def test_a_head_that_was_trained_for_something_else_is_refused(
    task: str, model: str, message: str, tmp_path: Path
) -> None:
    directory = more_tasks()[model][0](tmp_path / "m")
    config = json.loads((directory / "config.json").read_text())
    with pytest.raises(GradfixError, match=message):
        get_task(task).use_tuned(config)
    get_task(model).use_tuned(config)


def test_one_label_of_several_is_no_head_for_many(tmp_path: Path) -> None:
    config = json.loads((tiny.save_tiny_bert_classifier(tmp_path / "m") / "config.json").read_text())
    with pytest.raises(GradfixError, match="states no problem_type"):
        get_task("multi-label-classification").use_tuned(config)
    with pytest.raises(GradfixError, match="3 outputs"):
        get_task("regression").use_tuned(config)
