"""What the assistant said, in chat templates of the kinds that people have; every character is a token here."""

import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gradfix.errors import GradfixError
from gradfix.tasks.chat import spoken_tokens, tokens_of_spans

SPECIAL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>",
]  # fmt: skip

TEMPLATES = {
    "chatml": (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama2": (
        "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] | trim }} [/INST]"
        "{% elif m['role'] == 'assistant' %} {{ m['content'] | trim }} </s>{% endif %}{% endfor %}"
    ),
    "llama3": (
        "<s>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}"
        "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
        "{% endif %}"
    ),
    "gemma": (
        "<s>{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    # The system's words stand in the last turn of the user, so that no prefix of a conversation is its beginning.
    "mistral": (
        "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}<s>"
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
        "{% if loop.index0 >= messages | length - 2 and system %}{{ system }}\n\n{% endif %}{{ m['content'] }} [/INST]"
        "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
    ),
    # An empty thought is written before the last answer alone.
    "qwen3": (
        "{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}<|im_start|>assistant\n"
        "{% set parts = m['content'].split('</think>') %}"
        "<think>\n{{ parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' }}\n</think>\n\n"
        "{{ parts[-1].lstrip('\n') }}<|im_end|>\n"
        "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "without an end": (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "words alone": (
        "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}"
    ),
    "end of the whole": (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{{ '</s>' }}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    ),
}
ENDS = {
    "chatml": "<|im_end|>", "llama2": " </s>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "zephyr": "</s>",
    "mistral": "</s>", "qwen3": "<|im_end|>", "without an end": "", "words alone": "",
}  # fmt: skip
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}"
    "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = [
    {"role": "user", "content": "yes or no?"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "answer0 assistant\nyes"},
    {"role": "assistant", "content": "No.\n\nNever, naïve one 🙂"},
]


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A token a byte, and the special ones of all templates."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", clean_up_tokenization_spaces=False
    )
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    made.chat_template = template
    return made


def said(words: PreTrainedTokenizerFast, chat: list[dict], **options: object) -> list[str]:
    """The runs of tokens that are the assistant's, as text."""
    ids, mask = spoken_tokens(words, chat, "row 0", **options)
    assert len(ids) == len(mask)
    runs, before = [], False
    for token, spoken in zip(ids, mask, strict=True):
        if spoken and not before:
            runs.append([])
        if spoken:
            runs[-1].append(token)
        before = spoken
    return [words.decode(run) for run in runs]


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("system", [False, True])
def test_every_answer_and_its_end_and_nothing_else(name: str, system: bool) -> None:
    words = tokenizer(TEMPLATES[name])
    chat = [{"role": "system", "content": "Be brief."}] * system + CHAT
    expected = [message["content"] + ENDS[name] for message in CHAT if message["role"] == "assistant"]
    assert said(words, chat) == expected
    ids, _ = spoken_tokens(words, chat, "row 0")
    assert words.decode(ids) == words.apply_chat_template(chat, tokenize=False)


def test_an_end_that_stands_once_belongs_to_the_last_answer_only() -> None:
    assert said(tokenizer(TEMPLATES["end of the whole"]), CHAT[:2]) == ["yes\n</s>"]
    assert said(tokenizer(TEMPLATES["end of the whole"]), CHAT) == ["yes", f"{CHAT[3]['content']}\n</s>"]


def test_a_template_that_marks_the_assistants_words_is_believed() -> None:
    assert said(tokenizer(MARKED), CHAT) == ["yes<|im_end|>", f"{CHAT[3]['content']}<|im_end|>"]
    # Whatever it marks: here the end of the turn is left out.
    narrow = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    assert said(tokenizer(narrow), CHAT) == ["yes", CHAT[3]["content"]]


def test_blanks_that_a_template_takes_off_are_not_looked_for() -> None:
    chat = [CHAT[0], {"role": "assistant", "content": "  yes \n"}]
    assert said(tokenizer(TEMPLATES["llama3"]), chat) == ["yes<|eot_id|>"]
    assert said(tokenizer(TEMPLATES["chatml"]), chat) == ["  yes \n<|im_end|>"]


def test_thoughts_in_the_answer_are_the_assistants_where_they_are_shown() -> None:
    thinking = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}
    words = tokenizer(TEMPLATES["qwen3"])
    assert said(words, [CHAT[0], thinking]) == ["<think>\nhm\n</think>\n\nyes<|im_end|>"]
    assert said(words, [CHAT[0], thinking, *CHAT[2:]]) == ["yes<|im_end|>", f"{CHAT[3]['content']}<|im_end|>"]


def test_thoughts_of_their_own_field_are_the_assistants_where_they_are_shown() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if loop.last and m['reasoning_content'] %}<think>{{ m['reasoning_content'] }}</think>{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    thinking = [
        {**message, "reasoning_content": "hm"} if message["role"] == "assistant" else message
        for message in CHAT
    ]
    assert said(tokenizer(template), thinking) == [
        "yes<|im_end|>",
        f"<think>hm</think>{CHAT[3]['content']}<|im_end|>",
    ]


def test_an_answer_of_parts() -> None:
    template = TEMPLATES["chatml"].replace(
        "{{ m['content'] }}", "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    )  # fmt: skip
    parts = [{"type": "text", "text": "yes, "}, {"type": "text", "text": "sure"}]
    assert said(tokenizer(template), [CHAT[0], {"role": "assistant", "content": parts}]) == [
        "yes, sure<|im_end|>"
    ]


def test_calls_of_tools_are_the_assistants() -> None:
    template = (
        "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] or '' }}{% if m['tool_calls'] %}call {{ m['tool_calls'][0]['name'] }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}
    chat = [CHAT[0], call, {"role": "tool", "content": "found"}, CHAT[1]]
    words = tokenizer(template)
    assert said(words, chat, tools=[{"name": "look"}]) == ["call look<|im_end|>", "yes<|im_end|>"]
    ids, _ = spoken_tokens(words, chat, "row 0", tools=[{"name": "look"}])
    assert words.decode(ids).startswith('tools: [{"name": "look"}]')


def test_an_empty_answer_between_others_says_nothing() -> None:
    chat = [CHAT[0], {"role": "assistant", "content": " "}, *CHAT[2:]]
    assert said(tokenizer(TEMPLATES["chatml"]), chat) == [f"{CHAT[3]['content']}<|im_end|>"]


def test_an_answer_that_a_template_rewrites_beyond_recognition_is_refused() -> None:
    template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] | upper }} {{ messages | length }}{% endfor %}"
    with pytest.raises(GradfixError, match=re.escape("row 0: the chat template rewrites the conversation")):
        said(tokenizer(template), CHAT)


@pytest.mark.parametrize("message", ["{{ raise_exception('no') }}", "{{ messages[0]['content'] + 1 }}"])
def test_a_template_that_fails_is_reported(message: str) -> None:
    with pytest.raises(GradfixError, match="row 0: the chat template refuses this conversation"):
        said(tokenizer(message), CHAT)


class Slow:
    """A tokenizer that knows no offsets: pairs of characters, so that spans begin and end inside tokens."""

    is_fast = False

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [hash(text[place : place + 2]) for place in range(0, len(text), 2)]}


def test_tokens_without_offsets_count_if_any_of_their_characters_does() -> None:
    for first in range(8):
        for last in range(first + 1, 9):
            _, inside = tokens_of_spans(Slow(), "abcdefgh", [(first, last)])
            assert inside == [any(first <= place < last for place in (2 * n, 2 * n + 1)) for n in range(4)]
