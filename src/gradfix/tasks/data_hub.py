"""Data sets of the Hub, and folders that declare themselves in a README as those do."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from gradfix.errors import GradfixError, network_errors
from gradfix.tasks.data_files import read_files
from gradfix.tasks.data_library import explained, quiet, readers_of
from gradfix.tasks.data_table import Readers

_PATTERN = frozenset("*?[]{}!:")
_PLACES = frozenset({"name", "version", "data_dir", "data_files", "description", "sep", "delimiter"})


def read_declared(location: str | Path, configuration: str | None, *, encoding: str | None) -> Readers:
    """Read a data set of the Hub, or a folder that declares itself as one.

    Files of csv or json of which neither types nor a dialect are declared are read as those on disk are, since
    ``datasets`` would guess.

    Args:
        location: The id; or the folder, which leaves no cache behind.
        configuration: Where it has several.
        encoding: Of files of text; UTF-8 by default.

    Returns:
        What gives the rows of each split.

    Raises:
        GradfixError: If it can't be read.
    """
    import datasets

    if isinstance(location, Path) and not _PATTERN.isdisjoint(str(location.absolute())):
        raise GradfixError(
            f"{location}: its README declares data files, and of a path with any of {' '.join(sorted(_PATTERN))} "
            "datasets makes a pattern; rename it, or name a file in it"
        )
    place = str(location.absolute()) if isinstance(location, Path) else location
    with (
        quiet(),
        explained(location),
        _reached(location),
        tempfile.TemporaryDirectory(prefix="gradfix-data-") as scratch,
    ):
        kept = {"cache_dir": scratch} if isinstance(location, Path) else {}
        builder = datasets.load_dataset_builder(place, configuration, **kept)
        plain = _plain_files(builder)
        if plain is None:
            told = {"keep_in_memory": True, **kept} if kept else {}
            return readers_of(datasets.load_dataset(place, configuration, **told))
        manager = datasets.DownloadManager(
            dataset_name=builder.dataset_name, base_path=builder.base_path, record_checksums=False
        )
        return {
            split: partial(
                read_files,
                [Path(path) for path in manager.download(list(kinds))],
                encoding,
                [*kinds.values()],
            )
            for split, kinds in plain.items()
        }


@contextmanager
def _reached(location: str | Path) -> Iterator[None]:
    """Ask the Hub once whether it is there: ``datasets`` would try for half a minute before it looks into its cache."""
    if isinstance(location, Path):
        yield
        return
    import huggingface_hub
    from huggingface_hub import constants

    before, lost = constants.HF_HUB_OFFLINE, None
    try:
        huggingface_hub.HfApi().dataset_info(location, timeout=10)
    except huggingface_hub.errors.HfHubHTTPError:
        pass  # not there, or not for everybody: what follows says so
    except network_errors() as error:
        constants.HF_HUB_OFFLINE, lost = True, error
    try:
        yield
    except ConnectionError as error:
        if lost is None:
            raise
        raise GradfixError(
            f"{location}: is no local path and not in the cache of data sets, and the Hub can't be reached "
            f"({' '.join(str(lost).split())[:200]}): connect, or give a file or folder"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _plain_files(builder: Any) -> dict[str, dict[str, str]] | None:
    """By split, files of csv or json of which nothing is declared, with their kind; None for anything else."""
    config = builder.config
    if builder.info.features is not None or not config.data_files:
        return None
    if any(getattr(config, each.name) != each.default for each in fields(config) if each.name not in _PLACES):
        return None
    found = {
        str(split): {str(name): _kind(config, str(name)) for name in names}
        for split, names in config.data_files.items()
    }
    return found if all(all(kinds.values()) for kinds in found.values()) else None


def _kind(config: Any, name: str) -> str:
    """The suffix that says how a file is to be read; empty where only ``datasets`` can."""
    suffix = PurePosixPath(name).suffix.lower()
    if type(config).__name__ == "CsvConfig" and suffix in {".csv", ".tsv"}:
        return {",": ".csv", "\t": ".tsv"}.get(config.sep, "")
    if type(config).__name__ == "JsonConfig" and suffix in {".json", ".jsonl", ".ndjson"}:
        return ".json" if suffix == ".json" else ".jsonl"
    return ""
