"""The whole job on tiny real models of every task: what is written, what is said, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from gradfix.recipes import load_recipe
from tests import tiny
from tests.builders import PEFT_ON_TRANSFORMERS, Job, Rows, gradfix, job, tuned_from, watched
from tests.triples import perturbed

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "task",
    [
        "text-classification",
        "text-to-text",
        "causal-lm",
        "image-classification",
        "zero-shot-image-classification",
        "multi-label-classification",
        "regression",
        "token-classification",
        "question-answering",
        "sentence-embeddings",
    ],
)
def test_the_whole_job_writes_a_model_that_loads_and_says_what_it_is_worth(task: str, tmp_path: Path) -> None:
    import transformers

    work = job(task, tmp_path)
    result = work.run(tmp_path / "out", test=work.held_out)
    model = getattr(transformers, work.auto_class).from_pretrained(tmp_path / "out").eval()
    assert sum(p.numel() for p in model.parameters()) > 1000
    record = json.loads((tmp_path / "out" / "gradfix.json").read_text())
    assert record["verdict"] == result.verdict
    assert len(record["support"]) == len(work.rows)
    assert record["judgement"]["transported"]["n"] == len(work.held_out)
    assert {entry["sha256"] for entry in record["inputs"].values()} == {
        Checkpoint.open(path).digest() for path in work.models.values()
    }
    assert record["alpha"]["curve"][0]["alpha"] == 0.0
    assert record["seconds"].keys() >= {"check", "load", "vote and choose α", "certify", "judge"}
    card = (tmp_path / "out" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    hub_names = {
        "text-to-text": "text2text-generation",
        "causal-lm": "text-generation",
        "multi-label-classification": "text-classification",
        "regression": "text-classification",
        "sentence-embeddings": "sentence-similarity",
    }
    assert metadata["pipeline_tag"] == hub_names.get(task, task)
    assert "base_model" not in metadata  # these models are on a disk only
    assert str(tmp_path) not in card
    assert result.verdict in card
    if task == "zero-shot-image-classification":
        written, before = (
            load_file(path / "model.safetensors") for path in (tmp_path / "out", work.models["target_base"])
        )
        text = [name for name in written if name.startswith("text_model")]
        assert text
        assert all(torch.equal(written[name], before[name]) for name in text)


def test_answers_are_ranked_where_candidates_are_given(tmp_path: Path) -> None:
    work = job("text-to-text", tmp_path)
    rows = [
        {"input": row["input"], "target": ("yes", "no")[index % 2]} for index, row in enumerate(work.held_out)
    ]
    found = gradfix(
        "evaluate", "--model", work.models["target_base"], "--task", work.task, "--data", _jsonl(tmp_path, rows),
        "--candidate", "yes", "--candidate", "no", "--prefix", "question ", "--output", tmp_path / "found.json",
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    assert set(json.loads((tmp_path / "found.json").read_text())["predictions"]) <= {"yes", "no"}
    wrong = gradfix(
        "evaluate", "--model", work.models["target_base"], "--task", work.task, "--data", _jsonl(tmp_path, rows),
        "--label", "yes",
    )  # fmt: skip
    assert (wrong.exit_code, "takes no --label; leave it out" in wrong.stderr) == (1, True)


def test_what_was_judged_is_what_was_written(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    result = work.run(tmp_path / "out", test=work.held_out, alpha="0.8")
    assert result.judgement is not None
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(row) for row in work.held_out))
    found = gradfix(
        "evaluate", "--model", tmp_path / "out", "--task", work.task, "--data", tmp_path / "test.jsonl", "--json"
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    measured = json.loads(found.stdout)
    assert measured["loss"] == pytest.approx(result.judgement.transported.loss, rel=1e-6)
    assert measured["score"] == result.judgement.transported.score


def test_the_counts_of_what_was_kept_are_of_one_reading(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    result = work.run(tmp_path / "out", test=work.held_out, alpha="0.8")
    for facts in result.applied.tensors.values():
        if facts.nonzero is not None and facts.kept is not None:
            assert facts.kept <= facts.nonzero <= facts.coordinates
            assert facts.wanted == facts.kept


def test_the_verdict_says_when_naive_addition_does_better(tmp_path: Path) -> None:
    from gradfix.evaluation.intervals import paired_samples
    from gradfix.report.facts import Judgement
    from gradfix.report.verdict import transport_verdict

    work = job("text-classification", tmp_path)
    result = work.run(tmp_path / "out", test=work.held_out, alpha="0.8")
    assert result.judgement is not None
    better, worse = [1.0] * 30, [0.0] * 20 + [1.0] * 10
    for ours, naive, told in ((worse, better, True), (better, worse, False)):
        judged = replace(
            result.judgement,
            over_naive=paired_samples(ours, naive),
            naive=replace(result.judgement.naive, score=sum(naive) / 30),
            transported=replace(result.judgement.transported, score=sum(ours) / 30),
        )
        verdict = transport_verdict(
            result.record.model_copy(update={"judgement": Judgement.model_validate(judged)})
        )
        assert ("Adding the whole task vector does better still" in verdict.text) == told


def test_every_public_name_is_there() -> None:
    import gradfix as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    assert {"TaskVector", "Votes", "apply", "count_votes", "mask", "merge", "transport"} <= set(
        package.__all__
    )


def test_votes_then_apply_equals_transport(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    work.run(tmp_path / "out", alpha="0.8")
    (tmp_path / "support.jsonl").write_text("\n".join(json.dumps(row) for row in work.rows))
    target = work.models["target_base"]
    counted = gradfix(
        "votes", "--target-base", target, "--task", work.task, "--support", tmp_path / "support.jsonl",
        "--output", tmp_path / "votes.safetensors", "--json",
    )  # fmt: skip
    assert counted.exit_code == 0, counted.stderr
    assert json.loads(counted.stdout)["samples"] == 9
    applied = gradfix(
        "apply", "--source-base", work.models["source_base"], "--source-tuned", work.models["source_tuned"],
        "--target-base", target, "--votes", tmp_path / "votes.safetensors", "--alpha", 0.8,
        "--output", tmp_path / "two",
    )  # fmt: skip
    assert applied.exit_code == 0, applied.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_recipe_in_the_output_makes_the_same_weights(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    (tmp_path / "support.jsonl").write_text("\n".join(json.dumps(row) for row in work.rows))
    work.run(tmp_path / "out", support=tmp_path / "support.jsonl")
    recipe = tmp_path / "out" / "recipe.yaml"
    assert load_recipe(recipe).command == "transport"
    refused = gradfix("run", recipe)
    assert (refused.exit_code, "exists already" in refused.stderr) == (1, True)
    result = gradfix("run", recipe, "--output", tmp_path / "again")
    assert result.exit_code == 0, result.stderr
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert one == two


def test_a_base_without_a_head_gets_the_tuned_models_head_or_a_probe(tmp_path: Path) -> None:
    import shutil

    from transformers import AutoModelForSequenceClassification

    old, new = tiny.save_tiny_bert_base(tmp_path / "old", 0), tiny.save_tiny_bert_base(tmp_path / "new", 2)
    shutil.copytree(old, tmp_path / "mine")
    (tmp_path / "mine" / "model.safetensors").unlink()
    labels = dict(enumerate(tiny.SENTIMENTS))
    tuned = AutoModelForSequenceClassification.from_pretrained(
        old, id2label=labels, label2id={name: index for index, name in labels.items()}
    )
    perturbed(tuned, 0.02, seed=1).save_pretrained(tmp_path / "mine")
    places = {"source_base": str(old), "source_tuned": str(tmp_path / "mine"), "target_base": str(new)}
    work = Job("text-classification", {k: Path(v) for k, v in places.items()}, tiny.texts(9), [], "")
    work.run(tmp_path / "copied")
    work.run(tmp_path / "probed", head="probe")
    for name in ("copied", "probed"):
        written = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        assert written.config.id2label == labels
        assert torch.equal(written.classifier.weight, tuned.classifier.weight) == (name == "copied")
    refused = gradfix(
        "votes", "--target-base", new, "--task", "text-classification", "--label", "negative", "--label", "neutral",
        "--label", "positive", "--support", _jsonl(tmp_path, tiny.texts(9)), "--output", tmp_path / "v",
    )  # fmt: skip
    assert refused.exit_code == 1
    assert (
        "has no weights for bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias"
        in refused.stderr
    )


@PEFT_ON_TRANSFORMERS
def test_a_lora_adapter_with_a_head_of_its_own_becomes_a_whole_model(tmp_path: Path) -> None:
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification

    old, new = tiny.save_tiny_bert_base(tmp_path / "old", 0), tiny.save_tiny_bert_base(tmp_path / "new", 2)
    labels = list(tiny.SENTIMENTS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = AutoModelForSequenceClassification.from_pretrained(old, num_labels=3)
        adapted = get_peft_model(
            base, LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query", "value"])
        )
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    places = {"source_base": old, "source_tuned": tmp_path / "adapter", "target_base": new}
    work = Job("text-classification", places, tiny.texts(9), [], "")
    # The adapter has no pooler, which the classifier reads: no weights exist for it anywhere.
    with pytest.raises(GradfixError, match=r"has no weights for .*pooler"):
        work.run(tmp_path / "out", label=labels)
    with pytest.raises(GradfixError, match="unknown label 'negative'; the model's labels are LABEL_0"):
        work.run(tmp_path / "out")


@PEFT_ON_TRANSFORMERS
def test_a_lora_adapter_on_a_classifier_is_transported_like_a_whole_fine_tune(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    work = job("text-classification", tmp_path)
    old = work.models["source_base"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = AutoModelForSequenceClassification.from_pretrained(old)
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["query", "value"]))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    work.models["source_tuned"] = tmp_path / "adapter"
    work.run(tmp_path / "out", alpha="1", mask="none", space="weights")
    written = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").state_dict()
    before = AutoModelForSequenceClassification.from_pretrained(work.models["target_base"]).state_dict()
    origin = AutoModelForSequenceClassification.from_pretrained(old).state_dict()
    for name, value in merged.state_dict().items():
        assert torch.allclose(written[name], before[name] + value - origin[name], atol=1e-6)


def _jsonl(root: Path, rows: Rows) -> Path:
    (root / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return root / "rows.jsonl"


def test_alpha_is_judged_by_samples_that_did_not_vote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job("text-classification", tmp_path)
    walks = watched(monkeypatch)
    work.run(tmp_path / "out")
    assert {name for name, _, _ in walks.seen} == {"agreement"}
    everybody = set().union(*(judges for _, _, judges in walks.seen))
    assert len(everybody) == 9
    assert len({frozenset(judges) for _, _, judges in walks.seen}) == 4
    for _, shaped, judges in walks.seen:
        assert shaped == everybody - judges


def test_no_candidate_of_auto_is_judged_by_samples_that_had_a_part_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job("text-classification", tmp_path)
    walks = watched(monkeypatch)
    work.run(tmp_path / "out", method="auto", align="none", steps=2, finetune_steps=1)
    names = {name for name, _, _ in walks.seen}
    assert {"nothing", "naive", "gradfix", "re-voted"} <= names
    assert names & {"few-shot", "fine-tuned"}
    everybody = set().union(*(judges for _, _, judges in walks.seen))
    for name, shaped, judges in walks.seen:
        if name in {"nothing", "naive"}:
            assert (shaped, judges) == (set(), everybody)
        else:
            assert shaped == everybody - judges, name
            assert shaped


def test_validation_data_choose_alpha_and_the_verdict_says_so(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    result = work.run(tmp_path / "out", validation=work.held_out)
    assert result.alpha.chosen_on == "validation"
    assert result.alpha.samples == 30
    if result.alpha.alpha:
        assert "α was chosen on the same validation samples" in result.verdict


def test_when_nothing_helps_the_run_says_do_not_transport(tmp_path: Path) -> None:
    import transformers

    work = job("text-classification", tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(work.models["target_base"])
    # A target that is already sure and right: random changes can only hurt.
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    task_rows = [*work.rows]
    words = transformers.AutoTokenizer.from_pretrained(work.models["target_base"])
    batch = words([row["text"] for row in task_rows], padding=True, return_tensors="pt")
    labels = torch.tensor([tiny.SENTIMENTS.index(row["label"]) for row in task_rows])
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**batch).logits, labels).backward()
        optimizer.step()
    model.eval().save_pretrained(work.models["target_base"])
    result = work.run(tmp_path / "out", alpha="0,5,10", mask="random")
    assert result.alpha.alpha == 0
    assert result.verdict.startswith("Do not transport")
    written, before = (
        load_file(path / "model.safetensors") for path in (tmp_path / "out", work.models["target_base"])
    )
    assert all(torch.equal(written[name], before[name]) for name in before)


def test_the_mean_votes_slope_is_never_positive(tmp_path: Path) -> None:
    work = job("image-classification", tmp_path)
    result = work.run(tmp_path / "out", vote="mean")
    assert result.certificate.slope < 0
    first = result.certificate.steps[0]
    assert first.measured == pytest.approx(first.predicted, rel=0.2, abs=1e-5)


def test_a_small_step_changes_the_loss_as_the_gradient_predicts(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    result = work.run(tmp_path / "out", alpha="0.05")
    for step in result.certificate.steps:
        assert step.measured == pytest.approx(step.predicted, rel=0.1, abs=1e-5)


def test_a_pool_is_sampled_and_the_chosen_rows_are_recorded(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    pool = _jsonl(tmp_path, tiny.texts(60))
    for sampling in ("random", "herding"):
        result = work.run(
            tmp_path / sampling, support=None, data=str(pool), samples_per_class=2, sampling=sampling, seed=3
        )
        assert len(result.record.support) == 6
        assert all(entry.row.endswith("rows.jsonl") for entry in result.record.support)


def test_each_kind_of_data_may_be_another_split_of_one_data_set(tmp_path: Path) -> None:
    import datasets

    work = job("text-classification", tmp_path)
    parts = {"train": tiny.texts(12), "dev": tiny.texts(9, seed=1), "test": tiny.texts(6, seed=2)}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
    ).save_to_disk(tmp_path / "all")
    place = str(tmp_path / "all")
    splits = {"split": "train", "validation_split": "dev", "test_split": "test"}
    result = work.run(
        tmp_path / "out",
        support=None,
        data=place,
        validation=place,
        test=place,
        samples_per_class=2,
        **splits,
    )
    assert len(result.record.support) == 6
    assert result.alpha.samples == 9
    assert result.judgement is not None
    assert result.judgement.transported.n == 6
    with pytest.raises(GradfixError, match="has several splits"):
        work.run(tmp_path / "no", support=place, test=place, split="train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no row"),
        ([{"text": "good film", "label": "positive"}], "no sample|one class|class"),
        ([{"text": "good film", "label": "superb"}] * 3, "superb"),
        ([{"sentence": "good film", "label": "positive"}] * 3, "no column 'text'"),
    ],
)
def test_unusable_support_is_refused_before_a_weight_is_read(
    tmp_path: Path, rows: Rows, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradfix.evaluation.target_model import TargetModel

    work = job("text-classification", tmp_path)
    monkeypatch.setattr(TargetModel, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(GradfixError, match=message):
        work.run(tmp_path / "out", support=_jsonl(tmp_path, rows))
    assert not (tmp_path / "out").exists()


def test_models_that_do_not_fit_are_refused_before_data_are_read(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    work.models["target_base"] = tiny.save_tiny_bert_classifier(tmp_path / "wide", intermediate_size=40)
    with pytest.raises(GradfixError, match="shapes differ from the task vector's"):
        work.run(tmp_path / "out", support="missing.jsonl", align="none")


def test_rows_are_refused_before_a_weight_is_read_and_weights_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradfix.evaluation.target_model import TargetModel

    work = job("text-classification", tmp_path)
    strangers = {
        "exactly zero": work.models["source_base"],
        "does not descend from": tiny.save_tiny_bert_classifier(tmp_path / "stranger", seed=9),
    }
    monkeypatch.setattr(TargetModel, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    for message, tuned in strangers.items():
        work.models["source_tuned"] = tuned
        with pytest.raises(GradfixError, match=message):
            work.run(tmp_path / "out")
    monkeypatch.setattr(Checkpoint, "read", lambda *_, **__: pytest.fail("a weight was read"))
    for options, message in (
        ({"support": "missing.jsonl"}, "no such file"),
        ({"test": [{"text": "good film", "label": "superb"}]}, "unknown label 'superb'"),
        ({"unlabelled": [{"words": "good film"}]}, "no column 'text'"),
        ({"test": [{"text": "good " * 99, "label": "positive"}], "strict": True}, "101 tokens, longer than"),
    ):
        with pytest.raises(GradfixError, match=message):
            work.run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_is_found_of_the_inputs_is_told_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradfix.evaluation.target_model import TargetModel
    from gradfix.recipes import TransportRecipe
    from gradfix.transport.checks import Finding
    from gradfix.transport.pipeline import run_transport

    work = job("text-classification", tmp_path)
    config = json.loads((work.models["target_base"] / "config.json").read_text())
    (work.models["target_base"] / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    told: list[Finding] = []
    known: list[int] = []
    load = TargetModel.load
    monkeypatch.setattr(
        TargetModel, "load", lambda *args, **options: (known.append(len(told)), load(*args, **options))[1]
    )
    rows = [*work.rows[:-1], {**work.rows[-1], "text": "good " * 99}]
    recipe = TransportRecipe(
        **{kind: str(path) for kind, path in work.models.items()},
        task=work.task,
        support=str(_jsonl(tmp_path, rows)),
        output=tmp_path / "out",
        alpha="0.5",
    )
    result = run_transport(recipe, tell=told.append)
    assert known[0] == len(told) == len(result.record.check.findings)
    texts = [finding.text for finding in told if finding.level == "warning"]
    assert any("hidden_act 'relu' against 'gelu'" in text for text in texts)
    assert any("1 of 9 support samples are longer than the model's context" in text for text in texts)


def test_check_takes_what_transport_takes_and_finds_what_it_would_refuse(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    options = [
        part for kind, path in work.models.items() for part in (f"--{kind.replace('_', '-')}", str(path))
    ]
    options += ["--task", work.task, "--alpha", "0.5", "--output", str(tmp_path / "out"), "--support"]
    fits = gradfix("check", *options, _jsonl(tmp_path, work.rows))
    assert fits.exit_code == 0, fits.stderr
    assert "these inputs fit" in fits.stderr
    wrong = gradfix("check", *options, _jsonl(tmp_path, [{"text": "good", "label": "superb"}]), "--json")
    assert wrong.exit_code == 1
    assert "error: line 1 of" in wrong.stderr
    assert "unknown label 'superb'" in json.loads(wrong.stdout)["findings"][-1]["text"]
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_verdict_for_people_and_json_for_programs(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    options = [
        part for kind, path in work.models.items() for part in (f"--{kind.replace('_', '-')}", str(path))
    ]
    result = gradfix(
        "transport", *options, "--task", work.task, "--support", _jsonl(tmp_path, work.rows), "--output",
        tmp_path / "out", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert " ".join(record["verdict"].split()) in " ".join(result.stderr.split())
    assert record["method"]["name"] in {one["name"] for one in record["method"]["candidates"]}
    assert record["votes"] is None or record["votes"]["samples"] == 9


def test_a_pooler_that_the_new_base_lacks_is_the_tuned_models(tmp_path: Path) -> None:
    import shutil

    from transformers import AutoModel, AutoModelForSequenceClassification

    headed = tiny.save_tiny_bert_classifier(tmp_path / "headed", 0)
    old, new = tmp_path / "old", tiny.save_tiny_bert_base(tmp_path / "new", 2)
    shutil.copytree(headed, old)
    AutoModel.from_pretrained(headed).save_pretrained(old)  # with a pooler, without a classifier
    mine = tuned_from(tmp_path / "mine", headed, "AutoModelForSequenceClassification")
    places = {"source_base": old, "source_tuned": mine, "target_base": new}
    work = Job("text-classification", places, tiny.texts(9), [], "")
    work.run(tmp_path / "out", alpha="0.5")
    written = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tuned = AutoModelForSequenceClassification.from_pretrained(mine)
    for name in ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight"):
        assert torch.equal(written.state_dict()[name], tuned.state_dict()[name]), name


def test_a_correlation_is_called_one_and_is_no_percentage(tmp_path: Path) -> None:
    work = job("regression", tmp_path)
    result = work.run(tmp_path / "out", test=work.held_out, method="auto", training=False)
    assert "Pearson correlation × 100" in result.verdict
    assert not re.search(r"\d\s?% Pearson", result.verdict)
    judged = json.loads((tmp_path / "out" / "gradfix.json").read_text())["judgement"]["transported"]
    assert judged["metric"] == "pearson"
    assert -1 <= judged["also"]["spearman"] <= 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Pearson correlation × 100, %" not in page
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config["id2label"]) == ["0"]


def test_a_base_without_a_head_gets_the_tuned_taggers(tmp_path: Path) -> None:
    import transformers

    work = job("token-classification", tmp_path)
    work.models["target_base"] = tiny.save_tiny_bert_base(tmp_path / "bare", seed=2)
    work.run(tmp_path / "out", test=work.held_out)
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    tuned = transformers.AutoModelForTokenClassification.from_pretrained(work.models["source_tuned"])
    assert model.config.id2label == tuned.config.id2label
    assert torch.equal(model.classifier.weight, tuned.classifier.weight)
