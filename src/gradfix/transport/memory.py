"""How a transport's models are held, what it costs, and what is possible with them then.

Time is reckoned by the products of matrices, two operations a weight and token, of which a gradient takes three times
as many; a model fetched block by block runs its blocks once more. One product is timed on this machine.
"""

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gradfix.checkpoints.tensors import TensorSpec
from gradfix.errors import GradfixError, option
from gradfix.evaluation.finetuning import TRAINING_BATCH
from gradfix.evaluation.streaming.plan import compute_dtype_of, plan_memory, usual_length
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes import TransportRecipe
from gradfix.recipes.settings import SETTINGS
from gradfix.tasks import ModelTask
from gradfix.transport.checks import Findings, Models


def possible(recipe: TransportRecipe, model: TargetModel, found: Findings) -> TransportRecipe:
    """Leave training out of a choice where a model is fetched block by block: it needs all weights at once.

    Args:
        recipe: The options.
        model: The target.
        found: Told what is left out.

    Returns:
        What can be done.

    Raises:
        GradfixError: if training was asked for.
    """
    if not model.streams or not recipe.may_train:
        return recipe
    if recipe.finetune_steps is not None:
        raise GradfixError(
            f"{option('finetune_steps')}: training needs all weights at once, and this model is fetched block by "
            f"block; leave it out, or give {option('memory')} a size that the model fits in"
        )
    found.add(
        "note",
        "training on the samples is not tried: it needs all weights at once, which memory does not hold",
    )
    return recipe.model_copy(update={"training": False})


def note_judging(model: TargetModel, found: Findings) -> None:
    """Say where answers would be generated, and are not.

    Args:
        model: The target.
        found: Told.
    """
    if model.judging.metric != model.task.judging().metric:
        found.add(
            "note",
            "answers are not generated, since each token would read the whole checkpoint: "
            f"{model.judging.metric.replace('_', ' ')} judges",
        )


def note_cost(
    recipe: TransportRecipe,
    models: Models,
    task: ModelTask,
    rows: Sequence[Any],
    judged: int,
    found: Findings,
    *,
    answers: int = 0,
) -> None:
    """Say whether the target is held in memory, what that needs by part, what is read and kept, and about how long.

    Args:
        recipe: The options.
        models: The three models.
        task: Bound to the target.
        rows: The support set, or what it is drawn from.
        judged: How many samples choose and judge.
        answers: How many the source is to write.
        found: Told; its seconds grow by the estimate.

    Raises:
        GradfixError: if not even one block fits.
    """
    target = models.target
    samples = len(rows)
    if recipe.samples_per_class is not None:
        samples = min(samples, recipe.samples_per_class * len(set(task.classes(rows))))
    length = longest(task, rows)
    loading = recipe.loading()
    dtype = compute_dtype_of(target, loading["compute_dtype"], recipe.device, adapter=models.adapter)
    voting: Collection[str] = models.placement.changing if recipe.counts_votes else ()
    planned = partial(
        plan_memory,
        target,
        voting=() if models.adapter else voting,
        memory=loading["memory"],
        compute_dtype=dtype,
        device=recipe.device,
    )
    plan = planned(batch_size=min(recipe.batch_size, max(samples, 1)), length=length, samples=samples)
    streams = planned(batch_size=recipe.batch_size, length=recipe.max_length).streams
    held = task.builds_model or not streams
    parts = plan.resident if held else plan.streamed
    text = ", ".join(f"{name} {_gigabytes(size)}" for name, size in parts.items() if size)
    how = "is held in memory" if held else f"is fetched block by block ({plan.blocks} blocks)"
    found.add(
        "note",
        f"{target.location}: {how}, in {str(dtype).removeprefix('torch.')}: about {_gigabytes(sum(parts.values()))} of "
        f"the {_gigabytes(plan.limit)} that may be used ({text})",
    )
    if not held:
        plan.refuse(target.location)
        kept = sum(target.specs[name].numel for name in voting if name in target.specs)
        if recipe.counts_votes and models.adapter and models.placement.adapter is not None:
            kept = sum(update.specs[0].numel for update in models.placement.adapter.parts.updates.values())
        written = {
            "of votes": kept,
            "of inputs of blocks for a while": plan.scratch,
            "of what their products gave for a while": plan.products,
        }
        there = ", ".join(f"{_gigabytes(size)} {what}" for what, size in written.items() if size)
        found.add(
            "note",
            f"each gradient reads {_gigabytes(plan.read)} of weights"
            + (f", and keeps {there} beside the output{_free(recipe)}" if there else ""),
        )
    weights = sum(spec.numel for spec in target.specs.values() if spec.dtype.is_floating_point)
    each, besides = _forwards(recipe, held=held)
    settings = len(recipe.alphas() or SETTINGS.alphas)
    operations = 2 * weights * length * (samples * each + judged * (settings + 3) + besides)
    judge = task.judging()
    if judge.generates:  # of four models, a token at a time
        operations += 2 * weights * judged * 4 * getattr(judge, "max_new_tokens", 0)
    operations += 2 * weights * answers * length
    found.seconds = (found.seconds or 0.0) + operations / _speed(recipe.device, dtype, target.specs)


def _forwards(recipe: TransportRecipe, *, held: bool) -> tuple[int, int]:
    """Reckon forward passes of single samples; those of ``auto`` as if each walk ended where most do.

    Args:
        recipe: The options.
        held: Whether the target is held in memory.

    Returns:
        How many for each labelled sample, and how many however many samples there are.
    """
    count = (3 if held else 4) * recipe.counts_votes
    # The count, every α, and the certificate at five places with its slope.
    each = count + len(recipe.alphas() or SETTINGS.alphas) + 5 + (3 if held else 4)
    besides = 0
    if recipe.method == "auto":
        # Naive addition at every α, another count for the confident mask, and re-votes, each judged by both halves.
        each += len(SETTINGS.alphas) + count + len(SETTINGS.levels) + recipe.steps * (count + 1)
        if recipe.align_data is not None or recipe.samples_per_class is not None:
            besides += SETTINGS.align_inputs  # what the tuned model says of these judges
    if held and recipe.may_train:
        usual = sum(SETTINGS.stops[:-1])
        told = recipe.finetune_steps or usual
        steps = min(told, usual) if recipe.method == "auto" else told
        besides += 3 * TRAINING_BATCH * steps
    return each, besides


def longest(task: ModelTask, rows: Sequence[Any]) -> int:
    """Tell how long samples are at most.

    Args:
        task: Bound to the target.
        rows: At least one sample.

    Returns:
        Tokens of the longest: what texts are padded to; of what is no text, see :func:`usual_length`.
    """
    encoded = task.encode([max(rows, key=task.size)])
    if isinstance(encoded, Mapping) and "input_ids" in encoded:
        return int(encoded["input_ids"].shape[1])
    config = task.config.to_dict() if hasattr(task.config, "to_dict") else {}
    return usual_length(config)


def _speed(device: str, dtype: torch.dtype, specs: Mapping[str, TensorSpec]) -> float:
    """Operations a second of a product of this model's size."""
    sides = [spec.shape for spec in specs.values() if len(spec.shape) == 2] or [(1, 1)]
    rows, columns = (min(side, 2048) for side in max(sides, key=lambda shape: min(shape)))
    left = torch.ones(256, columns, dtype=dtype, device=device)
    right = torch.ones(columns, rows, dtype=dtype, device=device)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        float((left @ right)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2.0 * 256 * columns * rows / min(seconds)


def _free(recipe: TransportRecipe) -> str:
    if getattr(recipe, "output", None) is None:
        return ""
    parent = next(folder for folder in Path(recipe.output).absolute().parents if folder.exists())
    return f", where {_gigabytes(shutil.disk_usage(parent).free)} are free"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**7 else f"{size / 1e6:.2f} MB"
