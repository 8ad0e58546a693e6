"""What models compute inside, recorded to disk: the only thing two models need to share to be aligned.

A model is run once over the inputs and may be freed then: the next one is recorded beside it, and the two are
compared one point at a time. Rows are tokens or patches, a few of each sample, the same ones whatever the model.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gradfix.alignment.affine import as_tokens
from gradfix.alignment.rows import RowChoice, Rows
from gradfix.checkpoints.expressions import require_finite
from gradfix.errors import AlignmentError
from gradfix.tasks.forward import evaluating


class Point(NamedTuple):
    """A place in a model where values of shape [samples, width] or [samples, tokens, width] pass.

    Attributes:
        module: A module's name, as ``named_modules`` gives it.
        side: Its first input, or its output (the first, where it gives several).
    """

    module: str
    side: Literal["in", "out"]


class Activations:
    """Recordings in a scratch directory; a context manager, whose files go with it.

    Attributes:
        choose: Which rows of the source and of the target are recorded.
    """

    def __init__(self, choose: Rows) -> None:
        """Prepare to record.

        Args:
            choose: Which rows of the source and of the target to record.
        """
        self.choose = choose
        self._widths: dict[tuple[str, Point], int] = {}

    def __enter__(self) -> "Activations":
        self._directory = tempfile.TemporaryDirectory(prefix="gradfix-activations-")
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()

    def record(
        self,
        key: str,
        model: nn.Module,
        run: Callable[[Any], Any],
        batches: Sequence[Any],
        points: Sequence[Point],
        choose: RowChoice | None = None,
    ) -> list[Any]:
        """Run a model over batches and keep what passes the points.

        Args:
            key: What to call the recording.
            model: The model.
            run: Runs it on a batch.
            batches: Encoded samples, in an order that every recording shares.
            points: Where to record.
            choose: Which rows; those of the target by default.

        Returns:
            What ``run`` returned, batch by batch.

        Raises:
            GradfixError: if a point is passed never or twice in a run, or a value is not finite.
        """
        choose = choose or self.choose.target
        paths = {point: self._path(key, point) for point in points}
        files = {point: path.open("wb") for point, path in paths.items()}
        outputs = []
        try:
            for number, batch in enumerate(batches):
                with record_points(model, points) as seen, evaluating(model):
                    outputs.append(run(batch))
                for point in points:
                    rows = rows_at(one_pass(seen, point, model), batch, point, choose, number)
                    require_finite(
                        rows, f"{type(model).__name__}: activations", f"{point.module} {point.side}"
                    )
                    self._widths[key, point] = rows.shape[1]
                    files[point].write(rows.numpy().data)
        finally:
            for file in files.values():
                file.close()
        return outputs

    def read(self, key: str, point: Point) -> Tensor:
        """Show one recording at one point, mapped from its file.

        Args:
            key: The recording.
            point: The point.

        Returns:
            ``[rows, width]`` float32; not to be written to.
        """
        width = self._widths[key, point]
        # Copy on write: torch asks for memory that could be written to, and nothing here writes.
        values = np.memmap(self._path(key, point), dtype=np.float32, mode="c")
        return torch.from_numpy(values).view(-1, width)

    def spill(self, values: Tensor) -> Tensor:
        """Move a computed tensor out of memory.

        Args:
            values: Of any shape.

        Returns:
            The same values, float32, mapped from a file whose room is free again when nobody reads it any more.
        """
        with tempfile.TemporaryFile(dir=self._directory.name) as file:
            file.write(values.detach().float().cpu().contiguous().numpy().data)
            file.flush()
            mapped = np.memmap(file, dtype=np.float32, mode="c")
        return torch.from_numpy(mapped).view(values.shape)

    def _path(self, key: str, point: Point) -> Path:
        return Path(self._directory.name) / f"{key}-{point.module}-{point.side}.float32"


def rows_at(values: Tensor, batch: Any, point: Point, choose: RowChoice, number: int = 0) -> Tensor:
    """Take the rows of one batch that are compared.

    Args:
        values: What passed the point: ``[samples, width]`` or ``[samples, tokens, width]``.
        batch: The encoded samples.
        point: Where the values passed.
        choose: Which rows.
        number: Of the batch among all.

    Returns:
        ``[rows, width]``, float32, contiguous, on the CPU.

    Raises:
        AlignmentError: if values have another shape.
    """
    values = values.detach().float().cpu()
    if values.dim() == 2:
        return values.contiguous()
    if values.dim() != 3:
        raise AlignmentError(
            f"alignment: expected activations of shape [samples, tokens, width], found {list(values.shape)}; "
            "this architecture can't be aligned; use --align none"
        )
    return choose(values, batch, point.module, number).contiguous()


@contextmanager
def record_points(model: nn.Module, points: Sequence[Point]) -> Iterator[Mapping[Point, list[Tensor]]]:
    """Watch what passes some points while the model runs; the hooks come off also after an error.

    Args:
        model: The model.
        points: Where to look.

    Yields:
        By point, the values of each pass, in order.
    """
    modules = dict(model.named_modules())
    seen: dict[Point, list[Tensor]] = {point: [] for point in points}
    handles = []

    def keep(point: Point) -> Any:
        if point.side == "in":
            return modules[point.module].register_forward_pre_hook(
                lambda module, args, kwargs: seen[point].append(as_tokens(module, first_input(args, kwargs))),
                with_kwargs=True,
            )
        return modules[point.module].register_forward_hook(
            lambda module, args, output: seen[point].append(as_tokens(module, first_output(output)))
        )

    try:
        for point in points:
            handles.append(keep(point))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def one_pass(seen: Mapping[Point, list[Tensor]], point: Point, model: nn.Module) -> Tensor:
    """Give what passed a point in one run.

    Args:
        seen: What :func:`observed` yielded.
        point: The point.
        model: The model, for the message.

    Returns:
        The values.

    Raises:
        AlignmentError: if nothing passed, or values passed more than once.
    """
    if len(seen[point]) != 1:
        raise AlignmentError(
            f"{type(model).__name__}: {point.module} ran {len(seen[point])} times in one pass; alignment needs layers "
            "that run once; use --align none"
        )
    return seen[point][0]


def first_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Give a module's first tensor argument, positional or not.

    Args:
        args: Positional arguments.
        kwargs: The others.

    Returns:
        The tensor.
    """
    return next(value for value in [*args, *kwargs.values()] if isinstance(value, Tensor))


def first_output(output: Any) -> Tensor:
    """Give a module's output, or the first of several.

    Args:
        output: What the module returned.

    Returns:
        The tensor.
    """
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found
