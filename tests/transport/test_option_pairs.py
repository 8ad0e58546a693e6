"""Every pair of options of a transport: each of the two has an effect beside the other, or one line refuses them.

The pairs are made from the recipe's fields, so a new option fails here until it is given a value or a reason.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from gradfix.errors import GradfixError
from gradfix.recipes import TransportRecipe, validate
from gradfix.recipes.fields import VOTELESS_MASKS
from gradfix.transport import pipeline
from gradfix.transport.run import TransportRun
from gradfix.vectors import output
from gradfix.vectors.mask_strategies import STRATEGIES
from tests import tiny
from tests.transport.test_pipeline import Job, job

SHAPES_NOTHING = {
    "source_base": "required", "source_tuned": "required", "target_base": "required", "output": "required",
    "task": "required", "batch_size": "a resource", "device": "a resource", "shard_size": "of files, not of values",
    "examples": "of the page", "strict": "a refusal", "trust_remote_code": "a permission", "overwrite": "a permission",
    "resume": "what is there already", "restart": "what is there already", "seed": "only for what is drawn at random",
    "rounding": "only for formats narrower than float32: tests/test_update.py", "configuration": "of Hub data",
    "column": "renames", "label": "this model has its own", "candidate": "of another task", "prefix": "of another task",
    "templates": "of another task", "text_from": "of another task",
    "method": "auto chooses the others, which it then refuses",
    "encoding": "how files are read: tests/tasks",
    "max_length": "how inputs are read: tests/tasks", "metric": "how answers are graded: tests/tasks",
    "max_new_tokens": "how answers are graded: tests/tasks", "beta": "of another task",
    "push_to_hub": "what becomes of it",
    "track": "what becomes of it",
    "align": "given with align_data, and by name below",
    "samples_per_class": "goes with data", "split": "of data with several", "validation_split": "likewise",
    "test_split": "likewise", "space": "of a LoRA adapter: tests/transport/test_adapter_space.py",
    "output_format": "goes with rank or energy: tests/vectors/test_truncation.py", "rank": "likewise",
    "granularity": "of a LoRA adapter, likewise",
    "energy": "likewise", "whole": "likewise", "memory": "where weights are: tests/evaluation/test_streaming.py",
    "compute_dtype": "of numbers alone, likewise",
    "generate_inputs": "of tasks that write: tests/transport/test_written_answers.py",
    "training": "of method auto",  "support": "given unless data is",
}  # fmt: skip
"""Options that are not paired, and why."""

ALIGNED = {"align": "regression"}


def values_of(name: str, field: FieldInfo, places: dict[str, str]) -> list[dict[str, Any]]:
    """Options that set a field to what is not its default, by its type."""
    rows: dict[str, dict[str, Any]] = {
        "validation": {"validation": places["held"]},
        "test": {"test": places["test"]},
        "data": {"data": places["pool"], "samples_per_class": 2, "support": None},
        "unlabelled": {"unlabelled": places["texts"], **ALIGNED},
        "align_data": {"align_data": places["texts"], **ALIGNED},
        "alpha": {"alpha": "0.3"},
        "sampling": {"sampling": "herding", "data": places["pool"], "samples_per_class": 2, "support": None},
        "confidence": {"confidence": 0.4},
    }
    if name in rows:
        return [rows[name]]
    if (
        isinstance(field.json_schema_extra, dict) and "known" in field.json_schema_extra
    ):  # or a function of one's own
        return [{name: value} for value in field.json_schema_extra["known"] if value != field.default]
    kinds = [field.annotation, *get_args(field.annotation)]
    for kind in kinds:
        if get_origin(kind) is Literal:
            return [{name: value} for value in get_args(kind) if value != field.default]
    if bool in kinds:
        return [{name: not field.default}]
    if int in kinds:
        return [{name: 2}]
    raise AssertionError(f"{name}: give it a value here, or a reason in SHAPES_NOTHING")


def options_of(places: dict[str, str]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, field in TransportRecipe.model_fields.items():
        if name in SHAPES_NOTHING:
            continue
        for number, options in enumerate(values_of(name, field, places)):
            found[f"{name}={options.get(name)}" if number or name == "mask" else name] = options
    return found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return job("text-classification", tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def places(work: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("rows")
    parts = {
        "support": list(work.rows), "pool": tiny.texts(40, seed=3), "held": tiny.texts(12, seed=4),
        "test": tiny.texts(15, seed=5), "texts": [{"text": row["text"]} for row in tiny.texts(12, seed=6)],
    }  # fmt: skip
    for name, rows in parts.items():
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return {name: str(root / f"{name}.jsonl") for name in parts}


class Stop(Exception):  # noqa: N818 - nothing went wrong
    """Everything is decided; writing and the page would take longer than all before."""


@pytest.fixture
def outcome(
    work: Job, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], str | None]:
    """What a transport of some options would write and report, as a digest; None where it is refused."""
    seen: list[str] = []
    lines: list[int] = []

    def record(run: TransportRun) -> dict[str, Any]:
        told = [
            asdict(part) if part else None for part in (run.decision.alpha, run.certificate, run.judgement)
        ]
        for measured in (told[2] or {}).values():
            if isinstance(measured, dict):
                measured.pop("seconds", None)
        seen.append(json.dumps(told, default=repr))
        return {}

    def write(delta: Any, target: Any, *, alpha: float, **options: Any) -> Any:
        digest = hashlib.sha256(json.dumps([alpha, options["dtype"]]).encode())
        for name in sorted(delta.specs):
            digest.update(delta.read(name).mul(alpha).numpy().tobytes())
        for values in options["heads"].values():
            digest.update(values.detach().numpy().tobytes())
        seen.append(digest.hexdigest())
        raise Stop

    monkeypatch.setattr(pipeline, "transport_record", record)
    monkeypatch.setattr(output, "apply", write)
    known: dict[str, str | None] = {}
    fixed = {"alpha": "0.6", "support": places["support"], "method": "gradfix", "output": tmp_path / "out"}
    models = {kind: str(path) for kind, path in work.models.items()}

    def run(options: dict[str, Any]) -> str | None:
        key = json.dumps(options, sort_keys=True)
        if key not in known:
            seen.clear()
            try:
                recipe = validate(
                    TransportRecipe, {"task": work.task, **models, **fixed, **options}, "transport"
                )
                pipeline.run_transport(recipe)
            except GradfixError as error:
                seen.clear()
                lines.append(str(error).count("\n"))
            except Stop:
                pass
            known[key] = "".join(seen) or None
            assert not any(lines), options
        return known[key]

    return run


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any] | None:
    """Both; None where they give one option two values."""
    if any(one[name] != other[name] for name in one.keys() & other.keys()):
        return None
    return {**one, **other}


def pairs(options: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for one, other in itertools.combinations(options, 2):
        both = joined(options[one], options[other])
        if (
            both is not None
            and {one, other} != {"data", "sampling"}
            and one.partition("=")[0] != other.partition("=")[0]
        ):
            yield one, other, both


@pytest.mark.campaign
@pytest.mark.slow
def test_each_option_of_a_pair_has_an_effect_or_the_pair_is_refused(
    outcome: Callable[[dict[str, Any]], str | None], places: dict[str, str]
) -> None:
    options = options_of(places)
    idle = []
    for one, other, both in pairs(options):
        found = outcome(both)
        if found is None:
            continue
        for name, kept in ((one, options[other]), (other, options[one])):
            # What an option brings with it (data its samples, alignment its method) stays when it alone is left out.
            alone = {**{key: value for key, value in both.items() if key != name.partition("=")[0]}, **kept}
            if name == "data":
                alone = kept
            if outcome(alone) == found:
                idle.append(f"{name} beside {other if name == one else one}")
    assert not idle, "\n".join(idle)


def test_every_option_is_paired_or_says_why_not(places: dict[str, str]) -> None:
    paired = {name.partition("=")[0] for name in options_of(places)}
    assert paired | set(SHAPES_NOTHING) == set(TransportRecipe.model_fields)
    assert not paired & set(SHAPES_NOTHING)


def test_masks_that_ask_nobody_are_those_of_the_strategies() -> None:
    assert {name for name, of in STRATEGIES.items() if of.needs == "nothing"} == set(VOTELESS_MASKS)
