"""What a person sees of an image, in RGB, whatever mode Pillow opens it in.

Pillow's own ``convert("RGB")`` cuts 16-bit greys off at 255, so that they come out white, lets the colours show that
transparency hides, and leaves a photograph lying on its side.
"""

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

ORIENTATION = 0x0112
"""The EXIF tag that says how a picture was held."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BITS = frozenset({"PNG", "PPM"})
"""Formats whose greys of mode I are of 16 bits: a file of 32 bits may hold values of any range."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Show an image as a viewer would: upright, in its full range of greys, on a white ground.

    Args:
        image: In any mode; of an animation the frame it stands at, which is the first after opening.

    Returns:
        The image in mode RGB.

    Raises:
        ValueError: If its values are not finite.
    """
    sixteen = image.format in _SIXTEEN_BITS
    image = _upright(image)
    if image.mode.startswith("I;16"):
        return _greys(image, np.asarray(image) / 257)
    if image.mode == "I":
        values = np.asarray(image)
        return _greys(image, values / 257 if sixteen else _eight_bits(values, 65535))
    if image.mode == "F":
        return _greys(image, _eight_bits(np.asarray(image), 1))
    if image.mode == "CMYK":
        return _printed(image)
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, straight.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turn a photograph as its camera was held; EXIF data that can't be read turn nothing."""
    image.load()  # some plugins turn the image themselves and drop the tag
    try:
        turn = _TURNS.get(image.getexif().get(ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error):
        return image
    return image if turn is None else image.transpose(turn)


def _eight_bits(values: NDArray[np.generic], white: int) -> NDArray[np.float64]:
    """Scale greys without a declared range: 0 to 255 as they are, 0 to ``white`` in full, others from end to end."""
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("it holds values that are not finite")
    low, high = float(numbers.min()), float(numbers.max())
    for limit in sorted((white, 255)):
        if low >= 0 and high <= limit:
            return numbers * (255 / limit)
    return (numbers - low) * (255 / (high - low)) if high > low else np.zeros_like(numbers)


def _greys(image: Image.Image, values: NDArray[np.float64]) -> Image.Image:
    """Greys from 0 to 255 as an image, white where the one transparent grey of a PNG is."""
    shown = values.round().astype(np.uint8)
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        shown = np.where(np.asarray(image) == hidden, np.uint8(255), shown)
    return Image.fromarray(shown).convert("RGB")


def _printed(image: Image.Image) -> Image.Image:
    """Inks as they look on paper, by the profile that the file brings; without one, as light that they leave over."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            inks = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            shown = ImageCms.profileToProfile(image, inks, ImageCms.createProfile("sRGB"), outputMode="RGB")
            return shown if shown is not None else image.convert("RGB")
        except (OSError, ImageCms.PyCMSError):
            return image.convert("RGB")  # a profile that can't be read, or of other inks
    return image.convert("RGB")
