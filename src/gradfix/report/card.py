"""The model card of an output, in the Hub's format."""

import os
from collections.abc import Collection

from huggingface_hub import EvalResult, ModelCardData

from gradfix.recipes import only_in_python
from gradfix.report.facts import Evaluation, Judgement
from gradfix.report.numbers import metric_name
from gradfix.report.record import TransportRecord
from gradfix.report.static import ALPHA_FILE, RESULTS_FILE

_PIPELINES = {
    "text-classification": "text-classification",
    "text-to-text": "text2text-generation",
    "causal-lm": "text-generation",
    "zero-shot-image-classification": "zero-shot-image-classification",
    "image-classification": "image-classification",
    "multi-label-classification": "text-classification",
    "regression": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "sentence-embeddings": "sentence-similarity",
    "preference-pairs": "text-generation",
}


def model_card(record: TransportRecord, figures: Collection[str] = ()) -> str:
    """Write the card from the facts of a transport.

    Args:
        record: What ``gradfix.json`` holds.
        figures: Names of the pictures beside it, as :func:`gradfix.report.static.card_figures` makes them.

    Returns:
        Markdown with the Hub's metadata on top. ``base_model`` is left out for a model that is only on a disk, unless
        its directory says which model of the Hub it is or was trained from.
    """
    title = f"{_name(record, 'source_tuned')} on {_name(record, 'target_base')}"
    missing = ", ".join(only_in_python(record.recipe))
    again = (
        f"Of what made it, {missing} came from Python and is not in `recipe.yaml`."
        if missing
        else "`gradfix run recipe.yaml --output AGAIN` makes this model again."
    )
    lines = [
        "---",
        _metadata(record, title).to_yaml().strip(),
        "---",
        "",
        f"# {title}",
        "",
        record.verdict,
        "",
        *_picture(figures, RESULTS_FILE, "Scores with 95 % intervals"),
        *_table(record.judgement, record.untruncated),
        *_picture(figures, ALPHA_FILE, "Loss along the scale of the update, with the chosen point"),
        *_loading(record),
        "## How it was made",
        "",
        _how(record),
        "",
        f"The loss on these samples changes at first by {record.certificate.slope:.4g} per unit of α, "
        "as the gradient predicts; `report.html` shows every measured step and what was kept of each layer on one "
        f"page, and `gradfix.json` has the numbers and the hashes of all inputs. {again}",
        "",
    ]
    return "\n".join(lines)


def _metadata(record: TransportRecord, title: str) -> ModelCardData:
    """The Hub's metadata; what chose nothing, the test data alone, is a result of the model index."""
    task, judgement = _PIPELINES.get(record.options.task or ""), record.judgement
    adapter = record.space == "adapter" or record.options.output_format == "lora"
    hub = {
        place
        for role, entry in record.inputs.items()
        if (place := entry.location.partition("@")[0] if _is_hub_id(entry.location) else entry.hub)
        and (role == "target_base" or not adapter)
    }
    data = {
        place.partition("@")[0]
        for name in ("support", "data", "validation", "unlabelled", "align_data")
        if isinstance(place := record.recipe.get(name), str) and _is_hub_id(place)
    }
    target = record.inputs.get("target_base")
    results = None
    if task is not None and judgement is not None and judgement.data == "test":
        results = _results(task, record.options.test, judgement.transported)
    return ModelCardData(
        model_name=title if results else None,
        library_name=None if task is None else "peft" if adapter else "transformers",
        tags=["gradfix", "task-arithmetic", "model-merging"],
        pipeline_tag=task,
        license=None if target is None else target.license,
        datasets=sorted(data) or None,
        base_model=sorted(hub) or None,
        base_model_relation=None if not hub else "adapter" if adapter else "merge",
        eval_results=results,
    )


def _loading(record: TransportRecord) -> list[str]:
    """Say what an adapter stands on; whole models need no word."""
    if record.space != "adapter" and record.options.output_format != "lora":
        return []
    target = _name(record, "target_base")
    return [
        "## How to load it",
        "",
        f"This is a LoRA adapter on `{target}`: load that model with transformers, then "
        "`PeftModel.from_pretrained(model, …)` of peft with this directory; merged or beside it, it computes the same.",
        "",
    ]


def _results(task: str, data: str | None, measured: Evaluation) -> list[EvalResult]:
    name = _shown(data) if data else "test samples"
    hub = data.partition("@")[0] if data and _is_hub_id(data) else "custom"
    return [
        EvalResult(
            task_type=task,
            dataset_type=hub,
            dataset_name=name,
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in ((measured.metric, measured.score), ("loss", measured.loss))
    ]


def _table(judgement: Judgement | None, untruncated: Evaluation | None = None) -> list[str]:
    if judgement is None:
        return []
    rows = [
        ("new base", judgement.base),
        *([("naive addition of the task vector", judgement.naive)] if judgement.naive is not None else []),
        ("control: shuffled task vector", judgement.control),
        *([("before truncation to an adapter", untruncated)] if untruncated is not None else []),
        ("**this model**", judgement.transported),
    ]
    lines = [
        f"| model | {metric_name(judgement.transported.metric)} | 95 % interval | loss |",
        "|---|---|---|---|",
    ]
    for name, result in rows:
        low, high = result.interval.low, result.interval.high
        bounds = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        lines.append(f"| {name} | {result.score:.3f} | {bounds} | {result.loss:.3f} |")
    note = " (α was chosen on the same data)" if judgement.data == "validation" else ""
    return [*lines, "", f"{judgement.transported.n} {judgement.data} samples{note}.", ""]


def _picture(figures: Collection[str], name: str, words: str) -> list[str]:
    return [f"![{words}]({name})", ""] if name in figures else []


def _is_hub_id(location: str) -> bool:
    return location.count("/") == 1 and location[0] not in ".~/" and not os.path.exists(location)


def _name(record: TransportRecord, role: str) -> str:
    return _shown(record.inputs[role].location)


def _shown(location: str) -> str:
    """What to call it: a Hub id whole, a path by its last part, so that no machine's folders get into a card."""
    return location if _is_hub_id(location) else os.path.basename(location.rstrip("/")) or location


def _how(record: TransportRecord) -> str:
    """Tell in a paragraph how the model was made: what was added to the target, and what chose it."""
    method, votes, alignment, alpha = record.method, record.votes, record.alignment, record.alpha
    source = f"`{_name(record, 'source_base')}` and `{_name(record, 'source_tuned')}`"
    target = f"`{_name(record, 'target_base')}`"
    text = (
        "With [GradFix](https://arxiv.org/abs/2510.09658) as implemented by gradfix "
        f"{record.versions['gradfix']}: the task vector between {source}"
        + (", in the coordinates of its LoRA adapter, was " if record.space == "adapter" else " was ")
    )
    why = "" if method is None else f" Of {len(method.candidates)} methods tried, {method.why}"
    if alpha.alpha == 0:
        return f"{text}held against {target} as it is ({alpha.chosen_on}), and nothing was added.{why}"
    if alignment is not None and alignment.added:
        how = (
            "a fit to its answers" if alignment.method == "answers" else f"{alignment.method} of activations"
        )
        text += f"carried over by {how} on {alignment.inputs} inputs, "
    if votes is not None:
        kept = None if record.applied is None else record.applied.kept_share
        text += f"masked by the gradient signs of {votes.samples} labelled samples at {target} "
        text += f"(`{votes.vote}` vote"
        text += f", `{record.options.mask}` mask" if record.options.method != "auto" else ""
        text += "" if kept is None else f", {kept:.1%} of the coordinates kept"
        text += ") and "
    return f"{text}added with α = {alpha.alpha:g} ({alpha.chosen_on}).{why}"
