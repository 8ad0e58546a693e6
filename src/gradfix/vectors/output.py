"""A vector written in the form that was asked for: a whole model, or an adapter on the target."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gradfix.checkpoints import Checkpoint
from gradfix.progress import Progress, silent
from gradfix.recipes import WritingRecipe
from gradfix.vectors.adapter_output import write_adapter
from gradfix.vectors.applied import Applied
from gradfix.vectors.apply import apply
from gradfix.vectors.task_vector import TaskVector
from gradfix.vectors.truncation import Extraction


def write_output(
    recipe: WritingRecipe,
    vector: TaskVector,
    target: Checkpoint,
    *,
    alpha: float,
    extraction: Extraction | None = None,
    heads: Mapping[str, Tensor] | None = None,
    companions: Callable[[Applied], Mapping[str, bytes]] | None = None,
    progress: Progress = silent,
) -> Applied:
    """Write θ_B + α·(vector), or the adapter that says so.

    Args:
        recipe: The options of writing; its command has an output.
        vector: The vector, masked or not.
        target: θ_B.
        alpha: Scaling coefficient α.
        extraction: The vector's, where an adapter is asked for and it is known already.
        heads: Tensors to write in place of the tuned model's, by output name.
        companions: Makes further files of the directory, by name, from what was written.
        progress: Told what is being done.

    Returns:
        What was written.
    """
    output = recipe.model_dump()["output"]
    if recipe.output_format != "lora":
        return apply(
            vector,
            target,
            alpha=alpha,
            output=output,
            **recipe.writing(),
            heads=heads,
            companions=companions,
            progress=progress,
        )
    if extraction is None:
        extraction = Extraction(vector, target, **recipe.extracting(), progress=progress)
    dtype = getattr(torch, recipe.dtype) if recipe.dtype else None
    return write_adapter(
        extraction.vector,
        target,
        extraction.output(alpha, dtype, heads=heads),
        alpha=alpha,
        output=output,
        overwrite=recipe.overwrite,
        resume=recipe.resume,
        restart=recipe.restart,
        companions=companions,
        progress=progress,
    )
