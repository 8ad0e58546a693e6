"""The main job, end to end: from three models and a handful of samples to a model directory and its evidence."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gradfix.alignment import align, run_source
from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError, listed
from gradfix.evaluation.binding import Rows, bind, choose_support, describe_head, use_head
from gradfix.evaluation.certificate import Certificate, certify
from gradfix.evaluation.evaluate import Evaluation
from gradfix.evaluation.judgement import Judgement, judge
from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.recipes import IN_PYTHON, EvaluateRecipe, TransportRecipe, VotesRecipe, validate
from gradfix.report.facts import Votes as RecordedVotes
from gradfix.report.record import TransportRecord
from gradfix.tasks import ModelTask, get_task
from gradfix.transport.checks import Finding, Findings, check_weights, ignore
from gradfix.transport.decision import Decision, cross_fitting_doubts, decide, selection_context
from gradfix.transport.folds import AlphaChoice
from gradfix.transport.inputs import Data, counted_once, models_of, note_cut, note_unread, ready_task, rows_at
from gradfix.transport.record import Clock, output_files, transport_record, votes_facts
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
    progress: Progress = silent,
) -> Transported:
    """Do what a recipe says.

    Args:
        recipe: The validated options.
        task: A task of the caller's own; else the recipe's is made.
        rows: Rows in memory by option, in place of the recipe's locations.
        tell: Told what is found of the inputs, at once.
        progress: Told what is being done.

    Returns:
        What was written and measured.

    Raises:
        GradfixError: if the inputs don't allow it; nothing is written then.
    """
    clock, found = Clock(), Findings(tell=tell, hold=True)
    if recipe.output.exists() and not recipe.overwrite:
        raise GradfixError(f"{recipe.output}: exists already; choose another output or give --overwrite")
    with clock.stage("check"):
        models = models_of(recipe, found)
    base, target, tau, placement = models.base, models.target, models.tau, models.placement
    with clock.stage("read data"):
        data = Data.read(recipe, rows or {})
        task, data = ready_task(recipe, models, data, found, task=task)
    with clock.stage("check"):
        check_weights(models, found)
        found.release()
    control_seed = recipe.seed if data.held else None
    with ExitStack() as stack:
        source = None
        if recipe.align != "none" or data.unlabelled:
            with clock.stage("observe the source"):
                source = run_source(
                    base,
                    tau,
                    task,
                    data.pool,
                    stack,
                    align=recipe.align or "none",
                    alike=found.cosine_target,
                    align_data=data.align_data,
                    unlabelled=data.unlabelled,
                    control_seed=control_seed,
                    loading=recipe.loading(),
                    remark=partial(found.add, "note"),
                    progress=progress,
                )
        with clock.stage("load"):
            dtype = getattr(torch, recipe.dtype) if recipe.dtype else None
            model = TargetModel.load(task, target, placement, dtype=dtype, **recipe.loading())
            describe_head(placement.vector, model)
        with clock.stage("choose samples"):
            support = choose_support(model, data.pool, **recipe.drawing())
            if data.budget is not None:
                note_cut(task, support, "chosen", found, strict=recipe.strict)
            crossing = recipe.fixed_alpha() is None and "validation" not in data.held
            for doubt in cross_fitting_doubts(task.classes(support)) if crossing else ():
                found.add("warning", doubt)
        with clock.stage("align"):
            use_head(model, recipe.head, support)
            model.require_weights()
            aligned = align(source, model, control_seed=control_seed) if source is not None else None
            model.vote_where(model.vector, *([aligned.vector] if aligned is not None else []))
            _note_silent(model, placement.vector, found)
        more = source.pseudo_labels(task) if source is not None else ()
        context = stack.enter_context(
            selection_context(model, support, recipe, crossing=crossing, more=more, progress=progress)
        )
        with clock.stage("vote and choose α"):
            decision = decide(
                context, recipe, validation=data.held.get("validation"), aligned=aligned, progress=progress
            )
        # From a copy: `delta` counts what its mask keeps while it is read, so only writing may read it.
        delta, choice = decision.delta, decision.alpha
        with clock.stage("certify"):
            tried = replace(decision, delta=decision.kept(context))
            certificate = certify(model, tried.delta, support, choice.alpha)
        with clock.stage("judge"):
            judgement = _judged(model, tried, data.held, progress)
        with clock.stage("hash inputs"):
            record = transport_record(
                recipe,
                models,
                found,
                data,
                model,
                support,
                decision,
                certificate,
                judgement,
                source=source,
                aligned=aligned,
            )
        with clock.stage("write"):
            applied = apply(
                delta,
                target,
                alpha=choice.alpha,
                output=recipe.output,
                **recipe.writing(),
                heads=model.head_tensors(),
                companions=lambda applied: output_files(record, recipe, applied, clock.seconds),
                progress=progress,
            )
        return Transported(
            str(recipe.output), choice, certificate, judgement, applied, found, clock.seconds, record
        )


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
    if recipe.output.exists() and not recipe.overwrite:
        raise GradfixError(f"{recipe.output}: exists already; choose another output or give --overwrite")
    target = Checkpoint.open(recipe.target_base)
    if recipe.source_base is not None and recipe.source_tuned is not None:
        placement = place(TaskVector.between(recipe.source_base, recipe.source_tuned), target)
    else:
        placement = place(own_weights(target), target)
    task = get_task(recipe.task, **recipe.task_options())
    pool = rows_at(recipe, str(recipe.support or recipe.data), recipe.split)
    bind(task, target, placement.vector, pool, trust_remote_code=recipe.trust_remote_code)
    task.check(pool, support=True)
    found = Findings(tell=tell)
    pool = counted_once(task, pool, found)
    note_unread(task, pool, found)
    model = TargetModel.load(
        task,
        target,
        placement,
        **recipe.loading(),
    )
    model.require_weights()
    if recipe.source_tuned is not None:
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
    checkpoint = Checkpoint.open(recipe.model)
    task = get_task(recipe.task, **recipe.task_options())
    rows = rows_at(recipe, recipe.data, recipe.split)
    bind(task, checkpoint, None, rows, trust_remote_code=recipe.trust_remote_code)
    task.check(rows)
    note_unread(task, rows, Findings(tell=tell))
    model = TargetModel.load(
        task,
        checkpoint,
        place(own_weights(checkpoint), checkpoint),
        **recipe.loading(),
    )
    model.require_weights()
    return model.evaluate(rows, progress=progress)


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
