"""A task on the lab's independent pair as plain functions of weights: logits, streams, gradients, votes, training."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import normalize

from gradfix.demo.bench import task_of
from gradfix.demo.datasets import load_task
from gradfix.demo.models import pixel_values
from gradfix.demo.pair import load, load_model

Weights = Mapping[str, Tensor]
TESTED = 500
BLOCK = "vision_model.encoder.layers."
ATTENTION, PERCEPTRON = ".self_attn.out_proj", ".mlp.fc2"
PROJECTION = "visual_projection"


class Features(nn.Module):
    """A CLIP's image features as an ordinary forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """[samples, features], not normalised."""
        found = self.model.get_image_features(pixel_values=images)
        return found if isinstance(found, Tensor) else found.pooler_output


class Side:
    """One base with its class weights."""

    def __init__(self, name: str, task: str) -> None:
        model = load_model(name)
        prepared: Any = task_of(task)
        prepared.bind(load(name))
        prepared.prepare(model)
        self.network = Features(model).eval()
        self.classes, self.scale = prepared._weights, prepared._scale
        self.weights = {
            key.removeprefix("model."): value.detach() for key, value in self.network.named_parameters()
        }

    def logits(self, weights: Weights, images: Tensor) -> Tensor:
        """[samples, classes] at given weights; those left out are the base's."""
        full = {f"model.{key}": value for key, value in {**self.weights, **weights}.items()}
        return self.scale * normalize(functional_call(self.network, full, (images,)), dim=1) @ self.classes.T

    def streams(self, weights: Weights, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """By writer, in order: what the linear map reads, and what stands in the stream after it."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        inputs: dict[str, Tensor] = {}

        def reads(at: str) -> Callable[..., None]:
            return lambda module, given: inputs.__setitem__(at, given[0].detach())

        def stands(at: str, stream: Any) -> None:
            stream = stream[0] if isinstance(stream, tuple) else stream
            seen[at] = inputs[at].flatten(0, -2), stream.detach().flatten(0, -2)

        handles = []
        for name, module in self.network.model.named_modules():
            if name == PROJECTION:
                handles.append(module.register_forward_pre_hook(reads(name)))
                handles.append(module.register_forward_hook(lambda m, a, o, at=name: stands(at, o)))
            if not name.startswith(BLOCK):
                continue
            if name.endswith((ATTENTION, PERCEPTRON)):
                handles.append(module.register_forward_pre_hook(reads(name)))
            elif name.endswith(".layer_norm2"):
                at = name.removesuffix(".layer_norm2") + ATTENTION
                handles.append(module.register_forward_pre_hook(lambda m, a, at=at: stands(at, a)))
            elif name.count(".") == 3:
                at = name + PERCEPTRON
                handles.append(module.register_forward_hook(lambda m, a, o, at=at: stands(at, o)))
        try:
            with torch.no_grad():
                self.logits(weights, images)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def maps(self, images: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """By linear map: what it reads, what it gives, and the loss's gradient there, a row a place of an image."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def record(name: str) -> Callable[..., None]:
            return lambda module, given, output: seen.__setitem__(name, (given[0], output))

        handles = [
            module.register_forward_hook(record(name))
            for name, module in self.network.model.named_modules()
            if isinstance(module, nn.Linear) and name.startswith((BLOCK, PROJECTION))
        ]
        try:
            logits = self.logits({}, images.clone().requires_grad_())
        finally:
            for handle in handles:
                handle.remove()
        loss = -(logits.log_softmax(1) * targets).sum()
        gradients = torch.autograd.grad(loss, [output for _, output in seen.values()])
        return {
            name: (read.detach().flatten(0, -2), output.detach().flatten(0, -2), gradient.flatten(0, -2))
            for (name, (read, output)), gradient in zip(seen.items(), gradients, strict=True)
        }


class Pair:
    """A task on the independent pair."""

    def __init__(self, task: str) -> None:
        self.source, self.target = Side("A", task), Side("B", task)
        tuned = dict(load_model(f"A-{task}").named_parameters())
        self.tau = {
            key: tuned[key].detach() - value
            for key, value in self.source.weights.items()
            if key.startswith(("vision_model.", PROJECTION))
        }
        data = load_task(task)
        self.train = pixel_values(data.train.images), torch.tensor(data.train.labels)
        self.test = pixel_values(data.test.images[:TESTED]), torch.tensor(data.test.labels[:TESTED])
        self.spare = pixel_values(np.concatenate([data.validation.images, data.test.images[TESTED:]]))
        self.base = {key: self.target.weights[key] for key in self.tau}
        self.tuned = {key: self.source.weights[key] + value for key, value in self.tau.items()}

    def plus(self, change: Weights, alpha: float, start: Weights | None = None) -> dict[str, Tensor]:
        """StartingPoint + α · change."""
        return {key: value + alpha * change[key] for key, value in (start or self.base).items()}

    @torch.no_grad()
    def accuracy(self, weights: Weights) -> float:
        """On the test images."""
        images, labels = self.test
        return float((self.target.logits(weights, images).argmax(1) == labels).float().mean())

    def votes(self, weights: Weights, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Σ sign(−gradient) over samples; targets are distributions."""

        def loss(at: Weights, image: Tensor, target: Tensor) -> Tensor:
            return -(self.target.logits(at, image[None]).log_softmax(1)[0] * target).sum()

        total = {key: torch.zeros_like(value) for key, value in weights.items()}
        for start in range(0, len(images), 25):
            part = slice(start, start + 25)
            found = vmap(grad(loss), in_dims=(None, 0, 0))(dict(weights), images[part], targets[part])
            for key, value in found.items():
                total[key] -= value.sign().sum(0)
        return total

    def trained(self, weights: Weights, images: Tensor, targets: Tensor, rate: float, steps: int) -> Weights:
        """Some full-batch steps of AdamW."""
        at = {key: value.clone().requires_grad_() for key, value in weights.items()}
        optimizer = torch.optim.AdamW(at.values(), lr=rate, weight_decay=0.0)
        for _ in range(steps):
            optimizer.zero_grad()
            (-(self.target.logits(at, images).log_softmax(1) * targets).sum(1).mean()).backward()
            optimizer.step()
        return {key: value.detach() for key, value in at.items()}
