"""Zero-shot image classification: an image is of the class whose prompts its features resemble most."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from typing_extensions import override

from gradfix.errors import GradfixError
from gradfix.tasks.base import Batch, register
from gradfix.tasks.forward import evaluating
from gradfix.tasks.images import ImageInputs
from gradfix.tasks.labels import Labels
from gradfix.tasks.loading import load_tokenizer
from gradfix.text_files import read_text

TEMPLATES = ("a photo of a {}.",)
VISION = ("vision_model.", "visual_projection.")
PROMPTS_AT_ONCE = 256


@register
class ZeroShotImageClassification(ImageInputs):
    """CLIP, SigLIP and their kin: a vision tower, a text tower, and a learned scale.

    The weight of a class is the mean of the model's normalised text features over the prompt templates,
    normalised again. `prepare` computes the weights once from the target base, together with its scale (and
    SigLIP's bias); from then on all of it is fixed: only the vision tower and its projection vote, are edited
    and are compared. The loss is the cross-entropy over classes of ``scale · cos(image, class) + bias``.

    Args:
        image: The column with the image.
        label: The column with the label: a class name, or its place in ``labels``.
        labels: The class names, in order, as the prompts should say them; underscores are read as blanks.
            Where not given, take them from data with `label_names` and `use_labels`.
        templates: Prompts with ``{}`` for the class: a list, a single one, or a text file with one a line.
    """

    name = "zero-shot-image-classification"
    auto_class = "AutoModelForZeroShotImageClassification"

    def __init__(
        self,
        image: str = "image",
        label: str = "label",
        *,
        labels: Sequence[str] | Mapping[Any, str] | None = None,
        templates: Sequence[str] | str | Path = TEMPLATES,
    ) -> None:
        super().__init__(image, label, labels)
        self.templates = read_templates(templates)
        self._weights: Tensor | None = None
        self._scale, self._bias = 1.0, 0.0

    @override
    def _bind_processors(self, location: str | Path, trust_remote_code: bool) -> None:
        if not self.runs({"model_type": self.config.model_type}):
            raise GradfixError(
                f"{location}: is a vision tower alone ({self.config.model_type}), without the text tower that makes "
                "class weights of prompts; give the whole model as the target (towers alone can be the source's base "
                "and tuned model)"
            )
        super()._bind_processors(location, trust_remote_code)
        self.tokenizer = load_tokenizer(location, trust_remote_code=trust_remote_code)

    @override
    def runs(self, config: Mapping[str, Any]) -> bool:
        return not str(config.get("model_type")).endswith("_vision_model")

    @override
    def _labels_of(self, config: Any) -> Labels | None:
        return None  # these models know no classes; their id2label is a placeholder

    @override
    def _config_overrides(self) -> dict[str, Any]:
        return {}

    @override
    def prepare(self, model: nn.Module) -> None:
        """Compute the class weights, and read the scale and bias, of the target base."""
        self._require_towers(model)
        prompts = [
            template.replace("{}", name.replace("_", " "))
            for name in self.labels.names
            for template in self.templates
        ]
        with evaluating(model):
            features = torch.cat(
                [
                    self._text_features(model, prompts[start : start + PROMPTS_AT_ONCE])
                    for start in range(0, len(prompts), PROMPTS_AT_ONCE)
                ]
            )
            unit = normalize(features, dim=1).reshape(len(self.labels), len(self.templates), -1)
            self._scale = float(model.get_parameter("logit_scale").float().exp())
            bias = getattr(model, "logit_bias", None)
            self._bias = 0.0 if bias is None else float(bias)
            weights = normalize(unit.mean(dim=1), dim=1)
        # Cloned out of inference mode: the loss is differentiated through a product with them.
        self._weights = weights.clone()

    def _require_towers(self, model: nn.Module) -> None:
        """Refuse a model that does not classify as CLIP does."""
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if kind == "siglip2":
            raise GradfixError(
                "siglip2: images of variable size are not supported; use a model of fixed size"
            )
        for part in ("vision_model", "get_text_features", "get_image_features", "logit_scale"):
            if not hasattr(model, part):
                raise GradfixError(
                    f"{type(model).__name__}: has no {part}, so it cannot classify zero-shot as CLIP does"
                )

    def _text_features(self, model: nn.Module, prompts: list[str]) -> Tensor:
        """Features of some prompts, ``[prompts, d]`` float32, not normalised."""
        towers: Any = model
        config = towers.config.text_config
        # SigLIP was trained on texts padded to its full length without a mask, and reads the last position.
        full = towers.config.model_type.startswith("siglip")
        encoded = self.tokenizer(
            prompts,
            padding="max_length" if full else True,
            truncation=True,
            max_length=config.max_position_embeddings,
            return_tensors="pt",
        )
        device = next(model.parameters()).device
        inputs = {"input_ids": encoded["input_ids"].to(device)}
        if not full:
            inputs["attention_mask"] = encoded["attention_mask"].to(device)
        return _pooled(towers.get_text_features(**inputs))

    @override
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Scaled cosines to the class weights."""
        if self._weights is None:
            raise GradfixError(f"{self.name}: call prepare(model) with the target base before using the task")
        features = self.features(model, batch)
        return self._scale * features @ self._weights.to(features.device).T + self._bias

    @override
    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The projected image features, normalised."""
        reference = next(model.parameters())
        return normalize(self._image_features(model, batch["pixel_values"].to(reference)), dim=1)

    def _image_features(self, model: nn.Module, images: Tensor) -> Tensor:
        """Features of some images, ``[B, d]`` float32, not normalised."""
        towers: Any = model
        return _pooled(towers.get_image_features(pixel_values=images))

    @override
    def voters(self, model: nn.Module) -> list[str]:
        """The vision tower and its projection."""
        return [name for name, _ in model.named_parameters() if name.startswith(VISION)]


def read_templates(templates: Sequence[str] | str | Path) -> list[str]:
    """Prompt templates from a list or a file.

    Args:
        templates: A list; one template; or a text file with one a line, blank lines and lines with # left
            out.

    Returns:
        At least one template, each with ``{}`` once.

    Raises:
        GradfixError: If the file cannot be read, or a template has not one ``{}``.
    """
    source = "templates"
    if isinstance(templates, str) and "{}" in templates:
        templates = [templates]
    elif isinstance(templates, str | Path):
        source = str(templates)
        lines = read_text(Path(templates)).splitlines()
        templates = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not templates:
        raise GradfixError(f"{source}: no prompt template")
    for template in templates:
        if template.count("{}") != 1:
            raise GradfixError(
                f"{source}: expected one {{}} for the class in each template, found {template!r}"
            )
    return list(templates)


def _pooled(output: Any) -> Tensor:
    """The features of a tower, float32; newer transformers wrap them."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features.float()
