"""In which coordinates a fine-tune is moved: those of its LoRA adapter, or the weights themselves."""

from dataclasses import replace

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError, option
from gradfix.plugins import is_plugin
from gradfix.recipes import CompareRecipe, TransportRecipe
from gradfix.recipes.fields import TASKS
from gradfix.recipes.settings import SETTINGS
from gradfix.tasks import get_task
from gradfix.transport.checks import Findings
from gradfix.vectors.task_vector import Placement


def moved_as_adapter(
    recipe: TransportRecipe | CompareRecipe, found: Findings, tuned: Checkpoint, placement: Placement
) -> bool:
    """Choose the space: the adapter's, where the source is one and nothing that was asked for needs weights.

    Args:
        recipe: The options.
        found: Told why an adapter is moved as weights.
        tuned: The tuned model.
        placement: τ laid onto the target.

    Returns:
        Whether the coordinates are the adapter's.

    Raises:
        GradfixError: if adapter space was asked for and can't be.
    """
    if recipe.space == "weights":
        return False
    finer = recipe.granularity != type(recipe).model_fields["granularity"].default
    if recipe.space is None and placement.adapter is None and not finer:
        return False
    reason = _obstacle(recipe, placement)
    if reason is None:
        return True
    if finer:
        raise GradfixError(
            f"{tuned.location}: {reason}, and {option('granularity')} {recipe.granularity} is of adapters; leave it out"
        )
    if recipe.space == "adapter":
        raise GradfixError(f"{tuned.location}: {reason}; give {option('space')} weights")
    output = "" if isinstance(recipe, CompareRecipe) else ", and the output is a whole model"
    found.add("note", f"{tuned.location}: is moved as weights{output}: {reason}")
    return False


def with_granularity(placement: Placement, recipe: TransportRecipe | CompareRecipe) -> Placement:
    """Tell an adapter what of it votes.

    Args:
        placement: τ laid onto the target.
        recipe: The options.

    Returns:
        The same for a source that is no adapter.
    """
    adapter = placement.adapter
    if adapter is None:
        return placement
    return replace(placement, adapter=replace(adapter, granularity=recipe.granularity))


def _builds_model(recipe: TransportRecipe | CompareRecipe) -> bool:
    """Whether a task of the user's own builds its model; nobody knows of an object, whose name the recipe has."""
    own = is_plugin("task", recipe.task)
    return get_task(recipe.task, **recipe.task_options()).builds_model if own else True


def _obstacle(recipe: TransportRecipe | CompareRecipe, placement: Placement) -> str | None:
    """Why the adapter can't be moved as one; None if it can."""
    if placement.adapter is None:
        return "is no LoRA adapter"
    if placement.adapter.obstacle is not None:
        return placement.adapter.obstacle
    if recipe.task and recipe.task not in TASKS and _builds_model(recipe):
        return "the task builds its own model, on which peft puts no adapter"
    if recipe.text_from is not None:
        return f"{option('text_from')} builds its own model, on which peft puts no adapter"
    if recipe.align not in (None, "none", "auto") or recipe.align_data is not None:
        return "alignment makes changes that are not of low rank"
    if isinstance(recipe, CompareRecipe):
        return None if recipe.target_tuned is None else f"{option('target_tuned')} gives bounds of weights"
    if recipe.output_format is not None:
        return f"{option('output_format')} {recipe.output_format} was asked for"
    if recipe.rounding != "nearest":
        return f"{option('rounding')} {recipe.rounding} is for weights"
    return None


def note_apart(target: Checkpoint, found: Findings) -> None:
    """Say that nothing is aligned where the two bases would need it.

    Args:
        target: θ_B.
        found: What is known of the bases; told.
    """
    alike = found.cosine_target
    if alike is not None and alike < SETTINGS.close:
        found.add(
            "warning",
            f"{target.location}: the old base is not like the new one (cosine {alike:.2f}), and an adapter is not "
            f"aligned; {option('space')} weights aligns, and writes a whole model",
        )
