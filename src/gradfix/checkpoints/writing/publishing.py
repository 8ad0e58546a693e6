"""Push what was written to the Hugging Face Hub, or say beforehand why that will not work."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradfix.checkpoints.reading.remote_header import in_short
from gradfix.errors import GradfixError, network_errors, option
from gradfix.ranks import ranks


@contextmanager
def pushing(
    repository: str | None, output: Path, tell: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Refuse what can't be pushed before it is made, and push it afterwards.

    Args:
        repository: Its id on the Hub; None for not pushing.
        output: The folder that will be written.
        tell: Told where it is then.

    Yields:
        Nothing.

    Raises:
        GradfixError: If there is no token that may write there, before anything is done; or if the push fails, when the
            output is on the disk.
    """
    if repository is None:
        yield
        return
    ranks().once("the token", lambda: require_writable(repository))
    yield
    ranks().once("the push", lambda: tell(f"pushed to {push(repository, output)}"))


def require_writable(repository: str) -> None:
    """Refuse a repository that can't be written to, as far as the token tells.

    Args:
        repository: ``org/name``, or ``name`` of the user's own.

    Raises:
        GradfixError: If there is no token, it is not valid, it may only read, or it is not of that organisation.
    """
    from huggingface_hub import HfApi, get_token

    what, token = f"{option('push_to_hub')} {repository}", get_token()
    if token is None:
        raise GradfixError(f"{what}: there is no token: log in with `hf auth login`, or set HF_TOKEN")
    try:
        user: dict[str, Any] = HfApi(token=token).whoami()
    except network_errors() as error:
        raise GradfixError(f"{what}: the Hub does not take the token ({in_short(error)})") from error
    if ((user.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise GradfixError(f"{what}: the token of {user['name']} may only read: make one that may write")
    owner, _, _ = repository.rpartition("/")
    owners = [user["name"], *(each["name"] for each in user.get("orgs") or ())]
    if owner and owner not in owners:
        raise GradfixError(
            f"{what}: the token is of {', '.join(owners)}; give one of these in front of the name"
        )


def push(repository: str, output: Path) -> str:
    """Push a folder, into a private repository if there is none yet.

    Args:
        repository: Its id.
        output: The folder.

    Returns:
        Its address.

    Raises:
        GradfixError: If that fails, with the command that does it again.
    """
    from huggingface_hub import HfApi, get_token

    hub = HfApi(token=get_token())
    try:
        place = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=place.repo_id, folder_path=output, commit_message="Upload a model made with gradfix"
        )
    except network_errors() as error:
        again = shlex.join(["hf", "upload", repository, str(output), ".", "--private"])
        raise GradfixError(
            f"{output} is written, but could not be pushed to {repository} ({in_short(error)}); push it with: {again}"
        ) from error
    return str(place)
