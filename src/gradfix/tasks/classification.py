"""What tasks with classes share: labels by name, cross-entropy, accuracy, and the head."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradfix.data import origin
from gradfix.errors import GradfixError, listed
from gradfix.tasks.base import Batch, Measured, ModelTask, RowLike
from gradfix.tasks.labels import Labels
from gradfix.tasks.probe import fit_probe
from gradfix.tasks.running import backbone, evaluating, mean_over_tokens, outside_backbone, placed


class Classification(ModelTask):
    """One of C classes a sample; loss is the cross-entropy, the metric is accuracy.

    Args:
        columns: The data's column for each role.
        labels: Names in the order of their ids, or ``id2label``; the bound model's by default. Where the
            target base has no head of the task, give those of the tuned model.
        max_length: Longest input in tokens.
    """

    metric = "accuracy"

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
                f"{self.name}: no labels yet; give labels=, or bind the task to a model that has them"
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

    def bind(self, location: str | Path, *, trust_remote_code: bool = False) -> None:
        """Take processors and configuration, and the label names unless they were given.

        Args:
            location: A model directory or Hub id.
            trust_remote_code: Allow the code that a repository brings.
        """
        super().bind(location, trust_remote_code=trust_remote_code)
        if self._labels is None:
            self._labels = self._labels_of(self.config)

    def _labels_of(self, config: Any) -> Labels | None:
        # A base with one output is a regression; the tuned model's labels may still replace it.
        return Labels(config.id2label) if len(config.id2label or {}) > 1 else None

    def _config_overrides(self) -> dict[str, Any]:
        return {"id2label": self.labels.id2label, "label2id": self.labels.label2id}

    def classes(self, rows: Sequence[RowLike]) -> list[int]:
        """The class of each row.

        Args:
            rows: The samples.

        Returns:
            A class id a row.
        """
        values = self._column(rows, "label")
        return [
            self.labels.id_of(value, origin(row, position))
            for position, (row, value) in enumerate(zip(rows, values, strict=True))
        ]

    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows without a known label, and a support set that misses a class.

        Args:
            rows: The samples.
            support: They are a support set: it needs every class.

        Raises:
            GradfixError: Naming the first row that cannot be used, or the classes without samples.
        """
        super().check(rows, support=support)
        present = set(self.classes(rows))
        if not support:
            return
        if len(present) == 1:
            only = self.labels.names[present.pop()]
            raise GradfixError(f"the support set has one class only ({only!r}); give samples of every class")
        absent = [name for index, name in enumerate(self.labels.names) if index not in present]
        if absent:
            raise GradfixError(
                f"the support set has no sample of {len(absent)} of the {len(self.labels)} classes: "
                f"{listed(absent)}"
            )

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scores of the classes.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            ``[B, C]`` float32.
        """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The cross-entropy of each sample.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            ``[B]`` float32.
        """
        logits = self.logits(model, batch)
        return cross_entropy(logits, batch["labels"].to(logits.device), reduction="none")

    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Losses, hits (1 or 0) and predicted label names.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            One of each a sample; of equal scores the lowest id is predicted.
        """
        logits = self.logits(model, batch)
        labels = batch["labels"].to(logits.device)
        predicted = logits.argmax(dim=1)
        names = [self.labels.names[index] for index in predicted.tolist()]
        return Measured(cross_entropy(logits, labels, reduction="none"), (predicted == labels).float(), names)


class HeadedClassification(Classification):
    """Classification by a head on top of a pre-trained backbone."""

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model's head returns.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            ``[B, C]`` float32.
        """
        scores: Tensor = model(**placed(model, batch)).logits
        return scores.float()

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The backbone's last hidden states, averaged over real tokens or patches.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            ``[B, d]`` float32.
        """
        inner = backbone(model)
        inputs = placed(inner, batch)
        return mean_over_tokens(inner(**inputs).last_hidden_state, inputs.get("attention_mask"))

    def head(self, model: nn.Module) -> list[str]:
        """The parameters outside the backbone.

        Args:
            model: The model.

        Returns:
            Names of parameters.
        """
        return outside_backbone(model)

    def fit_head(
        self, model: nn.Module, rows: Sequence[RowLike], *, batch_size: int = 32
    ) -> dict[str, Tensor]:
        """Fit the head's last layer to samples in closed form, on the model's own features (see `fit_probe`).

        Args:
            model: The target base; it is not changed.
            rows: The support set.
            batch_size: Samples a forward pass.

        Returns:
            New values by parameter name, in the parameters' dtype: ``[C, d]`` and, if the layer has one, the
            bias.

        Raises:
            GradfixError: If the model's head does not end in a linear layer.
        """
        name, layer = self._last_layer(model)
        inputs: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].float().cpu()))
        collected = []
        try:
            with evaluating(model):
                for start in range(0, len(rows), batch_size):
                    batch = self.encode([rows[i] for i in range(start, min(start + batch_size, len(rows)))])
                    self.logits(model, batch)
                    collected.append(self._used_inputs(inputs.pop(), batch))
        finally:
            handle.remove()
        # Cloned out of inference mode, so that what is returned can be used in training.
        features = torch.cat(collected).clone()
        probe = fit_probe(features, self.classes(rows), len(self.labels), intercept=layer.bias is not None)
        fitted = {f"{name}.weight": probe.weight.to(layer.weight)}
        if layer.bias is not None:
            fitted[f"{name}.bias"] = probe.bias.to(layer.bias)
        return fitted

    def _last_layer(self, model: nn.Module) -> tuple[str, nn.Linear]:
        """The linear layer that makes the logits: the last outside the backbone."""
        outside = set(outside_backbone(model))
        found = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and f"{name}.weight" in outside
        ]
        if not found or found[-1][1].out_features != len(self.labels):
            raise GradfixError(
                f"{type(model).__name__}: its head does not end in a linear layer of {len(self.labels)} "
                "classes, so it cannot be refitted; copy it (--head copy)"
            )
        return found[-1]

    def _used_inputs(self, inputs: Tensor, batch: Batch) -> Tensor:
        """What the last layer used of each sample, ``[B, d]``: of a decoder's tokens, the last real one."""
        if inputs.dim() == 2:
            return inputs
        last = batch["attention_mask"].sum(dim=1) - 1
        return inputs[torch.arange(len(inputs)), last]
