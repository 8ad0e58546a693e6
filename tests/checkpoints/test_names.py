"""Names that differ by one prefix or by legacy spelling are the same names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradfix.checkpoints import match_names
from gradfix.errors import GradfixError

BODY = ["embeddings.word.weight", "encoder.layer.0.weight", "encoder.layer.0.bias", "pooler.weight"]


@pytest.mark.parametrize(
    "prefix",
    ["model.", "module.", "_orig_mod.", "base_model.model.", "bert.", "vit.", "some_body.", "module.bert."],
)
def test_one_prefix_is_added_or_removed(prefix: str) -> None:
    longer = [prefix + name for name in BODY]
    added = match_names(BODY, [*longer, "classifier.weight"])
    assert added.names == dict(zip(BODY, longer, strict=True))
    assert added.rule == f"source names + {prefix!r}"
    assert added.unmatched_source == ()
    assert added.unmatched_target == ("classifier.weight",)
    assert added.rename("classifier.bias") == prefix + "classifier.bias"
    removed = match_names([*longer, "head.weight"], BODY)
    assert removed.names == dict(zip(longer, BODY, strict=True))
    assert removed.rule == f"source names − {prefix!r}"
    assert removed.unmatched_source == ("head.weight",)
    assert removed.rename(f"{prefix}x") == "x"


def test_equal_names_come_first() -> None:
    match = match_names(["bert.a", "cls.x"], ["bert.a", "classifier.weight", "bert.cls.y"])
    assert match.rule == "equal names"
    assert match.names == {"bert.a": "bert.a"}
    assert (match.unmatched_source, match.unmatched_target) == (
        ("cls.x",),
        ("classifier.weight", "bert.cls.y"),
    )


def test_a_head_with_an_equal_name_stays_beside_the_prefix() -> None:
    match = match_names([*BODY, "lm_head.weight"], [*(f"model.{name}" for name in BODY), "lm_head.weight"])
    assert match.names["lm_head.weight"] == "lm_head.weight"
    assert len(match.names) == 5
    assert match.rule == "source names + 'model.'"


def test_legacy_spelling_is_matched_both_ways() -> None:
    old = ["LayerNorm.gamma", "LayerNorm.beta", "conv.weight_g", "conv.weight_v"]
    new = [
        "LayerNorm.weight",
        "LayerNorm.bias",
        "conv.parametrizations.weight.original0",
        "conv.parametrizations.weight.original1",
    ]
    assert match_names(old, new).names == dict(zip(old, new, strict=True))
    assert match_names(new, old).names == dict(zip(new, old, strict=True))
    prefixed = [f"bert.{name}" for name in new]
    assert match_names(old, prefixed).names == dict(zip(old, prefixed, strict=True))
    assert match_names(prefixed, old).names == dict(zip(prefixed, old, strict=True))
    # a gamma that transformers doesn't rename stays what it is
    assert match_names(["scale.gamma"], ["scale.weight"]).names == {}


def test_two_equally_good_prefixes_are_refused() -> None:
    target = [f"{tower}.{name}" for tower in ("text_model", "vision_model") for name in BODY]
    with pytest.raises(
        GradfixError, match=r"4 names coincide by source names \+ 'text_model.' and as many by"
    ):
        match_names(BODY, target)


def test_a_few_chance_hits_of_an_unknown_prefix_are_no_rule() -> None:
    match = match_names(["a.x", "b.y", "c.z", "w"], ["a.x", "b.y", "c.z", "odd.w"])
    assert match.rule == "equal names"
    assert match.unmatched_target == ("odd.w",)


@given(
    st.lists(st.text("ab.", min_size=1, max_size=6), unique=True),
    st.lists(st.text("ab.", min_size=1, max_size=6)),
)
def test_a_match_is_one_to_one_and_complete(source: list[str], target: list[str]) -> None:
    target = list(dict.fromkeys(target))
    try:
        match = match_names(source, target)
    except GradfixError:
        return
    assert len(set(match.names.values())) == len(match.names)
    assert set(match.names) | set(match.unmatched_source) == set(source)
    assert set(match.names.values()) | set(match.unmatched_target) == set(target)
    assert {name for name in source if name in target} <= {*match.names, *match.names.values()}
