"""``gf.votes``: the votes of labelled samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gradfix.progress import Progress, silent
from gradfix.recipes import CountRecipe
from gradfix.tasks import ModelTask
from gradfix.tasks.data_memory import RowSource
from gradfix.transport.given import given
from gradfix.transport.pipeline import count
from gradfix.votes import Votes


def votes(
    *,
    target_base: str | Path,
    task: str | ModelTask,
    support: str | Path | RowSource | None = None,
    data: str | Path | RowSource | None = None,
    samples_per_class: int | None = None,
    output: str | Path | None = None,
    source_base: str | Path | None = None,
    source_tuned: str | Path | None = None,
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
    sampling: Literal["random", "herding", "k-medoids", "coreset"] = "random",
    seed: int = 0,
    vote: Literal["majority", "mean"] = "majority",
    votes_dtype: Literal["bfloat16"] | None = None,
    overwrite: bool = False,
    columns: Sequence[str] = (),
    progress: Progress = silent,
) -> Votes:
    """Count the votes of labelled samples at a model: the sign of each sample's own gradient, summed.

    Args:
        target_base: The new base model, θ_B.
        task: A task's name, or a task of your own.
        support: The labelled samples, as a location or as rows.
        data: Or labelled rows to draw ``samples_per_class`` from, likewise.
        samples_per_class: How many of the data to choose a class.
        output: A file for the votes.
        source_base: The old base model, θ_A: directory, file or Hub id (id@revision).
        source_tuned: The model fine-tuned from it, θ_A^ft, or a LoRA adapter.
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
        sampling: How to choose them.
        seed: For what is drawn at random.
        vote: One vote a sample, or the sign of the mean gradient.
        votes_dtype: Compute gradients under autocast.
        overwrite: Replace an existing output once the new one is whole.
        columns: What the parts of a row are where rows are tuples, such as ``("image", "label")``.
        progress: Told what is being done.

    Returns:
        The votes; a file holds them, too, where ``output`` names one.

    Raises:
        GradfixError: if an option is not what it may be, or the inputs don't allow it.
    """
    asked = given(CountRecipe, locals())
    counted, _ = count(asked.recipe, task=asked.task, rows=asked.rows, progress=progress)
    return counted
