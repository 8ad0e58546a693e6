"""Preference pairs: the layouts of public data sets, and a loss that is DPO's with the new base as reference."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from gradfix.evaluation.binding import bind
from gradfix.evaluation.target_model import TargetModel
from gradfix.tasks import PreferencePairs, get_task
from gradfix.vectors.placement import own_weights, place
from tests import tiny
from tests.evaluation.families import preferences
from tests.tasks.test_causal_lm import CHAT

QUESTION, GOOD, BAD = "what is the capital", "the river city", "the house no no"
USER, RIGHT, WRONG = (
    {"role": role, "content": text}
    for role, text in (("user", QUESTION), ("assistant", GOOD), ("assistant", BAD))
)
LAYOUTS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
    "texts with a question": {"question": QUESTION, "chosen": GOOD, "rejected": BAD, "score": 1.0},
    "an instruction": {"instruction": QUESTION, "input": "", "chosen": GOOD, "rejected": BAD},
    "conversations": {"chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
    "conversations beside their prompt": {
        "prompt": QUESTION,
        "chosen": [USER, RIGHT],
        "rejected": [USER, WRONG],
    },
    "messages": {"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]},
    "a text and messages": {"prompt": QUESTION, "chosen": [RIGHT], "rejected": [WRONG]},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": QUESTION}],
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
    },
    "written out": {
        "chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {QUESTION}\n\nAssistant: {BAD}",
    },
}


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_gpt2(tmp_path_factory.mktemp("chat"), chat_template=CHAT)


def opened(directory: Path, rows: Any, **options: Any) -> TargetModel:
    target, task = Checkpoint.open(directory), get_task("causal-lm", **options).for_rows(rows)
    bind(task, target, None, rows)
    model = TargetModel.load(task, target, place(own_weights(target), target), batch_size=3)
    model.keep_reference(rows)
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_recognised(layout: str, chatting: Path) -> None:
    row = LAYOUTS[layout]
    task = get_task("causal-lm").for_rows([row])
    assert isinstance(task, PreferencePairs)
    task.bind(chatting)
    task.check([row])
    shared = f"<s> user {QUESTION} </s> <s> assistant the"
    assert task.rendered(row).split() == (f"{shared}⟦river city </s>⟧ rather than ⟦house no no </s>⟧".split())
    named = get_task("preference-pairs")
    named.bind(chatting)
    ours, theirs = task.encode([row]), named.encode([row])
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "reference")
    inputs, answer = task.shown(row)
    assert (inputs["messages"], inputs["chosen"], inputs["rejected"], answer) == ([USER], GOOD, BAD, "chosen")


def test_a_text_that_holds_its_prompt_needs_no_template(tmp_path: Path) -> None:
    row = {"chosen": f"question {QUESTION} answer {GOOD}", "rejected": f"question {QUESTION} answer {BAD}"}
    for template in (None, CHAT):
        task = get_task("preference-pairs")
        task.bind(tiny.save_tiny_gpt2(tmp_path / str(bool(template)), chat_template=template))
        assert task.rendered(row) == (
            f"question {QUESTION} answer the⟦river city </s>⟧ rather than ⟦house no no </s>⟧"
        )
    task = get_task("preference-pairs")
    task.bind(tmp_path / "False")
    with pytest.raises(
        GradfixError, match="no chat template, nor has the tuned model one that fits; give texts"
    ):
        task.check([LAYOUTS["messages"]])


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_the_loss_is_that_of_dpo(beta: float, chatting: Path) -> None:
    rows = preferences(7)
    model = opened(chatting, rows)
    task = model.task
    assert isinstance(task, PreferencePairs)
    task.beta = beta

    def ratio(row: Any) -> torch.Tensor:
        found = []
        for side in ("chosen", "rejected"):
            chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            ids = task.tokenizer.apply_chat_template(chat, return_tensors="pt")["input_ids"]
            start = task.tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True)["input_ids"]
            logs = model.model(ids).logits.log_softmax(dim=-1)[0]
            found.append(sum(logs[at - 1, ids[0, at]] for at in range(len(start), ids.shape[1])))
        return found[0] - found[1]

    reference = torch.stack([ratio(row).detach() for row in rows])
    model.move(model.vector, 0.2)
    losses = task.loss(model.model, task.encode(rows))
    moved = torch.stack([ratio(row).detach() for row in rows])
    assert (moved - reference).abs().min() > 0.05
    assert torch.allclose(losses, -logsigmoid(beta * (moved - reference)), atol=1e-4)
    alone = torch.cat([task.loss(model.model, task.encode([row])) for row in rows])
    assert torch.allclose(losses, alone, atol=1e-4)
    measured = model.evaluate(rows)
    assert measured.metric == "reward_accuracy"
    assert measured.scores == (moved > reference).float().tolist()
    assert measured.also["margin"] == pytest.approx(float((moved - reference).mean()), rel=1e-3)
    assert measured.also["preference_accuracy"] == pytest.approx(float((moved > 0).float().mean()))


def test_at_the_base_votes_are_the_signs_of_the_log_ratio(chatting: Path) -> None:
    rows = preferences(5)
    model = opened(chatting, rows)
    task = model.task
    assert isinstance(task, PreferencePairs)
    measured = model.evaluate(rows)
    assert (set(measured.scores), set(measured.predictions)) == ({0.5}, {"neither"})
    assert measured.losses == pytest.approx([0.6931] * 5, abs=1e-4)
    votes = model.votes(rows)
    parameters = {
        name: parameter for name, parameter in model.model.named_parameters() if name in model.names
    }
    signs = {name: torch.zeros_like(value) for name, value in parameters.items()}
    largest = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for row in rows:
        batch = task.encode([row])
        slopes = [
            torch.autograd.grad(function(model.model, batch).sum(), parameters.values())
            for function in (task.loss, task.log_ratios)
        ]
        for name, of_loss, of_ratio in zip(parameters, *slopes, strict=True):
            assert torch.allclose(of_loss, -task.beta / 2 * of_ratio, atol=1e-5), name
            signs[name] += of_ratio.sign()
            largest[name] = torch.maximum(largest[name], of_ratio.abs())
    turned = total = 0
    for name, wanted in signs.items():
        clear = largest[name] > 1e-4
        turned += int((votes[model.names[name]] != wanted)[clear].sum())
        total += int(clear.sum())
    assert total > 1000
    assert turned <= 0.002 * total  # gradients within rounding of zero


def test_a_model_alone_is_held_against_nothing(chatting: Path) -> None:
    rows = preferences(5)
    model = opened(chatting, rows)
    assert isinstance(model.task, PreferencePairs)
    batch = model.task.encode(rows)
    ratios = model.task.log_ratios(model.model, batch).detach()
    model.task.stand_alone()
    alone = model.evaluate(rows)
    assert alone.metric == "preference_accuracy"
    assert alone.losses == pytest.approx((-logsigmoid(0.1 * ratios)).tolist(), abs=1e-5)
    assert alone.score == pytest.approx(float((ratios > 0).float().mean()))
    assert 0 < alone.score < 1


def test_samples_whose_reference_is_unknown_have_no_loss(chatting: Path) -> None:
    model = opened(chatting, preferences(3))
    with pytest.raises(GradfixError, match="1 of 1 losses in a batch are not finite"):
        model.evaluate(preferences(9)[-1:])


def test_what_is_no_pair_is_refused(chatting: Path) -> None:
    task = get_task("preference-pairs")
    task.bind(chatting)
    for row, why in (
        ({**LAYOUTS["texts"], "rejected": GOOD}, "row 0: the chosen and the rejected reply are the same"),
        ({**LAYOUTS["texts"], "rejected": " "}, "column 'rejected': expected text, found nothing but blanks"),
        ({**LAYOUTS["texts"], "chosen": 3}, "column 'chosen': expected a text, or a list of messages"),
        ({"prompt": QUESTION, "chosen": GOOD}, "has no column 'rejected'"),
        (
            {"chosen": [USER, RIGHT], "rejected": [{**USER, "content": "where"}, WRONG]},
            "part at message 0, of the user and the user; expected two replies",
        ),
        (
            {"chosen": [USER, RIGHT, USER, RIGHT], "rejected": [USER, RIGHT]},
            "part at message 2, of the user and the nobody",
        ),
        (
            {"chosen": [USER, RIGHT], "rejected": [USER]},
            "expected the assistant's answer as the last message",
        ),
        (
            {**LAYOUTS["texts"], "chosen": "xyz", "rejected": "zyx"},
            "column 'chosen': has no token beyond those that",
        ),
    ):
        with pytest.raises(GradfixError, match=re.escape(why)):
            task.encode([row])
    both = {**LAYOUTS["conversations"], "messages": [USER, RIGHT]}
    with pytest.raises(GradfixError, match="replies to learn from and pairs of replies"):
        get_task("causal-lm").for_rows([both])
    assert get_task("causal-lm", messages="messages").for_rows([both]).name == "causal-lm"
    with pytest.raises(GradfixError, match="pairs of replies are compared, and none is generated"):
        get_task("causal-lm", metric="exact_match").for_rows([LAYOUTS["texts"]])
    with pytest.raises(
        GradfixError, match=re.escape("takes no beta; leave it out (preference-pairs takes it)")
    ):
        get_task("causal-lm", beta=0.2)
    with pytest.raises(GradfixError, match="beta: expected a number above 0, found 0"):
        get_task("preference-pairs", beta=0)
