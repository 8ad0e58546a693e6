"""What is taken from the source models before the target is loaded: activations, and labels for inputs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, get_args

import torch
from torch import Tensor

from gradfix.alignment.activations import Activations, Point
from gradfix.alignment.answers import last_map, output_of_last
from gradfix.alignment.blocks import Writer, find_writers
from gradfix.alignment.depths import points_of
from gradfix.alignment.regression import SHUFFLED, SOURCE, TUNED
from gradfix.alignment.rotation.rotate import rotation_points
from gradfix.alignment.rows import MeanOverTokens, each_token, rows_for
from gradfix.alignment.rows import Rows as RowsCompared
from gradfix.alignment.teacher import Teacher
from gradfix.alignment.written import write_rows
from gradfix.checkpoints import Checkpoint
from gradfix.errors import AlignmentError, GradfixError
from gradfix.evaluation.binding import Rows, bind, used_columns, without_labels
from gradfix.evaluation.evaluate import EncodedRows, Evaluation, encode_rows
from gradfix.evaluation.streaming.choice import load_target
from gradfix.evaluation.target_model import TargetModel
from gradfix.plugins import Plugin, find
from gradfix.progress import Progress, silent
from gradfix.recipes.fields import Align
from gradfix.recipes.settings import SETTINGS, SelectionSettings
from gradfix.tasks import Classification, Generative, ModelTask
from gradfix.tasks.data import Row, origin, row_hash
from gradfix.tasks.forward import evaluating
from gradfix.tasks.sampling import spread
from gradfix.vectors.control import shuffled
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class Observed:
    """What is left of the source once it has been freed.

    Attributes:
        writers: The maps that a regression may fit; the same modules in the target, where its architecture is the same.
        points: Where activations were recorded.
        answers: The tuned source's on the inputs, in the order of the rows: class probabilities, ``[inputs, classes]``,
            or what its last affine map gives, ``[inputs, out]``, for a task without classes; None where that is not one
            row a sample.
        shuffled: The same of the base with τ's values shuffled; None where no control was asked for.
        has_classes: Whether answers are probabilities of classes.
        support: The tuned source measured on labelled rows.
        probabilities: Of the classes, by the tuned source, on the recorded inputs, ``[recorded, classes]``; None where
            its losses are not their cross-entropies.
    """

    writers: Sequence[Writer]
    points: Sequence[Point]
    answers: Tensor | None
    shuffled: Tensor | None
    support: Evaluation | None
    has_classes: bool
    probabilities: Tensor | None = None


def observe(
    model: TargetModel,
    inputs: Sequence[Any],
    support: Sequence[Any] | None,
    activations: Activations,
    *,
    recorded: Sequence[int],
    method: str = "regression",
    apart: bool = False,
    control_seed: int | None = None,
    progress: Progress = silent,
) -> Observed:
    """Run the source's base and tuned models over inputs, and record them.

    Args:
        model: The source at θ_A; it stands at θ_A^ft afterwards.
        inputs: Samples; their labels are not used.
        recorded: Positions of the inputs whose activations are recorded; all are answered.
        support: Labelled samples to measure the tuned source on.
        activations: Where to record.
        method: How the target will be aligned: it tells where to look. ``none`` and ``answers`` look at no activations.
        apart: The target is of other shapes: record what enters the blocks, too.
        control_seed: Also record the base with τ's values shuffled, as the control; None for not.
        progress: Told the passes done.

    Returns:
        What the rest needs.

    Raises:
        AlignmentError: if the source can't be aligned; the model may stand anywhere then.
    """
    task = model.task
    model.keep_reference(*([] if support is None else [support]))
    known = set(recorded)
    others = [place for place in range(len(inputs)) if place not in known]
    encoded = model.encode([inputs[place] for place in recorded])
    last = None if isinstance(task, Classification) else last_map(model, encoded.batches[0])
    run = runner(task, model) if last is None else output_of_last(model, last)
    writers: Sequence[Writer] = ()
    points: list[Point] = []
    if method == "regression":
        writers = find_writers(model.model, run, encoded.batches[0], set(model.names))
        points = points_of(writers) if apart else list(dict.fromkeys(writer.stream for writer in writers))
    elif method not in ("none", "answers"):
        points = rotation_points(model.model, model.names)
    controlled = control_seed is not None and method in ("regression", "answers")
    passes = 2 + controlled

    # What has classes, or a last map of one row a sample, answers the other inputs, too.
    answers = isinstance(task, Classification) or last is not None
    rest = model.encode([inputs[place] for place in others]) if answers and others else EncodedRows([], [])
    run_first = [recorded[index] for index in encoded.order]
    order = torch.tensor([*run_first, *(others[index] for index in rest.order)]).argsort()

    def record(key: str, number: int) -> list[Any]:
        choose = activations.choose.source
        outputs = activations.record(key, model.model, run, encoded.batches, points, choose)
        with evaluating(model.model):
            outputs += [run(batch) for batch in rest.batches]
        progress("observing the source", number, passes, "passes")
        return outputs

    def answered(outputs: list[Any]) -> Tensor | None:
        if not isinstance(task, Classification):
            return None if last is None else torch.cat(outputs)[order]
        return torch.cat(outputs).float().softmax(dim=1)[order].clone()

    if method != "none":
        record(SOURCE, 1)
    guesses = None
    if controlled and control_seed is not None:
        model.move(shuffled(model.vector, control_seed), 1.0)
        guesses = answered(record(SHUFFLED, 2))
    model.move(model.vector, 1.0)
    outputs = record(TUNED, passes)
    measured = model.evaluate(support, logits=True) if support is not None else None
    found, probabilities = answered(outputs), None
    if isinstance(task, Classification) and found is not None:
        probabilities = found[list(recorded)]
    elif measured is not None and measured.logits is not None:
        logits = model.evaluate([inputs[place] for place in recorded], logits=True).logits
        probabilities = None if logits is None else logits.softmax(dim=1)
    has_classes = isinstance(task, Classification)
    return Observed(writers, points, found, guesses, measured, has_classes, probabilities)


def runner(task: ModelTask, model: TargetModel) -> Callable[[Any], Any]:
    """Make what runs a model on a batch: to the class scores where there are classes, else to the loss.

    Args:
        task: The task.
        model: Its model.

    Returns:
        A function of a batch.
    """
    if isinstance(task, Classification):
        return lambda batch: task.logits(model.model, batch).cpu()
    return lambda batch: task.run_once(model.model, batch)


@dataclass(frozen=True)
class SourceRun:
    """What was seen of the source.

    Attributes:
        inputs: The samples it was run on.
        recorded: Positions of those whose activations were recorded.
        observed: What was found.
        activations: Where its activations are.
        method: How the target is aligned; ``none`` where it is not.
        similarity: Cosine of the two bases' weights; None where it is not known.
        unlabelled: How many of the first inputs are to be labelled by the source; or how many answers it was asked for.
        classes: How many classes the inputs are of; None where they have no labels.
        sure: Confidence from which the source's label counts.
        asked: Whether the alignment was asked for by name: what is tried unasked may fail quietly.
        carry: What carries changes over in a regression, in place of a rotation; None for that.
        written: How many of the first inputs have answers that the source wrote.
        labelled: Labelled rows that it was measured on.
    """

    inputs: Rows
    recorded: Sequence[int]
    observed: Observed
    activations: Activations
    method: str
    similarity: float | None
    unlabelled: int
    classes: int | None = None
    sure: float = SETTINGS.sure
    asked: bool = True
    carry: Plugin | None = None
    written: int = 0
    labelled: Rows = ()

    def pseudo_labels(self, task: ModelTask) -> list[Row]:
        """Label the unlabelled inputs with what the tuned source is sure of, or give the answers that it wrote.

        Args:
            task: The target's, whose class names are used.

        Returns:
            Rows with a label; those of which the source is not sure are left out.
        """
        if isinstance(task, Generative):
            return [Row(row, origin(row, number)) for number, row in enumerate(self.inputs[: self.written])]
        if not self.unlabelled or self.observed.answers is None or not isinstance(task, Classification):
            return []
        chance = 1 / self.observed.answers.shape[1]
        top = self.observed.answers[: self.unlabelled].max(dim=1)
        column, names = task.columns["label"], task.labels.names
        return [
            Row({**row, column: names[label]}, origin(row, number))
            for number, (row, label, sure) in enumerate(
                zip(self.inputs, top.indices.tolist(), top.values.tolist(), strict=False)
            )
            if (sure - chance) / (1 - chance) >= self.sure
        ]

    def teacher(self, task: ModelTask) -> Teacher | None:
        """Make a judge of what the tuned source says of the inputs.

        Args:
            task: The target's.

        Returns:
            The judge; None without classes.
        """
        if self.observed.probabilities is None:
            return None
        inputs = [self.inputs[place] for place in self.recorded]
        among, find = finder(task, self.inputs), finder(task, self.labelled)
        return Teacher(inputs, self.observed.probabilities, self.recorded, among, self.observed.support, find)

    @property
    def predicted_classes(self) -> int | None:
        """How many classes the tuned source sees in the inputs, where they have any; one: they are hardly spread."""
        found = self.observed.answers
        return (
            len(set(found.argmax(dim=1).tolist()))
            if found is not None and self.observed.has_classes
            else None
        )


def finder(task: ModelTask, rows: Rows) -> Callable[[Rows], frozenset[int]]:
    """Find samples among rows, by what the task reads of them but for the labels of classes.

    Args:
        task: The target's.
        rows: Where to find them.

    Returns:
        Gives the places, among the rows, of samples.
    """
    hidden = task.columns["label"] if isinstance(task, Classification) else None

    def digest(row: Mapping[str, Any]) -> str:
        return row_hash(row, [column for column in used_columns(task, row) if column != hidden])

    @cache
    def known() -> list[str]:
        return list(map(digest, rows))

    def find(samples: Rows) -> frozenset[int]:
        wanted = set(map(digest, samples))
        return frozenset(place for place, one in enumerate(known()) if one in wanted)

    return find


def run_source(
    base: Checkpoint,
    tau: TaskVector,
    task: ModelTask,
    pool: Rows,
    stack: ExitStack,
    *,
    align: str,
    alike: float | None,
    apart: bool = False,
    align_data: Rows = (),
    unlabelled: Rows = (),
    generate: int | None = None,
    judging: bool = False,
    support: Rows | None = None,
    control_seed: int | None = None,
    seed: int = 0,
    settings: SelectionSettings = SETTINGS,
    loading: Mapping[str, Any],
    remark: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> SourceRun | None:
    """Run the source models over inputs, as far as there is something to align or to label.

    Args:
        base: θ_A.
        tau: θ_A^ft − θ_A.
        task: Bound to the target.
        pool: The labelled rows: inputs to align on where no others were given, and a test of the source.
        stack: What is recorded goes with it.
        align: How; ``none``, or ``auto``: by regression where the two bases are not alike; or a plug-in, which says
            what the regression fits.
        alike: Cosine of the two bases' weights, by :func:`gradfix.vectors.similarity.similarity`; None if unknown.
        apart: The target has other shapes than the source: it is aligned by regression, or not at all.
        align_data: Inputs to align on; their labels are not used.
        unlabelled: Inputs that the source is to label, or prompts that it is to answer; they are aligned on, too.
        generate: Answers that the source is to draw for each labelled prompt, to the same ends; None for none.
        judging: Ask the source even where nothing is aligned or labelled: its answers are to judge what is chosen.
        support: The labelled rows that will judge, too, where they are drawn already: what the source knows of them
            tells how far it is believed. Else it is asked about as many of the pool as the settings say.
        control_seed: Of the control's shuffle; None for no control.
        seed: Of the draw of answers, and of inputs where the labelled rows are more than are aligned on.
        settings: How many inputs, and what counts as alike.
        loading: How to load a model, as :func:`gradfix.evaluation.streaming.choice.load_target` takes it.
        remark: Told why ``auto`` does without an alignment that the two bases would need.
        progress: Told the passes done.

    Returns:
        What was seen; None where nothing is to be labelled, and the two bases are alike or ``auto`` finds that the
        source can't be aligned: it has no directory to be run from, or no blocks. To judge alone it is not run where it
        can't be, or has no classes, or doesn't fit in memory.

    Raises:
        AlignmentError: if the source can't be aligned as asked.
        GradfixError: if the source has no directory to be run from, or inputs can't be labelled.
    """
    by_name, why = align != "auto", ""
    carry = None
    if align not in get_args(Align):
        carry, align = find("alignment", align), "regression"
    needed = by_name or apart  # without an alignment there is nothing to do
    if apart:
        align = align if by_name else "regression"
    elif not by_name:
        align = "none"
        if alike is not None and alike < settings.close:
            align = "regression"
            why = (
                f"the old base is not like the new one (cosine {alike:.2f}), and the fine-tune is not aligned"
            )
    teaches = bool(len(unlabelled) or generate)
    judging = judging and (isinstance(task, Classification) or task.builds_model)
    if align == "none" and len(align_data) and not by_name and not judging:
        remark(
            f"the two bases are alike (cosine {alike or 1:.2f}), so nothing is aligned: align_data is not used"
        )
    judges_alone = align == "none" and not teaches
    if judges_alone and not judging:
        return None

    def unasked(error: object) -> None:
        remark(f"the tuned model is not asked about inputs, and labelled samples judge alone: {error}")

    alone = (base.directory is None and not task.builds_model) or not task.runs(base.config)
    if alone and judges_alone:
        unasked(f"{base.location}: weights alone can't be run")
        return None
    if alone and not needed and not teaches:
        remark(f"{why}: its weights stand alone, and the source must be run for that; give its directory")
        return None
    if alone:
        raise GradfixError(
            f"{base.location}: the source must be run, and weights alone can't be; give its directory, "
            "or --align none"
        )
    labelled = [pool[index] for index in spread(task.classes(pool), settings.align_inputs, seed)]
    known = labelled
    if support is not None:
        known = list(support)
    elif isinstance(task, Classification):  # a pass each
        known = [pool[index] for index in spread(task.classes(pool), settings.most_measured, seed)]
    ours = deepcopy(task)
    trusted = bool(loading.get("trust_remote_code"))
    try:
        bind(ours, base, tau, pool, trust_remote_code=trusted)
        model = load_target(ours, base, place(tau, base), **loading)
    except GradfixError as error:
        if not judges_alone:
            raise
        unasked(error)
        return None
    if judges_alone and model.streams:
        unasked("that would read its weights once more for every method")
        return None
    asked, written = len(unlabelled), 0
    if isinstance(ours, Generative):
        answers = partial(write_rows, model, labelled=labelled, remark=remark)
        found = list(answers(unlabelled)) if asked else []
        if generate:
            again = [row for row in labelled for _ in range(generate)]
            asked, found = asked + len(again), [*found, *answers(again, seed=seed)]
        unlabelled, written = found, len(found)
    inputs = without_labels(task, [*unlabelled, *align_data] or labelled)
    given = bool(len(unlabelled) or len(align_data))
    classes = None if given or not isinstance(task, Classification) else len(set(task.classes(labelled)))
    # All that is recorded passes through the target in one batch, so it is no more than so many.
    recorded = spread([0] * len(inputs), settings.align_inputs, seed)
    rows = each_token(len(recorded))
    if align not in ("none", "answers"):
        batches = [
            encode_rows(
                one, [inputs[place] for place in recorded], batch_size=loading.get("batch_size", 32)
            ).batches
            for one in (ours, task)
        ]
        try:
            rows = rows_for(ours, task, (batches[0], batches[1]))
        except AlignmentError as error:
            if needed:
                raise
            remark(f"{error}; so means over samples are compared, not tokens")
            rows = RowsCompared(MeanOverTokens(), MeanOverTokens())
    activations = stack.enter_context(Activations(rows))

    def look(method: str) -> Observed:
        return observe(
            model,
            inputs,
            known,
            activations,
            recorded=recorded,
            method=method,
            apart=apart,
            control_seed=control_seed,
            progress=progress,
        )

    try:
        observed = look(align)
    except GradfixError as error:
        if judges_alone:
            unasked(error)
            return None
        if not isinstance(error, AlignmentError):
            raise
        if by_name or (apart and not isinstance(task, Classification)):
            raise
        model.restore()
        if isinstance(task, Classification):
            remark(f"{error}; so only its answers are carried over")
            align, observed = "answers", look("answers")
        else:
            remark(f"{why}: {error}")
            if not teaches:
                return None
            align, observed = "none", look("none")
    return SourceRun(
        inputs,
        recorded,
        observed,
        activations,
        align,
        alike,
        asked,
        classes,
        settings.sure,
        by_name,
        carry,
        written,
        known,
    )
