"""Whole commands, in process: what they print, what they write, and how they end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradfix.checkpoints.architecture import checkpoint_names
from gradfix.recipes import load_recipe, parse_size
from tests.builders import gradfix
from tests.tiny import tokenizer
from tests.triples import FAMILIES, Triple, random_votes, save_triple


@pytest.fixture
def triple(tmp_path: Path) -> Triple:
    return save_triple("bert", tmp_path)


def sources(triple: Triple) -> list[str]:
    return ["--source-base", str(triple.base), "--source-tuned", str(triple.tuned)]


def test_diff_and_apply_in_two_steps_equal_apply_in_one(triple: Triple, tmp_path: Path) -> None:
    model = triple.load(triple.target)
    random_votes(model).renamed(checkpoint_names(model)).save(tmp_path / "votes.safetensors")
    assert gradfix("diff", *sources(triple), "--output", tmp_path / "tau.safetensors").exit_code == 0
    shared = [
        "--target-base",
        triple.target,
        "--votes",
        tmp_path / "votes.safetensors",
        "--alpha",
        0.5,
        "--json",
    ]
    one = gradfix("apply", *sources(triple), *shared, "--output", tmp_path / "one")
    two = gradfix(
        "apply", "--task-vector", tmp_path / "tau.safetensors", *shared, "--output", tmp_path / "two"
    )
    assert (one.exit_code, two.exit_code) == (0, 0), one.stderr + two.stderr
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads(one.stdout)["kept_share"] == json.loads(two.stdout)["kept_share"]
    assert "of the task vector kept" in one.stderr


def test_apply_confident_drops_what_significant_votes_oppose(triple: Triple, tmp_path: Path) -> None:
    model = triple.load(triple.target)
    votes = random_votes(model).renamed(checkpoint_names(model))
    votes.save(tmp_path / "votes.safetensors")
    run = gradfix(
        "apply", *sources(triple), "--target-base", triple.target, "--votes", tmp_path / "votes.safetensors",
        "--mask", "confident", "--confidence", 0.2, "--output", tmp_path / "output", "--json",
    )  # fmt: skip
    assert run.exit_code == 0, run.stderr
    base, tuned, target, found = (
        load_file(directory / "model.safetensors")
        for directory in (triple.base, triple.tuned, triple.target, tmp_path / "output")
    )
    for name, value in target.items():
        tau = tuned[name] - base[name]
        # P(S ≥ 2) = P(S ≥ 3) = 6/32 of 5 coins, and P(S ≥ 1) = 1/2.
        opposed = tau.sign() * votes[name] <= -2
        assert torch.equal(found[name], value + tau * ~opposed), name
    outcome = gradfix(
        "apply", "--task-vector", "t", "--target-base", "b", "--output", "o", "--votes", "v",
        "--mask", "confident", "--confidence", 0.6,
    )  # fmt: skip
    assert outcome.exit_code == 2
    assert "less than or equal to 0.5" in outcome.stderr


def test_votes_of_another_model_are_refused_and_nothing_is_written(triple: Triple, tmp_path: Path) -> None:
    votes = random_votes(FAMILIES["bert"](seed=7))
    votes.save(tmp_path / "votes.safetensors")
    result = gradfix(
        "apply", *sources(triple), "--target-base", triple.target, "--votes", tmp_path / "votes.safetensors",
        "--output", tmp_path / "output",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "not those the votes were counted at" in result.stderr
    assert not (tmp_path / "output").exists()


def test_an_existing_output_stays_until_it_may_be_replaced(triple: Triple, tmp_path: Path) -> None:
    arguments = [
        "apply",
        *sources(triple),
        "--target-base",
        str(triple.target),
        "--output",
        str(tmp_path / "output"),
    ]
    assert gradfix(*arguments).exit_code == 0
    before = (tmp_path / "output" / "model.safetensors").read_bytes()
    refused = gradfix(*arguments, "--alpha", 0.1)
    assert (refused.exit_code, "overwrite" in refused.stderr) == (1, True)
    assert (tmp_path / "output" / "model.safetensors").read_bytes() == before
    assert gradfix(*arguments, "--alpha", 0.1, "--overwrite").exit_code == 0
    assert (tmp_path / "output" / "model.safetensors").read_bytes() != before


def test_what_is_wrong_with_the_options_is_said_before_anything_is_read(tmp_path: Path) -> None:
    for extra in (
        ["--source-base", "a"],
        [],
        ["--task-vector", "t", "--source-base", "a", "--source-tuned", "b"],
    ):
        result = gradfix("apply", "--target-base", "missing", "--output", tmp_path / "o", *extra)
        assert result.exit_code == 2
        assert "give either --source-base and --source-tuned, or --task-vector" in result.stderr
    masked = gradfix("apply", "--task-vector", "t", "--target-base", "b", "--output", "o", "--mask", "force")
    assert (masked.exit_code, "--mask force needs --votes" in masked.stderr) == (2, True)
    assert gradfix("apply").exit_code == 2
    votes = gradfix("votes", "--target-base", "b", "--task", "causal-lm", "--output", tmp_path / "o")
    assert (votes.exit_code, "give --support, or --data" in votes.stderr) == (2, True)


def test_a_missing_model_is_one_line_and_status_1(tmp_path: Path) -> None:
    arguments = [
        "--source-base",
        tmp_path / "no",
        "--source-tuned",
        tmp_path / "no",
        "--output",
        tmp_path / "o",
    ]
    result = gradfix("diff", *arguments)
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stderr
    assert gradfix("diff", *arguments, "--debug").exception is not None


def test_check_finds_a_fit(triple: Triple, tmp_path: Path) -> None:
    result = gradfix(
        "check", *sources(triple), "--target-base", triple.target, "--output", tmp_path / "o", "--json"
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["ok"]
    assert found["cosine_tuned"] > 0.5 > found["cosine_target"]
    assert "these models fit" in result.stderr


def test_check_refuses_a_zero_task_vector(triple: Triple) -> None:
    result = gradfix(
        "check", "--source-base", triple.base, "--source-tuned", triple.base, "--target-base", triple.target
    )
    assert (result.exit_code, "exactly zero" in result.stderr) == (1, True)


def test_check_refuses_a_tuned_model_of_another_base(triple: Triple) -> None:
    FAMILIES["bert"](seed=9).save_pretrained(triple.base.parent / "stranger")
    stranger = triple.base.parent / "stranger"
    result = gradfix(
        "check", "--source-base", triple.base, "--source-tuned", stranger, "--target-base", triple.target
    )
    assert (result.exit_code, "does not descend from" in result.stderr) == (1, True)


def test_check_names_another_architecture_and_other_settings(triple: Triple, tmp_path: Path) -> None:
    config = json.loads((triple.target / "config.json").read_text())
    (triple.target / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    warned = gradfix("check", *sources(triple), "--target-base", triple.target)
    assert (warned.exit_code, "hidden_act 'relu' against 'gelu'" in warned.stderr) == (0, True)
    (tmp_path / "other").mkdir()
    other = save_triple("roberta", tmp_path / "other")
    refused = gradfix("check", *sources(triple), "--target-base", other.target)
    assert (refused.exit_code, "model_type is roberta" in refused.stderr) == (1, True)
    assert "no tensor has a counterpart in the task vector" in refused.stderr


def test_an_interruption_ends_with_130(
    triple: Triple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gradfix.arithmetic.add_scaled", interrupt)
    result = gradfix(
        "apply", *sources(triple), "--target-base", triple.target, "--output", tmp_path / "output"
    )
    assert (result.exit_code, result.stderr.strip()) == (130, "interrupted")
    assert not (tmp_path / "output").exists()


def test_help_does_not_import_torch() -> None:
    code = "import sys, gradfix.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


@pytest.mark.parametrize(
    "command", ["apply", "check", "compare", "demo", "diff", "evaluate", "merge", "transport", "votes"]
)
def test_every_option_is_explained_in_plain_words(command: str) -> None:
    shown = gradfix(command, "--help")
    assert shown.exit_code == 0
    assert "Annotated" not in shown.stdout
    assert "FieldInfo" not in shown.stdout


def test_a_recipe_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    from gradfix.recipes import ApplyRecipe

    recipe = ApplyRecipe(task_vector=Path("tau"), target_base="new", output=Path("out"), alpha=0.25)
    (tmp_path / "recipe.yaml").write_text(recipe.dump())
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("command: aply", "expected one of .*apply.*found 'aply'"),
        ("command: diff\nsource_base: a", "source_tuned: Field required; output: Field required"),
        (
            "command: diff\nsource_base: a\nsource_tuned: b\noutput: c\nalpa: 1",
            "alpa: Extra inputs are not permitted",
        ),
        ("[", "not a readable YAML file"),
        ("- 1", "found None"),
    ],
)
def test_a_wrong_recipe_is_named_for_what_it_is(tmp_path: Path, text: str, message: str) -> None:
    from gradfix.errors import GradfixError

    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(GradfixError, match=message):
        load_recipe(tmp_path / "recipe.yaml")


def test_sizes_are_read_as_disks_are_sold() -> None:
    assert [parse_size(text) for text in ("5GB", "1.5 mb", "12", "7KB")] == [5 * 10**9, 1_500_000, 12, 7000]
    for wrong in ("", "GB", "-1MB", "5 apples", "nan"):
        with pytest.raises(ValueError, match="expected a size"):
            parse_size(wrong)


def test_a_corrupt_input_is_refused_before_anything_is_written(triple: Triple, tmp_path: Path) -> None:
    path = triple.tuned / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    result = gradfix(
        "apply", *sources(triple), "--target-base", triple.target, "--output", tmp_path / "output"
    )
    assert result.exit_code == 1
    assert "model.safetensors" in result.stderr
    save_file({"w": torch.ones(1)}, path)
    assert (
        gradfix(
            "apply", *sources(triple), "--target-base", triple.target, "--output", tmp_path / "o"
        ).exit_code
        == 1
    )
    assert not (tmp_path / "output").exists()
    assert not (tmp_path / "o").exists()


def tuned_adapter(folder: Path, base: Path, size: float) -> Path:
    """A LoRA on the queries of a BERT, of random factors."""
    from peft import LoraConfig, get_peft_model
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["query"]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = size * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_an_adapter_that_changes_much_is_told_of_and_not_refused(triple: Triple, tmp_path: Path) -> None:
    adapter = tuned_adapter(tmp_path / "lora", triple.base, size=5.0)
    pair = ["--source-base", triple.base, "--source-tuned", adapter, "--target-base", triple.target]
    result = gradfix("check", *pair)
    assert (result.exit_code, "changes" in result.stderr) == (0, True)
    assert f"configuration names: {triple.base}" in result.stderr


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_tensors_that_the_fine_tune_left_alone_are_not_counted_as_changed(
    triple: Triple, tmp_path: Path
) -> None:
    adapter = tuned_adapter(tmp_path / "lora", triple.base, size=0.1)
    pair = ["--source-base", triple.base, "--source-tuned", adapter, "--target-base", triple.target]
    result = gradfix("apply", *pair, "--output", tmp_path / "out")
    assert (result.exit_code, "2 tensors changed" in result.stderr) == (0, True)


@pytest.mark.parametrize("command", ["check", "apply", "diff", "transport"])
def test_every_command_refuses_a_stranger_in_the_same_words(
    command: str, triple: Triple, tmp_path: Path
) -> None:
    FAMILIES["bert"](seed=9).save_pretrained(tmp_path / "stranger")
    arguments = ["--source-base", triple.base, "--source-tuned", tmp_path / "stranger"]
    if command != "diff":
        arguments += ["--target-base", triple.target]
    if command != "check":
        arguments += ["--output", tmp_path / "out"]
    if command == "transport":
        tokenizer().save_pretrained(triple.target)
        rows = "".join(json.dumps({"text": "a dog", "label": f"LABEL_{i}"}) + "\n" for i in range(3))
        (tmp_path / "rows.jsonl").write_text(rows)
        arguments += ["--task", "text-classification", "--support", tmp_path / "rows.jsonl"]
    result = gradfix(command, *arguments)
    assert (result.exit_code, "does not descend from" in result.stderr) == (1, True)
    assert command == "check" or len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_apply_says_what_check_says(triple: Triple, tmp_path: Path) -> None:
    config = json.loads((triple.target / "config.json").read_text())
    (triple.target / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    arguments = [*sources(triple), "--target-base", triple.target]
    checked = gradfix("check", *arguments, "--json")
    applied = gradfix("apply", *arguments, "--output", tmp_path / "out", "--json")
    findings = json.loads(applied.stdout)["check"]["findings"]
    assert findings == json.loads(checked.stdout)["findings"]
    assert any("hidden_act" in finding["text"] for finding in findings)
    assert all(finding["text"] in applied.stderr for finding in findings)


def test_a_process_that_ends_looks_through_nothing_it_imported() -> None:
    program = """
import atexit, gc, sys
atexit.register(lambda: print("kept", gc.get_freeze_count(), "looked through", len(gc.get_objects())))
from gradfix.__main__ import main
sys.argv = ["gradfix", "--version"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    _, kept, *_, left = done.stdout.splitlines()[-1].split()
    assert int(left) < 1000 < int(kept)
