"""The card's head is the Hub's own metadata; its prose says what was added, and never a machine's folders."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from gradfix.checkpoints import Checkpoint
from gradfix.report.card import model_card
from gradfix.report.record import TransportRecord
from gradfix.transport.record import _hub_id, _license
from tests import tiny
from tests.report.records import transport_record


def record(**other: Any) -> TransportRecord:
    return TransportRecord.model_validate({**transport_record(), **other})


def head(made: TransportRecord) -> dict[str, Any]:
    return dict(ModelCard(model_card(made)).data.to_dict())


def test_what_was_measured_on_test_data_is_in_the_model_index() -> None:
    made = record(recipe={**transport_record()["recipe"], "test": "/data/someone/digits.jsonl"})
    data = head(made)
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-classification"
    [entry] = data["model-index"]
    assert entry["name"] == "seven on seven"
    [result] = entry["results"]
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"type": "custom", "name": "digits.jsonl"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.7}, {"type": "loss", "value": 0.9}]
    assert "someone" not in model_card(made)


@pytest.mark.parametrize("judgement", [None, {**transport_record()["judgement"], "data": "validation"}])
def test_what_chose_is_no_result(judgement: Any) -> None:
    assert "model-index" not in head(record(judgement=judgement))


def test_models_of_the_hub_are_named_and_those_on_a_disk_are_not() -> None:
    inputs = {
        "source_base": {"location": "org/old@main", "sha256": "0"},
        "source_tuned": {"location": "/models/mine", "sha256": "1"},
        "target_base": {"location": "org/new", "sha256": "2"},
    }
    data = head(record(inputs=inputs))
    assert data["base_model"] == ["org/new", "org/old"]
    assert data["base_model_relation"] == "merge"
    assert "base_model" not in head(record())
    inputs["target_base"] = {"location": "/models/new", "sha256": "2", "hub": "org/released"}
    assert head(record(inputs=inputs))["base_model"] == ["org/old", "org/released"]


@pytest.mark.parametrize(
    ("folder", "told", "hub"),
    [
        ("models--org--new/snapshots/0a1b", None, "org/new"),
        ("plain", "org/new", "org/new"),
        ("plain", "/models/new", None),
        ("plain", None, None),
    ],
)
def test_a_directory_says_which_model_of_the_hub_it_is(
    tmp_path: Path, folder: str, told: str | None, hub: str | None
) -> None:
    place = tiny.save_tiny_gpt2(tmp_path / folder)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "_name_or_path": told}))
    assert _hub_id(Checkpoint.open(place)) == hub


def test_the_new_bases_license_and_the_data_sets_are_in_the_head() -> None:
    inputs = {role: {"location": f"org/{role}", "sha256": "0"} for role in ("source_base", "source_tuned")}
    inputs["target_base"] = {"location": "org/new", "sha256": "2", "license": "apache-2.0"}
    recipe = {**transport_record()["recipe"], "data": "org/reviews@main", "unlabelled": "./unlabelled.jsonl"}
    data = head(record(inputs=inputs, recipe=recipe))
    assert (data["license"], data["datasets"]) == ("apache-2.0", ["org/reviews"])
    assert "license" not in head(record())
    assert "datasets" not in head(record())


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: mit\n---\n# A model\n", "mit"),
        ("# A model\n", None),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
    ],
)
def test_a_license_is_read_from_the_bases_own_card(tmp_path: Path, card: str, license: str | None) -> None:
    base = tiny.save_tiny_gpt2(tmp_path / "base")
    (base / "README.md").write_text(card)
    assert _license(Checkpoint.open(base)) == license


@pytest.mark.parametrize("added", [False, True])
def test_an_alignment_is_told_of_where_it_was_added(added: bool) -> None:
    card = model_card(record(alignment={**transport_record()["alignment"], "added": added}))
    assert ("carried over by procrustes seven" in card) == added
