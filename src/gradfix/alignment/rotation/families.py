"""The spaces of the architectures that are known, from the names of their parameters and their configuration."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gradfix.alignment.activations import Point
from gradfix.alignment.affine import is_linear
from gradfix.alignment.rotation.spaces import HEADS, JOINT, Attention, Place, Reading, Spaces
from gradfix.checkpoints.layers import (
    ATTENTION_OUTPUT,
    EMBEDDING,
    FUSED,
    HEAD,
    KEY,
    MLP_IN,
    MLP_OUT,
    NORM,
    QUERY,
    VALUE,
    Layer,
    layer_of,
)
from gradfix.errors import GradfixError

_NORM_AFTER = frozenset(["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet"])
_ROTARY = frozenset(["llama", "mistral", "qwen2"])
_TWO_TOWERS = frozenset(
    f"{family}{tower}" for family in ("clip", "siglip") for tower in ("", "_text_model", "_vision_model")
)
KNOWN = _NORM_AFTER | _ROTARY | _TWO_TOWERS | {"t5", "mt5", "gpt2", "vit"}
"""The architectures whose spaces are known, as ``model_type`` in a configuration."""

_ROLES = {QUERY: "query", KEY: "key", VALUE: "value"}
# Heads of two layers: the first one's outputs pass through tanh, ReLU or GELU, the second one reads them.
_POOLERS = ("pooler.dense", "pre_classifier", "classifier.dense", "classification_head.dense")
_READS_POOLED = ("classifier", "classifier.out_proj", "classification_head.out_proj", "cls.seq_relationship")
_TO_STREAM = ("cls.predictions.transform.dense", "lm_head.dense", "vocab_transform")


def spaces_of(model: nn.Module) -> Spaces:
    """Tell which space each axis of each parameter lives in.

    Args:
        model: A model of transformers.

    Returns:
        Its spaces.

    Raises:
        GradfixError: if its architecture is not known, or it has a parameter that its architecture does not.
    """
    family = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if family not in KNOWN:
        raise GradfixError(
            f"{type(model).__name__}: it is not known which coordinates of {family!r} may be rotated; known are "
            f"{', '.join(sorted(KNOWN))}; use --align none"
        )
    return _Builder(model, family).build()


@dataclass
class _Builder:
    """Collects the spaces of one model, a parameter at a time."""

    model: nn.Module
    family: str
    spaces: Spaces = field(default_factory=Spaces)
    streams: dict[str, list[Reading]] = field(default_factory=dict)
    units: dict[str, list[Reading]] = field(default_factory=dict)
    # By path and role, where attentions can be seen; heads and widths follow from the weights.
    attentions: dict[str, dict[str, tuple[Reading, ...]]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def build(self) -> Spaces:
        names = [name for name, _ in self.model.named_parameters(remove_duplicate=False)]
        self.pooler = next(
            (
                name.removesuffix(".weight")
                for name in names
                if name.endswith(tuple(f"{p}.weight" for p in _POOLERS))
            ),
            None,
        )
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for name in names:
            self.spaces.places[name] = self._place(name, parameters[name])
        for path, readings in self.attentions.items():
            self.spaces.attentions[path] = self._attention(path, readings)
        self.spaces.streams.update({name: tuple(readings) for name, readings in self.streams.items()})
        self.spaces.units.update({name: tuple(readings) for name, readings in self.units.items()})
        return self.spaces

    def _place(self, name: str, parameter: Tensor) -> Place:
        module_name, _, leaf = name.rpartition(".")
        layer, stream = layer_of(name), self._stream(name)
        if parameter.numel() == 1 or (layer.kind == HEAD and leaf == "bias" and self._is_last(module_name)):
            return Place(((),) * parameter.dim())
        if "relative_attention_bias" in name:
            return Place(((), (HEADS + self._order(name),)))
        if layer.kind == EMBEDDING:
            # Convolutions of patches give the stream in their first axis, all else in the last.
            return Place(
                ((stream,), (), (), ())
                if parameter.dim() == 4
                else (*((),) * (parameter.dim() - 1), (stream,))
            )
        if name == "vision_model.head.probe":
            return Place(((), (), (stream,)))
        if layer.kind == NORM:
            return self._norm(name, module_name, leaf, layer)
        outward, inward = self._ends(name, module_name, layer, stream)
        return self._linear(module_name, leaf, outward, inward)

    def _norm(self, name: str, module_name: str, leaf: str, layer: Layer) -> Place:
        stream, point = self._stream(name), Point(module_name, "out")
        head = layer.depth is None and name.startswith(("cls.", "lm_head.", "vocab_"))
        if leaf == "weight" and not head:
            readings = self.streams.setdefault(stream, [])
            readings.append(Reading(point))
            if self.family not in _NORM_AFTER:
                readings.append(Reading(Point(module_name, "in")))
        return Place(((stream,),), gain=leaf == "weight", writes=point)

    def _ends(
        self, name: str, module_name: str, layer: Layer, stream: str
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The spaces that a linear map gives and takes."""
        if layer.kind in _ROLES or layer.kind in {FUSED, ATTENTION_OUTPUT}:
            path = _attention_path(name)
            readings = self.attentions.setdefault(path, {})
            # torch's own attention calls no modules for its parts, so nothing of them can be seen.
            visible = not isinstance(self.model.get_submodule(path), nn.MultiheadAttention)
            if layer.kind == ATTENTION_OUTPUT:
                readings["merged"] = (Reading(Point(module_name, "in")),) if visible else ()
                to = JOINT if path == "vision_model.head.attention" else stream
                return (to,), (f"{path}.merged",)
            if layer.kind == FUSED:
                for part, role in enumerate(_ROLES.values()):
                    readings[role] = (Reading(Point(module_name, "out"), part, 3),) if visible else ()
                return tuple(f"{path}.{role}" for role in _ROLES.values()), (stream,)
            role = _ROLES[layer.kind]
            readings[role] = (Reading(Point(module_name, "out")),)
            self.rows[f"{path}.{role}"] = self.model.get_submodule(module_name).out_features  # type: ignore[assignment]
            crossing = "EncDecAttention" in path and role != "query"
            return (f"{path}.{role}",), (self._stream("encoder.") if crossing else stream,)
        if layer.kind in {MLP_IN, MLP_OUT}:
            head = name.startswith("vision_model.head.")
            stream = JOINT if head else stream
            hidden = f"{_mlp_path(module_name, layer)}.hidden"
            side: Any = "out" if layer.kind == MLP_IN else "in"
            self._unit(hidden, Point(module_name, side))
            return ((hidden,), (stream,)) if layer.kind == MLP_IN else ((stream,), (hidden,))
        if layer.kind == HEAD:
            return self._head(module_name, stream)
        raise GradfixError(
            f"{type(self.model).__name__}: {name}: not a parameter that {self.family} is known to have, so it can't be "
            "rotated; use --align none"
        )

    def _head(self, module_name: str, stream: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if module_name.endswith(("_projection", "text_model.head")):
            reading = Reading(Point(module_name, "out"))
            self.streams.setdefault(JOINT, [])
            if reading not in self.streams[JOINT]:
                self.streams[JOINT].append(reading)
            return (JOINT,), (stream,)
        if module_name.endswith(_TO_STREAM):
            return (stream,), (stream,)
        if module_name == self.pooler:
            self._unit("pooled", Point(module_name, "out"))
            return ("pooled",), (stream,)
        if self.pooler is not None and module_name.endswith(_READS_POOLED):
            self._unit("pooled", Point(module_name, "in"))
            return (), ("pooled",)
        return (), (stream,)

    def _linear(
        self, module_name: str, leaf: str, outward: tuple[str, ...], inward: tuple[str, ...]
    ) -> Place:
        module = self.model.get_submodule(module_name)
        reads, writes = Point(module_name, "in"), Point(module_name, "out")
        seen = is_linear(module) and type(module) is not nn.modules.linear.NonDynamicallyQuantizableLinear
        if leaf.endswith("bias"):
            return Place((outward,), writes=writes if seen else None)
        axes, axis = ((outward, inward), 1) if type(module).__name__ != "Conv1D" else ((inward, outward), 0)
        return Place(axes, False, axis, reads if seen else None, writes if seen else None)

    def _attention(self, path: str, readings: dict[str, tuple[Reading, ...]]) -> Attention:
        config: Any = self.model.config
        tower = layer_of(path + ".weight").tower
        config = getattr(config, f"{tower}_config", config) if tower else config
        heads = int(config.num_attention_heads)
        rows = self.rows.get(f"{path}.query"), self.rows.get(f"{path}.key")
        groups = heads * rows[1] // rows[0] if rows[0] and rows[1] else heads
        return Attention(readings, heads, groups, self.family in _ROTARY, self._order(path))

    def _is_last(self, module_name: str) -> bool:
        """Whether a layer of the head gives classes or words, whose biases are left alone."""
        return module_name != self.pooler and not module_name.endswith(
            (*_TO_STREAM, "_projection", "text_model.head")
        )

    def _stream(self, name: str) -> str:
        if name.startswith(("vision_model.head.layernorm", "vision_model.head.attention.out_proj")):
            return JOINT
        tower = layer_of(name).tower if self.family in _TWO_TOWERS else ""
        return f"{tower} stream".strip()

    def _order(self, name: str) -> str:
        """Which attentions must have their heads in one order: T5's and MPNet's of a tower share position biases."""
        if self.family == "mpnet":
            return "all"
        shared = self.family in {"t5", "mt5"} and "EncDecAttention" not in name
        return layer_of(name).tower if shared else _attention_path(name)

    def _unit(self, name: str, point: Point) -> None:
        readings = self.units.setdefault(name, [])
        if Reading(point) not in readings:
            readings.append(Reading(point))


def _attention_path(name: str) -> str:
    parts = name.split(".")
    last = next(n for n, part in enumerate(parts) if "attn" in part.lower() or "attention" in part.lower())
    return ".".join(parts[: last + 1])


def _mlp_path(module_name: str, layer: Layer) -> str:
    """The block that an MLP belongs to: each has one."""
    if layer.depth is None:
        return module_name.rpartition(".")[0]
    before, _, _ = module_name.partition(f".{layer.depth}.")
    return f"{before}.{layer.depth}"
