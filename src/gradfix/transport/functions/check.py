"""``gf.check``: would this transport work?"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from gradfix.recipes import CheckRecipe
from gradfix.recipes.fields import Align, Mask
from gradfix.tasks import ModelTask
from gradfix.tasks.data_memory import RowSource
from gradfix.transport.checks import Findings
from gradfix.transport.given import given
from gradfix.transport.inputs import check_inputs
from gradfix.vectors.mask_strategies import MaskFunction


def check(
    *,
    source_base: str | Path,
    source_tuned: str | Path,
    target_base: str | Path,
    task: str | ModelTask = "",
    support: str | Path | RowSource | None = None,
    data: str | Path | RowSource | None = None,
    samples_per_class: int | None = None,
    test: str | Path | RowSource | None = None,
    method: Literal["auto", "gradfix"] | None = None,
    output: str | Path | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    rounding: Literal["nearest", "stochastic"] = "nearest",
    seed: int = 0,
    shard_size: str = "5GB",
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    push_to_hub: str | None = None,
    track: Literal["trackio", "wandb", "tensorboard"] | None = None,
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
    vote: Literal["majority", "mean"] = "majority",
    votes_dtype: Literal["bfloat16"] | None = None,
    validation: str | Path | RowSource | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
    alpha: str | float | Sequence[float] = "auto",
    align: Align | str | Callable[..., Tensor] | None = None,
    align_data: str | Path | RowSource | None = None,
    steps: int = 1,
    vote_at: Literal["base", "naive"] = "base",
    finetune_steps: int | None = None,
    training: bool = True,
    unlabelled: str | Path | RowSource | None = None,
    generate_inputs: int | None = None,
    mask: Mask | str | MaskFunction = "agreement",
    confidence: float = 0.1,
    head: Literal["copy", "probe"] = "copy",
    space: Literal["adapter", "weights"] | None = None,
    granularity: Literal["coordinate", "row", "component"] = "coordinate",
    output_format: Literal["model", "lora"] | None = None,
    rank: int | None = None,
    energy: float | None = None,
    whole: Literal["save", "leave"] = "save",
    examples: int = 12,
    columns: Sequence[str] = (),
) -> Findings:
    """Tell from headers, configurations, rows and a few weights whether a transport of the same options is possible.

    Args:
        source_base: The old base model, θ_A: directory, file or Hub id (id@revision).
        source_tuned: The model fine-tuned from it, θ_A^ft, or a LoRA adapter.
        target_base: The new base model, θ_B.
        task: A task's name, or a task of your own.
        support: The labelled samples, as a location or as rows.
        data: Or labelled rows to draw ``samples_per_class`` from, likewise.
        samples_per_class: How many of the data to choose a class.
        test: Labelled data to judge the result on, likewise; nothing is chosen there.
        method: Auto chooses among nothing, naive addition, GradFix, confident, aligned and re-voted; gradfix
            does what alpha, mask, steps … say (if one of them is given, it is the default).
        output: Where the result would go: its disk is checked too.
        dtype: Of the output; the target's if not given.
        rounding: Stochastic keeps small changes in bfloat16 on average.
        seed: For what is drawn at random.
        shard_size: Largest weights file, as 5GB or 500MB.
        overwrite: Replace an existing output once the new one is whole.
        resume: Go on with an interrupted run of the same inputs.
        restart: Discard an interrupted run.
        push_to_hub: Where the output would be pushed: whether the token may write there is checked.
        track: The experiment tracker: whether it is installed is checked.
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
        vote: One vote a sample, or the sign of the mean gradient.
        votes_dtype: Compute gradients under autocast.
        validation: Labelled data to choose α on, likewise; without it the support set is cross-fitted.
        validation_split: Of the validation data, where it has several.
        test_split: Of the test data, where it has several.
        alpha: ``"auto"``, a number, or candidates to choose from.
        align: Carry τ over by activations first; auto: where the two bases are not alike; or a
            function of your own.
        align_data: Inputs to align on, likewise; else the labelled data's own.
        steps: Re-votes at most; 1 is the paper's method, auto tries up to 4.
        vote_at: Count votes at θ_B, or at θ_B + τ.
        finetune_steps: Then train so many steps on the samples; with auto: at most so many.
        training: For auto: may train on the samples where that does better than the fine-tune.
        unlabelled: Inputs without labels, or prompts, that vote too, as the tuned source answers them, likewise.
        generate_inputs: Answers to each labelled prompt that the tuned source draws; they vote, too.
        mask: Mask strategy; or a function of your own, itself or as ``"module:function,parameter=value"``.
        confidence: For mask confident: a coordinate is dropped where so many votes against it would be by
            luck with at most this probability.
        head: Copy the tuned head, or refit it on the samples.
        space: Adapter moves a LoRA adapter as one and writes an adapter, weights writes a whole model; if not
            given, adapter where the source is a plain LoRA.
        granularity: In adapter space: a vote on each coordinate of B, each row, or each singular direction.
        output_format: A whole model, or an adapter that peft loads on the target (with rank or energy).
        rank: Of an adapter that stands for whole matrices: at most so much.
        energy: Share of each matrix's squared norm that an adapter reaches, by the smallest rank that does.
        whole: Save norms, embeddings and heads beside an adapter: saved whole, or left out, as vLLM wants them.
        examples: Judged inputs to show in the report; 0 keeps them out of the output.
        columns: What the parts of a row are where rows are tuples, such as ``("image", "label")``.

    Returns:
        What was found; ``ok`` says whether anything stands against it. A refusal is a finding, too.

    Raises:
        GradfixError: if an option is not what it may be, or the inputs don't allow it.
    """
    asked = given(CheckRecipe, locals())
    return check_inputs(asked.recipe, task=asked.task, rows=asked.rows)
