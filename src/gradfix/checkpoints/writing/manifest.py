"""What a checkpoint is made of and the hash of every tensor in it, kept beside the weights."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, cast

from gradfix.checkpoints.files import replace_file
from gradfix.checkpoints.writing.layout import FileLayout
from gradfix.errors import GradfixError

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

MANIFEST_FILE = "gradfix-manifest.json"
RANK_MANIFESTS = "gradfix-manifest.rank*.json"
"""In an unfinished output: what each other rank has written."""
_VERSION = 1


@dataclass
class Manifest:
    """The content of ``gradfix-manifest.json``: the same run gives the same bytes, resumed or not.

    Attributes:
        identity: What the output is made of: hashes of the inputs, alpha and so on.
        layout: Shard size, metadata and a hash of all headers; a partial output continues with the same only.
        shards: File to tensor to SHA-256 of its data, for each shard the disk has.
        facts: Tensor to what the caller recorded about it.
        files: The other files, path inside the directory to SHA-256.
        complete: Whether everything is there; False in the directory of an unfinished run.
    """

    identity: dict[str, JSON]
    layout: dict[str, JSON]
    shards: dict[str, dict[str, str]] = field(default_factory=dict)
    facts: dict[str, JSON] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    def content(self) -> bytes:
        """Serialise with sorted keys.

        Returns:
            JSON text.
        """
        fields = {
            "format": "gradfix-manifest",
            "version": _VERSION,
            "complete": self.complete,
            "identity": self.identity,
            "layout": self.layout,
            "shards": self.shards,
            "facts": self.facts,
            "files": self.files,
        }
        return (
            json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        ).encode()

    def save(self, directory: Path, rank: int = 0) -> None:
        """Replace the manifest of a directory and wait until the disk has it.

        Args:
            directory: Where the shards are.
            rank: Whose: those beside the first one keep their own, until the output is whole.
        """
        name = MANIFEST_FILE if rank == 0 else RANK_MANIFESTS.replace("*", str(rank))
        replace_file(directory / name, self.content())

    def difference(self, other: "Manifest") -> str | None:
        """Find out why an unfinished output can't be continued as this one.

        Args:
            other: Manifest of the unfinished output.

        Returns:
            The first key that differs, with both values; None when both are made of the same.
        """
        for here, there in ((self.identity, other.identity), (self.layout, other.layout)):
            for key in {**here, **there}:
                if here.get(key) != there.get(key) or (key in here) != (key in there):
                    return f"{key} is {_shown(here, key)} now and was {_shown(there, key)}"
        return None


def _shown(values: dict[str, JSON], key: str) -> str:
    text = json.dumps(values[key], ensure_ascii=False, sort_keys=True) if key in values else "absent"
    return text if len(text) <= 80 else text[:77] + "..."


def new_manifest(
    identity: Mapping[str, JSON], shard_size: int, metadata: Mapping[str, str], shards: Iterable[FileLayout]
) -> Manifest:
    """Describe an output that has no data yet.

    Args:
        identity: What it is made of; plain JSON values.
        shard_size: Most bytes of data in one file.
        metadata: Free text in the headers.
        shards: The files to be.

    Returns:
        A manifest without shards.
    """
    headers = hashlib.sha256()
    for shard in shards:
        headers.update(shard.file.encode() + b"\0" + shard.header)
    # Through JSON and back, so that it compares equal to what is read from a file (tuples become lists).
    plain = cast(dict[str, JSON], json.loads(json.dumps(dict(identity), allow_nan=False)))
    layout: dict[str, JSON] = {
        "shard_size": shard_size,
        "metadata": dict(metadata),
        "headers": headers.hexdigest(),
    }
    return Manifest(plain, layout)


def read_manifest(directory: Path) -> Manifest | None:
    """Read the manifest of a finished or unfinished output.

    Args:
        directory: A directory that `CheckpointWriter` wrote or was writing, on one rank or several.

    Returns:
        The manifest, with what all ranks wrote; None where there is none.

    Raises:
        GradfixError: It can't be read or isn't one that this version understands.
    """
    whole = None
    for path in (directory / MANIFEST_FILE, *sorted(directory.glob(RANK_MANIFESTS))):
        found = _read(path)
        if whole is None:
            whole = found
        elif found is not None and whole.difference(found) is None:
            whole.shards, whole.facts = {**found.shards, **whole.shards}, {**found.facts, **whole.facts}
    return whole


def _read(path: Path) -> Manifest | None:
    if not os.path.lexists(path):
        return None
    if path.is_symlink() or not path.is_file():
        raise GradfixError(f"{path}: not a regular file; write the output again")
    try:
        return _parse(path.read_bytes())
    except (OSError, ValueError, KeyError) as error:
        raise GradfixError(f"{path}: unreadable manifest ({error}); write the output again") from error


def _parse(content: bytes) -> Manifest:
    """Check the structure of a manifest; `ValueError` or `KeyError` says what is wrong."""
    fields = json.loads(content)
    if not isinstance(fields, dict) or fields.get("format") != "gradfix-manifest":
        raise ValueError("not a gradfix manifest")
    if fields["version"] != _VERSION:
        raise ValueError(f"version {fields['version']}, this gradfix reads {_VERSION}")
    sections = {key: fields[key] for key in ("identity", "layout", "shards", "facts", "files")}
    if not all(isinstance(section, dict) for section in sections.values()):
        raise ValueError("a section is not an object")
    if not all(isinstance(hashes, dict) for hashes in sections["shards"].values()):
        raise ValueError("a shard's hashes are not an object")
    return Manifest(**sections, complete=bool(fields["complete"]))
