"""What tasks with named labels share: names that were given, are the model's, or the data's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from gradfix.errors import GradfixError, option
from gradfix.tasks.base import ModelTask, RowLike
from gradfix.tasks.labels import Labels, label_names


class Labelled(ModelTask):
    """A task whose answers are labels of a model.

    Args:
        columns: The data's column for each role.
        labels: Names in the order of their ids, or ``id2label``; the bound model's by default. Where the
            target base has no head of the task, give those of the tuned model.
        max_length: Longest input in tokens.
    """

    def __init__(
        self,
        columns: Mapping[str, str | None],
        labels: Sequence[str] | Mapping[Any, str] | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__(columns, max_length)
        self._labels = None if labels is None else Labels(labels)

    @property
    def labels(self) -> Labels:
        """The classes.

        Raises:
            GradfixError: If they were not given and no model is bound.
        """
        if self._labels is None:
            raise GradfixError(
                f"{self.name}: no labels yet; give {option('label', python='labels')}, or bind the task to a model "
                "that has them"
            )
        return self._labels

    @property
    def has_labels(self) -> bool:
        """Whether class names are known: given, bound with a model, or taken from data."""
        return self._labels is not None

    def use_labels(self, labels: Sequence[str] | Mapping[Any, str]) -> None:
        """Replace the classes: by the tuned model's, or the data's (`label_names`).

        Args:
            labels: Names in the order of their ids, or ``id2label``.
        """
        self._labels = Labels(labels)

    @override
    def bind(self, location: str | Path, *, trust_remote_code: bool = False) -> None:
        """Take processors and configuration, and the label names unless they were given."""
        super().bind(location, trust_remote_code=trust_remote_code)
        if self._labels is None:
            self._labels = self._labels_of(self.config)

    def _labels_of(self, config: Any) -> Labels | None:
        # A base with one output is a regression; the tuned model's labels may still replace it.
        return Labels(config.id2label) if len(config.id2label or {}) > 1 else None

    @override
    def _config_overrides(self) -> dict[str, Any]:
        return {"id2label": self.labels.id2label, "label2id": self.labels.label2id}

    def names_in(self, rows: Sequence[RowLike]) -> list[str]:
        """The labels that data name.

        Args:
            rows: The samples.

        Returns:
            Names in the order of ids.
        """
        return label_names(rows, self.columns[self.answer])
