"""Hold a model in memory where it fits there, else fetch it block by block."""

import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from gradfix.checkpoints import Checkpoint
from gradfix.evaluation.adapter_model import AdapterModel
from gradfix.evaluation.streaming.plan import compute_dtype_of, plan_memory
from gradfix.evaluation.streaming.streamed_adapter import StreamedAdapterModel
from gradfix.evaluation.streaming.streamed_model import StreamedModel
from gradfix.evaluation.target_model import TargetModel
from gradfix.ranks import ranks
from gradfix.tasks import ModelTask
from gradfix.tasks.loading import require_device
from gradfix.vectors.task_vector import Placement


def load_target(
    task: ModelTask,
    target: Checkpoint,
    placement: Placement,
    *,
    memory: str | int = "auto",
    compute_dtype: str = "auto",
    adapter: bool = False,
    voting: Collection[str] | None = None,
    device: str = "cpu",
    batch_size: int = 32,
    length: Callable[[], int] | None = None,
    **options: Any,
) -> TargetModel:
    """Load θ_B in the way that fits.

    Args:
        task: Bound to the target or not yet.
        target: θ_B's checkpoint.
        placement: τ laid onto it.
        memory: Bytes that may be used; ``auto`` for most of what is free.
        compute_dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        adapter: Move it in the coordinates of τ's adapter.
        voting: The target's tensors that will have votes, which take memory; those that τ may change if None.
        device: Where to compute.
        batch_size: Samples a forward pass; fewer where so many don't fit.
        length: Tells the tokens of the longest sample: the shorter, the more samples have room in a pass that fetches
            the model. As many as the context has if None, but at most 512.
        **options: Of :meth:`TargetModel.load`.

    Returns:
        The model at θ_B.

    Raises:
        GradfixError: if it can't be loaded, not even one block fits, or there is no such device.
    """
    require_device(device)
    number = compute_dtype_of(target, compute_dtype, device, adapter=adapter)
    options = {**options, "device": device, "compute_dtype": number}
    planned = partial(
        plan_memory,
        target,
        voting=() if adapter else placement.changing if voting is None else voting,
        memory=memory,
        compute_dtype=number,
        device=device,
        batch_size=batch_size,
    )
    if not planned(length=task.max_length).streams or (task.builds_model and memory == "auto"):
        resident = AdapterModel if adapter else TargetModel
        return resident.load(task, target, placement, batch_size=batch_size, **options)
    plan = planned(length=task.max_length if length is None else length())
    plan.refuse(target.location)
    streamed = StreamedAdapterModel if adapter else StreamedModel
    model = streamed.load(task, target, placement, batch_size=plan.batch, **options)
    model.keep_inputs(plan.kept)
    return model


@contextmanager
def keeping_counts(model: TargetModel, output: Path) -> Iterator[None]:
    """Keep what is counted beside an output until that is written, so that the same command goes on after a kill.

    Args:
        model: Where it is fetched block by block; one in memory counts in one go.
        output: What will be written.

    Yields:
        Nothing.
    """
    if not isinstance(model, StreamedModel):
        yield
        return
    place = Path(output).absolute()
    model.kept_counts = place.parent / f".{place.name}.counting"
    model.keep_inputs(folder=place.parent)
    try:
        yield
    except BaseException:
        if ranks().first and model.kept_counts.is_dir() and not any(model.kept_counts.rglob("*.safetensors")):
            shutil.rmtree(model.kept_counts, ignore_errors=True)
        raise
    if ranks().first:
        shutil.rmtree(model.kept_counts, ignore_errors=True)
