"""The main job, end to end: from three models and a handful of samples to a model directory and its evidence."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gradfix.alignment import align, run_source
from gradfix.alignment.source import SourceRun
from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.writing.atomic import refuse_taken
from gradfix.checkpoints.writing.publishing import pushing
from gradfix.checkpoints.writing.single import claimed, write_text
from gradfix.errors import listed
from gradfix.evaluation.adapter_model import AdapterModel
from gradfix.evaluation.binding import (
    Rows,
    bind,
    choose_support,
    describe_head,
    draw_support,
    refuse_idle_text,
    use_head,
)
from gradfix.evaluation.certificate import Certificate, certify
from gradfix.evaluation.evaluate import Evaluation
from gradfix.evaluation.judgement import Judgement, judge
from gradfix.evaluation.streaming.choice import keeping_counts, load_target
from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.ranks import ranks
from gradfix.recipes import EvaluateRecipe, TaskRecipe, TransportRecipe, VotesRecipe
from gradfix.recipes.fields import Align, Mask
from gradfix.recipes.settings import SETTINGS, SelectionSettings
from gradfix.report import REPORT_FILE
from gradfix.report.facts import EvaluatedSamples
from gradfix.report.facts import Votes as RecordedVotes
from gradfix.report.numbers import duration, metric_name, percent, shown_score
from gradfix.report.record import TransportRecord
from gradfix.report.summary import Summarised, Summary
from gradfix.tasks import ModelTask, PreferencePairs, get_task
from gradfix.tasks.data_memory import RowSource
from gradfix.transport.checks import Finding, Findings, Models, check_weights, ignore, lay_apart
from gradfix.transport.decision import Decision, cross_fitting_doubts, decide, selection_context
from gradfix.transport.folds import AlphaChoice
from gradfix.transport.given import given
from gradfix.transport.inputs import Data, counted_once, models_of, note_cut, note_unread, ready_task, rows_at
from gradfix.transport.memory import longest, note_judging, possible
from gradfix.transport.record import Clock, output_files, transport_record, votes_facts
from gradfix.transport.run import TransportRun
from gradfix.transport.sameness import note_idle, require_one_file_system, see_the_same
from gradfix.transport.space import note_apart, with_granularity
from gradfix.transport.tracking import tracked
from gradfix.vectors.adapter_output import write_adapter
from gradfix.vectors.applied import Applied
from gradfix.vectors.mask_strategies import MaskFunction
from gradfix.vectors.output import write_output
from gradfix.vectors.placement import own_weights, place, with_movable_head
from gradfix.vectors.task_vector import TaskVector
from gradfix.vectors.truncation import Extraction
from gradfix.votes import Votes


@dataclass(frozen=True, repr=False)
class Transported(Summarised):
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

    def summary(self) -> Summary:
        """Say whether it was worth it, in ten lines.

        Returns:
            The verdict's first sentence, how the model was made, and where it is.
        """
        kept = self.applied.kept_share
        judged = self.judgement
        first, _, rest = self.verdict.partition(". ")
        facts = [
            ("verdict", f"{first}{'.' if rest else ''}"),
            ("method", self.record.method.why if self.record.method is not None else ""),
            ("α", f"{self.alpha.alpha:g} ({self.alpha.chosen_on})"),
            ("kept of the task vector", "" if kept is None else percent(kept)),
        ]
        if judged is not None:
            named = (("new base", judged.base), ("naive", judged.naive), ("control", judged.control))
            others = ", ".join(
                f"{name} {shown_score(each.score, each.metric)}" for name, each in named if each is not None
            )
            facts.append(
                (
                    f"{metric_name(judged.base.metric)} on {judged.base.n} {judged.data} samples",
                    f"{shown_score(judged.transported.score, judged.base.metric)} ({others})",
                )
            )
        warnings = [each.text for each in self.compatibility.findings if each.level == "warning"]
        facts += [
            (
                "warning",
                text if len(warnings) == 1 else f"{text} (and {len(warnings) - 1} more, in .compatibility)",
            )
            for text in warnings[:1]
        ]
        facts += [
            ("time", duration(sum(self.seconds.values()))),
            ("page", str(Path(self.output) / REPORT_FILE)),
        ]
        return Summary(f"transported to {self.output}", facts)

    @property
    def verdict(self) -> str:
        """Whether it was worth it, in a few sentences of which the first can be quoted."""
        return self.record.verdict


def transport(
    *,
    task: str | ModelTask,
    source_base: str | Path,
    source_tuned: str | Path,
    target_base: str | Path,
    output: str | Path,
    support: str | Path | RowSource | None = None,
    data: str | Path | RowSource | None = None,
    samples_per_class: int | None = None,
    sampling: Literal["random", "herding", "k-medoids", "coreset"] = "random",
    validation: str | Path | RowSource | None = None,
    test: str | Path | RowSource | None = None,
    method: Literal["auto", "gradfix"] | None = None,
    alpha: str | float | Sequence[float] = "auto",
    mask: Mask | str | MaskFunction = "agreement",
    confidence: float = 0.1,
    vote: Literal["majority", "mean"] = "majority",
    steps: int = 1,
    vote_at: Literal["base", "naive"] = "base",
    head: Literal["copy", "probe"] = "copy",
    space: Literal["adapter", "weights"] | None = None,
    granularity: Literal["coordinate", "row", "component"] = "coordinate",
    align: Align | str | Callable[..., Tensor] | None = None,
    align_data: str | Path | RowSource | None = None,
    unlabelled: str | Path | RowSource | None = None,
    generate_inputs: int | None = None,
    training: bool = True,
    finetune_steps: int | None = None,
    output_format: Literal["model", "lora"] | None = None,
    rank: int | None = None,
    energy: float | None = None,
    whole: Literal["save", "leave"] = "save",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    rounding: Literal["nearest", "stochastic"] = "nearest",
    seed: int = 0,
    shard_size: str = "5GB",
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    push_to_hub: str | None = None,
    track: Literal["trackio", "wandb", "tensorboard"] | None = None,
    column: Sequence[str] = (),
    label: Sequence[str] = (),
    candidate: Sequence[str] = (),
    prefix: str | None = None,
    templates: str | Path | Sequence[str] = (),
    text_from: str | Path | None = None,
    configuration: str | None = None,
    encoding: str | None = None,
    max_length: int | None = None,
    metric: str | None = None,
    max_new_tokens: int | None = None,
    beta: float | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    memory: str | int = "auto",
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    strict: bool = False,
    trust_remote_code: bool = False,
    split: str | None = None,
    votes_dtype: Literal["bfloat16"] | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
    examples: int = 12,
    columns: Sequence[str] = (),
    progress: Progress = silent,
) -> Transported:
    """Move a fine-tune to a new base model, and write the model with the evidence that it works.

    Args:
        task: A task's name, or a task of your own.
        source_base: The old base model, θ_A: directory, file or Hub id (id@revision).
        source_tuned: The model fine-tuned from it, θ_A^ft, or a LoRA adapter.
        target_base: The new base model, θ_B.
        output: Where to write; it appears there only when whole.
        support: The labelled samples, as a location or as rows.
        data: Or labelled rows to draw ``samples_per_class`` from, likewise.
        samples_per_class: How many of the data to choose a class.
        sampling: How to choose them.
        validation: Labelled data to choose α on, likewise; without it the support set is cross-fitted.
        test: Labelled data to judge the result on, likewise; nothing is chosen there.
        method: Auto chooses among nothing, naive addition, GradFix, confident, aligned and re-voted;
            gradfix does what alpha, mask, steps … say (if one of them is given, it is the default).
        alpha: ``"auto"``, a number, or candidates to choose from.
        mask: Mask strategy; or a function of your own, itself or as ``"module:function,parameter=value"``.
        confidence: For mask confident: a coordinate is dropped where so many votes against it would be by
            luck with at most this probability.
        vote: One vote a sample, or the sign of the mean gradient.
        steps: Re-votes at most; 1 is the paper's method, auto tries up to 4.
        vote_at: Count votes at θ_B, or at θ_B + τ.
        head: Copy the tuned head, or refit it on the samples.
        space: Adapter moves a LoRA adapter as one and writes an adapter, weights writes a whole model; if not given,
            adapter where the source is a plain LoRA.
        granularity: In adapter space: a vote on each coordinate of B, each row, or each singular direction.
        align: Carry τ over by activations first; auto: where the two bases are not alike; or a
            function of your own.
        align_data: Inputs to align on, likewise; else the labelled data's own.
        unlabelled: Inputs without labels, or prompts, that vote too, as the tuned source answers them, likewise.
        generate_inputs: Answers to each labelled prompt that the tuned source draws; they vote, too.
        training: For auto: may train on the samples where that does better than the fine-tune.
        finetune_steps: Then train so many steps on the samples; with auto: at most so many.
        output_format: A whole model, or an adapter that peft loads on the target, of the rank or energy below.
        rank: Of an adapter that stands for whole matrices: at most so much.
        energy: Share of each matrix's squared norm that an adapter reaches, by as small a rank as does.
        whole: Norms, embeddings and heads beside an adapter: saved whole, or left out.
        dtype: Of the output; the target's if not given.
        rounding: Stochastic keeps small changes in bfloat16 on average.
        seed: For what is drawn at random.
        shard_size: Largest weights file, as 5GB or 500MB.
        overwrite: Replace an existing output once the new one is whole.
        resume: Go on with an interrupted run of the same inputs.
        restart: Discard an interrupted run.
        push_to_hub: Then push the output with its card to this repository of the Hub: private, unless it is there.
        track: Log choices, curve and scores to an experiment tracker.
        column: Role=name, where the data's columns have other names.
        label: Class names in order, where neither model nor data has them.
        candidate: Text-to-text: answers to rank, in place of generating.
        prefix: Text-to-text: put before every input.
        templates: Prompts for zero-shot images, with ``{}`` for the class; or a file of them, one a line.
        text_from: Zero-shot images: the whole model, where the target is a vision tower or a file alone.
        configuration: Of a Hub data set that has several.
        encoding: Of csv, tsv and json files, such as latin-1 or utf-16; UTF-8 if not given.
        max_length: Longest input in tokens; the model's context if not given.
        metric: Causal-lm and text-to-text: grade generated answers by exact_match (if not given), rouge_l, chrf or
            module:function; causal-lm: token_accuracy generates nothing.
        max_new_tokens: Longest generated answer in tokens; 64, of text-to-text 32.
        beta: Preference-pairs: β of the DPO loss; 0.1 if not given.
        batch_size: Samples a pass.
        device: Cpu, cuda or mps.
        memory: ``"auto"``, or how much may be used, as 4GB: a larger model is fetched block by block.
        compute_dtype: Number format in which the model computes; auto: as stored where the device does so natively,
            else float32.
        strict: Refuse samples that would be truncated.
        trust_remote_code: Run code that a model repository brings.
        split: Of the data, where it has several.
        votes_dtype: Compute gradients under autocast.
        validation_split: Of the validation data, where it has several.
        test_split: Of the test data, where it has several.
        examples: Judged inputs to show in the report; 0 keeps them out of the output.
        columns: What the parts of a row are where rows are tuples, such as ``("image", "label")``.
        progress: Told what is being done.

    Returns:
        What was written and measured.

    Raises:
        GradfixError: if an option is not what it may be, or the inputs don't allow it; nothing is written then.
    """
    asked = given(TransportRecipe, locals())
    with pushing(asked.recipe.push_to_hub, asked.recipe.output):
        return run_transport(asked.recipe, task=asked.task, rows=asked.rows, progress=progress)


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
    refuse_taken(recipe.output, overwrite=recipe.overwrite)
    with tracked(recipe) as log:
        made = _transported(recipe, task, rows or {}, Findings(tell=tell, hold=True), settings, progress)
        log(made.record)
    return made


def _transported(
    recipe: TransportRecipe,
    task: ModelTask | None,
    rows: Mapping[str, Rows],
    found: Findings,
    settings: SelectionSettings,
    progress: Progress,
) -> Transported:
    clock = Clock()
    with clock.stage("check"):
        models = models_of(recipe, found)
    with clock.stage("read data"):
        data = Data.read(recipe, rows)
        task, data = ready_task(recipe, models, data, found, task=task)
        models = lay_apart(models, task, found, output=recipe.output, overwrite=recipe.overwrite)
        require_one_file_system(recipe.output)
        rows_of = {
            "samples": data.pool,
            "inputs": data.align_data,
            "unlabelled": data.unlabelled,
            **data.held,
        }
        see_the_same(
            rows_of, {"source_base": models.base, "source_tuned": models.tuned, "target": models.target}
        )
    with clock.stage("check"):
        check_weights(models, found)
        if models.adapter:
            note_apart(models.target, found)
        found.release()
    with ExitStack() as stack:
        with clock.stage("observe the source"):
            source = _run_source(recipe, models, data, task, found, stack, settings, progress)
        with clock.stage("load"):
            dtype = getattr(torch, recipe.dtype) if recipe.dtype else None
            placement = with_granularity(models.placement, recipe)
            if recipe.method == "auto" and recipe.head == "copy" and not models.adapter:
                placement = with_movable_head(placement)  # a fit to answers and training may change it
            # What alignment makes of an adapter's change may lie in any tensor.
            stays = source is None or source.method == "none"
            voting = placement.changing if stays else placement.vector.specs.keys()
            model = load_target(
                task,
                models.target,
                placement,
                dtype=dtype,
                adapter=models.adapter,
                voting=voting if recipe.counts_votes else (),
                length=_length(task, data),
                **recipe.loading(),
            )
            recipe = possible(recipe, model, found)
            note_judging(model, found)
            stack.enter_context(keeping_counts(model, recipe.output))
            describe_head(models.placement.vector, model)
        crossing = recipe.fixed_alpha() is None and "validation" not in data.held
        with clock.stage("choose samples"):
            support = _support(recipe, model, data, found, crossing=crossing)
            model.keep_reference(support, *data.held.values())
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
                model,
                support,
                recipe,
                crossing=crossing,
                more=more,
                aligned=aligned,
                teacher=source.teacher(task) if source is not None else None,
                settings=settings,
                progress=progress,
            )
        )
        with clock.stage("vote and choose α"):
            decision = decide(
                context,
                recipe,
                validation=data.held.get("validation"),
                alike=found.cosine_target,
                progress=progress,
            )
        with clock.stage("certify"):
            # From a copy: `delta` counts what its mask keeps while it is read, so only writing may read it.
            tried, extraction = replace(decision, delta=decision.kept(context)), None
            if recipe.output_format == "lora":
                whole = tried.delta
                tried, extraction = _truncated(recipe, decision, data, models.target, progress)
            certificate = certify(model, tried.delta, support, decision.alpha.alpha)
        with clock.stage("judge"):
            judgement = _judged(model, tried, data.held, progress)
            untruncated = None
            if judgement is not None and extraction is not None:
                untruncated = _measured(
                    model, whole, decision.alpha.alpha, data.held[judgement.data], progress
                )
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
            untruncated,
        )
        with clock.stage("hash inputs"):
            record = transport_record(run)
        with clock.stage("write"):
            applied = _written(
                run,
                extraction,
                lambda applied: output_files(record, recipe, applied, clock.seconds),
                progress,
            )
    return Transported(
        str(recipe.output), decision.alpha, certificate, judgement, applied, found, clock.seconds, record
    )


def _written(
    run: TransportRun,
    extraction: Extraction | None,
    companions: Callable[[Applied], Mapping[str, bytes]],
    progress: Progress,
) -> Applied:
    """Write the transported model, or an adapter: the one that was moved, or what was extracted."""
    recipe, decision, alpha = run.recipe, run.decision, run.decision.alpha.alpha
    if isinstance(run.model, AdapterModel):
        return write_adapter(
            decision.delta,
            run.models.target,
            run.model.output(decision.delta, alpha),
            alpha=alpha,
            output=recipe.output,
            overwrite=recipe.overwrite,
            resume=recipe.resume,
            restart=recipe.restart,
            companions=companions,
            progress=progress,
        )
    return write_output(
        recipe,
        decision.delta,
        run.models.target,
        alpha=alpha,
        extraction=extraction,
        heads=run.model.head_tensors(),
        companions=companions,
        progress=progress,
    )


def _truncated(
    recipe: TransportRecipe, decision: Decision, data: Data, target: Checkpoint, progress: Progress
) -> tuple[Decision, Extraction]:
    """Replace δ, and the control where it will be judged, by what their adapters say."""

    def extracted(vector: TaskVector) -> Extraction:
        return Extraction(vector, target, **recipe.extracting(), progress=progress)

    found = extracted(decision.delta)
    control = extracted(decision.control).vector if data.held else decision.control
    # What was measured of α·δ was of δ as a whole.
    known = {alpha: measured for alpha, measured in decision.known.items() if alpha == 0}
    return replace(decision, delta=found.vector, control=control, known=known), found


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
    method = "none" if models.adapter else recipe.align or "none"
    # Of labelled samples alone the labels say more than the source.
    further = data.budget is not None or bool(len(data.align_data))
    judging = recipe.method == "auto" and further and "validation" not in data.held
    if method == "none" and not data.unlabelled and not data.drawn and not judging:
        return None
    support = None
    if data.budget is not None and recipe.sampling == "random":
        support = draw_support(task, data.pool, data.budget, recipe.seed)
    return run_source(
        models.base,
        models.tau,
        task,
        data.pool,
        stack,
        align=method,
        alike=found.cosine_target,
        apart=models.apart is not None,
        align_data=data.align_data,
        unlabelled=data.unlabelled,
        generate=data.drawn,
        judging=judging,
        support=support,
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
    note_idle(len(support), recipe.batch_size, found)
    if data.budget is not None:
        note_cut(model.task, support, "chosen", found, strict=recipe.strict)
    for doubt in cross_fitting_doubts(model.task.classes(support)) if crossing else ():
        found.add("warning", doubt)
    return support


def count(
    recipe: VotesRecipe,
    *,
    task: ModelTask | None = None,
    rows: Mapping[str, Rows] | None = None,
    tell: Callable[[Finding], None] = ignore,
    progress: Progress = silent,
) -> tuple[Votes, RecordedVotes]:
    """Count votes at a model, and write them where the recipe says so.

    Args:
        recipe: The validated options.
        task: A task of the caller's own; else the recipe's is made.
        rows: Rows in memory by option, in place of the recipe's locations.
        tell: Told what is found of the rows, at once.
        progress: Told the samples counted.

    Returns:
        The votes, and what is said of them.

    Raises:
        GradfixError: if the inputs don't allow it; nothing is written then.
    """
    if recipe.output is not None:
        refuse_taken(recipe.output, overwrite=recipe.overwrite)
    tau = None
    if recipe.source_base is not None and recipe.source_tuned is not None:
        tau = TaskVector.between(recipe.source_base, recipe.source_tuned)
    name = "support" if recipe.support else "data"
    held = rows or {}
    pool = held[name] if name in held else rows_at(recipe, str(getattr(recipe, name)), recipe.split)
    found = Findings(tell=tell)
    see_the_same({"data": pool})
    model = open_target(recipe, recipe.target_base, pool, found, task=task, tau=tau, support=True)
    pool = counted_once(model.task, pool, found)
    if tau is not None:
        model.vote_where(model.vector)
    support = choose_support(model, pool, **recipe.drawing())
    model.keep_reference(support)
    note_idle(len(support), recipe.batch_size, found)
    counting = nullcontext() if recipe.output is None else keeping_counts(model, recipe.output)
    with counting:
        votes = model.votes(
            support, vote=recipe.vote, seed=recipe.seed, dtype=recipe.votes_dtype, progress=progress
        )
        if recipe.output is not None:
            path = recipe.output
            ranks().once("votes saved", lambda: votes.save(path, overwrite=recipe.overwrite))
    return votes, votes_facts(votes)


def measure(
    recipe: EvaluateRecipe,
    *,
    task: ModelTask | None = None,
    rows: Mapping[str, Rows] | None = None,
    tell: Callable[[Finding], None] = ignore,
    progress: Progress = silent,
) -> Evaluation:
    """Measure one model on labelled data, and write the measurement where the recipe says so.

    Args:
        recipe: The validated options.
        task: A task of the caller's own; else the recipe's is made.
        rows: Rows in memory by option, in place of the recipe's location.
        tell: Told what is found of the rows, at once.
        progress: Told the samples measured.

    Returns:
        The measurement.

    Raises:
        GradfixError: if the inputs don't allow it.
    """
    # Before anything is measured: minutes of work must not end at a path.
    place = recipe.output if ranks().first else None
    claim = claimed(place, overwrite=recipe.overwrite) if place is not None else nullcontext()
    with claim as output:
        data = rows["data"] if rows and "data" in rows else rows_at(recipe, recipe.data, recipe.split)
        see_the_same({"data": data})
        found = Findings(tell=tell)
        model = open_target(recipe, recipe.model, data, found, task=task)
        note_judging(model, found)
        if isinstance(model.task, PreferencePairs):
            model.task.stand_alone()
        measured = model.evaluate(data, task=model.judging, progress=progress)
        if output is not None:
            content = json.dumps(EvaluatedSamples.model_validate(measured).plain(), indent=1) + "\n"
            write_text(output, content, overwrite=recipe.overwrite)
    return measured


def open_target(
    recipe: TaskRecipe,
    location: str,
    rows: Rows,
    found: Findings,
    *,
    task: ModelTask | None = None,
    tau: TaskVector | None = None,
    support: bool = False,
) -> TargetModel:
    """Open one model for a task, refuse rows that it can't use, and load it with all its weights.

    Args:
        recipe: The options of the task.
        location: The model.
        rows: Labelled rows.
        found: Told what the task does not read of them.
        task: A task of the caller's own; else the recipe's is made.
        tau: A task vector that brings a head; without one the model's own weights stand for it.
        support: The rows are a support set: every class is needed.

    Returns:
        The model at its own weights.
    """
    target = Checkpoint.open(location)
    see_the_same({}, {location: target})
    placement = place(own_weights(target) if tau is None else tau, target)
    task = (task or get_task(recipe.task, **recipe.task_options())).for_rows(rows)
    bind(
        task,
        target,
        None if tau is None else placement.vector,
        rows,
        trust_remote_code=recipe.trust_remote_code,
    )
    refuse_idle_text(task, target)
    task.check(rows, support=support)
    note_unread(task, rows, found)
    model = load_target(task, target, placement, **recipe.loading())
    model.require_weights()
    return model


def _length(task: ModelTask, data: Data) -> Callable[[], int] | None:
    """What tells the tokens of the longest sample; None where there are inputs besides, which may be longer."""
    if len(data.align_data) or len(data.unlabelled) or data.drawn:
        return None
    return lambda: longest(task, [*chain(data.pool, *data.held.values())])


def _note_silent(model: TargetModel, tau: TaskVector, found: Findings) -> None:
    """List and count what casts no votes and so keeps the new base's values."""
    silent = [name for name in model.silent_parameters if name in tau.specs and not tau.is_zero(name)]
    if silent:
        found.add(
            "note",
            f"{len(silent)} of {len(tau)} tensors get no votes, because the task's loss does not depend on them: "
            f"{listed(silent)}; they keep the new base's values",
        )


def _measured(
    model: TargetModel, vector: TaskVector, alpha: float, rows: Rows, progress: Progress
) -> Evaluation:
    try:
        model.move(vector, alpha)
        return model.evaluate(rows, task=model.judging, progress=progress)
    finally:
        model.restore()


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
