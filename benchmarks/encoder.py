"""The language benchmark's training: a new release of an encoder, and fine-tunes of it."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.bert.modeling_bert import BertOnlyMLMHead

MAX_LENGTH = 32
BODY_RATE, HEAD_RATE, TUNING_RATE = 5e-5, 5e-4, 1.5e-4
RELEASE_BATCH, TUNING_BATCH, EPOCHS = 4, 16, 3
MASKED_SHARE = 0.15
WARM_UP = 0.1
MARKS = {
    "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>",
}  # fmt: skip
"""Of the tokenizer of byte pairs."""


def new_release(base: Path, texts: Sequence[str], output: Path, *, steps: int, seed: int = 0) -> None:
    """Continue an encoder's masked-language-model training on other text, and save it as its next release.

    The encoder's files hold no language-modelling head: one with tied embeddings is made, trained along at a larger
    rate, and left out of the release. As in BERT, 15 % of the tokens are predicted: 80 % of them masked, 10 % replaced,
    10 % left.

    Args:
        base: The encoder.
        texts: Sentences; they are packed, so that no token is padding.
        output: Directory to write.
        steps: Of AdamW, on 4 sequences of 32 tokens each.
        seed: Of head, order, masks and dropout.
    """
    torch.manual_seed(seed)
    model, tokenizer = AutoModel.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    _train_further(model, tokenizer, texts, steps)
    _save(model, tokenizer, output)


def other_tokenizer(
    base: Path, texts: Sequence[str], output: Path, *, steps: int, tokens: int = 8000, seed: int = 0
) -> None:
    """Make a release of an encoder with another tokenizer: cased byte pairs in the place of word pieces.

    A new token's embedding starts as the mean of those that spelt it before; then masked-language-model training goes
    on as in :func:`new_release`.

    Args:
        base: The encoder.
        texts: Sentences, for the tokenizer and for training.
        output: Directory to write.
        steps: As for :func:`new_release`.
        tokens: Of the new tokenizer, at most.
        seed: Of head, order, masks and dropout.
    """
    torch.manual_seed(seed)
    model, before = AutoModel.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    tokenizer = _byte_pairs(texts, tokens)
    old = model.get_input_embeddings().weight.detach().clone()
    roles = {getattr(tokenizer, role): getattr(before, role) for role in MARKS}
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for token, number in tokenizer.get_vocab().items():
            written = roles.get(token) or tokenizer.convert_tokens_to_string([token])
            spelt = before(written, add_special_tokens=False)["input_ids"]
            model.get_input_embeddings().weight[number] = old[spelt].mean(0) if spelt else old.mean(0)
    model.config.pad_token_id = tokenizer.pad_token_id
    _train_further(model, tokenizer, texts, steps)
    _save(model, tokenizer, output)


def _byte_pairs(texts: Sequence[str], tokens: int) -> Any:
    """Make a tokenizer as RoBERTa's: byte pairs between marks."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=list(MARKS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator(texts, trainer)
    first, last = MARKS["cls_token"], MARKS["sep_token"]
    plain.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B {last}",
        special_tokens=[(mark, plain.token_to_id(mark)) for mark in (first, last)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=512, **MARKS)


def _train_further(model: nn.Module, tokenizer: Any, texts: Sequence[str], steps: int) -> None:
    """Masked-language-model training of an encoder, with a head that is made, trained along and left."""
    model.train()
    head = BertOnlyMLMHead(model.config).train()
    head.apply(model._init_weights)
    head.predictions.decoder.weight = model.get_input_embeddings().weight
    sequences = _packed(tokenizer, texts)
    own = [parameter for name, parameter in head.named_parameters() if not name.endswith("decoder.weight")]
    groups = [
        {"params": list(model.parameters()), "lr": BODY_RATE},
        {"params": own, "lr": HEAD_RATE},
    ]

    def loss(places: Tensor) -> Tensor:
        inputs, wanted = _masked(sequences[places], tokenizer)
        chosen = wanted >= 0
        hidden = model(input_ids=inputs).last_hidden_state[chosen]
        return cross_entropy(head(hidden).float(), wanted[chosen])

    batches = _endless(len(sequences), RELEASE_BATCH)
    _train(groups, (loss(next(batches)) for _ in range(steps)), steps, "masked-LM training")


def fine_tune(base: Path, rows: Sequence[dict[str, str]], output: Path, *, seed: int = 0) -> None:
    """Fine-tune an encoder, with a new head, to classify texts.

    Args:
        base: The encoder.
        rows: ``text`` and ``label``.
        output: Directory to write.
        seed: Of head, order and dropout.
    """
    torch.manual_seed(seed)
    names = sorted({row["label"] for row in rows})
    ids = {name: number for number, name in enumerate(names)}
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, id2label=dict(enumerate(names)), label2id=ids
    ).train()
    labels = torch.tensor([ids[row["label"]] for row in rows])

    def loss(places: Tensor) -> Tensor:
        chosen = [rows[place]["text"] for place in places.tolist()]
        encoded = tokenizer(chosen, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        return cross_entropy(model(**encoded).logits.float(), labels[places])

    steps = EPOCHS * math.ceil(len(rows) / TUNING_BATCH)
    batches = _endless(len(rows), TUNING_BATCH)
    groups = [{"params": list(model.parameters()), "lr": TUNING_RATE}]
    _train(groups, (loss(next(batches)) for _ in range(steps)), steps, "fine-tuning")
    _save(model, tokenizer, output)


def _train(groups: list[dict], losses: Iterator[Tensor], steps: int, what: str) -> None:
    """AdamW with a short warm-up and a linear decay; the next loss is computed after each step."""
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(steps))
    parameters = [parameter for group in groups for parameter in group["params"]]
    started = time.perf_counter()
    recent = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        # Products in bfloat16 where the processor has them: half the time, and weights stay in float32.
        with torch.autocast(
            "cpu", torch.bfloat16, enabled=bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        ):
            found = next(losses)
        found.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        recent.append(found.item())
        if step % 50 == 0 or step == steps:
            mean = sum(recent[-50:]) / len(recent[-50:])
            print(
                f"{what}: step {step} of {steps}, loss {mean:.3f}, {time.perf_counter() - started:.0f} s",
                flush=True,
            )


def _schedule(steps: int) -> Callable[[int], float]:
    warm_up = max(1, round(WARM_UP * steps))
    return lambda step: min((step + 1) / warm_up, max(0.0, (steps - step) / (steps - warm_up)))


def _endless(count: int, size: int) -> Iterator[Tensor]:
    """Batches of positions, in a new order each time round."""
    while True:
        yield from torch.randperm(count).split(size)


def _packed(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Join sentences to sequences of 32 tokens between the tokenizer's own marks, ``[sequences, 32]``."""
    inside = MAX_LENGTH - 2
    stream = [token for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for token in ids]
    rows = torch.tensor(stream[: len(stream) // inside * inside]).view(-1, inside)
    edges = [torch.full((len(rows), 1), token) for token in (tokenizer.cls_token_id, tokenizer.sep_token_id)]
    return torch.cat([edges[0], rows, edges[1]], dim=1)


def _masked(sequences: Tensor, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Hide tokens; what is wanted is −1 where nothing is predicted."""
    chosen = torch.rand(sequences.shape) < MASKED_SHARE
    chosen[:, [0, -1]] = False
    chosen[0, 1] = True  # never nothing to predict
    kind = torch.rand(sequences.shape)
    inputs = sequences.masked_fill(chosen & (kind < 0.8), tokenizer.mask_token_id)
    replaced = chosen & (kind >= 0.9)
    inputs = torch.where(replaced, torch.randint_like(sequences, len(tokenizer)), inputs)
    return inputs, torch.where(chosen, sequences, -1)


def _save(model: nn.Module, tokenizer: Any, output: Path) -> None:
    """Write beside, then rename: a directory of that name is whole."""
    beside = output.with_name(output.name + ".part")
    model.eval().save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    beside.rename(output)
