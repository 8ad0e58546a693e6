"""How much `--method auto` loses to the best single method in hindsight.

    python benchmarks/regret.py --write docs/regret.md            # all pairs, 5 draws of 1, 2, 5, 10, 20 a class
    python benchmarks/regret.py --draws 2 --samples-per-class 2 5 --pair voice --pair ViT    # a part, printed

Every method chooses its own settings by cross-fitting on the samples, by the very code that users run, and is judged on
test rows that select nothing. Regret is the best method's score, known only afterwards, minus auto's.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from gradfix.alignment import Aligned, align
from gradfix.alignment.source import run_source
from gradfix.alignment.teacher import Teacher
from gradfix.checkpoints import Checkpoint
from gradfix.errors import AlignmentError, GradfixError
from gradfix.evaluation.binding import bind, choose_support
from gradfix.evaluation.intervals import ENOUGH, paired_difference
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes.settings import SETTINGS
from gradfix.transport.candidates import Candidate, Seen
from gradfix.transport.comparison import Judge, arrived
from gradfix.transport.context import SelectionContext, StartingPoint
from gradfix.transport.cross_validation import cross_validate
from gradfix.transport.folds import split_folds
from gradfix.transport.methods import AddVector, FineTune, Method, Revote
from gradfix.transport.selection import select, training_from
from gradfix.vectors.placement import place, with_movable_head
from gradfix.vectors.similarity import similarity
from gradfix.vectors.task_vector import TaskVector
from regret_pairs import PAIRS, Pair

BUDGETS, DRAWS = (1, 2, 5, 10, 20), 5
NAIVE = "naive, α = 1"
METHODS = {
    "nothing": "new base as it is", NAIVE: "naive addition at α = 1", "naive": "naive addition", "gradfix": "GradFix",
    "confident": "confident mask", "aligned": "aligned addition", "answers": "a fit to the tuned model's answers",
    "re-voted": "re-voting",
    "few-shot": "few-shot fine-tuning from θ_B", "fine-tuned": "training from the best addition",
    **{f"{name}-fine-tuned": f"training from {label}" for name, label in {
        "naive": "naive addition", "aligned": "aligned addition", "answers": "a fit to the tuned model's answers",
    }.items()},
}  # fmt: skip
START, END = "<!-- table -->", "<!-- end of table -->"


def main() -> None:
    """Measure what is asked for and not measured yet, and print or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()) / "gradfix-bench-regret")
    parser.add_argument("--pair", action="append", help="only pairs whose name has this in it, repeatable")
    parser.add_argument("--samples-per-class", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--first-draw", type=int, default=0, help="seed of the first draw")
    parser.add_argument(
        "--results", type=Path, help="where results are kept; results.jsonl in the work directory"
    )
    parser.add_argument("--only-write", action="store_true", help="measure nothing")
    parser.add_argument("--write", type=Path, help="put the table into this page")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    results = options.results or options.workdir / "results.jsonl"
    known = read(results)
    draws = range(options.first_draw, options.first_draw + options.draws)
    for name, make in PAIRS.items():
        if options.only_write or (options.pair and not any(part in name for part in options.pair)):
            continue
        wanted = [(b, d) for d in draws for b in options.samples_per_class]
        missing = [cell for cell in wanted if (name, *cell) not in known]
        if missing:
            measure(name, make, options.workdir, missing, results)
    table = page(list(read(results).values()))
    print(table)
    if options.write is not None:
        before, _, rest = options.write.read_text(encoding="utf-8").partition(START)
        text = f"{before}{START}\n\n{table}\n\n{END}{rest.partition(END)[2]}"
        options.write.write_text(text, encoding="utf-8")


def read(results: Path) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Read what was measured, by pair, budget and draw."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    found = [json.loads(line) for line in lines]
    return {(one["pair"], one["budget"], one["draw"]): one for one in found}


def measure(
    name: str, make: Callable[[Path], Pair], work: Path, cells: Sequence[tuple[int, int]], results: Path
) -> None:
    """Measure one pair, a line of results for each cell."""
    try:
        pair = make(work / name.replace(",", "").replace(" ", "-"))
    except ModuleNotFoundError as error:
        print(f"{name}: left out, {error}", file=sys.stderr)
        return
    target = Checkpoint.open(str(pair.target))
    base = Checkpoint.open(str(pair.base))
    tau = TaskVector.between(base, str(pair.tuned))
    task = pair.task()
    bind(task, target, tau, pair.pool)
    task.check(pair.pool, support=True)
    model = TargetModel.load(task, target, with_movable_head(place(tau, target)), batch_size=128)
    model.require_weights()
    ours = pair.task()
    bind(ours, base, tau, pair.pool)
    tuned = TargetModel.load(ours, base, place(tau, base), batch_size=128)
    tuned.move(tuned.vector, 1.0)
    print(f"{name}: the tuned source has {tuned.evaluate(pair.test).score:.3f}", file=sys.stderr)
    del tuned
    alike = similarity(base, target, tau)
    with ExitStack() as stack:
        try:
            source = run_source(
                base, tau, task, pair.pool, stack, align="auto", alike=alike, judging=True,
                control_seed=None, loading={}, remark=lambda text: print(f"{name}: {text}", file=sys.stderr),
            )  # fmt: skip
            aligned = align(source, model, control_seed=None) if source is not None else None
            teacher = source.teacher(task) if source is not None else None
        except AlignmentError as error:
            print(f"{name}: {error}", file=sys.stderr)
            aligned = teacher = None
        judge = Judge(model, model.encode(pair.test))
        for budget, draw in cells:
            try:
                support = choose_support(
                    model, pair.pool, samples_per_class=budget, sampling="random", seed=draw
                )
            except GradfixError as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            found = one_draw(judge, support, aligned, teacher, alike, draw)
            line = {"pair": name, "alike": alike, "budget": budget, "draw": draw, **found}
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            scores = {key: round(100 * value, 1) for key, value in found["scores"].items()}
            print(
                f"{name}, {budget} a class, draw {draw}: {found['chosen']} {scores}",
                file=sys.stderr,
                flush=True,
            )


def one_draw(
    judge: Judge,
    support: Sequence[Any],
    aligned: Aligned | None,
    teacher: Teacher | None,
    alike: float | None,
    seed: int,
) -> dict[str, Any]:
    """Let auto select, and cross_validate every method that it tried, and those that it did not try."""
    model = judge.model
    folds = split_folds(model.task.classes(support), SETTINGS.folds, seed)
    with SelectionContext(model, support, folds, seed=seed, aligned=aligned, teacher=teacher) as ground:
        started = time.perf_counter()
        choice = select(ground, alike=alike)
        seconds = time.perf_counter() - started
        scores = {name: score(judge, ground, *pair) for name, pair in tried(choice).items()}
        auto = score(judge, ground, choice.way, choice.candidate)
        naive = AddVector("naive", "naive", vector=model.vector, grid=(1.0,))
        scores[NAIVE] = arrived(judge, ground, naive, {"alpha": 1.0}, ground.clock()).score
        for key, way in others(ground, choice).items():
            candidate = cross_validate(ground, way, asking=False)
            scores[key] = max(scores.get(key, 0.0), score(judge, ground, way, candidate))
    starts = [way.start for way in choice.ways if isinstance(way, FineTune)]
    return {
        "scores": {**scores, "auto": auto},
        "start": starts[0].way.name if starts and starts[0].way is not None else "nothing",
        "chosen": choice.candidate.name,
        "setting": dict(choice.candidate.setting),
        "seconds": seconds,
        "held out": {one.name: seen(one) for one in choice.candidates},
    }


def seen(candidate: Candidate) -> dict[str, Any]:
    """What judged a method, one by one, so that other rules of choice can be tried on the same cells."""
    taught = {} if candidate.taught is None else {"taught": one_by_one(candidate.taught)}
    parts = one_by_one(candidate.seen)
    return {"setting": dict(candidate.setting), "classes": candidate.classes, **parts, **taught}


def one_by_one(what: Seen) -> dict[str, list[float]]:
    """Losses and scores as JSON."""
    return {name: [round(float(each), 5) for each in part] for name, part in what._asdict().items()}


def tried(choice: Any) -> dict[str, tuple[Method, Candidate]]:
    """The methods that auto tried, by name."""
    pairs = zip(choice.ways, choice.candidates, strict=True)
    return {candidate.name: (way, candidate) for way, candidate in pairs}


def others(ground: SelectionContext, choice: Any) -> dict[str, Method]:
    """What a person could have tried besides."""
    found: dict[str, Method] = {}
    known = tried(choice)
    if "few-shot" not in known:
        found["few-shot"] = training_from(StartingPoint(), None, SETTINGS)
    if "fine-tuned" not in known:
        way = known["aligned" if "aligned" in known else "naive"][0]
        start = StartingPoint(way, {"alpha": 1.0})
        found["fine-tuned"] = training_from(start, known["naive"][1], SETTINGS)
    revoted = known.get("re-voted")
    if revoted is None or (isinstance(revoted[0], Revote) and revoted[0].start.way is not None):
        found["re-voted"] = Revote(
            "re-voted",
            "re-voting",
            vector=ground.model.vector,
            step=SETTINGS.step_from_base,
            count=SETTINGS.revotes,
        )
    return found


def score(judge: Judge, ground: SelectionContext, way: Method, candidate: Candidate) -> float:
    """The test score where a way arrives."""
    return arrived(judge, ground, way, candidate.setting, ground.clock()).score


def by_start(one: Mapping[str, Any]) -> dict[str, float]:
    """Scores of a draw, that of training also by the name of where it set out from, which differs by draw."""
    scores = dict(one["scores"])
    if one.get("start", "nothing") != "nothing" and "fine-tuned" in scores:
        scores.setdefault(f"{one['start']}-fine-tuned", scores["fine-tuned"])
    return scores


def page(found: Sequence[Mapping[str, Any]]) -> str:
    """Lay out regret by pair and budget, and its summary."""
    if not found:
        return "Nothing was measured."
    budgets = sorted({one["budget"] for one in found})
    rows = [
        "| pair | cosine | best single method | " + " | ".join(f"{b} a class" for b in budgets) + " |",
        "|---" * (len(budgets) + 3) + "|",
    ]
    all_regrets, below = [], []
    for name in dict.fromkeys(one["pair"] for one in found):
        cells, best_of = [], []
        for budget in budgets:
            here = [one for one in found if (one["pair"], one["budget"]) == (name, budget)]
            if not here:
                cells.append("")
                continue
            # A method that some draws did not try is compared with auto on those that did, if they are half of them.
            tried_on = {key: [one for one in map(by_start, here) if key in one] for key in METHODS}
            ahead = {
                key: float(np.mean([scores[key] - scores["auto"] for scores in drawn]))
                for key, drawn in tried_on.items()
                if 2 * len(drawn) >= len(here)
            }
            best = max(ahead, key=lambda key: ahead[key])
            auto = float(np.mean([one["scores"]["auto"] for one in here]))
            regret = 100 * ahead[best]
            all_regrets.append(regret)
            over = paired_difference(*([one["scores"][key] for one in here] for key in ("auto", NAIVE)))
            if over.high is not None and over.high < 0:
                below.append(f"{name} at {budget} ({100 * over.value:.1f})")
            best_of.append(best)
            cells.append(f"{100 * auto:.1f} / {100 * (auto + ahead[best]):.1f}: **{regret:.1f}**")
        common = max(set(best_of), key=best_of.count)
        alike = next(one["alike"] for one in found if one["pair"] == name)
        rows.append(f"| {name} | {alike:.2f} | {METHODS[common]} | " + " | ".join(cells) + " |")
    draws = len({one["draw"] for one in found})
    told = (
        f"Score of auto / of the best single method in hindsight: **regret**, in points; means of up to {draws} draws. "
        f"Mean regret {np.mean(all_regrets):.1f}, largest {max(all_regrets):.1f}, over {len(all_regrets)} cells. "
        + (
            f"Below naive addition at α = 1 by more than its interval: {', '.join(below) if below else 'nowhere'}."
            if draws >= ENOUGH
            else f"Fewer than {ENOUGH} draws are too few for an interval against naive addition."
        )
    )
    return "\n".join([*rows, "", told, *by_teacher(found)])


def by_teacher(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what the tuned model's answers alone would lose, and labels alone, where they judge the same methods."""
    lost: dict[str, list[float]] = {"answers": [], "labels": []}
    for one in found:
        seen = {name: what for name, what in one.get("held out", {}).items() if "taught" in what}
        if len(seen) < 2:
            continue
        best = max(one["scores"][name] for name in seen)
        for judge, losses in {
            "answers": {name: float(np.mean(what["taught"]["judged"])) for name, what in seen.items()},
            "labels": {name: float(np.mean(what["judged"])) for name, what in seen.items()},
        }.items():
            lost[judge].append(100 * (best - one["scores"][min(losses, key=lambda name: losses[name])]))
    if not lost["answers"]:
        return []
    told = ", ".join(
        f"by the {name} alone {np.mean(each):.1f} points on average and {max(each):.1f} at most"
        for name, each in lost.items()
    )
    return [
        "",
        f"In {len(lost['answers'])} draws where the tuned model was asked, the smallest loss of all methods loses to "
        f"the best of them: {told}.",
    ]


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    main()
