"""The one door for files of text: bounded in size, depth and length of numbers, one encoding, and validated.

What a file says is untrusted until it went through here: JSON and YAML are parsed into plain values within the limits,
and :func:`validated` holds them against a pydantic model before anyone indexes into them. Whatever is wrong is one line
that names the file, the place in it and the remedy.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gradfix.errors import GradfixError

MAX_BYTES = 100_000_000
MAX_YAML_BYTES = 1_000_000
"""People write YAML, and its parser takes seconds for a megabyte."""

MAX_DEPTH = 100
"""Deepest nesting of objects and lists; what copies or prints a value recurses as deep."""

MAX_DIGITS = 40
"""Longest integer: transformers writes 10³⁰ for "no limit"."""

_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
M = TypeVar("M", bound=BaseModel)


def require_regular(path: Path) -> None:
    """Refuse what is no file: a pipe that nobody writes would be waited for for ever.

    Args:
        path: What is to be opened.

    Raises:
        GradfixError: If it is a pipe, a device or a directory. What is absent is left to who opens it.
    """
    if path.exists() and not path.is_file():
        raise GradfixError(f"{path}: is not a regular file: give the path of a file")


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """Read a regular file of bounded size.

    Args:
        path: The file, or a link to one.
        most: Bytes it may have.

    Returns:
        Its content.

    Raises:
        GradfixError: If it is absent, unreadable, no regular file or too long.
    """
    require_regular(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise GradfixError(f"{path}: is too long: at most {most} bytes expected, found {size}")
            return file.read(most)
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise GradfixError(f"{path}: cannot be read ({reason}): check the path and its permissions") from None


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """Read a file of text in UTF-8.

    Args:
        path: The file.
        most: Bytes it may have.

    Returns:
        The text, without a byte order mark.

    Raises:
        GradfixError: As :func:`read_bytes`, or if it is not UTF-8.
    """
    return decoded(read_bytes(path, most), str(path))


def decoded(content: bytes, where: str) -> str:
    """Decode UTF-8.

    Args:
        content: Bytes.
        where: What they are, for messages.

    Returns:
        The text, without a byte order mark.

    Raises:
        GradfixError: If they are something else.
    """
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise GradfixError(
            f"{where}: is not UTF-8 (byte {error.start}): it is corrupt or in another encoding; save it as UTF-8"
        ) from None


def read_json(path: Path, *, finite: bool = True) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        finite: Refuse NaN and infinities; transformers writes infinities into some configurations.

    Returns:
        The object.
    """
    return parse_json(read_text(path), str(path), finite=finite)


def parse_json(text: str, where: str, *, finite: bool = True) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        text: The JSON.
        where: What it is from, for messages.
        finite: Refuse NaN and infinities.

    Returns:
        The object.

    Raises:
        GradfixError: If it is none, or another value.
    """
    value = parse_json_value(text, where, finite=finite)
    if not isinstance(value, dict):
        found = "null" if value is None else f"a {type(value).__name__}"
        raise GradfixError(f"{where}: expected a JSON object, found {found}: download or write it again")
    return value


def parse_json_value(text: str, where: str, *, finite: bool = True) -> Any:
    """Parse JSON of any kind within the limits of this module; no key stands twice in an object.

    Args:
        text: The JSON.
        where: What it is from, for messages.
        finite: Refuse NaN and infinities.

    Returns:
        The value.

    Raises:
        GradfixError: If it is no JSON, ambiguous, or beyond a limit.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_finite if finite else float,
            parse_constant=_finite if finite else float,
        )
        check_depth(value)
        if _HALF_CHARACTER.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, line {error.lineno} column {error.colno}"
        raise GradfixError(
            f"{where}: is not valid JSON ({reason}): it is corrupt; download or write it again"
        ) from None
    except UnicodeEncodeError:
        raise GradfixError(
            f"{where}: holds half of a character (\\ud800 to \\udfff): write it again"
        ) from None
    except RecursionError:
        raise GradfixError(f"{where}: is nested deeper than {MAX_DEPTH} levels: write it again") from None
    except ValueError as error:
        raise GradfixError(f"{where}: {error}: it is corrupt; download or write it again") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"duplicate key {twice[:80]!r}, expected each once")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits, at most {MAX_DIGITS} expected")
    return int(digits)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]}, expected a finite one")
    return value


def check_depth(value: Any) -> None:
    """Refuse a value that is nested too deeply to be walked.

    Args:
        value: Of objects, lists and scalars, without references between them.

    Raises:
        RecursionError: If it is.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise RecursionError(f"nested deeper than {MAX_DEPTH} levels")


def _inside(value: Any) -> Iterator[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in inner if isinstance(item, dict | list))


def read_yaml(path: Path) -> Any:
    """Read YAML of plain values: no tags, no references, no dates, no key twice.

    Args:
        path: The file.

    Returns:
        The value.
    """
    return parse_yaml(read_text(path, MAX_YAML_BYTES), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML as :func:`read_yaml` does.

    Args:
        text: The YAML.
        where: What it is from, for messages.

    Returns:
        The value.

    Raises:
        GradfixError: If it is something else, or beyond a limit.
    """
    import yaml

    try:
        value = yaml.load(text, Loader=_plain_loader())
        check_depth(value)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise GradfixError(f"{where}: is nested deeper than {MAX_DEPTH} levels: write it again") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise GradfixError(
            f"{where}: not a readable YAML file: {' '.join(str(error).split())[:300]}"
        ) from None
    return value


def _plain_loader() -> Any:
    import yaml

    class PlainLoader(yaml.SafeLoader):
        """Knows text, numbers, truth values, lists and mappings."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                # A few lines of references stand for gigabytes.
                raise yaml.YAMLError("a reference (*name) stands in it; spell out what it stands for")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            pairs = [(self.construct_object(key, deep=True), value) for key, value in node.value]
            if len({str(key) for key, _ in pairs}) != len(pairs):
                raise yaml.YAMLError(f"a key stands twice in the mapping at line {node.start_mark.line + 1}")
            return super().construct_mapping(node, deep)

        def construct_scalar(self, node: Any) -> Any:
            if node.tag == "tag:yaml.org,2002:int" and len(node.value) > MAX_DIGITS:
                raise yaml.YAMLError(
                    f"a number of {len(node.value)} digits at line {node.start_mark.line + 1}"
                )
            return super().construct_scalar(node)

    # A date is text to whoever writes a recipe, and month 13 must not end in an error of its own.
    PlainLoader.yaml_implicit_resolvers = {
        start: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return PlainLoader


def validated(model: type[M], value: Any, where: str, remedy: str = "write it again") -> M:
    """Hold a parsed value against a pydantic model.

    Args:
        model: What is expected.
        value: What was parsed.
        where: What it is from, for messages.
        remedy: What to do where it does not fit.

    Returns:
        The model.

    Raises:
        GradfixError: Naming the first keys that don't fit, and what they should be.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))[:80] or 'the whole'}: {_lower(problem['msg'])}, "
            f"found {_shown(problem['input'])}"
            for problem in error.errors()[:3]
        ]
        raise GradfixError(f"{where}: {'; '.join(problems)}: {remedy}") from None


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
