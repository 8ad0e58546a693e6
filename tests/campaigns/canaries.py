"""Hostile files: each holds code that would leave a mark if it were run."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.campaigns.results import Result
from tests.campaigns.runner import runner
from tests.campaigns.world import CHAT, CHECK, LABELLED

CODE = "import pathlib; pathlib.Path({!r}).touch()"


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (CODE.format(str(self.mark)),)


Plant = Callable[[Path, Path], str]
"""Plants a hostile file in a world: given its root and the mark; gives the command that meets it."""


def _pickle(name: str, protocol: int, command: str) -> Plant:
    def plant(root: Path, mark: Path) -> str:
        for path in (root / "target").glob("model*"):
            path.unlink()
        (root / "target" / name).write_bytes(pickle.dumps({"w": _Bomb(mark)}, protocol=protocol))
        return command

    return plant


def _saved(name: str, command: str) -> Plant:
    def plant(root: Path, mark: Path) -> str:
        for path in (root / "target").glob("model*"):
            path.unlink()
        torch.save({"w": torch.ones(2), "bomb": _Bomb(mark)}, root / "target" / name)
        return command

    return plant


def _edited(path: str, change: Callable[[dict[str, Any], Path], dict[str, Any]], command: str) -> Plant:
    def plant(root: Path, mark: Path) -> str:
        file = root / path
        (file.parent / "custom.py").write_text(
            CODE.format(str(mark)) + "\nfrom transformers import *\nclass Custom: pass\n"
        )
        file.write_text(json.dumps(change(json.loads(file.read_text()), mark)))
        return command

    return plant


def _auto_map(*names: str) -> Callable[[dict[str, Any], Path], dict[str, Any]]:
    return lambda content, _: {**content, "auto_map": dict.fromkeys(names, "custom.Custom")}


def _recipe(text: str) -> Plant:
    def plant(root: Path, mark: Path) -> str:
        (root / "hostile.yaml").write_text(text.replace("CODE", CODE.format(str(mark)).replace("'", '"')))
        return "run hostile.yaml"

    return plant


def _trusting(command: str, options: str) -> Plant:
    def plant(root: Path, mark: Path) -> str:
        _edited("target/config.json", _auto_map("AutoConfig", "AutoModelForSequenceClassification"), "")(
            root, mark
        )
        content = json.loads((root / "target/config.json").read_text())
        (root / "target/config.json").write_text(json.dumps({**content, "model_type": "unheard-of"}))
        (root / "hostile.yaml").write_text(f"command: {command}\ntrust_remote_code: true\n{options}")
        return "run hostile.yaml"

    return plant


def _template(text: str) -> Plant:
    def plant(root: Path, mark: Path) -> str:
        (root / "chat-target" / "chat_template.jinja").write_text(text.replace("MARK", str(mark)))
        return f"check {CHAT} --task causal-lm --support talks.jsonl"

    return plant


def _script(root: Path, mark: Path) -> str:
    folder = root / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(CODE.format(str(mark)))
    return f"{CHECK} --task text-classification --support scripted"


def _outside(root: Path, mark: Path) -> str:
    index = {"metadata": {}, "weight_map": {"w": "../../../../../../../etc/hostname"}}
    (root / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    return "inspect sharded"


def _archive(root: Path, mark: Path) -> str:
    with zipfile.ZipFile(root / "target.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Bomb(mark)))
    return "inspect target.pt"


def _startup(root: Path, mark: Path) -> str:
    for name in ("torch.py", "json.py", "sitecustomize.py", "yaml.py", "jinja2.py"):
        (root / name).write_text(CODE.format(str(mark)))
    return f"check {CHAT} --task causal-lm --support talks.jsonl"


_ESCAPE = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    "{% for c in ().__class__.__base__.__subclasses__() %}{% if c.__name__ == 'Popen' %}"
    "{{ c(['touch', 'MARK']) }}{% endif %}{% endfor %}"
)
_VOTES = f"votes --target-base target {LABELLED} --output out"
_SUPPORT = "task: text-classification\nsupport: rows.jsonl\n"
_SOURCES = "source_base: base\nsource_tuned: tuned\ntarget_base: target\n"

PLANTS: dict[str, Plant] = {
    "a pickle as weights": _pickle("pytorch_model.bin", 2, f"{CHECK}"),
    "a pickle of protocol 4 as weights": _pickle("pytorch_model.bin", 4, f"{CHECK}"),
    "a pickle as safetensors": _pickle("model.safetensors", 4, f"{CHECK}"),
    "a pickle named .pt": _pickle("weights.pt", 2, "inspect target/weights.pt"),
    "torch.save with an object": _saved("pytorch_model.bin", _VOTES),
    "torch.save as a checkpoint": _saved("weights.ckpt", "inspect target/weights.ckpt"),
    "a zip archive with a pickle": _archive,
    "auto_map in a config": _edited("target/config.json", _auto_map("AutoConfig"), f"{CHECK} {LABELLED}"),
    "auto_map of a model": _edited(
        "target/config.json", _auto_map("AutoModelForSequenceClassification"), _VOTES
    ),
    "auto_map in a tokenizer": _edited(
        "target/tokenizer_config.json",
        lambda content, _: {
            **content,
            "tokenizer_class": "Custom",
            "auto_map": {"AutoTokenizer": ["custom.Custom", "custom.Custom"]},
        },
        _VOTES,
    ),
    "auto_map of an unknown kind of model": _edited(
        "target/config.json",
        lambda content, mark: {**_auto_map("AutoConfig")(content, mark), "model_type": "unheard-of"},
        _VOTES,
    ),
    "a generation file with custom code": _edited(
        "chat-target/generation_config.json",
        lambda content, _: {**content, "custom_generate": "custom.py"},
        f"check {CHAT} --task causal-lm --support talks.jsonl",
    ),
    "an adapter that names modules": _edited(
        "adapter/adapter_config.json",
        lambda content, _: {
            **content,
            "auto_mapping": {"base_model_class": "Custom", "parent_library": "custom"},
        },
        "inspect adapter",
    ),
    "an architecture by its path": _edited(
        "target/config.json", lambda content, _: {**content, "architectures": ["custom.Custom"]}, f"{CHECK}"
    ),
    "a recipe with a tag of Python": _recipe("!!python/object/apply:builtins.exec [CODE]"),
    "a recipe with an option by a tag": _recipe(
        "command: diff\nsource_base: base\nsource_tuned: tuned\noutput: !!python/object/apply:builtins.exec ['CODE']"
    ),
    "a recipe that trusts, votes": _trusting("votes", f"target_base: target\n{_SUPPORT}output: out\n"),
    "a recipe that trusts, transport": _trusting("transport", f"{_SOURCES}{_SUPPORT}output: out\n"),
    "a recipe that trusts, check": _trusting("check", f"{_SOURCES}{_SUPPORT}"),
    "a recipe that trusts, evaluate": _trusting(
        "evaluate", "model: target\ntask: text-classification\ndata: rows.jsonl\n"
    ),
    "a chat template that climbs out": _template(_ESCAPE),
    "a chat template that includes": _template(
        "{% include 'MARK' %}{% import 'os' as os %}{{ os.system('touch MARK') }}"
    ),
    "a folder of data with a script": _script,
    "an index that points outside": _outside,
    "modules in the working directory": _startup,
}


def canaries(world: Path, seed: int, count: int) -> Result:
    """Let commands meet hostile files.

    Args:
        world: A world, copied for each.
        seed: Without effect: the cases are the same each time.
        count: At most so many.

    Returns:
        Whose code ran, and which ended otherwise than in plain words.
    """
    result = Result("hostile canaries")
    for name, plant in list(PLANTS.items())[:count]:
        root = Path(shutil.copytree(world, world.parent / "hostile"))
        mark = root.parent / "ran"
        try:
            outcome = runner().run(*plant(root, mark).split(), cwd=root)
            result.add(name, "its code ran" if mark.exists() else outcome.fault, outcome)
        finally:
            shutil.rmtree(root)
            if mark.exists():
                os.unlink(mark)
    return result
