"""Image classification by models with a head (ViT, ConvNeXt …)."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradfix.tasks.base import register
from gradfix.tasks.headed import HeadedClassification
from gradfix.tasks.images import ImageInputs


@register
class ImageClassification(ImageInputs, HeadedClassification):
    """Models of ``AutoModelForImageClassification``.

    Args:
        image: The column with the image.
        label: The column with the label, a name or an id.
        labels: Names in the order of their ids, or ``id2label``; the bound model's by default.
    """

    name = "image-classification"
    auto_class = "AutoModelForImageClassification"

    def __init__(
        self,
        image: str = "image",
        label: str = "label",
        *,
        labels: Sequence[str] | Mapping[Any, str] | None = None,
    ) -> None:
        super().__init__(image, label, labels)
