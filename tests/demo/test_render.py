import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradfix.demo.render import CHARACTERS, FONTS_A, FONTS_B, FONTS_UNSEEN, STROKES, glyphs, render, wear

pytestmark = pytest.mark.slow

FONT_SETS = {"A": FONTS_A, "B": FONTS_B, "unseen": FONTS_UNSEEN}


def test_font_sets_share_no_font() -> None:
    fonts = [font for fonts in FONT_SETS.values() for font in fonts]
    assert len(fonts) == len(set(fonts))


@pytest.mark.parametrize("fonts", FONT_SETS.values(), ids=FONT_SETS.keys())
def test_every_font_draws_every_character(fonts: tuple[str, ...]) -> None:
    drawn = glyphs(fonts)
    assert drawn.shape == (len(fonts), len(CHARACTERS), len(STROKES), 64, 64)
    unthinned = drawn[:, :, STROKES.index(0)]
    assert (unthinned.max(axis=(2, 3)) > 200).all()
    # A font that lacks letters draws one box for all of them.
    for font in unthinned:
        assert len(np.unique(font.reshape(len(CHARACTERS), -1), axis=0)) >= len(CHARACTERS) - 3


def test_thicker_strokes_hold_more_ink() -> None:
    ink = glyphs(FONTS_A).astype(int).sum(axis=(0, 1, 3, 4))
    assert (np.diff(ink) > 0).all()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), text=st.text(alphabet=CHARACTERS, max_size=5))
def test_the_seed_fixes_every_pixel(seed: int, text: str) -> None:
    first, second = (render(text, FONTS_B, np.random.default_rng(seed)) for _ in range(2))
    assert first.shape == (len(text), 28, 28)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)


def test_another_seed_draws_other_images() -> None:
    first, second = (render("gradfix", FONTS_A, np.random.default_rng(seed)) for seed in (0, 1))
    assert (first != second).any(axis=(1, 2)).all()


def test_drawings_do_not_depend_on_threads() -> None:
    import torch

    before = torch.get_num_threads()
    images = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            images.append(render(CHARACTERS, FONTS_A, np.random.default_rng(4)))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(images[0], images[1])


def test_wear_without_strength_leaves_shapes_in_place() -> None:
    square = np.zeros((40, 28, 28), dtype=np.uint8)
    square[:, 10:18, 10:18] = 255
    worn = wear(square, np.random.default_rng(0), strength=0.0).astype(float)
    worn = np.where(worn[:, :1, :1] > 127, 255 - worn, worn)  # undo the inversion of some
    inside, outside = worn[:, 12:16, 12:16].mean(axis=(1, 2)), worn[:, :4].mean(axis=(1, 2))
    assert (inside > outside + 40).all()
