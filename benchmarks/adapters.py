"""What adapter space costs and gives, and how fast an adapter is extracted.

    python benchmarks/adapters.py cost        # votes on B beside one pass through the frozen base: time and memory
    python benchmarks/adapters.py extract     # gradfix extract beside mergekit-extract-lora, paired
    python benchmarks/adapters.py language    # accuracy on the language pair, in adapter and in weights space
    python benchmarks/adapters.py images      # the same on the embedded pair of small CLIPs and its close release

The language pair is that of ``benchmarks/language.py``: all-MiniLM-L6-v2 and its next release, with a LoRA fine-tune
(rank 8, attention and MLP) of the old base as the source. Every setting is chosen by cross-fitting on the samples.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from apply import ensure_mergekit, read_into_cache, timed
from docstrings import prose
from gradfix.checkpoints import Checkpoint
from gradfix.demo.bench import task_of
from gradfix.demo.datasets import load_task
from gradfix.demo.pair import load
from gradfix.evaluation.adapter_model import AdapterModel
from gradfix.evaluation.binding import bind, choose_support
from gradfix.evaluation.intervals import mean_interval
from gradfix.evaluation.target_model import TargetModel
from gradfix.tasks import Classification, get_task
from gradfix.transport.checks import Findings, open_models
from gradfix.transport.comparison import Judge, arrived, baseline, draw
from gradfix.transport.context import SelectionContext
from gradfix.transport.cross_validation import cross_validate
from gradfix.transport.folds import split_folds
from gradfix.transport.methods import AddVector
from gradfix.vectors.truncation import Extraction
from language import RELEASE_STEPS, copy_encoder, read_rows, stage, write_data
from llama_triple import make_triple

RANK, TARGETS = 8, ["query", "key", "value", "dense"]
EPOCHS, BATCH, RATE = 3, 32, 1e-3
BUDGETS, DRAWS, RANKS = (1, 2, 5, 10), 3, (8, 16, 32)
SHARD_SIZE = 600_000_000
IMAGES, IMAGE_TASK, IMAGE_STEPS, IMAGE_TESTS = ("B", "B-next"), "digits", 150, 500
OpenPair = Callable[..., tuple[TargetModel, dict[str, Any]]]


def main() -> None:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["cost", "extract", "language", "images", "pass", "count"])
    work = Path(tempfile.gettempdir()) / "gradfix-bench-adapters"
    parser.add_argument("--workdir", type=Path, default=work)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--layers", type=int, default=22, help="of the extracted model; 22 are 1.1 billion")
    parser.add_argument("--brief", action="store_true", help="naive, GradFix and its control alone")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.part == "extract":
        extract(options.workdir, options.layers, options.rounds)
        return
    if options.part == "language":
        work = prepare(options.workdir / "language")
        compare_spaces(
            work / "outcomes.jsonl", partial(opened, work), options.budgets, options.draws, options.brief
        )
        return
    if options.part == "images":
        work = options.workdir / "images"
        work.mkdir(parents=True, exist_ok=True)
        stage(work, "adapter", work / "adapter", lambda: tune_images(work / "adapter"))
        compare_spaces(
            work / "outcomes.jsonl",
            partial(opened_images, work),
            options.budgets,
            options.draws,
            options.brief,
        )
        return
    pair = prepare_untrained(options.workdir / "cost")
    if options.part == "cost":
        cost(pair, options.workdir, options.rounds)
    else:
        print(json.dumps(measured(pair, options.part)))


def prepare(work: Path) -> Path:
    """Make the pair, the data and the adapter, each unless it is there."""
    work.mkdir(parents=True, exist_ok=True)
    stage(work, "data", work / "test.jsonl", lambda: write_data(work))
    stage(work, "old base", work / "old", lambda: copy_encoder(work / "old"))

    def release() -> None:
        from encoder import new_release

        texts = prose(Path(sysconfig.get_path("stdlib")))
        new_release(work / "old", texts, work / "new", steps=RELEASE_STEPS)

    stage(work, "new release", work / "new", release)
    stage(
        work, "adapter", work / "adapter", lambda: tune(work / "old", work / "train.jsonl", work / "adapter")
    )
    return work


def prepare_untrained(work: Path) -> Path:
    """The same shapes with nothing trained: what a count costs does not depend on the numbers."""
    work.mkdir(parents=True, exist_ok=True)
    stage(work, "data", work / "test.jsonl", lambda: write_data(work))
    for name in ("old", "new"):
        stage(work, name, work / name, lambda name=name: copy_encoder(work / name))
    data, output = work / "train.jsonl", work / "adapter"
    stage(work, "adapter", output, lambda: tune(work / "old", data, output, epochs=0))
    return work


def tune(base: Path, data: Path, output: Path, epochs: int = EPOCHS) -> None:
    """Train a LoRA adapter and a head on the old base, as peft's users do."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = read_rows(data)
    labels = sorted({row["label"] for row in rows})
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    settings = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, exclude_modules=["bert.pooler.dense"],
        task_type="SEQ_CLS", init_lora_weights=epochs > 0,
    )  # fmt: skip
    adapted = get_peft_model(model, settings).train()
    tokenizer = AutoTokenizer.from_pretrained(base)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for places in torch.randperm(len(rows), generator=generator).split(BATCH):
            chosen = [rows[place] for place in places.tolist()]
            inputs = tokenizer(
                [row["text"] for row in chosen],
                truncation=True,
                max_length=32,
                padding=True,
                return_tensors="pt",
            )
            classes = torch.tensor([labels.index(row["label"]) for row in chosen])
            optimizer.zero_grad()
            adapted(**inputs, labels=classes).loss.backward()
            optimizer.step()
    adapted.save_pretrained(output)


def opened(work: Path, *, adapter: bool) -> tuple[TargetModel, dict[str, Any]]:
    """Load the new release with the adapter beside it, or with τ as weights; and the rows."""
    rows = {name: read_rows(work / f"{name}.jsonl") for name in ("train", "pool", "test")}
    labels = sorted({row["label"] for row in rows["train"]})
    models = open_models(str(work / "old"), str(work / "adapter"), str(work / "new"), Findings())
    task = get_task("text-classification", labels=labels, max_length=32)
    bind(task, models.target, models.tau, rows["pool"])
    assert isinstance(task, Classification)
    task.use_labels(dict(enumerate(labels)))
    models.placement.vector.config["id2label"] = {str(key): name for key, name in enumerate(labels)}
    models.placement.vector.config["label2id"] = {name: key for key, name in enumerate(labels)}
    kind = AdapterModel if adapter else TargetModel
    return kind.load(task, models.target, models.placement), rows


def tune_images(output: Path) -> None:
    """Train a LoRA adapter of the vision tower of the embedded base B on its digits."""
    from peft import LoraConfig, get_peft_model
    from transformers import CLIPModel

    torch.manual_seed(0)
    target = Checkpoint.open(load(IMAGES[0]))
    rows = load_task(IMAGE_TASK).rows("train")
    task = task_of(IMAGE_TASK)
    bind(task, target, None, rows)
    model = CLIPModel.from_pretrained(load(IMAGES[0]))
    task.prepare(model)
    layers = r"vision_model\..*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
    adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=layers))
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(IMAGE_STEPS):
        places = torch.randint(len(rows), (2 * BATCH,), generator=generator).tolist()
        optimizer.zero_grad()
        task.loss(adapted.get_base_model(), task.encode([rows[place] for place in places])).mean().backward()
        optimizer.step()
    adapted.save_pretrained(output)


def opened_images(work: Path, *, adapter: bool) -> tuple[TargetModel, dict[str, Any]]:
    """Load the close release with the adapter beside it, or with τ as weights; and the rows."""
    old, new = (str(load(name)) for name in IMAGES)
    models = open_models(old, str(work / "adapter"), new, Findings())
    data = load_task(IMAGE_TASK)
    rows = {"pool": data.rows("train"), "test": data.rows("test")[:IMAGE_TESTS]}
    task = task_of(IMAGE_TASK)
    bind(task, models.target, models.tau, rows["pool"])
    kind = AdapterModel if adapter else TargetModel
    return kind.load(task, models.target, models.placement, batch_size=128), rows


def compare_spaces(noted: Path, open_pair: OpenPair, budgets: Sequence[int], draws: int, brief: bool) -> None:
    """Measure every method on several draws; each outcome is noted as it is there."""
    done = (
        {tuple(json.loads(line)["key"]) for line in noted.read_text().splitlines()}
        if noted.exists()
        else set()
    )
    judges: dict[str, Judge] = {}
    rows: dict[str, Any] = {}
    for space in ("adapter", "weights"):
        model, rows = open_pair(adapter=space == "adapter")
        judges[space] = Judge(model, model.encode(rows["test"]))
    for seed in range(draws):
        for budget in budgets:
            for space, judge in judges.items():
                if (space, budget, seed) in done:
                    continue
                model = judge.model
                support = choose_support(
                    model, rows["pool"], samples_per_class=budget, sampling="random", seed=seed
                )
                model.vote_where(model.vector)
                found = dict(outcomes(judge, support, seed, space, brief))
                line = json.dumps({"key": [space, budget, seed], "scores": found})
                with noted.open("a") as file:
                    file.write(line + "\n")
                print(line, flush=True)
    print(table(noted))


def outcomes(judge: Judge, support: Any, seed: int, space: str, brief: bool) -> Iterator[tuple[str, float]]:
    """The scores of one draw in one space."""
    methods = ("naive", "gradfix", "control")
    auto = space == "adapter" and not brief
    for name, found in draw(judge, support, seed=seed, methods=methods, auto=auto, few_shot=not brief):
        yield name, found.score
    folds = split_folds(judge.model.task.classes(support), 4, seed)
    with SelectionContext(judge.model, support, folds, seed=seed) as context:
        straight = AddVector("naive at 1", "", vector=judge.model.vector, grid=(1.0,))
        yield "naive at 1", arrived(judge, context, straight, {"alpha": 1.0}, context.clock()).score
        if space == "adapter" or brief:
            return
        way = baseline("gradfix", judge.model.vector, context.settings, seed)
        chosen = cross_validate(context, way).setting
        delta, alpha = way.build(context, chosen)
        target = Checkpoint.open(judge.model._target.location)
        for rank in RANKS:
            thin = AddVector("", "", vector=Extraction(delta, target, rank=rank).vector, grid=(alpha,))
            yield (
                f"gradfix, extracted at rank {rank}",
                arrived(judge, context, thin, {"alpha": alpha}, context.clock()).score,
            )


def table(noted: Path) -> str:
    """Means over the draws, with half-widths of 95 % intervals."""
    found: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    gaps: dict[int, list[float]] = defaultdict(list)
    scores = {}
    for line in noted.read_text().splitlines():
        entry = json.loads(line)
        space, budget, _ = entry["key"]
        scores[tuple(entry["key"])] = entry["scores"]
        for name, score in entry["scores"].items():
            found[space, name][budget].append(score)
    for (space, budget, seed), one in scores.items():
        if space == "adapter" and ("weights", budget, seed) in scores:
            gaps[budget].append(one["gradfix"] - scores["weights", budget, seed]["gradfix"])
    budgets = sorted({budget for row in found.values() for budget in row})
    lines = [f"| space | method | {' | '.join(map(str, budgets))} |", "|---" * (len(budgets) + 2) + "|"]
    for (space, name), row in found.items():
        lines.append(f"| {space} | {name} | " + " | ".join(spread(row[budget]) for budget in budgets) + " |")
    lines.append("| | GradFix, adapter − weights | " + " | ".join(spread(gaps[b]) for b in budgets) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """A mean with the half-width of its interval."""
    if not values:
        return "–"
    interval = mean_interval(values)
    if interval.low is None or interval.high is None:
        return f"{statistics.mean(values):.3f}"
    return f"{statistics.mean(values):.3f} ± {(interval.high - interval.low) / 2:.3f}"


def cost(work: Path, directory: Path, rounds: int) -> None:
    """Time votes on B against one pass in turn; their memory in a process each."""
    found = measured(work, "both", rounds)
    print(f"time of a count: {found['ratio']:.2f} of one forward and backward pass ({found['range']})")
    peaks = {}
    for part in ("pass", "count"):
        command = [sys.executable, __file__, part, "--workdir", str(directory)]
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
        peaks[part] = json.loads(output.splitlines()[-1])
    over = peaks["count"]["peak"] - peaks["pass"]["peak"] - peaks["count"]["counts"]
    print(
        f"memory over the pass: {over / 1e6:.0f} MB beside {peaks['count']['counts'] / 1e6:.1f} MB of counts"
    )


def measured(work: Path, part: str, rounds: int = 1) -> dict[str, Any]:
    """Run a pass, a count, or both in turn, on 32 samples."""
    model, rows = opened(work, adapter=True)
    assert isinstance(model, AdapterModel)
    samples = rows["pool"][:32]
    (batch,) = model.encode(samples).batches
    ups = [layer.parameter for layer in model.layers.values()]
    others = [parameter for parameter in model.model.parameters() if all(parameter is not up for up in ups)]

    def one_pass() -> None:
        for parameter in others:
            parameter.requires_grad_(False)
        model.task.loss(model.model, batch).sum().backward()
        for up in ups:
            up.grad = None

    ways = {"pass": one_pass, "count": lambda: model.votes(samples)}
    if part != "both":
        ways[part]()
        ways[part]()
        counts = sum(up.numel() for up in ups)
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "counts": counts}
    seconds: dict[str, list[float]] = defaultdict(list)
    for number in range(4 * rounds + 1):
        for name, way in ways.items():
            started = time.process_time()  # other work on the machine is none of either's
            way()
            if number:
                seconds[name].append(time.process_time() - started)
    each = [a / b for a, b in zip(seconds["count"], seconds["pass"], strict=True)]
    return {"ratio": statistics.median(each), "range": f"{min(each):.2f} to {max(each):.2f}"}


def extract(work: Path, layers: int, rounds: int) -> None:
    """Extract the same adapter with mergekit, paired; then compare what the two retain."""
    work.mkdir(parents=True, exist_ok=True)
    models = make_triple(work / f"{layers}-layers", layers, SHARD_SIZE)
    program = ensure_mergekit(work).with_name("mergekit-extract-lora")
    outputs = {name: work / f"extracted-{name}" for name in ("gradfix", "mergekit")}
    commands = {
        "gradfix": [
            str(Path(sys.executable).with_name("gradfix")), "extract", "--source-base", str(models["base"]),
            "--source-tuned", str(models["tuned"]), "--output", str(outputs["gradfix"]), "--rank", "32", "--whole",
            "leave", "--overwrite",
        ],
        "mergekit": [
            str(program), "--model", str(models["tuned"]), "--base-model", str(models["base"]), "--out-path",
            str(outputs["mergekit"]), "--max-rank", "32", "--distribute-scale", "-e", "embed_tokens|lm_head|norm",
            "--quiet",
        ],
    }  # fmt: skip
    seconds: dict[str, list[float]] = defaultdict(list)
    peaks: dict[str, int] = defaultdict(int)
    for _ in range(rounds):
        for path in models.values():
            read_into_cache(path)
        for name, command in commands.items():
            taken, peak = timed(command)
            seconds[name].append(taken)
            peaks[name] = max(peaks[name], peak)
            print(f"{name}: {taken:.1f} s", file=sys.stderr, flush=True)
    ratios = [a / b for a, b in zip(seconds["gradfix"], seconds["mergekit"], strict=True)]
    shares = {name: retained(models["base"], models["tuned"], output) for name, output in outputs.items()}
    print(f"{layers} layers of TinyLlama's shape, rank 32, {rounds} rounds")
    for name in commands:
        spread_of = f"{min(seconds[name]):.1f} to {max(seconds[name]):.1f}"
        print(
            f"{name}: {statistics.median(seconds[name]):.1f} s ({spread_of}), {peaks[name] / 1e6:.0f} MB, retained "
            f"{shares[name]:.5f} of the squared norm of the matrices"
        )
    print(f"ratio, median of rounds: {statistics.median(ratios):.2f}")


def retained(base: Path, tuned: Path, adapter: Path) -> float:
    """How much of a fine-tune's squared norm an adapter has: 1 − ‖Δ − B A‖² / ‖Δ‖², over the layers' matrices."""
    before, after = Checkpoint.open(base), Checkpoint.open(tuned)
    moved = Checkpoint.open(adapter, base=base)
    whole = missed = 0.0
    for name in before:
        if "proj" in name:
            change = after[name].double() - before[name].double()
            whole += float(change.square().sum())
            missed += float((change - (moved[name].double() - before[name].double())).square().sum())
    return 1 - missed / whole


if __name__ == "__main__":
    main()
