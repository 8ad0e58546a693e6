"""Records as the commands write them, with every section that a report can show."""

import base64
import io
from typing import Any

from PIL import Image

from gradfix.report import report
from gradfix.report.page import page_html
from studies.page import TablesRecord, tables_page

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


def interval(value: float, half: float | None = 0.02, method: str = "wilson") -> dict[str, Any]:
    ends = {"low": None, "high": None} if half is None else {"low": value - half, "high": value + half}
    return {"value": value, **ends, "n": 500, "method": method}


def evaluation(score: float, loss: float) -> dict[str, Any]:
    return {
        "task": "image-classification",
        "metric": "accuracy",
        "n": 500,
        "score": score,
        "interval": interval(score),
        "loss": loss,
        "truncated": 0,
        "seconds": 0.5,
    }


def picture(grey: int) -> str:
    written = io.BytesIO()
    Image.new("L", (8, 8), grey).save(written, format="PNG")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def tensors(layers: int = 4) -> dict[str, Any]:
    names = ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj"]
    names += ["mlp.fc1", "mlp.fc2", "norm1", "norm2"]
    stored = [f"encoder.layers.{layer}.{name}.weight" for layer in range(layers) for name in names]
    return {
        name: {
            "coordinates": 1000,
            "nonzero": 990,
            "kept": 400 + 17 * (number % 11),
            "square": 1.0 + number,
            "kept_square": 0.5 + number / 2,
            "wanted": 450,
            "lost": 30,
            "voted": 1000,
            "tied": 80,
            "net": 2100,
        }
        for number, name in enumerate(["embeddings.word_embeddings.weight", *stored, "mystery"])
    }


def example(before: str, after: str, label: str, **given: Any) -> dict[str, Any]:
    return {
        "row": "row 1 of test.jsonl",
        "input": given.get("input", {"image": {"image": picture(90)}}),
        "label": label,
        "before": before,
        "after": after,
        "was_right": before == label,
        "is_right": after == label,
    }


def transport_record(text: str = "seven", layers: int = 4, stepwise: bool = False) -> dict[str, Any]:
    """A record in which every string that comes from outside holds ``text``."""
    steps = [
        {"step": 1, "loss": 1.0, "score": 0.6, "kept": 0.5},
        {"step": 2, "loss": 0.9, "score": 0.7, "kept": 0.45},
    ]
    steps = steps if stepwise else []
    facts = tensors(layers)
    facts[f"other.{text}"] = facts["mystery"]
    return {
        "format": "gradfix-transport",
        "version": 1,
        "versions": {"gradfix": "0.1.0", "torch": "2.13.0"},
        "verdict": f"The transported model is better {text}.",
        "recipe": {
            "task": "image-classification",
            "mask": "agreement",
            "dtype": "bfloat16",
            "label": [text],
            "device": "cpu",
        },
        "inputs": {
            name: {"location": f"models/x/{text}", "sha256": "ab" * 32}
            for name in ("source_base", "source_tuned", "target_base")
        },
        "support": [{"row": f"row {number} of {text}", "sha256": "cd" * 32} for number in range(8)],
        "votes": {
            "vote": "majority",
            "samples": 8,
            "tie_rate": 0.08,
            "uncovered": [text],
            "counted_plainly": {},
            "stability": {
                "split_half": 0.7,
                "redraw": 0.8,
                "coordinates": 900,
                "settling": [[1, 0.55], [3, 0.65]],
            },
        },
        "silent_parameters": ["logit_scale"],
        "method": {
            "name": "gradfix",
            "why": f"masked {text} was chosen: it had the smallest held-out loss.",
            "candidates": [
                {"name": "gradfix", "label": f"masked {text}", "alpha": 0.6, "loss": 0.8, "score": 0.7},
                {"name": "naive", "label": "naive", "alpha": 1.0, "loss": 0.9, "score": 0.65},
            ],
        },
        "alpha": {
            "alpha": 0.6,
            "chosen_on": "cross-fit",
            "samples": 8,
            "curve": [
                {"alpha": alpha, "loss": 1.2 - alpha + alpha**2, "score": 0.5 + alpha / 4}
                for alpha in (0.0, 0.3, 0.6)
            ],
        },
        "certificate": {
            "slope": -1.1,
            "loss": 1.2,
            "steps": [
                {"alpha": 0.006, "predicted": -0.0066, "measured": -0.0065},
                {"alpha": 0.6, "predicted": -0.66, "measured": -0.4},
            ],
        },
        "steps": steps,
        "alignment": {
            "method": f"procrustes {text}",
            "held_out": True,
            "tensors": {
                f"encoder.layers.{layer}.mlp.fc1.weight": {"residual_in": 0.3, "residual_out": None}
                for layer in range(layers)
            },
        },
        "judgement": {
            "data": "test",
            "base": evaluation(0.6, 1.2),
            "naive": evaluation(0.58, 1.3),
            "transported": evaluation(0.7, 0.9),
            "control": evaluation(0.65, 1.0),
            "gain": interval(0.1, 0.03, "paired-bootstrap"),
            "over_control": interval(0.05, 0.02, "paired-bootstrap"),
        },
        "examples": {
            "fixed": 60,
            "broken": 10,
            "other": 3,
            "shown": [
                example(text, "one", "one"),
                example("two", text, "two"),
                example("two", "three", "four", input={"text": f"a text {text} & more"}),
            ],
        },
        "applied": {"alpha": 0.6, "kept_share": 0.45, "lost_share": 0.07, "seconds": 1.5, "tensors": facts},
        "seconds": {"check": 0.3, "judge": 3.0},
        "peak_memory_bytes": 700_000_000,
    }


def line(budget: int, method: str, label: str, score: float, **other: Any) -> dict[str, Any]:
    return {
        "budget": budget,
        "method": method,
        "label": label,
        "score": interval(score),
        "gain": interval(score - 0.6, 0.02),
        "over_control": None if method in {"zero-shot", "control", "full"} else interval(score - 0.64, 0.02),
        "retained": interval(0.8 - score / 10),
        "outcomes": [{"score": score, "loss": 1.0, "setting": {}, "retained": 0.7, "seconds": 0.4}],
        **other,
    }


def comparison_record(text: str = "seven") -> dict[str, Any]:
    scores = {
        "zero-shot": 0.6,
        "naive": 0.59,
        "gradfix": 0.7,
        "control": 0.65,
        "few-shot": 0.72,
        "oracle": 0.9,
    }
    return {
        "format": "gradfix-comparison",
        "version": 1,
        "metric": "accuracy",
        "caption": f"accuracy on 500 test samples {text}",
        "recipe": {"task": "image-classification", "source_tuned": text, "target_base": "new"},
        "rows": [
            line(budget, method, f"{method} {text}", score + 0.01 * budget * (method != "zero-shot"))
            for budget in (1, 5)
            for method, score in scores.items()
        ],
    }


def demo_record(text: str = "seven") -> dict[str, Any]:
    return {
        "format": "gradfix-demo",
        "version": 1,
        "verdict": "better",
        "close_release": {"verdict": "better", "judgement": transport_record(text)["judgement"]},
        "metric": "accuracy",
        "caption": "accuracy on 500 scanned digits",
        "rows": [row for row in comparison_record(text)["rows"] if row["budget"] == 5],
        "transport": transport_record(text),
    }


def tables_record(text: str = "seven") -> dict[str, Any]:
    series = {
        f"GradFix {text}": [[1, interval(0.6)], [5, interval(0.7)]],
        "naive": [[1, interval(0.5, None)]],
    }
    curves = {
        "kind": "curves",
        "panels": [{"title": f"digits {text}", "series": series, "levels": {"full": 0.9}}],
        "x": "samples a class",
        "y": f"accuracy {text}",
        "logarithmic": True,
    }
    dots = {
        "kind": "dots",
        "values": {f"digits {text}": {f"random {text}": interval(0.6)}},
        "x": "accuracy, %",
    }
    table = {
        "title": f"digits {text}",
        "corner": f"method {text}",
        "columns": [f"1 {text}", "5"],
        "rows": {
            name: [interval(0.1 + number / 10, 0.02), None if number else interval(-0.01, 0.02)]
            for number, name in enumerate((text, "naive", "oracle"))
        },
        "points": True,
    }
    return {
        "format": "gradfix-studies",
        "version": 1,
        "command": "python -m studies",
        "versions": {},
        "draws": 3,
        "test_samples": 200,
        "recipe": {"study": [text]},
        "findings": [
            {
                "claim": f"GradFix > {text}: holds",
                "strength": "(in 3 of 3)",
                "cases": f"digits 1: +0.3 {text}.",
            }
        ],
        "studies": [
            {
                "name": "main",
                "title": f"Main {text}",
                "note": f"note {text}",
                "figure": curves,
                "tables": [table],
            },
            {"name": "votes", "title": "Votes", "note": "", "figure": dots, "tables": []},
        ],
    }


RECORDS = {
    "transport": transport_record,
    "comparison": comparison_record,
    "demo": demo_record,
    "tables": tables_record,
}


def page_of(record: dict[str, Any]) -> str:
    """The page of any record: the studies bring their own."""
    return (
        page_html(tables_page(TablesRecord.model_validate(record)))
        if record["format"] == "gradfix-studies"
        else report(record)
    )
