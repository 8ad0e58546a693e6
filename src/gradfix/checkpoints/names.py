"""Names of the same tensors in two checkpoints: equal, or different by a prefix and by legacy spelling.

A model saved with its head calls ``bert.encoder.…`` what the bare model calls ``encoder.…``; wrappers of
training loops add ``module.`` or ``_orig_mod.``; transformers renames some legacy names when it loads them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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


def match_names(source: Iterable[str], target: Iterable[str]) -> NameMatch:
    """Match names exactly, and those that are left by adding or removing one prefix.

    The prefix is the one that lets most names coincide. A prefix that no library is known for, taken from the
    names themselves, must explain more names than are equal without it.

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
    exact = {name: match for name in ours if (match := found.find(name)) is not None}
    rules = [("", "")]
    if len(exact) < min(len(ours), len(theirs)):
        rules += [(prefix, "") for prefix in _candidates(theirs)] + [
            ("", prefix) for prefix in _candidates(ours)
        ]
    matches = [(add, remove, _apply(ours, exact, found, add, remove)) for add, remove in rules]
    best = max(len(names) for _, _, names in matches)
    # the rules begin with none at all, which stands unless another explains more
    winners = [match for match in matches if len(match[2]) == best]
    winners = winners[: 1 if best == len(exact) else None]
    different = [match for match in winners if match[2] != winners[0][2]]
    if different:
        raise GradfixError(
            f"tensor names: {best} names coincide by {_rule(*winners[0][:2])} and as many by "
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


def _candidates(names: list[str]) -> list[str]:
    first = [name.split(".", 1)[0] + "." for name in names if "." in name]
    second = [".".join(name.split(".", 2)[:2]) + "." for name in names if name.count(".") > 1]
    present = [prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in names)]
    common = [prefix for prefix, _ in Counter(first).most_common(16)]
    nested = [prefix for prefix, _ in Counter(second).most_common(4)]
    return list(dict.fromkeys([*present, *common, *nested]))


def _apply(ours: list[str], exact: dict[str, str], found: _Target, add: str, remove: str) -> dict[str, str]:
    if not add and not remove:
        return exact
    taken = set(exact.values())
    names: dict[str, str] = {}
    by_rule = 0
    for name in ours:
        if name in exact:
            names[name] = exact[name]
            continue
        if not name.startswith(remove):
            continue
        match = found.find(add + name.removeprefix(remove))
        if match is not None and match not in taken:
            names[name] = match
            taken.add(match)
            by_rule += 1
    known = (add or remove) in PREFIXES
    return names if known or by_rule > len(exact) else exact


def _rule(add: str, remove: str) -> str:
    if add:
        return f"source names + {add!r}"
    return f"source names − {remove!r}" if remove else "equal names"
