"""What a transport leaves beside its weights: the record of all that was found, the page, the card, the recipe."""

import platform
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yaml import YAMLError

from gradfix._version import __version__
from gradfix.alignment import Aligned
from gradfix.alignment.source import SourceRun
from gradfix.checkpoints import Checkpoint
from gradfix.evaluation.binding import used_columns
from gradfix.ranks import ranks
from gradfix.recipes import TransportRecipe, only_in_python
from gradfix.report import REPORT_FILE, facts, report
from gradfix.report.card import model_card
from gradfix.report.record import RECORD_FILE, TransportRecord
from gradfix.report.static import card_figures
from gradfix.report.verdict import transport_verdict
from gradfix.tasks import ModelTask
from gradfix.tasks.data import origin, row_hash
from gradfix.transport.candidates import Choice
from gradfix.transport.decision import Decision
from gradfix.transport.examples import changed_examples
from gradfix.transport.run import TransportRun
from gradfix.vectors.applied import Applied
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes

HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def transport_record(run: TransportRun) -> TransportRecord:
    """Gather what is known of a transport before its weights are written.

    Args:
        run: What its stages found; the models' files are hashed.

    Returns:
        The record, as :func:`output_files` completes it.
    """
    task, models, decision, judgement = run.model.task, run.models, run.decision, run.judgement
    checkpoints = {"source_base": models.base, "source_tuned": models.tuned, "target_base": models.target}
    digests = ranks().map("digests of the inputs", Checkpoint.digest, checkpoints.values())
    record = TransportRecord(
        versions=versions(),
        recipe=run.recipe.model_dump(mode="json"),
        settings=run.settings.to_json(),
        inputs={
            role: facts.Input(
                location=checkpoint.location,
                sha256=digest,
                license=_license(checkpoint),
                hub=_hub_id(checkpoint),
            )
            for (role, checkpoint), digest in zip(checkpoints.items(), digests, strict=True)
        },
        check=facts.Check.model_validate(run.found),
        support=[
            facts.Sample(row=origin(row, number), sha256=row_hash(row, used_columns(task, row)))
            for number, row in enumerate(run.support)
        ],
        metric=task.metric,
        space="adapter" if models.adapter else "weights",
        votes=votes_facts(decision.votes) if decision.votes is not None else None,
        silent_parameters=run.model.silent_parameters,
        method=_method(decision.method) if decision.method is not None else None,
        alignment=_alignment(run.aligned, decision) if run.aligned is not None else None,
        observation=_observation(run.source, task) if run.source is not None else None,
        steps=None
        if decision.steps is None
        else [facts.Step.model_validate(step) for step in decision.steps],
        alpha=facts.Alpha.model_validate(decision.alpha),
        certificate=facts.Certificate.model_validate(run.certificate),
    )
    if judgement is not None:
        record.judgement = facts.Judgement.model_validate(judgement)
        held = run.data.held[judgement.data]
        record.examples = changed_examples(
            task, held, judgement.base, judgement.transported, limit=run.recipe.examples
        )
    if run.untruncated is not None:
        record.untruncated = facts.Evaluation.model_validate(run.untruncated)
    record.verdict = transport_verdict(record).text
    return record


def _method(choice: Choice) -> facts.Method:
    second, over = choice.runner_up, choice.over_runner_up
    runner_up = None
    if second is not None and over is not None:
        runner_up = facts.RunnerUp(
            name=second.name, label=second.label, over=facts.Interval.model_validate(over)
        )
    return facts.Method(
        name=choice.candidate.name,
        why=choice.why,
        chosen_on=choice.chosen_on,
        candidates=[facts.Candidate.model_validate(candidate) for candidate in choice.candidates],
        runner_up=runner_up,
    )


def _alignment(aligned: Aligned, decision: Decision) -> facts.Alignment:
    added: list[TaskVector] = []

    def seen(vector: TaskVector) -> TaskVector:
        added.append(vector)
        return vector

    decision.way.control(seen)
    answers = aligned.answers
    used = answers is not None and any(vector is answers.vector for vector in added)
    shown = answers if used and answers is not None else aligned
    return facts.Alignment(
        method=shown.method,
        inputs=shown.inputs,
        held_out=True,
        added=any(vector is shown.vector for vector in added),
        tensors={name: dict(residuals) for name, residuals in shown.tensors.items()},
    )


def _observation(source: SourceRun, task: ModelTask) -> facts.Observation:
    support = source.observed.support
    return facts.Observation(
        inputs=len(source.inputs),
        input_classes=source.classes,
        predicted_classes=source.predicted_classes,
        similarity=source.similarity,
        source_on_support=facts.Evaluation.model_validate(support) if support is not None else None,
        unlabelled=source.unlabelled,
        labelled_by_source=len(source.pseudo_labels(task)),
    )


def output_files(
    record: TransportRecord, recipe: TransportRecipe, applied: Applied, seconds: dict[str, float]
) -> dict[str, bytes]:
    """Complete a record with what was written, and make the files that stand beside the weights.

    Args:
        record: Of :func:`transport_record`; it is completed in place.
        recipe: The options.
        applied: What was written.
        seconds: Wall time by stage.

    Returns:
        Contents by file name.
    """
    record.applied = facts.Applied.model_validate(applied)
    record.seconds, record.peak_memory_bytes = seconds, peak_memory()
    figures = card_figures(record)
    missing = ", ".join(only_in_python(record.recipe))
    warning = (
        f"# Not the whole recipe: {missing} came from Python. Run that script again.\n" if missing else ""
    )
    return {
        **figures,
        RECORD_FILE: record.written().encode(),
        REPORT_FILE: report(record).encode(),
        "recipe.yaml": (warning + recipe.dump()).encode(),
        "README.md": model_card(record, figures).encode(),
    }


def _hub_id(checkpoint: Checkpoint) -> str | None:
    """Tell which model of the Hub a directory is: by the Hub's own cache, or by what its configuration came from."""
    if checkpoint.directory is None:
        return None
    folder = checkpoint.directory.absolute()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    told = checkpoint.config.get("_name_or_path")
    if not isinstance(told, str) or HUB_ID.fullmatch(told) is None or Path(told).exists():
        return None
    return told


def _license(checkpoint: Checkpoint) -> str | None:
    """What a model's own card says of its license; None where it has no card, or the card says nothing."""
    from huggingface_hub import metadata_load

    card = None if checkpoint.directory is None else checkpoint.directory / "README.md"
    if card is None or not card.is_file():
        return None
    try:
        metadata = metadata_load(card)
    except (ValueError, OSError, YAMLError):
        return None  # another card's mistakes are no reason not to write this one
    told = (metadata or {}).get("license")
    return told if isinstance(told, str) and told else None


def votes_facts(votes: Votes) -> facts.Votes:
    """Say of votes what a report shows.

    Args:
        votes: The votes.

    Returns:
        Mode, N, tie rate, and the expected stability of the signs where votes are counts.
    """
    counted = votes.vote == "majority" and votes.samples > 1
    return facts.Votes(
        vote=votes.vote,
        samples=votes.samples,
        tie_rate=votes.tie_rate(),
        uncovered=list(votes.uncovered),
        counted_plainly=dict(votes.plain),
        stability=facts.Stability.model_validate(votes.stability()) if counted else None,
    )


def versions() -> dict[str, str]:
    """List the versions that a result depends on.

    Returns:
        By package, and the interpreter's.
    """
    from importlib.metadata import version

    packages = ("torch", "transformers", "safetensors", "datasets", "numpy")
    return {"gradfix": __version__, "python": platform.python_version()} | {p: version(p) for p in packages}


def peak_memory() -> int:
    """Give the process's peak resident memory.

    Returns:
        Bytes.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Clock:
    """Wall time by stage.

    Attributes:
        seconds: What passed inside each stage so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside.

        Args:
            name: The stage; entered again, it adds up.

        Yields:
            Nothing.
        """
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
