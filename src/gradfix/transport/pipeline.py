"""The main job, end to end: from three models and a handful of samples to a model directory and its evidence."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gradfix.alignment import align, run_source
from gradfix.alignment.source import SourceRun
from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.writing.atomic import refuse_taken
from gradfix.errors import listed
from gradfix.evaluation.binding import Rows, bind, choose_support, describe_head, use_head
from gradfix.evaluation.certificate import Certificate, certify
from gradfix.evaluation.evaluate import Evaluation
from gradfix.evaluation.judgement import Judgement, judge
from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.recipes import IN_PYTHON, EvaluateRecipe, TaskRecipe, TransportRecipe, VotesRecipe, validate
from gradfix.recipes.settings import SETTINGS, SelectionSettings
from gradfix.report.facts import Votes as RecordedVotes
from gradfix.report.record import TransportRecord
from gradfix.tasks import ModelTask, get_task
from gradfix.transport.checks import Finding, Findings, Models, check_weights, ignore
from gradfix.transport.decision import Decision, cross_fitting_doubts, decide, selection_context
from gradfix.transport.folds import AlphaChoice
from gradfix.transport.inputs import Data, counted_once, models_of, note_cut, note_unread, ready_task, rows_at
from gradfix.transport.record import Clock, output_files, transport_record, votes_facts
from gradfix.transport.run import TransportRun
from gradfix.vectors.applied import Applied
from gradfix.vectors.apply import apply
from gradfix.vectors.placement import own_weights, place
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes


@dataclass(frozen=True)
class Transported:
    """The result of :func:`transport`.

    Attributes:
        output: The model directory.
        alpha: The chosen α and its curve.
        certificate: First-order certificate on the support set.
        judgement: The comparison on test or validation data; None where neither was given.
        applied: What was written, tensor by tensor.
        compatibility: What the check found beforehand.
        seconds: Wall time by stage.
        record: All of it, as ``gradfix.json`` holds it.
    """

    output: str
    alpha: AlphaChoice
    certificate: Certificate
    judgement: Judgement | None
    applied: Applied
    compatibility: Findings
    seconds: Mapping[str, float]
    record: TransportRecord

    @property
    def verdict(self) -> str:
        """Whether it was worth it, in a few sentences of which the first can be quoted."""
        return self.record.verdict


def transport(
    *,
    task: str | ModelTask,
    support: str | Path | Rows | None = None,
    data: str | Path | Rows | None = None,
    validation: str | Path | Rows | None = None,
    test: str | Path | Rows | None = None,
    unlabelled: str | Path | Rows | None = None,
    align_data: str | Path | Rows | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Transported:
    """Move a fine-tune to a new base model, and write the model with the evidence that it works.

    Args:
        task: A task's name, or a task of your own.
        support: The labelled samples, as a location or as rows.
        data: Or labelled rows to draw ``samples_per_class`` from, likewise.
        unlabelled: Inputs that the tuned source labels, likewise.
        align_data: Inputs to align on, likewise.
        validation: Labelled data to choose α on; without it the support set is cross-fitted.
        test: Labelled data to judge the result on; nothing is chosen there.
        progress: Told what is being done.
        **options: The other fields of :class:`gradfix.recipes.TransportRecipe`: ``source_base``, ``source_tuned``,
            ``target_base``, ``output``, ``alpha``, ``mask`` …

    Returns:
        What was written and measured.
    """
    given: dict[str, Any] = {
        "support": support,
        "data": data,
        "validation": validation,
        "test": test,
        "unlabelled": unlabelled,
        "align_data": align_data,
    }
    rows = {
        name: value
        for name, value in given.items()
        if value is not None and not isinstance(value, str | Path)
    }
    # Test rows shape nothing, so a recipe makes the same model without them.
    places = {name: None if value is None else str(value) for name, value in given.items()}
    places |= {name: None if name == "test" else IN_PYTHON for name in rows}
    own = None if isinstance(task, str) else task
    name = task if isinstance(task, str) else task.name
    recipe = validate(TransportRecipe, {"task": name, **places, **options}, "transport")
    return run_transport(recipe, task=own, rows=rows, progress=progress)


def run_transport(
    recipe: TransportRecipe,
    *,
    task: ModelTask | None = None,
    rows: Mapping[str, Rows] | None = None,
    tell: Callable[[Finding], None] = ignore,
    settings: SelectionSettings = SETTINGS,
    progress: Progress = silent,
) -> Transported:
    """Do what a recipe says.

    Args:
        recipe: The validated options.
        task: A task of the caller's own; else the recipe's is made.
        rows: Rows in memory by option, in place of the recipe's locations.
        tell: Told what is found of the inputs, at once.
        settings: The numbers of the selection.
        progress: Told what is being done.

    Returns:
        What was written and measured.

    Raises:
        GradfixError: if the inputs don't allow it; nothing is written then.
    """
    clock, found = Clock(), Findings(tell=tell, hold=True)
    refuse_taken(recipe.output, overwrite=recipe.overwrite)
    with clock.stage("check"):
        models = models_of(recipe, found)
    with clock.stage("read data"):
        data = Data.read(recipe, rows or {})
        task, data = ready_task(recipe, models, data, found, task=task)
    with clock.stage("check"):
        check_weights(models, found)
        found.release()
    with ExitStack() as stack:
        with clock.stage("observe the source"):
            source = _run_source(recipe, models, data, task, found, stack, settings, progress)
        with clock.stage("load"):
            dtype = getattr(torch, recipe.dtype) if recipe.dtype else None
            model = TargetModel.load(task, models.target, models.placement, dtype=dtype, **recipe.loading())
            describe_head(models.placement.vector, model)
        crossing = recipe.fixed_alpha() is None and "validation" not in data.held
        with clock.stage("choose samples"):
            support = _support(recipe, model, data, found, crossing=crossing)
        with clock.stage("align"):
            use_head(model, recipe.head, support)
            model.require_weights()
            seed = _control_seed(recipe, data)
            aligned = align(source, model, control_seed=seed) if source is not None else None
            model.vote_where(model.vector, *([aligned.vector] if aligned is not None else []))
            _note_silent(model, models.placement.vector, found)
        more = source.pseudo_labels(task) if source is not None else ()
        context = stack.enter_context(
            selection_context(
                model, support, recipe, crossing=crossing, more=more, settings=settings, progress=progress
            )
        )
        with clock.stage("vote and choose α"):
            decision = decide(
                context,
                recipe,
                validation=data.held.get("validation"),
                aligned=aligned,
                alike=found.cosine_target,
                progress=progress,
            )
        with clock.stage("certify"):
            # From a copy: `delta` counts what its mask keeps while it is read, so only writing may read it.
            tried = replace(decision, delta=decision.kept(context))
            certificate = certify(model, tried.delta, support, decision.alpha.alpha)
        with clock.stage("judge"):
            judgement = _judged(model, tried, data.held, progress)
        run = TransportRun(
            recipe,
            settings,
            models,
            found,
            data,
            model,
            support,
            source,
            aligned,
            decision,
            certificate,
            judgement,
        )
        with clock.stage("hash inputs"):
            record = transport_record(run)
        with clock.stage("write"):
            applied = apply(
                decision.delta,
                models.target,
                alpha=decision.alpha.alpha,
                output=recipe.output,
                **recipe.writing(),
                heads=model.head_tensors(),
                companions=lambda applied: output_files(record, recipe, applied, clock.seconds),
                progress=progress,
            )
    return Transported(
        str(recipe.output), decision.alpha, certificate, judgement, applied, found, clock.seconds, record
    )


def _control_seed(recipe: TransportRecipe, data: Data) -> int | None:
    """The seed of the shuffled control; None where nothing judges, so that no control is needed."""
    return recipe.seed if data.held else None


def _run_source(
    recipe: TransportRecipe,
    models: Models,
    data: Data,
    task: ModelTask,
    found: Findings,
    stack: ExitStack,
    settings: SelectionSettings,
    progress: Progress,
) -> SourceRun | None:
    """Run the source, where there is something to align or to label."""
    if recipe.align == "none" and not data.unlabelled:
        return None
    return run_source(
        models.base,
        models.tau,
        task,
        data.pool,
        stack,
        align=recipe.align or "none",
        alike=found.cosine_target,
        align_data=data.align_data,
        unlabelled=data.unlabelled,
        control_seed=_control_seed(recipe, data),
        seed=recipe.seed,
        settings=settings,
        loading=recipe.loading(),
        remark=partial(found.add, "note"),
        progress=progress,
    )


def _support(
    recipe: TransportRecipe, model: TargetModel, data: Data, found: Findings, *, crossing: bool
) -> Rows:
    """Choose the samples, and say what makes a choice on them worth less."""
    support = choose_support(model, data.pool, **recipe.drawing())
    if data.budget is not None:
        note_cut(model.task, support, "chosen", found, strict=recipe.strict)
    for doubt in cross_fitting_doubts(model.task.classes(support)) if crossing else ():
        found.add("warning", doubt)
    return support


def count(
    recipe: VotesRecipe, *, tell: Callable[[Finding], None] = ignore, progress: Progress = silent
) -> tuple[Votes, RecordedVotes]:
    """Count votes at a model and write them.

    Args:
        recipe: The validated options.
        tell: Told what is found of the rows, at once.
        progress: Told the samples counted.

    Returns:
        The votes, and what is said of them.

    Raises:
        GradfixError: if the inputs don't allow it; nothing is written then.
    """
    refuse_taken(recipe.output, overwrite=recipe.overwrite)
    tau = None
    if recipe.source_base is not None and recipe.source_tuned is not None:
        tau = TaskVector.between(recipe.source_base, recipe.source_tuned)
    pool = rows_at(recipe, str(recipe.support or recipe.data), recipe.split)
    found = Findings(tell=tell)
    model = open_target(recipe, recipe.target_base, pool, found, tau=tau, support=True)
    pool = counted_once(model.task, pool, found)
    if tau is not None:
        model.vote_where(model.vector)
    support = choose_support(model, pool, **recipe.drawing())
    votes = model.votes(
        support, vote=recipe.vote, seed=recipe.seed, dtype=recipe.votes_dtype, progress=progress
    )
    votes.save(recipe.output, overwrite=recipe.overwrite)
    return votes, votes_facts(votes)


def measure(
    recipe: EvaluateRecipe, *, tell: Callable[[Finding], None] = ignore, progress: Progress = silent
) -> Evaluation:
    """Measure one model on labelled data.

    Args:
        recipe: The validated options.
        tell: Told what is found of the rows, at once.
        progress: Told the samples measured.

    Returns:
        The measurement.

    Raises:
        GradfixError: if the inputs don't allow it.
    """
    rows = rows_at(recipe, recipe.data, recipe.split)
    return open_target(recipe, recipe.model, rows, Findings(tell=tell)).evaluate(rows, progress=progress)


def open_target(
    recipe: TaskRecipe,
    location: str,
    rows: Rows,
    found: Findings,
    *,
    tau: TaskVector | None = None,
    support: bool = False,
) -> TargetModel:
    """Open one model for a task, refuse rows that it can't use, and load it with all its weights.

    Args:
        recipe: The options of the task.
        location: The model.
        rows: Labelled rows.
        found: Told what the task does not read of them.
        tau: A task vector that brings a head; without one the model's own weights stand for it.
        support: The rows are a support set: every class is needed.

    Returns:
        The model at its own weights.
    """
    target = Checkpoint.open(location)
    placement = place(own_weights(target) if tau is None else tau, target)
    task = get_task(recipe.task, **recipe.task_options())
    bind(
        task,
        target,
        None if tau is None else placement.vector,
        rows,
        trust_remote_code=recipe.trust_remote_code,
    )
    task.check(rows, support=support)
    note_unread(task, rows, found)
    model = TargetModel.load(task, target, placement, **recipe.loading())
    model.require_weights()
    return model


def _note_silent(model: TargetModel, tau: TaskVector, found: Findings) -> None:
    """List and count what casts no votes and so keeps the new base's values."""
    silent = [name for name in model.silent_parameters if name in tau.specs and not tau.is_zero(name)]
    if silent:
        found.add(
            "note",
            f"{len(silent)} of {len(tau)} tensors get no votes, because the task's loss does not depend on them: "
            f"{listed(silent)}; they keep the new base's values",
        )


def _judged(
    model: TargetModel,
    decision: Decision,
    held: Mapping[str, Rows],
    progress: Progress,
) -> Judgement | None:
    """Judge on test data, else on validation data, else not at all."""
    for data in ("test", "validation"):
        rows = held.get(data)
        if rows is not None:
            return judge(
                model,
                rows,
                transported=decision.delta,
                control=decision.control,
                alpha=decision.alpha.alpha,
                data=data,
                known=decision.known if data == "validation" else None,
                progress=progress,
            )
    return None
