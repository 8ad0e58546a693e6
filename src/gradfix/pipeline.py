"""The main job, end to end: from three models and a handful of samples to a model directory and its evidence."""

import json
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import gradfix
from gradfix.baselines import shuffled
from gradfix.card import model_card
from gradfix.checkpoints import Checkpoint
from gradfix.compatibility import Compatibility, check
from gradfix.data import load_rows, origin, row_hash
from gradfix.descent import Certificate, certify
from gradfix.errors import GradfixError
from gradfix.evaluation import Evaluation, Interval, paired_samples
from gradfix.masks import mask
from gradfix.placement import own_weights, place
from gradfix.progress import Progress, silent
from gradfix.recipes import (
    EvaluateRecipe,
    Sampling,
    SupportRecipe,
    TransportRecipe,
    VotesRecipe,
    parse_size,
    validate,
)
from gradfix.sampling import choose
from gradfix.scaling import FOLDS, GRID, AlphaChoice, FoldedVotes, choose_alpha, cross_fit, split_folds
from gradfix.scratch import Scratch
from gradfix.target_model import TargetModel
from gradfix.tasks import Classification, HeadedClassification, ModelTask, get_task, label_names
from gradfix.update import Applied, apply
from gradfix.vectors import TaskVector
from gradfix.votes import Votes

FORMAT_VERSION = 1
RECORD_FILE = "gradfix.json"

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Judgement:
    """How the transported model does beside the new base, on data that chose nothing or only α.

    Attributes:
        data: ``"test"``, or ``"validation"`` where no test data were given: α was then chosen on the same samples.
        base: θ_B with the task's head.
        naive: θ_B + τ.
        transported: θ_B + α (m ⊙ τ).
        control: The same with τ's values shuffled, at the same α.
        gain: Transported − base, paired by sample.
        over_control: Transported − control, paired by sample.
        over_naive: Transported − naive, paired by sample.
    """

    data: str
    base: Evaluation
    naive: Evaluation
    transported: Evaluation
    control: Evaluation
    gain: Interval
    over_control: Interval
    over_naive: Interval

    def to_json(self) -> dict[str, Any]:
        """Give the judgement as JSON, without each sample's values.

        Returns:
            The attributes.
        """
        models = {name: getattr(self, name).to_json() for name in ("base", "naive", "transported", "control")}
        return {
            "data": self.data,
            **models,
            "gain": asdict(self.gain),
            "over_control": asdict(self.over_control),
        }


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
        record: All of it as JSON, as ``gradfix.json`` holds it.
    """

    output: str
    alpha: AlphaChoice
    certificate: Certificate
    judgement: Judgement | None
    applied: Applied
    compatibility: Compatibility
    seconds: Mapping[str, float]
    record: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """Whether it was worth it, in one or two sentences that can be quoted."""
        return verdict(self.alpha, self.judgement)


def verdict(alpha: AlphaChoice, judgement: Judgement | None) -> str:
    """Say in plain words whether a transport helped, with the interval and the control.

    Args:
        alpha: The chosen α.
        judgement: The comparison, if there was data for one.

    Returns:
        One or two sentences.
    """
    if alpha.alpha == 0:
        return (
            f"Do not transport: of {len(alpha.curve)} candidates α = 0 had the smallest {alpha.chosen_on} loss, "
            "so the output is the new base with the task's head."
        )
    if judgement is None:
        start = next((point for point in alpha.curve if point.alpha == 0), None)
        chosen = next((point for point in alpha.curve if point.alpha == alpha.alpha), None)
        if start is None or chosen is None:
            return f"Transported with the given α = {alpha.alpha:g}; nothing was measured."
        return (
            f"On {alpha.samples} samples held out in turn, the loss went from {start.loss:.3f} to {chosen.loss:.3f} "
            f"and the score from {start.score:.1%} to {chosen.score:.1%} at α = {alpha.alpha:g}; "
            "give --test data for a verdict with an interval."
        )
    gain, metric = judgement.gain, judgement.transported.metric.replace("_", " ")
    direction = "better" if gain.value > 0 else "worse"
    sure = "" if gain.excludes_zero else ", which can be chance"
    against = judgement.over_control
    source = (
        "it beats the same transport of a shuffled task vector"
        if against.excludes_zero and against.value > 0
        else "a shuffled task vector does as well, so the gain comes from the samples rather than from the fine-tune"
    )
    bound = f"95 % interval {_points(gain.low)} to {_points(gain.high)}"
    caution = "; α was chosen on the same samples" if judgement.data == "validation" else ""
    return (
        f"The transported model is {abs(gain.value) * 100:.1f} points {direction} in {metric} than the new base "
        f"({judgement.base.score:.1%} → {judgement.transported.score:.1%}, {bound}, {gain.n} samples{caution}){sure}. "
        f"Beside the control, {source} ({_points(against.value)}, {_points(against.low)} to {_points(against.high)})."
        + _naive_sentence(judgement)
    )


def _naive_sentence(judgement: Judgement) -> str:
    """Tell a reader when adding the whole task vector, without any sample, would have done better."""
    naive = judgement.over_naive
    if not (naive.excludes_zero and naive.value < 0):
        return ""
    return (
        f" But adding the whole task vector does better still: {judgement.naive.score:.1%} at α = 1 "
        f"({_points(-naive.value)} points); for that, run with --mask none --alpha 1."
    )


def _points(value: float | None) -> str:
    return "unknown" if value is None else f"{value * 100:+.1f}".replace("-", "−")


def transport(
    *,
    task: str | ModelTask,
    support: str | Path | Rows | None = None,
    validation: str | Path | Rows | None = None,
    test: str | Path | Rows | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Transported:
    """Move a fine-tune to a new base model, and write the model with the evidence that it works.

    Args:
        task: A task's name, or a task of your own.
        support: The labelled samples, as a location or as rows; or give ``data`` and ``samples_per_class``.
        validation: Labelled data to choose α on; without it the support set is cross-fitted.
        test: Labelled data to judge the result on; nothing is chosen there.
        progress: Told what is being done.
        **options: The other fields of :class:`gradfix.recipes.TransportRecipe`: ``source_base``, ``source_tuned``,
            ``target_base``, ``output``, ``alpha``, ``mask`` …

    Returns:
        What was written and measured.
    """
    given: dict[str, Any] = {"support": support, "validation": validation, "test": test}
    rows = {
        name: value
        for name, value in given.items()
        if value is not None and not isinstance(value, str | Path)
    }
    places = {name: None if name in rows or value is None else str(value) for name, value in given.items()}
    own = None if isinstance(task, str) else task
    name = task if isinstance(task, str) else task.name
    recipe = validate(TransportRecipe, {"task": name, **places, **options}, "transport")
    return run_transport(recipe, task=own, rows=rows, progress=progress)


def run_transport(
    recipe: TransportRecipe,
    *,
    task: ModelTask | None = None,
    rows: Mapping[str, Rows] | None = None,
    progress: Progress = silent,
) -> Transported:
    """Do what a recipe says.

    Args:
        recipe: The validated options.
        task: A task of the caller's own; else the recipe's is made.
        rows: Rows in memory, for ``support``, ``validation`` or ``test``, in place of the recipe's locations.
        progress: Told what is being done.

    Returns:
        What was written and measured.

    Raises:
        GradfixError: if the inputs don't allow it; nothing is written then.
    """
    clock = _Clock()
    rows = rows or {}
    with clock.stage("check"):
        base = Checkpoint.open(recipe.source_base)
        tuned = Checkpoint.open(recipe.source_tuned, base=base)
        target = Checkpoint.open(recipe.target_base)
        found = check(base, tuned, target, output=recipe.output)
        refuse(found)
        if recipe.output.exists() and not recipe.overwrite:
            raise GradfixError(f"{recipe.output}: exists already; choose another output or give --overwrite")
        tau = TaskVector.between(base, tuned)
        placement = place(tau, target)
    with clock.stage("read data"):
        task = task or get_task(recipe.task, **recipe.task_options())
        pool = (
            rows["support"]
            if "support" in rows
            else _rows(recipe.support or recipe.data, recipe.split, "support")
        )
        judged = {
            name: rows.get(name) or (_rows(place, None, name) if place else None)
            for name, place in (("validation", recipe.validation), ("test", recipe.test))
        }
        bind(task, target, tau, pool, trust_remote_code=recipe.trust_remote_code)
        task.check(pool, support=True)
        for held in judged.values():
            if held is not None:
                task.check(held)
    with clock.stage("load"):
        model = TargetModel.load(
            task,
            target,
            placement,
            device=recipe.device,
            dtype=getattr(torch, recipe.dtype) if recipe.dtype else None,
            batch_size=recipe.batch_size,
            strict=recipe.strict,
            trust_remote_code=recipe.trust_remote_code,
        )
        describe_head(placement.vector, model)
    with clock.stage("choose samples"):
        support = _chosen(model, pool, recipe)
    with clock.stage("vote and choose α"):
        use_head(model, recipe.head, support)
        model.require_weights()
        choice, votes = _choose(model, recipe, support, judged["validation"], progress)
        delta = mask(model.vector, votes, strategy=recipe.mask, seed=recipe.seed)
    with Scratch() as scratch:
        # From a mask of its own: `delta` counts what it keeps while it is read, so only writing may read it.
        with clock.stage("certify"):
            tried = scratch.keep(mask(model.vector, votes, strategy=recipe.mask, seed=recipe.seed))
            certificate = certify(model, tried, support, choice.alpha)
        with clock.stage("judge"):
            judgement = _judge(model, tried, votes, choice.alpha, judged, recipe, progress)
    record: dict[str, Any] = {
        "format": "gradfix-transport",
        "version": FORMAT_VERSION,
        "versions": versions(),
        "verdict": verdict(choice, judgement),
        "recipe": recipe.model_dump(mode="json"),
        "inputs": {
            name: {"location": checkpoint.location, "sha256": checkpoint.digest()}
            for name, checkpoint in (("source_base", base), ("source_tuned", tuned), ("target_base", target))
        },
        "check": found.to_json(),
        "support": [
            {"row": origin(row, number), "sha256": row_hash(row, used_columns(task, row))}
            for number, row in enumerate(support)
        ],
        "votes": votes_facts(votes),
        "silent_parameters": model.silent_parameters,
        "alpha": choice.to_json(),
        "certificate": certificate.to_json(),
        "judgement": judgement.to_json() if judgement else None,
    }

    def companions(applied: Applied) -> dict[str, bytes]:
        record["applied"] = applied.to_json()
        record["seconds"] = clock.seconds
        record["peak_memory_bytes"] = peak_memory()
        return {
            RECORD_FILE: (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode(),
            "recipe.yaml": recipe.dump().encode(),
            "README.md": model_card(record).encode(),
        }

    with clock.stage("write"):
        applied = apply(
            delta,
            target,
            alpha=choice.alpha,
            output=recipe.output,
            dtype=getattr(torch, recipe.dtype) if recipe.dtype else None,
            rounding=recipe.rounding,
            seed=recipe.seed,
            shard_size=parse_size(recipe.shard_size),
            overwrite=recipe.overwrite,
            resume=recipe.resume,
            restart=recipe.restart,
            heads=model.head_tensors(),
            companions=companions,
            progress=progress,
        )
    return Transported(
        str(recipe.output), choice, certificate, judgement, applied, found, clock.seconds, record
    )


def count(recipe: VotesRecipe, *, progress: Progress = silent) -> tuple[Votes, dict[str, Any]]:
    """Count votes at a model and write them.

    Args:
        recipe: The validated options.
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
    pool = _rows(recipe.support or recipe.data, recipe.split, "support")
    bind(task, target, placement.vector, pool, trust_remote_code=recipe.trust_remote_code)
    task.check(pool, support=True)
    model = TargetModel.load(
        task,
        target,
        placement,
        device=recipe.device,
        batch_size=recipe.batch_size,
        strict=recipe.strict,
        trust_remote_code=recipe.trust_remote_code,
    )
    model.require_weights()
    support = _chosen(model, pool, recipe)
    votes = model.votes(
        support, vote=recipe.vote, seed=recipe.seed, dtype=recipe.votes_dtype, progress=progress
    )
    votes.save(recipe.output, overwrite=recipe.overwrite)
    return votes, votes_facts(votes)


def measure(recipe: EvaluateRecipe, *, progress: Progress = silent) -> Evaluation:
    """Measure one model on labelled data.

    Args:
        recipe: The validated options.
        progress: Told the samples measured.

    Returns:
        The measurement.

    Raises:
        GradfixError: if the inputs don't allow it.
    """
    checkpoint = Checkpoint.open(recipe.model)
    task = get_task(recipe.task, **recipe.task_options())
    rows = _rows(recipe.data, recipe.split, "labelled")
    bind(task, checkpoint, None, rows, trust_remote_code=recipe.trust_remote_code)
    task.check(rows)
    model = TargetModel.load(
        task,
        checkpoint,
        place(own_weights(checkpoint), checkpoint),
        device=recipe.device,
        batch_size=recipe.batch_size,
        strict=recipe.strict,
        trust_remote_code=recipe.trust_remote_code,
    )
    model.require_weights()
    return model.evaluate(rows, progress=progress)


def refuse(found: Compatibility) -> None:
    """Stop where the check found an error.

    Args:
        found: What it found.

    Raises:
        GradfixError: with the first error, and how many more there are.
    """
    errors = [finding.text for finding in found.findings if finding.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more; see `gradfix check`)" if len(errors) > 1 else ""
        raise GradfixError(errors[0] + more)


def _rows(location: str | None, split: str | None, what: str) -> Rows:
    if location is None:
        raise GradfixError(f"no {what} samples: give --support, or --data with --samples-per-class")
    return load_rows(location, split=split)


def bind(
    task: ModelTask,
    target: Checkpoint,
    tau: TaskVector | None,
    rows: Rows,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Give a task the target's tokenizer or processor, and the class names that hold.

    The tuned model's labels count where it brings a head; zero-shot tasks take theirs from the data.

    Args:
        task: The task.
        target: θ_B.
        tau: The task vector, if there is one.
        rows: The data, for class names that nobody gave.
        trust_remote_code: Allow the code that a repository brings.

    Raises:
        GradfixError: if the target has no tokenizer or processor.
    """
    if target.directory is None:
        raise GradfixError(
            f"{target.location}: has no tokenizer or processor beside it; give a model directory"
        )
    task.bind(target.directory, trust_remote_code=trust_remote_code)
    if isinstance(task, HeadedClassification) and tau is not None and tau.config.get("id2label"):
        task.use_labels({int(key): name for key, name in tau.config["id2label"].items()})
    elif isinstance(task, Classification) and not task.has_labels:
        task.use_labels(label_names(rows, task.columns["label"]))


def choose_support(
    model: TargetModel, pool: Rows, *, samples_per_class: int | None, sampling: Sampling, seed: int
) -> Rows:
    """Choose the support set from a pool, by the target's own features where the method asks for them.

    Args:
        model: θ_B.
        pool: Labelled rows.
        samples_per_class: How many a class; None for the whole pool.
        sampling: How to choose.
        seed: Of what is drawn.

    Returns:
        The chosen rows, each knowing where it comes from.
    """
    if samples_per_class is None:
        return pool
    features = None if sampling == "random" else model.features(pool)
    chosen = choose(model.task.classes(pool), samples_per_class, sampling, seed=seed, features=features)
    return [pool[position] for position in chosen]


def _chosen(model: TargetModel, pool: Rows, recipe: SupportRecipe) -> Rows:
    return choose_support(
        model, pool, samples_per_class=recipe.samples_per_class, sampling=recipe.sampling, seed=recipe.seed
    )


def describe_head(vector: TaskVector, model: TargetModel) -> None:
    """Complete the configuration that comes with a head: an adapter's names neither its architecture nor its classes.

    Args:
        vector: The task vector that will be written; its configuration is changed.
        model: The model that was built for the task.
    """
    if not vector.additions.specs:
        return
    vector.config["architectures"] = [type(model.model).__name__]
    if isinstance(model.task, HeadedClassification):
        vector.config["id2label"] = {str(key): name for key, name in model.task.labels.id2label.items()}
        vector.config["label2id"] = dict(model.task.labels.label2id)


def use_head(model: TargetModel, head: str, rows: Rows) -> None:
    """Refit the head on the target's features, where that was asked for.

    Args:
        model: The target.
        head: ``copy`` or ``probe``.
        rows: The samples to fit to.

    Raises:
        GradfixError: if the task has no head to refit.
    """
    if head == "copy":
        return
    if not isinstance(model.task, HeadedClassification):
        raise GradfixError(f"--head probe: {model.task.name} has no classification head; leave --head copy")
    model.use_head(model.task.fit_head(model.model, rows))


def _choose(
    model: TargetModel, recipe: TransportRecipe, support: Rows, validation: Rows | None, progress: Progress
) -> tuple[AlphaChoice, Votes]:
    candidates = recipe.alphas()
    fixed = candidates[0] if candidates is not None and len(candidates) == 1 else None
    crossing = fixed is None and validation is None
    folds = (
        split_folds(model.task.classes(support), FOLDS, recipe.seed)
        if crossing
        else [list(range(len(support)))]
    )
    if crossing and len(folds) < 2:
        raise GradfixError(
            "one sample is too few to choose α on; give --validation, more samples, or --alpha NUMBER"
        )

    def direction(votes: Votes) -> TaskVector:
        return mask(model.vector, votes, strategy=recipe.mask, seed=recipe.seed)

    with FoldedVotes(
        model, support, folds, vote=recipe.vote, seed=recipe.seed, dtype=recipe.votes_dtype, progress=progress
    ) as folded:
        votes = folded.all()
        if fixed is not None:
            return AlphaChoice(fixed, "given"), votes
        grid = candidates if candidates is not None else GRID
        if validation is not None:
            return (
                choose_alpha(
                    model,
                    [(direction(votes), validation)],
                    grid=grid,
                    chosen_on="validation",
                    progress=progress,
                ),
                votes,
            )
        choice = cross_fit(
            model, support, folds, lambda fold: direction(folded.without(fold)), grid=grid, progress=progress
        )
        return choice, votes


def _judge(
    model: TargetModel,
    delta: TaskVector,
    votes: Votes,
    alpha: float,
    judged: Mapping[str, Rows | None],
    recipe: TransportRecipe,
    progress: Progress,
) -> Judgement | None:
    name = next((name for name in ("test", "validation") if judged[name] is not None), None)
    if name is None:
        return None
    rows = model.encode(judged[name] or [])
    control = mask(shuffled(model.vector, recipe.seed), votes, strategy=recipe.mask, seed=recipe.seed)
    measured: dict[str, Evaluation] = {}
    try:
        for kind, vector, scale in (
            ("base", delta, 0.0),
            ("naive", model.vector, 1.0),
            ("control", control, alpha),
            ("transported", delta, alpha),
        ):
            model.move(vector, scale)
            measured[kind] = model.evaluate(rows, progress=progress)
    finally:
        model.restore()
    return Judgement(
        data=name,
        **measured,
        gain=paired_samples(measured["transported"].scores, measured["base"].scores),
        over_control=paired_samples(measured["transported"].scores, measured["control"].scores),
        over_naive=paired_samples(measured["transported"].scores, measured["naive"].scores),
    )


def used_columns(task: ModelTask, row: Mapping[str, Any]) -> list[str]:
    """List the columns of a row that a task reads.

    Args:
        task: The task.
        row: The row.

    Returns:
        Column names.
    """
    return [column for column in task.columns.values() if column in row]


def votes_facts(votes: Votes) -> dict[str, Any]:
    """Say of votes what a report shows.

    Args:
        votes: The votes.

    Returns:
        JSON: mode, N, tie rate, and the expected stability of the signs where votes are counts.
    """
    facts: dict[str, Any] = {
        "vote": votes.vote,
        "samples": votes.samples,
        "tie_rate": votes.tie_rate(),
        "uncovered": list(votes.uncovered),
        "counted_plainly": dict(votes.plain),
    }
    if votes.vote == "majority" and votes.samples > 1:
        facts["stability"] = asdict(votes.stability())
    return facts


def versions() -> dict[str, str]:
    """List the versions that a result depends on.

    Returns:
        By package, and the interpreter's.
    """
    from importlib.metadata import version

    packages = ("torch", "transformers", "safetensors", "datasets", "numpy")
    return {"gradfix": gradfix.__version__, "python": platform.python_version()} | {
        p: version(p) for p in packages
    }


def peak_memory() -> int:
    """Give the process's peak resident memory.

    Returns:
        Bytes.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Clock:
    """Wall time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
