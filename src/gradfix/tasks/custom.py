"""A task made of functions, for models that transformers does not know.

Letters used below: B samples in a batch, d features.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from gradfix.errors import GradfixError, listed
from gradfix.tasks.base import TASKS, Measured, RowLike
from gradfix.tasks.batches import batch_size, tensors_of, to_device
from gradfix.tasks.built import BuildsModel
from gradfix.tasks.data import origin, row_hash
from gradfix.tasks.images import read_image

ROUNDING = 1e-3
"""Of a loss in half precision, as a share of it."""


class CustomTask(BuildsModel):
    """Any model and any loss: open_clip, timm, your own.

    The first three functions are enough to evaluate a model of the caller's; a transport needs ``build``, too. Every
    function that gets a model gets the batch on the model's device.

    Args:
        encode_rows: ``(rows) -> batch``, a nesting of tensors whose first dimension is the sample.
        loss_of: ``(model, batch) -> [B]``, differentiable, one value a sample.
        predict_of: ``(model, batch) -> (predictions, scores)``: B values that JSON can say, and ``[B]`` scores in
            [0, 1], 1 where right.
        name: How results call the task; none of the names of `TASKS`.
        metric: What the mean score is.
        size_of: ``(row) -> int``, to batch samples of like sizes; all alike by default.
        build: ``() -> module`` of the models' architecture, whose state has the names of the weight files. A copy of
            it is used, and all its parameters and buffers are filled from the files.
        class_of: ``(row) -> str or int``, the class within which rows are drawn and dealt into folds; without it
            all rows are of one class.
        features_of: ``(model, batch) -> [B, d]``, what the model makes of each sample before any head; needed only
            to choose samples by features.
        voters_of: ``(model) -> names`` of the parameters whose gradients vote, as in ``model.named_parameters()``;
            by default all that ``build`` leaves requiring a gradient.
        columns: The columns of a row that make it the sample it is: they are hashed, and shown in the report; by
            default all.

    Raises:
        GradfixError: If the name is that of a task which gradfix brings.
    """

    def __init__(
        self,
        encode_rows: Callable[[Sequence[Any]], Any],
        loss_of: Callable[[nn.Module, Any], Tensor],
        predict_of: Callable[[nn.Module, Any], tuple[Sequence[Any], Tensor]],
        name: str = "custom",
        metric: str = "accuracy",
        size_of: Callable[[Any], int] = lambda row: 0,
        *,
        build: Callable[[], nn.Module] | None = None,
        class_of: Callable[[Any], str | int] | None = None,
        features_of: Callable[[nn.Module, Any], Tensor] | None = None,
        voters_of: Callable[[nn.Module], Iterable[str]] | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        if name in TASKS:
            # Its recipe would run gradfix's own task of that name instead.
            raise GradfixError(f"name: {name!r} is a task that gradfix brings; choose another name")
        self.name, self.metric = name, metric
        super().__init__({})
        self.encode_rows, self.loss_of, self.predict_of = encode_rows, loss_of, predict_of
        self.size_of = size_of
        self.build, self.class_of, self.features_of, self.voters_of = build, class_of, features_of, voters_of
        self._counted = None if columns is None else list(columns)

    @override
    def built(self) -> Any:
        """Call ``build``."""
        if self.build is None:
            raise GradfixError(
                f"{self.name}: a transport needs build=, a function that makes a module of the models' architecture"
            )
        return self.build()

    @override
    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows that are no mappings, lack a column, hold what can't be hashed, or are of no class."""
        super().check(rows, support=support)
        if support:
            self.columns = {}  # those of an earlier job are not these rows'
        for position, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise GradfixError(
                    f"{origin(row, position)}: expected a mapping of column names to values, "
                    f"found {type(row).__name__}"
                )
            columns = list(row) if self._counted is None else self._counted
            missing = [column for column in columns if column not in row]
            if missing:
                raise GradfixError(
                    f"{origin(row, position)}: has no column {missing[0]!r}, which columns= names; "
                    f"found {', '.join(map(repr, row))}"
                )
            if any(column not in self.columns.values() for column in columns):
                self._learn(row, columns, origin(row, position))
        if self.class_of is not None:
            self.classes(rows)

    def _learn(self, row: RowLike, columns: Sequence[str], where: str) -> None:
        """Note which columns rows have, by role; a report draws what has the role ``image``."""
        for column in columns:
            try:
                row_hash(row, [column])
            except TypeError as error:
                raise GradfixError(
                    f"{where}: column {column!r} holds a {type(row[column]).__name__}, which can't be hashed; "
                    "give numbers, text, lists, arrays, tensors, bytes, paths or images, or leave it out with columns="
                ) from error
            role = column
            if column == "image":
                try:
                    read_image(row[column], where)
                except GradfixError:
                    role = "image values"  # numbers, such as an image already normalised
            self.columns.setdefault(role, column)

    @override
    def encode(self, rows: Sequence[Any], *, strict: bool = False) -> Any:
        return self.encode_rows(rows)

    @override
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        batch = _beside(model, batch)
        return self._one_a_sample("loss_of", self.loss_of(model, batch), batch_size(batch)).float()

    @override
    def measure(self, model: nn.Module, batch: Any) -> Measured:
        batch = _beside(model, batch)
        samples = batch_size(batch)
        predictions, scores = self.predict_of(model, batch)
        predictions = predictions.tolist() if hasattr(predictions, "tolist") else list(predictions)
        if len(predictions) != samples:
            raise GradfixError(
                f"{self.name}: predict_of returned {len(predictions)} predictions for a batch of {samples} samples"
            )
        scores = self._one_a_sample("predict_of", scores, samples, "scores").float()
        if not bool(((scores >= 0) & (scores <= 1)).all()):
            raise GradfixError(
                f"{self.name}: predict_of returned scores from {float(scores.min()):g} to "
                f"{float(scores.max()):g}; expected values in [0, 1], 1 where the prediction is right"
            )
        given: list[Any] = []
        handle = model.register_forward_hook(lambda module, inputs, output: given.append(output))
        try:
            losses = self.loss(model, batch)
        finally:
            handle.remove()
        return Measured(losses, scores, predictions, _logits(given, losses, scores))

    def _one_a_sample(self, function: str, values: Any, samples: int, what: str = "losses") -> Tensor:
        """Refuse what was averaged: one loss a batch would make majority voting one vote a batch."""
        if not isinstance(values, Tensor):
            found = f"a {type(values).__name__}"
        elif values.shape == (samples,):
            return values
        else:
            found = "a scalar" if values.ndim == 0 else f"shape {list(values.shape)}"
        raise GradfixError(
            f"{self.name}: {function} returned {found} as {what} for a batch of {samples} samples; expected a tensor "
            f"[{samples}], one value a sample (reduction='none')"
        )

    @override
    def features(self, model: nn.Module, batch: Any) -> Tensor:
        if self.features_of is None:
            raise GradfixError(
                f"{self.name}: choosing samples by features needs features_of=, what the model makes of each sample "
                "before any head; or choose sampling random"
            )
        batch = _beside(model, batch)
        found, samples = self.features_of(model, batch), batch_size(batch)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != samples:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise GradfixError(f"{self.name}: features_of returned {shape}; expected [{samples}, features]")
        return found.float()

    @override
    def classes(self, rows: Sequence[RowLike]) -> list[int]:
        if self.class_of is None:
            return super().classes(rows)
        ids: dict[str | int, int] = {}
        found = []
        for position, row in enumerate(rows):
            label: Any = self.class_of(row)
            label = label.item() if hasattr(label, "item") and getattr(label, "ndim", 0) == 0 else label
            if not isinstance(label, str | int):
                raise GradfixError(
                    f"{origin(row, position)}: class_of returned a {type(label).__name__}; expected a class's name "
                    "or number"
                )
            found.append(ids.setdefault(label, len(ids)))
        return found

    @override
    def voters(self, model: nn.Module) -> list[str]:
        parameters = dict(model.named_parameters())
        if self.voters_of is None:
            names = [name for name, parameter in parameters.items() if parameter.requires_grad]
        else:
            names = list(self.voters_of(model))
        unknown = [name for name in names if name not in parameters]
        if unknown:
            raise GradfixError(
                f"{self.name}: voters_of names what is no parameter: {listed(unknown, 3)}; "
                f"found {listed(parameters, 3)}"
            )
        if not names:
            raise GradfixError(
                f"{self.name}: no parameter is to vote: none that build makes requires a gradient, or voters_of "
                "names none"
            )
        return names

    @override
    def size(self, row: Any) -> int:
        return self.size_of(row)


def _beside(model: nn.Module, batch: Any) -> Any:
    """The batch on the model's device."""
    reference = next(model.parameters(), None)
    return batch if reference is None else to_device(batch, reference.device)


def _logits(outputs: Sequence[Any], losses: Tensor, scores: Tensor) -> Tensor | None:
    """Find what the losses are the cross-entropy of, among what a model returned.

    Args:
        outputs: What it returned each time that it ran.
        losses: ``[B]``.
        scores: ``[B]``.

    Returns:
        ``[B, C]``, of which each loss is the cross-entropy of some class, the one named where the score says so; None
        if there is no such tensor.
    """
    for _, found in tensors_of(outputs):
        if (
            found.ndim != 2
            or len(found) != len(losses)
            or found.shape[1] < 2
            or not found.is_floating_point()
        ):
            continue
        entropies = found.float().logsumexp(dim=1, keepdim=True) - found.float()
        fits = (entropies - losses[:, None]).abs() <= ROUNDING * (1 + losses[:, None].abs())
        best = found.argmax(dim=1, keepdim=True)
        named = fits.gather(1, best)[:, 0]
        others = fits.scatter(1, best, value=False).any(dim=1)
        if bool((((scores == 1) & named) | ((scores == 0) & others)).all()):
            return found
    return None
