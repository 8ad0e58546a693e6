"""How open_clip and timm store vision transformers, as transformers' own names and forms: only numbers are moved.

Both fuse queries, keys and values into one tensor, and open_clip multiplies by its projections from the right. The
public collections of fine-tunes wrap open_clip's names once more (``model.visual.``, ``image_encoder.model.visual.``);
whatever stands before them is left out. Its SigLIP is a text tower of its own beside a vision transformer of timm
(``visual.trunk.``). What a file does not say is the activation: OpenAI's weights and those named quickgelu compute
x · σ(1.702 x), others the exact GELU; open_clip's SigLIP the exact one or its tanh approximation, transformers' the
latter.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from gradfix.checkpoints.layouts import Layout, Part, layout_of
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
_SIGLIP_TRUNK = {
    **{
        f"{ours}.{end}": f"vision_model.{theirs}.{end}"
        for ours, theirs in (
            ("patch_embed.proj", "embeddings.patch_embedding"),
            ("norm", "post_layernorm"),
            ("attn_pool.proj", "head.attention.out_proj"),
            ("attn_pool.norm", "head.layernorm"),
            ("attn_pool.mlp.fc1", "head.mlp.fc1"),
            ("attn_pool.mlp.fc2", "head.mlp.fc2"),
        )
        for end in ("weight", "bias")
    },
    "attn_pool.latent": "vision_model.head.probe",
}
_SIGLIP_TEXT = {
    **_TEXT,
    "text_projection.weight": "text_model.head.weight",
    "text_projection.bias": "text_model.head.bias",
}
_IN_SIGLIP_LAYER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
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
    trunk = _prefix(
        specs, "attn_pool.latent", ("patch_embed.proj.weight", "pos_embed", "attn_pool.kv.weight")
    )
    if trunk is not None:
        return _siglip(specs, trunk)
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


def _siglip(specs: Mapping[str, TensorSpec], trunk: str) -> Layout | None:
    """Names of SigLIP: timm's trunk, with open_clip's text tower where there is one; None for other parts."""
    root = trunk.removesuffix("visual.trunk.")
    text = f"{root}text." if root != trunk else None
    made = _Made(specs)
    for name in specs:
        inner = name.removeprefix(trunk) if name.startswith(trunk) else None
        own = name.removeprefix(text) if text is not None and name.startswith(text) else ""
        if inner is not None and _in_trunk(made, name, inner, trunk):
            continue
        if inner is not None and _VIT_LAYER.fullmatch(inner) is not None:
            return None  # layer scale, norms of queries and keys: another architecture
        if name in (f"{root}logit_scale", f"{root}logit_bias"):
            made.reshape(name, name.removeprefix(root), (1,))
        elif own in _SIGLIP_TEXT:
            made.rename(name, _SIGLIP_TEXT[own])
        elif not own or not _tower(made, name, own, "text_model"):
            made.unknown.append(name)
    return made.layout()


def _in_trunk(made: "_Made", name: str, inner: str, trunk: str) -> bool:
    """A tensor of timm's vision transformer with attention pooling."""
    layer = _VIT_LAYER.fullmatch(inner)
    pooled = re.fullmatch(r"attn_pool\.(q|kv)\.(weight|bias)", inner)
    if inner in _SIGLIP_TRUNK:
        made.rename(name, _SIGLIP_TRUNK[inner])
    elif inner == "pos_embed":
        made.reshape(name, "vision_model.embeddings.position_embedding.weight", made.specs[name].shape[1:])
    elif pooled is not None and f"{trunk}attn_pool.q.{pooled[2]}" in made.specs:
        if pooled[1] == "kv":
            queries = f"{trunk}attn_pool.q.{pooled[2]}"
            made.join([queries, name], f"vision_model.head.attention.in_proj_{pooled[2]}")
    elif layer is not None and layer[2] == "attn.qkv":
        places = [f"vision_model.encoder.layers.{layer[1]}.self_attn.{part}.{layer[3]}" for part in _QKV]
        made.split(name, places)
    elif layer is not None and layer[2] in _IN_SIGLIP_LAYER:
        made.rename(name, f"vision_model.encoder.layers.{layer[1]}.{_IN_SIGLIP_LAYER[layer[2]]}.{layer[3]}")
    else:
        return False
    return True


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

    def join(self, names: list[str], memory: str) -> None:
        """Several tensors as the rows of one."""
        specs = {name: self.specs[name] for name in names}
        counts = [spec.shape[0] for spec in specs.values()]
        whole = TensorSpec(specs[names[0]].dtype, (sum(counts), *specs[names[0]].shape[1:]))
        self.parts.append(
            Part(
                specs,
                {memory: whole},
                0,
                lambda tensors: {memory: torch.cat([tensors[name] for name in names])},
                lambda tensors: dict(zip(names, torch.split(tensors[memory], counts), strict=True)),
            )
        )

    def reshape(self, name: str, memory: str, shape: tuple[int, ...]) -> None:
        """The same numbers with axes of length 1 more or less."""
        spec = self.specs[name]
        if spec.shape == shape:
            self.rename(name, memory)
            return
        self.parts.append(
            Part(
                {name: spec},
                {memory: TensorSpec(spec.dtype, shape)},
                0,
                lambda tensors: {memory: tensors[name].reshape(shape)},
                lambda tensors: {name: tensors[memory].reshape(spec.shape)},
            )
        )

    def layout(self) -> Layout:
        return Layout(self.renamed, tuple(self.parts), tuple(self.unknown))


def layout_in(model: nn.Module | None, specs: Mapping[str, TensorSpec]) -> Layout:
    """Find how a file's tensors lie in a module, if the file has the names of open_clip or timm, too.

    Args:
        model: A module of transformers; any other stores its own names.
        specs: The file's tensors.

    Returns:
        The layout.
    """
    public = public_layout(specs) if model is None or hasattr(model, "save_pretrained") else None
    if public is None:
        return layout_of(model, specs)
    return in_memory_of(public, layout_of(model, public.memory_specs(specs)).renamed)


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
