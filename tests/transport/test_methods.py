"""Every option that decides how a transport gets from θ_B to its model, as whole commands on tiny real models."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from torch import Tensor

from gradfix.errors import GradfixError
from gradfix.recipes import AUTO_STEPS, TransportRecipe, load_recipe, validate
from gradfix.recipes.settings import SETTINGS, SelectionSettings
from gradfix.transport import pipeline
from gradfix.transport.pipeline import run_transport
from gradfix.vectors.masks import mask
from tests import tiny
from tests.builders import PEFT_ON_TRANSFORMERS, SHIFT, Job, job, loaded, tuned_from, watched

pytestmark = pytest.mark.slow

FAMILIES = [
    "text-classification",
    "text-to-text",
    "causal-lm",
    "image-classification",
    "zero-shot-image-classification",
    pytest.param("lora", marks=PEFT_ON_TRANSFORMERS),
]

DEFAULTS = pipeline.run_transport.__kwdefaults__
FAST = SelectionSettings(alphas=(0.0, 0.5, 1.0), stops=(2,), most_steps=2, more_rates=())
"""Adds one number to all scores of a query, which softmax takes out again: its gradient is rounding alone."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Job]:
    """Models and data of a family, made once; each test gets rows and places of its own."""
    found: dict[str, Job] = {}

    def make(family: str) -> Job:
        if family not in found:
            root = tmp_path_factory.mktemp(family)
            found[family] = job("text-classification" if family == "lora" else family, root)
            if family == "lora":
                found[family].models["source_tuned"] = adapter(root, found[family])
        work = found[family]
        return replace(work, models=dict(work.models))

    return make


def adapter(root: Path, work: Job) -> Path:
    from peft import LoraConfig, get_peft_model

    base = transformers.AutoModelForSequenceClassification.from_pretrained(work.models["source_base"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["query", "value", "output.dense"]))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(root / "adapter")
    return root / "adapter"


def on_disk(root: Path, work: Job, count: int = 6) -> tuple[str, dict[str, Any]]:
    """A few rows where a recipe can name them, and options that spare a tiny model from writing long answers."""
    rows = [dict(row) for row in work.rows[:count]]
    if "image" in work.task:
        return str(tiny.save_image_folder(root / "support", rows)), {}
    # these tests are of weights; an adapter is moved as one elsewhere
    options: dict[str, Any] = {"space": "weights"} if work.models["source_tuned"].name == "adapter" else {}
    if work.task == "text-to-text":
        rows = [{**row, "target": ("yes", "no")[number % 2]} for number, row in enumerate(rows)]
        options = {"candidate": ["yes", "no"]}
    (root / "support.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(root / "support.jsonl"), options


def written(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model.safetensors")


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_tries_says_why_and_can_be_repeated(
    family: str, made: Callable[[str], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = made(family)
    settings = SelectionSettings(
        folds=2,
        alphas=(0.0, 1.0),
        aligned_alphas=(0.0, 1.0),
        levels=(0.1,),
        stops=(2,),
        most_steps=2,
        more_rates=(),
    )
    monkeypatch.setattr(pipeline.run_transport, "__kwdefaults__", {**DEFAULTS, "settings": settings})
    support, options = on_disk(tmp_path, work)
    result = work.run(tmp_path / "out", method="auto", support=support, steps=2, **options)
    getattr(transformers, work.auto_class).from_pretrained(tmp_path / "out")
    method = result.record.method
    names = [one.name for one in method.candidates]
    answers = ["answers"] if work.task.endswith("classification") else []
    expected = ["nothing", "aligned", *answers, "naive"]  # these two bases are strangers
    assert names[: len(expected)] == expected
    assert {"re-voted"} < set(names)
    assert set(names) & {"few-shot", "fine-tuned"}
    assert result.record.settings["folds"] == settings.folds
    assert result.record.method.runner_up.name in names
    assert len(set(names)) == len(names)
    chosen = next(one for one in method.candidates if one.name == method.name)
    assert method.why.startswith(chosen.label)
    assert all(f"{one.calibrated_loss:.3f}" in method.why for one in method.candidates)
    assert result.record.alignment.method in ("regression", "answers")
    assert result.record.observation.similarity < 0.9

    recipe = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert isinstance(recipe, TransportRecipe)
    run_transport(recipe.model_copy(update={"output": tmp_path / "again"}))
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert one == two


@pytest.mark.parametrize("family", FAMILIES)
def test_an_aligned_vector_is_what_is_masked_and_certified(
    family: str, made: Callable[[str], Job], tmp_path: Path
) -> None:
    work = made(family)
    support, options = on_disk(tmp_path, work)
    result = work.run(
        tmp_path / "out", support=support, align="regression", alpha="0.5", mask="none", **options
    )
    facts = result.record.alignment.tensors
    assert len(facts) >= 2
    fitted = {name for name, of in facts.items() if of["unexplained"] < 1}
    after, before = written(tmp_path / "out"), written(work.models["target_base"])
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    if family == "zero-shot-image-classification":
        assert "visual_projection.weight" in facts
    assert fitted
    assert {name for name in changed if name.endswith("weight")} == fitted
    assert {name.removesuffix(".bias").removesuffix(".weight") + ".weight" for name in changed} == fitted
    first = result.certificate.steps[0]
    assert first.measured == pytest.approx(first.predicted, rel=0.5, abs=2e-3)


def test_an_alignment_has_a_control_for_validation_rows_in_memory(
    made: Callable[[str], Job], tmp_path: Path
) -> None:
    work = made("text-classification")
    held = work.held_out[:6]
    result = work.run(tmp_path / "out", align="regression", mask="none", alpha="0.5", validation=held)
    assert result.judgement is not None
    assert result.judgement.control.losses != result.judgement.transported.losses


@pytest.mark.parametrize("strategy", ["random", "none", "agreement", "confident"])
def test_the_control_is_not_the_transport(strategy: str, made: Callable[[str], Job], tmp_path: Path) -> None:
    work = made("image-classification")
    result = work.run(tmp_path / "out", mask=strategy, alpha="0.8", test=work.held_out[:6])
    judged = result.judgement
    assert judged is not None
    assert judged.control.losses != judged.transported.losses
    assert judged.control.losses != judged.base.losses
    for facts in result.applied.tensors.values():
        if facts.kept is not None and facts.nonzero is not None:
            assert facts.kept <= facts.nonzero <= facts.coordinates


def test_steps_are_a_loop_of_masked_additions_with_fresh_votes(
    made: Callable[[str], Job], tmp_path: Path
) -> None:
    work = made("text-classification")
    result = work.run(tmp_path / "out", steps=3, alpha="0.5")
    assert result.alpha.chosen_on == "given"
    model = loaded(work)
    weights = {name: dict(model.model.named_parameters())[ours] for ours, name in model.names.items()}
    tau = {name: model.vector.read(name) for name in weights}
    votes_without = []
    for _ in range(3):
        votes = model.votes(work.rows)
        votes_without.append({name: votes[name].clone() for name in weights})
        for name, weight in weights.items():
            agrees = tau[name].sign() * votes[name].sign() > 0
            weight.data.add_(torch.where(agrees, tau[name], 0.0), alpha=0.5 / 3)
    assert any(not torch.equal(votes_without[0][name], votes_without[2][name]) for name in weights)
    after = written(tmp_path / "out")
    for name, weight in weights.items():
        if not name.endswith(SHIFT):
            assert torch.allclose(after[name], weight.data, atol=1e-6), name
    work.run(tmp_path / "one", steps=1, alpha="0.5")
    assert differ(after, written(tmp_path / "one"))


def test_one_step_is_the_plain_method_bit_for_bit(made: Callable[[str], Job], tmp_path: Path) -> None:
    work = made("text-classification")
    work.run(tmp_path / "one", steps=1, alpha="0.5")
    model = loaded(work)
    delta = mask(model.vector, model.votes(work.rows))
    model.move(delta, 0.5)
    after = written(tmp_path / "one")
    parameters = dict(model.model.named_parameters())
    for ours, name in model.names.items():
        assert torch.equal(after[name], parameters[ours]), name


def test_fine_tuning_goes_on_from_the_transported_model(made: Callable[[str], Job], tmp_path: Path) -> None:
    work = made("text-classification")
    work.run(tmp_path / "plain", alpha="0.5")
    work.run(tmp_path / "tuned", alpha="0.5", finetune_steps=2)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "plain")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    batch = words([row["text"] for row in work.rows], padding=True, return_tensors="pt")
    labels = torch.tensor([tiny.SENTIMENTS.index(row["label"]) for row in work.rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS.rates[0], weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**batch).logits, labels).backward()
        optimizer.step()
    after, start = written(tmp_path / "tuned"), written(tmp_path / "plain")
    assert differ(after, start)
    for name, parameter in model.named_parameters():
        # Where a gradient is as small as rounding, AdamW's first steps have its sign alone.
        if not name.endswith(SHIFT):
            assert (after[name] - parameter).abs().median() < 1e-6, name
        assert (after[name] - start[name]).abs().max() < 2.1 * SETTINGS.rates[0], name


def test_votes_can_be_counted_where_naive_addition_arrives(
    made: Callable[[str], Job], tmp_path: Path
) -> None:
    work = made("text-classification")
    work.run(tmp_path / "base", alpha="0.5")
    work.run(tmp_path / "naive", alpha="0.5", vote_at="naive")
    model = loaded(work)
    model.move(model.vector, 1.0)
    votes = model.votes(work.rows)
    model.move(mask(model.vector, votes), 0.5)
    after = written(tmp_path / "naive")
    parameters = dict(model.model.named_parameters())
    assert all(torch.equal(after[name], parameters[ours]) for ours, name in model.names.items())
    assert differ(after, written(tmp_path / "base"))


@pytest.mark.parametrize("options", [{}, {"steps": 2}])
def test_the_level_of_confidence_reaches_the_mask(
    options: dict[str, int], made: Callable[[str], Job], tmp_path: Path
) -> None:
    work = made("text-classification")
    for number, level in enumerate((0.02, 0.5)):
        work.run(tmp_path / str(number), alpha="0.5", mask="confident", confidence=level, **options)
        if not options:
            model = loaded(work)
            model.move(mask(model.vector, model.votes(work.rows), strategy="confident", level=level), 0.5)
            parameters, after = dict(model.model.named_parameters()), written(tmp_path / str(number))
            assert all(torch.equal(after[name], parameters[ours]) for ours, name in model.names.items())
    assert differ(written(tmp_path / "0"), written(tmp_path / "1"))


def test_what_the_source_is_sure_of_votes_and_never_judges(
    made: Callable[[str], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradfix.evaluation.target_model import _sample_ids

    work = made("text-classification")
    texts = [{"text": row["text"]} for row in tiny.texts(20, seed=5)]
    source = transformers.AutoModelForSequenceClassification.from_pretrained(work.models["source_tuned"])
    words = transformers.AutoTokenizer.from_pretrained(work.models["source_tuned"])
    with torch.no_grad():
        batch = words([row["text"] for row in texts], padding=True, return_tensors="pt")
        surest = source.eval()(**batch).logits.softmax(dim=1).max(dim=1)
    # From half the way between chance and certainty.
    expected = [
        {"text": row["text"], "label": tiny.SENTIMENTS[label]}
        for row, label, sure in zip(texts, surest.indices, surest.values, strict=True)
        if sure >= 1 / 3 + 0.5 * (1 - 1 / 3)
    ]
    assert 0 < len(expected) < len(texts)
    walks = watched(monkeypatch)
    result = work.run(tmp_path / "out", align="none", unlabelled=texts)
    ids = set(_sample_ids(loaded(work).task, expected))
    everybody = set(_sample_ids(loaded(work).task, work.rows))
    assert len(ids) == len(expected)
    assert result.record.observation.unlabelled == len(texts)
    assert result.record.observation.labelled_by_source == len(expected)
    assert result.record.votes.samples == len(work.rows) + len(expected)
    assert set().union(*(judges for _, _, judges in walks.seen)) == everybody
    for _, shaped, judges in walks.seen:
        assert shaped == (everybody - judges) | ids


def test_a_task_without_answers_can_not_be_labelled_by_the_source(tmp_path: Path) -> None:
    work = job("regression", tmp_path)
    with pytest.raises(GradfixError, match="--unlabelled: regression has no classes and writes no texts"):
        work.run(tmp_path / "out", unlabelled=[{"text": "good film"}])
    assert not (tmp_path / "out").exists()


PLACES = {"task": "text-classification", "support": "s", "output": "o"}
MODELS = {"source_base": "a", "source_tuned": "t", "target_base": "b"}


def recipe_of(**options: Any) -> TransportRecipe:
    return validate(TransportRecipe, {**PLACES, **MODELS, **options}, "transport")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "auto", "alpha": "0.5"}, "method auto chooses alpha itself; leave it out, or give method gradfix"),
        ({"method": "auto", "mask": "soft", "vote_at": "naive"}, "method auto chooses mask, vote_at itself"),
        ({"vote_at": "naive", "mask": "none"}, "vote_at: mask none asks for no votes"),
        ({"vote_at": "naive", "steps": 2}, "vote_at: with steps, votes are counted where each step starts"),
        ({"mask": "random", "steps": 2}, "steps: mask random asks for no votes, so there is nothing to re-vote"),
        ({"confidence": 0.3}, "confidence: only mask confident has it"),
        ({"align": "none", "align_data": "x"}, "align_data: align none aligns on nothing"),
        ({"test_split": "dev"}, "test_split: there is no test data"),
        ({"sampling": "herding"}, "sampling: samples are chosen of data only"),
        ({"mask": "confident", "vote": "mean"}, "mask confident counts votes"),
        ({"mask": "soft", "vote": "mean"}, "mask soft counts votes"),
        ({"confidence": 0.7}, "confidence: Input should be less than or equal to 0.5"),
        ({"steps": 0}, "steps: Input should be greater than or equal to 1"),
        ({"finetune_steps": 0}, "finetune_steps: Input should be greater than or equal to 1"),
        ({"alpha": "far"}, "alpha: expected auto, a number or numbers such as 0,0.5,1, found 'far'"),
        ({"align": "rotation?"}, "align: expected one of auto"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other_are_refused_in_one_line(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(GradfixError) as refused:
        recipe_of(**options)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "method", "align", "steps"),
    [
        ({}, "auto", "auto", AUTO_STEPS),
        ({"steps": 2}, "gradfix", "none", 2),
        ({"method": "auto", "steps": 2}, "auto", "auto", 2),
        ({"alpha": "0.5"}, "gradfix", "none", 1),
        ({"mask": "soft"}, "gradfix", "none", 1),
        ({"method": "gradfix"}, "gradfix", "none", 1),
        ({"align": "none"}, "auto", "none", AUTO_STEPS),
        ({"alpha": "0.5", "align": "regression"}, "gradfix", "regression", 1),
    ],
)
def test_a_recipe_says_what_was_left_to_defaults_and_reads_back_as_it_is(
    options: dict[str, Any], method: str, align: str, steps: int, tmp_path: Path
) -> None:
    recipe = recipe_of(**options)
    assert (recipe.method, recipe.align, recipe.steps) == (method, align, steps)
    (tmp_path / "recipe.yaml").write_text(recipe.dump())
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert yaml.safe_load(recipe.dump())["method"] == method


def test_auto_does_without_an_alignment_where_the_source_is_weights_alone(
    made: Callable[[str], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.run_transport, "__kwdefaults__", {**DEFAULTS, "settings": FAST})
    work = made("image-classification")
    shutil.copy(work.models["source_base"] / "model.safetensors", tmp_path / "alone.safetensors")
    work.models["source_base"] = tmp_path / "alone.safetensors"
    result = work.run(tmp_path / "out", method="auto", steps=2)
    assert "aligned" not in [one.name for one in result.record.method.candidates]
    assert result.record.alignment is None
    assert any("its weights stand alone" in finding.text for finding in result.compatibility.findings)
    with pytest.raises(GradfixError, match="the source must be run, and weights alone can't be"):
        work.run(tmp_path / "asked", align="regression", alpha="0.5")


def test_a_model_without_blocks_is_aligned_layer_by_layer(
    made: Callable[[str], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

    monkeypatch.setattr(pipeline.run_transport, "__kwdefaults__", {**DEFAULTS, "settings": FAST})
    work = made("image-classification")
    for seed, kind in enumerate(("source_base", "target_base")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
            config.id2label = {index: row["label"] for index, row in enumerate(work.rows[:3])}
            config.label2id = {name: index for index, name in config.id2label.items()}
            ResNetForImageClassification(config).save_pretrained(tmp_path / kind)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / kind)
        work.models[kind] = tmp_path / kind
    work.models["source_tuned"] = tuned_from(tmp_path / "mine", tmp_path / "source_base", work.auto_class)
    images = [{"image": row["image"]} for row in work.held_out[:4]]
    result = work.run(tmp_path / "out", method="auto", steps=2, unlabelled=images)
    assert {"aligned", "answers"} <= {one.name for one in result.record.method.candidates}
    assert result.record.observation.unlabelled == 4
    asked = work.run(tmp_path / "asked", align="regression", alpha="0.5")
    assert asked.record.alignment.method == "regression"
    assert sum("convolution" in name for name in asked.record.alignment.tensors) > 3


def test_one_sample_of_a_class_is_warned_of_where_settings_are_cross_fitted(
    made: Callable[[str], Job], tmp_path: Path
) -> None:
    work = made("text-classification")
    work.rows = work.rows[:1] + [row for row in work.rows[1:] if row["label"] != work.rows[0]["label"]]
    for number, (options, told) in enumerate(
        (({"alpha": "0,0.5"}, True), ({"alpha": "0.5"}, False), ({"validation": work.held_out}, False))
    ):
        result = work.run(tmp_path / str(number), **options)
        texts = [finding.text for finding in result.compatibility.findings]
        assert any("classes have one support sample" in text for text in texts) == told
