"""What a transport leaves beside its weights: the record of all that was found, the page, the card, the recipe."""

import json
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from gradfix._version import __version__
from gradfix.evaluation.binding import used_columns
from gradfix.recipes import TransportRecipe, only_in_python
from gradfix.report import REPORT_FILE, report
from gradfix.report.card import model_card
from gradfix.report.static import card_figures
from gradfix.report.verdict import transport_verdict
from gradfix.tasks.data import origin, row_hash
from gradfix.transport.examples import changed_examples
from gradfix.transport.run import TransportRun
from gradfix.votes import Votes

FORMAT_VERSION = 1
RECORD_FILE = "gradfix.json"


def transport_record(run: TransportRun) -> dict[str, Any]:
    """Gather what is known of a transport before its weights are written.

    Args:
        run: What its stages found; the models' files are hashed.

    Returns:
        JSON, as :func:`output_files` completes it.
    """
    task, models, decision, judgement = run.model.task, run.models, run.decision, run.judgement
    record: dict[str, Any] = {
        "format": "gradfix-transport",
        "version": FORMAT_VERSION,
        "versions": versions(),
        "recipe": run.recipe.model_dump(mode="json"),
        "settings": run.settings.to_json(),
        "inputs": {
            name: {"location": checkpoint.location, "sha256": checkpoint.digest()}
            for name, checkpoint in (
                ("source_base", models.base),
                ("source_tuned", models.tuned),
                ("target_base", models.target),
            )
        },
        "check": run.found.to_json(),
        "support": [
            {"row": origin(row, number), "sha256": row_hash(row, used_columns(task, row))}
            for number, row in enumerate(run.support)
        ],
        "votes": votes_facts(decision.votes) if decision.votes is not None else None,
        "silent_parameters": run.model.silent_parameters,
        "method": decision.method,
        "alignment": run.aligned.to_json() if run.aligned is not None else None,
        "observation": run.source.to_json(task) if run.source is not None else None,
        "steps": decision.steps,
        "alpha": decision.alpha.to_json(),
        "certificate": run.certificate.to_json(),
        "judgement": judgement.to_json() if judgement is not None else None,
    }
    record["verdict"] = transport_verdict(record).text
    if judgement is not None:
        record["examples"] = changed_examples(
            task,
            run.data.held[judgement.data],
            judgement.base,
            judgement.transported,
            limit=run.recipe.examples,
        )
    return record


def output_files(
    record: dict[str, Any], recipe: TransportRecipe, applied: Mapping[str, Any], seconds: Mapping[str, float]
) -> dict[str, bytes]:
    """Complete a record with what was written, and make the files that stand beside the weights.

    Args:
        record: Of :func:`transport_record`; it is completed in place.
        recipe: The options.
        applied: What was written, as JSON.
        seconds: Wall time by stage.

    Returns:
        Contents by file name.
    """
    record |= {"applied": applied, "seconds": seconds, "peak_memory_bytes": peak_memory()}
    written = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    figures = card_figures(record)
    missing = ", ".join(only_in_python(record["recipe"]))
    warning = (
        f"# Not the whole recipe: {missing} came from Python. Run that script again.\n" if missing else ""
    )
    return {
        **figures,
        RECORD_FILE: written.encode(),
        # From the text, so that `gradfix report` makes the same page of the file.
        REPORT_FILE: report(json.loads(written)).encode(),
        "recipe.yaml": (warning + recipe.dump()).encode(),
        "README.md": model_card(record, figures).encode(),
    }


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
