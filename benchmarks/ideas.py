"""What was tried beyond the paper, on the lab's independent pair, each idea in a few plain lines.

    python benchmarks/ideas.py                       print the table
    python benchmarks/ideas.py --write docs/beyond.md   put it into the page

Nothing here is used by the package: what won was built there anew (`gradfix.alignment`,
`gradfix.transport.methods`). Settings are fixed beforehand, the same for every task and draw; none is chosen on test
images. 200 unlabelled images, behind the test images, stand for inputs at hand.
"""

import argparse
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import normalize, one_hot

from gradfix.demo.bench import task_of
from gradfix.demo.datasets import load_task
from gradfix.demo.models import pixel_values
from gradfix.demo.pair import load, load_model
from gradfix.evaluation.evaluate import mean_interval

Weights = Mapping[str, Tensor]
TESTED, INPUTS, EACH = 500, 200, 5
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
BLOCK = "vision_model.encoder.layers."
ATTENTION, PERCEPTRON = ".self_attn.out_proj", ".mlp.fc2"
PROJECTION = "visual_projection"
START, END = "<!-- table -->", "<!-- end of table -->"


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


def rotation(source: Tensor, target: Tensor) -> Tensor:
    """Orthogonal Procrustes on centred rows."""
    left, _, right = torch.linalg.svd(((source - source.mean(0)).T @ (target - target.mean(0))).double())
    return (left @ right).float()


def ridge(inputs: Tensor, wanted: Tensor, strength: float = 0.1) -> tuple[Tensor, Tensor]:
    """Weights [out, in] and intercept of a ridge regression."""
    x, y = inputs - inputs.mean(0), wanted - wanted.mean(0)
    gram = x.T @ x
    weight = torch.linalg.solve(gram + strength * gram.diagonal().mean() * torch.eye(len(gram)), x.T @ y).T
    return weight, wanted.mean(0) - weight @ inputs.mean(0)


def left_out(inputs: Tensor, wanted: Tensor) -> float:
    """The strength whose ridge regression predicts each row best from all others, in closed form."""
    x, y = (inputs - inputs.mean(0)).double(), (wanted - wanted.mean(0)).double()
    values, vectors = torch.linalg.eigh(x.T @ x)
    turned, answer = x @ vectors, vectors.T @ (x.T @ y)

    def error(strength: float) -> float:
        kept = 1 / (values + strength * values.mean())
        leverage = (turned.square() * kept).sum(1, keepdim=True)
        return float(((y - turned @ (kept[:, None] * answer)) / (1 - leverage)).square().sum())

    return min(STRENGTHS, key=error)


def regression(pair: Pair, images: Tensor, which: str) -> dict[str, Tensor]:
    """Fit B's linear maps that write into the stream to the rotated change of A's stream."""
    before, after = pair.source.streams({}, images), pair.source.streams(pair.tuned, images)
    first = pair.target.streams({}, images)
    turned = {
        key: (after[key][1] - before[key][1]) @ rotation(before[key][1], first[key][1]) for key in first
    }
    change = {key: torch.zeros_like(value) for key, value in pair.base.items()}
    writers = [key for key in first if which == "attention's map too" or not key.endswith(ATTENTION)]
    done: Tensor | float = 0.0
    for key in writers:
        if which == "projection only" and key != PROJECTION:
            continue
        if which == "side by side" and key != PROJECTION:  # each block from θ_B's own activations
            now, wanted = first, turned[key] - done
            done = turned[key]
        else:
            now = pair.target.streams(pair.plus(change, 1.0), images)
            wanted = turned[key] - (now[key][1] - first[key][1])
        read = now[key][0]
        strength = left_out(read, wanted) if which == "λ by leaving one out" else 0.1
        weight, bias = ridge(read, wanted, strength)
        change[f"{key}.weight"] += weight
        if f"{key}.bias" in change:
            change[f"{key}.bias"] += bias
    return change


def weighted(pair: Pair, change: Weights, start: float, images: Tensor, targets: Tensor, by: str) -> Weights:
    """θ_B + Σ_g α_g δ_g: a coefficient a group of tensors, learnt on samples (aTLAS)."""
    group = {key: key if by == "tensor" else ".".join(key.split(".")[:4]) for key in change}
    alphas = {name: torch.tensor(start, requires_grad=True) for name in group.values()}
    optimizer = torch.optim.Adam(alphas.values(), lr=0.05)

    def at() -> dict[str, Tensor]:
        return {key: pair.base[key] + alphas[group[key]] * value for key, value in change.items()}

    for _ in range(40):
        optimizer.zero_grad()
        (-(pair.target.logits(at(), images).log_softmax(1) * targets).sum(1).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        return at()


def agreeing(tau: Weights, votes: Weights) -> dict[str, Tensor]:
    """The paper's mask."""
    return {key: value * (value.sign() == votes[key].sign()) for key, value in tau.items()}


def draw(pair: Pair, seed: int) -> dict[str, float]:
    """Every idea on one draw of samples and inputs."""
    generator = np.random.default_rng(seed)
    images, labels = pair.train
    chosen = np.concatenate(
        [
            generator.permutation(np.where(labels.numpy() == label)[0])[:EACH]
            for label in labels.unique().tolist()
        ]
    )
    images, targets = images[chosen], one_hot(labels[chosen], pair.target.classes.shape[0]).float()
    inputs = pair.spare[generator.permutation(len(pair.spare))[:INPUTS]]
    with torch.no_grad():
        said = pair.source.logits(pair.tuned, inputs).softmax(1)
    count, tau = len(images), pair.tau
    flat = {key: value.sign() * value.abs().mean() for key, value in tau.items()}
    votes = pair.votes(pair.base, images, targets)
    found = {
        "new base": pair.accuracy(pair.base),
        "naive addition": pair.accuracy(pair.plus(tau, 1.0)),
        "GradFix, α = 0.6": pair.accuracy(pair.plus(agreeing(tau, votes), 0.6)),
        "GradFix, every |τᵢ| replaced by its tensor's mean": pair.accuracy(
            pair.plus(agreeing(flat, votes), 0.6)
        ),
    }
    margin = {key: value * (votes[key].abs() >= 0.3 * count) for key, value in agreeing(tau, votes).items()}
    found["GradFix, only margins of 30 % and more"] = pair.accuracy(pair.plus(margin, 0.6))
    wide = torch.cat([images.roll(shift, dims=axis) for shift in (-1, 0, 1) for axis in (2, 3)])
    views = pair.votes(pair.base, wide, targets.repeat(6, 1))
    found["GradFix, shifted views vote too"] = pair.accuracy(pair.plus(agreeing(tau, views), 0.6))
    for which in ("projection only", "side by side", "one after the other"):
        change = regression(pair, inputs, which)
        found[f"regression, {which}"] = pair.accuracy(pair.plus(change, 1.0))
    for which in ("λ by leaving one out", "attention's map too"):
        other = regression(pair, inputs, which)
        found[f"regression, one after the other, {which}"] = pair.accuracy(pair.plus(other, 1.0))
    for label, vector, begin, by in (
        ("τ, a coefficient a tensor", tau, 0.0, "tensor"),
        ("regression, a coefficient a block", change, 1.0, "block"),
        ("regression, a coefficient a tensor", change, 1.0, "tensor"),
    ):
        learnt = weighted(pair, vector, begin, images, targets, by)
        found[f"{label}, learnt on the samples"] = pair.accuracy(learnt)
    there = pair.plus(change, 1.0)
    found["regression, masked by votes at θ_B"] = pair.accuracy(pair.plus(agreeing(change, votes), 1.0))
    late = pair.votes(there, images, targets)
    sure = {key: value * (value.sign() * late[key] > -0.4 * count) for key, value in change.items()}
    found["regression, dropped where 40 % net votes at θ_B + τ' are against"] = pair.accuracy(
        pair.plus(sure, 1.0)
    )
    for name, force in (("re-voted in 4 steps", False), ("re-voted in 4 steps, forced", True)):
        at = there
        for _ in range(4):
            here = pair.votes(at, images, targets)
            step = {k: v.abs() * here[k].sign() for k, v in tau.items()} if force else agreeing(tau, here)
            at = pair.plus(step, 0.1, at)
        found[f"regression, then {name}"] = pair.accuracy(at)
    at = there
    for _ in range(4):
        at = pair.plus(agreeing(tau, pair.votes(at, inputs, said)), 0.1, at)
    found["regression, then re-voted by what the source says of the inputs"] = pair.accuracy(at)
    for name, start in (("new base", pair.base), ("regression", there)):
        found[f"{name}, then trained on the samples"] = pair.accuracy(
            pair.trained(start, images, targets, 5e-5, 40)
        )
        both = torch.cat([images, inputs]), torch.cat([targets, said])
        found[f"{name}, then trained on samples and what the source says of the inputs"] = pair.accuracy(
            pair.trained(start, *both, 1e-4, 40)
        )
    return found


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--task", action="append", help="digits and mnist by default")
    parser.add_argument("--write", type=Path, help="the page to put the table into")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # read-only arrays of the lab's images
    tasks = options.task or ["digits", "mnist"]
    columns = {task: [draw(Pair(task), seed) for seed in range(options.draws)] for task in tasks}
    lines = [
        f"| accuracy, %, {EACH} samples a class | {' | '.join(tasks)} |",
        "|---" * (len(tasks) + 1) + "|",
    ]
    for name in columns[tasks[0]][0]:
        cells = [mean_interval([100 * found[name] for found in columns[task]]) for task in tasks]
        text = [f"{c.value:.1f}" + ("" if c.low is None else f" ± {c.value - c.low:.1f}") for c in cells]
        lines.append(f"| {name} | {' | '.join(text)} |")
    table = "\n".join(lines)
    print(table)
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        head, tail = page.split(START)[0], page.split(END)[1]
        options.write.write_text(f"{head}{START}\n{table}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
