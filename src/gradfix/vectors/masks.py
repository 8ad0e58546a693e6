"""Which coordinates of a task vector to keep: one pure function a strategy, each on one block of one tensor.

Every strategy takes the same three things and returns the masked block:

====== ====================================== =====================================================
name   is                                     shape, dtype
====== ====================================== =====================================================
tau    τ, the block of the task vector        any shape, float32; not modified
signal what the target says of it             as tau: integer votes v for most strategies;
                                              a float reference for ``magnitude``
block  which part of which tensor this is     a :class:`Block`
====== ====================================== =====================================================

Policies, all tested by name:

- **ties**: v_i = 0 agrees with nothing, so ``agreement``, ``soft`` and ``force`` drop the coordinate; it is no vote
  against either, so ``confident`` keeps it;
- **zeros**: τ_i = 0 stays 0 in every strategy, ``force`` included;
- **uncovered parameters** (the votes file has no tensor of that name: unused in the loss, or frozen): the whole
  tensor is dropped and θ_B keeps its value, except by ``none``, ``random`` and ``random-sign``, which ask nobody,
  and by ``confident``: nobody voted against it;
- **new parameters** (only θ_A^ft has them) are not coordinates of τ: they are copied, never masked.

Source of the strategies: Rinaldi et al., "Gradient-Sign Masking for Task Vector Transport Across Pre-Trained
Models", ICLR 2026 (arXiv 2510.09658), section on mask variants; ``confident`` is not of the paper: the one-sided sign
test against "the votes are coins", a coordinate at a time.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from gradfix.checkpoints import TensorSource, TensorSpec, match_names
from gradfix.checkpoints.expressions import Expression, Tally
from gradfix.checkpoints.fingerprint import combined_fingerprint
from gradfix.errors import GradfixError, listed
from gradfix.plugins import named
from gradfix.vectors.mask_strategies import FITTING, Block, MaskFunction, Strategy, find_strategy
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes


def mask(
    tau: TaskVector,
    votes: TensorSource | None = None,
    *,
    strategy: str | MaskFunction = "agreement",
    seed: int = 0,
    voters: int | None = None,
    **options: Any,
) -> TaskVector:
    """Mask a task vector by what the target's gradients say of it, lazily.

    Args:
        tau: The task vector; on a target with another vocabulary, first ``place(tau, target).vector``.
        votes: The target's votes; or a task vector of the target's own fine-tune (``τ_B``: the oracle mask) or
            minus its mean gradient; or any other expression whose signs count. None only for strategies that ask
            nobody, such as ``none`` and ``random``.
        strategy: A key of ``STRATEGIES``, or a function of your own: itself, or by its name (:mod:`gradfix.plugins`).
        seed: For strategies that draw, such as ``random``.
        voters: N, the largest |v| that the signal may have; as :class:`~gradfix.Votes` say it, else 1.
        **options: The strategy's own, by the names of its signature: ``level`` of ``confident``, in [0, ½] (drop a
            coordinate where N fair coins had at least so many net votes against it with a probability of at most
            that; 0 is naive addition, ½ drops whatever any net vote opposes: ``agreement``, but that it keeps ties and
            uncovered parameters); ``factor`` of ``magnitude``.

    Returns:
        m ⊙ τ with the same keys; tensors without votes are zero for most strategies (see the policies above).

    Raises:
        GradfixError: if the strategy is unknown, has no such option or not with such a value, or needs another signal;
            if no tensor was voted on, or shapes differ.
    """
    strategy = named("mask", strategy)
    entry = find_strategy(strategy)
    votes = _fitting(votes, strategy)
    signal = {} if votes is None else _counterparts(tau, votes)
    if voters is None:
        # A mean vote is one ballot, whatever the number of samples behind it.
        voters = votes.samples if isinstance(votes, Votes) and votes.vote == "majority" else 1
    unknown = sorted(options.keys() - entry.options.keys())
    if unknown:
        raise GradfixError(
            f"mask {strategy!r}: has no option {unknown[0]!r}; it has {', '.join(entry.options) or 'none'}"
        )
    chosen = {**entry.options, **options}
    one = torch.zeros(1)
    entry.function(
        one, one, Block(voters=voters), **chosen
    )  # a value that it refuses is refused before any read
    return tau.derive(
        Masked(tau, votes, signal, strategy, seed, voters, chosen),
        operation="mask",
        strategy=strategy,
        seed=seed,
        **chosen,
        signal=_origin(votes),
        uncovered=sorted(set(tau) - set(signal)) if votes is not None else [],
    )


def _fitting(votes: TensorSource | None, strategy: str) -> TensorSource | None:
    """Give the signal as a strategy reads it, and refuse one that it can't."""
    needs = find_strategy(strategy).needs
    if needs == "nothing":
        return None
    if not isinstance(votes, FITTING[needs]):
        wanted = {
            "signs": "votes, or a task vector whose signs count",
            "votes": "counted votes: signs alone are one ballot, which is never more than luck",
            "magnitudes": "a task vector: votes have no size",
        }[needs]
        raise GradfixError(f"mask {strategy!r}: expected {wanted}, found {type(votes).__name__}")
    if needs == "votes" and isinstance(votes, Votes) and votes.vote != "majority":
        raise GradfixError(
            f"mask {strategy!r}: a {votes.vote} vote is one ballot, whatever the number of samples, so how many "
            "were against is unknown; count again with --vote majority, or choose the mask agreement"
        )
    return votes


def _origin(votes: TensorSource | None) -> dict[str, Any] | None:
    """Tell which signal masked, so that two different ones are never taken for the same."""
    if isinstance(votes, Votes):
        samples = hashlib.sha256("\n".join(votes.sample_ids).encode()).hexdigest()
        return {
            "vote": votes.vote,
            "samples": votes.samples,
            "sample_ids_sha256": samples,
            "dtype": votes.dtype,
            "seed": votes.seed,
            "target": combined_fingerprint(votes.fingerprints),
        }
    origin: dict[str, Any] | None = getattr(votes, "origin", None)
    return origin


def _counterparts(tau: TaskVector, votes: TensorSource) -> dict[str, str]:
    """Map τ's names to the votes' names, refusing where nothing matches or a shape differs."""
    pairs = dict(match_names(tau.specs, votes.specs).names)
    if not pairs:
        raise GradfixError(
            f"mask: no tensor of the task vector ({listed(tau, 3)}) was voted on ({listed(votes.specs, 3)}); "
            "the votes are of another model"
        )
    differing = [
        f"{name} {list(tau.specs[name].shape)} against {list(votes.specs[theirs].shape)}"
        for name, theirs in pairs.items()
        if tau.specs[name].shape != votes.specs[theirs].shape
    ]
    if differing:
        raise GradfixError(
            f"mask: shapes of the task vector and the votes differ: {listed(differing)}; "
            "if the vocabularies differ, place the task vector on the target first"
        )
    return pairs


@dataclass(frozen=True)
class Masked(Expression):
    """m ⊙ τ, computed block by block; ``counterparts`` maps τ's names to the signal's."""

    tau: TaskVector
    signal: TensorSource | None
    counterparts: Mapping[str, str]
    strategy: str
    seed: int
    voters: int
    options: Mapping[str, Any]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors of τ."""
        return self.tau.specs

    @cached_property
    def _scales(self) -> dict[str, float]:
        return {}

    @cached_property
    def _entry(self) -> Strategy:
        return find_strategy(self.strategy)

    @cached_property
    def _tallies(self) -> dict[str, Tally]:
        return {}

    @override
    def tally(self, name: str) -> Tally | None:
        return self._tallies.get(name)

    @override
    def known_zero(self, name: str) -> bool:
        # A function of the caller's own may make something of nothing.
        return self._entry.given is None and self.tau.known_zero(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Mask one range of rows."""
        tau = self.tau.read(name, rows)
        kept = self._masked(tau, name, rows)
        self._tallies.setdefault(name, Tally()).add(tau, kept)
        return kept

    def _masked(self, tau: Tensor, name: str, rows: slice | None) -> Tensor:
        entry = self._entry
        signal = tau
        if entry.needs != "nothing":
            if self.signal is None or name not in self.counterparts:
                return tau if entry.keeps_uncovered else torch.zeros_like(tau)
            signal = self.signal.read(self.counterparts[name], rows)
            if isinstance(self.signal, Votes):
                self._tallies.setdefault(name, Tally()).add_votes(signal)
            if entry.needs == "signs" and signal.dtype.is_floating_point:
                signal = signal.sign()
        spec = self.specs[name]
        row = spec.numel // max(1, spec.shape[0]) if spec.shape else 1
        block = Block(
            name=name,
            offset=(rows.start or 0) * row if rows is not None else 0,
            voters=self.voters,
            seed=self.seed,
            scale=self._scale(name) if entry.needs == "magnitudes" else 1.0,
        )
        return entry.function(tau, signal, block, **self.options)

    def _scale(self, name: str) -> float:
        """Mean |τ| over mean |reference| of a tensor: a pass of its own, made once a tensor."""
        if name not in self._scales and self.signal is not None:
            ours = theirs = 0.0
            for rows in self.specs[name].row_blocks():
                ours += float(self.tau.read(name, rows).abs().double().sum())
                theirs += float(self.signal.read(self.counterparts[name], rows).abs().double().sum())
            self._scales[name] = ours / theirs if theirs else 0.0
        return self._scales[name]
