import re

import pytest
import torch

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from gradfix.evaluation.binding import bind
from gradfix.tasks import get_task
from gradfix.vectors.task_vector import TaskVector
from tests import tiny

CHAT = (
    "{% for message in messages %}<s> {{ message['role'] }} {{ message['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)
ROWS = [
    {"prompt": "what is the capital", "completion": " city river"},
    {"prompt": "good", "completion": " film not very good really so loved"},
    {"prompt": "the red car", "completion": " no"},
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    task = get_task("causal-lm")
    return task, task.load_model(tiny.save_tiny_gpt2(tmp_path_factory.mktemp("gpt2")))


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    return tiny.save_tiny_gpt2(tmp_path_factory.mktemp("chat"), chat_template=CHAT)


def predicted(task, batch, index):
    labels = batch["labels"][index]
    return task.tokenizer.decode(labels[labels != -100])


def test_only_the_completion_and_its_end_are_predicted(loaded):
    task, model = loaded
    batch = task.encode(ROWS)
    assert [predicted(task, batch, index) for index in range(3)] == [
        "city river </s>",
        "film not very good really so loved </s>",
        "no </s>",
    ]
    losses = task.loss(model, batch)
    for index, row in enumerate(ROWS):
        ids = task.tokenizer(row["prompt"] + row["completion"] + " </s>", return_tensors="pt")["input_ids"]
        start = len(task.tokenizer(row["prompt"])["input_ids"])
        logs = model(ids).logits.log_softmax(dim=-1)[0]
        expected = -torch.stack([logs[at - 1, ids[0, at]] for at in range(start, ids.shape[1])]).mean()
        assert torch.isclose(losses[index], expected, atol=1e-5)
    assert losses.dtype == torch.float32
    assert losses.std() > 0.01


def test_the_prompt_is_context(loaded):
    task, model = loaded
    changed = {**ROWS[0], "prompt": "where is the river"}
    before, after = task.loss(model, task.encode([ROWS[0]])), task.loss(model, task.encode([changed]))
    assert not torch.isclose(before, after)


def test_padding_with_the_end_token_changes_no_loss(loaded):
    task, model = loaded
    assert task.tokenizer.pad_token_id is None
    together = task.loss(model, task.encode(ROWS))
    alone = torch.cat([task.loss(model, task.encode([row])) for row in ROWS])
    assert torch.allclose(together, alone, atol=1e-6)
    features = task.features(model, task.encode(ROWS))
    alone = torch.cat([task.features(model, task.encode([row])) for row in ROWS])
    assert features.shape == (3, 16)
    assert torch.allclose(features, alone, atol=1e-5)


def test_the_score_is_the_share_of_tokens_ranked_first(loaded):
    task, model = loaded
    batch = task.encode(ROWS)
    measured = task.measure(model, batch)
    for index in range(3):
        places = (batch["labels"][index] != -100).nonzero().flatten()
        logits = model(batch["input_ids"][index : index + 1]).logits[0]
        first = logits[places - 1].argmax(dim=-1)
        expected = (first == batch["labels"][index][places]).float().mean()
        assert measured.scores[index] == expected
        assert measured.predictions[index] == task.tokenizer.decode(first, skip_special_tokens=True)
    assert torch.equal(measured.losses, task.loss(model, batch))


def test_too_long_a_sample_loses_the_start_of_its_prompt_then_the_end_of_its_completion(loaded):
    task, model = loaded
    rows = [
        {"prompt": "red " * 70 + "blue", "completion": " yes"},
        {"prompt": "blue red", "completion": " yes" * 80},
        ROWS[0],
    ]
    batch = task.encode(rows)
    assert batch["truncated"].tolist() == [True, True, False]
    assert batch["input_ids"].shape == (3, 64)
    assert predicted(task, batch, 0) == "yes </s>"
    assert task.tokenizer.decode(batch["input_ids"][0, -3:]) == "blue yes </s>"
    assert predicted(task, batch, 1) == " ".join(["yes"] * 63)
    assert task.tokenizer.decode(batch["input_ids"][1, :2]) == "red yes"
    assert torch.isfinite(task.loss(model, batch)).all()
    with pytest.raises(GradfixError, match="row 0: 73 tokens, longer than the model's context of 64"):
        task.encode(rows, strict=True)


def test_a_chat_template_is_used_where_there_is_one(chatting):
    task = get_task("causal-lm")
    model = task.load_model(chatting)
    batch = task.encode(ROWS[:1])
    text = task.tokenizer.decode(batch["input_ids"][0])
    assert " ".join(text.split()) == "<s> user what is the capital </s> <s> assistant city river </s>"
    assert predicted(task, batch, 0) == "city river </s>"
    assert torch.isfinite(task.loss(model, batch)).all()
    plain = get_task("causal-lm", chat=False)
    plain.bind(chatting)
    assert "user" not in plain.tokenizer.decode(plain.encode(ROWS[:1])["input_ids"][0])


TURNS = [
    {"role": "user", "content": "good book"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "bad film"},
    {"role": "assistant", "content": "no really"},
]


def test_of_a_conversation_every_answer_is_predicted(chatting):
    task = get_task("causal-lm", messages="turns")
    model = task.load_model(chatting)
    batch = task.encode([{"turns": TURNS}])
    assert predicted(task, batch, 0) == "yes </s> no really </s>"
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    logs = model(ids[None]).logits.log_softmax(dim=-1)[0]
    places = [at for at in range(len(ids)) if labels[at] != -100]
    assert len(places) == 5
    expected = -torch.stack([logs[at - 1, ids[at]] for at in places]).mean()
    assert torch.isclose(task.loss(model, batch)[0], expected, atol=1e-5)
    assert task.measure(model, batch).predictions[0].count("\n") == 1
    assert task.size({"turns": TURNS}) == len("good bookyesbad filmno really")
    for wrong, message in [
        (TURNS[:3], "expected the assistant's answer as the last message"),
        ("good", "expected a list of messages with role and content"),
        ([], "expected the assistant's answer"),
        ([TURNS[0], {"role": "assistant", "content": None}], "expected the assistant's answer"),
    ]:
        with pytest.raises(GradfixError, match=f"row 0: column 'turns': {message}"):
            task.check([{"turns": wrong}])


def test_a_conversation_is_shown_as_it_is_read_and_judged(chatting):
    task = get_task("causal-lm")
    task.bind(chatting)
    row = {"messages": TURNS}
    task.check([row])
    inputs, answer = task.shown(row)
    assert inputs == {"messages": TURNS}
    assert answer == "yes\nno really"
    read = task.rendered(row)
    assert re.findall("⟦(.*?)⟧", read) == ["yes </s>", "no really </s>"]
    assert read.startswith("<s> user good book </s> <s> assistant")
    assert get_task("causal-lm").shown({"prompt": "good", "completion": "yes"}) == ({"prompt": "good"}, "yes")


def test_too_long_a_conversation_keeps_its_first_answer(chatting):
    task = get_task("causal-lm", messages="turns", max_length=9)
    task.bind(chatting)
    batch = task.encode([{"turns": TURNS}])
    assert batch["truncated"].tolist() == [True]
    assert task.tokenizer.decode(batch["input_ids"][0]) == "assistant yes </s> <s> user bad film </s> <s>"
    assert predicted(task, batch, 0) == "yes </s>"


ALPACA = [
    {"instruction": "what is the question", "input": "the red car", "output": "maybe good"},
    {"instruction": "what is the river", "input": "", "output": "yes"},
]


@pytest.mark.parametrize("named", [{}, {"prompt": "instruction", "completion": "output"}])
def test_what_an_instruction_is_about_is_read(loaded, chatting, tmp_path, named):
    plain, chat = get_task("causal-lm", **named), get_task("causal-lm", **named)
    plain.bind(tiny.save_tiny_gpt2(tmp_path))
    chat.bind(chatting)
    for task, texts in (
        (plain, ["what is the question the red car maybe good </s>", "what is the river yes </s>"]),
        (
            chat,
            [
                "<s> user what is the question the red car </s> <s> assistant maybe good </s>",
                "<s> user what is the river </s> <s> assistant yes </s>",
            ],
        ),
    ):
        task.check(ALPACA)
        batch = task.encode(ALPACA)
        lengths = batch["attention_mask"].sum(dim=1)
        read = [task.tokenizer.decode(ids[:n]) for ids, n in zip(batch["input_ids"], lengths, strict=True)]
        assert read == texts
        assert [predicted(task, batch, index) for index in range(2)] == ["maybe good </s>", "yes </s>"]
        assert set(task.columns.values()) == {"instruction", "input", "output"}


def test_the_empty_line_after_an_instruction_is_the_prompts(chatting):
    task = get_task("causal-lm", chat=False)
    task.bind(chatting)
    messages = task._conversations(ALPACA)
    assert [turns[0]["content"] for turns in messages] == [
        "what is the question\n\nthe red car",
        "what is the river",
    ]


def test_what_the_prompt_is_about_can_be_named(loaded, chatting):
    task = get_task("causal-lm", input="context")
    task.bind(chatting)
    row = {"prompt": "what is the film", "context": "a dull film", "completion": "bad"}
    assert "film a dull film </s>" in " ".join(
        task.tokenizer.decode(task.encode([row])["input_ids"][0]).split()
    )
    with pytest.raises(GradfixError, match="row 0: column 'prompt': expected text, found int"):
        task.check([{**row, "context": 3}])
    assert loaded[0].unread_texts([row]) == ["context"]


def test_a_conversation_of_sharegpt_is_the_same(chatting):
    turns = [
        ("system", "yes"),
        ("user", "what is good"),
        ("assistant", "film"),
        ("user", "and"),
        ("assistant", "cat"),
    ]
    messages = [{"role": role, "content": text} for role, text in turns]
    names = {"user": "human", "assistant": "gpt"}
    shared = [{"from": names.get(role, role), "value": text} for role, text in turns]
    known, task = get_task("causal-lm"), get_task("causal-lm")
    for one in (known, task):
        one.bind(chatting)
    plain = known.encode([{"messages": messages}])
    task.check([{"conversations": shared}])
    found = task.encode([{"conversations": shared}])
    assert found["input_ids"].tolist() == plain["input_ids"].tolist()
    assert found["labels"].tolist() == plain["labels"].tolist()
    turns = task.shown({"conversations": shared})[0]["messages"]
    assert [turn["role"] for turn in turns][:2] == ["system", "user"]
    assert turns[1]["content"].startswith("what is good")
    assert task.size({"conversations": shared}) > 0
    for wrong, message in (
        ({**shared[1], "from": "narrator"}, "a turn is from 'narrator'"),
        ({**shared[2], "weight": 0}, "weight 0"),
    ):
        with pytest.raises(GradfixError, match=message):
            task.check([{"conversations": [*shared[:3], wrong, shared[4]]}])


def test_rows_that_can_be_read_in_two_ways_are_refused(chatting):
    task = get_task("causal-lm")
    task.bind(chatting)
    with pytest.raises(
        GradfixError,
        match=r"row 0: can be read in 2 ways; say which with prompt='prompt' or messages='messages'",
    ):
        task.check([{**ROWS[0], "messages": TURNS}])
    with pytest.raises(GradfixError, match="give either messages='NAME' or prompt='NAME'"):
        get_task("causal-lm", messages="messages", prompt="prompt")


def test_a_template_that_refuses_is_reported_with_the_row(tmp_path):
    directory = tiny.save_tiny_gpt2(tmp_path, chat_template="{{ raise_exception('roles must alternate') }}")
    task = get_task("causal-lm")
    task.bind(directory)
    with pytest.raises(GradfixError, match=r"row 0: the chat template refuses .*\(roles must alternate\)"):
        task.encode(ROWS[:1])


def test_what_cannot_be_used_is_refused(loaded, tmp_path):
    task, _ = loaded
    with pytest.raises(
        GradfixError, match="row 0: column 'completion': expected text, found nothing but blanks"
    ):
        task.check([{"prompt": "good", "completion": " "}])
    with pytest.raises(GradfixError, match="row 0: column 'prompt': expected text, found NoneType"):
        task.check([{"prompt": None, "completion": "good"}])
    directory = tiny.save_tiny_gpt2(tmp_path)
    untold = get_task("causal-lm", messages="messages")
    untold.bind(directory)
    with pytest.raises(
        GradfixError, match="no chat template, nor has the tuned model one that fits; give prompt"
    ):
        untold.check([{"messages": TURNS}])
    with pytest.raises(GradfixError, match="needs at least 2 tokens, found 1"):
        get_task("causal-lm", max_length=1).bind(directory)


def test_prompt_and_completion_may_be_messages(chatting):
    task = get_task("causal-lm")
    task.bind(chatting)
    parts = {"prompt": TURNS[:-1], "completion": TURNS[-1:]}
    task.check([parts])
    whole = get_task("causal-lm", messages="messages")
    whole.bind(chatting)
    assert task.rendered(parts) == whole.rendered({"messages": TURNS})
    assert task.shown(parts) == whole.shown({"messages": TURNS})
    with pytest.raises(
        GradfixError, match="column 'prompt': expected lists of messages, in the completion, too"
    ):
        task.check([{**parts, "prompt": "good"}])
    with pytest.raises(GradfixError, match="row 0: column 'prompt'"):
        task.check([{**parts, "completion": [{"role": "assistant"}]}])


def test_prompt_and_completion_of_messages_need_a_chat_template(tmp_path):
    task = get_task("causal-lm")
    task.bind(tiny.save_tiny_gpt2(tmp_path))
    with pytest.raises(GradfixError, match="has no chat template"):
        task.check([{"prompt": TURNS[:-1], "completion": TURNS[-1:]}])


def test_a_completion_that_leaves_no_token_to_predict_is_refused(tmp_path):
    task = get_task("causal-lm")
    task.bind(tiny.save_tiny_gpt2(tmp_path))
    task.tokenizer.eos_token = None
    with pytest.raises(GradfixError, match="row 0: the completion has no token to predict"):
        task.encode(
            [{"prompt": "good", "completion": "film"}]
        )  # one word together, and the first is never predicted


def test_tools_may_be_written_as_json(tmp_path):
    template = "{% if tools %}{{ tools[0]['name'] }} {% endif %}" + CHAT
    task = get_task("causal-lm")
    task.bind(tiny.save_tiny_gpt2(tmp_path, chat_template=template))
    rows = [
        {"messages": TURNS, "tools": tools}
        for tools in ('[{"name": "river"}]', [{"name": "river"}], "", None)
    ]
    shown = [task.rendered(row) for row in rows]
    assert shown[0] == shown[1]
    assert shown[0].startswith("river <s>")
    assert shown[2] == shown[3]
    with pytest.raises(GradfixError, match="row 0: column 'tools': expected a list of tools, found dict"):
        task.encode([{"messages": TURNS, "tools": "{}"}])


def test_the_template_that_the_fine_tune_learnt_is_used(tmp_path):
    places = {name: tmp_path / name for name in ("old", "mine", "new")}
    for name, place in places.items():
        tiny.save_tiny_gpt2(place, chat_template=CHAT if name == "mine" else None)
    rows = [{"messages": TURNS}]
    task, target = get_task("causal-lm"), Checkpoint.open(places["new"])
    bind(task, target, TaskVector.between(places["old"], places["mine"]), rows)
    task.check(rows)
    assert task.tokenizer.chat_template == CHAT
    alone = get_task("causal-lm")
    bind(alone, target, None, rows)
    with pytest.raises(GradfixError, match="has no chat template, nor has the tuned model one that fits"):
        alone.check(rows)
