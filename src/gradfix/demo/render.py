"""Characters drawn from matplotlib's bundled fonts and worn as scans are: the lab's pre-training images.

Index letters: N images, F fonts, C characters; every image is 28 × 28, 8-bit grey, bright ink on dark unless
inverted. All randomness comes from one numpy generator, so a seed gives the same pixels; the arithmetic is
element-wise in torch and does not depend on the number of threads.
"""

import string
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor
from torch.nn import functional

CHARACTERS = string.digits + string.ascii_lowercase + string.ascii_uppercase

# Disjoint, so that what A and B share is the alphabet and not a drawing of it. matplotlib's other fonts hold
# symbols only (cmsy, cmex, sized STIX), lack letters (the Display fonts) or draw none (Last Resort).
FONTS_A = (
    "DejaVuSans",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralBolIta",
    "cmr10",
)
FONTS_B = (
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "STIXGeneralBol",
    "cmb10",
    "cmtt10",
)
FONTS_UNSEEN = (
    "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic",
    "STIXGeneralItalic",
    "cmmi10",
    "cmss10",
    "cmti10",
)

SIDE = 28
CANVAS = 64  # a glyph before it is worn, in pixels a side
BOX = 44  # the longer side of its ink
STROKES = (-1, 0, 1, 2, 3)  # pixels taken off (−) or put on (+) the outline of a glyph on its canvas


@cache
def glyphs(fonts: tuple[str, ...], characters: str = CHARACTERS) -> npt.NDArray[np.uint8]:
    """Draw every character in every font and stroke width, its ink fitted to the same box.

    Args:
        fonts: Names of matplotlib's fonts, without the ending.
        characters: The characters to draw.

    Returns:
        Grey values, shape (fonts, characters, stroke widths, 64, 64).
    """
    drawn = np.zeros((len(fonts), len(characters), len(STROKES), CANVAS, CANVAS), dtype=np.uint8)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for f, name in enumerate(fonts):
        # The basic layout engine is always there; the other is a system library that may not be.
        font = ImageFont.truetype(folder / f"{name}.ttf", 96, layout_engine=ImageFont.Layout.BASIC)
        for c, character in enumerate(characters):
            image = _fitted(character, font)
            for s, stroke in enumerate(STROKES):
                worn = image
                for _ in range(abs(stroke)):
                    worn = worn.filter(ImageFilter.MaxFilter(3) if stroke > 0 else ImageFilter.MinFilter(3))
                drawn[f, c, s] = np.asarray(worn)
    drawn.flags.writeable = False
    return drawn


def _fitted(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One character, its ink scaled to 44 pixels on the longer side and centred on the canvas."""
    page = Image.new("L", (256, 256))
    ImageDraw.Draw(page).text((64, 64), character, fill=255, font=font)
    ink = page.crop(page.getbbox())
    scale = BOX / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    canvas = Image.new("L", (CANVAS, CANVAS))
    resized = ink.resize((width, height), Image.Resampling.LANCZOS)
    canvas.paste(resized, ((CANVAS - width) // 2, (CANVAS - height) // 2))
    return canvas


def render(
    characters: Sequence[str], fonts: tuple[str, ...], generator: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Draw one worn image a character, each in a random font and stroke width.

    Args:
        characters: What to draw, N single characters out of :data:`CHARACTERS`.
        fonts: Names of matplotlib's fonts, without the ending.
        generator: The only source of randomness.

    Returns:
        Grey values, shape (N, 28, 28).
    """
    atlas = glyphs(fonts)
    index = np.array([CHARACTERS.index(character) for character in characters], dtype=np.int64)
    font = generator.integers(len(fonts), size=len(index))
    stroke = generator.choice(len(STROKES), p=(0.05, 0.25, 0.3, 0.25, 0.15), size=len(index))
    return wear(atlas[font, index, stroke], generator)


def wear(
    images: npt.NDArray[np.uint8], generator: np.random.Generator, *, strength: float = 1.0
) -> npt.NDArray[np.uint8]:
    """Put images through what a pen, a sheet and a cheap scanner do to them.

    In order: affine and smooth elastic change, blur, low resolution, contrast, noise, sometimes inversion.

    Args:
        images: Grey values, shape (N, H, W).
        generator: The only source of randomness.
        strength: Scales the geometric changes; 0 leaves the shapes as they are.

    Returns:
        Grey values, shape (N, 28, 28).
    """
    worn = [
        _wear_block(images[start : start + 2048], generator, strength)
        for start in range(0, len(images), 2048)
    ]
    return np.concatenate(worn) if worn else np.zeros((0, SIDE, SIDE), dtype=np.uint8)


def _wear_block(
    images: npt.NDArray[np.uint8], generator: np.random.Generator, strength: float
) -> npt.NDArray[np.uint8]:
    """:func:`wear` on as many images as fit comfortably in memory."""
    count = len(images)
    grid = _warp(count, generator, strength)
    # Sampled at twice the final resolution and averaged: a pixel is the mean of its area, not a point.
    pixels = functional.grid_sample(
        torch.from_numpy(images).float()[:, None] / 255, grid, align_corners=False
    )
    pixels = functional.avg_pool2d(pixels, 2)
    pixels = _grouped(pixels, generator.choice(4, p=(0.4, 0.25, 0.2, 0.15), size=count), _blur)
    pixels = _grouped(pixels, generator.choice(4, p=(0.45, 0.15, 0.15, 0.25), size=count), _coarsen)
    ink = generator.uniform(0.7, 1.0, size=(count, 1, 1))
    sheet = generator.uniform(0.0, 0.2, size=(count, 1, 1)) * (generator.random((count, 1, 1)) < 0.4)
    noise = generator.uniform(0.0, 0.12, size=(count, 1, 1)) * (generator.random((count, 1, 1)) < 0.5)
    values = sheet + (ink - sheet) * pixels[:, 0].double().numpy()
    values += noise * generator.standard_normal(values.shape)
    values = np.where(generator.random((count, 1, 1)) < 0.08, 1 - values, values)
    grey: npt.NDArray[np.uint8] = np.rint(255 * values.clip(0, 1)).astype(np.uint8)
    return grey


def _warp(count: int, generator: np.random.Generator, strength: float) -> Tensor:
    """Where each output point is read from, in grid_sample's coordinates: shape (N, 56, 56, 2)."""
    angle = strength * generator.normal(0.0, 0.14, size=count)
    shear = strength * generator.normal(0.0, 0.18, size=count)
    # Below 1 the ink grows. At 0.7 a glyph fills the image, as in scans cropped to the ink.
    size = np.exp(strength * generator.uniform(np.log(0.66), np.log(1.05), size=count))
    aspect = np.exp(strength * generator.normal(0.0, 0.12, size=count))
    shift = strength * generator.normal(0.0, 0.06, size=(count, 2))
    rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(
        -1, 2, 2
    )
    stretch = np.zeros((count, 2, 2))
    stretch[:, 0, 0], stretch[:, 1, 1], stretch[:, 0, 1] = size * aspect, size / aspect, shear * size
    affine = np.concatenate([rotation @ stretch, shift[:, :, None]], axis=2)
    grid = functional.affine_grid(
        torch.from_numpy(affine), [count, 1, 2 * SIDE, 2 * SIDE], align_corners=False
    )
    amplitude = strength * generator.uniform(0.0, 0.11, size=(count, 1, 1, 1))
    knots = torch.from_numpy(amplitude * generator.standard_normal((count, 2, 5, 5)))
    field = functional.interpolate(knots, size=(2 * SIDE, 2 * SIDE), mode="bicubic", align_corners=True)
    return (grid + field.permute(0, 2, 3, 1)).float()


def _grouped(
    pixels: Tensor, levels: npt.NDArray[np.int64], change: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Apply a change to each image at its own level; level 0 leaves it as it is."""
    changed = pixels.clone()
    for level in np.unique(levels[levels > 0]):
        chosen = torch.from_numpy(np.flatnonzero(levels == level))
        changed[chosen] = change(pixels[chosen], int(level))
    return changed


def _blur(pixels: Tensor, level: int) -> Tensor:
    """Gaussian blur of images of shape (N, 1, 28, 28), wider at each level."""
    sigma = (0.5, 0.8, 1.2)[level - 1]
    offsets = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    across = functional.conv2d(functional.pad(pixels, (3, 3, 0, 0)), kernel.view(1, 1, 1, 7))
    return functional.conv2d(functional.pad(across, (0, 0, 3, 3)), kernel.view(1, 1, 7, 1))


def _coarsen(pixels: Tensor, level: int) -> Tensor:
    """Average images of shape (N, 1, 28, 28) down to few pixels and bring them back, as small scans are."""
    side = (14, 10, 8)[level - 1]
    return functional.interpolate(
        functional.adaptive_avg_pool2d(pixels, side), size=(SIDE, SIDE), mode="bilinear", align_corners=False
    )
