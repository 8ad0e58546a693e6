"""Rows that the tuned source writes: its answers to prompts that nobody answered, and more of them to those labelled.

To prompts at hand it gives the answer that it would be judged by, the likeliest token each time (sequence-level
distillation: Kim and Rush, 2016). Where there are none, several answers to a labelled prompt are drawn from its own
distribution, temperature 1 and nothing cut off: the likeliest would be the same each time.
"""

from collections.abc import Callable, Sequence

from gradfix.errors import GradfixError, option
from gradfix.evaluation.binding import Rows, used_columns
from gradfix.evaluation.target_model import TargetModel
from gradfix.tasks import Generative
from gradfix.tasks.data import Row, origin
from gradfix.tasks.repeated_rows import distinct

ROOM = 2
"""Tokens of an answer, over those of the longest labelled one: a handful of samples hardly has the longest."""


def write_rows(
    model: TargetModel,
    prompts: Rows,
    labelled: Rows,
    *,
    seed: int | None = None,
    remark: Callable[[str], None],
) -> Sequence[Row]:
    """Let the tuned source answer prompts; what it leaves blank, does not end or says twice is left out.

    Args:
        model: The source at θ_A, of a task that is :class:`gradfix.tasks.Generative`; it stands there afterwards.
        prompts: Rows whose answers are not read.
        labelled: Rows with answers, which say how long one is.
        seed: Draw the answers, by this seed; the likeliest token each time if None.
        remark: Told how many there are, and why others were left out.

    Returns:
        Rows with the source's answers.

    Raises:
        GradfixError: if there are none, or the model is fetched block by block.
    """
    task = model.task
    assert isinstance(task, Generative)
    longest = max(int((batch["labels"] != -100).sum(dim=1).max()) for batch in model.encode(labelled).batches)
    asked = task.prompts(prompts)
    model.move(model.vector, 1.0)
    texts = model.write(asked, most=ROOM * longest, seed=seed)
    model.restore()
    rows = [task.answered(row, text) for row, text in zip(asked, texts, strict=True) if text and text.strip()]
    kept, repeats = distinct(rows, lambda row: used_columns(model.task, row), known=labelled)
    unended = texts.count(None)
    counts = {
        "blank": len(texts) - len(rows) - unended,
        f"not ended within {ROOM * longest} tokens": unended,
        "given twice": len(repeats),
    }
    left = ", ".join(f"{number} {why}" for why, number in counts.items() if number)
    name = option("unlabelled" if seed is None else "generate_inputs")
    if not kept:
        raise GradfixError(
            f"{name}: none of the {len(asked)} answers that the tuned old model wrote can be used ({left}); "
            "leave it out, or give other inputs with --unlabelled"
        )
    remark(
        f"{name}: the tuned old model wrote {len(kept)} of {len(asked)} answers"
        + (f" (left out: {left})" if left else "")
    )
    return [Row(row, origin(row, number)) for number, row in enumerate(kept)]
