"""``gf.evaluate``: one model, measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gradfix.evaluation.evaluate import Evaluation
from gradfix.progress import Progress, silent
from gradfix.recipes import EvaluateRecipe
from gradfix.tasks import ModelTask
from gradfix.tasks.data_memory import RowSource
from gradfix.transport.given import given
from gradfix.transport.pipeline import measure


def evaluate(
    *,
    model: str | Path,
    task: str | ModelTask,
    data: str | Path | RowSource,
    output: str | Path | None = None,
    column: Sequence[str] = (),
    label: Sequence[str] = (),
    candidate: Sequence[str] = (),
    prefix: str | None = None,
    templates: str | Path | Sequence[str] = (),
    text_from: str | Path | None = None,
    configuration: str | None = None,
    encoding: str | None = None,
    max_length: int | None = None,
    metric: str | None = None,
    max_new_tokens: int | None = None,
    beta: float | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    memory: str | int = "auto",
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    strict: bool = False,
    trust_remote_code: bool = False,
    split: str | None = None,
    overwrite: bool = False,
    columns: Sequence[str] = (),
    progress: Progress = silent,
) -> Evaluation:
    """Measure one model on labelled data.

    Args:
        model: Directory or Hub id.
        task: A task's name, or a task of your own.
        data: Labelled data, as a location or as rows.
        output: Write the result, each sample's included, as JSON.
        column: Role=name, where the data's columns have other names.
        label: Class names in order, where neither model nor data has them.
        candidate: Text-to-text: answers to rank, in place of generating.
        prefix: Text-to-text: put before every input.
        templates: Prompts for zero-shot images, with ``{}`` for the class; or a file of them, one a line.
        text_from: Zero-shot images: the whole model, where the target is a vision tower or a file alone.
        configuration: Of a Hub data set that has several.
        encoding: Of csv, tsv and json files, such as latin-1 or utf-16; UTF-8 if not given.
        max_length: Longest input in tokens; the model's context if not given.
        metric: Causal-lm and text-to-text: grade generated answers by exact_match (if not given), rouge_l, chrf or
            module:function; causal-lm: token_accuracy generates nothing.
        max_new_tokens: Longest generated answer in tokens; 64, of text-to-text 32.
        beta: Preference-pairs: β of the DPO loss; 0.1 if not given.
        batch_size: Samples a pass.
        device: Cpu, cuda or mps.
        memory: ``"auto"``, or how much may be used, as 4GB: a larger model is fetched block by block.
        compute_dtype: Number format in which the model computes; auto: as stored where the device does so natively,
            else float32.
        strict: Refuse samples that would be truncated.
        trust_remote_code: Run code that a model repository brings.
        split: Of the data, where it has several.
        overwrite: Replace an existing output once the new one is whole.
        columns: What the parts of a row are where rows are tuples, such as ``("image", "label")``.
        progress: Told what is being done.

    Returns:
        The measurement, each sample's included.

    Raises:
        GradfixError: if an option is not what it may be, or the inputs don't allow it.
    """
    asked = given(EvaluateRecipe, locals())
    return measure(asked.recipe, task=asked.task, rows=asked.rows, progress=progress)
