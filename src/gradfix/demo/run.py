"""The demo: a whole transport on real handwritten digits, with its table and picture, offline and in a few minutes."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradfix.alignment import align, run_source
from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.files import resolve_output
from gradfix.checkpoints.writing.atomic import refuse_taken
from gradfix.checkpoints.writing.lock import OutputLock
from gradfix.demo.bench import BATCH, INDEPENDENT, PAIRS, Bench, bench
from gradfix.demo.datasets import load_task
from gradfix.demo.pair import load
from gradfix.demo.pictures import Changed, changed_digits, picture
from gradfix.demo.processes import one_thread, processes
from gradfix.errors import GradfixError
from gradfix.evaluation.binding import Rows, choose_support
from gradfix.evaluation.intervals import interval_words
from gradfix.progress import Progress, silent
from gradfix.recipes import TransportRecipe
from gradfix.recipes.settings import SelectionSettings
from gradfix.report import REPORT_FILE, report_of
from gradfix.report.record import ChangedDigit, CloseRelease, DemoRecord
from gradfix.tasks.data import load_rows
from gradfix.transport.comparison import (
    Judge,
    Line,
    Outcome,
    chosen_ways,
    draw,
    summarise,
    table_csv,
    table_lines,
    table_markdown,
)
from gradfix.transport.pipeline import Transported, transport
from gradfix.vectors.placement import place
from gradfix.vectors.similarity import similarity
from gradfix.vectors.task_vector import TaskVector

TASK = "digits"
METRIC = "accuracy"
TEST_IMAGES = 1000
SAMPLES_PER_CLASS = 5
DRAWS = 3
MODELS = {"old-base": "A", "my-fine-tune": "A-digits", "new-base": "B", "new-base-tuned": "B-digits"}
CLOSE_MODELS = {"old-base": "B", "my-fine-tune": "B-digits", "new-base": "B-next"}
MARKER = ".gradfix-demo"
"""Says of a folder that a demo made it, from its first moment on."""

WRITTEN = (
    *(f"models/{name}" for name in MODELS), *(f"close-release/{name}" for name in CLOSE_MODELS),
    "close-release/model", "model", "support", "templates.txt", "table.md", "table.csv", "digits.png", "demo.json",
    REPORT_FILE,
)  # fmt: skip
"""What a demo writes, and may replace."""

SETTINGS = SelectionSettings(stops=(5, 15, 40), most_steps=40)
"""More steps gain a point or two and take half a minute."""
SHOWN_METHODS = ("naive", "gradfix", "control")


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Attributes:
        output: Its folder.
        transported: The transport whose model is in ``output/model``.
        close: The same task on a close release of its base, in ``output/close-release/model``.
        lines: The table's rows.
        caption: What the table rests on.
        changed: A few images whose prediction changed.
        command: The command line that makes the same model from the files in the folder.
    """

    output: Path
    transported: Transported
    close: Transported
    lines: Sequence[Line]
    caption: str
    changed: Sequence[Changed]
    command: str

    def record(self) -> DemoRecord:
        """Give what ``demo.json`` holds.

        Returns:
            Table, verdict, and where things are.
        """
        return DemoRecord(
            verdict=self.transported.verdict,
            close_release=CloseRelease(verdict=self.close.verdict, judgement=self.close.record.judgement),
            metric=METRIC,
            caption=self.caption,
            rows=table_lines(self.lines),
            changed=[ChangedDigit.model_validate(changed) for changed in self.changed],
            model=str(self.output / "model"),
            command=self.command,
            transport=self.transported.record,
        )


def demo(output: Path, *, overwrite: bool = False, progress: Progress = silent) -> Demo:
    """Transport a fine-tune for handwritten digits to an independently pre-trained base.

    Args:
        output: The folder to make: models as a user has them, support images, the transported model, tables, picture.
        overwrite: Replace what an earlier demo wrote there; other files stay.
        progress: Told what is being done.

    Returns:
        What was made.

    Raises:
        GradfixError: if the folder exists and is not a demo's, or may not be replaced.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with OutputLock(resolve_output(output)):
        _make_room(output, overwrite)
        return _demo(output, progress)


def _demo(output: Path, progress: Progress) -> Demo:
    models = {name: load(stored, output / "models" / name) for name, stored in MODELS.items()}
    here, task = bench(INDEPENDENT, TASK, TEST_IMAGES), load_task(TASK)
    templates = output / "templates.txt"
    templates.write_text("\n".join(task.templates) + "\n", encoding="utf-8")
    _save_images(output / "support", _support(here, SAMPLES_PER_CLASS, seed=0))
    options: dict[str, Any] = {
        "source_base": str(models["old-base"]),
        "source_tuned": str(models["my-fine-tune"]),
        "target_base": str(models["new-base"]),
        "output": output / "model",
        "templates": templates,
        "label": list(task.class_names),
    }
    close_models = {
        name: load(stored, output / "close-release" / name) for name, stored in CLOSE_MODELS.items()
    }
    close_options = {
        **options,
        "source_base": str(close_models["old-base"]),
        "source_tuned": str(close_models["my-fine-tune"]),
        "target_base": str(close_models["new-base"]),
        "output": output / "close-release" / "model",
    }
    test = task.rows("test")[:TEST_IMAGES]
    # The baselines take the longest, so other processes begin with them meanwhile; what they left is done here.
    with processes(max(1, min(DRAWS, os.cpu_count() or 1) - 1)) as pool, one_thread():
        drawing = [pool.submit(one_draw, seed, SAMPLES_PER_CLASS, SETTINGS) for seed in range(DRAWS)]
        result, close = (
            transport(
                task=here.model.task.name,
                support=load_rows(output / "support"),
                test=test,
                progress=progress,
                **each,
            )
            for each in (options, close_options)
        )
        draws = []
        left = {seed for seed in range(DRAWS) if drawing[seed].cancel()}
        done = {seed: one_draw(seed, SAMPLES_PER_CLASS, SETTINGS) for seed in left}
        for seed in range(DRAWS):
            draws.append(done[seed] if seed in left else drawing[seed].result())
            progress("comparing with the baselines", seed + 1, DRAWS, "draws")
    lines = summarise(draws, SAMPLES_PER_CLASS)
    caption = (
        f"{METRIC} on {len(test)} scanned digits; mean of {DRAWS} draws of {SAMPLES_PER_CLASS} samples a class "
        f"{interval_words(DRAWS)}; every setting chosen by cross-fitting on the samples, fine-tuning at "
        f"most {SETTINGS.most_steps} steps; {chosen_ways(lines)}"
    )
    before = here.model.evaluate(here.test)
    here.model.move(_written(result, models["new-base"]), 1.0)
    changed = changed_digits(before, here.model.evaluate(here.test), test)
    here.model.restore()
    made = Demo(output, result, close, lines, caption, changed, _command(options, output / "support"))
    (output / "table.md").write_text(table_markdown(lines, caption), encoding="utf-8")
    (output / "table.csv").write_text(table_csv(lines), encoding="utf-8")
    (output / "digits.png").write_bytes(picture(changed, lines))
    (output / "demo.json").write_text(made.record().written(), encoding="utf-8")
    (output / REPORT_FILE).write_text(report_of(output), encoding="utf-8")
    return made


def one_draw(seed: int, samples_per_class: int, settings: SelectionSettings) -> dict[str, Outcome]:
    """Measure the default transport beside its baselines on one draw of samples, in whatever process this is.

    Args:
        seed: Of the draw and all that is random in it.
        samples_per_class: How many to draw.
        settings: What every method may choose among.

    Returns:
        Outcomes by method.
    """
    here = bench(INDEPENDENT, TASK, TEST_IMAGES)
    support = _support(here, samples_per_class, seed=seed)
    base, target = (Checkpoint.open(load(name)) for name in PAIRS[INDEPENDENT])
    tau = TaskVector.between(base, load(MODELS["my-fine-tune"]))
    alike = similarity(base, target, tau)
    with ExitStack() as stack:
        # As in a transport, there are no other images to align on than the samples.
        source = run_source(
            base,
            tau,
            here.model.task,
            support,
            stack,
            align="auto",
            alike=alike,
            control_seed=seed,
            loading={"batch_size": BATCH},
        )
        outcomes = draw(
            Judge(here.model, here.test),
            support,
            seed=seed,
            methods=SHOWN_METHODS,
            oracle=here.oracle,
            settings=settings,
            aligned=align(source, here.model, control_seed=seed) if source is not None else None,
            alike=alike,
            auto=True,
        )
        return dict(outcomes)


def _support(here: Bench, samples_per_class: int, *, seed: int) -> Rows:
    return choose_support(
        here.model, here.pool, samples_per_class=samples_per_class, sampling="random", seed=seed
    )


def _make_room(output: Path, overwrite: bool) -> None:
    """Make the folder, or delete from an earlier demo's what the demo wrote, and nothing else."""
    refuse_taken(output, overwrite=overwrite)
    if output.exists():
        if not output.is_dir() or (any(output.iterdir()) and not (output / MARKER).is_file()):
            raise GradfixError(
                f"{output}: is not the folder of a demo, so it is not replaced; choose another output"
            )
        for name in WRITTEN:
            path = output / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    for folder in (output, output / "models", output / "close-release"):
        folder.mkdir(parents=True, exist_ok=True)
    (output / MARKER).write_text("gradfix demo --overwrite replaces its own files beside this one\n")


def _written(result: Transported, base: Path) -> TaskVector:
    """Read back what was written, as its difference to the target: the pictures show the model on the disk."""
    target = Checkpoint.open(base)
    return place(TaskVector.between(target, result.output), target).vector


def _save_images(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Save samples as a folder of images, one folder a class, as a user would have them."""
    for number, row in enumerate(rows):
        (folder / row["label"]).mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / row["label"] / f"{number:03}.png")


def _command(options: Mapping[str, Any], support: Path) -> str:
    recipe = TransportRecipe.model_fields
    parts = ["gradfix transport --task zero-shot-image-classification", f"--support {support}"]
    for name, value in options.items():
        assert name in recipe
        flag = "--" + name.replace("_", "-")
        given = value if isinstance(value, list) else [f"{value}-again" if name == "output" else value]
        parts += [f"{flag} {entry}" for entry in given]
    return " \\\n    ".join(parts)
