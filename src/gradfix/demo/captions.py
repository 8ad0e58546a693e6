"""What the lab's images are called: concepts, their captions, and a character-level tokenizer."""

import string
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLOTHING_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

DIGIT_TEMPLATES = ("the digit {}", "a photo of the number {}", "a scan of the digit {}", "the number {}")
LETTER_TEMPLATES = (
    "the small letter {}",
    "a photo of the small letter {}",
    "a scan of a small {}",
    "lower-case {}",
)
CAPITAL_TEMPLATES = (
    "the capital letter {}",
    "a photo of the capital {}",
    "a scan of a capital {}",
    "upper-case {}",
)
CLOTHING_TEMPLATES = ("a photo of a {}", "a picture of a {}", "a small {}", "clothing: {}")

MAX_TOKENS = 40


@dataclass(frozen=True)
class Concept:
    """One thing that images show.

    Attributes:
        key: What is drawn: a character, or the name of a garment.
        captions: Every way to caption it, the same number for every concept.
    """

    key: str
    captions: tuple[str, ...]


def concepts(*, clothing: bool) -> tuple[Concept, ...]:
    """List everything the pre-training data show.

    Args:
        clothing: Whether garments are part of it.

    Returns:
        The concepts: digits, small letters, capitals and then garments, always in the same order.
    """
    groups: list[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = [
        (tuple(string.digits), DIGIT_NAMES, DIGIT_TEMPLATES),
        (tuple(string.ascii_lowercase), tuple(string.ascii_lowercase), LETTER_TEMPLATES),
        (tuple(string.ascii_uppercase), tuple(string.ascii_uppercase), CAPITAL_TEMPLATES),
    ]
    if clothing:
        groups.append((CLOTHING_NAMES, CLOTHING_NAMES, CLOTHING_TEMPLATES))
    return tuple(
        Concept(key, tuple(template.format(name) for template in templates))
        for keys, names, templates in groups
        for key, name in zip(keys, names, strict=True)
    )


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer: one token a printable ASCII character, with start, end, padding and unknown.

    The end token has the highest id, since CLIP's text tower pools there: some versions of it look for the
    largest id and not for the end token.

    Returns:
        A tokenizer that ``AutoTokenizer.from_pretrained`` loads back once saved.
    """
    letters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<unk>", "<bos>", *letters, "<eos>"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("."), behavior="isolated")
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>",
        special_tokens=[("<bos>", vocabulary["<bos>"]), ("<eos>", vocabulary["<eos>"])],
    )
    options: dict[str, Any] = {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_TOKENS, **options)
