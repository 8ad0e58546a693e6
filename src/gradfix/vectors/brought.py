"""What a tuned model brings beside its weights: added tokens, a chat template, generation settings, modules."""

import filecmp
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, RootModel

from gradfix.checkpoints.reading.json_files import read_json_object
from gradfix.checkpoints.vocabulary import read_tokens, same_tokenizer
from gradfix.errors import GradfixError, listed
from gradfix.text_files import parse_json_value, read_text, validated

MODULES = "modules.json"
"""Where sentence-transformers lists the modules that follow the network, each in a folder of its own."""

_OF_MODULES = (MODULES, "config_sentence_transformers.json", "sentence_bert_config.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


class _Module(BaseModel):
    path: str


class _Modules(RootModel[list[_Module]]):
    pass


@dataclass
class Brought:
    """What of it the output has, and what it hasn't.

    Attributes:
        files: Contents or paths of what is carried over, by name in the output.
        remarks: What a reader should know: carried over, or left out and how to have it.
    """

    files: dict[str, bytes | Path] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def brought(tuned: Path | None, base: Path | None, target: Path | None) -> Brought:
    """Find what the tuned model changed of its base's files, and carry over what fits the target.

    Args:
        tuned: Folder of θ_A^ft; None where there is none, and then nothing is brought.
        base: Folder of θ_A; without it everything that the target lacks counts as brought.
        target: Folder of θ_B.

    Returns:
        Files for the output, and what to say.
    """
    found = Brought()
    if tuned is not None and target is not None and tuned not in (base, target):
        _tokens(found, tuned, base, target)
        _template(found, tuned, base, target)
        _generation(found, tuned, base, target)
        _modules(found, tuned, base, target)
        for name in _PROCESSORS:
            if _differs(tuned, base, name) and _differs(tuned, target, name):
                found.remarks.append(
                    f"{name}: the tuned model's differs from its base's; the output has the new base's"
                )
    return found


def _added_tokens(tuned: Path, base: Path | None, target: Path) -> tuple[list[str], list[str]]:
    """Find the tokens that were added for the fine-tune: those that the target has, and those that it lacks."""
    if base is None or same_tokenizer(tuned, target) or same_tokenizer(tuned, base):
        return [], []
    ours, before, theirs = (read_tokens(folder) for folder in (tuned, base, target))
    if before is None or theirs is None:
        return [], []
    new = [token for token in ours or () if token not in before]
    return [token for token in new if token in theirs], [token for token in new if token not in theirs]


def _tokens(found: Brought, tuned: Path, base: Path | None, target: Path) -> None:
    """Name the tokens that were added for the fine-tune."""
    known, missing = _added_tokens(tuned, base, target)
    if missing:
        found.remarks.append(
            f"the tuned model's tokenizer has {len(missing)} added tokens that the new base lacks, and neither they "
            f"nor their rows are in the output: {listed(missing)}; add them to the new base first "
            "(tokenizer.add_tokens, model.resize_token_embeddings)"
        )
    if known:
        found.remarks.append(
            f"added tokens of the tuned model that its base lacks: {listed(known)}; "
            "their rows keep the new base's values"
        )


def _template(found: Brought, tuned: Path, base: Path | None, target: Path) -> None:
    """Carry over the chat template that the tuned model learnt."""
    template = brought_template(tuned, base, target)
    theirs = _chat_template(target)
    if template is not None:
        found.files["chat_template.jinja"] = template.encode()
        found.remarks.append(
            "the chat template is the tuned model's: "
            + ("the new base has none" if theirs is None else "the new base has another one")
        )
    elif _learnt(tuned, base) not in (None, theirs):
        found.remarks.append(
            "the tuned model's chat template has tokens that the new base lacks, or is one of several, and is not in "
            "the output; copy it if it fits"
        )


def brought_template(tuned: Path | None, base: Path | None, target: Path | None) -> str | None:
    """Find the chat template that a fine-tune learnt, where it is not the target's and the target knows its tokens.

    Args:
        tuned: Folder of θ_A^ft; None where there is none.
        base: Folder of θ_A: what it had, the fine-tune did not bring.
        target: Folder of θ_B.

    Returns:
        The template that conversations are written with, in the output, too; None for the target's own.
    """
    if tuned is None or target is None or tuned in (base, target):
        return None
    ours = _learnt(tuned, base)
    if not isinstance(ours, str) or ours == _chat_template(target):
        return None
    _, missing = _added_tokens(tuned, base, target)
    return None if any(token in ours for token in missing) else ours


def _learnt(tuned: Path, base: Path | None) -> Any:
    """The tuned model's chat template; None where it has none, or that of its base."""
    ours = _chat_template(tuned)
    return None if base is not None and ours == _chat_template(base) else ours


def _chat_template(folder: Path) -> Any:
    single, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if single.is_file():
        return read_text(single)
    return read_json_object(settings).get("chat_template") if settings.is_file() else None


def _generation(found: Brought, tuned: Path, base: Path | None, target: Path) -> None:
    """Carry over each generation setting that the fine-tune changed and the target has as the base had it."""
    name = "generation_config.json"
    ours, before, theirs = (_settings(folder, name) for folder in (tuned, base, target))
    merged, kept = dict(theirs), []
    for key, value in ours.items():
        if value == before.get(key) or value == theirs.get(key) or key.startswith(("_", "transformers")):
            continue
        means_tokens = key.endswith(("token_id", "token_ids", "_tokens")) and "new_tokens" not in key
        if theirs.get(key) != before.get(key) or (means_tokens and not same_tokenizer(tuned, target)):
            kept.append(key)
        else:
            merged[key] = value
    if merged != theirs:
        found.files[name] = (json.dumps(merged, indent=2, sort_keys=True) + "\n").encode()
        changed = [key for key in merged if merged[key] != theirs.get(key)]
        found.remarks.append(f"generation settings taken from the tuned model: {listed(changed)}")
    if kept:
        found.remarks.append(
            f"generation settings of the tuned model that are not in the output: {listed(kept)}"
        )


def _settings(folder: Path | None, name: str) -> Mapping[str, Any]:
    return read_json_object(folder / name) if folder is not None and (folder / name).is_file() else {}


def _modules(found: Brought, tuned: Path, base: Path | None, target: Path) -> None:
    """Carry over modules that the target has none of; name those that were tuned, whose weights are not in τ."""
    ours, theirs = module_folders(tuned), module_folders(target)
    if ours and not (target / MODULES).is_file():
        found.files |= {name: tuned / name for name in _OF_MODULES if (tuned / name).is_file()}
        for folder in ours:
            found.files |= {str(path.relative_to(tuned)): path for path in _files(tuned / folder)}
        found.remarks.append(f"modules taken from the tuned model, the new base has none: {listed(ours)}")
        return
    for folder in ours:
        changed = [
            str(path.relative_to(tuned))
            for path in _files(tuned / folder)
            if _differs(tuned, base, str(path.relative_to(tuned)))
            and _differs(tuned, target, str(path.relative_to(tuned)))
        ]
        if changed:
            found.remarks.append(
                f"{listed(changed)}: the tuned model's differ from its base's and are not in τ; the output has the new "
                "base's" + ("" if folder in theirs else ", which has none")
            )


def module_paths(folder: Path) -> list[str]:
    """List the modules that follow a sentence encoder's network.

    Args:
        folder: Of a model.

    Returns:
        Paths inside it, as its list names them; empty for other models.

    Raises:
        GradfixError: if the list is malformed or names a folder outside.
    """
    path = folder / MODULES
    if not path.is_file():
        return []
    listing = validated(_Modules, parse_json_value(read_text(path), str(path)), str(path), "restore it")
    named = [module.path for module in listing.root if module.path]
    for name in named:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise GradfixError(f"{path}: names the module {name!r} outside its folder; don't use it")
    return named


def module_folders(folder: Path) -> list[str]:
    """List those of :func:`module_paths` that are there: some modules have nothing to store.

    Args:
        folder: Of a model.

    Returns:
        Paths inside it.
    """
    return [name for name in module_paths(folder) if (folder / name).is_dir()]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _differs(tuned: Path, other: Path | None, name: str) -> bool:
    """Whether the tuned model has a file that another model lacks, or has with other content."""
    if not (tuned / name).is_file():
        return False
    if other is None or not (other / name).is_file():
        return True
    return not filecmp.cmp(tuned / name, other / name, shallow=False)
