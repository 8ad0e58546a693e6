"""Count votes: the entry point that drives the plain loop and the fast path."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import torch
from torch import Tensor, nn

from gradfix.checkpoints.fingerprint import tensor_fingerprint
from gradfix.errors import GradfixError
from gradfix.progress import Progress, silent
from gradfix.ranks import ranks
from gradfix.tasks.batches import Batch, batch_size, sample_fingerprints, to_device
from gradfix.votes.fast.accumulate import Tally
from gradfix.votes.fast.counter import FastCounter
from gradfix.votes.fast.verification import Plan, settle
from gradfix.votes.isolation import Loss, counted_parameters, held_still, number_format
from gradfix.votes.metadata import VOTE_MODES, VoteRecord
from gradfix.votes.plain import count_plainly, summed_gradient
from gradfix.votes.sharing import summed
from gradfix.votes.votes import Votes

COUNTERS = ("fast", "plain")

Group: TypeAlias = tuple[Iterable[Batch], Iterable[str] | None]
"""Batches, and an id for each of their samples or None."""


def count_votes(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    vote: str = "majority",
    parameters: Iterable[str] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    seed: int | None = None,
    samples: Iterable[str] | None = None,
    progress: Progress = silent,
    method: str = "fast",
) -> Votes:
    """Count each sample's vote for the direction of descent, coordinate by coordinate.

    The sign of each sample's own gradient is taken before anything is summed: v = Σ_n sign(−∇ℓ_n). The model
    is run in eval mode (no dropout) and left as it was found, also after an error.

    Args:
        model: Any module.
        batches: Nestings of tuples, lists and mappings of tensors whose first dimension is the sample. How
            the samples are spread over batches changes no vote, but for gradients within rounding of zero.
        loss: ``loss(model, batch)`` gives one value a sample, shape (N,). Its scale does not matter.
        vote: ``"majority"``, or ``"mean"`` for sign(−g) of the mean gradient g.
        parameters: Names to count, as in ``model.named_parameters(remove_duplicate=False)``; by default those
            that require a gradient. Tied parameters have one vote, under the first name asked for.
        device: Where to compute; the model's own by default.
        dtype: ``"bfloat16"`` runs the forward pass under autocast; the model's own precision by default.
        seed: Recorded with the votes, and set for losses that draw random numbers.
        samples: An id for each sample, in order; by default a hash of the sample's tensors.
        progress: Told how many samples are counted.
        method: ``"fast"`` (one forward and backward pass a batch, the plain loop for what no rule covers) or
            ``"plain"`` (one backward pass a sample).

    Returns:
        The votes, on the CPU.

    Raises:
        GradfixError: For an unknown mode or name, losses that are not one a sample, values that are not
            finite, layers that mix samples, and ids that are fewer or more than the samples.
    """
    count = Count(
        model, loss, vote=vote, parameters=parameters, device=device, dtype=dtype, seed=seed, method=method
    )
    return next(count.of([(batches, samples)], progress))


class Count:
    """Counts the votes of several groups of samples alike, each group for itself.

    Where several ranks work together, each counts some of the batches of all groups; every rank has all votes then.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        vote: str = "majority",
        parameters: Iterable[str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        seed: int | None = None,
        method: str = "fast",
    ) -> None:
        """Prepare; see :func:`count_votes` for the arguments.

        Raises:
            GradfixError: For an unknown mode or name.
        """
        for what, value, known in (("vote", vote, VOTE_MODES), ("method", method, COUNTERS)):
            if value not in known:
                raise GradfixError(f"{what} {value!r} is not known; expected one of {', '.join(known)}")
        self._model, self._loss = model, loss
        self._vote, self._method, self._seed = vote, method, seed
        self._named, self._buffers = counted_parameters(model, parameters)
        self._number_name, self._lower = number_format(dtype, self._named.values())
        self._device = None if device is None else torch.device(device)

    def of(self, groups: Sequence[Group], progress: Progress = silent) -> Iterator[Votes]:
        """Count.

        Args:
            groups: The batches of each, with an id for each sample or None.
            progress: Told how many samples of a group are counted.

        Yields:
            The votes of each group.
        """
        if (
            ranks().size == 1 or self._vote == "mean"
        ):  # a sum of gradients depends on their order: every rank makes it
            for batches, samples in groups:
                yield self._counted(batches, samples, progress, lambda number: True)
            return
        listed = [(list(batches), samples) for batches, samples in groups]
        with TemporaryDirectory(prefix="gradfix-votes-") as folder:
            while True:
                parts: list[Votes] = []
                plans: dict[str, Plan] = {}
                first = 0
                for number, (batches, samples) in enumerate(listed):
                    mine = partial(_is_mine, first)
                    part = self._counted(batches, samples, progress, mine, first=first, plans=plans)
                    first += len(batches)
                    if len(groups) > 1:
                        path = Path(folder) / f"{number}.safetensors"
                        part = Votes.load(part.save(path, overwrite=True))
                    parts.append(part)
                if settle({"model": plans.get("model", Plan())}):
                    break
            for part in parts:
                yield self._added_up(part)

    def _counted(
        self,
        batches: Iterable[Batch],
        samples: Iterable[str] | None,
        progress: Progress,
        mine: Callable[[int], bool],
        *,
        first: int = 0,
        plans: dict[str, Plan] | None = None,
    ) -> Votes:
        """Count the batches that are this rank's.

        Args:
            batches: Of one group.
            samples: Their ids.
            progress: Told the samples counted.
            mine: Tells whether to count a batch, by its place in the group.
            first: The number of the first batch among all groups'.
            plans: Gets what was verified.

        Returns:
            Their votes; the record is that of all batches, but for what depends on the counts.
        """
        named, ids = self._named, _Ids(samples)
        prints = {name: tensor_fingerprint(parameter) for name, parameter in named.items()}
        with held_still(self._model, named.values(), device=self._device, seed=self._seed) as there:
            watched = ids.watch(batches, there, progress, mine)
            if self._vote == "mean":
                sums, _ = summed_gradient(
                    self._model,
                    (batch for _, _, batch in watched),
                    self._loss,
                    named,
                    there,
                    self._lower,
                    silent,
                )
                counts = {name: (-total).sign().to("cpu", torch.int8) for name, total in sums.items()}
                reasons: Mapping[str, str] = {}
            else:
                tally = Tally(named)
                fast = (
                    FastCounter(self._model, self._loss, named, tally, self._lower)
                    if self._method == "fast"
                    else None
                )
                for number, done, batch in watched:
                    if self._seed is not None and number:  # what a batch draws depends on no other batch
                        torch.manual_seed(self._seed + number)
                    size = batch_size(batch)
                    tally.expect(size)
                    if fast is None:
                        count_plainly(
                            self._model,
                            batch,
                            size,
                            self._loss,
                            named,
                            tally.vote,
                            first=done,
                            dtype=self._lower,
                        )
                    else:
                        fast.plan.batch = first + number
                        fast.count(batch, done)
                counts = tally.counts()
                reasons = dict.fromkeys(named, "method='plain'") if fast is None else fast.reasons
                if fast is not None and plans is not None:
                    plans["model"] = fast.plan
        ids.finish()
        record = VoteRecord(
            vote=self._vote,
            samples=len(ids.found),
            sample_ids=tuple(ids.found),
            dtype=self._number_name,
            seed=self._seed,
            fingerprints={name: prints[name] for name in counts},
            uncovered=(*(name for name in named if name not in counts), *self._buffers),
            plain={name: reason for name, reason in reasons.items() if name in counts},
        )
        return Votes(counts, record)

    def _added_up(self, mine: Votes) -> Votes:
        """Add the other ranks' votes of a group."""
        counts: dict[str, Tensor] = {}
        for some in summed(mine, list(self._named), mine.samples):
            counts |= some
        others = ranks().gather("records of votes", (mine.fingerprints, mine.plain))
        plain: dict[str, str] = {}
        for _, theirs in others:
            plain |= {name: min(reason, plain.get(name, reason)) for name, reason in theirs.items()}
        prints = {name: value for found, _ in others for name, value in found.items()}
        record = replace(
            mine.record,
            fingerprints={name: prints[name] for name in counts},
            uncovered=(*(name for name in self._named if name not in counts), *self._buffers),
            plain={name: plain[name] for name in counts if name in plain},
        )
        return Votes(counts, record)


def _is_mine(first: int, number: int) -> bool:
    return ranks().mine(first + number)


class _Ids:
    """Names each sample as it passes."""

    def __init__(self, given: Iterable[str] | None) -> None:
        self._given = None if given is None else [str(each) for each in given]
        self.found: list[str] = []

    def watch(
        self,
        batches: Iterable[Batch],
        device: torch.device,
        progress: Progress,
        mine: Callable[[int], bool],
    ) -> Iterator[tuple[int, int, Batch]]:
        """Hand on the batches that are to be counted, and report each once it is.

        Args:
            batches: All of them.
            device: Where batches are moved to.
            progress: Told the samples that have passed.
            mine: Tells by a batch's number whether to count it.

        Yields:
            The number of the batch, that of its first sample, and the batch.
        """
        number = len(batches) if isinstance(batches, Sized) else None
        for index, batch in enumerate(batches):
            size, done = batch_size(batch), len(self.found)
            if size:
                if self._given is None:
                    self.found.extend(sample_fingerprints(batch))
                else:
                    self.found.extend(self._given[done : done + size])
                    if len(self.found) > len(self._given):
                        break
                if mine(index):
                    yield index, done, to_device(batch, device)
            done = len(self.found)
            total = len(self._given) if self._given is not None else done
            if self._given is None and number is not None and index + 1 < number:
                total = done * number // (index + 1)  # as if the batches to come were like those so far
            progress("counting votes", done, total, "samples")

    def finish(self) -> None:
        """Check that every id found its sample."""
        if self._given is not None and len(self._given) != len(self.found):
            raise GradfixError(
                f"samples= has {len(self._given)} ids, but the batches hold {len(self.found)} samples; give "
                f"one each"
            )
