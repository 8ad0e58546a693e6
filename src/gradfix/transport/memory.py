"""How a transport's models are held, and what is possible with them then."""

from collections.abc import Collection

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError, option
from gradfix.evaluation.streaming.plan import MemoryPlan, compute_dtype_of, plan_memory
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes import TransportRecipe
from gradfix.transport.checks import Findings


def plan_for(recipe: TransportRecipe, target: Checkpoint, voting: Collection[str]) -> MemoryPlan:
    """Plan a transport's memory.

    Args:
        recipe: The options.
        target: θ_B.
        voting: The target's tensors that τ changes.

    Returns:
        The plan.
    """
    loading = recipe.loading()
    return plan_memory(
        target,
        voting=voting,
        memory=loading["memory"],
        compute_dtype=compute_dtype_of(target, loading["compute_dtype"], recipe.device),
        device=recipe.device,
        batch_size=recipe.batch_size,
        length=recipe.max_length,
    )


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
