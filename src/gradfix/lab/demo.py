"""The demo: a whole transport on real handwritten digits, with its table and picture, offline and in a minute."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradfix.baselines import METHODS, FewShot
from gradfix.checkpoints import Checkpoint
from gradfix.comparison import (
    AUTO,
    Judge,
    Line,
    Outcome,
    chosen_ways,
    draw,
    summarise,
    table_csv,
    table_json,
    table_markdown,
)
from gradfix.data import load_rows
from gradfix.errors import GradfixError
from gradfix.evaluation import Evaluation
from gradfix.kinship import similarity
from gradfix.lab.datasets import load_task
from gradfix.lab.store import load
from gradfix.observation import look_at_source
from gradfix.pipeline import RECORD_FILE, Transported, transport
from gradfix.placement import place
from gradfix.preparation import bind, choose_support
from gradfix.progress import Progress, silent
from gradfix.recipes import TransportRecipe
from gradfix.report import REPORT_FILE, report_of
from gradfix.report.look import ACCENT, COLOURS, GOOD, MUTED, WARM, saved, static
from gradfix.target_model import TargetModel
from gradfix.tasks import ModelTask, get_task
from gradfix.vectors import TaskVector

TASK = "digits"
SAMPLES_PER_CLASS = 5
DRAWS = 3
SHOWN = 6
MODELS = {"old-base": "A", "my-fine-tune": "A-digits", "new-base": "B", "new-base-tuned": "B-digits"}
CLOSE_MODELS = {"old-base": "B", "my-fine-tune": "B-digits", "new-base": "B-next"}
_FEW_SHOT = FewShot()
_METHODS = ("naive", "gradfix", "control")
_LOADING: Mapping[str, Any] = {"batch_size": 250}


@dataclass(frozen=True)
class Changed:
    """A test image whose prediction the transport changed.

    Attributes:
        image: Grey values, shape (28, 28).
        label: The right answer.
        before: What the new base said.
        after: What the transported model says.
    """

    image: np.ndarray[Any, np.dtype[np.uint8]]
    label: str
    before: str
    after: str


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

    def to_json(self) -> dict[str, Any]:
        """Give the demo as JSON.

        Returns:
            Table, verdict, and where things are.
        """
        return {
            "format": "gradfix-demo",
            "version": 1,
            "verdict": self.transported.verdict,
            "close_release": {"verdict": self.close.verdict, "judgement": self.close.record["judgement"]},
            "caption": self.caption,
            "rows": table_json(self.lines),
            "changed": [{"label": c.label, "before": c.before, "after": c.after} for c in self.changed],
            "model": str(self.output / "model"),
            "command": self.command,
        }


def demo(output: Path, *, overwrite: bool = False, progress: Progress = silent) -> Demo:
    """Transport a fine-tune for handwritten digits to an independently pre-trained base.

    Args:
        output: The folder to make: models as a user has them, support images, the transported model, tables, picture.
        overwrite: Replace an earlier demo's folder.
        progress: Told what is being done.

    Returns:
        What was made.

    Raises:
        GradfixError: if the folder exists and is not a demo's, or may not be replaced.
    """
    _make_room(output, overwrite)
    models = {name: load(stored, output / "models" / name) for name, stored in MODELS.items()}
    task = load_task(TASK)
    test = task.rows("test")
    templates = output / "templates.txt"
    templates.write_text("\n".join(task.templates) + "\n", encoding="utf-8")

    def new_task() -> ModelTask:
        return get_task("zero-shot-image-classification", labels=task.class_names, templates=templates)

    base, target = Checkpoint.open(models["old-base"]), Checkpoint.open(models["new-base"])
    tuned = models["my-fine-tune"]
    tau = TaskVector.between(base, tuned)
    prepared = new_task()
    bind(prepared, target, tau, test)
    model = TargetModel.load(prepared, target, place(tau, target), **_LOADING)
    oracle = model.restricted(place(TaskVector.between(target, models["new-base-tuned"]), target).vector)
    judge = Judge(model, model.encode(test))
    pool = task.rows("train")
    alike = similarity(base, target)
    draws: list[Mapping[str, Outcome]] = []
    for seed in range(DRAWS):
        support = choose_support(
            model, pool, samples_per_class=SAMPLES_PER_CLASS, sampling="random", seed=seed
        )
        if seed == 0:
            _save_images(output / "support", support)
        methods = {name: METHODS[name] for name in _METHODS}
        with ExitStack() as stack:
            # As in a transport, there are no other images to align on than the samples.
            sight = look_at_source(
                base,
                tau,
                prepared,
                support,
                stack,
                align="auto",
                alike=alike,
                control_seed=seed,
                loading=_LOADING,
            )
            outcomes = draw(
                judge,
                support,
                seed=seed,
                methods=methods,
                oracle=oracle,
                few_shot=_FEW_SHOT,
                aligned=sight.align(model, control_seed=seed) if sight is not None else None,
                auto=True,
            )
            draws.append(dict(outcomes))
        progress("comparing with the baselines", seed + 1, DRAWS, "draws")
    lines = summarise(draws, SAMPLES_PER_CLASS)
    caption = (
        f"accuracy on {len(test)} scanned digits; mean of {DRAWS} draws of {SAMPLES_PER_CLASS} samples a class with "
        f"the 95 % interval of Student's t; every setting chosen by cross-fitting on the samples; {chosen_ways(lines)}"
    )
    before = model.evaluate(judge.test)
    options: dict[str, Any] = {
        "source_base": str(models["old-base"]),
        "source_tuned": str(tuned),
        "target_base": str(models["new-base"]),
        "output": output / "model",
        "templates": templates,
        "label": list(task.class_names),
    }
    result = transport(
        task=prepared.name, support=load_rows(output / "support"), test=test, progress=progress, **options
    )
    close_models = {
        name: load(stored, output / "close-release" / name) for name, stored in CLOSE_MODELS.items()
    }
    close = transport(
        task=prepared.name,
        support=load_rows(output / "support"),
        test=test,
        progress=progress,
        **{
            **options,
            "source_base": str(close_models["old-base"]),
            "source_tuned": str(close_models["my-fine-tune"]),
            "target_base": str(close_models["new-base"]),
            "output": output / "close-release" / "model",
        },
    )
    model.move(_written(result, target), 1.0)
    changed = _changed(before, model.evaluate(judge.test), test)
    made = Demo(output, result, close, lines, caption, changed, _command(options, output / "support"))
    (output / "table.md").write_text(table_markdown(lines, caption), encoding="utf-8")
    (output / "table.csv").write_text(table_csv(lines), encoding="utf-8")
    (output / "digits.png").write_bytes(_draw(changed, lines))
    record = json.dumps(made.to_json(), indent=1, ensure_ascii=False) + "\n"
    (output / "demo.json").write_text(record, encoding="utf-8")
    (output / REPORT_FILE).write_text(report_of(output), encoding="utf-8")
    return made


def _make_room(output: Path, overwrite: bool) -> None:
    if output.exists():
        if not overwrite:
            raise GradfixError(f"{output}: exists already; choose another output or give --overwrite")
        if (
            any(output.iterdir())
            and not (output / "model" / RECORD_FILE).exists()
            and not (output / "models").is_dir()
        ):
            raise GradfixError(
                f"{output}: is not the folder of a demo, so it is not replaced; choose another output"
            )
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / "models").mkdir()
    (output / "close-release").mkdir()


def _written(result: Transported, target: Checkpoint) -> TaskVector:
    """Read back what was written, as its difference to the target: the pictures show the model on the disk."""
    return place(TaskVector.between(target, result.output), target).vector


def _save_images(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Save samples as a folder of images, one folder a class, as a user would have them."""
    for number, row in enumerate(rows):
        (folder / row["label"]).mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / row["label"] / f"{number:03}.png")


def _changed(before: Evaluation, after: Evaluation, rows: Sequence[Mapping[str, Any]]) -> list[Changed]:
    """Take the first few changed predictions: mostly gains, and a loss where there is one, for honesty."""
    pairs = list(zip(before.predictions, after.predictions, rows, strict=True))
    gains = [pair for pair in pairs if pair[0] != pair[1] == pair[2]["label"]]
    losses = [pair for pair in pairs if pair[1] != pair[0] == pair[2]["label"]]
    shown = [*gains[: SHOWN - min(1, len(losses))], *losses[:1]][:SHOWN]
    return [Changed(np.asarray(row["image"]), row["label"], str(old), str(new)) for old, new, row in shown]


def _command(options: Mapping[str, Any], support: Path) -> str:
    recipe = TransportRecipe.model_fields
    parts = ["gradfix transport --task zero-shot-image-classification", f"--support {support}"]
    for name, value in options.items():
        assert name in recipe
        flag = "--" + name.replace("_", "-")
        given = value if isinstance(value, list) else [f"{value}-again" if name == "output" else value]
        parts += [f"{flag} {entry}" for entry in given]
    return " \\\n    ".join(parts)


def _draw(changed: Sequence[Changed], lines: Sequence[Line]) -> bytes:
    """Draw the table as dots with intervals, and the changed digits beside them, as a PNG."""
    with static():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.6), layout="constrained")
        parts: Any = figure.subfigures(1, 2, width_ratios=(1.25, 1))
        left, right = parts
        axes = left.subplots()
        shown = list(lines)
        base = next((line.score.value for line in shown if line.method == "zero-shot"), None)
        if base is not None:
            axes.axvline(base * 100, color=COLOURS[7], linewidth=1, linestyle=":")
        for height, line in enumerate(shown):
            error = 0.0 if line.score.low is None else line.score.value - line.score.low
            ours = line.method == AUTO
            axes.errorbar(
                line.score.value * 100,
                height,
                xerr=error * 100,
                fmt="D" if ours else "o",
                color=ACCENT if ours else MUTED,
                capsize=3,
            )
        axes.set_yticks(range(len(shown)), [line.label for line in shown])
        for label, line in zip(axes.get_yticklabels(), shown, strict=True):
            label.set_fontweight("bold" if line.method == AUTO else "normal")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.invert_yaxis()
        axes.set_xlabel(f"accuracy on scanned digits, %, {SAMPLES_PER_CLASS} samples a class")
        cells = right.subplots(2, (len(changed) + 1) // 2, squeeze=False).flatten()
        for cell in cells:
            cell.set_axis_off()
        for cell, item in zip(cells, changed, strict=False):
            cell.imshow(item.image, cmap="gray_r", vmin=0, vmax=255)
            right_now = item.after == item.label
            cell.set_title(
                f"{item.before} → {item.after} {'✓' if right_now else '✗'}",
                fontsize=9,
                color=GOOD if right_now else WARM,
            )
        right.suptitle("what the new base said → what the transported model says", fontsize=9)
        return saved(figure, dpi=150)["png"]


def terminal_digits(changed: Sequence[Changed]) -> str:
    """Draw images side by side in characters, for a terminal.

    Args:
        changed: The images.

    Returns:
        Lines of half blocks, seven rows of fourteen characters an image, with a caption below each.
    """
    shades = []
    for item in changed:
        grey = item.image.reshape(14, 2, 14, 2).mean(axis=(1, 3)) > 90
        rows = []
        for top, bottom in zip(grey[::2], grey[1::2], strict=True):
            rows.append("".join(" ▄▀█"[2 * upper + lower] for upper, lower in zip(top, bottom, strict=True)))
        shades.append(rows)
    lines = ["  ".join(row) for row in zip(*shades, strict=True)]
    captions = [f"{item.before} → {item.after}"[:15].ljust(14) for item in changed]
    return "\n".join([*lines, "  ".join(captions)])
