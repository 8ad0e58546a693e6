"""The language benchmark's data: deterministic, split without leaks, and not solvable by reading the label."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

LABELS = ["numpy.polynomial", "numpy.ma"]


@pytest.fixture(scope="module")
def docstrings() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "docstrings.py"
    spec = importlib.util.spec_from_file_location("benchmark_docstrings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_sentences_are_of_the_description_only(docstrings: ModuleType) -> None:
    text = """Return the roots of a series of numbers. Is it sorted? It is not sorted in any way at all.

    short one.

    This   sentence goes over
    two lines of text.

    Parameters
    ----------
    c : array
        Coefficients of the series in ascending order of degree.
    """
    assert docstrings.sentences(text) == [
        "Return the roots of a series of numbers.",
        "It is not sorted in any way at all.",
        "This sentence goes over two lines of text.",
    ]


def test_docstrings_come_in_order_and_not_from_tests_or_broken_files(
    docstrings: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "b.py").write_text('"""B."""\n\nclass K:\n    """K."""\n')
    (tmp_path / "a.py").write_text('async def f():\n    """F."""\n')
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text('"""T."""\n')
    assert list(docstrings.docstrings(tmp_path)) == [("a.py:f", "F."), ("b.py:", "B."), ("b.py:K", "K.")]


def test_names_of_subpackages_are_masked(docstrings: ModuleType) -> None:
    pattern = docstrings.name_pattern([*LABELS, "scipy.stats", "pandas.io"])
    masked = pattern.sub(
        "…", "Polynomials of NumPy's ma and io: a poly1d or mapping in np.ma, with statistics."
    )
    assert masked == "… of …'s … and …: a poly1d or mapping in np.…, with …."


def test_extraction_is_deterministic_balanced_and_masked(docstrings: ModuleType) -> None:
    found = docstrings.task_sentences(LABELS, 40)
    assert found == docstrings.task_sentences(LABELS, 40)
    assert found != docstrings.task_sentences(LABELS, 40, seed=1)
    assert [sum(sentence.label == label for sentence in found) for label in LABELS] == [40, 40]
    assert len({sentence.text.lower() for sentence in found}) == len(found)
    assert not any(
        "numpy" in sentence.text.lower() or "polynomial" in sentence.text.lower() for sentence in found
    )


def test_parts_share_no_docstring(docstrings: ModuleType) -> None:
    found = docstrings.task_sentences(LABELS, 200)
    parts = docstrings.split(found)
    assert sum(map(len, parts.values())) == len(found)
    objects = [{sentence.object for sentence in part} for part in parts.values()]
    assert all(objects)
    assert not any(one & two for number, one in enumerate(objects) for two in objects[:number])
    assert docstrings.split(list(reversed(found))) == parts  # whatever the order they come in
