"""The records that commands write as JSON: the format of ``gradfix.json`` and its like, defined, written and read here.

A field with a default is one that an earlier record of the same version may lack. What changes the meaning of a field
raises the version, and another version is refused.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from gradfix.errors import GradfixError
from gradfix.report.facts import (
    Alignment,
    Alpha,
    Applied,
    Certificate,
    Check,
    Evaluation,
    Examples,
    Input,
    Interval,
    Judgement,
    Method,
    Observation,
    Options,
    Part,
    Sample,
    Seconds,
    Step,
    Votes,
)
from gradfix.text_files import parse_json_value, read_text

RECORD_FILE = "gradfix.json"


class Record(Part):
    """A whole record.

    Attributes:
        format: Which kind.
        version: Of the kind; a reader of another one refuses it.
    """

    format: str
    version: int

    def __repr__(self) -> str:
        return f"{type(self).__name__}(version={self.version}, fields: {', '.join(type(self).model_fields)})"

    def written(self) -> str:
        """Give the text of the file.

        Returns:
            JSON.
        """
        return json.dumps(self.plain(), indent=1, ensure_ascii=False) + "\n"


class RecipeRecord(Record):
    """A record of what a recipe made.

    Attributes:
        recipe: The options, as ``gradfix run`` takes them.
        options: Those of them that pages speak of.
    """

    recipe: dict[str, Any]
    options: Options = Field(default=Options(), exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _spoken_of(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "recipe" not in content:
            return content
        return {**content, "options": content["recipe"]}


class TransportRecord(RecipeRecord):
    """What ``gradfix transport`` leaves in ``gradfix.json``.

    Attributes:
        format: Always the same.
        version: Of this class.
        versions: Of the packages that the result depends on.
        settings: The numbers of the selection; empty in older records.
        inputs: The three models by role.
        check: What the checks found of them.
        support: The labelled samples.
        space: Whether the coordinates are weights, or those of a LoRA adapter, which is then written.
        votes: Those that masked; None where none did.
        silent_parameters: Those that the task's gradients don't reach.
        method: What ``auto`` took; None where the recipe said it all.
        alignment: None without one.
        observation: None where the source was not run.
        steps: Of voting anew; None without.
        alpha: How far it went.
        certificate: What the gradient predicted.
        judgement: None where no data were held out.
        untruncated: What the vector gives on the same data before an adapter was extracted of it; None without.
        verdict: In sentences.
        examples: None without a judgement.
        applied: What was written.
        seconds: Wall time by stage.
        peak_memory_bytes: Of the process.
    """

    format: Literal["gradfix-transport"] = "gradfix-transport"
    version: Literal[1] = 1
    versions: dict[str, str]
    settings: dict[str, Any] = {}
    inputs: dict[str, Input]
    check: Check | None = None
    support: list[Sample]
    space: Literal["weights", "adapter"] = "weights"
    votes: Votes | None = None
    silent_parameters: list[str] = []
    method: Method | None = None
    alignment: Alignment | None = None
    observation: Observation | None = None
    steps: list[Step] | None = None
    alpha: Alpha
    certificate: Certificate
    judgement: Judgement | None = None
    untruncated: Evaluation | None = None
    verdict: str = ""
    metric: str = ""
    examples: Examples | None = None
    applied: Applied | None = None
    seconds: dict[str, Seconds] = {}
    peak_memory_bytes: int | None = None


class AppliedRecord(Record):
    """What ``gradfix apply`` and ``gradfix merge`` leave in ``gradfix.json``.

    Attributes:
        format: Always the same; the first records had none.
        version: Of this class.
        gradfix: Its version.
        identity: What the weights are made from, by fingerprint.
        applied: What was written.
    """

    format: Literal["gradfix-applied"] = "gradfix-applied"
    version: Literal[1] = 1
    gradfix: str
    identity: dict[str, Any]
    applied: Applied


class Outcome(Part):
    """One method on one draw; see :class:`gradfix.transport.comparison.draws.Outcome`."""

    score: float
    loss: float
    setting: dict[str, float]
    retained: float | None
    seconds: Seconds
    way: str | None = None


class Line(Part):
    """One method at one budget; see :class:`gradfix.transport.comparison.table.Line`."""

    budget: int
    method: str
    score: Interval
    gain: Interval
    over_control: Interval | None
    retained: Interval | None
    outcomes: list[Outcome]
    label: str


class ComparisonRecord(RecipeRecord):
    """What ``gradfix compare`` leaves in ``comparison.json``.

    Attributes:
        format: Always the same.
        version: Of this class.
        metric: What the scores are, in words.
        caption: What they rest on.
        rows: A line a method and budget.
        identity: Of options and files, to tell whether it would be made again; empty where nothing tells.
    """

    format: Literal["gradfix-comparison"] = "gradfix-comparison"
    version: Literal[1] = 1
    metric: str = "score"
    caption: str
    rows: list[Line]
    identity: str = ""


class CloseRelease(Part):
    """The demo's second transport.

    Attributes:
        verdict: In sentences.
        judgement: Its measurements.
    """

    verdict: str
    judgement: Judgement | None


class ChangedDigit(Part):
    """See :class:`gradfix.demo.pictures.Changed`, without the image."""

    label: str
    before: str
    after: str


class DemoRecord(Record):
    """What ``gradfix demo`` leaves in ``demo.json``.

    Attributes:
        format: Always the same.
        version: Of this class.
        verdict: On the transport.
        close_release: The same on a close release.
        metric: What the scores of the rows are, in words.
        caption: What they rest on.
        rows: The transport beside the baselines.
        changed: A few digits whose prediction changed.
        model: Where the transported model is.
        command: How to make it by hand.
        transport: The record of the transport, which stands in a file of its own.
    """

    format: Literal["gradfix-demo"] = "gradfix-demo"
    version: Literal[1] = 1
    verdict: str
    close_release: CloseRelease | None
    metric: str = "score"
    caption: str
    rows: list[Line]
    changed: list[ChangedDigit] = []
    model: str = ""
    command: str = ""
    transport: TransportRecord = Field(exclude=True)


AnyRecord = TypeVar("AnyRecord", bound=Record)


def parse(content: object, kinds: Sequence[type[AnyRecord]], where: str) -> AnyRecord:
    """Make a record of JSON.

    Args:
        content: What was read.
        kinds: The classes that may come.
        where: What it is from, for messages.

    Returns:
        The record.

    Raises:
        GradfixError: if it is of no such kind, of another version, or damaged.
    """
    if not isinstance(content, Mapping):
        raise GradfixError(f"{where}: expected a JSON object, found {type(content).__name__}")
    written, version = content.get("format"), content.get("version")
    formats = [kind.model_fields["format"].default for kind in kinds]
    if written not in formats:
        raise GradfixError(
            f"{where}: expected a record of gradfix ({', '.join(formats)}), found format {written!r}; "
            "give the folder that a gradfix command wrote"
        )
    kind = kinds[formats.index(written)]
    read = kind.model_fields["version"].default
    if version != read:
        raise GradfixError(
            f"{where}: {written} of version {version!r}, this gradfix reads {read}; "
            "read it with the version of gradfix that wrote it"
        )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place, what = ".".join(map(str, first["loc"])), " ".join(first["msg"].split())
        raise GradfixError(
            f"{where}: damaged: {place}: {what}; restore the file as gradfix wrote it"
        ) from error


def read_json(path: Path) -> object:
    """Read a record's file.

    Args:
        path: Of it.

    Returns:
        What it holds.
    """
    return parse_json_value(read_text(path), str(path), finite=False)


def read_applied(path: Path) -> TransportRecord | AppliedRecord:
    """Read what stands beside written weights.

    Args:
        path: A ``gradfix.json``.

    Returns:
        The record of a transport, or that of ``apply`` or ``merge``.
    """
    content = read_json(path)
    if isinstance(content, dict) and "format" not in content and "applied" in content:
        content = {"format": "gradfix-applied", "version": 1, **content}  # as the first ones were written
    kinds: tuple[type[TransportRecord | AppliedRecord], ...] = (TransportRecord, AppliedRecord)
    return parse(content, kinds, str(path))


FILES: dict[str, type[TransportRecord | ComparisonRecord | DemoRecord]] = {
    "demo.json": DemoRecord,
    "comparison.json": ComparisonRecord,
    RECORD_FILE: TransportRecord,
}
"""Records that have a page, by file name, the one that tells most first."""


def read_record(folder: Path) -> tuple[Path, TransportRecord | ComparisonRecord | DemoRecord]:
    """Read the record of a folder that has a page.

    Args:
        folder: The output of ``transport``, ``compare`` or ``demo``.

    Returns:
        The file, and what it holds; a demo's with the record of its transport.

    Raises:
        GradfixError: if there is none, or it can't be read.
    """
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None:
        raise GradfixError(
            f"{folder}: expected one of {', '.join(FILES)}, found none; "
            "give the folder that gradfix transport, compare or demo wrote"
        )
    content = read_json(found)
    if FILES[found.name] is DemoRecord and isinstance(content, dict):
        model = folder / "model" / RECORD_FILE
        content["transport"] = parse(read_json(model), (TransportRecord,), str(model))
    return found, paged(content, str(found))


def paged(content: object, where: str) -> TransportRecord | ComparisonRecord | DemoRecord:
    """Make a record that has a page of JSON.

    Args:
        content: What was read.
        where: What it is from, for messages.

    Returns:
        The record.
    """
    kinds: tuple[type[TransportRecord | ComparisonRecord | DemoRecord], ...] = tuple(FILES.values())
    return parse(content, kinds, where)
