"""The mask strategies: which coordinates of τ a block keeps, given the signal there."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache, wraps
from inspect import signature
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gradfix.arithmetic import keep_agreeing, keep_unopposed
from gradfix.checkpoints.expressions import Expression
from gradfix.errors import GradfixError
from gradfix.plugins import Plugin, find
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes


@lru_cache(maxsize=1024)
def significant_votes(voters: int, level: float) -> int:
    """Find the smallest a ≥ 1 with P(S ≥ a) ≤ ``level``, S the net heads of N fair coins.

    S = 2K − N for K heads, so P(S ≥ a) = P(K ≥ (N + a) / 2): the one-sided sign test. S has the parity of N; an a of
    the other parity has the tail of a + 1, which is how net votes are judged where a voter abstained.

    Args:
        voters: N.
        level: The largest probability that still counts as more than luck, in [0, ½].

    Returns:
        a, in [1, N + 1]; N + 1 where not even all N votes are significant.

    Raises:
        GradfixError: if there can't be so many voters, or the level is none.
    """
    if voters < 0:
        raise GradfixError(f"voters: expected at least 0, found {voters}")
    if not 0 <= level <= 0.5:
        raise GradfixError(f"confidence level: expected a probability from 0 to 0.5, found {level}")
    # In integers: of the 2^N equally likely outcomes, as many as this may lie in the tail.
    allowed = int(Fraction(level) * 2**voters)
    heads, outcomes, tail = voters + 1, 1, 0
    while heads > 0 and tail + outcomes <= allowed:
        tail += outcomes
        heads -= 1
        # From the outcomes with `heads` heads to those with one less.
        outcomes = outcomes * heads // (voters - heads + 1)
    # `heads` is the fewest whose tail is allowed; one net vote less lies between two values of S.
    return voters + 1 if heads > voters else max(1, 2 * heads - voters - 1)


@dataclass(frozen=True)
class Block:
    """Which part of which tensor a strategy works on, and what it may need to know of the whole.

    Attributes:
        name: The tensor's key.
        offset: Flat index, within the tensor, of the block's first coordinate.
        voters: N, the largest |v| possible.
        seed: For strategies that draw.
        scale: For strategies that compare magnitudes: mean |τ| over mean |reference| of the whole tensor.
    """

    name: str = ""
    offset: int = 0
    voters: int = 1
    seed: int = 0
    scale: float = 1.0


MaskFunction = Callable[..., Tensor]
"""``(tau, signal, block, *, …)``: keyword arguments with defaults are the strategy's own options."""

Function = TypeVar("Function", bound=MaskFunction)


@dataclass(frozen=True)
class Strategy:
    """A mask strategy and what its signal must be.

    Attributes:
        function: The mask itself.
        needs: ``"votes"`` (counted ones), ``"signs"`` (votes, or the sign of a reference), ``"magnitudes"`` (a
            reference), or ``"nothing"``.
        keeps_uncovered: A tensor that nobody voted on is kept.
        given: A plug-in's options, in place of its signature's defaults; None for what gradfix brings.
    """

    function: MaskFunction
    needs: str
    keeps_uncovered: bool = False

    given: Mapping[str, Any] | None = None

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The strategy's own options, as they were given or by default, as its signature has them."""
        parameters = signature(self.function).parameters.values()
        return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY} | dict(
            self.given or {}
        )

    def taking(self, **options: Any) -> dict[str, Any]:
        """Keep the options that the strategy has, of those that a command offers for gradfix's own."""
        return (
            {}
            if self.given is not None
            else {name: value for name, value in options.items() if name in self.options}
        )


STRATEGIES: dict[str, Strategy] = {}


FITTING = {"votes": (Votes,), "signs": (Votes, Expression), "magnitudes": (TaskVector,)}
"""What can be the signal of a strategy, by what it needs."""


def find_strategy(name: str) -> Strategy:
    """Find a mask strategy: one of :data:`STRATEGIES`, or a plug-in.

    Args:
        name: Its name, or a function of the user's own as :func:`gradfix.plugins.find` takes it.

    Returns:
        The strategy. What a plug-in returns is checked, and it gets blocks of its own, which it may change.

    Raises:
        GradfixError: if there is none, or a plug-in says that it needs what no mask can have.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    plugin = find("mask", name, known=sorted(STRATEGIES))
    unknown = sorted(plugin.facts.keys() - {"needs", "keeps_uncovered"})
    needs = plugin.facts.get("needs", "signs")
    if unknown or needs not in (*FITTING, "nothing"):
        raise GradfixError(
            f"mask {name!r}: registered with {unknown[0] if unknown else f'needs={needs!r}'}; expected needs, one of "
            f"{', '.join([*FITTING, 'nothing'])}, and keeps_uncovered"
        )
    return Strategy(_checked(plugin), needs, bool(plugin.facts.get("keeps_uncovered")), plugin.options)


def _checked(plugin: Plugin) -> MaskFunction:
    """Refuse what is no masked block: a mask of 0 and 1 in its place would be written as the change itself."""

    @wraps(plugin.function)
    def function(tau: Tensor, signal: Tensor, block: Block, **options: Any) -> Tensor:
        kept = plugin(tau.clone(), signal.clone(), block, **options)
        expected = f"a tensor {list(tau.shape)} of {str(tau.dtype).removeprefix('torch.')}"
        if not isinstance(kept, Tensor):
            raise GradfixError(
                f"{plugin.name}: returned a {type(kept).__name__}; expected {expected}, the masked τ"
            )
        if kept.shape != tau.shape or kept.dtype != tau.dtype:
            found = f"{list(kept.shape)} of {str(kept.dtype).removeprefix('torch.')}"
            raise GradfixError(
                f"{plugin.name}: returned a tensor {found}; expected {expected}, the masked τ: tau * mask"
            )
        return kept

    return function


def strategy(needs: str, *, keeps_uncovered: bool = False) -> Callable[[Function], Function]:
    """Register the decorated function as a mask strategy under its own name.

    Args:
        needs: See :class:`Strategy`.
        keeps_uncovered: See :class:`Strategy`.

    Returns:
        The decorator, which gives the function back unchanged.
    """

    def register(function: Function) -> Function:
        STRATEGIES[function.__name__.replace("_", "-")] = Strategy(function, needs, keeps_uncovered)
        return function

    return register


@strategy("signs")
def agreement(tau: Tensor, signal: Tensor, block: Block) -> Tensor:
    """Keep τ_i where sign(τ_i) = sign(v_i), else 0: the method of the paper."""
    return keep_agreeing(tau, signal)


@strategy("signs")
def force(tau: Tensor, signal: Tensor, block: Block) -> Tensor:
    """|τ_i| sign(v_i): what disagrees is flipped, what is tied is dropped."""
    return tau.abs() * signal.sign()


@strategy("signs")
def soft(tau: Tensor, signal: Tensor, block: Block) -> Tensor:
    """τ_i |v_i| / N where the signs agree, else 0: the surer the vote, the more is kept."""
    return keep_agreeing(tau, signal).mul_(signal.abs().to(tau.dtype).div_(block.voters))


@strategy("votes", keeps_uncovered=True)
def confident(tau: Tensor, signal: Tensor, block: Block, *, level: float = 0.1) -> Tensor:
    """Drop τ_i only where the net votes against it are more than luck: a one-sided sign test at ``level``."""
    return keep_unopposed(tau, signal, significant_votes(block.voters, level))


@strategy("magnitudes")
def magnitude(tau: Tensor, signal: Tensor, block: Block, *, factor: float = 2.0) -> Tensor:
    """Keep τ_i where |τ_i| is within ``factor`` of ``scale`` · |reference_i|, both ways; signs are not asked."""
    reference = signal.abs().to(tau.dtype) * block.scale
    size = tau.abs()
    close = (size <= reference * factor) & (reference <= size * factor)
    return tau * (close & (size > 0))


@strategy("nothing")
def random(tau: Tensor, signal: Tensor, block: Block) -> Tensor:
    """Keep each τ_i with probability ½, a function of seed, tensor name and coordinate alone: no signal at all."""
    return tau * _coins(block.name, block.seed, block.offset, tau.numel()).view(tau.shape)


@strategy("nothing")
def random_sign(tau: Tensor, signal: Tensor, block: Block) -> Tensor:
    """|τ_i| with a random sign, the random mask of the authors' code: it drops nothing and keeps no direction."""
    return tau.abs() * _coins(block.name, block.seed, block.offset, tau.numel()).view(tau.shape).to(tau).mul_(
        2
    ).sub_(1)


@strategy("nothing")
def none(tau: Tensor, signal: Tensor, block: Block) -> Tensor:
    """Keep everything: naive addition."""
    return tau


def _coins(name: str, seed: int, offset: int, count: int) -> Tensor:
    """Draw fair coins number ``offset`` to ``offset + count`` of the stream that seed and name select."""
    # Philox is counter-based: any part of its stream can be drawn without the part before it, so the coins don't
    # depend on how a tensor is cut into blocks.
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    # A step of the counter makes four 64-bit words, so 256 coins.
    skipped = offset // 256
    generator.advance(skipped)
    head = offset - skipped * 256
    words = generator.random_raw((head + count + 63) // 64).astype("<u8", copy=False).view(np.uint8)
    bits = np.unpackbits(words, bitorder="little")[head : head + count]
    return torch.from_numpy(bits.view(np.bool_))
