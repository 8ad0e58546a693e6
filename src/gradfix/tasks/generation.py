"""Answers that are generated, and how alike they are to the right ones."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from gradfix import plugins
from gradfix.errors import GradfixError, option
from gradfix.tasks.data import Row, origin

Grader = Callable[[str, str], float]
"""From an answer and the right one to a score in [0, 1]."""


EXACT_MATCH = "exact_match"
"""How answers are graded where nobody says it."""
LONG = 10
"""Words of an answer from which a model hardly ever says it to the letter."""
CHECKED = 200
"""Rows whose answers are looked at."""


def long_answers(answers: Sequence[str]) -> list[str]:
    """Doubt that exact match says anything.

    Args:
        answers: Right ones.

    Returns:
        A sentence with its remedies; nothing where answers are short.
    """
    usual = int(median(len(answer.split()) for answer in answers))
    if usual <= LONG:
        return []
    return [
        f"answers have {usual} words (median), so that an exact match is hardly ever seen: give {option('metric')} "
        "rouge_l or chrf, or a function of yours"
    ]


class Generative(ABC):
    """A task whose answers are texts, so that its model can write them.

    Attributes:
        stand_in: A text in the place of an answer that is not known yet.
    """

    stand_in: str = "answer"

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Make rows that can be encoded though nobody answered them, and hide the answers of those that have one.

        Args:
            rows: The samples.

        Returns:
            Rows with a stand-in for the answer.
        """
        return [
            self.answered(Row(row, origin(row, number)), self.stand_in) for number, row in enumerate(rows)
        ]

    @abstractmethod
    def answered(self, row: Row, text: str) -> Row:
        """Put a text in the place of a row's answer.

        Args:
            row: The sample; the last answer of a conversation that has one is replaced.
            text: As the model wrote it.

        Returns:
            The row, of the same origin.
        """

    @abstractmethod
    def write(
        self, model: nn.Module, batch: Mapping[str, Tensor], *, most: int, seed: int | None = None
    ) -> list[str | None]:
        """Let a model answer prompts.

        Args:
            model: The model.
            batch: B of them, as `encode` gives them with a stand-in for each answer.
            most: Tokens of an answer at most.
            seed: Draw answers from the model's own distribution, by this seed; the likeliest token each time if None.

        Returns:
            B texts; None for an answer that has not ended.
        """


def generation(model: Any, *, padding: int, most: int, ends: Iterable[int] = (), draw: bool = False) -> Any:
    """Make settings that generate the likeliest token each time, or draw it, whatever the model's own are.

    Args:
        model: A transformers model.
        padding: The padding token.
        most: Tokens at most.
        ends: Tokens that end an answer beside the model's own.
        draw: Draw each token from the model's distribution as it is: temperature 1, nothing cut off.

    Returns:
        A ``GenerationConfig``.
    """
    from transformers import GenerationConfig

    known = model.generation_config
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if draw else {}
    return GenerationConfig(
        max_new_tokens=most,
        do_sample=draw,
        num_beams=1,
        decoder_start_token_id=known.decoder_start_token_id,
        bos_token_id=known.bos_token_id,
        eos_token_id=stops(model, ends) or None,
        pad_token_id=padding,
        **sampling,
    )


def stops(model: Any, ends: Iterable[int] = ()) -> list[int]:
    """List the tokens that end an answer.

    Args:
        model: A transformers model.
        ends: Others beside the model's own.

    Returns:
        The tokens.
    """
    own = model.generation_config.eos_token_id
    return list(dict.fromkeys([*(own if isinstance(own, list) else [] if own is None else [own]), *ends]))


@contextmanager
def seeded(model: nn.Module, seed: int | None) -> Iterator[None]:
    """Draw by a seed, and leave the state of all others' draws as it was.

    Args:
        model: Tells the device.
        seed: None where nothing is drawn.

    Yields:
        Nothing.
    """
    if seed is None:
        yield
        return
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _exact_match() -> Grader:
    return lambda answer, right: float(answer == right)


def _rouge_l() -> Grader:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-not-found]
    except ImportError as error:
        raise _missing("rouge_l", "rouge-score", error) from error
    scorer = RougeScorer(["rougeL"])
    return lambda answer, right: float(scorer.score(right, answer)["rougeL"].fmeasure)


def _chrf() -> Grader:
    try:
        from sacrebleu import sentence_chrf  # type: ignore[import-not-found]
    except ImportError as error:
        raise _missing("chrf", "sacrebleu", error) from error
    return lambda answer, right: float(sentence_chrf(answer, [right]).score) / 100


def _missing(name: str, package: str, error: ImportError) -> GradfixError:
    return GradfixError(
        f"{option('metric')} {name}: needs {package}, which can't be imported ({error}); install the extra: "
        "pip install 'gradfix[generation]'"
    )


GRADERS: dict[str, Callable[[], Grader]] = {
    EXACT_MATCH: _exact_match,
    "rouge_l": _rouge_l,
    "chrf": _chrf,
}
"""By name: exact match, ROUGE-L's F (Lin, 2004), and chrF of a sentence (Popović, 2015); means over samples."""


def grader(name: str) -> Grader:
    """Find how generated answers are graded.

    Args:
        name: One of `GRADERS`, or a function of the caller's, ``module:function``, called with the answer and the right
            one.

    Returns:
        The function; blanks at the ends of both texts are taken off before it sees them.

    Raises:
        GradfixError: If there is none of that name, its package is not installed, or it gives no number from 0 to 1.
    """
    if name in GRADERS:
        inner = GRADERS[name]()
    else:
        plugin = plugins.find("metric", name, known=GRADERS)
        inner = plugin.__call__

    def graded(answer: str, right: str) -> float:
        score = inner(answer.strip(), right.strip())
        number = isinstance(score, int | float)
        if not number or not 0 <= score <= 1:
            raise GradfixError(f"{option('metric')} {name}: gave {score!r}; expected a number from 0 to 1")
        return float(score)

    return graded


def short_name(name: str) -> str:
    """Call a metric what results call it.

    Args:
        name: As it was given.

    Returns:
        Of ``module:function`` the function.
    """
    return name.partition(",")[0].rpartition(":")[2]
