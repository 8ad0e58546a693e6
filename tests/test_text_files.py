"""The door for text: what is beyond its limits is one line that names the file."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from gradfix.errors import GradfixError
from gradfix.text_files import (
    MAX_DEPTH,
    MAX_DIGITS,
    parse_json,
    parse_json_value,
    read_json,
    read_text,
    read_yaml,
    validated,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(PLAIN)
def test_what_is_within_the_limits_is_read_as_json_reads_it(value: object) -> None:
    text = json.dumps(value)
    assert parse_json_value(text, "f") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper than"),
        ("[" * 100_000, "nested deeper than"),
        ("9" * (MAX_DIGITS + 1), "a number of 41 digits"),
        ("9" * 5000, "a number of 5000 digits"),
        ("NaN", "the number NaN"),
        ("[-Infinity]", "the number -Infinity"),
        ("1e400", "the number 1e400"),
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ('"\\ud800"', "half of a character"),
        ("{", "is not valid JSON"),
    ],
)
def test_what_is_beyond_them_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(GradfixError, match=f"some/file: .*{message}") as refusal:
        parse_json_value(text, "some/file")
    assert len(str(refusal.value)) < 300


def test_a_configuration_may_hold_infinities_and_transformers_number_for_no_limit() -> None:
    text = '{"a": Infinity, "b": 1000000000000000019884624838656}'
    assert parse_json(text, "f", finite=False)["a"] == float("inf")
    for other in ("null", "[]", "1"):
        with pytest.raises(GradfixError, match="expected a JSON object"):
            parse_json(other, "f")


def test_pipes_directories_and_other_encodings_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b'{"a": "caf\xe9"}')
    (tmp_path / "long").write_bytes(b"{}" * 10)
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf{}")
    for name, message in (
        ("pipe", "regular"),
        (".", "regular"),
        ("none", "No such file"),
        ("latin", "not UTF-8"),
    ):
        with pytest.raises(GradfixError, match=message):
            read_json(tmp_path / name)
    with pytest.raises(GradfixError, match="at most 19 bytes expected, found 20"):
        read_text(tmp_path / "long", most=19)
    assert read_json(tmp_path / "marked") == {}


def test_yaml_is_nested_to_the_same_depth(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for depth in (MAX_DEPTH - 1, MAX_DEPTH + 1):
        path.write_text("[" * depth + "]" * depth)
        if depth < MAX_DEPTH:
            read_yaml(path)
            continue
        with pytest.raises(GradfixError, match=f"is nested deeper than {MAX_DEPTH} levels"):
            read_yaml(path)


def test_yaml_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: 2026-13-45\nb: [1, 0.5, true, null]\nc: {d: text}\n")
    assert read_yaml(path) == {"a": "2026-13-45", "b": [1, 0.5, True, None], "c": {"d": "text"}}
    bomb = "a: &a [x, x]\n" + "".join(
        f"{n}: &{n} [*{m}, *{m}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)
    )
    for text, message in (
        (bomb, "a reference"),
        ("a: 1\na: 2", "a key stands twice"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: " + "9" * 5000, "a number of 5000 digits"),
        ("a: " + "[" * 5000, "nested deeper"),
        ("{[1]: 2}", "not a readable YAML file"),
        ("a: !!binary aGk=", "not a readable YAML file"),
    ):
        path.write_text(text)
        with pytest.raises(GradfixError, match=message):
            read_yaml(path)


def test_a_value_of_another_shape_is_refused_with_its_key() -> None:
    class Expected(BaseModel):
        names: dict[str, int]

    with pytest.raises(
        GradfixError, match=r"f: names\.a: input should be a valid integer.*found 'word': mend it"
    ):
        validated(Expected, {"names": {"a": "word"}}, "f", "mend it")
    with pytest.raises(GradfixError, match="the whole: input should be a valid dict"):
        validated(Expected, None, "f")
