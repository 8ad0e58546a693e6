"""HTML built so that nothing from a file can become markup: what is not :class:`Html` is escaped."""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_VOID = frozenset(["br", "hr", "img", "meta", "input", "link"])


class Html(str):
    """Text that is markup already; only the functions of this module make it."""

    __slots__ = ()


Content = str | Html | None


def text(content: Content) -> Html:
    """Make content safe to stand in a page.

    Args:
        content: Markup, which stays; or text, which is escaped; or None for nothing.

    Returns:
        Markup.
    """
    if content is None:
        return Html()
    return content if isinstance(content, Html) else Html(html.escape(content, quote=True))


def tag(name: str, /, *children: Content, **attributes: str | bool | None) -> Html:
    """Make an element.

    Args:
        name: Of the element.
        *children: What stands in it; text is escaped.
        **attributes: By name, with ``_`` for ``-`` and ``class_`` for ``class``; True for one without a value, None
            and False for none. Values are escaped.

    Returns:
        Its markup.
    """
    given = "".join(
        f" {_attribute(key)}" if value is True else f' {_attribute(key)}="{html.escape(value, quote=True)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def joined(parts: Iterable[Content], separator: str = "") -> Html:
    """Put parts one after another.

    Args:
        parts: Markup or text.
        separator: Between them, text.

    Returns:
        Markup.
    """
    return Html(text(separator).join(text(part) for part in parts))


def embedded_json(value: Any) -> Html:
    """Write JSON that may stand inside a script element: no character in it can end the element.

    Args:
        value: What JSON can say; numbers that are not finite become null.

    Returns:
        The JSON, in ASCII.
    """
    content = json.dumps(finite(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    # In JSON these three stand in strings only, where an escape means the same.
    for character in "<>&":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return Html(content)


def finite(value: Any) -> Any:
    """Replace what JSON has no number for.

    Args:
        value: Nested dictionaries, lists and plain values.

    Returns:
        The same with None for NaN and infinities.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(entry) for entry in value]
    return value


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
