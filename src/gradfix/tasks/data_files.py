"""Rows of one file, exactly as it says them: no type, no encoding and no delimiter is guessed.

What a csv or tsv file holds is text, whatever it looks like; what a json file holds has json's types. So a label
``01``, ``true`` or ``NA`` is those characters, and a date stays the text it was.
"""

import codecs
import csv
import gzip
import json
import re
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from gradfix.errors import GradfixError, listed, option
from gradfix.tasks.data_library import table_of
from gradfix.tasks.data_table import Table
from gradfix.text_files import check_depth, read_bytes, require_regular

MAX_ROWS_BYTES = 2_000_000_000
"""Rows are held in memory, several times as large as they are written; of a compressed file it is what it holds."""

FILE_KINDS = (".csv", ".json", ".jsonl", ".parquet", ".tsv")
_TEXT_KINDS = (".csv", ".json", ".jsonl", ".tsv")  # these may be compressed, as .jsonl.gz

# Longest first: the mark of UTF-32 in little-endian order begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
_csv_limit = threading.Lock()


def read_files(
    paths: Sequence[Path], encoding: str | None = None, kinds: Sequence[str] | None = None
) -> Table:
    """Read the rows of several files of one kind, one after the other.

    Args:
        paths: At least one file.
        encoding: Of files of text; UTF-8 by default.
        kinds: The suffix of each that says what it is; its own by default.

    Returns:
        Their rows.

    Raises:
        GradfixError: If one can't be read, or they don't go together.
    """
    kinds = [kind_of(path) for path in paths] if kinds is None else kinds
    if len(set(kinds)) > 1:
        raise GradfixError(
            f"{paths[0].parent}: holds files of several kinds ({', '.join(sorted(set(kinds)))}); name one of them"
        )
    tables = [read_file(path, encoding, kind) for path, kind in zip(paths, kinds, strict=True)]
    if len(tables) == 1:
        return tables[0]
    names = tables[0].class_names
    if any(table.class_names != names for table in tables):
        raise GradfixError(f"{paths[0].parent}: its files declare different classes; name one of them")
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    records = [row for table in tables for row in table.records]
    if any(table.lines is None for table in tables):
        return Table(records, columns, names, tables[0].typed)
    lines = [line for table in tables for line in table.lines or ()]
    files = [str(path) for path, table in zip(paths, tables, strict=True) for _ in table.records]
    return Table(records, columns, names, tables[0].typed, lines, files)


def kind_of(path: Path) -> str:
    """Tell what kind of file a name says it is.

    Args:
        path: The file.

    Returns:
        Its suffix in lower case, one of `FILE_KINDS` where it is known; that of what a ``.gz`` file of text holds.
    """
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    return inner if suffix == ".gz" and inner in _TEXT_KINDS else suffix


def read_file(path: Path, encoding: str | None = None, kind: str | None = None) -> Table:
    """Read one file.

    Args:
        path: The file.
        encoding: Of a file of text; UTF-8 by default.
        kind: What it is, one of `FILE_KINDS`; by default its suffix says it.

    Returns:
        Its rows.

    Raises:
        GradfixError: If the suffix is unknown or the content is not what it says; names the line.
    """
    require_regular(path)
    kind = kind_of(path) if kind is None else kind
    if kind not in FILE_KINDS:
        raise GradfixError(f"{path}: unknown kind of file {path.suffix!r}; expected {listed(FILE_KINDS)}")
    if kind == ".parquet":
        return _parquet(path)
    text = read_text(path, encoding)
    if kind in {".csv", ".tsv"}:
        return _csv(path, text, "," if kind == ".csv" else "\t")
    return _json(path, text) if kind == ".json" else _json_lines(path, text)


def read_text(path: Path, encoding: str | None = None) -> str:
    """Read a file of text, or say where it is in another encoding.

    Args:
        path: The file.
        encoding: How it is written; UTF-8 by default.

    Returns:
        The text, without a byte order mark.

    Raises:
        GradfixError: If it can't be read, or not in this encoding; names the byte.
    """
    try:
        content = _uncompressed(path) if path.suffix.lower() == ".gz" else read_bytes(path, MAX_ROWS_BYTES)
        "".encode(encoding or "utf-8")  # codecs also knows what is no encoding of text, such as hex
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise GradfixError(f"{path}: is no whole gzip file ({error}); compress it again") from error
    except OSError as error:
        raise GradfixError(f"{path}: cannot be read ({error.strerror or error})") from error
    except LookupError as error:
        raise GradfixError(f"{option('encoding')} {encoding}: no encoding of that name is known") from error
    name = codecs.lookup(encoding or "utf-8").name
    marked = next((known for mark, known in _MARKS if content.startswith(mark)), None)
    # "utf-16" reads the mark of either order, "utf-16-le" would read it as a character.
    if marked is not None and not name.startswith(marked):
        remedy = (
            f"leave out {option('encoding')}" if marked == "utf-8" else f"give {option('encoding')} {marked}"
        )
        raise GradfixError(
            f"{path}: byte 0: begins with the byte order mark of {marked.upper()}, so it is not {name}; {remedy}"
        )
    try:
        text = content.decode(name)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        remedy = "another " if encoding else ""
        raise GradfixError(
            f"{path}: line {line}, byte {error.start} (0x{content[error.start]:02x}): is not {name}; say how the "
            f"file is written with {remedy}{option('encoding')}, such as latin-1, cp1252 or utf-16"
        ) from error
    zero = text.find("\0")
    if zero >= 0:
        line = text.count("\n", 0, zero) + 1
        raise GradfixError(
            f"{path}: line {line}, character {zero}: is zero, which no text holds; if the file is UTF-16, give "
            f"{option('encoding')} utf-16-le or utf-16-be"
        )
    return text.removeprefix("\ufeff")


def _uncompressed(path: Path) -> bytes:
    with gzip.open(path) as file:
        content = file.read(MAX_ROWS_BYTES + 1)
    if len(content) > MAX_ROWS_BYTES:
        raise GradfixError(
            f"{path}: holds more than {MAX_ROWS_BYTES / 1e9:g} GB; uncompress it, or give a .parquet file"
        )
    return content


def _csv(path: Path, text: str, delimiter: str) -> Table:
    """Cells as they are written; a blank line is none."""
    try:
        with _cells_of_any_length():
            reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
            numbered, begins = [], 1
            for cells in reader:
                if cells:
                    numbered.append((begins, cells))
                begins = reader.line_num + 1  # a cell may hold several lines
    except csv.Error as error:
        raise GradfixError(
            f"{path}: line {reader.line_num}: {error}; quote its cells as in RFC 4180"
        ) from error
    if not numbered:
        raise GradfixError(f"{path}: holds no rows")
    (_, columns), *body = numbered
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise GradfixError(
            f"{path}: line 1: several columns are called {listed(map(repr, twice))}; rename them"
        )
    for number, cells in body:
        if len(cells) != len(columns):
            raise GradfixError(
                f"{path}: line {number}: has {len(cells)} cells, but line 1 names {len(columns)} columns "
                f"({listed(map(repr, columns))})"
            )
    records = [dict(zip(columns, cells, strict=True)) for _, cells in body]
    return Table(records, columns, typed=False, lines=[number for number, _ in body])


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Lift csv's limit of 131,072 characters a cell for one reading: the limit is the whole process's."""
    with _csv_limit:
        before = csv.field_size_limit(2**31 - 1)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _json_lines(path: Path, text: str) -> Table:
    """One object a line; a line ends with a line feed alone, since json allows other separators inside texts."""
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    records = [
        _object(f"{path}: line {number}", _parsed(f"{path}: line {number}", line))
        for number, line in numbered
    ]
    return Table(records, _columns(records), lines=[number for number, _ in numbered])


def _json(path: Path, text: str) -> Table:
    """A list of objects, a single one, or one a line in spite of the suffix."""
    try:
        content = _parsed(str(path), text)
    except _SeveralValuesError:
        return _json_lines(path, text)
    items = content if isinstance(content, list) else [content]
    records = [_object(f"{path}: row {number}", item) for number, item in enumerate(items)]
    return Table(records, _columns(records))


class _SeveralValuesError(GradfixError):
    """A text of json goes on after its first value."""


def _parsed(where: str, text: str) -> Any:
    try:
        content = json.loads(text, object_pairs_hook=_without_repeated_keys)
        check_depth(content)
        if _HALF_CHARACTER.search(text):  # for json a character, for no tokenizer
            json.dumps(content, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        kind = _SeveralValuesError if error.msg == "Extra data" else GradfixError
        at = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise kind(f"{where}: is not json: {error.msg} ({at})") from error
    except UnicodeEncodeError as error:
        raise GradfixError(f"{where}: holds half of a character, an unpaired \\ud800 to \\udfff") from error
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise GradfixError(f"{where}: {reason}") from error
    return content


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(
            f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object"
        )
    return found


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        found = "null" if value is None else f"{type(value).__name__} {json.dumps(value)[:40]}"
        raise GradfixError(f"{where}: expected an object in braces, found {found}")
    return value


def _columns(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(column for record in records for column in record))


def _parquet(path: Path) -> Table:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with path.open("rb") as file:  # of a name pyarrow would make an address or a home directory
            content = ParquetFile(file).read()
        return table_of(content)
    except (OSError, ValueError, NotImplementedError, pyarrow.ArrowException) as error:
        raise GradfixError(
            f"{path}: is not a readable parquet file ({' '.join(str(error).split())})"
        ) from error
