"""The well-formed files that campaigns break, and the commands that read each of them."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gradfix.cli.command import app
from tests.tiny import save_tiny_bert_classifier, save_tiny_gpt2, texts
from tests.triples import perturbed

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }} : {{ message.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@dataclass(frozen=True)
class Subject:
    """A file to break.

    Attributes:
        path: In the world's folder.
        kind: ``json``, ``yaml``, ``jsonl``, ``safetensors`` or ``bytes``: how it is taken apart.
        commands: Command lines that read it, in the world's folder.
    """

    path: str
    kind: str
    commands: tuple[str, ...]


MODELS = "--source-base base --source-tuned tuned --target-base target"
CHAT = "--source-base chat-base --source-tuned chat-tuned --target-base chat-target"
LABELLED = "--task text-classification --support rows.jsonl"
CHECK = f"check {MODELS}"
CHECK_DATA = f"check {MODELS} {LABELLED}"
CHECK_CHAT = f"check {CHAT} --task causal-lm --support talks.jsonl"
VOTES = f"votes --target-base target {LABELLED} --output out"
APPLY = f"apply {MODELS} --output out"
APPLY_VOTES = (
    "apply --task-vector tau.safetensors --target-base target --votes votes.safetensors --output out"
)
EVALUATE = "evaluate --model target --task text-classification --data rows.jsonl --output out"

SUBJECTS = (
    Subject("target/config.json", "json", (CHECK, CHECK_DATA, VOTES, APPLY, "inspect target")),
    Subject("tuned/config.json", "json", (CHECK, CHECK_DATA, APPLY)),
    Subject("chat-target/config.json", "json", (CHECK_CHAT,)),
    Subject("target/tokenizer.json", "json", (CHECK, CHECK_DATA, VOTES)),
    Subject("target/tokenizer_config.json", "json", (CHECK_DATA, VOTES)),
    Subject("chat-target/tokenizer_config.json", "json", (CHECK_CHAT,)),
    Subject("chat-target/chat_template.jinja", "bytes", (CHECK_CHAT,)),
    Subject("chat-target/generation_config.json", "json", (CHECK_CHAT,)),
    Subject("target/model.safetensors", "safetensors", (CHECK, APPLY, "inspect target")),
    Subject("sharded/model.safetensors.index.json", "json", ("inspect sharded",)),
    Subject("adapter/adapter_config.json", "json", ("inspect adapter", f"{CHECK} --source-tuned adapter")),
    Subject("votes.safetensors", "safetensors", (APPLY_VOTES, "inspect votes.safetensors")),
    Subject("tau.safetensors", "safetensors", (APPLY_VOTES, "inspect tau.safetensors")),
    Subject("written/gradfix.json", "json", ("report written", "inspect written")),
    Subject("written/recipe.yaml", "yaml", ("run written/recipe.yaml --output out",)),
    Subject("recipe.yaml", "yaml", ("run recipe.yaml --output out",)),
    Subject("rows.jsonl", "jsonl", (CHECK_DATA, VOTES, EVALUATE)),
    Subject("rows.csv", "bytes", (CHECK_DATA.replace("rows.jsonl", "rows.csv"),)),
    Subject("talks.jsonl", "jsonl", (CHECK_CHAT,)),
)
RECIPE = """
command: apply
source_base: base
source_tuned: tuned
target_base: target
output: out
alpha: 0.5
mask: none
shard_size: 5GB
seed: 0
"""


def build(root: Path) -> Path:
    """Write all files that a campaign starts from.

    Args:
        root: An empty folder.

    Returns:
        It.
    """
    for name, seed in (("base", 0), ("target", 2)):
        save_tiny_bert_classifier(root / name, seed)
        save_tiny_gpt2(root / f"chat-{name}", seed, CHAT_TEMPLATE)
    for prefix in ("", "chat-"):
        _tune(root / f"{prefix}base", root / f"{prefix}tuned")
    _shard(root / "base", root / "sharded")
    _adapter(root / "base", root / "adapter")
    rows = texts(12)
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "rows.csv").write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows))
    talks = [{"prompt": row["text"], "completion": row["label"]} for row in rows]
    (root / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    (root / "recipe.yaml").write_text(RECIPE)
    for command in (
        f"votes --target-base target {LABELLED} --output votes.safetensors",
        "diff --source-base base --source-tuned tuned --output tau.safetensors",
        f"transport {MODELS} {LABELLED} --test rows.jsonl --output written --alpha 1 --mask agreement",
    ):
        _run_here(command, root)
    return root


def _run_here(command: str, root: Path) -> None:
    from typer.testing import CliRunner

    with _inside(root):
        result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.stderr


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    import os

    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _tune(base: Path, tuned: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, tuned)
    module = torch.nn.Module()
    tensors = load_file(base / "model.safetensors")
    for index, value in enumerate(tensors.values()):
        module.register_parameter(str(index), torch.nn.Parameter(value))
    perturbed(module, 1e-2, seed=1)
    changed = {name: value.detach() for name, value in zip(tensors, module.parameters(), strict=True)}
    save_file(changed, tuned / "model.safetensors", metadata={"format": "pt"})


def _shard(model: Path, sharded: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(model).save_pretrained(sharded, max_shard_size="20KB")


def _adapter(base: Path, adapter: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["query", "value"], task_type="SEQ_CLS", rank_pattern={"query": 3}
    )
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), config)
    model.save_pretrained(adapter)
    path = adapter / "adapter_config.json"
    content = {**json.loads(path.read_text()), "base_model_name_or_path": "base"}
    path.write_text(json.dumps(content))
