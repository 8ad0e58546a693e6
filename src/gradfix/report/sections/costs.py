"""What it cost, from what it was made, and how to make it again."""

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

from gradfix.recipes import only_in_python
from gradfix.report.elements import Part, Section
from gradfix.report.facts import Input, Observation, Sample
from gradfix.report.markup import render
from gradfix.report.numbers import duration, size
from gradfix.report.record import TransportRecord

STAGES = {
    "check": "check the inputs",
    "read data": "read the data",
    "observe the source": "look at the tuned source",
    "load": "load the new base",
    "choose samples": "choose samples",
    "align": "align the source",
    "vote and choose α": "vote and choose α",
    "certify": "certify the first-order change",
    "judge": "judge beside the control",
    "hash inputs": "hash the inputs",
    "write": "write the model",
}


def cost_section(record: TransportRecord) -> Section | None:
    """Show time by stage, and memory.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where no time was taken.
    """
    seconds = seconds_of(record)
    if not seconds:
        return None
    slowest = max(seconds, key=lambda name: seconds[name])
    lead = f"{duration(sum(seconds.values()))} in all, most of it to {STAGES.get(slowest, slowest)} "
    lead += f"({duration(seconds[slowest])})"
    peak, device = record.peak_memory_bytes, record.options.device
    lead += f"; the process held {size(peak)} of memory at most." if peak else "."
    return Section("cost", "What it cost", lead + (f" Device: {device}." if device else ""), [bars(seconds)])


def bars(seconds: Mapping[str, float]) -> Markup:
    """Draw times as bars, the longest over the whole width.

    Args:
        seconds: By stage; at least one.

    Returns:
        Markup.
    """
    bars = [(STAGES.get(name, name), value, duration(value)) for name, value in seconds.items()]
    return render("bars.html", bars=bars, longest=max(seconds.values()) or 1.0)


def seconds_of(record: TransportRecord) -> dict[str, float]:
    """Give the wall time of each stage; that of writing is not over when the record is made, so its own is taken.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        Seconds by stage.
    """
    writing = {} if record.applied is None else {"write": record.applied.seconds}
    return {
        **record.seconds,
        **{name: value for name, value in writing.items() if name not in record.seconds},
    }


def transport_inputs(record: TransportRecord) -> Section | None:
    """Name what a transport is made from.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where nothing of it is known.
    """
    return inputs_section(
        "transport",
        record.recipe,
        inputs=record.inputs,
        support=record.support,
        observation=record.observation,
        versions=record.versions,
    )


def inputs_section(
    command: str,
    recipe: Mapping[str, Any],
    *,
    inputs: Mapping[str, Input] = MappingProxyType({}),
    support: Sequence[Sample] = (),
    observation: Observation | None = None,
    versions: Mapping[str, str] = MappingProxyType({}),
) -> Section | None:
    """Name the inputs with their hashes, the versions, and the recipe to copy.

    Args:
        command: As ``transport``.
        recipe: Its options.
        inputs: Models by role.
        support: The samples that voted.
        observation: What was seen of the source, which may have answered inputs.
        versions: Of packages.

    Returns:
        The section; None where nothing of it is known.
    """
    parts: list[Part] = []
    if inputs:
        parts.append(render("inputs.html", inputs=inputs))
    if support:
        parts.append(render("samples.html", support=support))
    if observation is not None and observation.unlabelled:
        parts.append(
            Markup(
                '<p class="note">Beside them {:,} samples with answers of the tuned old model took part (of {:,} '
                "asked for): they voted, and judged nothing.</p>"
            ).format(observation.labelled_by_source, observation.unlabelled)
        )
    if versions:
        listed = ", ".join(f"{name} {version}" for name, version in versions.items())
        parts.append(Markup('<p class="note">Versions: {}.</p>').format(listed))
    if recipe:
        missing = only_in_python(recipe) if command == "transport" else []
        parts.append(render("recipe.html", recipe=recipe_text(command, recipe), missing=missing))
    return Section("inputs", "Made from", "", parts) if parts else None


def recipe_text(command: str, recipe: Mapping[str, Any]) -> str:
    """Write a recipe as ``gradfix run`` reads it.

    Args:
        command: As ``transport``.
        recipe: Its options.

    Returns:
        YAML.
    """
    import yaml

    return str(yaml.safe_dump({"command": command, **recipe}, sort_keys=False, allow_unicode=True))


def short(location: str) -> str:
    """Name a model for a heading.

    Args:
        location: Hub id or path.

    Returns:
        A Hub id whole, a path by its last part.
    """
    if location.count("/") == 1 and not os.path.isabs(location):
        return location
    return os.path.basename(location.rstrip("/")) or location
