"""What several test modules build: jobs on tiny models, vectors and votes in memory, whole commands."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner, Result

from gradfix.checkpoints import Checkpoint, TensorSpec
from gradfix.checkpoints.expressions import Expression
from gradfix.cli.command import app
from gradfix.evaluation.binding import bind
from gradfix.evaluation.target_model import TargetModel
from gradfix.tasks import get_task
from gradfix.transport import decision
from gradfix.transport.pipeline import Transported, transport
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes
from gradfix.votes.metadata import VoteRecord
from tests import tiny
from tests.triples import perturbed

N = 4  # samples of votes in memory


runner = CliRunner()


def gradfix(*arguments: object) -> Result:
    return runner.invoke(app, [str(argument) for argument in arguments])


Rows = Sequence[Mapping[str, Any]]


# peft asks a model of this release by the name that the next one drops.
PEFT_ON_TRANSFORMERS = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


@dataclass
class Job:
    """A task with its three models and data."""

    task: str
    models: dict[str, Path]
    rows: Rows
    held_out: Rows
    auto_class: str

    def run(self, output: Path, **options: Any) -> Transported:
        places = {f"{kind}": str(path) for kind, path in self.models.items()}
        options = {"method": "gradfix", **options}
        return transport(**{**places, "task": self.task, "support": self.rows, "output": output, **options})


def tuned_from(directory: Path, base: Path, auto_class: str, scale: float = 0.02) -> Path:
    """Save a copy of a model, changed as fine-tuning would, with its processors."""
    import shutil

    import transformers

    shutil.copytree(base, directory)
    model = getattr(transformers, auto_class).from_pretrained(base)
    perturbed(model, scale, seed=1).save_pretrained(directory)
    return directory


def job(task: str, root: Path) -> Job:
    capitals = [{"input": f"question {word}", "target": f"answer {word}"} for word in tiny.WORDS[:40]]
    chats = [{"prompt": f"user {word}", "completion": f"assistant {word} yes"} for word in tiny.WORDS[:40]]
    pairs = [
        {"prompt": row["prompt"], "chosen": " yes", "rejected": f" {row['completion']}"} for row in chats
    ]
    builders: dict[str, tuple[Callable[..., Path], str, Rows, Rows]] = {
        "text-classification": (
            tiny.save_tiny_bert_classifier, "AutoModelForSequenceClassification", tiny.texts(9), tiny.texts(30, seed=1)
        ),
        "text-to-text": (tiny.save_tiny_t5, "AutoModelForSeq2SeqLM", capitals[:8], capitals[8:]),
        "causal-lm": (tiny.save_tiny_gpt2, "AutoModelForCausalLM", chats[:8], chats[8:]),
        "preference-pairs": (tiny.save_tiny_gpt2, "AutoModelForCausalLM", pairs[:8], pairs[8:]),
        "image-classification": (
            tiny.save_tiny_vit, "AutoModelForImageClassification", tiny.images(9), tiny.images(30, seed=1)
        ),
        "zero-shot-image-classification": (
            tiny.save_tiny_clip, "AutoModelForZeroShotImageClassification", tiny.images(9), tiny.images(30, seed=1)
        ),
    }  # fmt: skip
    builders |= {name: (*made, data(9), data(30, 1)) for name, (*made, data) in more_tasks().items()}
    build, auto_class, rows, held_out = builders[task]
    base = build(root / "old", seed=0)
    models = {
        "source_base": base,
        "source_tuned": tuned_from(root / "mine", base, auto_class),
        "target_base": build(root / "new", seed=2),
    }
    return Job(task, models, rows, held_out, auto_class)


def more_tasks() -> dict[str, tuple[Callable[..., Path], str, Callable[..., Rows]]]:
    """Builder, Auto class and rows of the tasks beside classification and language modelling."""

    def several(n: int, seed: int = 0) -> Rows:
        rows = tiny.texts(n, seed)
        return [
            {"text": row["text"], "labels": [row["label"], *(["neutral"] if i % 4 == 1 else [])]}
            for i, row in enumerate(rows)
        ]

    def numbers(n: int, seed: int = 0) -> Rows:
        return [
            {"text": row["text"], "label": tiny.SENTIMENTS.index(row["label"]) + i % 5 / 10}
            for i, row in enumerate(tiny.texts(n, seed))
        ]

    def tagged(n: int, seed: int = 0) -> Rows:
        cities = {"city": "B-LOC", "user": "B-PER", "assistant": "I-PER"}
        words = [[*row["text"].split()[:-1], "user", "assistant", "city"] for row in tiny.texts(n, seed)]
        return [{"tokens": own, "tags": [cities.get(word, "O") for word in own]} for own in words]

    def read(n: int, seed: int = 0) -> Rows:
        rows = []
        for row in tiny.texts(n, seed):
            answer = row["text"].split()[-2]
            given = {"text": [answer], "answer_start": [row["text"].rindex(f" {answer} ") + 1]}
            rows.append({"question": "what is this ?", "context": row["text"], "answers": given})
        return rows

    def pairs(n: int, seed: int = 0) -> Rows:
        rows = tiny.texts(n, seed)
        return [{"anchor": row["text"], "positive": " ".join(row["text"].split()[1:])} for row in rows]

    sequence = "AutoModelForSequenceClassification"
    return {
        "multi-label-classification": (tiny.save_tiny_bert_multi_label, sequence, several),
        "regression": (tiny.save_tiny_bert_regression, sequence, numbers),
        "token-classification": (tiny.save_tiny_bert_tagger, "AutoModelForTokenClassification", tagged),
        "question-answering": (tiny.save_tiny_bert_reader, "AutoModelForQuestionAnswering", read),
        "sentence-embeddings": (tiny.save_tiny_sentence_bert, "AutoModel", pairs),
    }


@dataclass
class Walks:
    """Which samples shaped each candidate that was tried, and which judged it, by ids of samples."""

    seen: list[tuple[str, set[str], set[str]]]
    shaped: set[str]
    encoded: dict[int, tuple[Any, set[str]]]


def watched(monkeypatch: pytest.MonkeyPatch) -> Walks:
    """Look over the shoulder of whatever walks through candidates."""
    from gradfix.evaluation.target_model import TargetModel, _sample_ids
    from gradfix.transport import methods as ways
    from gradfix.transport import selection as methods

    walks = Walks([], set(), {})
    measure, mask, finetune = methods.cross_validate, ways.mask, ways.finetune
    encode, encoder, evaluate = TargetModel.encode, TargetModel.encoder, TargetModel.evaluate
    walking: list[str] = []

    def measuring(context: Any, way: Any, **options: Any) -> Any:
        if isinstance(way, ways.FineTune):  # each rate is a walk of its own
            walk_of = ways.FineTune.candidates

            def anew(*where: Any) -> Any:
                walks.shaped = set()
                return walk_of(*where)

            monkeypatch.setattr(ways.FineTune, "candidates", anew)

        def fresh(walk: Any, *where: Any) -> Any:
            walks.shaped = set()
            return walk(*where)

        for name in ("candidates", "places"):
            monkeypatch.setattr(way, name, partial(fresh, getattr(way, name)))
        walking.append(way.name)
        try:
            return measure(context, way, **options)
        finally:
            walking.pop()

    def masking(vector: Any, votes: Any, **options: Any) -> Any:
        walks.shaped |= set(votes.sample_ids)
        return mask(vector, votes, **options)

    def training(model: TargetModel, count: int, encode: Any, **options: Any) -> Any:
        walks.shaped |= walks.encoded[id(encode(range(count)))][1]
        return finetune(model, count, encode, **options)

    def noted(model: TargetModel, found: Any, rows: Rows) -> Any:
        walks.encoded[id(found)] = found, set(_sample_ids(model.task, rows))
        return found

    def encoding(model: TargetModel, rows: Rows, **options: Any) -> Any:
        return noted(model, encode(model, rows, **options), rows)

    def encoding_some(model: TargetModel, rows: Rows) -> Any:
        take = encoder(model, rows)
        return lambda places: noted(model, take(places), [rows[place] for place in places])

    def evaluating(model: TargetModel, rows: Any, **options: Any) -> Any:
        if walking:
            walks.seen.append((walking[-1], set(walks.shaped), walks.encoded[id(rows)][1]))
        return evaluate(model, rows, **options)

    for module in (methods, decision):
        monkeypatch.setattr(module, "cross_validate", measuring)
    monkeypatch.setattr(ways, "mask", masking)
    monkeypatch.setattr(ways, "finetune", training)
    monkeypatch.setattr(TargetModel, "encode", encoding)
    monkeypatch.setattr(TargetModel, "encoder", encoding_some)
    monkeypatch.setattr(TargetModel, "evaluate", evaluating)
    return walks


def loaded(work: Job) -> TargetModel:
    target = Checkpoint.open(work.models["target_base"])
    tau = TaskVector.between(work.models["source_base"], work.models["source_tuned"])
    task = get_task(work.task)
    bind(task, target, tau, work.rows)
    return TargetModel.load(task, target, place(tau, target))


class InMemory(Expression):
    """Tensors in a dictionary, as a source."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors
        self.specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        return self.tensors[name][rows if rows is not None else slice(None)]


def vector(**tensors: Tensor) -> TaskVector:
    return TaskVector(InMemory(**tensors))


def votes(samples: int = N, vote: str = "majority", **counts: Tensor) -> Votes:
    return Votes(counts, VoteRecord(vote, samples, tuple(map(str, range(samples)))))


def save_model(directory: Path, tokens: list[str] | None, rows: int, **tensors: torch.Tensor) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": rows}))
    if tokens is not None:
        vocabulary = {token: index for index, token in enumerate(tokens)}
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": tokens[0]}
        (directory / "tokenizer.json").write_text(
            json.dumps({"version": "1.0", "added_tokens": [], "model": model})
        )
    save_file(
        {name.replace("__", "."): tensor for name, tensor in tensors.items()}, directory / "model.safetensors"
    )
    return directory


SHIFT = "key.bias"
