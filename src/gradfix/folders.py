"""A folder of small files that appears whole or not at all: tables, figures, reports."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from gradfix.checkpoints.atomic import publish
from gradfix.checkpoints.files import (
    explain_os_errors,
    replace_file,
    resolve_output,
    unique_sibling,
    write_file,
)
from gradfix.errors import GradfixError


def write_folder(output: Path, files: Mapping[str, str | bytes], *, overwrite: bool = False) -> None:
    """Write files into a folder.

    Args:
        output: The folder; its parent exists. A new one appears whole; in an existing one each file is replaced in
            one step, and other files stay.
        files: Contents by name.
        overwrite: Allow an existing folder.

    Raises:
        GradfixError: if the folder exists and may not be changed, or can't be written.
    """
    output = resolve_output(output)
    contents = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    if output.exists() and not overwrite:
        raise GradfixError(f"{output}: exists already; choose another output or give --overwrite")
    with explain_os_errors(output, "choose a folder you may write to"):
        if output.exists():
            for name, content in contents.items():
                replace_file(output / name, content)
            return
        partial = unique_sibling(output, "partial")
        partial.mkdir()
        try:
            for name, content in contents.items():
                write_file(partial / name, content)
            publish(partial, output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # gone by now if all went well
