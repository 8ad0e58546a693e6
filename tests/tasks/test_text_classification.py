import shutil
import subprocess
import sys

import pytest
import torch

from gradfix.errors import GradfixError
from gradfix.tasks import get_task
from tests import tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.save_tiny_bert_classifier(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def loaded(directory):
    task = get_task("text-classification")
    return task, task.load_model(directory)


def test_the_loss_is_the_models_own_one_value_a_sample(loaded):
    task, model = loaded
    batch = task.encode(tiny.texts(7))
    losses = task.loss(model, batch)
    assert losses.shape == (7,)
    assert losses.dtype == torch.float32
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    assert torch.isclose(losses.mean(), model(**inputs).loss)
    losses.sum().backward()


def test_padding_changes_no_loss(loaded):
    task, model = loaded
    rows = tiny.texts(9)
    together = task.loss(model, task.encode(rows))
    alone = torch.cat([task.loss(model, task.encode([row])) for row in rows])
    assert torch.allclose(together, alone, atol=1e-6)
    assert together.std() > 0.1  # a constant model would pass anything


def test_two_texts_are_one_sample(directory, loaded):
    _, model = loaded
    task = get_task("text-classification", text="first", text_pair="second", label="verdict")
    task.bind(directory)
    rows = [{"first": "good book", "second": "bad film", "verdict": "positive"}]
    batch = task.encode(rows)
    assert task.tokenizer.decode(batch["input_ids"][0]) == "<s> good book </s> bad film </s>"
    assert task.loss(model, batch).shape == (1,)
    assert task.size(rows[0]) == len("good book") + len("bad film")


def test_labels_are_mapped_by_name_in_the_models_order(tmp_path):
    directory = tiny.save_tiny_bert_classifier(tmp_path / "m", labels=("positive", "negative", "neutral"))
    task = get_task("text-classification")
    task.bind(directory)
    rows = [{"text": "good", "label": value} for value in ("negative", "positive", 2)]
    assert task.encode(rows)["labels"].tolist() == [1, 0, 2]


def test_labels_of_the_tuned_model_give_the_base_its_head(tmp_path):
    base = tiny.save_tiny_bert_base(tmp_path / "base")
    task = get_task("text-classification", labels={0: "x", 1: "y", 2: "z", 3: "w"})
    first = task.load_model(base)
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    second = task.load_model(base)  # the new head depends on no global state, and changes none
    assert torch.equal(torch.rand(3), drawn)
    assert first.config.label2id == {"x": 0, "y": 1, "z": 2, "w": 3}
    assert first.classifier.weight.shape == (4, 16)
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert task.head(first) == ["classifier.weight", "classifier.bias"]
    assert not first.training


def test_positions_counted_from_the_padding_leave_less_room(tmp_path):
    from tests.models import tiny_roberta

    directory = tmp_path / "roberta"
    tiny_roberta(pad_token_id=0, bos_token_id=1).save_pretrained(directory)
    tiny.tokenizer(template="<s> $A </s>").save_pretrained(directory)
    task = get_task("text-classification")
    model = task.load_model(directory)
    batch = task.encode([{"text": "good " * 99, "label": 0}, {"text": "bad", "label": 1}])
    assert batch["input_ids"].shape == (2, 63)  # of 64 positions, the one at the padding index is never used
    assert torch.isfinite(task.loss(model, batch)).all()
    assert task.head(model)[-1] == "classifier.out_proj.bias"
    rows = [{"text": row["text"], "label": index % 3} for index, row in enumerate(tiny.texts(6))]
    assert list(task.fit_head(model, rows)) == ["classifier.out_proj.weight", "classifier.out_proj.bias"]


def test_a_head_of_another_size_is_replaced(tmp_path):
    directory = tiny.save_tiny_bert_classifier(tmp_path / "m")
    task = get_task("text-classification", labels=["a", "b"])
    assert task.load_model(directory).classifier.weight.shape == (2, 16)


def test_a_regression_base_takes_the_labels_given_later(tmp_path):
    directory = tmp_path / "scores"
    tiny.shapes.tiny_bert(num_labels=1).save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    task = get_task("text-classification")
    task.bind(directory)
    with pytest.raises(GradfixError, match="text-classification: no labels yet"):
        task.encode(tiny.texts(1))
    task.use_labels(tiny.SENTIMENTS)
    assert task.load_model(directory).classifier.weight.shape == (3, 16)


def test_samples_longer_than_the_context_are_cut_and_counted_or_refused(loaded):
    task, model = loaded
    rows = [{"text": "good " * 80, "label": "positive"}, {"text": "bad", "label": "negative"}]
    batch = task.encode(rows)
    assert batch["truncated"].tolist() == [True, False]
    assert batch["input_ids"].shape == (2, 64)
    assert torch.isfinite(task.loss(model, batch)).all()
    with pytest.raises(GradfixError, match=r"row 0: 82 tokens, longer than the model's context of 64 \(1 of"):
        task.encode(rows, strict=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "good", "label": "great"},
            "row 0: unknown label 'great'; the model's labels are negative, neut",
        ),
        ({"text": "good", "label": 3}, "row 0: unknown label 3"),
        ({"text": "good", "label": True}, "row 0: unknown label True"),
        ({"text": "good", "label": None}, "row 0: has no label"),
        (
            {"sentence": "good", "label": 1},
            r"row 0: has no column 'text' \(text\); found 'sentence', 'label'",
        ),
        ({"text": None, "label": 1}, "row 0: column 'text': expected text, found NoneType"),
        ({"text": " ", "label": 1}, "row 0: column 'text': expected text, found nothing but blanks"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(loaded, row, message):
    task, _ = loaded
    with pytest.raises(GradfixError, match=message):
        task.encode([row])
    with pytest.raises(GradfixError, match=message):
        task.check([row])


def test_a_support_set_needs_every_class(loaded):
    task, _ = loaded
    rows = tiny.texts(6)
    task.check(rows, support=True)
    task.check(rows[:2])
    with pytest.raises(GradfixError, match="the support set is empty"):
        task.check([], support=True)
    with pytest.raises(GradfixError, match=r"has one class only \('negative'\)"):
        task.check(rows[:1], support=True)
    with pytest.raises(GradfixError, match="no sample of 1 of the 3 classes: positive"):
        task.check(rows[:2], support=True)


def test_a_probe_reads_the_models_own_features(tmp_path):
    base = tiny.save_tiny_bert_base(tmp_path / "base")
    task = get_task("text-classification", labels=tiny.SENTIMENTS)
    model = task.load_model(base).train()
    rows = tiny.texts(24)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitted = task.fit_head(model, rows, batch_size=7)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert list(fitted) == task.head(model)
    model.eval()
    untrained = task.measure(model, task.encode(rows))
    model.load_state_dict(fitted, strict=False)
    probed = task.measure(model, task.encode(rows))
    assert probed.scores.mean() > untrained.scores.mean()
    assert probed.losses.mean() < torch.log(torch.tensor(3.0))


def test_features_ignore_padding_and_the_head(loaded):
    task, model = loaded
    rows = tiny.texts(5)
    together = task.features(model, task.encode(rows))
    assert together.shape == (5, 16)
    alone = torch.cat([task.features(model, task.encode([row])) for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_decoder_with_a_score_layer_reads_the_last_real_token(tmp_path):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    directory = tiny.save_tiny_gpt2(tmp_path / "base")
    task = get_task("text-classification", labels=tiny.SENTIMENTS)
    model = task.load_model(directory)
    assert isinstance(model, GPT2ForSequenceClassification)
    assert isinstance(model.config, GPT2Config)
    rows = tiny.texts(6)
    alone = torch.cat([task.loss(model, task.encode([row])) for row in rows])
    assert torch.allclose(task.loss(model, task.encode(rows)), alone, atol=1e-6)
    fitted = task.fit_head(model, rows)
    assert list(fitted) == ["score.weight"]
    unpadded = task.fit_head(model, rows, batch_size=1)
    assert torch.allclose(fitted["score.weight"], unpadded["score.weight"], rtol=1e-3, atol=1e-4)
    with pytest.raises(GradfixError, match="row 0: ends with the end-of-sequence token"):
        task.encode([{"text": "good </s>", "label": 1}])


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path):
    directory = tiny.save_tiny_bert_classifier(tmp_path / "m")
    words = tiny.tokenizer(pad=False)
    words.eos_token = None
    words.save_pretrained(directory)
    with pytest.raises(GradfixError, match="the tokenizer cannot pad"):
        get_task("text-classification").bind(directory)


@pytest.mark.parametrize("word", ["<s>", "</s>"])
def test_a_tokenizer_that_breaks_on_any_text_is_refused(directory, tmp_path, word):
    import json

    target = tmp_path / "broken"
    shutil.copytree(directory, target)
    path = target / "tokenizer.json"
    written = json.loads(path.read_text())
    del written["post_processor"]["special_tokens"][word]
    path.write_text(json.dumps(written))
    with pytest.raises(GradfixError, match=r"tokenizer.json: breaks on any text .*take the tokenizer"):
        get_task("text-classification").bind(target)


def test_a_target_without_tokenizer_is_refused(directory, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(directory / name, bare)
    with pytest.raises(GradfixError, match=r"has no tokenizer \(expected a file such as tokenizer.json\)"):
        get_task("text-classification").load_model(bare)


def test_custom_code_is_refused(directory, tmp_path):
    import json

    target = tmp_path / "custom"
    shutil.copytree(directory, target)
    config = json.loads((target / "config.json").read_text())
    config["model_type"] = "their-own"
    config["auto_map"] = {
        "AutoConfig": "configuration_x.C",
        "AutoModelForSequenceClassification": "modeling_x.M",
    }
    (target / "config.json").write_text(json.dumps(config))
    (target / "configuration_x.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(GradfixError, match=r"needs custom code .* trust_remote_code"):
        get_task("text-classification").load_model(target)


def test_weights_of_another_model_are_refused(directory, tmp_path):
    target = tmp_path / "mixed"
    tiny.save_tiny_gpt2(target)
    shutil.copy(directory / "config.json", target)
    with pytest.raises(GradfixError, match="holds few of the weights of BertForSequenceClassification"):
        get_task("text-classification").load_model(target)


def test_an_unknown_task_or_option_is_refused():
    with pytest.raises(GradfixError, match="unknown task 'chess'; expected one of causal-lm"):
        get_task("chess")
    with pytest.raises(GradfixError, match=r"task text-classification: .*'colour'"):
        get_task("text-classification", colour="red")


@pytest.mark.slow
def test_importing_tasks_loads_neither_transformers_nor_datasets():
    code = "import sys, gradfix.tasks, gradfix.tasks.data; assert not {'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
