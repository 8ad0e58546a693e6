"""Laying a task vector onto a target: names by prefix, rows by token text, refusals before anything is read."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.expressions import MappedRows
from gradfix.checkpoints.vocabulary import row_map, vocabulary_rows
from gradfix.errors import GradfixError
from gradfix.vectors.apply import apply
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector
from tests.builders import InMemory, save_model

TOKENS = st.lists(st.text("abcdef", min_size=1, max_size=3), unique=True, min_size=1, max_size=30)


@given(source=TOKENS, target=TOKENS, padding=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_a_row_goes_where_its_token_is(
    source: list[str], target: list[str], padding: tuple[int, int]
) -> None:
    rows = len(source) + padding[0], len(target) + padding[1]
    found = row_map(
        dict(zip(source, range(99), strict=False)), dict(zip(target, range(99), strict=False)), *rows
    )
    if found is None:
        assert source == target
        assert rows[0] == rows[1]
        return
    table = torch.arange(rows[0]).float()[:, None] + 1
    mapped = MappedRows(InMemory(w=table), {"w": found})
    for part in (None, slice(0, rows[1] // 2), slice(rows[1] // 2, rows[1])):
        block = mapped.read("w", part).flatten().tolist()
        wanted = [float(source.index(token)) + 1 if token in source else 0.0 for token in target] + [
            0.0
        ] * padding[1]
        assert block == (wanted[part] if part else wanted)


def test_embeddings_move_by_token_text_and_new_tokens_keep_the_targets_rows(tmp_path: Path) -> None:
    old, new = ["[UNK]", "cat", "dog"], ["[UNK]", "dog", "bird", "cat"]
    key = "embeddings__word_embeddings__weight"
    base = save_model(tmp_path / "a", old, 3, **{key: torch.zeros(3, 2)})
    tuned = save_model(tmp_path / "b", old, 3, **{key: torch.tensor([[1.0, 1], [2, 2], [3, 3]])})
    target = save_model(tmp_path / "c", new, 4, **{key: torch.full((4, 2), 10.0)})
    applied = apply(TaskVector.between(base, tuned), target, output=tmp_path / "output")
    name = key.replace("__", ".")
    assert Checkpoint.open(tmp_path / "output")[name][:, 0].tolist() == [11.0, 13.0, 10.0, 12.0]
    assert applied.matched_tokens == {name: (3, 4)}
    assert any("rows matched by token text" in note for note in applied.notes())


def test_tokens_added_for_the_fine_tune_have_no_task_vector(tmp_path: Path) -> None:
    key = "embeddings__word_embeddings__weight"
    base = save_model(tmp_path / "a", ["[UNK]", "cat"], 2, **{key: torch.zeros(2, 2)})
    tuned = save_model(tmp_path / "b", ["[UNK]", "cat", "<sep>"], 3, **{key: torch.ones(3, 2)})
    tau = TaskVector.between(base, tuned)
    assert tau[key.replace("__", ".")][:, 0].tolist() == [1.0, 1.0, 0.0]
    target = save_model(tmp_path / "c", ["[UNK]", "cat"], 2, **{key: torch.zeros(2, 2)})
    assert place(tau, Checkpoint.open(target)).vector[key.replace("__", ".")][:, 0].tolist() == [1.0, 1.0]


def test_the_very_same_tokenizer_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "embeddings__word_embeddings__weight"
    old, new = (
        Checkpoint.open(save_model(tmp_path / name, ["[UNK]", "cat"], rows, **{key: torch.zeros(rows, 2)}))
        for name, rows in (("a", 2), ("b", 3))
    )
    names = {key.replace("__", "."): key.replace("__", ".")}
    # A table padded to another size is still matched row by row.
    assert vocabulary_rows(old, new, names)[key.replace("__", ".")].tolist() == [0, 1, -1]
    monkeypatch.setattr("gradfix.checkpoints.vocabulary.read_tokens", lambda directory: pytest.fail("parsed"))
    assert vocabulary_rows(old, old, names) == {}


def test_vocabularies_of_two_sizes_need_both_tokenizers(tmp_path: Path) -> None:
    key = "lm_head__weight"
    base = save_model(tmp_path / "a", None, 3, **{key: torch.zeros(3, 2)})
    tuned = save_model(tmp_path / "b", None, 3, **{key: torch.ones(3, 2)})
    target = save_model(tmp_path / "c", ["[UNK]"], 4, **{key: torch.zeros(4, 2)})
    with pytest.raises(GradfixError, match=r"lm_head\.weight: 3 rows against 4.*tokenizer\.json"):
        place(TaskVector.between(base, tuned), Checkpoint.open(target))


def test_names_are_matched_by_prefix_and_the_match_is_told(tmp_path: Path) -> None:
    base = save_model(tmp_path / "a", None, 9, layer__weight=torch.zeros(2))
    tuned = save_model(tmp_path / "b", None, 9, bert__layer__weight=torch.ones(2))
    target = save_model(tmp_path / "c", None, 9, layer__weight=torch.ones(2), other=torch.ones(1))
    applied = apply(TaskVector.between(base, tuned), target, output=tmp_path / "output")
    assert Checkpoint.open(tmp_path / "output")["layer.weight"].tolist() == [2.0, 2.0]
    assert applied.rule == "source names − 'bert.'"
    assert applied.untouched == ["other"]


def test_a_target_of_another_shape_is_refused_with_the_first_keys(tmp_path: Path) -> None:
    base = save_model(tmp_path / "a", None, 9, **{f"w{i:02}": torch.zeros(2) for i in range(12)})
    tuned = save_model(tmp_path / "b", None, 9, **{f"w{i:02}": torch.ones(2) for i in range(12)})
    target = save_model(tmp_path / "c", None, 9, **{f"w{i:02}": torch.ones(3) for i in range(12)})
    tau = TaskVector.between(base, tuned)
    with pytest.raises(
        GradfixError, match=r"w00 \[2\] against \[3\].*w09.*\(12 in all\).*architecture and size"
    ):
        place(tau, Checkpoint.open(target))
    other = save_model(tmp_path / "d", None, 9, x=torch.ones(3))
    with pytest.raises(GradfixError, match="no tensor has a counterpart"):
        place(tau, Checkpoint.open(other))


def test_placing_twice_is_placing_once(tmp_path: Path) -> None:
    base = save_model(tmp_path / "a", ["[UNK]", "x"], 2, lm_head__weight=torch.zeros(2, 1))
    tuned = save_model(tmp_path / "b", ["[UNK]", "x"], 2, lm_head__weight=torch.tensor([[1.0], [2.0]]))
    target = Checkpoint.open(save_model(tmp_path / "c", ["x", "[UNK]"], 2, lm_head__weight=torch.zeros(2, 1)))
    once = place(TaskVector.between(base, tuned), target).vector
    assert once["lm_head.weight"].flatten().tolist() == [2.0, 1.0]
    assert place(once, target).vector is once
    assert place(-once, target).vector["lm_head.weight"].flatten().tolist() == [-2.0, -1.0]
