"""Images of rows to pixels, with PIL's arithmetic, and what tasks on images share."""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from typing_extensions import override

from gradfix.errors import GradfixError
from gradfix.tasks.base import Batch, RowLike
from gradfix.tasks.classification import Classification
from gradfix.tasks.data import origin
from gradfix.tasks.loading import load_image_processor
from gradfix.tasks.rgb import to_rgb
from gradfix.text_files import read_bytes

# What Pillow's plugins raise on files that are damaged or of another kind; each format has its own.
_UNREADABLE = (
    OSError, ValueError, TypeError, SyntaxError, EOFError, KeyError, IndexError, AttributeError, NotImplementedError,
    OverflowError, RuntimeError, ZeroDivisionError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


class ImageInputs(Classification):
    """Classification of images.

    Args:
        image: The column with the image.
        label: The column with the label.
        labels: The classes, see `Classification`.
    """

    one_shape = True

    def __init__(self, image: str, label: str, labels: Sequence[str] | Mapping[Any, str] | None) -> None:
        super().__init__({"image": image, "label": label}, labels)

    @override
    def _bind_processors(self, location: str | Path, trust_remote_code: bool) -> None:
        self.image_processor = load_image_processor(location, trust_remote_code=trust_remote_code)

    @override
    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows without a readable image or a known label, and a support set that misses a class."""
        super().check(rows, support=support)
        for position, (row, value) in enumerate(zip(rows, self._column(rows, "image"), strict=True)):
            read_image(value, f"{origin(row, position)}: column {self.columns['image']!r}")

    @override
    def encode(self, rows: Sequence[RowLike], *, strict: bool = False) -> Batch:
        """Decode and preprocess the images."""
        values = self._column(rows, "image")
        return {
            "pixel_values": pixels(self.image_processor, rows, values, self.columns["image"]),
            "labels": torch.tensor(self.classes(rows)),
        }

    @override
    def size(self, row: RowLike) -> int:
        """Images are all of one size."""
        return 0


def read_image(value: Any, where: str) -> Image.Image:
    """Decode an image.

    Args:
        value: What ``datasets`` gives undecoded (``{"bytes": …, "path": …}``), bytes, a path, a PIL image, or
            an array of greys ``[height, width]``, or ``[height, width, 3]`` or ``[…, 4]`` of uint8, or a tensor
            ``[1, 3 or 4, height, width]`` as torchvision's ``ToTensor`` gives it, uint8 or from 0 to 1.
        where: How an error names the row and column.

    Returns:
        The image as a person sees it (`to_rgb`).

    Raises:
        GradfixError: If it is not an image or cannot be read to its end; names the row and the path.
    """
    path = None
    if isinstance(value, Tensor):
        value = _array(value, where)
    try:
        if isinstance(value, Image.Image):
            image = value
        elif hasattr(value, "__array_interface__"):
            image = Image.fromarray(value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value)
        else:
            if isinstance(value, Mapping) and {"bytes", "path"} <= set(value):
                path, value = value["path"], value["bytes"]
            if isinstance(value, str | Path):
                path, value = value, None
            if value is None and path is not None:
                value = _content(Path(path), where)
            if not isinstance(value, bytes):
                raise GradfixError(f"{where}: expected an image, found {type(value).__name__}")
            image = Image.open(io.BytesIO(value))
        # Converting decodes everything: a truncated file shows here, not somewhere in training.
        return to_rgb(image)
    except _UNREADABLE as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        named = f" {path}" if path else ""
        reason = reason or type(error).__name__
        raise GradfixError(f"{where}: the image{named} cannot be read ({reason})") from error


def _array(value: Tensor, where: str) -> Any:
    """Channels first, as torchvision has them, to an array of uint8 with channels last."""
    if value.ndim != 3 or value.shape[0] not in (1, 3, 4):
        raise GradfixError(
            f"{where}: expected an image [channels, height, width] of 1, 3 or 4 channels, found {list(value.shape)}"
        )
    if value.is_floating_point():
        low, high = float(value.min()), float(value.max())
        if not (low >= 0 and high <= 1):
            raise GradfixError(
                f"{where}: expected values from 0 to 1, found {low:.3g} to {high:.3g}; give images that are not "
                "normalised yet, the model's processor does that"
            )
        value = (value.float() * 255).round().to(torch.uint8)
    elif value.dtype != torch.uint8:
        raise GradfixError(f"{where}: expected uint8 or floating point, found {value.dtype}; convert it")
    return value.detach().cpu().permute(1, 2, 0).contiguous().numpy()


def _content(path: Path, where: str) -> bytes:
    try:
        return read_bytes(path)
    except GradfixError as error:
        raise GradfixError(f"{where}: the image {error}") from error


def pixels(processor: Any, rows: Sequence[Any], values: Sequence[Any], column: str) -> Tensor:
    """Decode and preprocess the images of some rows.

    Args:
        processor: A transformers image processor.
        rows: The rows, for messages.
        values: Their images.
        column: The column they came from.

    Returns:
        ``[B, 3, height, width]`` float32.

    Raises:
        GradfixError: If an image cannot be read, or the processor makes images of unlike sizes.
    """
    processed = []
    # One by one: some processors pad a batch to its largest image, and no sample may depend on others.
    for position, (row, value) in enumerate(zip(rows, values, strict=True)):
        image = read_image(value, f"{origin(row, position)}: column {column!r}")
        processed.append(processor(images=image, return_tensors="pt")["pixel_values"][0])
    shapes = {tuple(image.shape) for image in processed}
    if len(shapes) > 1:
        raise GradfixError(
            f"the image processor makes images of unlike sizes ({', '.join(map(str, sorted(shapes)))}); "
            "set a fixed size or do_center_crop in its preprocessor_config.json"
        )
    return torch.stack(processed).float()
