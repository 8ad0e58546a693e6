"""Do three models fit each other? Answered from headers and configurations, then from a few rows of each tensor."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from gradfix.arithmetic import add_rounded
from gradfix.checkpoints import Checkpoint, TensorSpec
from gradfix.checkpoints.expressions import Aliased, Gathered, Selection
from gradfix.checkpoints.model_config import custom_code
from gradfix.checkpoints.public_layouts import public_layout
from gradfix.errors import ArchitectureError, GradfixError, listed
from gradfix.report.numbers import size
from gradfix.report.summary import Summarised, Summary
from gradfix.tasks import ModelTask
from gradfix.vectors.apart import place_apart
from gradfix.vectors.apply import output_specs
from gradfix.vectors.model_files import companion_files, merged_config
from gradfix.vectors.placement import own_weights, place
from gradfix.vectors.similarity import CLOSE, UNRELATED, WeightSample, likeness, matrices
from gradfix.vectors.task_vector import Placement, TaskVector
from gradfix.vectors.verification import refuse_unloadable

HEAD_PARTS = frozenset(
    {"pooler", "classifier", "pre_classifier", "classification_head", "score", "qa_outputs"}
)
"""Parts of names outside the blocks of a network, which a release may lack and a task may read."""

Level = Literal["error", "warning", "note"]

# Keys of a configuration that change what the same weights compute.
_FUNCTIONAL = (
    "hidden_act", "activation_function", "layer_norm_eps", "rms_norm_eps", "rope_theta", "rope_parameters",
    "num_attention_heads", "num_key_value_heads", "patch_size", "image_size", "position_embedding_type",
    "feed_forward_proj", "scale_attn_weights", "sliding_window",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that the check found.

    Attributes:
        level: ``error`` stops a transport, ``warning`` may spoil it, ``note`` is good to know.
        text: What, and what to do about it.
    """

    level: Level
    text: str


def ignore(finding: Finding) -> None:
    """Tell nobody: the default of whatever reports findings as they are made."""


@dataclass(repr=False)
class Findings(Summarised):
    """What was found of the inputs.

    Attributes:
        findings: In the order they were found.
        cosine_tuned: Cosine between the sampled weights of θ_A and θ_A^ft.
        cosine_target: Between θ_A and θ_B where training touched them
            (:func:`gradfix.vectors.similarity.likeness`): near 1 for a close release, near 0 for another pre-training.
        relative_norm: ‖τ‖ / ‖θ_A‖ on the sample.
        output_bytes: Size of the model that would be written.
        seconds: Estimated time to write it, measured on one block.
        hold: Keep findings until :meth:`release`, so that what is refused says one thing alone.
        tell: Told each finding at once, so that a person reads it before anything long starts.
    """

    findings: list[Finding] = field(default_factory=list)
    cosine_tuned: float | None = None
    cosine_target: float | None = None
    relative_norm: float | None = None
    output_bytes: int | None = None
    seconds: float | None = None
    hold: bool = field(default=False, compare=False)
    tell: Callable[[Finding], None] = field(default=ignore, compare=False)

    def summary(self) -> Summary:
        """Say whether a transport is possible, errors first.

        Returns:
            A line a finding.
        """
        if not self.ok:
            title = "not possible"
        elif self.output_bytes is None:
            title = "nothing found against it"
        else:
            title = (
                f"possible: {size(self.output_bytes)} to write, about {max(1, round(self.seconds or 0))} s"
            )
        told = sorted(self.findings, key=lambda finding: ("error", "warning", "note").index(finding.level))
        return Summary(title, [(finding.level, finding.text) for finding in told])

    @property
    def ok(self) -> bool:
        """Whether nothing stands against a transport."""
        return all(finding.level != "error" for finding in self.findings)

    def add(self, level: Level, text: str) -> None:
        """Record a finding.

        Args:
            level: How bad.
            text: What, and what to do.
        """
        finding = Finding(level, text)
        if finding in self.findings:
            return
        self.findings.append(finding)
        if not self.hold:
            self.tell(finding)

    def release(self) -> None:
        """Tell what was held back: nothing was refused."""
        self.hold = False
        for finding in self.findings:
            self.tell(finding)

    def refuse(self) -> None:
        """Stop where an error was found.

        Raises:
            GradfixError: with the first error, and how many more there are.
        """
        errors = [finding.text for finding in self.findings if finding.level == "error"]
        if errors:
            more = f" (and {len(errors) - 1} more; see `gradfix check`)" if len(errors) > 1 else ""
            raise GradfixError(errors[0] + more)


@dataclass(frozen=True)
class Models:
    """Three models whose headers fit each other.

    Attributes:
        base: θ_A.
        tuned: θ_A^ft.
        target: θ_B.
        tau: θ_A^ft − θ_A.
        laid: τ laid onto the target; None where it has no place there, before a task tells what takes its place.
        apart: Why τ has no place in the target; None where it has one.
        adapter: Whether the fine-tune is moved, and written, as the LoRA adapter that it is.
    """

    base: Checkpoint
    tuned: Checkpoint
    target: Checkpoint
    tau: TaskVector
    laid: Placement | None
    apart: str | None = None
    adapter: bool = False

    @property
    def placement(self) -> Placement:
        """What is laid onto the target."""
        if self.laid is None:
            raise GradfixError(f"{self.apart}; only transport can carry a fine-tune over to such a base")
        return self.laid


def _as_weights(tuned: Checkpoint, placement: Placement) -> bool:
    return False


def open_models(
    source_base: str,
    source_tuned: str,
    target_base: str,
    found: Findings,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    as_adapter: Callable[[Checkpoint, Placement], bool] = _as_weights,
) -> Models:
    """Open three models and hold their headers, configurations and tokenizers against each other; no weight is read.

    Args:
        source_base: θ_A.
        source_tuned: θ_A^ft; an adapter is read on top of θ_A.
        target_base: θ_B.
        found: Told what is found.
        output: Where the result would go; its disk is checked if given.
        overwrite: It may be there already.
        as_adapter: Tells of the tuned model and its placement whether an adapter will be written.

    Returns:
        The models.

    Raises:
        GradfixError: if one can't be opened, or an error was found.
    """
    base = Checkpoint.open(source_base, dequantise=True)
    tuned = Checkpoint.open(source_tuned, base=base)
    if base.quantised is not None and tuned.adapter_of is None:
        Checkpoint.open(source_base)  # refuses: a difference to rounded weights is no task vector
    target = Checkpoint.open(target_base, dequantise=True)
    _compare_configurations(found, base, tuned, target)
    _note_layouts(found, base, tuned, target)
    _note_custom_code(found, base, tuned, target)
    _note_unplaced(found, base, tuned)
    tau = TaskVector.between(base, tuned)
    try:
        placement = place(_heads_whole(tau, tuned, target), target)
    except ArchitectureError as error:
        found.refuse()
        _refuse_rounded(target)
        return Models(base, tuned, target, tau, None, str(error))
    models = Models(base, tuned, target, tau, placement, adapter=as_adapter(tuned, placement))
    if not models.adapter:
        _refuse_rounded(target)
    _judge_placement(found, models, output, overwrite)
    return models


def _refuse_rounded(target: Checkpoint) -> None:
    """Refuse a quantised target of which a whole model would be written."""
    if target.quantised is not None:
        raise GradfixError(
            f"{target.location}: is quantised ({target.quantised}), so nothing but an adapter can be moved onto it, in "
            "adapter space; give a LoRA adapter as the source, or the target before quantisation"
        )


def lay_apart(
    models: Models, task: ModelTask, found: Findings, *, output: Path | None = None, overwrite: bool = False
) -> Models:
    """Lay out a target of other shapes, once its task is known; nothing for others.

    Args:
        models: The three models.
        task: Bound to the target.
        found: Told what is found.
        output: Where the result would go.
        overwrite: It may be there already.

    Returns:
        The models with a placement.

    Raises:
        ArchitectureError: if the task builds its own model.
        GradfixError: if the output has no place for a head, or no room on the disk.
    """
    if models.apart is None:
        return models
    if task.builds_model:
        raise ArchitectureError(models.apart)
    placement = place_apart(models.tau, models.target, task)
    found.add(
        "note",
        f"{models.apart}. So no coordinate of the task vector is added: the fine-tune is carried over by what it "
        "changed in the old base's activations, fitted to the new base's own layers",
    )
    if placement.vector.additions.specs:
        found.add(
            "note",
            f"{listed(placement.vector.additions.specs)}: fitted to the tuned model's answers, since its own head has "
            "no place there",
        )
    models = replace(models, laid=placement)
    _judge_placement(found, models, output, overwrite)
    return models


def _judge_placement(found: Findings, models: Models, output: Path | None, overwrite: bool) -> None:
    """Say how a placement lies, and refuse what could not be loaded or has no room on the disk."""
    tuned, target, placement = models.tuned, models.target, models.placement
    if models.apart is None:
        note_placement(found, placement, target, adapter=models.adapter)
    # An adapter's configuration names neither its head's architecture nor its classes: the task tells them later, and
    # the output is judged before it gets its name.
    if not models.adapter and not (tuned.adapter_of is not None and placement.vector.additions.specs):
        config = merged_config(placement.vector, target.config)
        refuse_unloadable(config, output_specs(placement, target, None), target, str(output or "the output"))
    _check_room(found, models, output, overwrite)
    found.refuse()


def _heads_whole(tau: TaskVector, tuned: Checkpoint, target: Checkpoint) -> TaskVector:
    """Take a head or pooler that the target lacks whole from the tuned model: there is nothing to add its τ to."""
    # A release of masked-language models has no pooler, whether or not the old base had one.
    parts = {part for name in target.specs for part in name.split(".")}
    names = [name for name in tau.specs if (head := HEAD_PARTS & {*name.split(".")}) and not head & parts]
    if not names:
        return tau
    kept = {name: name for name in tau.specs if name not in names}
    found = tau.derive(Selection(tau, kept), operation="take heads whole", names=names)
    found.additions = Gathered(
        dict.fromkeys(tau.additions.specs, tau.additions) | dict.fromkeys(names, tuned)
    )
    found.adapter = tau.adapter
    return found


def check_weights(models: Models, found: Findings) -> None:
    """Read a few rows of each weight matrix: does τ come from this base, and how close is the target?

    Args:
        models: The three models.
        found: Told what is found.

    Raises:
        GradfixError: if an error was found: τ is zero, or the tuned model is not a fine-tune of the base.
    """
    if models.apart is not None:
        check_tuned(models.base, models.tuned, models.tau, found)
        if models.laid is not None:
            found.seconds = _measured_seconds(models)
        return
    base, tuned, target, vector = models.base, models.tuned, models.target, models.placement.vector
    weights = Aliased(place(own_weights(base), target).vector, target.ties)
    names = [name for name in matrices(vector) if name in weights.specs]
    delta = WeightSample(vector, names)
    # θ_A^ft is not read again: with τ and θ_A known in the target's names, it is their sum.
    origin = WeightSample(weights, names)
    theirs = WeightSample(models.placement.base, names)
    found.relative_norm = delta.norm() / origin.norm() if origin.norm() else None
    found.cosine_tuned = origin.cosine(origin.values + delta.values)
    found.cosine_target = likeness(origin, theirs, delta)
    _judge_descent(found, base, tuned, zero=delta.norm() == 0 and models.tau.norm() == 0)
    if found.cosine_target is not None:
        close = found.cosine_target > CLOSE
        found.add(
            "note",
            f"{target.location} is {'a close release of' if close else 'pre-trained apart from'} {base.location}: "
            f"the cosine of their weights is {found.cosine_target:.2f}; "
            + ("naive addition may already work" if close else "naive addition is not expected to work"),
        )
        if found.cosine_target > 1 - 1e-9:
            found.add(
                "warning",
                f"{target.location} has the same weights as {base.location}: there is nothing to move",
            )
    found.seconds = _measured_seconds(models)
    found.refuse()


def check_tuned(base: Checkpoint, tuned: Checkpoint, tau: TaskVector, found: Findings) -> None:
    """Hold a tuned model against its base where there is no target: configurations, then a few rows of each matrix.

    Args:
        base: θ_A.
        tuned: θ_A^ft.
        tau: Their difference.
        found: Told what is found.

    Raises:
        GradfixError: if an error was found: τ is zero, or the tuned model is not a fine-tune of the base.
    """
    _compare_configurations(found, base, tuned)
    _note_unplaced(found, base, tuned)
    names = matrices(tau)
    delta, theirs = WeightSample(tau, names), WeightSample(Aliased(tuned, tuned.ties), names)
    origin = theirs.values - delta.values
    found.relative_norm = delta.norm() / float(origin.norm()) if float(origin.norm()) else None
    found.cosine_tuned = theirs.cosine(origin)
    _judge_descent(found, base, tuned, zero=delta.norm() == 0 and tau.norm() == 0)
    found.refuse()


def _judge_descent(found: Findings, base: Checkpoint, tuned: Checkpoint, *, zero: bool) -> None:
    if zero:
        found.add(
            "error",
            f"{tuned.location}: equal to {base.location} in every weight, so the task vector is exactly zero; "
            "give the fine-tuned model as the tuned one",
        )
    elif found.cosine_tuned is not None and found.cosine_tuned < UNRELATED:
        apart = f"the cosine of their weights is {found.cosine_tuned:.2f}, a fine-tune's is above 0.9"
        if tuned.adapter_of is not None:
            found.add(
                "warning",
                f"{tuned.location}: changes {base.location} beyond recognition: {apart}; the base that its own "
                f"configuration names: {tuned.adapter_of or 'none'}",
            )
        else:
            found.add(
                "error",
                f"{tuned.location}: does not descend from {base.location}: {apart}; give the base it was tuned from",
            )


def _compare_configurations(found: Findings, base: Checkpoint, *others: Checkpoint) -> None:
    for other in others:
        kinds = base.config.get("model_type"), other.config.get("model_type")
        alike = None in kinds or kinds[0] == kinds[1] or _is_tower(base.config, other.config)
        if not alike:
            found.add(
                "warning",
                f"{other.location}: model_type is {kinds[1]}, in {base.location} it is {kinds[0]}; their weights are "
                "matched by names and shapes",
            )
        differing = [
            f"{path} {theirs!r} against {ours!r}"
            for path, ours, theirs in _differences(*_towers(base.config, other.config))
            if ours is not None and theirs is not None
        ]
        if differing:
            found.add(
                "warning",
                f"{other.location}: its configuration computes something else than {base.location}'s: "
                f"{listed(differing)}; the task vector may not carry over",
            )


def _is_tower(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether one model is the vision tower of the other's kind, saved alone."""
    kinds = sorted((str(ours.get("model_type")), str(theirs.get("model_type"))))
    return kinds[1] == f"{kinds[0]}_vision_model"


def _towers(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Two configurations as far as they speak of the same part."""
    if not _is_tower(ours, theirs):
        return ours, theirs

    def tower(config: Mapping[str, Any]) -> Mapping[str, Any]:
        inner = config.get("vision_config", config)
        return {**_UNSAID.get(str(config.get("model_type")).partition("_")[0], {}), **inner}

    return tower(ours), tower(theirs)


_UNSAID = {"clip": {"hidden_act": "quick_gelu"}, "siglip": {"hidden_act": "gelu_pytorch_tanh"}}
"""What a configuration means that does not say it."""


def _note_layouts(found: Findings, base: Checkpoint, *others: Checkpoint) -> None:
    """Say which files are read in another library's names, and what they don't tell."""
    if public_layout(base.specs) is not None and all(
        public_layout(other.specs) is not None for other in others
    ):
        return
    for checkpoint in (base, *others):
        if public_layout(checkpoint.specs) is not None:
            found.add(
                "note",
                f"{checkpoint.location}: has open_clip's or timm's names, read as those of transformers; such a file "
                "does not state its activation (OpenAI's weights: quick_gelu; LAION's and most others: gelu), which "
                "has to be that of the other models",
            )


def _note_unplaced(found: Findings, base: Checkpoint, tuned: Checkpoint) -> None:
    adapter = tuned.adapter
    if adapter is not None and adapter.unplaced:
        total = len(adapter.updates) + len(adapter.unplaced)
        found.add(
            "warning",
            f"{tuned.location}: {len(adapter.unplaced)} of its {total} layers are not in {base.location} and are left "
            f"out: {listed(adapter.unplaced, 3)}",
        )


def _note_custom_code(found: Findings, *checkpoints: Checkpoint) -> None:
    for checkpoint in checkpoints:
        for named in custom_code(checkpoint.directory, checkpoint.config):
            found.add(
                "warning",
                f"{checkpoint.location}: {named}, code of its own repository: it is run only with --trust-remote-code; "
                "read it before you give that",
            )


def _differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    unsaid = [_UNSAID.get(str(one.get("model_type")).partition("_")[0], {}) for one in (ours, theirs)]
    for key in _FUNCTIONAL:
        values = [one.get(key, known.get(key)) for one, known in zip((ours, theirs), unsaid, strict=True)]
        if values[0] != values[1]:
            yield prefix + key, values[0], values[1]
    for key in ("text_config", "vision_config"):
        if isinstance(ours.get(key), dict) and isinstance(theirs.get(key), dict):
            yield from _differences(ours[key], theirs[key], f"{key}.")


def note_placement(
    found: Findings, placement: Placement, target: Checkpoint, *, adapter: bool = False
) -> None:
    """Say how a task vector lies on a target, and what of either is left.

    Args:
        found: Told.
        placement: The task vector's.
        target: θ_B.
        adapter: Whether an adapter is written rather than weights.
    """
    if not target.config:
        found.add(
            "note", f"{target.location}: no config.json, so the output will be weights without a model around"
        )
    if placement.rule:
        found.add("note", f"names matched: {placement.rule}")
    for name, (matched, rows) in placement.matched_tokens.items():
        level: Level = "warning" if matched < 0.9 * rows else "note"
        found.add(
            level,
            f"{name}: the vocabularies differ; {matched} of {rows} rows are matched by token text, "
            "the others keep the new base's values",
        )
    if placement.untouched:
        found.add(
            "note",
            f"keep the new base's values, the task vector has nothing for them: {listed(placement.untouched)}",
        )
    if placement.unplaced:
        found.add(
            "warning", f"{target.location} has no place for: {listed(placement.unplaced)}; they are left out"
        )
    if placement.dropped:
        found.add(
            "warning",
            f"left out of {target.location}, the tuned model's architecture has no place for it: "
            f"{listed(placement.dropped)}",
        )
    if placement.untied:
        found.add(
            "note",
            f"{target.location} ties {listed(placement.untied)}, and the fine-tune changes it apart: it is stored "
            "on its own, and the output's configuration says so",
        )
    if placement.vector.additions.specs:
        found.add(
            "note",
            f"copied from the tuned model, the bases lack them: {listed(placement.vector.additions.specs)}",
        )
    for remark in companion_files(placement, target, None)[1]:
        found.add("warning", remark)
    if not adapter and {spec.dtype for spec in target.specs.values()} & {torch.bfloat16, torch.float16}:
        found.add(
            "note",
            f"{target.location}: weights of 16 bits can swallow small changes; what is lost is counted when the "
            "model is written, and --dtype float32 or --rounding stochastic keeps it",
        )


def _written(models: Models) -> list[TensorSpec]:
    """The tensors that will be written."""
    placed = models.placement.adapter
    if not models.adapter or placed is None:
        return list(output_specs(models.placement, models.target, None).values())
    factors = [spec for update in placed.parts.updates.values() for spec in update.specs]
    whole = [models.placement.base.specs[name] for name in placed.parts.whole]
    return [*factors, *whole, *models.placement.vector.additions.specs.values()]


def _check_room(found: Findings, models: Models, output: Path | None, overwrite: bool) -> None:
    found.output_bytes = sum(spec.nbytes for spec in _written(models))
    if output is not None:
        parent = next(folder for folder in Path(output).absolute().parents if folder.exists())
        free = shutil.disk_usage(parent).free
        if free < found.output_bytes:
            found.add(
                "error",
                f"{output}: {found.output_bytes:,} bytes needed, {free:,} free on its disk; "
                "make room or choose another output",
            )
        elif Path(output).exists() and not overwrite:
            found.add("warning", f"{output}: exists already; the transport will need --overwrite")


def _measured_seconds(models: Models) -> float:
    """Time one block of the largest shared tensor through the steps of writing, and scale it up."""
    placement, elements = models.placement, sum(spec.numel for spec in _written(models))
    name = max(placement.vector.specs, key=lambda name: placement.vector.specs[name].numel)
    rows = next(placement.vector.specs[name].row_blocks())
    for _ in range(2):  # the first time loads what computes
        started = time.perf_counter()
        base, delta = placement.base.read(name, rows), placement.vector.read(name, rows)
        block = add_rounded(base, delta, 1.0, base.dtype).values
        hashlib.sha256(block.flatten().view(torch.uint8).numpy().data).hexdigest()
        seconds = time.perf_counter() - started
    return seconds * elements / max(1, block.numel())
