"""A LoRA adapter beside a base that is fetched block by block: its factors are few, and stay in memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from gradfix.checkpoints.fingerprint import tensor_fingerprint
from gradfix.evaluation.adapter_model import AdapterModel
from gradfix.evaluation.low_rank_layers import PARAMETER
from gradfix.evaluation.streaming.averaging import GradientVisitor
from gradfix.evaluation.streaming.streamed_model import Standing, StreamedModel
from gradfix.vectors.task_vector import TaskVector


class StreamedAdapterModel(AdapterModel, StreamedModel):
    """:class:`AdapterModel`, its base fetched block by block: B is a parameter of the block that its layer is in."""

    @override
    def trainable(self, *, head: bool = True) -> list[nn.Parameter]:
        return StreamedModel.trainable(self, head=head)

    @override
    def detach(self) -> None:
        with self._attaching():
            super().detach()

    @contextmanager
    @override
    def _attaching(self) -> Iterator[None]:
        self._execution.close()
        try:
            yield
        finally:
            self._execution = self._executing(self.model)

    @override
    def _set(self, delta: TaskVector | None, alpha: float) -> None:
        StreamedModel._set(self, delta, alpha)

    @override
    def _value(self, name: str, standing: Standing) -> Tensor:
        path, _, attribute = name.rpartition(".")
        layer = self._layers.get(path)
        if layer is None or attribute != PARAMETER:
            return super()._value(name, standing)
        memory, changes = self._stored_as[name].memory, standing.changes
        moved = changes is not None and memory in changes.specs
        return layer.value(changes.read(memory) if changes is not None and moved else None, standing.alpha)

    @override
    def _tensors_of(self, path: str) -> Mapping[str, Tensor]:
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        state = self.model.get_submodule(path).state_dict(keep_vars=True)
        point = self._execution.point
        return {
            key: self._value(names[id(tensor)], point).to(self._device) if id(tensor) in names else tensor
            for key, tensor in state.items()
        }

    @override
    def _used(self, weights: Sequence[str], batches: Sequence[Any]) -> list[str]:
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        wanted = {names[id(self.model.get_parameter(name))]: name for name in weights}
        found: set[str] = set()
        self._go(batches, wanted, GradientVisitor(self._execution, lambda name, *_: found.add(name)))
        return [name for ours, name in wanted.items() if ours in found]

    @override
    def _identity(self, batches: Sequence[Any]) -> dict[str, Any]:
        factors = {
            path: [tensor_fingerprint(each) for each in layer.factors] for path, layer in self._layers.items()
        }
        return {**super()._identity(batches), "adapter": factors}
