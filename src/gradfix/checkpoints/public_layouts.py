"""How open_clip and timm store vision transformers, as transformers' own names and forms: only numbers are moved.

Both fuse queries, keys and values into one tensor, and open_clip multiplies by its projections from the right. The
public collections of fine-tunes wrap open_clip's names once more (``model.visual.``, ``image_encoder.model.visual.``);
whatever stands before them is left out. What a file does not say is the activation: OpenAI's weights and those named
quickgelu compute x · σ(1.702 x), others the exact GELU.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gradfix.checkpoints.layouts import Layout, Part
from gradfix.checkpoints.tensors import TensorSpec

_QKV = ("q_proj", "k_proj", "v_proj")
_IN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_VISUAL = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    **{
        f"{ours}.{end}": f"vision_model.{theirs}.{end}"
        for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm"))
        for end in ("weight", "bias")
    },
}
_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_IN_VIT_LAYER = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_VIT = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
    "norm.weight": "vit.layernorm.weight",
    "norm.bias": "vit.layernorm.bias",
    "head.weight": "classifier.weight",
    "head.bias": "classifier.bias",
}
_NO_WEIGHT = re.compile(
    r"(.*\.)?(attn_mask|input_resolution|context_length|vocab_size)|classification_head\..*"
)
"""What files of these layouts hold beside the model: OpenAI's constants, and the class weights of a zero-shot head."""

_CLIP_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_CLIP_FUSED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_VIT_LAYER = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")


def public_layout(specs: Mapping[str, TensorSpec]) -> Layout | None:
    """Recognise how open_clip or timm stores a vision transformer.

    Args:
        specs: The file's tensors.

    Returns:
        Where each tensor is under transformers' names, as files have them; None for a file of any other layout.
    """
    visual = _prefix(specs, "conv1.weight", ("class_embedding", "ln_pre.weight", "proj"))
    if visual is not None:
        return _clip(specs, visual)
    vit = _prefix(specs, "patch_embed.proj.weight", ("cls_token", "pos_embed", "norm.weight"))
    return _vit(specs, vit) if vit is not None else None


def beside_the_model(name: str) -> bool:
    """Tell whether a tensor of such a file is no part of the model.

    Args:
        name: Its name.

    Returns:
        Whether transformers' own has nothing like it: constants, and class weights made of prompts.
    """
    return _NO_WEIGHT.fullmatch(name) is not None


def _prefix(names: Iterable[str], first: str, others: tuple[str, ...]) -> str | None:
    """What stands before the names of a layout; None where they are not all there, or are there twice."""
    known = set(names)
    found = [
        prefix
        for name in known
        if name == first or name.endswith(f".{first}")
        if all((prefix := name.removesuffix(first)) + other in known for other in others)
    ]
    return found[0] if len(found) == 1 else None


def _clip(specs: Mapping[str, TensorSpec], visual: str) -> Layout:
    """open_clip's names; the text tower's stand where the visual one's prefix does, without its last part."""
    root = visual.removesuffix("visual.")
    text = f"{root}text." if f"{root}text.token_embedding.weight" in specs else root
    made = _Made(specs)
    for name in specs:
        inner = name.removeprefix(visual) if name.startswith(visual) else None
        if inner is not None and _tower(made, name, inner, "vision_model"):
            continue
        own = name.removeprefix(text) if name.startswith(text) and visual != text else ""
        if inner == "proj":
            made.turn(name, "visual_projection.weight")
        elif own == "text_projection" or name == f"{root}text_projection":
            made.turn(name, "text_projection.weight")
        elif inner in _VISUAL:
            made.rename(name, _VISUAL[inner])
        elif own in _TEXT or name == f"{root}logit_scale":
            made.rename(name, _TEXT[own or "logit_scale"])
        elif not own or not _tower(made, name, own, "text_model"):
            made.unknown.append(name)
    return made.layout()


def _tower(made: "_Made", name: str, inner: str, tower: str) -> bool:
    """A tensor of a block of open_clip's transformer."""
    fused, plain = _CLIP_FUSED.fullmatch(inner), _CLIP_LAYER.fullmatch(inner)
    if fused is not None:
        layer, end = fused.groups()
        made.split(name, [f"{tower}.encoder.layers.{layer}.self_attn.{part}.{end}" for part in _QKV])
        return True
    if plain is not None and plain[2] in _IN_CLIP_LAYER:
        made.rename(name, f"{tower}.encoder.layers.{plain[1]}.{_IN_CLIP_LAYER[plain[2]]}.{plain[3]}")
        return True
    return False


def _vit(specs: Mapping[str, TensorSpec], prefix: str) -> Layout | None:
    """Timm's names of a plain vision transformer; None where it has parts that transformers' has not."""
    made = _Made(specs)
    for name in specs:
        inner = name.removeprefix(prefix) if name.startswith(prefix) else ""
        found = _VIT_LAYER.fullmatch(inner)
        if inner in _VIT:
            made.rename(name, _VIT[inner])
        elif found is not None and found[2] == "attn.qkv":
            places = [
                f"vit.encoder.layer.{found[1]}.attention.attention.{part}"
                for part in ("query", "key", "value")
            ]
            made.split(name, [f"{place}.{found[3]}" for place in places])
        elif found is not None and found[2] in _IN_VIT_LAYER:
            made.rename(name, f"vit.encoder.layer.{found[1]}.{_IN_VIT_LAYER[found[2]]}.{found[3]}")
        elif found is not None:
            return None  # layer scale, norms of queries and keys: another architecture
        else:
            made.unknown.append(name)
    return made.layout()


class _Made:
    """A layout as it is made, tensor by tensor."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self.specs = specs
        self.renamed: dict[str, str] = {}
        self.parts: list[Part] = []
        self.unknown: list[str] = []

    def rename(self, name: str, memory: str) -> None:
        self.renamed[name] = memory

    def turn(self, name: str, memory: str) -> None:
        """A matrix that is multiplied from the other side."""
        spec = self.specs[name]
        turned = TensorSpec(spec.dtype, spec.shape[::-1])

        def flipped(ours: str, theirs: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {theirs: tensors[ours].T.contiguous()}

        self.parts.append(
            Part(
                {name: spec},
                {memory: turned},
                0,
                lambda tensors: flipped(name, memory, tensors),
                lambda tensors: flipped(memory, name, tensors),
            )
        )

    def split(self, name: str, memory: list[str]) -> None:
        """Rows of several tensors, one after the other."""
        spec = self.specs[name]
        rows, left = divmod(spec.shape[0], len(memory))
        if left:
            self.unknown.append(name)
            return
        piece = TensorSpec(spec.dtype, (rows, *spec.shape[1:]))
        self.parts.append(
            Part(
                {name: spec},
                dict.fromkeys(memory, piece),
                0,
                lambda tensors: dict(zip(memory, tensors[name].chunk(len(memory)), strict=True)),
                lambda tensors: {name: torch.cat([tensors[one] for one in memory])},
            )
        )

    def layout(self) -> Layout:
        return Layout(self.renamed, tuple(self.parts), tuple(self.unknown))


def in_memory_of(layout: Layout, names: Mapping[str, str]) -> Layout:
    """Give a layout the names that a module has for those of its files.

    Args:
        layout: To transformers' names in files.
        names: Names in files to those in the module.

    Returns:
        The layout to the module's names.
    """

    def renamed(part: Part) -> Part:
        pairs = {name: names.get(name, name) for name in part.memory}
        back = {new: old for old, new in pairs.items()}
        return Part(
            part.stored,
            {pairs[name]: spec for name, spec in part.memory.items()},
            part.start,
            lambda tensors: {pairs[name]: value for name, value in part.to_memory(tensors).items()},
            lambda tensors: part.to_stored({back[name]: value for name, value in tensors.items()}),
        )

    return Layout(
        {stored: names.get(memory, memory) for stored, memory in layout.renamed.items()},
        tuple(map(renamed, layout.parts)),
        layout.unknown,
    )
