"""Files are read as they are written: names, types, encodings, lines."""

import csv
import gzip
import io
import json
from pathlib import Path

import datasets
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradfix.errors import GradfixError, options_as_on
from gradfix.tasks.data import load_rows, row_hash

CELLS = [
    "01", "1.0", "1e5", "0x1", "1_000", "true", "False", "NA", "N/A", "nan", "None", "null", "NULL", "-inf", "",
    " padded ", "2020-01-01", "2020-01-01T00:00:00Z", "12:30", "1,5", 'say "no"', "two\nlines", "two\r\nlines",
    "a\u2028b", "a\x85b", "a\x0bb", "#", "'", "=1+1", "9" * 40, "naïve 🙂",
]  # fmt: skip
ODD_NAMES = [
    "run[12]", "a*b", "what?", "{a,b}", "!x", "ünï", "a b", "100%", "%41", "x::y", "a#b", "~", "train", "test.d", "-x",
    "file:x", "$HOME", "hf:",
]  # fmt: skip


def write_csv(path: Path, header: list[str], rows: list[list[str]], delimiter: str = ",") -> Path:
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=delimiter).writerows([header, *rows])
    path.write_bytes(written.getvalue().encode())
    return path


def message_of(location: object, **options: object) -> str:
    with pytest.raises(GradfixError) as caught:
        load_rows(location, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t"), ("CSV", ",")])
def test_cells_are_the_text_that_is_written(tmp_path: Path, suffix: str, delimiter: str) -> None:
    path = write_csv(tmp_path / f"d.{suffix}", ["text", "label"], [[cell, cell] for cell in CELLS], delimiter)
    rows = load_rows(path)
    assert [dict(row) for row in rows] == [{"text": cell, "label": cell} for cell in CELLS]
    assert rows[3].origin == f"line 5 of {path}"
    # A cell of two lines moves what follows down by one: an editor shows the row there.
    written = path.read_bytes().decode().split("\n")
    last = next(row for row in rows if row["text"].startswith("na"))
    assert written[int(last.origin.split()[1]) - 1].startswith(last["text"])


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.csv.gz", "d.tsv.gz", "d.json.gz", "D.JSONL.GZ"])
def test_a_compressed_file_is_read_like_what_it_holds(tmp_path: Path, name: str) -> None:
    rows = [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]
    plain = tmp_path / name[: -len(".gz")].lower()
    if plain.suffix in {".csv", ".tsv"}:
        write_csv(
            plain,
            ["text", "label"],
            [list(row.values()) for row in rows],
            {".csv": ",", ".tsv": "\t"}[plain.suffix],
        )
    else:
        plain.write_text(json.dumps(rows) if plain.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    path = tmp_path / "packed" / name
    path.parent.mkdir()
    path.write_bytes(gzip.compress(plain.read_bytes()))
    assert [dict(row) for row in load_rows(path)] == [dict(row) for row in load_rows(plain)] == rows
    assert [dict(row) for row in load_rows(path.parent)] == rows
    path.write_bytes(path.read_bytes()[:-9])
    assert "is no whole gzip file" in message_of(path)


def test_a_small_file_that_unpacks_to_more_than_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradfix.tasks.data_files.MAX_ROWS_BYTES", 10_000)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b" " * 1_000_000))
    assert "holds more than" in message_of(tmp_path / "d.jsonl.gz")


def test_a_folders_rows_name_their_own_file_and_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('\n{"text": "x"}\n{"text": "y"}\n')
    assert [row.origin for row in load_rows(tmp_path)] == [
        f"line {line} of {tmp_path / name}" for name in ("a.jsonl", "b.jsonl") for line in (2, 3)
    ]


@given(
    st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=2))
)
def test_whatever_is_written_as_csv_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, cells: list[list[str]]
) -> None:
    path = write_csv(tmp_path_factory.mktemp("csv") / "d.csv", ["a", "b"], cells)
    if not cells:
        assert "holds no rows" in message_of(path)
        return
    assert [list(row.values()) for row in load_rows(path)] == cells


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.slow
@given(
    st.lists(
        st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), VALUES, min_size=1), min_size=1
    )
)
def test_whatever_is_written_as_json_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict]
) -> None:
    folder = tmp_path_factory.mktemp("json")
    (folder / "d.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8"
    )
    (folder / "d.json").write_text(json.dumps(rows, indent=1), "utf-8")
    (folder / "lines.json").write_text("\n".join(map(json.dumps, [*rows, rows[0]])) + "\n", "utf-8")
    for name in ("d.jsonl", "d.json"):
        assert list(map(dict, load_rows(folder / name))) == rows
    assert list(map(dict, load_rows(folder / "lines.json"))) == [*rows, rows[0]]


def test_json_keeps_its_types_and_its_dates(tmp_path: Path) -> None:
    rows = [
        {"label": 1, "when": "2020-01-01T00:00:00"},
        {"label": "1", "when": None, "more": {"a": 1}},
        {"label": 1.5, "when": "12:30", "more": {"b": [True]}},
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n \n")
    read = load_rows(path)
    assert list(map(dict, read)) == rows
    assert read.column_names == ["label", "when", "more"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_taken_as_it_is(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside each file lies what its name would match as a pattern."""
    monkeypatch.chdir(tmp_path)
    for folder, word in (
        (name, "meant"),
        ("run1", "other"),
        ("aXb", "other"),
        ("whatX", "other"),
        ("a", "other"),
    ):
        row = {"text": word, "label": "x"}
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        for stem in (name, "run2", "aYb"):
            said = row if stem == name or folder != name else {"text": "other", "label": "x"}
            (place / f"{stem}.jsonl").write_text(json.dumps(said) + "\n")
            (place / f"{stem}.csv").write_text(f"text,label\n{said['text']},x\n")
            datasets.Dataset.from_list([said]).to_parquet(str(tmp_path / "made.parquet"))
            (tmp_path / "made.parquet").rename(place / f"{stem}.parquet")
        datasets.Dataset.from_list([row]).save_to_disk(str(tmp_path / "made"))
        (tmp_path / "made").rename(tmp_path / f"saved-{folder}")
        only = tmp_path / f"dir-{folder}"
        only.mkdir()
        (only / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    for kind in ("jsonl", "csv", "parquet"):
        assert load_rows(Path(name) / f"{name}.{kind}")[0]["text"] == "meant"
        assert load_rows(tmp_path / name / f"{name}.{kind}")[0]["text"] == "meant"
    assert load_rows(f"saved-{name}")[0]["text"] == "meant"
    assert load_rows(f"dir-{name}", **({"split": "train"} if name == "train" else {}))[0]["text"] == "meant"


def test_a_pattern_names_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    for name in ("*.jsonl", "d.json[l]", "?.jsonl", str(tmp_path / "*")):
        assert message_of(name) == f"{name}: no such file or directory"


ACCENTED = '{"text": "a"}\n{"text": "café"}\n'


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
@pytest.mark.parametrize(
    "encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "shift_jis"]
)
def test_another_encoding_is_said_in_one_line_and_can_be_given(
    tmp_path: Path, kind: str, encoding: str
) -> None:
    word = "カフェ" if encoding == "shift_jis" else "café"
    text = {
        "jsonl": f'{{"text": "a"}}\n{{"text": "{word}"}}\n',
        "json": f'[{{"text": "a"}},\n{{"text": "{word}"}}]',
    }
    path = tmp_path / f"d.{kind}"
    path.write_bytes(text.get(kind, f"text\na\n{word}\n").encode(encoding))
    with options_as_on("command line"):
        message = message_of(path)
    assert message.startswith(f"{path}: ")
    assert "--encoding" in message
    if encoding in {"latin-1", "cp1252", "shift_jis"}:
        place = path.read_bytes().index(word.encode(encoding)[-1 if encoding != "shift_jis" else 0])
        line = 3 if kind in {"csv", "tsv"} else 2
        assert message.startswith(f"{path}: line {line}, byte {place} (0x")
    assert [row["text"] for row in load_rows(path, encoding=encoding)] == ["a", word]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_mark_and_accents_is_no_utf_8_either(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes("text,label\na,b\n".encode(encoding))
    place = 1 if encoding == "utf-16-le" else 0
    assert f"line 1, character {place}: is zero, which no text holds" in message_of(path)
    assert dict(load_rows(path, encoding=encoding)[0]) == {"text": "a", "label": "b"}


def test_the_mark_of_utf_8_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes("text,label\né,x\n".encode("utf-8-sig"))
    (tmp_path / "d.jsonl").write_bytes('{"text": "é", "label": "x"}\n'.encode("utf-8-sig"))
    for name in ("d.csv", "d.jsonl"):
        for encoding in (None, "utf-8", "UTF8", "utf-8-sig"):
            assert dict(load_rows(tmp_path / name, encoding=encoding)[0]) == {"text": "é", "label": "x"}
    wrong = message_of(tmp_path / "d.csv", encoding="latin-1")
    assert "begins with the byte order mark of UTF-8, so it is not iso8859-1; leave out encoding" in wrong


def test_a_wrong_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes("text\ncafé\n".encode("latin-1"))
    assert "line 2, byte 8 (0xe9): is not utf-8" in message_of(path)
    assert "another encoding" in message_of(path, encoding="ascii")
    for name in ("klingon", "hex"):
        assert f"encoding {name}: no encoding of that name is known" in message_of(path, encoding=name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,b,c\n", "line 2: has 3 cells, but line 1 names 2 columns ('text', 'label')"),
        ("text,label\na,b\n\nc\n", "line 4: has 1 cells, but line 1 names 2 columns"),
        ('text,label\n"a\nb",c\nd\n', "line 4: has 1 cells"),
        ("text,text\na,b\n", "line 1: several columns are called 'text'; rename them"),
        ('text,label\na,"b\nc,d\n', "unexpected end of data; quote its cells as in RFC 4180"),
        ('text,label\n"a" b,c\n', "line 2: ',' expected after '\"'"),
        ("", "holds no rows"),
        ("text,label\n", "holds no rows"),
    ],
)
def test_a_csv_file_whose_lines_do_not_fit_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(content)
    assert message in message_of(path)


def test_a_long_cell_is_read_and_csv_left_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = write_csv(tmp_path / "d.csv", ["text"], [["x" * 200_000]])
    assert len(load_rows(path)[0]["text"]) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\nnull\n', "line 2: expected an object in braces, found null"),
        ('{"a": 1}\n[1]\n', "line 2: expected an object in braces, found list [1]"),
        ('{"a": 1}\n\n{"a": \n', "line 3: is not json: Expecting value"),
        ('{"a": 1} {"a": 2}\n', "line 1: is not json: Extra data"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}\n', "line 1: the key 'c' stands twice in one object"),
        ('{"a": "\\ud83d"}\n', "line 1: holds half of a character"),
        ('{"a": ' + "[" * 200_000 + "\n", "line 1: is nested too deeply"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(content)
    assert message in message_of(path)


def test_a_list_with_null_in_it_is_refused_and_a_pair_of_halves_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text('[{"a": 1}, null]')
    assert "row 1: expected an object in braces, found null" in message_of(path)
    path.write_text("3")
    assert "row 0: expected an object in braces, found int 3" in message_of(path)
    path.write_text('{\n"text": "\\ud83d\\ude42"\n}')
    assert load_rows(path)[0]["text"] == "🙂"


def test_parquet_keeps_classes_images_and_categories(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ["a", "b", "c"], "label": pandas.Categorical(["01", "NA", "01"])})
    frame.to_parquet(tmp_path / "frame.parquet")
    assert [row["label"] for row in load_rows(tmp_path / "frame.parquet")] == ["01", "NA", "01"]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    data = {"image": [{"bytes": b"not decoded", "path": None}], "label": [1]}
    datasets.Dataset.from_dict(data, features=features).to_parquet(str(tmp_path / "images.parquet"))
    rows = load_rows(tmp_path / "images.parquet")
    assert dict(rows[0]) == {"image": {"bytes": b"not decoded", "path": None}, "label": "yes"}
    assert rows.class_names == {"label": ["no", "yes"]}
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing else")
    assert "broken.parquet: is not a readable parquet file" in message_of(tmp_path / "broken.parquet")


def test_the_hash_of_a_row_is_that_of_what_is_written(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "d.csv", ["text", "label"], [["a", "01"]])
    assert row_hash(load_rows(path)[0]) == row_hash({"text": "a", "label": "01"})
