"""Names of the same tensors in two checkpoints: equal, or different by a prefix and by legacy spelling.

A model saved with its head calls ``bert.encoder.…`` what the bare model calls ``encoder.…``; transformers renames
some legacy names when it loads them.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from gradfix.checkpoints.tensors import TensorSpec
from gradfix.errors import GradfixError

PREFIXES = (
    "model.",
    "module.",
    "_orig_mod.",
    "base_model.model.",
    "bert.",
    "roberta.",
    "distilbert.",
    "transformer.",
    "vit.",
)
"""Prefixes known from libraries and models; the first components of the names at hand are tried as well."""

_LEGACY_ENDS = ("gamma", "beta", "_g", "_v")
_LEGACY = (
    # transformers' conversion_mapping, "legacy": TensorFlow's names of the first BERT releases, and weight
    # norm
    # before torch's parametrizations
    (re.compile(r"LayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"LayerNorm\.beta$"), "LayerNorm.bias"),
    (re.compile(r"\.weight_g$"), ".parametrizations.weight.original0"),
    (re.compile(r"\.weight_v$"), ".parametrizations.weight.original1"),
)


@dataclass(frozen=True)
class NameMatch:
    """Which name of a source is which name of a target.

    Attributes:
        names: Each matched source name to its target name, in the source's order.
        rule: How they differ, for a report: "equal names", "source names + 'bert.'", "source names −
            'module.'".
        unmatched_source: Source names without a target name, in order.
        unmatched_target: Target names without a source name, in order.
        add: The prefix that source names miss; empty if none.
        remove: The prefix that source names have too much; empty if none.
    """

    names: Mapping[str, str]
    rule: str
    unmatched_source: tuple[str, ...] = ()
    unmatched_target: tuple[str, ...] = ()
    add: str = ""
    remove: str = ""

    def rename(self, name: str) -> str:
        """Apply the rule to any source name, matched or not.

        Args:
            name: A name as the source spells it.

        Returns:
            Its name as the target spells it, or would.
        """
        if name in self.names:
            return self.names[name]
        return self.add + name.removeprefix(self.remove)


def modern_name(name: str) -> str:
    """Spell a legacy name as transformers does when it loads it.

    Args:
        name: Any name of a tensor.

    Returns:
        The current spelling; ``name`` itself if it isn't a legacy one.
    """
    if not name.endswith(_LEGACY_ENDS):
        return name
    for pattern, replacement in _LEGACY:
        name = pattern.sub(replacement, name)
    return name


@dataclass
class _Target:
    """The target's names, found by either spelling."""

    names: Iterable[str]
    spelled: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.spelled = {modern_name(name): name for name in self.names}
        self.spelled |= {name: name for name in self.names}

    def find(self, name: str) -> str | None:
        return self.spelled.get(name) or self.spelled.get(modern_name(name))


Names = Iterable[str] | Mapping[str, TensorSpec]
"""Names alone, or with the shapes of their tensors, which tell two towers of one spelling apart."""


def match_names(source: Names, target: Names) -> NameMatch:
    """Match names exactly, and those that are left by adding or removing one prefix.

    The prefix is the one that lets most names coincide, of tensors that fit where shapes are given. It holds for all
    names where that loses none: a visual tower saved alone has names that the text tower beside it has, too. A prefix
    that no library is known for, taken from the names themselves, must explain more names than are equal without it.

    Args:
        source: Names of one checkpoint.
        target: Names of the other.

    Returns:
        The match; it may leave any number of names unmatched, which is for the caller to judge.

    Raises:
        GradfixError: If two prefixes explain equally many names differently.
    """
    ours, theirs = list(source), list(target)
    found = _Target(theirs)
    fits = _fitting(source, target)
    exact = {name: match for name in ours if (match := found.find(name)) is not None}
    attempts = [("", "", exact)]
    if len(exact) < min(len(ours), len(theirs)) or fits(exact) < len(exact):
        rules = [(prefix, "") for prefix in _candidates(theirs)] + [
            ("", prefix) for prefix in _candidates(ours)
        ]
        attempts += [(*rule, _apply(ours, exact, found, *rule, fits=fits)) for rule in rules]
    scores = [(fits(names), len(names)) for _, _, names in attempts]
    best = max(scores)
    # no rule at all comes first, and stands unless another explains more
    winners = [attempt for attempt, score in zip(attempts, scores, strict=True) if score == best]
    winners = winners[: 1 if best == scores[0] else None]
    different = [match for match in winners if match[2] != winners[0][2]]
    if different:
        raise GradfixError(
            f"tensor names: {best[1]} names coincide by {_rule(*winners[0][:2])} and as many by "
            f"{_rule(*different[0][:2])}: expected one way: rename the tensors of one model, or open the "
            "part meant"
        )
    add, remove, names = winners[0]
    matched = set(names.values())
    return NameMatch(
        names=names,
        rule=_rule(add, remove),
        unmatched_source=tuple(name for name in ours if name not in names),
        unmatched_target=tuple(name for name in theirs if name not in matched),
        add=add,
        remove=remove,
    )


def _fitting(source: Names, target: Names) -> Callable[[Mapping[str, str]], int]:
    """Count the pairs of a match whose shapes agree but for the number of rows; all where no shapes are known."""
    if not isinstance(source, Mapping) or not isinstance(target, Mapping):
        return len

    def count(names: Mapping[str, str]) -> int:
        shapes = [(source[ours].shape, target[theirs].shape) for ours, theirs in names.items()]
        return sum(len(one) == len(other) and one[1:] == other[1:] for one, other in shapes)

    return count


def _candidates(names: list[str]) -> list[str]:
    first = [name.split(".", 1)[0] + "." for name in names if "." in name]
    second = [".".join(name.split(".", 2)[:2]) + "." for name in names if name.count(".") > 1]
    present = [prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in names)]
    common = [prefix for prefix, _ in Counter(first).most_common(16)]
    nested = [prefix for prefix, _ in Counter(second).most_common(4)]
    return list(dict.fromkeys([*present, *common, *nested]))


def _apply(
    ours: list[str],
    exact: dict[str, str],
    found: _Target,
    add: str,
    remove: str,
    *,
    fits: Callable[[Mapping[str, str]], int],
) -> dict[str, str]:
    """Match by a prefix and, where that finds nothing, exactly; in the order that explains more."""

    def renamed(name: str) -> str | None:
        return found.find(add + name.removeprefix(remove)) if name.startswith(remove) else None

    known = (add or remove) in PREFIXES
    first = _in_turn(ours, renamed, exact.get)
    last = _in_turn(ours, exact.get, renamed)
    # Equal names may part only where one side has the tensor under its other name, too.
    whole = exact.keys() <= first.keys() or set(exact.values()) <= set(first.values())
    candidates = [first] if whole else []
    candidates = [
        names
        for names in (*candidates, last)
        if known or sum(exact.get(name) != match for name, match in names.items()) > len(exact)
    ]
    return max(candidates, key=lambda names: (fits(names), len(names)), default=exact)


def _in_turn(names: list[str], *ways: Callable[[str], str | None]) -> dict[str, str]:
    """Match each name by the first way that finds a target which no other name has."""
    matched: dict[str, str] = {}
    taken: set[str] = set()
    for way in ways:
        for name in names:
            match = way(name) if name not in matched else None
            if match is not None and match not in taken:
                matched[name] = match
                taken.add(match)
    return {name: matched[name] for name in names if name in matched}


def _rule(add: str, remove: str) -> str:
    if add:
        return f"source names + {add!r}"
    return f"source names − {remove!r}" if remove else "equal names"
