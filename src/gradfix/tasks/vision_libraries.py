"""Ready-made tasks on models of open_clip and timm, which build their models themselves.

Both libraries are optional: ``pip install open_clip_torch``, ``pip install timm``. Weights come from bare files, as
both save them (``open_clip_model.safetensors``, ``model.safetensors``): a random model of the architecture is built
first, and all of it is filled from them.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from gradfix.errors import GradfixError, listed
from gradfix.tasks.base import Batch, told_in_one_line
from gradfix.tasks.built import BuildsModel
from gradfix.tasks.headed import HeadedClassification
from gradfix.tasks.images import ImageInputs
from gradfix.tasks.loading import explained
from gradfix.tasks.zero_shot import TEMPLATES, ZeroShotImageClassification


class _Transform:
    """A torchvision transform, called as an image processor of transformers is."""

    def __init__(self, transform: Callable[[Any], Tensor]) -> None:
        self.transform = transform

    def __call__(self, *, images: Any, return_tensors: str) -> dict[str, list[Tensor]]:
        """Give the pixels of one image."""
        return {"pixel_values": [self.transform(images)]}


class BuiltImages(BuildsModel, ImageInputs):
    """Classification of images by a model that a library builds from its architecture's name."""

    architecture: str

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the architecture, with random weights.

        Returns:
            The module.
        """

    @override
    def built(self) -> nn.Module:
        """Build it, or say in one line why the library can't."""
        with explained(self.architecture, "build the model"):
            return self.build()


@told_in_one_line
class Timm(HeadedClassification, BuiltImages):
    """Image classification by a model of timm with a head.

    The bases must have a head of the same classes as the tuned model, or none at all: timm's own weights have a head of
    1,000 classes, which ``timm.create_model(…, num_classes=0)`` leaves out.

    Args:
        architecture: The name that ``timm.create_model`` takes, such as ``vit_small_patch16_224``.
        labels: The class names in the order of the head's outputs.
        image: The column with the image: what PIL reads, or an array.
        label: The column with the label: a name, or its place in ``labels``.
        **options: Further ones of ``timm.create_model``, such as ``img_size``.

    Raises:
        GradfixError: if timm can't be imported, or has no such architecture.
    """

    name = "timm"

    def __init__(
        self,
        architecture: str,
        labels: Sequence[str] = (),
        *,
        image: str = "image",
        label: str = "label",
        **options: Any,
    ) -> None:
        if not labels:
            raise GradfixError(
                "timm: labels: expected the names of the classes in the order of the head's outputs"
            )
        super().__init__(image, label, list(labels))
        timm = _library("timm", "timm")
        if not timm.is_model(architecture):
            near = timm.list_models(f"*{architecture.split('_')[0]}*")
            raise GradfixError(
                f"timm: has no architecture {architecture!r}; it has {listed(near or timm.list_models(), 5)}"
            )
        self.architecture, self.options = architecture, options
        self.image_processor = _Transform(self._transform(timm))

    def _transform(self, timm: Any) -> Callable[[Any], Tensor]:
        pretrained = timm.models.get_pretrained_cfg(self.architecture)
        size = self.options.get("img_size")
        given = {} if size is None else {"img_size": size}
        config = timm.data.resolve_data_config(
            given, pretrained_cfg=pretrained.to_dict() if pretrained else {}
        )
        transform: Callable[[Any], Tensor] = timm.data.create_transform(**config, is_training=False)
        return transform

    @override
    def build(self) -> nn.Module:
        timm = _library("timm", "timm")
        model: nn.Module = timm.create_model(
            self.architecture, pretrained=False, num_classes=len(self.labels), **self.options
        )
        return model

    @override
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        scores: Tensor = model(_pixels(model, batch))
        return scores.float()

    @override
    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the head reads."""
        parts: Any = model
        found: Tensor = parts.forward_head(parts.forward_features(_pixels(model, batch)), pre_logits=True)
        return found.flatten(1).float()

    @override
    def head(self, model: nn.Module) -> list[str]:
        """The parameters of the classifier."""
        parts: Any = model
        classifiers = parts.get_classifier()
        modules = classifiers if isinstance(classifiers, tuple | list) else (classifiers,)
        own = {id(parameter) for module in modules for parameter in module.parameters()}
        return [name for name, parameter in model.named_parameters() if id(parameter) in own]

    @override
    def last_layer(self, model: nn.Module) -> tuple[str, nn.Linear]:
        parts: Any = model
        layer = parts.get_classifier()
        for name, module in model.named_modules():
            if module is layer and isinstance(module, nn.Linear):
                return name, module
        raise GradfixError(
            f"{self.architecture}: its head does not end in a linear layer, so it cannot be refitted; copy it "
            "(--head copy)"
        )


@told_in_one_line
class OpenClip(ZeroShotImageClassification, BuiltImages):
    """Zero-shot image classification by a model of open_clip.

    The class weights are computed once from the target base's text tower, as for models of transformers; only the image
    tower votes and is edited.

    Args:
        architecture: The name that ``open_clip.create_model`` takes, such as ``ViT-B-32``.
        labels: The class names, in order, as the prompts should say them; those that the data have if not given.
        pretrained: The tag of the weights' pre-training, such as ``laion2b_s34b_b79k``, which says how images are
            prepared. Needed only where an architecture's pre-trainings differ in that.
        image: The column with the image: what PIL reads, or an array.
        label: The column with the label: a class name, or its place in ``labels``.
        templates: Prompts with ``{}`` for the class: a list, a single one, or a text file with one a line.

    Raises:
        GradfixError: if open_clip can't be imported, has no such architecture, or its images may be prepared in several
            ways.
    """

    name = "open-clip"

    def __init__(
        self,
        architecture: str,
        labels: Sequence[str] = (),
        *,
        pretrained: str | None = None,
        image: str = "image",
        label: str = "label",
        templates: Sequence[str] | str | Path = TEMPLATES,
    ) -> None:
        super().__init__(image, label, labels=list(labels) or None, templates=templates)
        clip = _library("open_clip", "open_clip_torch")
        if architecture not in clip.list_models():
            near = [name for name in clip.list_models() if name.lower().startswith(architecture.lower()[:5])]
            raise GradfixError(
                f"open_clip: has no architecture {architecture!r}; it has {listed(near or clip.list_models(), 5)}"
            )
        self.architecture = architecture
        self.image_processor = _Transform(self._transform(clip, pretrained))

    def _transform(self, clip: Any, pretrained: str | None) -> Callable[[Any], Tensor]:
        tags = clip.list_pretrained_tags_by_model(self.architecture)
        if pretrained is not None and pretrained not in tags:
            raise GradfixError(
                f"open_clip: {self.architecture} has no weights {pretrained!r}; pretrained: expected one of "
                f"{listed(tags)}"
            )
        size = clip.get_model_config(self.architecture)["vision_cfg"].get("image_size", 224)
        asked = ("mean", "std", "interpolation", "resize_mode")
        found: dict[str, dict[str, Any]] = {}
        for tag in tags if pretrained is None else [pretrained]:
            config = clip.get_pretrained_cfg(self.architecture, tag)
            given = {key: config[key] for key in asked if config.get(key) is not None}
            found.setdefault(repr(given), given)
        if len(found) > 1:
            raise GradfixError(
                f"open_clip: pre-trainings of {self.architecture} prepare images in {len(found)} ways: give "
                f"pretrained, the tag of yours, one of {listed(tags)}"
            )
        config = clip.transform.PreprocessCfg(size=size, **next(iter(found.values()), {}))
        transform: Callable[[Any], Tensor] = clip.transform.image_transform_v2(config, is_train=False)
        return transform

    @override
    def build(self) -> nn.Module:
        clip = _library("open_clip", "open_clip_torch")
        model: nn.Module = clip.create_model(self.architecture, pretrained=None, load_weights=False)
        return model

    @override
    def _require_towers(self, model: nn.Module) -> None:
        for part in ("encode_image", "encode_text", "logit_scale"):
            if not hasattr(model, part):
                raise GradfixError(
                    f"{self.architecture}: has no {part}, so it cannot classify zero-shot as CLIP does"
                )

    @override
    def _text_features(self, model: nn.Module, prompts: list[str]) -> Tensor:
        clip = _library("open_clip", "open_clip_torch")
        towers: Any = model
        tokens = clip.get_tokenizer(self.architecture)(prompts)
        found: Tensor = towers.encode_text(tokens.to(next(model.parameters()).device))
        return found.float()

    @override
    def _image_features(self, model: nn.Module, images: Tensor) -> Tensor:
        towers: Any = model
        found: Tensor = towers.encode_image(images)
        return found.float()

    @override
    def voters(self, model: nn.Module) -> list[str]:
        """The image tower, its projection included."""
        return [name for name, _ in model.named_parameters() if name.startswith("visual.")]


def _pixels(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return batch["pixel_values"].to(next(model.parameters()))


def _library(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except (
        ImportError,
        RuntimeError,
    ) as error:  # RuntimeError: torchvision's, beside another torch than its own
        raise GradfixError(
            f"{module}: can't be imported ({' '.join(str(error).split())}); pip install {package}, with the "
            "torchvision that belongs to your torch"
        ) from error
