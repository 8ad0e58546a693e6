"""Fine-tunes by the paper's recipe: AdamW under a cosine schedule, from which a run that was ended goes on."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from gradfix.paper.data import task_rows
from gradfix.paper.study import Study, StudyTask
from gradfix.progress import Progress, silent
from gradfix.recipes.paper import PaperFinetuneRecipe
from gradfix.tasks import ModelTask, get_task
from gradfix.tasks.labelled import Labelled

STATE_FILE = "training.pt"
KEPT_EVERY = 100
"""Steps between two states from which a run can go on."""


def run(
    study: Study,
    tasks: Mapping[str, StudyTask],
    recipe: PaperFinetuneRecipe,
    folder: Path,
    *,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> list[Path]:
    """Fine-tune a base on each task.

    Args:
        study: The study.
        tasks: The tasks that were chosen.
        recipe: The options.
        folder: Where the study's templates are.
        say: Told what goes on with an earlier run.
        progress: Told the steps done.

    Returns:
        The models' folders, one a task; those that were there already are left as they are.

    Raises:
        GradfixError: If the base is no directory, or an unfinished run is of other options.
    """
    base = Checkpoint.open(study.source_base if recipe.base == "source" else study.target_base)
    base.fetch()
    if base.directory is None:
        raise GradfixError(f"{base.location}: a model can't be built from weights alone; give its directory")
    made = []
    for name, task in tasks.items():
        output = recipe.output / name
        made.append(output)
        if output.exists():
            say(f"{output}: is there already")
            continue
        train(study, task, recipe, folder, base.directory, output, say=say, progress=progress)
    return made


def train(
    study: Study,
    task: StudyTask,
    recipe: PaperFinetuneRecipe,
    folder: Path,
    base: Path,
    output: Path,
    *,
    say: Callable[[str], None],
    progress: Progress,
) -> None:
    """Fine-tune on one task, and save the model with its base's tokenizer or processor.

    Args:
        study: The study.
        task: The task.
        recipe: The options.
        folder: Where the study's templates are.
        base: The base's directory.
        output: Where the model appears once it is whole.
        say: Told where an earlier run is taken up.
        progress: Told the steps done.
    """
    rows = task_rows(task, test=False)
    bound = _task(study, task, folder)
    bound.bind(base)
    if isinstance(bound, Labelled):
        bound.use_labels(list(dict.fromkeys(task.names.values())) or bound.names_in(rows))
    model = bound.load_model(base, dtype=torch.float32, device=recipe.device)
    bound.prepare(model)
    trained = {*bound.voters(model), *bound.head(model)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=recipe.learning_rate
    )
    partial = output.with_name(output.name + ".partial")
    told = {**recipe.model_dump(mode="json"), "rows": len(rows), "model": str(base)}
    start = _resumed(partial / STATE_FILE, model, optimizer, told, recipe.device)
    if start:
        say(f"{output}: goes on after step {start} of {recipe.steps}")
    partial.mkdir(parents=True, exist_ok=True)
    model.train()
    for step in range(start, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * step / recipe.steps)) / 2
        torch.manual_seed(
            recipe.seed + step
        )  # dropout, so that a run that goes on draws what the other would have
        batch = bound.encode([rows[place] for place in _batch(len(rows), recipe, step)])
        optimizer.zero_grad()
        bound.loss(model, batch).mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress(f"fine-tuning {output.name}", step + 1, recipe.steps, "steps")
        if (step + 1) % KEPT_EVERY == 0:
            _keep(partial / STATE_FILE, model, optimizer, told, step + 1)
    _save(model.eval(), base, partial / "model")
    (partial / "model").rename(output)
    shutil.rmtree(partial)


def _task(study: Study, task: StudyTask, folder: Path) -> ModelTask:
    options: dict[str, Any] = dict(task.columns)
    if task.templates is not None:
        options["templates"] = folder / task.templates
    return get_task(study.task, **options)


def _batch(count: int, recipe: PaperFinetuneRecipe, step: int) -> Sequence[int]:
    """The rows of one step: each time round all rows in another order."""
    size = min(recipe.batch_size, count)
    a_round = count // size
    generator = torch.Generator().manual_seed(recipe.seed + step // a_round)
    order = torch.randperm(count, generator=generator)
    first = step % a_round * size
    found: list[int] = order[first : first + size].tolist()
    return found


def _keep(path: Path, model: nn.Module, optimizer: Any, told: Mapping[str, Any], step: int) -> None:
    state = {
        "step": step,
        "told": dict(told),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def _resumed(path: Path, model: nn.Module, optimizer: Any, told: Mapping[str, Any], device: str) -> int:
    """Take up an earlier run of the same options; gives the steps that it had done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location=device)
    if state["told"] != told:
        raise GradfixError(f"{path.parent}: an unfinished run of other options; remove it to begin anew")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    step: int = state["step"]
    return step


def _save(model: Any, base: Path, folder: Path) -> None:
    model.save_pretrained(folder)
    for path in base.iterdir():
        weights = path.name.endswith((".safetensors", ".bin", ".index.json", ".msgpack", ".h5", ".ot"))
        if path.is_file() and not weights and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
