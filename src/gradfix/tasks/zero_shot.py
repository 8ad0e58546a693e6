"""Zero-shot image classification: an image is of the class whose prompts its features resemble most."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from typing_extensions import override

from gradfix.errors import GradfixError, listed, option
from gradfix.tasks.base import Batch, register
from gradfix.tasks.forward import evaluating
from gradfix.tasks.images import ImageInputs
from gradfix.tasks.labels import Labels
from gradfix.tasks.loading import load_config, load_tokenizer
from gradfix.text_files import read_text

TEMPLATES = ("a photo of a {}.",)
TOWER = "vision_model."
VISION = (TOWER, "visual_projection.")
SAME = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
    "hidden_act", "layer_norm_eps",
)  # fmt: skip
"""What a vision tower alone must have in common with that of the model whose text side it is used with."""
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
        text_from: A whole model, directory or Hub id, that gives what a vision tower alone, or a file of weights,
            lacks: text tower, projection, scale, tokenizer. Such weights are then filled into its architecture.
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
        text_from: str | Path | None = None,
    ) -> None:
        super().__init__(image, label, labels)
        self.templates = read_templates(templates)
        self.text_from: str | Path | None = None
        if text_from is not None:  # as for a file of weights, beside which there is nothing to bind to
            self.bind(text_from)
            self.text_from, self.builds_model = text_from, True
        self._weights: Tensor | None = None
        self._scale, self._bias = 1.0, 0.0

    @override
    def _bind_processors(self, location: str | Path, trust_remote_code: bool) -> None:
        self.builds_model = _is_tower(self.config.model_type)
        if not self.builds_model:
            super()._bind_processors(location, trust_remote_code)
            self.tokenizer = load_tokenizer(location, trust_remote_code=trust_remote_code)
            return
        if self.text_from is None:
            raise GradfixError(
                f"{location}: is a vision tower alone ({self.config.model_type}), without the text tower that makes "
                f"class weights of prompts; give the whole model it is of with {option('text_from')}"
            )
        whole = load_config(self.text_from, trust_remote_code=trust_remote_code)
        tower = getattr(whole, "vision_config", whole)
        differing = [
            f"{key} {getattr(self.config, key, None)!r} against {getattr(tower, key, None)!r}"
            for key in SAME
            if getattr(self.config, key, None) != getattr(tower, key, None)
        ]
        if differing:
            raise GradfixError(
                f"{location}: is no vision tower of {self.text_from} ({listed(differing)}); give the model it is of "
                f"with {option('text_from')}"
            )
        own = Path(location, "preprocessor_config.json").exists()
        super()._bind_processors(location if own else self.text_from, trust_remote_code)
        self.tokenizer = load_tokenizer(self.text_from, trust_remote_code=trust_remote_code)

    @override
    def runs(self, config: Mapping[str, Any]) -> bool:
        # A source is run with the text side it was trained with, which a tower or a file alone has not.
        known = self.text_from is None or bool(config.get("model_type"))
        return known and not _is_tower(config.get("model_type"))

    @override
    def load_model(
        self,
        location: str | Path,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str = "cpu",
        trust_remote_code: bool = False,
        **config: Any,
    ) -> nn.Module:
        """Load the model; for a vision tower or a file of weights, what it is filled into.

        Args:
            location: A model directory or Hub id.
            dtype: Of the weights; as stored by default.
            device: Where to put it.
            trust_remote_code: Allow the code that a repository brings.
            **config: Values that replace the configuration's.

        Returns:
            The model in eval mode; the tower that is to be filled is NaN.
        """
        if self.config is None:
            self.bind(location, trust_remote_code=trust_remote_code)
        filled = self.text_from if self.builds_model else None
        model = super().load_model(
            filled or location, dtype=dtype, device=device, trust_remote_code=trust_remote_code, **config
        )
        for name, parameter in model.named_parameters() if filled else ():
            if name.startswith(TOWER):
                nn.init.constant_(parameter, torch.nan)  # so that one that is never filled shows
        return model

    @override
    def brought(self, model: nn.Module) -> Collection[str]:
        """All but the vision tower, where the text side comes from elsewhere."""
        if self.text_from is None:
            return ()
        return [name for name, _ in model.named_parameters() if not name.startswith(TOWER)]

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
            out. A list may be that of one file.

    Returns:
        At least one template, each with ``{}`` once.

    Raises:
        GradfixError: If the file cannot be read, or a template has not one ``{}``.
    """
    source = "templates"
    if not isinstance(templates, str | Path) and len(templates) == 1:
        (templates,) = templates
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


def _is_tower(model_type: Any) -> bool:
    return str(model_type).endswith("_vision_model")


def _pooled(output: Any) -> Tensor:
    """The features of a tower, float32; newer transformers wrap them."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features.float()
