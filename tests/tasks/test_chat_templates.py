"""Chat templates are programs: they say the same in a bounded process, and are stopped where they go on and on."""

from typing import Any

import pytest

from gradfix.tasks.chat_templates import bounded_templates
from tests.tiny import tokenizer

CHAT = [{"role": "user", "content": "what is red"}, {"role": "assistant", "content": "a cat"}]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ bos_token }}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def rendered(template: str, **options: Any) -> str:
    words = tokenizer()
    words.chat_template = template
    with bounded_templates():
        text: str = words.apply_chat_template(CHAT, tokenize=False, **options)
    return text


@pytest.mark.parametrize("prompt", [False, True])
def test_a_template_says_what_it_says_without_bounds(prompt: bool) -> None:
    words = tokenizer()
    words.chat_template = TEMPLATE
    plain = words.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
    assert rendered(TEMPLATE, add_generation_prompt=prompt) == plain


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 1 // 0 }}", "division by zero|modulo by zero"),
        ("{{ raise_exception('no system turn') }}", "no system turn"),
        ("{{ 'x' * 10 ** 10 }}", "more memory|takes more than"),
        pytest.param(
            "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "more memory|takes",
            marks=pytest.mark.slow,
        ),
        ("{{ messages.nothing.at_all }}", "no attribute"),
        ("{% for", "unexpected|expected|Expected"),
    ],
)
def test_a_template_that_fails_is_told_with_its_reason(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rendered(template)
    assert rendered("{{ messages[0].content }}") == "what is red"  # and the next one is rendered


def test_a_template_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rendered("x") == "x"  # the process is there
    monkeypatch.setattr("gradfix.tasks.chat_templates.SECONDS", 0.5)
    loops = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
    with pytest.raises(ValueError, match="takes more than"):
        rendered(loops)
