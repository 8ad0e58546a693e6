"""How pages and cards write numbers, once."""

from typing import Protocol

from gradfix.recipes.fields import CORRELATIONS


class Ends(Protocol):
    """An interval, measured or read from a record."""

    @property
    def low(self) -> float | None:
        """The lower end."""

    @property
    def high(self) -> float | None:
        """The upper end."""


MINUS = "\N{MINUS SIGN}"
THIN = "\N{NARROW NO-BREAK SPACE}"


def percent(share: float, digits: int = 1) -> str:
    """Write a share in per cent.

    Args:
        share: In [0, 1].
        digits: After the point.

    Returns:
        As ``78.4 %``, with a space that does not break.
    """
    return f"{share * 100:.{digits}f}{THIN}%"


def shown_score(score: float, metric: str) -> str:
    """Write a score.

    Args:
        score: In [0, 1], a correlation in [−1, 1].
        metric: What it is.

    Returns:
        As ``78.4 %``; a correlation as ``78.4``, since its name says × 100.
    """
    if metric == "margin":
        return number(score)
    if metric.split(" ")[0].lower() not in CORRELATIONS:
        return percent(score)
    return f"{score * 100:.1f}".replace("-", MINUS)


def score_unit(metric: str) -> str:
    """Tell what stands on an axis after a metric's name.

    Args:
        metric: The metric, or its name in words.

    Returns:
        ``, %``, or nothing for a correlation.
    """
    return "" if metric.split(" ")[0].lower() in CORRELATIONS else ", %"


def points(difference: float, digits: int = 1) -> str:
    """Write a difference of two scores in percentage points.

    Args:
        difference: Of scores in [0, 1].
        digits: After the point.

    Returns:
        As ``+9.4`` or ``−1.2``, with a true minus sign.
    """
    written = f"{difference * 100:+.{digits}f}"
    return f"{0:.{digits}f}" if float(written) == 0 else written.replace("-", MINUS)


def between(interval: Ends | None, *, signed: bool = True, metric: str = "") -> str:
    """Write the ends of an interval.

    Args:
        interval: Of a difference or a score; None for none.
        signed: For a difference in points; else for a score.
        metric: Of the score.

    Returns:
        As ``+6.9 to +11.9``; empty without ends.
    """
    if interval is None or interval.low is None or interval.high is None:
        return ""
    if signed:
        return f"{points(interval.low)} to {points(interval.high)}"
    return f"{interval.low * 100:.1f} to {shown_score(interval.high, metric)}".replace("-", MINUS)


def score_words(score: float, interval: Ends, metric: str = "") -> str:
    """Write a score with its interval.

    Args:
        score: As for `shown_score`.
        interval: Of it.
        metric: What it is.

    Returns:
        As ``78.4 % (95 % interval 70.1 to 85.0 %)``.
    """
    if interval.low is None or interval.high is None:
        return shown_score(score, metric)
    return (
        f"{shown_score(score, metric)} (95{THIN}% interval {between(interval, signed=False, metric=metric)})"
    )


def number(value: float) -> str:
    """Write a number in four significant digits, without an exponent where it needs none.

    Args:
        value: Any.

    Returns:
        As ``0.7182`` or ``12,345``.
    """
    written = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return written.replace("-", MINUS, 1) if written.startswith("-") else written


def duration(seconds: float) -> str:
    """Write a time.

    Args:
        seconds: Wall time.

    Returns:
        As ``0.3 s``, ``12 s``, ``4 min 10 s`` or ``2 h 5 min``.
    """
    if seconds < 9.95:
        return f"{seconds:.1f}{THIN}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{THIN}s"
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60}{THIN}min"


def size(count: float) -> str:
    """Write a number of bytes, in powers of ten as disks are sold.

    Args:
        count: Bytes.

    Returns:
        As ``1.2 GB``.
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f}{THIN}{unit}"
    return f"{count:.0f}{THIN}B"


def metric_name(metric: str) -> str:
    """Say a metric's name in words.

    Args:
        metric: As ``exact_match``.

    Returns:
        As ``exact match``; ``Pearson correlation × 100``.
    """
    if metric in CORRELATIONS:
        return f"{metric.capitalize()} correlation × 100"
    return _NAMES.get(metric, metric.replace("_", " "))


def score_name(metric: str) -> str:
    """Say what the score along α is: another one than the verdict's, where choosing and judging differ.

    Args:
        metric: As ``token_accuracy``.

    Returns:
        As ``token accuracy``; ``score`` where there is one metric for all.
    """
    return "score" if metric in ("", "accuracy") else metric_name(metric)


_NAMES = {"f1": "F1", "rouge_l": "ROUGE-L", "chrf": "chrF", "margin": "mean margin, nats"}
