"""Every mode that Pillow opens, held against what its values mean, computed here from the values alone."""

import io
import random
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from gradfix.errors import GradfixError
from gradfix.tasks.images import read_image
from gradfix.tasks.rgb import ORIENTATION

HEIGHT, WIDTH = 5, 7
RANDOM = np.random.default_rng(3)
EIGHT = RANDOM.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
COLOURS = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
ALPHA = np.array([[0, 255, 128, 1, 254, 64, 200]] * HEIGHT, dtype=np.uint8)
SIXTEEN = np.array([[0, 255, 256, 1000, 32768, 65000, 65535]] * HEIGHT, dtype=np.uint16)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    written = io.BytesIO()
    image.save(written, format=form, **options)
    return written.getvalue()


def seen(value: object) -> np.ndarray:
    image = read_image(value, "row 0")
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values)[..., None], 3, axis=2)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Each colour mixed with white by how opaque it is."""
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def close(found: np.ndarray, expected: np.ndarray, within: float = 1) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(float) - expected).max() <= within


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_cut_off(form: str) -> None:
    close(seen(encoded(Image.fromarray(SIXTEEN), form)), grey(SIXTEEN / 65535 * 255), 0.5)


def test_sixteen_bits_of_any_byte_order_and_kind() -> None:
    expected = grey(SIXTEEN / 65535 * 255)
    portable = f"P5\n{WIDTH} {HEIGHT}\n65535\n".encode() + SIXTEEN.astype(">u2").tobytes()
    dark = f"P5\n{WIDTH} {HEIGHT}\n65535\n".encode() + (SIXTEEN // 300).astype(">u2").tobytes()
    close(seen(portable), expected, 0.5)
    close(seen(dark), grey(SIXTEEN // 300 / 257), 0.5)  # a dark picture stays dark
    close(seen(SIXTEEN), expected, 0.5)
    close(seen(Image.frombytes("I;16B", (WIDTH, HEIGHT), SIXTEEN.astype(">u2").tobytes())), expected, 0.5)
    close(seen(Image.fromarray(SIXTEEN.astype(np.int32))), expected, 0.5)


def test_greys_without_a_range_of_their_own() -> None:
    close(seen(Image.fromarray(EIGHT.astype(np.int32))), grey(EIGHT), 0)
    close(seen(Image.fromarray(EIGHT.astype(np.float32))), grey(EIGHT), 0.5)
    close(seen(Image.fromarray((EIGHT / 255).astype(np.float32))), grey(EIGHT), 0.5)
    wide = np.linspace(-1000, 3000, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    for values in (wide, wide.astype(np.int32)):
        close(seen(Image.fromarray(values)), grey((values + 1000) / 4000 * 255), 0.6)
    close(seen(encoded(Image.fromarray(wide), "TIFF")), grey((wide + 1000) / 4000 * 255), 0.6)
    flat = np.full((HEIGHT, WIDTH), 1e6, dtype=np.float32)
    assert not seen(Image.fromarray(flat)).any()
    broken = np.full((HEIGHT, WIDTH), np.nan, dtype=np.float32)
    with pytest.raises(
        GradfixError, match=r"row 0: the image cannot be read \(it holds values that are not finite\)"
    ):
        read_image(Image.fromarray(broken), "row 0")


def test_what_is_transparent_shows_a_white_ground() -> None:
    coloured = np.dstack([COLOURS, ALPHA])
    for form in ("PNG", "TIFF"):
        close(seen(encoded(Image.fromarray(coloured), form)), on_white(COLOURS, ALPHA))
    close(
        seen(encoded(Image.fromarray(coloured), "WEBP", lossless=True, exact=True)), on_white(COLOURS, ALPHA)
    )
    close(seen(coloured), on_white(COLOURS, ALPHA))
    greys = Image.merge("LA", [Image.fromarray(EIGHT), Image.fromarray(ALPHA)])
    close(seen(encoded(greys, "PNG")), on_white(grey(EIGHT), ALPHA))
    opaque = np.dstack([COLOURS, np.full_like(ALPHA, 255)])
    close(seen(encoded(Image.fromarray(opaque), "PNG")), COLOURS, 0)


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_premultiplied_alpha(mode: str) -> None:
    straight = "RGBA" if mode == "RGBa" else "LA"
    bands = [*COLOURS.transpose(2, 0, 1)] if mode == "RGBa" else [EIGHT]
    image = Image.merge(straight, [Image.fromarray(band) for band in (*bands, ALPHA)])
    close(seen(image.convert(mode)), on_white(COLOURS if mode == "RGBa" else grey(EIGHT), ALPHA), 2)


def test_palettes_with_and_without_transparency() -> None:
    palette = RANDOM.integers(0, 256, (8, 3), dtype=np.uint8)
    places = RANDOM.integers(0, 8, (HEIGHT, WIDTH), dtype=np.uint8)
    image = Image.frombytes("P", (WIDTH, HEIGHT), places.tobytes())
    image.putpalette(palette.tobytes())
    close(seen(encoded(image, "PNG")), palette[places], 0)
    by_colour = np.array([0, 255, 100, 255, 20, 255, 255, 7], dtype=np.uint8)
    close(
        seen(encoded(image, "PNG", transparency=by_colour.tobytes())),
        on_white(palette[places], by_colour[places]),
    )
    expected = palette[places].copy()
    expected[places == 3] = 255
    for form in ("PNG", "GIF"):
        close(seen(encoded(image, form, transparency=3)), expected, 0)


def test_one_colour_that_a_png_calls_transparent() -> None:
    for mode, values, hidden in (
        ("L", EIGHT, int(EIGHT[2, 2])),
        ("RGB", COLOURS, tuple(map(int, COLOURS[1, 1]))),
    ):
        expected = (grey(values) if mode == "L" else values).copy()
        expected[(values == hidden) if mode == "L" else (values == hidden).all(axis=2)] = 255
        close(seen(encoded(Image.fromarray(values), "PNG", transparency=hidden)), expected, 0)
    expected = grey(SIXTEEN / 65535 * 255)
    expected[SIXTEEN == 1000] = 255
    raw = encoded(Image.fromarray(SIXTEEN), "PNG")
    image = Image.open(io.BytesIO(raw))
    image.info["transparency"] = 1000
    close(seen(image), expected, 0.5)


def test_one_bit() -> None:
    bits = EIGHT > 127
    for form in ("PNG", "TIFF", "BMP"):
        close(seen(encoded(Image.fromarray(bits), form)), grey(bits * 255.0), 0)
    close(seen(bits), grey(bits * 255.0), 0)


def test_inks_without_a_profile_are_what_they_leave_of_the_light() -> None:
    inks = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    image = Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes())
    left = 255.0 - inks
    close(seen(encoded(image, "TIFF")), left[..., :3] * left[..., 3:] / 255)
    flat = Image.new("CMYK", (64, 64), (0, 200, 100, 20))
    close(seen(encoded(flat, "JPEG", quality=100)), np.full((64, 64, 3), [235, 51, 143]), 4)


def test_a_profile_of_inks_that_is_none_is_passed_over() -> None:
    inks = Image.new("CMYK", (4, 4), (0, 200, 100, 20))
    plain = seen(encoded(inks, "TIFF"))
    for profile in (b"no profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()):
        close(seen(encoded(inks, "TIFF", icc_profile=profile)), plain, 0)


def test_colours_of_other_spaces() -> None:
    for mode in ("YCbCr", "HSV", "RGBX"):
        image = Image.fromarray(COLOURS).convert(mode)
        close(seen(image), COLOURS, 12)
    lab = ImageCms.profileToProfile(
        Image.fromarray(COLOURS),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    close(seen(lab), COLOURS, 16)  # eight bits of LAB are coarse


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_photograph_stands_as_its_camera_was_held(turn: int, form: str) -> None:
    upright = np.zeros((24, 40, 3), dtype=np.uint8)
    upright[:8, :8, 0] = 255
    upright[-8:, :8, 1] = 255
    upright[:8, -8:, 2] = 255
    # What the camera stored: the picture from which the viewer's turn gives the upright one.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[turn]
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    options = (
        {"quality": 100, "subsampling": 0} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    )
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif, **options)
    found = seen(data)
    assert found.shape == upright.shape
    for row, column in ((3, 3), (-4, 3), (3, -4), (-4, -4)):
        assert np.abs(found[row, column].astype(int) - upright[row, column].astype(int)).max() < 40


def test_a_turned_picture_keeps_its_transparency() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded(Image.fromarray(np.dstack([COLOURS, ALPHA])), "PNG", exif=exif)
    close(seen(data), np.rot90(on_white(COLOURS, ALPHA), -1))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_data_turn_nothing() -> None:
    plain = encoded(Image.fromarray(COLOURS), "PNG")
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 9):
        close(seen(encoded(Image.fromarray(COLOURS), "PNG", exif=exif)), seen(plain), 0)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    close(seen(data), np.full((8, 8, 3), [255, 0, 0]), 0)


def test_greys_with_a_channel_of_their_own() -> None:
    close(seen(EIGHT[..., None]), grey(EIGHT), 0)


def refused(data: bytes) -> str | None:
    try:
        read_image(data, "row 7")
    except GradfixError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA", "ICO", "PCX"])
def test_a_damaged_file_is_shown_or_refused_with_its_row(form: str) -> None:
    """Whatever a plugin raises: one line that names the row."""
    source = random.Random(form)
    whole = encoded(Image.fromarray(np.kron(COLOURS, np.ones((6, 6, 1), dtype=np.uint8))), form)
    for _ in range(150):
        broken = bytearray(whole)
        for _ in range(source.randrange(1, 12)):
            broken[source.randrange(len(broken))] = source.randrange(256)
        if source.random() < 0.3:
            del broken[source.randrange(len(broken)) :]
        refusal = refused(bytes(broken))
        assert re.fullmatch(
            r"row 7: the image cannot be read \(.+\)", refusal or "row 7: the image cannot be read (-)"
        )


@pytest.mark.parametrize(
    "kind", [OSError, SyntaxError, EOFError, KeyError, IndexError, struct.error, zlib.error]
)
def test_whatever_a_plugin_raises_is_one_line(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def fail(*_: object) -> None:
        raise kind("broken data")

    monkeypatch.setattr(Image, "open", fail)
    assert re.fullmatch(r"row 7: the image cannot be read \('?broken data'?\)", str(refused(b"")))


def test_a_text_chunk_too_large_is_refused() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 10), zip=True)
    with pytest.raises(GradfixError, match="row 0: the image cannot be read"):
        seen(encoded(Image.fromarray(COLOURS), "PNG", pnginfo=info))
