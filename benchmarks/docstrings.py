"""Sentences of installed packages' docstrings: real English that needs no download.

The sources are parsed, never imported, in the order of their paths; so the same installed versions give the same
sentences on every machine.
"""

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

SKIPPED_FOLDERS = frozenset({"tests", "test", "_lib", "externals", "idlelib", "lib2to3", "site-packages"})
MASK = "…"
SENTENCES_AN_OBJECT = 3
SHARES = {"train": 0.5, "pool": 0.25, "test": 0.25}
"""Of the objects (functions, classes, modules) in each part of the task."""

_SECTION = re.compile(r"\n\s*[A-Z][A-Za-z ]+\n\s*[-=]{3,}|\n\s*\.\. |>>>")
_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True)
class Sentence:
    """One sentence and where it stands.

    Attributes:
        text: Its words.
        label: The subpackage, as ``scipy.stats``.
        object: The function, class or module whose docstring it is from: path and name.
    """

    text: str
    label: str
    object: str


def docstrings(root: Path) -> Iterator[tuple[str, str]]:
    """Read the docstrings under a folder.

    Args:
        root: A package's folder.

    Yields:
        Path and name of the object, and its docstring.
    """
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        if SKIPPED_FOLDERS.intersection(path.parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (
            SyntaxError,
            UnicodeDecodeError,
        ):  # templates and samples of wrong code lie in the standard library
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node)
                if text:
                    yield f"{path.as_posix()}:{getattr(node, 'name', '')}", text


def sentences(docstring: str) -> list[str]:
    """Take the sentences of a docstring's description, before its first section.

    Args:
        docstring: As ``ast.get_docstring`` gives it.

    Returns:
        Sentences of 5 to 40 words, each from a capital to a full stop.
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", _SECTION.split(docstring)[0]):
        for sentence in _BETWEEN_SENTENCES.split(" ".join(paragraph.split())):
            whole = sentence.endswith(".") and sentence[0].isupper() and " : " not in sentence
            if whole and 5 <= len(sentence.split()) <= 40:
                found.append(sentence)
    return found


def name_pattern(labels: list[str]) -> re.Pattern[str]:
    """Match the words that name any of the subpackages: their labels would make the task trivial.

    Args:
        labels: As ``scipy.stats``.

    Returns:
        A pattern for whole words; of names of five letters or more also for words that contain them.
    """
    parts = sorted({part for label in labels for part in label.split(".")})
    words = [rf"\w*{part.removesuffix('s')}\w*" if len(part) >= 5 else part for part in parts]
    return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)


def task_sentences(labels: list[str], limit: int, seed: int = 0) -> list[Sentence]:
    """Collect the task's sentences, with the subpackages' names masked.

    Args:
        labels: The subpackages, which are the classes.
        limit: Largest number of sentences a class, so that none dominates.
        seed: Of which are taken where there are more.

    Returns:
        Distinct sentences; what two classes share is left out.

    Raises:
        ModuleNotFoundError: if a package is not installed.
    """
    pattern = name_pattern(labels)
    found: dict[str, dict[str, Sentence]] = {}
    for label in labels:
        of_class = found.setdefault(label, {})
        for place, docstring in docstrings(_folder(label)):
            for text in sentences(docstring)[:SENTENCES_AN_OBJECT]:
                masked = pattern.sub(MASK, text)
                of_class.setdefault(_key(masked), Sentence(masked, label, f"{label}/{place}"))
    classes = Counter(key for of_class in found.values() for key in of_class)
    chosen = []
    for of_class in found.values():
        own = [sentence for key, sentence in of_class.items() if classes[key] == 1]
        chosen += sorted(own, key=lambda sentence: _hash(seed, "take", sentence.text))[:limit]
    return chosen


def split(found: list[Sentence], seed: int = 0) -> dict[str, list[Sentence]]:
    """Deal sentences into parts by object, so that no part holds two sentences of one docstring with another part.

    Args:
        found: The sentences.
        seed: Of the dealing.

    Returns:
        ``train``, ``pool`` and ``test``, each in an order of its own.
    """
    parts: dict[str, list[Sentence]] = {name: [] for name in SHARES}
    for sentence in found:
        place, bound = _hash(seed, "split", sentence.object) / 2**64, 0.0
        for name, share in SHARES.items():
            bound += share
            if place < bound:
                parts[name].append(sentence)
                break
    return {
        name: sorted(part, key=lambda sentence: _hash(seed, "order", sentence.text))
        for name, part in parts.items()
    }


def prose(root: Path) -> list[str]:
    """Collect distinct sentences of a folder, for language modelling.

    Args:
        root: A package's folder, or the standard library's.

    Returns:
        In the order of the files.
    """
    return list(dict.fromkeys(text for _, docstring in docstrings(root) for text in sentences(docstring)))


def _folder(label: str) -> Path:
    package, *inner = label.split(".")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed; pip install -c constraints.txt -e .[bench]")
    return Path(spec.submodule_search_locations[0]).joinpath(*inner)


def _key(text: str) -> str:
    """What makes two sentences the same: letters, not digits, case or punctuation."""
    return re.sub(r"[^a-z]+", " ", text.lower()).strip()


def _hash(seed: int, purpose: str, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{purpose}\0{text}".encode()).digest()[:8], "big")
