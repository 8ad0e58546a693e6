"""Where each tensor of the output comes from: a task vector laid onto a target model, from headers alone."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from gradfix.checkpoints import Checkpoint, TensorSource
from gradfix.checkpoints.architecture import architecture_of, skeleton, untied_config
from gradfix.checkpoints.backbone import refuse_other_backbone, weights_among
from gradfix.checkpoints.expressions import Aliased, Gathered, MappedRows, Padded, Selection, respelled
from gradfix.checkpoints.layouts import layout_of
from gradfix.checkpoints.lora.factors import AdapterParts
from gradfix.checkpoints.respelling import Respelling, Spelled, layer, respell
from gradfix.checkpoints.vocabulary import vocabulary_rows
from gradfix.errors import ArchitectureError, GradfixError, listed
from gradfix.vectors.task_vector import Described, PlacedAdapter, Placement, TaskVector, same_tensor


def place(tau: TaskVector, target: Checkpoint) -> Placement:
    """Lay a task vector onto a target: match names, by transformers' tables if need be, and vocabulary rows by token.

    Nothing is read but headers, configurations and tokenizers.

    The output is spelled as the target is. Where the tuned model has parameters of its own (a head), the output has the
    tuned model's architecture: its prefix, its head, and all of the target's tensors that this architecture has a place
    for. Otherwise the output has exactly the target's tensors, and what it ties apart if τ changes that apart.

    Args:
        tau: The task vector, with the tuned model's names.
        target: θ_B.

    Returns:
        The placement.

    Raises:
        ArchitectureError: if nothing matches, weights inside the network have no counterpart (another depth or kind),
            or shapes differ other than by the vocabulary.
        GradfixError: if head or ties of the two can't be held in one model.
    """
    if tau.placement is not None and tau.placement.target == target.location:
        return replace(tau.placement, vector=tau)
    ours, theirs = Aliased(tau, tau.ties), Aliased(target, target.ties)
    match = respell(Spelled(ours.specs, tau.config), Spelled(theirs.specs, target.config))
    paired = {*match.names, *match.converted}
    if not paired:
        raise ArchitectureError(
            f"{target.location}: no tensor has a counterpart in the task vector; "
            f"found {listed(target.specs, 3)} against {listed(tau, 3)}; both must be of one architecture"
        )
    unplaced = _unplaced(tau, match)
    untouched = [name for name in target.specs if name not in paired]
    _refuse(tau, target, match, unplaced, untouched)
    untied = _untied(tau, target, match)
    base: TensorSource = Aliased(target, {alias: target.ties[alias] for alias in untied})
    changed = [name for name in base.specs if name in paired and base.specs[name].dtype.is_floating_point]
    maps = _rows(tau, target, match, changed)
    source = respelled(ours, match, changed)
    differing = [
        f"{match.names.get(name, name)} {list(source.specs[name].shape)} against {list(base.specs[name].shape)}"
        for name in changed
        if name not in maps and source.specs[name].shape != base.specs[name].shape
    ]
    if differing:
        raise ArchitectureError(
            f"{target.location}: shapes differ from the task vector's: {listed(differing)}; "
            "a task vector can be added to a base of the same architecture and size only"
        )
    if maps:
        source = MappedRows(source, maps)
    outputs, dropped = _outputs(tau, target, match, list(base.specs), untouched)
    vector = tau.derive(source, operation="place", rule=match.rule, rows_by_token=sorted(maps))
    vector.ties = {}
    vector.placement = Placement(
        target=target.location,
        vector=vector,
        base=base,
        rule=match.rule,
        outputs=outputs,
        untouched=[name for name in untouched if name not in dropped],
        dropped=dropped,
        unplaced=unplaced,
        matched_tokens={name: (int((rows >= 0).sum()), len(rows)) for name, rows in maps.items()},
        untied=untied,
        adapter=None
        if tau.adapter is None
        else _placed_adapter(tau, tau.adapter, match, changed, maps, untied),
    )
    return vector.placement


def with_movable_head(placement: Placement) -> Placement:
    """Count the tuned model's head as part of the base, so that it can be fitted and trained as any other layer.

    Args:
        placement: τ laid onto a target.

    Returns:
        The same with the head among the tensors of θ_B, where it has the tuned model's values, and of τ, where it is
        zero; the placement as it is where there is no head to take along.
    """
    head = placement.vector.additions
    if not head.specs:
        return placement
    base = Gathered(
        {**dict.fromkeys(placement.base.specs, placement.base), **dict.fromkeys(head.specs, head)}
    )
    like = Selection(base, {name: name for name in (*placement.vector.specs, *head.specs)}, torch.float32)
    vector = placement.vector.derive(Padded(placement.vector, like), operation="take the head along")
    outputs = {name: name if theirs is None else theirs for name, theirs in placement.outputs.items()}
    vector.placement = replace(placement, vector=vector, base=base, outputs=outputs)
    return vector.placement


def _placed_adapter(
    tau: TaskVector,
    parts: AdapterParts,
    match: Respelling,
    names: list[str],
    maps: Mapping[str, torch.Tensor],
    untied: list[str],
) -> PlacedAdapter:
    """Give an adapter the target's names; it can stand there only where each of its layers has a counterpart."""
    pairs = [(match.names[name], name) for name in names if name in match.names]
    theirs = {tau.ties.get(ours, ours): name for ours, name in pairs}
    updates = {theirs[name]: update for name, update in parts.updates.items() if name in theirs}
    changed = [name for name in (*parts.updates, *parts.whole) if name in tau.specs]
    lost = [name for name in changed if name not in theirs]
    obstacle = parts.obstacle
    if obstacle is None and lost:
        obstacle = f"the new base has no tensor of the same form for {listed(lost, 2)}"
    if obstacle is None and untied:
        obstacle = f"the new base ties {listed(untied, 2)}, and the fine-tune changes it apart"
    whole = frozenset(theirs[name] for name in parts.whole if name in theirs and name in tau.specs)
    rows = {name: maps[name] for name in updates if name in maps}
    return PlacedAdapter(replace(parts, updates=updates, whole=whole), rows, obstacle)


def _unplaced(tau: TaskVector, match: Respelling) -> list[str]:
    """The tensors of τ that the target has under none of their names."""
    used = {tau.ties.get(name, name) for name in match.names.values()}
    return [name for name in tau.specs if name in match.unmatched_source and name not in used]


def _refuse(
    tau: TaskVector, target: Checkpoint, match: Respelling, unplaced: list[str], untouched: list[str]
) -> None:
    """Refuse a target of another depth or kind. What it has beside τ's tensors in the same layers keeps its values."""
    mine = weights_among(unplaced, tau.specs, tau.config)
    other = weights_among(untouched, target.specs, target.config)
    there = [name for name in target.specs if name in match.names or name in match.converted]
    layers = {layer(name) for name in there}
    beside = [name for name in other if layer(name) in layers] if not mine else []
    refuse_other_backbone(
        "the task vector",
        target.location,
        mine,
        [name for name in other if name not in beside],
        [name for name in tau.specs if name not in unplaced],
        there,
    )


def _untied(tau: TaskVector, target: Checkpoint, match: Respelling) -> list[str]:
    """Names that the target ties and τ changes apart, which the output must hold as tensors of their own."""
    apart = [alias for alias, name in target.ties.items() if not same_tensor(match, tau.ties, alias, name)]
    if not apart:
        return []
    freed = architecture_of(untied_config(target.config))
    if freed is None or any(alias in freed.ties for alias in apart):
        raise GradfixError(
            f"{target.location}: ties {listed(apart)}, which the tuned model changes apart, and its configuration "
            "can't say otherwise; tie them in the tuned model, or give a target that stores both"
        )
    # One switch unties all that it ties: what is not stored then would be drawn at random.
    return [alias for alias in target.ties if alias in apart or alias not in freed.ties]


def _rows(
    tau: TaskVector, target: Checkpoint, match: Respelling, changed: list[str]
) -> dict[str, torch.Tensor]:
    named = {match.names[name]: name for name in changed if name in match.names}
    found = vocabulary_rows(Described.of(tau), Described.of(target), named)
    return {named[name]: rows for name, rows in found.items()}


def _outputs(
    tau: TaskVector, target: Checkpoint, match: Respelling, names: list[str], untouched: list[str]
) -> tuple[dict[str, str | None], list[str]]:
    """Name the output's tensors as the target does; with the tuned model's prefix where it brings a head."""
    additions = dict.fromkeys(tau.additions.specs)
    if not additions:
        return {name: name for name in names}, []
    model = None
    if tau.config.get("architectures") != target.config.get("architectures"):
        model = skeleton(tau.config)
    spelled = {name: match.of_source(name) if name not in untouched else name for name in names}
    known = {**{spelled[name]: target.specs[target.ties.get(name, name)] for name in names}}
    unknown = set(layout_of(model, known).unknown) if model is not None else set()
    dropped = [
        name for name in untouched if spelled[name] in unknown and target.specs[name].dtype.is_floating_point
    ]
    kept = {spelled[name]: name for name in names if name not in dropped}
    twice = [name for name in additions if name in kept]
    if twice or len(kept) < len(names) - len(dropped):
        raise GradfixError(
            f"{target.location}: has tensors of its own under the names of the tuned model's head: "
            f"{listed(twice or kept)}; give a base without that head"
        )
    return {**kept, **additions}, dropped


def own_weights(checkpoint: Checkpoint) -> TaskVector:
    """Take a model's own weights as a vector, to be laid onto a target as a task vector would be.

    Args:
        checkpoint: The model.

    Returns:
        Its floating-point tensors, lazily.
    """
    names = {name: name for name, spec in checkpoint.specs.items() if spec.dtype.is_floating_point}
    return TaskVector(
        Selection(checkpoint, names, dtype=torch.float32),
        config=checkpoint.config,
        directory=checkpoint.directory,
        ties=checkpoint.ties,
        origin=lambda: {"operation": "weights", "of": checkpoint.location},
    )
