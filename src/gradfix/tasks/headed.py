"""Tasks by a head on a pre-trained backbone; of classification, the refit of that head in closed form."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from gradfix.errors import GradfixError, option
from gradfix.tasks.base import Batch, ModelTask, RowLike
from gradfix.tasks.classification import Classification
from gradfix.tasks.forward import backbone, evaluating, mean_over_tokens, outside_backbone, placed
from gradfix.tasks.probe import fit_probe


class Headed(ModelTask):
    """A task whose output is made by a head of its own on top of a pre-trained backbone."""

    problem: ClassVar[str | None] = None
    """What ``problem_type`` a configuration may state; None where it has no such entry."""

    @override
    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The backbone's last hidden states, averaged over real tokens or patches."""
        inner = backbone(model)
        inputs = placed(inner, batch)
        return mean_over_tokens(inner(**inputs).last_hidden_state, inputs.get("attention_mask"))

    @override
    def head(self, model: nn.Module) -> list[str]:
        """The parameters outside the backbone."""
        return outside_backbone(model)

    @override
    def use_tuned(self, config: Mapping[str, Any]) -> None:
        """Refuse a head of another kind, and one that was trained for another problem."""
        architecture = str((config.get("architectures") or [""])[0])
        kind = next((kind for kind in HEADS if architecture.endswith(kind)), None)
        ours = f"For{self.auto_class.removeprefix('AutoModelFor')}"
        if kind is not None and kind != ours:
            raise GradfixError(
                f"task {self.name}: the tuned model is a {architecture}, with a head of another kind; "
                f"give {_task(HEADS[kind])}"
            )
        problem = stated_problem(config)
        if self.problem and problem is not None and problem != self.problem:
            stated = "problem_type" if config.get("problem_type") else "its one output"
            fitting = PROBLEMS.get((ours, problem))
            remedy = (
                f"give {_task(fitting)}" if fitting else "which is no task here; give a CustomTask in Python"
            )
            raise GradfixError(
                f"task {self.name}: the tuned model's config.json says {problem} ({stated}); {remedy}"
            )

    @override
    def head_config(self) -> dict[str, Any]:
        overrides = self._config_overrides()
        return {
            key: {str(number): name for number, name in overrides[key].items()}
            if key == "id2label"
            else overrides[key]
            for key in ("id2label", "label2id", "problem_type")
            if key in overrides
        }


HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
}
"""The task of each kind of head that a model's architecture may name."""

PROBLEMS = {
    ("ForSequenceClassification", "single_label_classification"): "text-classification",
    ("ForSequenceClassification", "multi_label_classification"): "multi-label-classification",
    ("ForSequenceClassification", "regression"): "regression",
    ("ForImageClassification", "single_label_classification"): "image-classification",
}
"""The task of each problem that a configuration may state, by kind of head."""


def stated_problem(config: Mapping[str, Any]) -> str | None:
    """Tell which loss a head was trained with, as far as its configuration says so.

    Args:
        config: A ``config.json``.

    Returns:
        ``problem_type``, or ``regression`` for one output; None where it says nothing.
    """
    if config.get("problem_type"):
        return str(config["problem_type"])
    names = config.get("id2label")
    return "regression" if isinstance(names, Mapping) and len(names) == 1 else None


def _task(name: str) -> str:
    return f"{option('task')} {name}"


class HeadedClassification(Headed, Classification):
    """Classification by a head on top of a pre-trained backbone."""

    problem = "single_label_classification"

    @override
    def use_tuned(self, config: Mapping[str, Any]) -> None:
        """Take the names of the classes."""
        super().use_tuned(config)
        if config.get("id2label"):
            self.use_labels({int(key): name for key, name in config["id2label"].items()})

    @override
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model's head returns."""
        scores: Tensor = model(**placed(model, batch)).logits
        return scores.float()

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
        name, layer = self.last_layer(model)
        features = self.last_inputs(model, rows, batch_size=batch_size)
        probe = fit_probe(features, self.classes(rows), len(self.labels), intercept=layer.bias is not None)
        fitted = {f"{name}.weight": probe.weight.to(layer.weight)}
        if layer.bias is not None:
            fitted[f"{name}.bias"] = probe.bias.to(layer.bias)
        return fitted

    def last_inputs(self, model: nn.Module, rows: Sequence[RowLike], *, batch_size: int = 32) -> Tensor:
        """Give what the head's last layer reads of samples.

        Args:
            model: The model, with a head.
            rows: The samples.
            batch_size: Samples a forward pass.

        Returns:
            ``[samples, d]`` float32, in the order of the rows.

        Raises:
            GradfixError: If the model's head does not end in a linear layer.
        """
        _, layer = self.last_layer(model)
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
        return torch.cat(collected).clone()

    def last_layer(self, model: nn.Module) -> tuple[str, nn.Linear]:
        """Find the linear layer that makes the logits: the last outside the backbone.

        Args:
            model: The model, with a head.

        Returns:
            Its name and the layer.

        Raises:
            GradfixError: If there is none of as many classes as the task has.
        """
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
