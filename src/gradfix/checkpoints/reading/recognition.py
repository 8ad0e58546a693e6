"""What commonly lies where weights should, recognised by its first bytes."""

_PAGE = "is an HTML page, not weights: download the file itself, logged in if the site asks for it"
_NO_WEIGHTS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the weights: run `git lfs pull` where it was cloned",
    ),
    (b"<!doctype html", _PAGE),
    (b"<html", _PAGE),
    (b"gguf", "is a GGUF file: use the safetensors release of the model"),
)
_PYTORCH = (b"PK\x03\x04", b"\x80\x02")
"""A zip archive, which torch.save writes since 1.6, and a pickle of protocol 2, which it wrote before."""


def other_kind(start: bytes) -> str | None:
    """Recognise a file that holds no weights gradfix could read.

    Args:
        start: The first bytes of the file; 64 are enough.

    Returns:
        What it is and what to do, as the end of a sentence whose subject is the file; None if unrecognised.
    """
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((meaning for magic, meaning in _NO_WEIGHTS if text.startswith(magic)), None)


def is_pytorch(start: bytes) -> bool:
    """Recognise what ``torch.save`` writes.

    Args:
        start: The first bytes of the file.

    Returns:
        Whether they are those of a zip archive or a pickle. The length of a safetensors header can begin alike (640
        bytes do), but is followed by a brace.
    """
    return start.startswith(_PYTORCH) and start[8:9] != b"{"
