"""``gf.compare``: a transport beside all baselines."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from gradfix.progress import Progress, silent
from gradfix.recipes import TableRecipe
from gradfix.recipes.fields import Align
from gradfix.tasks import ModelTask
from gradfix.tasks.data_memory import RowSource
from gradfix.transport.comparison import Comparison
from gradfix.transport.comparison import compare as run_comparison
from gradfix.transport.given import given


def compare(
    *,
    source_base: str | Path,
    source_tuned: str | Path,
    target_base: str | Path,
    task: str | ModelTask,
    data: str | Path | RowSource,
    test: str | Path | RowSource,
    target_tuned: str | Path | None = None,
    samples_per_class: Sequence[int] = (1, 2, 5, 10),
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
    test_split: str | None = None,
    validation: str | Path | RowSource | None = None,
    validation_split: str | None = None,
    align: Align | str | Callable[..., Tensor] | None = "auto",
    align_data: str | Path | RowSource | None = None,
    space: Literal["adapter", "weights"] | None = None,
    granularity: Literal["coordinate", "row", "component"] = "coordinate",
    head: Literal["copy", "probe"] = "copy",
    unlabelled: str | Path | RowSource | None = None,
    generate_inputs: int | None = None,
    methods: Sequence[str] = (),
    best_on_test: bool = False,
    finetune_steps: int | None = None,
    retain: str | Path | RowSource | None = None,
    sampling: Literal["random", "herding", "k-medoids", "coreset"] = "random",
    seeds: int = 5,
    processes: int | None = None,
    overwrite: bool = False,
    columns: Sequence[str] = (),
    progress: Progress = silent,
) -> Comparison:
    """Measure a transport beside all baselines, over several draws of the samples.

    Args:
        source_base: The old base model, θ_A: directory, file or Hub id (id@revision).
        source_tuned: The model fine-tuned from it, θ_A^ft, or a LoRA adapter.
        target_base: The new base model, θ_B.
        task: A task's name, or a task of your own.
        data: Labelled data to draw samples from, as a location or as rows.
        test: Labelled data to judge the result on, likewise; nothing is chosen there.
        target_tuned: θ_B fully fine-tuned, for the upper bounds.
        samples_per_class: Budgets to compare: how many samples a class.
        output: Folder for the table, its page and its record.
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
        test_split: Of the test data, where it has several.
        validation: Labelled data to choose each row's α on, too, in a row of its own, as a location or as rows.
        validation_split: Of the validation data, where it has several.
        align: Carry τ over by activations first; auto: where the two bases are not alike; or a
            function of your own.
        align_data: Inputs to align on, likewise; else the labelled data's own.
        space: Adapter compares in the coordinates of a LoRA adapter, weights in those of the whole model; if not given,
            adapter where the source is a plain LoRA.
        granularity: In adapter space: a vote on each coordinate of B, each row, or each singular direction.
        head: Copy the tuned head, or refit it on the samples.
        unlabelled: Inputs without labels, or prompts, that vote too as the tuned source answers them; or rows.
        generate_inputs: Answers to each labelled prompt that the tuned source draws; they vote, too.
        methods: Rows of the table, such as ``("naive", "gradfix", "auto")``; all but ``permutation`` by default.
        best_on_test: Also give each row's best α on the test data, marked as such: a bound, no result.
        finetune_steps: Steps of training at most, in every row that trains.
        retain: Labelled data of what the model could do before.
        sampling: How to choose them.
        seeds: Draws a budget; 5 is the fewest with intervals.
        processes: Draws side by side; if not given, one a core where the model is small.
        overwrite: Replace an existing output once the new one is whole.
        columns: What the parts of a row are where rows are tuples, such as ``("image", "label")``.
        progress: Told what is being done.

    Returns:
        The table; its files are written where ``output`` names a folder.

    Raises:
        GradfixError: if an option is not what it may be, or the inputs don't allow it.
    """
    asked = given(TableRecipe, locals())
    return run_comparison(asked.recipe, task=asked.task, rows=asked.rows, progress=progress)
