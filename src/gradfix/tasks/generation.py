"""Answers that are generated, and how alike they are to the right ones."""

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from gradfix import plugins
from gradfix.errors import GradfixError, option

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


def greedy(model: Any, *, padding: int, most: int, ends: Iterable[int] = ()) -> Any:
    """Make settings that generate the likeliest token each time, whatever the model's own are: nothing is drawn.

    Args:
        model: A transformers model.
        padding: The padding token.
        most: Tokens at most.
        ends: Tokens that end an answer beside the model's own.

    Returns:
        A ``GenerationConfig``.
    """
    from transformers import GenerationConfig

    known = model.generation_config
    own = known.eos_token_id
    stops = dict.fromkeys([*(own if isinstance(own, list) else [own] if own is not None else []), *ends])
    return GenerationConfig(
        max_new_tokens=most,
        do_sample=False,
        num_beams=1,
        decoder_start_token_id=known.decoder_start_token_id,
        bos_token_id=known.bos_token_id,
        eos_token_id=list(stops) or None,
        pad_token_id=padding,
    )


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
