"""Count votes: the entry point that drives the plain loop and the fast path."""

from collections.abc import Iterable, Mapping, Sized

import torch
from torch import nn

from gradfix.checkpoints.fingerprint import tensor_fingerprint
from gradfix.errors import GradfixError
from gradfix.progress import Progress, silent
from gradfix.tasks.batches import Batch, batch_size, sample_fingerprints, to_device
from gradfix.votes.fast.accumulate import Tally
from gradfix.votes.fast.counter import FastCounter
from gradfix.votes.isolation import Loss, counted_parameters, held_still, number_format
from gradfix.votes.metadata import VOTE_MODES, VoteRecord
from gradfix.votes.plain import count_plainly, summed_gradient
from gradfix.votes.votes import Votes

COUNTERS = ("fast", "plain")


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
    for what, value, known in (("vote", vote, VOTE_MODES), ("method", method, COUNTERS)):
        if value not in known:
            raise GradfixError(f"{what} {value!r} is not known; expected one of {', '.join(known)}")
    named, buffers = counted_parameters(model, parameters)
    number_name, lower = number_format(dtype, named.values())
    ids = _Ids(samples)
    prints = {name: tensor_fingerprint(parameter) for name, parameter in named.items()}
    where = None if device is None else torch.device(device)
    with held_still(model, named.values(), device=where, seed=seed) as there:
        watched = ids.watch(batches, there, progress)
        if vote == "mean":
            sums, _ = summed_gradient(model, watched, loss, named, there, lower, silent)
            counts = {name: (-total).sign().to("cpu", torch.int8) for name, total in sums.items()}
            reasons: Mapping[str, str] = {}
        else:
            tally = Tally(named)
            fast = FastCounter(model, loss, named, tally, lower) if method == "fast" else None
            done = 0
            for batch in watched:
                size = batch_size(batch)
                tally.expect(size)
                if fast is None:
                    count_plainly(model, batch, size, loss, named, tally.vote, first=done, dtype=lower)
                else:
                    fast.count(batch, done)
                done += size
            counts = tally.counts()
            reasons = dict.fromkeys(named, "method='plain'") if fast is None else fast.reasons
    ids.finish()
    record = VoteRecord(
        vote=vote,
        samples=len(ids.found),
        sample_ids=tuple(ids.found),
        dtype=number_name,
        seed=seed,
        fingerprints={name: prints[name] for name in counts},
        uncovered=(*(name for name in named if name not in counts), *buffers),
        plain={name: reason for name, reason in reasons.items() if name in counts},
    )
    return Votes(counts, record)


class _Ids:
    """Names each sample as it passes."""

    def __init__(self, given: Iterable[str] | None) -> None:
        self._given = None if given is None else [str(each) for each in given]
        self.found: list[str] = []

    def watch(self, batches: Iterable[Batch], device: torch.device, progress: Progress) -> Iterable[Batch]:
        """Hand on each batch that holds samples, moved to the device, and report it once it is counted."""
        number = len(batches) if isinstance(batches, Sized) else None
        for index, batch in enumerate(batches):
            size = batch_size(batch)
            if size:
                if self._given is None:
                    self.found.extend(sample_fingerprints(batch))
                else:
                    self.found.extend(self._given[len(self.found) : len(self.found) + size])
                    if len(self.found) > len(self._given):
                        break
                yield to_device(batch, device)
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
