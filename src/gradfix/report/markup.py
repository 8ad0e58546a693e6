"""Templates in which nothing from a file can become markup: what is not :class:`markupsafe.Markup` is escaped."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gradfix.report.elements import Figure, Table

Content = str | Markup


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("gradfix.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["embedded_json"] = embedded_json
    made.tests["a_figure"] = lambda part: isinstance(part, Figure)
    made.tests["a_table"] = lambda part: isinstance(part, Table)
    return made


def render(template: str, **content: Any) -> Markup:
    """Fill a template of this package.

    Args:
        template: Its file.
        **content: What it shows; text is escaped.

    Returns:
        Markup.
    """
    return Markup(_templates().get_template(template).render(content))


def embedded_json(value: Any) -> Markup:
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
    return Markup(content)


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
