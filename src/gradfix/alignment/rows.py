"""Which rows of two models are compared: tokens one by one, spans of the same text, places of the same image, means.

A row is what passed a point for one token (or patch) of one sample, or a weighted mean over some. Whatever is chosen,
the n-th row of one model and the n-th of the other stem from the same part of the same input.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gradfix.alignment.token_spans import spans_between, token_texts
from gradfix.errors import AlignmentError
from gradfix.tasks import ModelTask

ROWS = 4096
"""At most about this many tokens are recorded of all samples together: more change a rotation little."""

LEAST_MATCHED = 0.5
"""Share of the characters of a text that two tokenizers must agree on."""

CROSS_ATTENTION = {"EncDecAttention", "encoder_attn", "crossattention"}
"""How T5, BART and BERT's decoders call their attention to the encoder."""

KEYS_AND_VALUES = {"k", "v", "k_proj", "v_proj", "key", "value"}


class RowChoice(Protocol):
    """Takes rows out of what passed a point."""

    def __call__(self, values: Tensor, batch: Any, module: str, number: int) -> Tensor:
        """Take the rows of one batch.

        Args:
            values: ``[samples, tokens, width]`` float32.
            batch: The encoded samples; its masks tell which tokens are real.
            module: The module that the values passed.
            number: Of the batch among all.

        Returns:
            ``[rows, width]``.
        """
        ...


@dataclass(frozen=True)
class EachToken:
    """Some real tokens of each sample, evenly spread, the first always among them.

    Attributes:
        most: So many a sample.
    """

    most: int

    def __call__(self, values: Tensor, batch: Any, module: str, number: int) -> Tensor:
        """Take the rows of one batch."""
        return values[spread_tokens(tokens_at(values, batch, module), self.most)]


@dataclass(frozen=True)
class MeanOverTokens:
    """One row a sample: the mean over its real tokens."""

    def __call__(self, values: Tensor, batch: Any, module: str, number: int) -> Tensor:
        """Take the rows of one batch."""
        weight = tokens_at(values, batch, module).to(values)[..., None]
        return (values * weight).sum(1) / weight.sum(1).clamp(min=1)


class Averages(NamedTuple):
    """Weighted sums of tokens, entry by entry.

    Attributes:
        rows: The row that an entry adds to, int64 ``[entries]``.
        tokens: The token that it adds, counted through all samples of the batch, int64 ``[entries]``.
        weights: Its weight, ``[entries]``; those of a row sum to 1.
        row_count: How many rows there are.
        token_count: How many tokens there are.
    """

    rows: Tensor
    tokens: Tensor
    weights: Tensor
    row_count: int
    token_count: int


@dataclass(frozen=True)
class OverSpans:
    """The source's tokens that cover the span of each of the target's tokens, averaged.

    Attributes:
        inputs: For inputs, a batch's averages of the source's tokens, one for each row of the target's.
        decoder: The same for the decoder's tokens.
    """

    inputs: Sequence[Averages]
    decoder: Sequence[Averages]

    def __call__(self, values: Tensor, batch: Any, module: str, number: int) -> Tensor:
        """Take the rows of one batch."""
        chosen = (self.decoder if of_decoder(module) else self.inputs)[number]
        flat = values.flatten(0, 1)
        if chosen.token_count != len(flat):
            raise AlignmentError(
                f"{module}: has {values.shape[1]} tokens where its inputs have "
                f"{chosen.token_count // len(values)}, so its tokens can't be matched to another tokenizer's; "
                "use --align none"
            )
        averaged = torch.zeros(chosen.row_count, flat.shape[1])
        averaged.index_add_(0, chosen.rows, chosen.weights[:, None] * flat[chosen.tokens])
        return averaged


@dataclass(frozen=True)
class OverGrid:
    """Places of an image, the same whatever the number of patches: bilinear between the patches around.

    Attributes:
        patches: How many patches the model cuts an image into, ``(rows, columns)``. What comes before them in the
            sequence (a class token, registers) counts as one row: its first token, or the mean where nothing does.
        places: How many places to take, ``(rows, columns)``.
    """

    patches: tuple[int, int]
    places: tuple[int, int]

    def __call__(self, values: Tensor, batch: Any, module: str, number: int) -> Tensor:
        """Take the rows of one batch."""
        samples, tokens, width = values.shape
        before = tokens - self.patches[0] * self.patches[1]
        if before < 0:
            raise AlignmentError(
                f"{module}: has {tokens} tokens where its image has {self.patches[0]} × {self.patches[1]} patches, so "
                "they can't be matched to another model's; use --align none"
            )
        grid = values[:, before:].transpose(1, 2).reshape(samples, width, *self.patches)
        taken = torch.nn.functional.interpolate(grid, self.places, mode="bilinear", antialias=True)
        first = values[:, :1] if before else values.mean(1, keepdim=True)
        return torch.cat([first, taken.flatten(2).transpose(1, 2)], dim=1).flatten(0, 1)


class Rows(NamedTuple):
    """Two choices that give rows of the same parts of the same inputs.

    Attributes:
        source: For the source's runs.
        target: For the target's.
    """

    source: RowChoice
    target: RowChoice


def each_token(samples: int, rows: int = ROWS) -> Rows:
    """Compare two models token by token, for they cut inputs alike.

    Args:
        samples: How many inputs there are.
        rows: About how many rows of all inputs together; at least one a sample.

    Returns:
        The same choice for both.
    """
    choice = EachToken(max(1, rows // max(1, samples)))
    return Rows(choice, choice)


def rows_for(source: ModelTask, target: ModelTask, batches: tuple[Sequence[Any], Sequence[Any]]) -> Rows:
    """Choose rows that two models can be compared by.

    Args:
        source: The task bound to the source.
        target: The task bound to the target.
        batches: The same samples encoded by either, in the same batches.

    Returns:
        Tokens one by one where both cut inputs alike; else spans of the same characters, or places of the same image.

    Raises:
        AlignmentError: if the two tokenizers don't read the same text.
    """
    samples = sum(_count(batch) for batch in batches[0])
    same, most = each_token(samples), max(1, ROWS // max(1, samples))
    grids = _grid(source), _grid(target)
    kinds = [getattr(task.config, "model_type", None) for task in (source, target)]
    if (
        grids[0] and grids[1] and (grids[0] != grids[1] or kinds[0] != kinds[1])
    ):  # other kinds have other registers
        side = max(1, math.isqrt(most - 1))
        places = min(side, grids[0][0], grids[1][0]), min(side, grids[0][1], grids[1][1])
        return Rows(OverGrid(grids[0], places), OverGrid(grids[1], places))
    if all(_same_tokens(ours, theirs) for ours, theirs in zip(*batches, strict=True)):
        return same
    tokenizers = getattr(source, "tokenizer", None), getattr(target, "tokenizer", None)
    if None in tokenizers:
        return Rows(MeanOverTokens(), MeanOverTokens())
    spans = [
        [_averages(tokenizers, ours, theirs, key, most) for ours, theirs in zip(*batches, strict=True)]
        for key in ("input_ids", "labels")
    ]
    return Rows(OverSpans(*spans), same.target)


def tokens_at(values: Tensor, batch: Any, module: str) -> Tensor:
    """Tell which tokens at a module are real.

    Args:
        values: ``[samples, tokens, width]``.
        batch: The encoded samples.
        module: The module's name: it tells encoder from decoder.

    Returns:
        Bool ``[samples, tokens]``.
    """
    return real_tokens(batch, values.shape[0], values.shape[1], decoder=of_decoder(module))


def real_tokens(batch: Any, samples: int, tokens: int, *, decoder: bool = False) -> Tensor:
    """Tell real tokens from padding, by whichever mask of the batch has the right shape.

    Where inputs are as long as targets, both masks have it: the shape alone does not tell whose tokens these are.

    Args:
        batch: The encoded samples.
        samples: How many.
        tokens: How many each has at the point in question.
        decoder: They are a decoder's, so that the labels' mask is asked first.

    Returns:
        Bool ``[samples, tokens]``: the attention mask for inputs, the labels' for a decoder, all for patches.
    """
    if isinstance(batch, Mapping):
        masks = (("attention_mask", 0), ("labels", -100))
        for name, padding in reversed(masks) if decoder else masks:
            mask = batch.get(name)
            if isinstance(mask, Tensor) and mask.shape == (samples, tokens):
                real = (mask != padding).cpu()
                return real | ~real.any(dim=1, keepdim=True)
    return torch.ones(samples, tokens, dtype=torch.bool)


def of_decoder(module: str) -> bool:
    """Tell whether tokens at a module are a decoder's; keys and values of its attention to the encoder are not.

    Args:
        module: A module's name.

    Returns:
        True inside a decoder.
    """
    path = module.split(".")
    return "decoder" in path and not (CROSS_ATTENTION & {*path} and path[-1] in KEYS_AND_VALUES)


def spread_tokens(real: Tensor, most: int) -> Tensor:
    """Choose at most ``most`` real tokens a sample, evenly spread, the first always among them.

    Args:
        real: Bool ``[samples, tokens]``.
        most: So many a sample.

    Returns:
        Bool ``[samples, tokens]``.
    """
    number = real.cumsum(dim=1) - 1  # of a token among its sample's real ones
    count = real.sum(dim=1, keepdim=True)
    step = (count / most).clamp(min=1)
    # A token is chosen where floor(number / step) is new: the first of each stretch.
    return real & ((number / step).floor() != ((number - 1) / step).floor())


def _averages(tokenizers: tuple[Any, Any], ours: Any, theirs: Any, key: str, most: int) -> Averages:
    """The target's chosen tokens by the source's tokens, of one batch."""
    if key not in theirs or theirs[key].dim() != 2:
        return Averages(
            torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 0, 0
        )
    masks = [_mask(batch, key) for batch in (ours, theirs)]
    chosen = spread_tokens(masks[1], most)
    places: list[tuple[int, int]] = []
    values: list[float] = []
    row = 0
    for sample in range(len(chosen)):
        texts = [
            token_texts(tokenizer, batch[key][sample][mask[sample]].tolist())
            for tokenizer, batch, mask in zip(tokenizers, (ours, theirs), masks, strict=True)
        ]
        found, matched = spans_between(*texts)
        if matched < LEAST_MATCHED:
            raise AlignmentError(
                f"the two tokenizers read other texts: {matched:.0%} of the characters of a sample are found again "
                f"(the target's: {''.join(texts[1])[:60]!r}, the source's: {''.join(texts[0])[:60]!r}); "
                "use --align none, or --max-length, so that both read all of it"
            )
        ours_at, theirs_at = (mask[sample].nonzero()[:, 0].tolist() for mask in masks)
        for token, place in enumerate(theirs_at):
            if not bool(chosen[sample, place]):
                continue
            for other, weight in found[token].items():
                places.append((row, sample * masks[0].shape[1] + ours_at[other]))
                values.append(weight)
            row += 1
    rows, tokens = torch.tensor(places, dtype=torch.int64).T
    return Averages(rows, tokens, torch.tensor(values), row, masks[0].numel())


def _mask(batch: Any, key: str) -> Tensor:
    samples, tokens = batch[key].shape
    if key == "labels":
        real: Tensor = batch[key] != -100
        return real | ~real.any(dim=1, keepdim=True)
    return real_tokens(batch, samples, tokens)


def _same_tokens(ours: Any, theirs: Any) -> bool:
    if not isinstance(ours, Mapping):
        return True
    return all(
        name not in theirs or torch.equal(ours[name], theirs[name])
        for name in ("input_ids", "attention_mask")
        if name in ours
    )


def _grid(task: ModelTask) -> tuple[int, int] | None:
    """How many patches a model cuts an image into, by its configuration; None where it doesn't cut images so."""
    config = getattr(task, "config", None)
    config = getattr(config, "vision_config", None) or config
    sizes = [_pair(getattr(config, name, None)) for name in ("image_size", "patch_size")]
    if not sizes[0] or not sizes[1]:
        return None
    return sizes[0][0] // sizes[1][0], sizes[0][1] // sizes[1][1]


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    two = isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(one, int) for one in size)
    return (size[0], size[1]) if two else None


def _count(batch: Any) -> int:
    first = next(iter(batch.values())) if isinstance(batch, Mapping) else batch
    while not isinstance(first, Tensor):
        first = first[0] if isinstance(first, list | tuple) else next(iter(first.values()))
    return len(first)
