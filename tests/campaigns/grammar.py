"""The grammar of broken files: what one careless, unlucky or hostile hand may do to a well-formed one.

Strategies of hypothesis draw from it, so that a seed repeats a campaign and a failing case can be shrunk.
"""

import copy
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from hypothesis import strategies as st

_RAW = "\u2063raw:{}\u2063"
"""Stands for text that no serialiser writes; an invisible separator, so that no value holds it by itself."""

RAW_TEXTS = (
    "[" * 10_000 + "]" * 10_000,
    '{"a":' * 2_000 + "1" + "}" * 2_000,
    "9" * 5_000,
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "-Infinity",
    "1." + "0" * 5_000,
    '"\\ud800"',
    "2026-13-45",
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**64 + 1, 0.5, -0.5, 1e308, "", " ", "x", "0.1", "-1", "nan", "true",
    "x" * 5_000, "naïve\u202e\x00", "line\nline", "\x1b[31mred", "../../outside", "/dev/zero", "bfloat61", "float16",
    "{{ 1/0 }}", "(a+)+$", [], {}, [None], [[]], {"": None}, {"0": "word"}, [1, 2, 3], ["a", "b"],
    {"a": {"b": {"c": [1]}}}, [0] * 2_000,
    *(_RAW.format(index) for index in range(len(RAW_TEXTS))),
)  # fmt: skip
KEYS = ("", "x" * 5_000, "__class__", "auto_map", "trust_remote_code", "0", "a\nb", "$ref", "_name_or_path")
CONTENTS = (
    b"", b"\n", b"null", b"[]", b"0", b'"text"', b"{}", b"\xff\xfe\x00", b"\xef\xbb\xbf{}", b"[" * 10_000,
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", b"<!DOCTYPE html><html></html>",
    b"caf\xe9", b"\x00" * 64, b"PK\x03\x04", b"\x80\x02c__builtin__\nexec\n",
)  # fmt: skip

Change = Callable[[Any], Any]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:8]):  # what is wrong of the ninth is wrong of the first
            yield from _places(inner, (*path, index))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    _at(document, path[:-1])[path[-1]] = value
    return document


def _other_type(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return list(value[:3])
    return list(value.values()) if isinstance(value, dict) else {str(i): v for i, v in enumerate(value)}


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """Draw a document with one to three changes.

    Args:
        draw: Given by hypothesis.
        document: JSON as Python has it.

    Returns:
        A changed copy, to be written by :func:`as_json` or :func:`as_yaml`.
    """
    document = copy.deepcopy(document)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        places = list(_places(document))
        path = draw(st.sampled_from(places[1:] or places))
        here = _at(document, path)
        change = draw(st.sampled_from(("value", "value", "value", "type", "wrap", "delete", "rename", "add")))
        if change == "value":
            document = _put(document, path, copy.deepcopy(draw(st.sampled_from(VALUES))))
        elif change == "type":
            document = _put(document, path, _other_type(here))
        elif change == "wrap":
            document = _put(document, path, draw(st.sampled_from(([here], {"x": here}, [[here, here]]))))
        elif path and isinstance(parent := _at(document, path[:-1]), dict):
            if change == "add":
                parent[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(st.sampled_from(VALUES)))
            else:
                value = parent.pop(path[-1])
                if change == "rename":
                    parent[draw(st.sampled_from(KEYS))] = value
        elif path:
            del _at(document, path[:-1])[path[-1]]
    return document


def _filled(text: str) -> str:
    for index, raw in enumerate(RAW_TEXTS):
        mark = _RAW.format(index)
        text = text.replace(f'"{mark}"', raw).replace(mark, raw)
    return text


def as_json(document: Any) -> bytes:
    """Write a drawn document as JSON, in whatever syntax it asks for.

    Args:
        document: Of :func:`changed`.

    Returns:
        Bytes.
    """
    return _filled(json.dumps(document, ensure_ascii=False)).encode("utf-8", "surrogatepass")


def as_yaml(document: Any) -> bytes:
    """Write a drawn document as YAML.

    Args:
        document: Of :func:`changed`.

    Returns:
        Bytes.
    """
    text = yaml.safe_dump(document, allow_unicode=True, sort_keys=False, width=10**9)
    for index, raw in enumerate(RAW_TEXTS):
        mark = _RAW.format(index)
        text = text.replace(f'"{mark}"', raw).replace(f"'{mark}'", raw).replace(mark, raw)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw what a bad disk, a bad transfer or a wrong tool makes of a file.

    Args:
        draw: Given by hypothesis.
        content: The file.

    Returns:
        Other bytes.
    """
    kind = draw(
        st.sampled_from(("replace", "cut", "flip", "twice", "utf-16", "latin-1", "bom", "insert", "hole"))
    )
    position = draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "replace":
        return draw(st.sampled_from(CONTENTS))
    if kind == "cut":
        return content[:position]
    if kind == "flip":
        flipped = content[position] ^ (1 << draw(st.integers(0, 7))) if content else 0
        return content[:position] + bytes([flipped]) + content[position + 1 :]
    if kind == "twice":
        return content + content
    if kind == "utf-16":
        return content.decode("latin-1").encode("utf-16")
    if kind == "latin-1":
        return content[:position] + b"\xe9" + content[position:]
    if kind == "bom":
        return b"\xef\xbb\xbf" + content
    if kind == "insert":
        return content[:position] + draw(st.sampled_from(CONTENTS)) + content[position:]
    return content[:position] + b"\x00" * min(64, len(content) - position) + content[position + 64 :]


def safetensors_parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Take a safetensors file apart.

    Args:
        content: The file.

    Returns:
        Its header as JSON, and its data.
    """
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def as_safetensors(header: Any, data: bytes) -> bytes:
    """Put a safetensors file together, with the right length whatever the header is.

    Args:
        header: Of :func:`changed`.
        data: The tensors.

    Returns:
        Bytes.
    """
    text = as_json(header)
    return struct.pack("<Q", len(text)) + text + data
