"""Pairs of small models for `regret.py`: made of what installed packages carry, each in seconds to minutes on one core.

Every pair is three model directories (or files) and labelled rows. Close releases are the old base after more
pre-training; models apart were pre-trained from another seed, on other data. What is made stays in the work directory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradfix.demo.datasets import load_task
from gradfix.demo.pair import load
from gradfix.tasks import CustomTask, ModelTask, get_task
from gradfix.tasks.data import load_rows

Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """What a transport is made of.

    Attributes:
        base: θ_A.
        tuned: θ_A^ft.
        target: θ_B.
        task: Makes the task.
        pool: Labelled rows to draw samples from.
        test: Labelled rows to judge on.
    """

    base: Path
    tuned: Path
    target: Path
    task: Callable[[], ModelTask]
    pool: Sequence[Row]
    test: Sequence[Row]


# --- texts: sentences of six topics; a topic is a choice of words, and sentences mix a second one in -----------------
TOPICS, WORDS_A_TOPIC, COMMON = 6, 14, 24
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
VOCABULARY = [*SPECIAL, *(f"w{n}" for n in range(TOPICS * WORDS_A_TOPIC + COMMON))]


def sentences(count: int, seed: int, *, mixed: float = 0.2) -> list[Row]:
    """Draw sentences with their topic; ``mixed`` of the topical words are of another topic."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(0, high, (), generator=generator))

    rows = []
    for number in range(count):
        topic, other = number % TOPICS, draw(TOPICS)
        words = []
        for _ in range(8 + draw(5)):
            if float(torch.rand((), generator=generator)) < 0.5:
                words.append(f"w{TOPICS * WORDS_A_TOPIC + draw(COMMON)}")
            else:
                mine = other if float(torch.rand((), generator=generator)) < mixed else topic
                words.append(f"w{mine * WORDS_A_TOPIC + draw(WORDS_A_TOPIC)}")
        rows.append({"text": " ".join(words), "label": f"topic {topic}"})
    return rows


def tokenizer() -> Any:
    """A tokenizer by words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    )
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", mask_token="<mask>", model_max_length=32, **names
    )


def text_config(family: str) -> Any:
    """The configuration of a family in a small size."""
    from transformers import DebertaV2Config, ModernBertConfig, RobertaConfig

    sizes: dict[str, Any] = {
        "vocab_size": len(VOCABULARY), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "max_position_embeddings": 48, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    if family == "roberta":
        return RobertaConfig(**sizes)
    if family == "deberta":
        return DebertaV2Config(**sizes, relative_attention=True, pos_att_type=["c2p", "p2c"])
    return ModernBertConfig(
        **sizes, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2, local_attention=16
    )


def text_pair(family: str, *, close: bool, seed: int = 0) -> Callable[[Path], Pair]:
    """A masked-language model, a classifier tuned from it, and its next release or one pre-trained apart."""

    def make(work: Path) -> Pair:
        from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

        words = tokenizer()
        train = sentences(1200, seed + 1)

        def pretrain(model: Any, output: Path, steps: int, seed: int) -> None:
            texts = [row["text"] for row in sentences(3000, seed)]
            generator = torch.Generator().manual_seed(seed)
            ids = words(texts, padding=True, return_tensors="pt")

            def loss(places: Tensor) -> Tensor:
                inputs, mask = ids["input_ids"][places], ids["attention_mask"][places]
                hidden = (torch.rand(inputs.shape, generator=generator) < 0.2) & (inputs >= len(SPECIAL))
                asked = inputs.masked_fill(hidden, VOCABULARY.index("<mask>"))
                logits = model(input_ids=asked, attention_mask=mask).logits
                return cross_entropy(logits[hidden], inputs[hidden])

            fit(model, loss, len(texts), steps, 1e-3, seed)
            save(model, words, output)

        def tune(base: Path, output: Path) -> None:
            names = {number: f"topic {number}" for number in range(TOPICS)}
            torch.manual_seed(seed)
            model = AutoModelForSequenceClassification.from_pretrained(
                base, id2label=names, label2id={name: number for number, name in names.items()}
            )
            ids = words([row["text"] for row in train], padding=True, return_tensors="pt")
            labels = torch.tensor([int(row["label"].split()[1]) for row in train])
            fit(
                model,
                lambda places: cross_entropy(
                    model(**{key: ids[key][places] for key in ("input_ids", "attention_mask")}).logits,
                    labels[places],
                ),
                len(train), 250, 1e-3, seed,
            )  # fmt: skip
            save(model, words, output)

        def fresh(seed: int) -> Any:
            torch.manual_seed(seed)
            return AutoModelForMaskedLM.from_config(text_config(family))

        once(work / "old", lambda place: pretrain(fresh(seed + 10), place, 600, seed + 20))
        once(work / "tuned", lambda place: tune(work / "old", place))
        if close:
            old = work / "old"
            once(
                work / "new",
                lambda place: pretrain(AutoModelForMaskedLM.from_pretrained(old), place, 150, seed + 30),
            )
        else:
            once(work / "new", lambda place: pretrain(fresh(seed + 11), place, 600, seed + 31))
        return Pair(
            work / "old", work / "tuned", work / "new", lambda: get_task("text-classification"),
            sentences(600, seed + 2), sentences(600, seed + 3),
        )  # fmt: skip

    return make


# --- images -------------------------------------------------------------------------------------------------------
def vit_pair(*, close: bool) -> Callable[[Path], Pair]:
    """A small ViT that knows letters, tuned on digits, and its next release or one trained apart."""

    def make(work: Path) -> Pair:
        from transformers import AutoModelForImageClassification, ViTConfig, ViTImageProcessorPil

        processor = ViTImageProcessorPil(size={"height": 28, "width": 28})
        letters, digits = load_task("letters"), load_task("digits")

        def train(
            model: Any, rows: Sequence[Row], names: Sequence[str], output: Path, steps: int, seed: int
        ) -> None:
            pixels = processor([row["image"].convert("RGB") for row in rows], return_tensors="pt")[
                "pixel_values"
            ]
            labels = torch.tensor([list(names).index(row["label"]) for row in rows])
            fit(
                model, lambda places: cross_entropy(model(pixels[places]).logits, labels[places]), len(rows), steps,
                1e-3, seed,
            )  # fmt: skip
            save(model, processor, output)

        def fresh(seed: int) -> Any:
            torch.manual_seed(seed)
            config = ViTConfig(
                hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=28,
                patch_size=7, num_labels=len(letters.class_names),
            )  # fmt: skip
            return AutoModelForImageClassification.from_config(config)

        def bare(model: Any, output: Path) -> None:  # a release has no head of a task
            save(model.vit, processor, output)

        def pretrain(start: Any, output: Path, steps: int, seed: int) -> None:
            rows = letters.rows("train")[seed % 2 :: 2] if not close else letters.rows("train")
            train(start, rows, letters.class_names, output.with_name(output.name + "-headed"), steps, seed)
            bare(start, output)

        def tune(output: Path) -> None:
            torch.manual_seed(5)
            names = dict(enumerate(digits.class_names))
            model = AutoModelForImageClassification.from_pretrained(
                work / "old", id2label=names, label2id={name: number for number, name in names.items()}
            )
            train(model, digits.rows("train"), digits.class_names, output, 200, 3)

        once(work / "old", lambda place: pretrain(fresh(0), place, 500, 0))
        once(work / "tuned", tune)
        if close:
            headed = next(work.glob("old*headed"))
            kind = AutoModelForImageClassification
            once(work / "new", lambda place: pretrain(kind.from_pretrained(headed), place, 100, 2))
        else:
            once(work / "new", lambda place: pretrain(fresh(1), place, 500, 1))
        mnist = load_task("mnist")
        return Pair(
            work / "old", work / "tuned", work / "new", lambda: get_task("image-classification"),
            mnist.rows("train")[:1500], mnist.rows("test")[:500],
        )  # fmt: skip

    return make


def lab_pair(source: str, target: str, name: str) -> Callable[[Path], Pair]:
    """A pair of the lab's CLIPs; a class folder where the work directory has one."""

    def make(work: Path) -> Pair:
        task = load_task(name)
        return Pair(
            load(source), load(f"{source}-{name}"), load(target),
            lambda: get_task("zero-shot-image-classification", labels=task.class_names, templates=task.templates),
            task.rows("train"), task.rows("test")[:500],
        )  # fmt: skip

    return make


def folder_pair(source: str, target: str, name: str) -> Callable[[Path], Pair]:
    """The same, of a class folder of images: its rows come sorted by class."""

    def make(work: Path) -> Pair:
        pair, folder = lab_pair(source, target, name)(work), work / "images"
        if not folder.exists():
            for number, row in enumerate(pair.pool[:600]):
                (folder / row["label"]).mkdir(parents=True, exist_ok=True)
                row["image"].save(folder / row["label"] / f"{number:04}.png")
        rows = load_rows(folder)
        return Pair(pair.base, pair.tuned, pair.target, pair.task, rows, pair.test)

    return make


# --- sounds: a fixed filterbank, convolutions and an LSTM, as voice models have ------------------------------------
SOUNDS, LENGTH, FILTERS, FRAME = 6, 1024, 32, 64


class Voice(nn.Module):
    """Filterbank (the same in every model, of a large norm), two convolutions, an LSTM, and class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv1d(1, 2 * FILTERS, FRAME, stride=FRAME // 2, bias=False)
        angles = torch.arange(FILTERS)[:, None] * torch.arange(FRAME)[None] * (2 * torch.pi / FRAME)
        self.filters.weight.data = torch.cat([angles.cos(), angles.sin()])[:, None]
        self.filters.weight.requires_grad_(False)
        self.first = nn.Conv1d(FILTERS, 48, 3, padding=1)
        self.second = nn.Conv1d(48, 32, 3, stride=2, padding=1)
        self.memory = nn.LSTM(32, 32, batch_first=True)
        self.head = nn.Linear(32, SOUNDS)

    def forward(self, sounds: Tensor) -> Tensor:
        """[samples, LENGTH] to [samples, SOUNDS]."""
        found = self.filters(sounds[:, None])
        power = (found[:, :FILTERS].square() + found[:, FILTERS:].square()).add(1e-3).log()
        hidden = self.second(self.first(power).relu()).relu()
        scores: Tensor = self.head(self.memory(hidden.transpose(1, 2))[0].mean(dim=1))
        return scores


def sounds(count: int, seed: int, *, noise: float, high: float) -> list[Row]:
    """Draw waves of six shapes in noise; ``high`` is the highest pitch."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(LENGTH) / LENGTH
    rows = []
    for number in range(count):
        kind = number % SOUNDS
        pitch, phase, more = torch.rand(3, generator=generator).tolist()
        turns = (8 + high * pitch) * time + phase
        wave = {
            0: (2 * torch.pi * turns).sin(),
            1: (2 * torch.pi * turns).sin().sign(),
            2: 2 * (turns % 1) - 1,
            3: (2 * torch.pi * turns * (1 + more * time)).sin(),
            4: (2 * torch.pi * turns).sin() * (2 * torch.pi * (2 + 6 * more) * time).sin(),
            5: (2 * torch.pi * turns).sin() + (4.5 * torch.pi * turns).sin(),
        }[kind]
        rows.append({"sound": wave + noise * torch.randn(LENGTH, generator=generator), "label": kind})
    return rows


def encode_sounds(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Waves [samples, LENGTH] and labels."""
    return {
        "sounds": torch.stack([row["sound"] for row in rows]),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


def sound_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of each sample."""
    return cross_entropy(model(batch["sounds"]), batch["labels"], reduction="none")


def sound_answers(model: nn.Module, batch: dict[str, Tensor]) -> tuple[list[int], Tensor]:
    """Predictions, and whether they are right."""
    found = model(batch["sounds"]).argmax(dim=1)
    return found.tolist(), (found == batch["labels"]).float()


def voice_pair(*, close: bool) -> Callable[[Path], Pair]:
    """A voice model that knows clean low sounds, tuned on noisy high ones, and another one."""

    def make(work: Path) -> Pair:
        def train(
            output: Path, rows: Sequence[Row], seed: int, steps: int, start: Path | None = None
        ) -> None:
            torch.manual_seed(seed)
            model, batch = Voice(), encode_sounds(rows)
            if start is not None:
                model.load_state_dict(load_file(start))
            chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
            fit(
                model,
                lambda places: sound_loss(model, {key: value[places] for key, value in batch.items()}).mean(),
                len(rows), steps, 2e-3, seed, chosen,
            )  # fmt: skip
            save_file(model.state_dict(), output)

        clean = {"noise": 0.3, "high": 40.0}
        noisy = {"noise": 0.6, "high": 70.0}
        old, tuned, new = (work / f"{name}.safetensors" for name in ("old", "tuned", "new"))
        once(old, lambda place: train(place, sounds(1500, 1, **clean), 1, 1000))
        once(tuned, lambda place: train(place, sounds(1500, 2, **noisy), 2, 600, old))
        if close:
            once(new, lambda place: train(place, sounds(1500, 3, **clean), 3, 150, old))
        else:
            once(new, lambda place: train(place, sounds(1500, 4, noise=0.2, high=30.0), 4, 1000))

        def task() -> ModelTask:
            return CustomTask(
                encode_sounds, sound_loss, sound_answers, name="sounds", build=Voice,
                class_of=lambda row: int(row["label"]),
            )  # fmt: skip

        return Pair(old, tuned, new, task, sounds(600, 5, **noisy), sounds(600, 6, **noisy))

    return make


# --- a real encoder ------------------------------------------------------------------------------------------------
def minilm_pair(work: Path) -> Pair:
    """all-MiniLM-L6-v2 and its next release, as benchmarks/language.py makes them: half an hour the first time."""
    import language

    language.prepare(work, oracle=False)
    pool, test = (language.read_rows(work / f"{name}.jsonl") for name in ("pool", "test"))
    return Pair(
        work / "old", work / "old-tuned", work / "new",
        lambda: get_task("text-classification", max_length=32), pool, test,
    )  # fmt: skip


PAIRS: dict[str, Callable[[Path], Pair]] = {
    "RoBERTa, next release": text_pair("roberta", close=True),
    "ModernBERT, next release": text_pair("modernbert", close=True, seed=100),
    "DeBERTa, next release": text_pair("deberta", close=True, seed=200),
    "RoBERTa, apart": text_pair("roberta", close=False, seed=300),
    "ModernBERT, apart": text_pair("modernbert", close=False, seed=400),
    "DeBERTa, apart": text_pair("deberta", close=False, seed=500),
    "ViT, next release": vit_pair(close=True),
    "ViT, apart": vit_pair(close=False),
    "voice, apart": voice_pair(close=False),
    "voice, next release": voice_pair(close=True),
    "CLIP digits, next release": lab_pair("B", "B-next", "digits"),
    "CLIP digits, apart": lab_pair("A", "B", "digits"),
    "CLIP mnist, apart": lab_pair("A", "B", "mnist"),
    "CLIP letters, class folder, apart": folder_pair("A", "B", "letters"),
    "MiniLM, next release": minilm_pair,
}
"""By name, what makes each pair in a folder of its own."""


def fit(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    count: int,
    steps: int,
    rate: float,
    seed: int,
    parameters: Sequence[nn.Parameter] | None = None,
) -> None:
    """Train with AdamW on batches of 32, the rate falling to 0."""
    torch.manual_seed(seed)
    model.train()
    optimizer = torch.optim.AdamW(parameters or list(model.parameters()), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(torch.randint(0, count, (32,))).backward()
        optimizer.step()
        schedule.step()
    model.eval()


def save(model: Any, processor: Any, output: Path) -> None:
    """Save a model and what turns rows into its inputs."""
    model.save_pretrained(output)
    processor.save_pretrained(output)


def once(output: Path, make: Callable[[Path], None]) -> None:
    """Make a file or folder beside, then rename it: what has its name is whole."""
    if output.exists():
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(f"{output.stem}.part{output.suffix}")
    make(beside)
    beside.rename(output)
