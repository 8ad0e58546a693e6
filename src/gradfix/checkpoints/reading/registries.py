"""Names under which open_clip and timm know pre-trained weights: ``open_clip:ViT-B-16/laion2b_s34b_b88k``."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from gradfix.errors import GradfixError

EXTRA = "install the extra: pip install 'gradfix[vision]'"


def hub_id(location: str) -> str | None:
    """Look a name up in its library's registry.

    Args:
        location: ``open_clip:MODEL/TAG``, ``timm:MODEL``, or anything else.

    Returns:
        The id of the repository on the Hub that holds the weights; None for a location without such a prefix.

    Raises:
        GradfixError: If the library is not installed, has no such name, or fetches it from elsewhere.
    """
    library, found, name = location.partition(":")
    if not found or library not in REGISTRIES:
        return None
    module, look_up, example = REGISTRIES[library]
    try:
        registry = import_module(module)
    except ImportError as error:
        raise GradfixError(
            f"{location}: needs {library}, which can't be imported ({error}); {EXTRA}"
        ) from error
    repository = look_up(registry, name)
    if repository is None:
        raise GradfixError(
            f"{location}: {library} knows no weights of that name on the Hub; expected such as {example}, or the id of "
            "a repository"
        )
    return repository


def _open_clip(registry: Any, name: str) -> str | None:
    model, _, tag = name.partition("/")
    settings: Mapping[str, Any] = registry.get_pretrained_cfg(model, tag) or {}
    return _repository(settings.get("hf_hub"))


def _timm(registry: Any, name: str) -> str | None:
    settings = registry.get_pretrained_cfg(name)
    return None if settings is None else _repository(settings.hf_hub_id)


def _repository(text: str | None) -> str | None:
    """``owner/name`` of what may go on with a file."""
    parts = (text or "").strip("/").split("/")
    return "/".join(parts[:2]) if len(parts) > 1 else None


REGISTRIES: dict[str, tuple[str, Callable[[Any, str], str | None], str]] = {
    "open_clip": ("open_clip.pretrained", _open_clip, "open_clip:ViT-B-16/laion2b_s34b_b88k"),
    "timm": ("timm.models", _timm, "timm:vit_base_patch16_224"),
}
"""By prefix: the module with the registry, how it is asked, and an example."""
