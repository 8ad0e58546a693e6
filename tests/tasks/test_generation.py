"""Answers that are generated beside the loss, and how they are graded."""

import sys
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gradfix.errors import GradfixError
from gradfix.evaluation.evaluate import evaluate
from gradfix.plugins import register
from gradfix.tasks import get_task
from gradfix.tasks.generation import grader, seeded
from tests import tiny
from tests.tasks.test_causal_lm import CHAT

ROWS = [{"prompt": "what is good", "completion": "city river"}, {"prompt": "the", "completion": "cat"}]


def by_hand(task: Any, model: Any, prompt: list[int], ends: set[int], most: int) -> str:
    """The likeliest token each time, one after the other."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + most:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    return str(task.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("template", [None, CHAT])
def test_the_answer_is_the_likeliest_after_the_prompt(template: str | None, tmp_path: Any) -> None:
    task = get_task("causal-lm", metric="exact_match", max_new_tokens=5)
    model: Any = task.load_model(tiny.save_tiny_gpt2(tmp_path / "m", chat_template=template))
    assert task.generates
    batch = task.encode(ROWS)
    found = evaluate(model, task, ROWS)
    for number, row in enumerate(ROWS):
        labels = batch["labels"][number]
        start = int((labels != -100).nonzero().min())
        prompt = batch["input_ids"][number, :start].tolist()
        assert found.predictions[number] == by_hand(task, model, prompt, {2}, 5)
        assert found.scores[number] == float(found.predictions[number] == row["completion"])
    assert found.metric == "exact_match"
    plain = get_task("causal-lm")
    plain.bind(tmp_path / "m")
    assert found.losses == evaluate(model, plain, ROWS).losses


def test_of_a_conversation_the_last_answer_is_generated(tmp_path: Any) -> None:
    task = get_task("causal-lm", metric="exact_match", max_new_tokens=3)
    model: Any = task.load_model(tiny.save_tiny_gpt2(tmp_path / "m", chat_template=CHAT))
    turns = [("user", "good"), ("assistant", "film"), ("user", "bad"), ("assistant", "cat")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    seen = []
    task._grade = lambda answer, right: seen.append((answer, right)) or 0.0
    evaluate(model, task, rows)
    ids = task.encode(rows)["input_ids"][0].tolist()
    cat = task.tokenizer.convert_tokens_to_ids("cat")
    assert seen == [(by_hand(task, model, ids[: len(ids) - ids[::-1].index(cat) - 1], {2}, 3), "cat")]


@register("metric")
def shared_words(prediction: str, reference: str, *, weight: float = 1.0) -> float:
    ours, theirs = set(prediction.split()), set(reference.split())
    return weight * len(ours & theirs) / max(1, len(ours | theirs))


def test_a_function_of_the_users_own_grades(tmp_path: Any) -> None:
    task = get_task("text-to-text", metric="shared-words,weight=0.5", max_new_tokens=4)
    model = task.load_model(tiny.save_tiny_t5(tmp_path / "m"))
    rows = [{"input": "question good", "target": "answer yes"}]
    found = evaluate(model, task, rows)
    assert found.scores == pytest.approx([shared_words(found.predictions[0], "answer yes") / 2])
    assert grader(f"{__name__}:shared_words")(" a b", "b c ") == pytest.approx(1 / 3)


def test_grades_that_are_none_are_refused() -> None:
    register("metric", name="lengths")(lambda prediction, reference: len(prediction))
    with pytest.raises(GradfixError, match="gave 3; expected a number from 0 to 1"):
        grader("lengths")("abc", "b")
    with pytest.raises(GradfixError, match=r"bleurt.*unknown; choose from exact_match, rouge_l, chrf"):
        get_task("text-to-text", metric="bleurt")
    with pytest.raises(GradfixError, match="with candidates"):
        get_task("text-to-text", metric="exact_match", candidates=["a", "b"])
    with pytest.raises(GradfixError, match="takes no metric"):
        get_task("text-classification", metric="exact_match")


@pytest.mark.parametrize(("name", "module"), [("rouge_l", "rouge_score.rouge_scorer"), ("chrf", "sacrebleu")])
def test_a_library_that_is_missing_is_named(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(GradfixError, match=r"pip install 'gradfix\[generation\]'"):
        grader(name)


def test_the_libraries_grade() -> None:
    pytest.importorskip("rouge_score", reason="the extra generation is not installed")
    pytest.importorskip("sacrebleu", reason="the extra generation is not installed")
    assert grader("rouge_l")("the cat sat", "the cat sat down") == pytest.approx(6 / 7)
    assert grader("chrf")("the cat", "the cat") == pytest.approx(1.0)
    assert 0 < grader("chrf")("the cats", "a cat") < 1


def test_results_are_judged_by_what_is_generated_and_settings_are_not(tmp_path: Any) -> None:
    task = get_task("causal-lm", max_new_tokens=4)
    model: Any = task.load_model(tiny.save_tiny_gpt2(tmp_path / "m"))
    rows = [*ROWS, {"prompt": "what is good the red car", "completion": "city"}, *ROWS]
    assert (task.generates, task.metric) == (False, "token_accuracy")
    judge = task.judging()
    assert (judge.generates, judge.metric) == (True, "exact_match")
    batch = task.encode(rows)
    together = evaluate(model, judge, rows, batch_size=5)  # prompts of several lengths
    for number, answer in enumerate(together.predictions):
        start = int((batch["labels"][number] != -100).nonzero().min())
        prompt = batch["input_ids"][number, :start].tolist()
        assert answer == by_hand(task, model, prompt, {2}, 4)
    for metric in ("token_accuracy", "exact_match"):
        given = get_task("causal-lm", metric=metric)
        assert given.judging() is given
        assert (given.metric, given.generates) == (metric, metric == "exact_match")


def test_long_answers_ask_for_another_metric(tmp_path: Any) -> None:
    long = [{"prompt": "what", "completion": "city " * 12}]
    said = get_task("causal-lm").doubts(long)
    assert "answers have 12 words (median)" in said[0]
    assert not get_task("causal-lm").doubts(ROWS)
    assert not get_task("causal-lm", metric="token_accuracy").doubts(long)


USER = {"role": "user", "content": "what is good"}
SAID = {"role": "assistant", "content": "city"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "what is good"}]}
SHARED = {"from": "human", "value": "what is good"}
TEMPLATE = CHAT.replace(
    "message['content']",
    "(message['content'] if message['content'] is string else message['content'][0]['text'])",
)


@pytest.mark.parametrize(
    ("labelled", "row"),
    [
        ({"prompt": "the", "completion": "city"}, {"prompt": "what is good"}),
        ({"prompt": [USER], "completion": [SAID]}, {"prompt": [USER]}),
        ({"messages": [USER, SAID]}, {"messages": [USER]}),
        ({"messages": [USER, SAID]}, {"messages": [USER, SAID]}),  # what somebody answered is hidden
        ({"messages": [USER, SAID]}, {"messages": [USER, SAID, USER]}),
        ({"messages": [USER, SAID]}, {"messages": [PARTS]}),
        ({"conversations": [SHARED, {"from": "gpt", "value": "x"}]}, {"conversations": [SHARED]}),
    ],
)
def test_a_prompt_ends_where_the_chat_template_asks_for_an_answer(
    labelled: Any, row: Any, tmp_path: Any
) -> None:
    task: Any = get_task("causal-lm")
    task.bind(tiny.save_tiny_gpt2(tmp_path / "m", chat_template=TEMPLATE))
    task.check([labelled])
    (asked,) = task.prompts([row])
    ((prompt, limits, _),) = task._last_answers(task.encode([asked]), 5)
    several = len(row.get("messages", ())) == 3
    turns = [USER, SAID, USER] if several else [USER]
    assert prompt == task.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert limits == (5, (task.tokenizer.eos_token_id,))
    labels = task.encode([task.answered(asked, " no yes ")])["labels"][0]
    said = "city </s> no yes </s>" if several else "no yes </s>"
    assert task.tokenizer.decode(labels[labels != -100]) == said


@pytest.mark.parametrize(
    ("row", "read", "wrote", "kept"),
    [
        ({"prompt": "what is good"}, "what is good", " film no", " film no"),
        ({"prompt": "what is good "}, "what is good ", " film no", "film no"),
        ({"prompt": "what is good", "input": "film\n"}, "what is good\n\nfilm\n", " no", "no"),
        ({"instruction": "what is good", "input": ""}, "what is good\n\n", " film no\n", "film no\n"),
    ],
)
def test_without_a_template_an_answer_keeps_the_blank_between_it_and_its_prompt(
    row: Any, read: str, wrote: str, kept: str, tmp_path: Any
) -> None:
    """By a tokenizer whose words begin with their blanks, as that of GPT-2."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=letters, show_progress=False)
    inner.train_from_iterator(["what is good film no answer goodanswer"] * 5, trainer)
    tiny.save_tiny_gpt2(tmp_path / "m")
    words = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    words.save_pretrained(tmp_path / "m")
    task: Any = get_task("causal-lm", **({"input": "input"} if {"prompt", "input"} <= row.keys() else {}))
    task.bind(tmp_path / "m")
    column = "output" if "instruction" in row else "completion"
    task.check([{**row, column: "film"}])
    (asked,) = task.prompts([row])
    ((prompt, _, _),) = task._last_answers(task.encode([asked]), 5)
    assert words.decode(prompt) == read.removesuffix(" ")
    assert task._continuation(prompt, words(wrote)["input_ids"]) == wrote
    answered = task.answered(asked, wrote)
    assert answered[column] == kept
    assert words.decode(task.encode([answered])["input_ids"][0]) == f"{read}{kept}</s>"


def test_an_encoder_and_decoder_write_to_the_end_and_of_candidates_the_best(tmp_path: Any) -> None:
    task: Any = get_task("text-to-text")
    model: Any = task.load_model(tiny.save_tiny_t5(tmp_path / "m"))
    rows = [{"input": f"question {word} red"} for word in tiny.WORDS[:12]]
    ids = task.encode(task.prompts(rows))
    likeliest = model.generate(ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=4)
    model.generation_config.eos_token_id = [1, int(likeliest[0, 3])]
    found = []
    for row in rows:
        own = task.encode(task.prompts([row]))["input_ids"]
        new = model.generate(own, do_sample=False, max_new_tokens=4)[0]
        ended = new[-1] in torch.tensor(model.generation_config.eos_token_id)
        found.append(task.tokenizer.decode(new, skip_special_tokens=True) if ended else None)
    assert task.write(model, ids, most=4) == found
    assert {None} < set(found)
    ranked: Any = get_task("text-to-text", candidates=["answer no", "answer yes"])
    ranked.bind(tmp_path / "m")
    evaluated = evaluate(model, ranked, [{**row, "target": "answer yes"} for row in rows])
    assert ranked.write(model, ranked.encode(ranked.prompts(rows)), most=4) == evaluated.predictions


def test_draws_are_of_the_models_own_distribution_and_repeat_by_their_seed(tmp_path: Any) -> None:
    task: Any = get_task("causal-lm")
    model: Any = task.load_model(tiny.save_tiny_gpt2(tmp_path / "m"))
    model.generation_config.update(temperature=0.01, top_k=1, do_sample=True)
    ids = task.tokenizer("what is")["input_ids"]
    state = torch.random.get_rng_state()

    def drawn(seed: int) -> list[int]:
        with seeded(model, seed):
            return [tokens[0] for tokens in task._generated(model, [(ids, (1, ()))] * 4000, draw=True)]

    found = drawn(0)
    assert found == drawn(0)
    assert found != drawn(1)
    assert torch.equal(state, torch.random.get_rng_state())
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0, -1].softmax(0)
    shares = torch.bincount(torch.tensor(found), minlength=len(wanted)) / len(found)
    assert float((shares - wanted).abs().max()) < 0.03  # four standard errors of a share
