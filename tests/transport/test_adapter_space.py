"""A LoRA in, a LoRA out: whole transports in adapter space, loaded again by peft."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification

import gradfix as gf
from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from gradfix.evaluation.binding import bind
from gradfix.recipes import TransportRecipe, validate
from gradfix.tasks import get_task
from tests import models as shapes
from tests import tiny
from tests.adapters import FAMILIES, QUIET, adapter_job, loaded_adapter, save_adapter
from tests.builders import Job, job
from tests.evaluation.test_streamed_adapter import small_memory
from tests.quantised import quantise

pytestmark = [*QUIET, pytest.mark.slow]


def written(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter_model.safetensors")


def losses_of(work: Job, model: nn.Module, **options: Any) -> list[torch.Tensor]:
    """The losses of the first held-out rows."""
    task = get_task(work.task, **options)
    target = Checkpoint.open(work.models["target_base"])
    bind(task, target, None, work.rows)
    task.prepare(model)
    return [task.loss(model, task.encode([row])) for row in list(work.held_out)[:4]]


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_was_written_with_the_logits_of_the_merge(family: str, tmp_path: Path) -> None:
    work = adapter_job(family, tmp_path)
    found = work.run(tmp_path / "out", alpha="0.8", test=work.held_out)
    assert found.applied.kept_share is not None
    assert 0 < found.applied.kept_share < 1
    assert not (tmp_path / "out" / "config.json").exists()

    with torch.no_grad():
        adapted = loaded_adapter(tmp_path / "out", work.models["target_base"], work.auto_class)
        losses = torch.cat(losses_of(work, adapted.get_base_model()))
        merged = adapted.merge_and_unload()
        again = torch.cat(losses_of(work, merged))
    torch.testing.assert_close(losses, again, rtol=1e-4, atol=1e-5)
    assert found.judgement is not None  # what gradfix judged is what peft computes
    judged = torch.tensor(found.judgement.transported.losses[:4])
    torch.testing.assert_close(losses, judged, rtol=1e-4, atol=1e-5)
    dense = Checkpoint.open(tmp_path / "out")
    assert dense.adapter_of == str(work.models["target_base"])
    state = merged.state_dict()
    changed = 0
    target = Checkpoint.open(work.models["target_base"])
    for name in dense:
        if name in state:
            torch.testing.assert_close(dense[name].float(), state[name].float(), rtol=1e-5, atol=1e-6)
        changed += not torch.equal(dense[name].float(), target[name].float())
    assert changed


def test_the_output_has_the_rank_of_the_source_and_opens_as_one(tmp_path: Path) -> None:
    work = adapter_job("bert", tmp_path, rank_pattern={"0.attention.self.query": 2}, use_rslora=True)
    work.run(tmp_path / "out", alpha="0.8")
    source, output = written(work.models["source_tuned"]), written(tmp_path / "out")
    ranks = {key: value.shape for key, value in source.items() if "lora_" in key}
    assert ranks == {key: value.shape for key, value in output.items() if "lora_" in key}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4
    assert list(config["rank_pattern"].values()) == [2]
    for key, value in output.items():  # A is whole, B masked
        if key.endswith("lora_A.weight"):
            assert value.any(dim=1).all()


@pytest.mark.parametrize(
    "options",
    [
        {"method": "auto"},
        {"mask": "confident", "vote_at": "naive", "alpha": "1"},
        {"steps": 2, "alpha": "0.5"},
        {"mask": "none", "alpha": "0.5"},
        {"alpha": "0.5", "finetune_steps": 2},
        {"alpha": "0.5", "vote": "mean"},
        {"alpha": "0.5", "head": "probe"},
        {"alpha": "0.5", "dtype": "bfloat16"},
        {"alpha": "0.5", "granularity": "row"},
        {"alpha": "0.5", "granularity": "component"},
    ],
    ids=lambda options: "-".join([next(reversed(options)), str(next(reversed(options.values())))]),
)
def test_every_way_ends_in_an_adapter_with_its_evidence(options: dict[str, Any], tmp_path: Path) -> None:
    work = adapter_job("bert", tmp_path)
    found = work.run(tmp_path / "out", test=work.held_out, **options)
    assert found.record.judgement is not None
    assert found.record.verdict
    if options.get("vote") == "mean":
        assert found.certificate.slope <= 0
    output = tmp_path / "out"
    for name in ("report.html", "README.md", "gradfix.json", "recipe.yaml", "tokenizer.json"):
        assert (output / name).is_file(), name
    card = (output / "README.md").read_text()
    assert "library_name: peft" in card
    assert "base_model_relation: adapter" in card or "base_model:" not in card
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(work.models["target_base"])
    factors = {key: value for key, value in written(output).items() if "lora_" in key}
    wanted = torch.bfloat16 if options.get("dtype") else torch.float32
    assert {value.dtype for value in factors.values()} == {wanted}
    with torch.no_grad():
        adapted = loaded_adapter(output, work.models["target_base"], work.auto_class)
        losses = torch.cat(losses_of(work, adapted.get_base_model()))
    assert found.judgement is not None
    torch.testing.assert_close(
        losses, torch.tensor(found.judgement.transported.losses[:4]), rtol=1e-4, atol=1e-5
    )


def test_a_new_head_comes_with_the_adapter(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    for name, seed in (("source_base", 0), ("target_base", 2)):
        work.models[name] = tmp_path / f"bare-{name}"
        shapes.tiny_bert(seed, num_labels=2, pad_token_id=0, **tiny.SPREAD).bert.save_pretrained(
            work.models[name]
        )
        tiny.tokenizer(template="<s> $A </s>").save_pretrained(work.models[name])
    classes = len(tiny.SENTIMENTS)

    def headed(place: Path) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return AutoModelForSequenceClassification.from_pretrained(place, num_labels=classes)

    settings = peft.LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
    source = peft.get_peft_model(headed(work.models["source_base"]), settings)
    source.save_pretrained(tmp_path / "headed")
    work.models["source_tuned"] = tmp_path / "headed"
    found = work.run(tmp_path / "out", alpha="0.5", label=tiny.SENTIMENTS, test=work.held_out)
    assert "classifier.weight" in found.applied.added
    name = "base_model.model.classifier.weight"
    assert torch.equal(written(tmp_path / "out")[name], written(tmp_path / "headed")[name])
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier"]
    adapted = peft.PeftModel.from_pretrained(headed(work.models["target_base"]), tmp_path / "out").eval()
    with torch.no_grad():
        losses = torch.cat(losses_of(work, adapted.get_base_model(), labels=tiny.SENTIMENTS))
    assert found.judgement is not None
    torch.testing.assert_close(
        losses, torch.tensor(found.judgement.transported.losses[:4]), rtol=1e-4, atol=1e-5
    )


def test_weights_space_writes_a_whole_model(tmp_path: Path) -> None:
    work = adapter_job("bert", tmp_path)
    work.run(tmp_path / "out", alpha="0.5", space="weights")
    assert (tmp_path / "out" / "config.json").exists()
    assert not (tmp_path / "out" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("settings", "options", "reason"),
    [
        ({"use_dora": True}, {}, "DoRA"),
        ({"bias": "lora_only"}, {}, "beside the low-rank factors"),
        ({}, {"align": "procrustes"}, "not of low rank"),
        ({}, {"rounding": "stochastic", "dtype": "bfloat16"}, "--rounding stochastic|rounding.*stochastic"),
    ],
    ids=["dora", "bias", "align", "rounding"],
)
def test_what_is_no_plain_adapter_is_moved_as_weights_and_says_why(
    settings: dict[str, Any], options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    work = adapter_job("bert", tmp_path, **settings)
    found = work.run(tmp_path / "out", **{"alpha": "0.5", **options})
    notes = [finding.text for finding in found.compatibility.findings]
    assert any("is moved as weights" in note and re.search(reason, note) for note in notes), notes
    assert (tmp_path / "out" / "config.json").exists()
    if not options:
        with pytest.raises(GradfixError, match=f"{reason}.*weights"):
            work.run(tmp_path / "asked", alpha="0.5", space="adapter")


def test_a_whole_model_has_no_adapter_space(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    with pytest.raises(GradfixError, match=r"is no LoRA adapter.*space.*weights"):
        work.run(tmp_path / "out", alpha="0.5", space="adapter")
    with pytest.raises(GradfixError, match=r"is no LoRA adapter, and .*granularity.* row is of adapters"):
        work.run(tmp_path / "out", alpha="0.5", granularity="row")
    assert not (tmp_path / "out").exists()


def test_options_of_weights_are_refused_beside_adapter_space() -> None:
    common = {
        "task": "text-classification", "source_base": "a", "source_tuned": "b", "target_base": "c", "output": "d",
        "support": "e", "space": "adapter",
    }  # fmt: skip
    for options in ({"align": "regression"}, {"rounding": "stochastic"}, {"shard_size": "1GB"}):
        with pytest.raises(GradfixError, match=f"{next(iter(options))}.*adapter"):
            validate(TransportRecipe, {**common, **options}, "transport")
    assert validate(TransportRecipe, {**common, "align": "none"}, "transport").space == "adapter"


def test_another_vocabulary_is_matched_by_token(tmp_path: Path) -> None:
    """The embedding's adapter stands on the target's rows: a token the source lacks changes nothing."""
    work = adapter_job("bert", tmp_path, target_modules=["word_embeddings", "query"])
    target = work.models["target_base"]
    path = target / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = "film", "music"
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    work.run(tmp_path / "out", alpha="1", mask="none")
    source = Checkpoint.open(work.models["source_tuned"], base=work.models["source_base"])
    name = "bert.embeddings.word_embeddings.weight"
    tau = source[name] - Checkpoint.open(work.models["source_base"])[name]
    moved = Checkpoint.open(tmp_path / "out")[name] - Checkpoint.open(target)[name]
    rows = list(range(len(tau)))
    rows[vocabulary[first]], rows[vocabulary[second]] = vocabulary[second], vocabulary[first]
    expected = tau[rows]
    expected[max(vocabulary.values()) + 1 :] = 0  # rows of no token
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-5)


def test_an_output_is_a_source_again(tmp_path: Path) -> None:
    work = adapter_job("bert", tmp_path)
    work.run(tmp_path / "first", alpha="0.8")
    shutil.copytree(work.models["source_base"], tmp_path / "third")
    again = Job(
        work.task,
        {
            "source_base": work.models["target_base"],
            "source_tuned": tmp_path / "first",
            "target_base": tmp_path / "third",
        },
        work.rows,
        work.held_out,
        work.auto_class,
    )
    found = again.run(tmp_path / "second", alpha="0.8")
    assert found.applied.tensors
    assert (tmp_path / "second" / "adapter_config.json").exists()


def test_an_adapter_is_extracted_of_a_whole_fine_tune(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    options = {"alpha": "0.5", "mask": "none", "test": work.held_out}
    found = work.run(tmp_path / "out", output_format="lora", rank=4, **options)
    assert found.applied.retained is not None
    assert 0 < found.applied.retained < 1
    record = found.record
    assert record.judgement is not None
    assert record.untruncated is not None
    dense = work.run(tmp_path / "dense", **options)
    assert dense.judgement is not None
    assert record.untruncated.loss == pytest.approx(dense.judgement.transported.loss, rel=1e-5)
    assert record.judgement.transported.loss != pytest.approx(record.untruncated.loss, rel=1e-6)
    assert "before truncation to an adapter" in (tmp_path / "out" / "README.md").read_text()
    assert found.judgement is not None
    with torch.no_grad():
        adapted = loaded_adapter(tmp_path / "out", work.models["target_base"], work.auto_class)
        losses = torch.cat(losses_of(work, adapted.get_base_model()))
    judged = torch.tensor(found.judgement.transported.losses[:4])
    torch.testing.assert_close(losses, judged, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "memory"), [("nf4", "auto"), ("gptq", "small")])
def test_a_quantised_base_carries_the_adapter_that_its_dense_twin_carries(
    method: str, memory: str, tmp_path: Path
) -> None:
    work = adapter_job("llama", tmp_path)
    packed = quantise(work.models["target_base"], tmp_path / "packed", method)
    source = quantise(work.models["source_base"], tmp_path / "source", method)
    files = []
    for name in ("dense", "packed"):
        for role, codes in (("target_base", packed), ("source_base", source)):
            work.models[role] = codes if name == "packed" else codes.with_suffix(".dense")
        if name == "dense":
            size = small_memory(work) if memory == "small" else memory
        output = tmp_path / f"out-{name}"
        options = {"memory": size if name == "packed" else "auto"}
        work.run(output, alpha="0,0.5,1", batch_size=4, test=work.held_out, **options)
        files.append((output / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]
    config = json.loads((tmp_path / "out-packed" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(packed)


def test_a_quantised_base_is_refused_where_a_whole_model_would_be_written(tmp_path: Path) -> None:
    work = adapter_job("llama", tmp_path)
    whole = work.models["source_base"]
    work.models["target_base"] = quantise(work.models["target_base"], tmp_path / "packed", "int8")
    with pytest.raises(
        GradfixError, match=r"packed: is quantised \(bitsandbytes\), so nothing but an adapter"
    ):
        work.run(tmp_path / "out", alpha="0.5", space="weights")
    work.models["source_base"] = quantise(whole, tmp_path / "source", "int8")
    work.models["source_tuned"] = whole
    with pytest.raises(GradfixError, match=r"source: is quantised .* can't be added as weights"):
        work.run(tmp_path / "out", alpha="0.5")
    assert not (tmp_path / "out").exists()


def test_several_adapters_are_moved_as_one(tmp_path: Path) -> None:
    work = adapter_job("bert", tmp_path)
    first = work.models["source_tuned"]
    base = work.models["source_base"]
    second = save_adapter(
        tmp_path / "second", base, work.auto_class, target_modules=["query", "key"], task_type="SEQ_CLS", r=2
    )
    for key in ("classifier.weight", "classifier.bias"):  # heads of both: the later one's counts
        assert any(key in name for name in written(second))
    work.models["source_tuned"] = f"{first}+{second}"  # type: ignore[assignment]
    work.run(tmp_path / "out", alpha="1", mask="none")
    moved, target = Checkpoint.open(tmp_path / "out"), Checkpoint.open(work.models["target_base"])
    source, plain = Checkpoint.open(f"{first}+{second}", base=base), Checkpoint.open(base)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(moved[name] - target[name], source[name] - plain[name], rtol=1e-3, atol=1e-5)
    ranks = {key: value.shape[0] for key, value in written(tmp_path / "out").items() if "lora_A" in key}
    assert {rank for key, rank in ranks.items() if ".query." in key} == {6}
    assert {rank for key, rank in ranks.items() if ".key." in key} == {2}
    loaded_adapter(tmp_path / "out", work.models["target_base"], work.auto_class)


def test_comparing_happens_in_the_adapters_coordinates(tmp_path: Path) -> None:
    work = adapter_job("bert", tmp_path)
    settings = {
        **{name: str(place) for name, place in work.models.items()},
        "task": work.task, "data": work.rows, "test": work.held_out, "samples_per_class": [2], "seeds": 1,
        "methods": ["naive", "gradfix", "control", "few-shot"], "finetune_steps": 2,
    }  # fmt: skip
    table = gf.compare(**settings)
    assert "in the coordinates of the adapter" in table.caption
    naive = next(line for line in table.lines if line.method == "naive")
    dense = gf.compare(**settings, space="weights")
    assert "adapter" not in dense.caption
    same = next(line for line in dense.lines if line.method == "naive")
    assert naive.outcomes[0].score == same.outcomes[0].score  # the whole vector is the same in both
    with pytest.raises(GradfixError, match=r"target_tuned.*adapter has no such bounds"):
        gf.compare(**settings, space="adapter", target_tuned=str(work.models["target_base"]))
