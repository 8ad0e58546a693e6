"""What was tried beyond the paper, on the lab's independent pair, each idea in a few plain lines.

    python benchmarks/ideas.py                       print the table
    python benchmarks/ideas.py --write docs/beyond.md   put it into the page

Nothing here is used by the package: what won was built there anew (`gradfix.alignment`,
`gradfix.transport.methods`). Settings are fixed beforehand, the same for every task and draw; none is chosen on test
images. 200 unlabelled images, behind the test images, stand for inputs at hand.
"""

import argparse
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from gradfix.evaluation.evaluate import mean_interval
from ideas_pair import ATTENTION, PROJECTION, Pair, Weights

INPUTS, EACH = 200, 5
FEW = 20
"""Inputs whose features leave directions free."""

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
NEAREST, ARBITRARY, DROPPED = "nearest to the identity", "as the decomposition has them", "dropped"
START, END = "<!-- table -->", "<!-- end of table -->"


def rotation(source: Tensor, target: Tensor, free: str = NEAREST) -> Tensor:
    """Orthogonal Procrustes on centred rows; ``free``: what becomes of directions that the rows don't determine."""
    covariance = ((source - source.mean(0)).T @ (target - target.mean(0))).double()
    left, size, right = torch.linalg.svd(covariance)
    known = size > 1e-6 * size[0]
    found = left[:, known] @ right[known]
    left, right = left[:, ~known], right[~known]
    if free == ARBITRARY:
        found += left @ right
    if free == NEAREST:
        inner, _, outer = torch.linalg.svd(left.T @ right.T)
        found += left @ inner @ outer @ right
    return found.float()


def carried(
    pair: Pair, tau: Weights, images: Tensor, targets: Tensor, outward: str, free: str = NEAREST
) -> dict[str, Tensor]:
    """δ = R_outᵀ τ R_in for each matrix (BiCo): R_in of what it reads, R_out of what it gives or of gradients there."""
    source, target = pair.source.maps(images, targets), pair.target.maps(images, targets)
    change = {key: torch.zeros_like(value) for key, value in pair.base.items()}
    for name, (read, *given) in source.items():
        side = ("outputs", "gradients").index(outward)
        turn = rotation(given[side], target[name][1 + side], free).T
        change[f"{name}.weight"] = turn @ tau[f"{name}.weight"] @ rotation(read, target[name][0], free)
        if f"{name}.bias" in change:
            change[f"{name}.bias"] = turn @ tau[f"{name}.bias"]
    return change


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


def regression(
    pair: Pair,
    images: Tensor,
    which: str,
    free: str = NEAREST,
    targets: Tensor | None = None,
    start: Weights | None = None,
) -> dict[str, Tensor]:
    """Fit B's linear maps that write into the stream to the change of A's, turned as activations or gradients are.

    ``targets``, for gradients; ``start``: a change of B that is made already.
    """
    before, after = pair.source.streams({}, images), pair.source.streams(pair.tuned, images)
    first = pair.target.streams({}, images)
    sides = {key: (before[key][1], first[key][1]) for key in first}
    if targets is not None:
        pulls = [side.maps(images, targets) for side in (pair.source, pair.target)]
        sides = {key: (pulls[0][key][2], pulls[1][key][2]) for key in first}
    turned = {key: (after[key][1] - before[key][1]) @ rotation(*sides[key], free) for key in first}
    change = {
        key: torch.zeros_like(value) if start is None else start[key] for key, value in pair.base.items()
    }
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
        change[f"{key}.weight"] = change[f"{key}.weight"] + weight
        if f"{key}.bias" in change:
            change[f"{key}.bias"] = change[f"{key}.bias"] + bias
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


def turned_vectors(
    pair: Pair, inputs: Tensor, said: Tensor, votes: Weights, generator: np.random.Generator
) -> dict[str, float]:
    """τ in B's coordinates, map by map, added and masked."""

    def measure(tau: Weights, outward: str, free: str = NEAREST) -> tuple[float, float]:
        vector = carried(pair, tau, inputs, said, outward, free)
        return pair.accuracy(pair.plus(vector, 1.0)), pair.accuracy(pair.plus(agreeing(vector, votes), 0.6))

    shuffled = {
        key: value.flatten()[generator.permutation(value.numel())].view_as(value)
        for key, value in pair.tau.items()
    }
    found = {}
    for label, tau in (("τ", pair.tau), ("τ shuffled,", shuffled)):
        for outward in ("outputs", "gradients"):
            name = f"{label} turned by activations and {outward}"
            found[name], found[f"{name}, GradFix, α = 0.6"] = measure(tau, outward)
    for free in (ARBITRARY, DROPPED):
        found[f"τ turned by activations and outputs, free directions {free}"], _ = measure(
            pair.tau, "outputs", free
        )
    return found


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
    found |= turned_vectors(pair, inputs, said, votes, generator)
    for which in ("projection only", "side by side", "one after the other"):
        change = regression(pair, inputs, which)
        found[f"regression, {which}"] = pair.accuracy(pair.plus(change, 1.0))
    for which in ("λ by leaving one out", "attention's map too"):
        other = regression(pair, inputs, which)
        found[f"regression, one after the other, {which}"] = pair.accuracy(pair.plus(other, 1.0))
    by_gradients = regression(pair, inputs, "one after the other", targets=said)
    found["regression, one after the other, turned by gradients"] = pair.accuracy(
        pair.plus(by_gradients, 1.0)
    )
    carried_first = regression(
        pair, inputs, "one after the other", start=carried(pair, tau, inputs, said, "gradients")
    )
    found["regression, one after the other, from τ turned by activations and gradients"] = pair.accuracy(
        pair.plus(carried_first, 1.0)
    )
    for many, free in product((INPUTS, FEW), (NEAREST, ARBITRARY, DROPPED)):
        if (many, free) != (INPUTS, NEAREST):  # one after the other, above
            other = regression(pair, inputs[:many], "one after the other", free)
            found[f"regression on {many} inputs, free directions {free}"] = pair.accuracy(
                pair.plus(other, 1.0)
            )
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
