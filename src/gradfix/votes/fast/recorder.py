"""Watch every use of a parameter in a forward pass, and hear of its gradients in the backward pass.

No module is hooked and none is assumed to be of a known kind. A mode of torch sees each call that a parameter
takes part in: inside its own module or not, once or several times, whole or as a slice, a sum, a cast of it. A
call with a rule (:mod:`gradfix.votes.fast.rules`) is replaced by one that computes the same output, and in the
backward pass hands on what the per-sample gradients are made of instead of computing the summed gradient. What
no rule covers is noted, and left to the plain loop.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradfix.votes.fast.attention import widened
from gradfix.votes.fast.contributions import Contribution, Form, Largest, Product
from gradfix.votes.fast.layouts import Layout
from gradfix.votes.fast.outputs import Outputs
from gradfix.votes.fast.rules.registry import RULES
from gradfix.votes.fast.threads import Job
from gradfix.votes.fast.unread import READING_NOTHING

DERIVED = " of a derived tensor"


@dataclass(eq=False)
class Source:
    """A tensor that depends on parameters and on no sample: a parameter, or derived from some.

    Attributes:
        tensor: The tensor, with its graph to the parameters.
        roots: Names of the parameters.
        whole: Whether it is the parameter itself.
    """

    tensor: Tensor
    roots: tuple[str, ...]
    whole: bool


@dataclass(eq=False)
class Use:
    """One place where a source meets the samples.

    Attributes:
        source: What is used.
        operation: The call, as the signature of a pass tells it.
        layouts: Where the samples may be, the most likely first.
        per_sample_rows: Whether the source already has a row for each sample (an expanded class token), so
            that a contribution's block n is the gradient of row n alone.
    """

    source: Source
    operation: str
    layouts: list[Layout]
    per_sample_rows: bool = False


Sink = Callable[[str, list[tuple[Use, Form]]], None]
"""Takes a parameter with all its contributions, in the order of use."""


@dataclass
class _Progress:
    """A parameter's uses and what has arrived for them."""

    uses: list[Use] = field(default_factory=list)
    forms: dict[int, Form] = field(default_factory=dict)


class Recorder(TorchFunctionMode):
    """Records one forward pass, and serves its backward pass.

    Attributes:
        samples: N of the batch.
        derived: Tables known to be looked up at positions that are the same for all samples.
        spared: Weights of products that are not computed: zeros stand for what they give.
        misread: Whether such zeros were read, so that the pass is worth nothing.
        anchor: A scalar that every recorded use depends on: the backward pass goes as far as it is needed.
        uncovered: Parameters used in a way that no rule covers, with the call.
        aside: Runs what only has to be done before the pass is over; at once, unless somebody sets another one.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        samples: int,
        derived: frozenset[str] = frozenset(),
        spared: frozenset[str] = frozenset(),
        keeping: Outputs | None = None,
        known: Outputs | None = None,
    ) -> None:
        """Prepare for one forward pass.

        Args:
            parameters: Name to parameter.
            samples: N.
            derived: Tables known to be looked up at positions that are the same for all samples.
            spared: Weights of products that are not computed, as no gradient depends on what they give.
            keeping: Gets what products give.
            known: What they gave in an earlier pass on the same inputs.
        """
        super().__init__()
        self.samples, self.derived, self.spared = samples, derived, spared
        self._keeping, self._known, self._calls = keeping, known, Counter[str]()
        device = next(iter(parameters.values())).device
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.uncovered: dict[str, str] = {}
        self.misread = False
        self._zeros: dict[int, Tensor] = {}
        self.aside: Callable[[Job], None] = lambda job: job()
        self._poison: list[Tensor] = []
        self._excess: list[Tensor] = []
        self._sources = {id(value): Source(value, (name,), True) for name, value in parameters.items()}
        self._progress = {name: _Progress() for name in parameters}
        self._sink: Sink | None = None
        self._watched: tuple[Tensor, Largest] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See one call of torch's."""
        kwargs = kwargs or {}
        result = self._called(func, args, kwargs)
        if self._zeros and any(id(value) in self._zeros for value in _tensors(args, kwargs)):
            self.misread = self.misread or func.__name__ not in READING_NOTHING
            for value in _tensors((result,), {}):
                self.stand_in(value)
        return result

    def _called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = [self._sources[id(value)] for value in _tensors(args, kwargs) if id(value) in self._sources]
        if not found:
            return widened(func, func(*args, **kwargs))
        if isinstance(func, FunctionType):
            with self:  # a function written in Python: look at the calls inside
                return _opened(func)(*args, **kwargs)
        rule = RULES.get(func.__name__)
        result = NotImplemented if rule is None else rule(self, func, args, kwargs)
        return self.derive(func, args, kwargs, found) if result is NotImplemented else result

    def stand_in(self, zeros: Tensor) -> None:
        """Watch that nobody reads what stands for a product that was not computed, or what was made of it.

        Args:
            zeros: It.
        """
        self._zeros[id(zeros)] = zeros  # held: an id is given again

    def product(self, name: str | None, shape: tuple[int, ...], compute: Callable[[], Tensor]) -> Tensor:
        """Give what a product gives: as it was kept, or computed.

        Args:
            name: Its weight; None for one that is no parameter.
            shape: Of the output.
            compute: Computes it.

        Returns:
            The output.
        """
        if name is None:
            return compute()
        call = self._calls[name]
        self._calls[name] += 1
        output = self._known.get(name, call) if self._known is not None else None
        if output is None or output.shape != shape:
            output = compute()
        if self._keeping is not None:
            self._keeping.put(name, output)
        return output

    def derive(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: list[Source]) -> Any:
        """Make a call that no rule covers, and follow its result if it depends on parameters alone."""
        others = [value for value in _tensors(args, kwargs) if id(value) not in self._sources]
        into_another = bool(args) and _in_place(func.__name__) and id(args[0]) not in self._sources
        mixed = into_another or any(value.requires_grad for value in others)
        result = func(*args, **kwargs)
        results = [value for value in _tensors((result,), {}) if value.requires_grad]
        roots = tuple(dict.fromkeys(name for source in found for name in source.roots))
        if mixed:
            self.refuse(roots, f"used by {func.__name__}, for which there is no rule")
        else:
            for value in results:
                self._sources.setdefault(id(value), Source(value, roots, False))
        return result

    def refuse(self, roots: tuple[str, ...], reason: str) -> None:
        """Leave parameters to the plain loop."""
        for name in roots:
            self.uncovered.setdefault(name, reason)

    def source(self, value: object) -> Source | None:
        """Tell whether a value depends on parameters alone."""
        return self._sources.get(id(value)) if isinstance(value, Tensor) else None

    def use(
        self, source: Source, operation: str, layouts: list[Layout], *, per_sample_rows: bool = False
    ) -> Callable[[Form], None]:
        """Note a use of a source.

        Args:
            source: What is used.
            operation: How.
            layouts: Where the samples may be.
            per_sample_rows: Whether the source has a row for each sample.

        Returns:
            To be called in the backward pass with the use's contribution.
        """
        use = Use(source, operation, layouts, per_sample_rows)
        for name in source.roots:
            self._progress[name].uses.append(use)
            if not layouts:
                self.refuse((name,), f"used by {operation} where no dimension is that of the samples")

        def deliver(form: Form) -> None:
            for name in source.roots:
                progress = self._progress[name]
                progress.forms[progress.uses.index(use)] = form
                # derived tensors' gradients go through a graph of their own, after this backward pass
                if len(progress.forms) == len(progress.uses) and all(
                    each.source.whole for each in progress.uses
                ):
                    self._complete(name)

        return deliver

    def watch(self, *values: Tensor, later: bool = False) -> list[Largest]:
        """Notice values that are not finite, without waiting for the device.

        Args:
            values: What gradients are formed from.
            later: Whether somebody holds them until they were counted, so that they may be looked at then.

        Returns:
            The largest absolute value of each.
        """
        found, new = [], []
        for value in values:
            if self._watched is None or value is not self._watched[0]:
                found.append(Largest(value))
                new.append(found[-1])
            else:  # the input of several layers, one after the other
                found.append(self._watched[1])
        self._watched = values[0], found[0]

        def look() -> None:
            self._poison.extend(each() * 0.0 for each in new)

        self.aside(look) if later else look()
        return found

    def bound(self, parts: Sequence[Contribution]) -> None:
        """Notice gradients that may overflow though all they are formed from is finite, without waiting.

        Args:
            parts: All that one parameter's per-sample gradients are the sum of.
        """

        def look() -> None:
            for part in parts:
                share = torch.finfo(part.dtype).max / len(parts)
                self._excess.append(torch.where(part.largest() <= share, 0.0, torch.nan))

        # Others are changed while they are counted.
        self.aside(look) if all(isinstance(part, Product) for part in parts) else look()

    @property
    def poisoned(self) -> bool:
        """Whether an infinite or undefined value went by."""
        return not _all_finite(self._poison)

    @property
    def exceeding(self) -> bool:
        """Whether a gradient was formed whose entries may exceed its number format."""
        return not _all_finite(self._excess)

    def signature(self, name: str) -> tuple[str, ...]:
        """Tell how a parameter was used: what a verification holds for."""
        return tuple(
            f"{use.operation}{'' if use.source.whole else DERIVED}{' by row' * use.per_sample_rows}"
            for use in self._progress[name].uses
        )

    def uses(self, name: str) -> list[Use]:
        """Give a parameter's uses, in the order of the forward pass."""
        return self._progress[name].uses

    def backward(self, losses: Tensor, sink: Sink, leaves: Sequence[Tensor] = ()) -> None:
        """Run the backward pass and hand on each parameter as its last contribution arrives.

        Args:
            losses: One a sample; they count alike.
            sink: Takes the parameters that have contributions, but those refused.
            leaves: Further tensors whose gradients are wanted.
        """
        self._sink = sink
        torch.autograd.backward(losses.sum(), inputs=[self.anchor, *leaves])
        with torch.no_grad():  # as in the backward pass: what was saved for it still knows its graph
            for name in self._progress:
                self._complete(name)

    def close(self) -> None:
        """Let go of the pass: its graph knows this recorder, and the circle would outlive the model for long."""
        self._sink, self._watched = None, None
        self._sources, self._progress, self._zeros = {}, {}, {}

    def _complete(self, name: str) -> None:
        progress = self._progress[name]
        if self._sink is not None and progress.forms and name not in self.uncovered:
            arrived = [(use, progress.forms[i]) for i, use in enumerate(progress.uses) if i in progress.forms]
            progress.forms = {}
            self._sink(name, arrived)
        progress.forms = {}


def _all_finite(scalars: Sequence[Tensor]) -> bool:
    """Look at scalars that are 0 or not a number, waiting for the device once."""
    return not scalars or bool(torch.stack([each.float() for each in scalars]).isfinite().all())


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Walk the tensors among arguments, those in lists and tuples included."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(tuple(value), {})


def _in_place(name: str) -> bool:
    """Tell whether a call writes to its first argument, by torch's naming."""
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _no_override(*_: object) -> bool:
    return False


@lru_cache(maxsize=256)
def _opened(func: FunctionType) -> FunctionType:
    """Copy a function of torch's so that it computes, where the original would ask the mode again."""
    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    scope = {**func.__globals__, **dict.fromkeys(checks, _no_override)}
    copy = FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


@contextmanager
def only(parameters: Mapping[str, nn.Parameter], names: set[str]) -> Iterator[None]:
    """Let none but the named parameters require a gradient for a while.

    Args:
        parameters: Name to parameter, each requiring a gradient.
        names: Those that go on.

    Yields:
        Nothing.
    """
    others = [parameter for name, parameter in parameters.items() if name not in names]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
