"""`python -m studies`: the paper's studies on the embedded pair, as tables, raw CSV and figures in one folder."""

import os
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gradfix.checkpoints.files import replace_file
from gradfix.evaluation.intervals import interval_words
from gradfix.progress import Progress, silent
from gradfix.report import REPORT_FILE
from gradfix.report.page import page_html
from gradfix.transport.record import versions
from studies.cells import raw_csv
from studies.figures import draw
from studies.findings import MARGIN, Finding, findings
from studies.page import Finding as FoundClaim
from studies.page import Study, TablesRecord, tables_page
from studies.plan import CELLS, QUICK, Scale, plan, units_of
from studies.recipe import StudiesRecipe
from studies.reports import STUDIES
from studies.run import run
from studies.units import Record, Unit, collect, identity, read_unit, studied

UNITS = "units"


def scale_of(recipe: StudiesRecipe) -> Scale:
    """Tell how much a recipe asks to measure.

    Args:
        recipe: The validated options.

    Returns:
        The scale; what is not given is the full or the quick version's.
    """
    default = QUICK if recipe.quick else Scale()
    return Scale(recipe.draws or default.draws, recipe.test_samples or default.test, recipe.quick)


def command_of(recipe: StudiesRecipe, study: str | None = None) -> str:
    """Write the command that makes the same tables again.

    Args:
        recipe: The validated options.
        study: For this study alone; by default for those of the recipe.

    Returns:
        A command line, with a folder of the reader's own.
    """
    words = ["python", "-m", "studies", "--output", "tables"]
    words += ["--quick"] if recipe.quick else []
    words += ["--draws", str(recipe.draws)] if recipe.draws else []
    words += ["--test-samples", str(recipe.test_samples)] if recipe.test_samples else []
    for name in [study] if study else recipe.study:
        words += ["--study", name]
    return shlex.join(words)


def tables(
    recipe: StudiesRecipe,
    *,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Measure what is missing, and write every table, figure and CSV.

    Args:
        recipe: The validated options.
        progress: Told the units finished.
        say: Told the expected time.

    Returns:
        JSON: the units by study, and the findings.
    """
    studies = [name for name in CELLS if name in recipe.study] if recipe.study else list(CELLS)
    scale = scale_of(recipe)
    folder = recipe.output / UNITS
    jobs = recipe.jobs or os.cpu_count() or 1
    if not recipe.only_write:
        run(plan(studies, scale), folder, jobs=jobs, progress=progress, say=say)
    files: dict[str, bytes] = {"recipe.yaml": recipe.dump().encode()}
    text, counts = page(recipe, studies, scale, folder, files)
    files["results.md"] = text.encode()
    found = findings(collect(plan(studies, scale), folder, scale.draws))
    record = TablesRecord(
        command=command_of(recipe),
        versions=versions(),
        recipe=recipe.model_dump(mode="json"),
        draws=scale.draws,
        test_samples=scale.test,
        findings=[FoundClaim.model_validate(one) for one in found],
        studies=[_study(name, collect(units_of(name, scale), folder, scale.draws)) for name in studies],
    )
    files["tables.json"] = record.written().encode()
    files[REPORT_FILE] = page_html(tables_page(record)).encode()
    recipe.output.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        replace_file(recipe.output / name, content)
    if recipe.write_docs is not None:
        _publish(recipe.write_docs, text, files)
    return {
        "output": str(recipe.output),
        "command": command_of(recipe),
        "units": counts,
        "findings": [one.markdown() for one in found],
    }


def _study(name: str, records: Sequence[Record]) -> Study:
    """A study's part of the record and the page."""
    report = STUDIES[name].report(records)
    shown = {"note": report.note, "figure": report.figure, "tables": list(report.tables)}
    return Study.model_validate({"name": name, "title": STUDIES[name].title, **shown})


def page(
    recipe: StudiesRecipe, studies: Sequence[str], scale: Scale, folder: Path, files: dict[str, bytes]
) -> tuple[str, dict[str, Mapping[str, int]]]:
    """Write the page from finished units.

    Args:
        recipe: The validated options.
        studies: Which, in order.
        scale: How much was to be measured.
        folder: Of the units.
        files: Gets each study's CSV and figures, by name.

    Returns:
        Markdown, and the finished and planned units by study.
    """
    everything = collect(plan(studies, scale), folder, scale.draws)
    parts = [_head(recipe, scale, findings(everything))]
    counts: dict[str, Mapping[str, int]] = {}
    for name in studies:
        units = units_of(name, scale)
        finished = sum(read_unit(unit, folder) is not None for unit in units)
        counts[name] = {"finished": finished, "planned": len(units)}
        records = collect(units, folder, scale.draws)
        if records:
            files[f"{name}.csv"] = raw_csv(records).encode()
        parts.append(_section(recipe, name, scale, units, records, finished, files))
    parts.append(_provenance())
    return "\n".join(parts), counts


def _head(recipe: StudiesRecipe, scale: Scale, found: Sequence[Finding]) -> str:
    text = f"""# Results on the embedded pair

Written by `{command_of(recipe)} --write-docs {_docs_name(recipe)}`; nothing here is typed by hand.

A → B: two small CLIPs pre-trained independently. B → B-next: B and its next release. Tasks are zero-shot image
classifications. Numbers are accuracies in % or differences of them in points: the mean over {scale.draws} draws of
the support set {interval_words(scale.draws)} (± its half-width), on the first {scale.test} test images of each task.
Differences are paired by draw; those in bold exclude 0. Intervals speak of other support sets, not of other test
images. Nothing is chosen on test images.
"""
    if not found:  # no study of the baselines, so no orderings of theirs
        return text
    listed = "\n".join(one.markdown() for one in found)
    return f"""{text}
## What this shows

Each line is an ordering that the paper reports, or one of the control that it lacks, on every task and number of
samples a class that was measured. α by cross-fitting is what users get; α by validation needs more labels, as in
the paper. *Beyond chance*: the 95 % interval excludes 0 (for "≈": lies within {MARGIN * 100:g} points). There are many
cells, so a few are beyond chance by chance.

{listed}
"""


def _docs_name(recipe: StudiesRecipe) -> str:
    """The page that the command writes, in a folder of the reader's own."""
    return f"docs/{recipe.write_docs.name if recipe.write_docs else 'results.md'}"


def _section(
    recipe: StudiesRecipe,
    name: str,
    scale: Scale,
    units: Sequence[Unit],
    records: Sequence[Record],
    finished: int,
    files: dict[str, bytes],
) -> str:
    report = STUDIES[name].report(records)
    parts = [f"## {STUDIES[name].title}", ""]
    if finished < len(units):
        parts += [
            f"Measured so far: {finished} of {len(units)} units; cells without all {scale.draws} draws are left out. "
            f"`{command_of(recipe, name)}` goes on with the rest.",
            "",
        ]
    if report.figure is not None:
        for extension, content in draw(report.figure).items():
            files[f"{name}.{extension}"] = content
        parts += [f"![{STUDIES[name].title}](figures/{name}.png)", ""]
    parts += [f"{table.markdown()}" for table in report.tables]
    parts += [
        f"*{scale.draws} draws, {scale.test} test images a task. {report.note} Made by `{command_of(recipe, name)}`.*",
        "",
    ]
    return "\n".join(parts)


def _provenance() -> str:
    listed = "\n".join(f"| {name} | `{digest[:16]}` |" for name, digest in studied().items())
    software = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"""## Provenance

Checkpoints (first 16 digits of each file's SHA-256; together `{identity()}`):

| checkpoint | SHA-256 |
|---|---|
{listed}

Versions: {software}. Machine: {platform.system()} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()},
{os.cpu_count()} processors; one thread a process.
"""


def _publish(page_path: Path, text: str, files: Mapping[str, bytes]) -> None:
    """Copy the page, and beside it the PNG and SVG of each figure it shows."""
    figures = page_path.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name.endswith((".png", ".svg")):
            replace_file(figures / name, content)
    replace_file(page_path, text.encode())
