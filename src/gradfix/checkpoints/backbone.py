"""Do two models have one backbone? Told from names and shapes: what may be missing or new, and what must not be.

A head may be new, and a whole tower missing. Inside the numbered layers that two models share, each weight of the one
must have its counterpart in the other; so must what the network reads first.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradfix.checkpoints.architecture import skeleton
from gradfix.checkpoints.layers import EMBEDDING, layer_of
from gradfix.checkpoints.layouts import layout_of
from gradfix.checkpoints.respelling import container, layer
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.errors import ArchitectureError, GradfixError, listed

_COMPUTED = frozenset(
    {"inv_freq", "masked_bias", "position_ids", "relative_position_index", "num_batches_tracked"}
)


def weights_among(
    names: Iterable[str], specs: Mapping[str, TensorSpec], config: Mapping[str, Any]
) -> tuple[str, ...]:
    """Leave out what is no weight: whole numbers, and buffers that a model computes when it is made.

    Args:
        names: Some tensors of a model.
        specs: All of them.
        config: Its configuration; with it, what its architecture says to ignore is left out, too.

    Returns:
        The names of weights, in order.
    """
    found = [
        name for name in names if specs[name].dtype.is_floating_point and not _computed(name, specs[name])
    ]
    model: Any = skeleton(config) if found else None
    if model is None:
        return tuple(found)
    unknown = set(layout_of(model, specs).unknown)
    computed = [re.compile(pattern) for pattern in model._keys_to_ignore_on_save or ()]
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    leaves = {name.rsplit(".", 1)[-1] for name, _ in model.named_buffers()}
    return tuple(
        name
        for name in found
        if not any(pattern.search(name) for pattern in computed)
        if name not in unknown
        or not (name.rsplit(".", 1)[-1] in leaves or any(pattern.search(name) for pattern in ignored))
    )


def _computed(name: str, spec: TensorSpec) -> bool:
    leaf = name.rsplit(".", 1)[-1]
    # GPT-2 and its kin once stored the triangle that masks the future.
    triangle = leaf == "bias" and len(spec.shape) == 4 and spec.shape[:2] == (1, 1)
    return leaf in _COMPUTED or triangle


def refuse_other_backbone(
    ours: str,
    theirs: str,
    mine: Sequence[str],
    other: Sequence[str],
    shared: Iterable[str],
    shared_other: Iterable[str],
) -> None:
    """Refuse two models whose weights differ where they must not.

    Args:
        ours: One model, as a person knows it.
        theirs: The other.
        mine: Weights of the one without a counterpart in the other.
        other: Weights of the other without a counterpart in the one.
        shared: Tensors of the one that have a counterpart.
        shared_other: Their names in the other.

    Raises:
        ArchitectureError: naming the tensors of both.
    """
    lost, new = _inside(mine, shared), _inside(other, shared_other)
    depths = _depths(lost, shared), _depths(new, shared_other)
    if any(depths):
        counts = [_layers(names) for names in ([*mine, *shared], [*other, *shared_other])]
        raise ArchitectureError(
            f"{ours}: has {counts[0]} layers, {theirs} has {counts[1]} "
            f"({listed([*depths[0], *depths[1]], 2)} in one only): a task vector can be added to a base of the "
            "same depth only"
        )
    if not lost and not new and _blocks(mine) and _blocks(other):
        lost, new = _blocks(mine), _blocks(other)
    if not lost and not new:
        lost, new = _tables(mine), _tables(other)
        if not lost or not new:
            return
    sides = [f"{listed(names, 3)} only in {owner}" for names, owner in ((lost, ours), (new, theirs)) if names]
    raise ArchitectureError(
        f"{ours}: its weights and those of {theirs} can't be matched inside the network: {'; '.join(sides)}; all "
        "models must be of one architecture, saved by their own library"
    )


def refuse_strange_additions(
    owner: str, base: str, new: Sequence[str], specs: Mapping[str, TensorSpec], config: Mapping[str, Any]
) -> None:
    """Refuse new tensors that are no head, unless the model's own architecture has a place for them.

    Args:
        owner: The tuned model, as a person knows it.
        base: The base, likewise.
        new: Its weights without a counterpart in the base.
        specs: All its tensors.
        config: Its configuration.

    Raises:
        GradfixError: naming them.
    """
    strange = list(dict.fromkeys([*_blocks(new), *_tables(new)]))
    model = skeleton(config) if strange else None
    if model is not None:
        unknown = set(layout_of(model, specs).unknown)
        strange = [name for name in strange if name in unknown]
    if strange:
        raise GradfixError(
            f"{owner}: {listed(strange, 3)}: part of the network itself, and {base} has no counterpart; only heads "
            "may be new: give the base it was tuned from, or a model saved with its config.json"
        )


def _inside(names: Iterable[str], shared: Iterable[str]) -> list[str]:
    """Those in lists of layers of which other tensors have a counterpart."""
    lists = {container(name) for name in shared} - {None}
    return [name for name in names if container(name) in lists]


def _depths(names: Iterable[str], shared: Iterable[str]) -> list[str]:
    """Whole layers without a counterpart."""
    known = {layer(name) for name in shared}
    return list(dict.fromkeys(str(layer(name)) for name in names if layer(name) not in known))


def _layers(names: Iterable[str]) -> int:
    return len({layer(name) for name in names} - {None})


def _blocks(names: Iterable[str]) -> list[str]:
    return [name for name in names if layer_of(name).depth is not None]


def _tables(names: Iterable[str]) -> list[str]:
    return [name for name in names if layer_of(name).kind == EMBEDDING]
