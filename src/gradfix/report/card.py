"""The model card of an output, in the Hub's format."""

import os
from collections.abc import Collection, Mapping
from typing import Any

import yaml

from gradfix.recipes import only_in_python
from gradfix.report.static import ALPHA_FILE, RESULTS_FILE

_PIPELINES = {
    "text-classification": "text-classification",
    "text-to-text": "text2text-generation",
    "causal-lm": "text-generation",
    "zero-shot-image-classification": "zero-shot-image-classification",
    "image-classification": "image-classification",
}


def model_card(record: Mapping[str, Any], figures: Collection[str] = ()) -> str:
    """Write the card from the facts of a transport.

    Args:
        record: What ``gradfix.json`` holds.
        figures: Names of the pictures beside it, as :func:`gradfix.report.static.card_figures` makes them.

    Returns:
        Markdown with the Hub's metadata on top. ``base_model`` is left out for a model that is only on a disk.
    """
    inputs, recipe, _alpha = record["inputs"], record["recipe"], record["alpha"]
    metadata: dict[str, Any] = {"tags": ["gradfix", "task-arithmetic", "model-merging"]}
    if recipe["task"] in _PIPELINES:
        metadata = {"library_name": "transformers", **metadata, "pipeline_tag": _PIPELINES[recipe["task"]]}
    hub = [entry["location"].partition("@")[0] for entry in inputs.values() if _is_hub_id(entry["location"])]
    if hub:
        metadata["base_model"] = sorted(set(hub))
        metadata["base_model_relation"] = "merge"
    missing = ", ".join(only_in_python(recipe))
    again = (
        f"Of what made it, {missing} came from Python and is not in `recipe.yaml`."
        if missing
        else "`gradfix run recipe.yaml --output AGAIN` makes this model again."
    )
    applied = record["applied"]
    kept = applied["kept_share"]
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).strip(),
        "---",
        "",
        f"# {_name(inputs['source_tuned']['location'])} on {_name(inputs['target_base']['location'])}",
        "",
        record["verdict"],
        "",
        *_picture(figures, RESULTS_FILE, "Scores with 95 % intervals"),
        *_table(record["judgement"]),
        *_picture(figures, ALPHA_FILE, "Loss along the scale of the update, with the chosen point"),
        "## How it was made",
        "",
        _how(record, kept),
        "",
        f"The loss on these samples changes at first by {record['certificate']['slope']:.4g} per unit of α, "
        "as the gradient predicts; `report.html` shows every measured step and what was kept of each layer on one "
        f"page, and `gradfix.json` has the numbers and the hashes of all inputs. {again}",
        "",
    ]
    return "\n".join(lines)


def _table(judgement: Mapping[str, Any] | None) -> list[str]:
    if judgement is None:
        return []
    rows = [
        ("new base", judgement["base"]),
        ("naive addition of the task vector", judgement["naive"]),
        ("control: shuffled task vector", judgement["control"]),
        ("**this model**", judgement["transported"]),
    ]
    metric = judgement["transported"]["metric"].replace("_", " ")
    lines = [f"| model | {metric} | 95 % interval | loss |", "|---|---|---|---|"]
    for name, result in rows:
        interval = result["interval"]
        bounds = "" if interval["low"] is None else f"{interval['low']:.3f} to {interval['high']:.3f}"
        lines.append(f"| {name} | {result['score']:.3f} | {bounds} | {result['loss']:.3f} |")
    note = " (α was chosen on the same data)" if judgement["data"] == "validation" else ""
    return [*lines, "", f"{judgement['transported']['n']} {judgement['data']} samples{note}.", ""]


def _picture(figures: Collection[str], name: str, words: str) -> list[str]:
    return [f"![{words}]({name})", ""] if name in figures else []


def _is_hub_id(location: str) -> bool:
    return location.count("/") == 1 and not os.path.exists(location)


def _name(location: str) -> str:
    """What to call a model: a Hub id whole, a path by its last part, so that no machine's folders get into a card."""
    return location if _is_hub_id(location) else os.path.basename(location.rstrip("/")) or location


def _how(record: Mapping[str, Any], kept: float | None) -> str:
    """Tell in a paragraph how the model was made: what was added to the target, and what chose it."""
    inputs, alpha, votes = record["inputs"], record["alpha"], record["votes"]
    source = f"`{_name(inputs['source_base']['location'])}` and `{_name(inputs['source_tuned']['location'])}`"
    target = f"`{_name(inputs['target_base']['location'])}`"
    text = (
        f"With [GradFix](https://arxiv.org/abs/2510.09658) as implemented by gradfix {record['versions']['gradfix']}: "
        f"the task vector between {source} was "
    )
    method = record.get("method")
    why = f" Of {len(method['candidates'])} methods tried, {method['why']}" if method else ""
    if alpha["alpha"] == 0:
        return f"{text}held against {target} as it is ({alpha['chosen_on']}), and nothing was added.{why}"
    # That an alignment was there to choose does not mean that it was chosen.
    if record.get("alignment") and (method is None or method["why"].startswith("aligned")):
        facts = record["alignment"]
        text += f"carried over by {facts['method']} of activations on {facts['inputs']} inputs, "
    if votes is not None:
        text += f"masked by the gradient signs of {votes['samples']} labelled samples at {target} "
        text += f"(`{votes['vote']}` vote"
        text += f", `{record['recipe']['mask']}` mask" if record["recipe"].get("method") != "auto" else ""
        text += "" if kept is None else f", {kept:.1%} of the coordinates kept"
        text += ") and "
    text += f"added with α = {alpha['alpha']:g} ({alpha['chosen_on']})."
    return text + why
