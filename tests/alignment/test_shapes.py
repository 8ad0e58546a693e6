"""Alignment between models of other widths, depths and tokenizers: expansions that compute the same are recovered."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from gradfix.alignment import Aligned, regression, require_something
from gradfix.alignment.activations import Activations, Point
from gradfix.alignment.blocks import Writer, find_writers
from gradfix.alignment.depths import cka, depths_of, points_of
from gradfix.alignment.regression import SOURCE, TARGET, TUNED, fit_blocks
from gradfix.alignment.rows import OverGrid, each_token, rows_for
from gradfix.alignment.token_spans import spans_between, token_texts
from gradfix.checkpoints.expressions import Given
from gradfix.errors import AlignmentError
from gradfix.tasks import get_task
from gradfix.vectors.task_vector import TaskVector
from tests import tiny

WIDTH, SAMPLES = 24, 64


def llama(layers: int = 3, width: int = WIDTH) -> LlamaForCausalLM:
    """A Llama in which no other dimension has the stream's width."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=width, intermediate_size=40, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=32, initializer_range=0.3, rms_norm_eps=1e-12,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def widened(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same function with every coordinate of the stream twice: readers halve, and a norm's mean stays."""
    wide = llama(model.config.num_hidden_layers, 2 * WIDTH)
    values = {}
    for name, value in model.state_dict().items():
        reads = value.dim() == 2 and value.shape[1] == WIDTH and "embed" not in name
        for axis in range(value.dim()):
            if value.shape[axis] == WIDTH:
                value = torch.cat([value, value], dim=axis)
        values[name] = value / 2 if reads else value
    wide.load_state_dict(values)
    return wide


def deepened(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same function with a block more after the first, which writes nothing yet."""
    deep = llama(model.config.num_hidden_layers + 1)
    state = model.state_dict()
    values = {}
    for name, value in deep.state_dict().items():
        parts = name.split(".")
        if parts[1] == "layers":
            number = int(parts[2])
            parts[2] = str(number - (number > 0))
            silent = number == 1 and parts[-2] in ("o_proj", "down_proj")
            value = torch.zeros_like(value) if silent else state[".".join(parts)]
            values[name] = value
        else:
            values[name] = state[name]
    deep.load_state_dict(values)
    return deep


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 96, (SAMPLES, 12), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch()).logits
    return found


def writers(model: nn.Module) -> list[Writer]:
    return find_writers(
        model, lambda one: model(**one), batch(), {name for name, _ in model.named_parameters()}
    )


@pytest.mark.parametrize("expand", [widened, deepened])
def test_a_known_expansion_is_recovered(
    expand: Callable[[LlamaForCausalLM], LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regression, "RIDGES", (1e-9,))
    source = llama()
    target = expand(source)
    assert torch.allclose(logits(source), logits(target), atol=1e-4)
    tuned = copy.deepcopy(source)
    with torch.no_grad():
        for one in writers(source):
            tuned.get_parameter(one.weight).add_(
                torch.randn(tuned.get_parameter(one.weight).shape), alpha=0.1
            )
    wanted = logits(tuned) - logits(source)
    ours, theirs = writers(source), writers(target)
    with Activations(each_token(SAMPLES)) as activations:
        for key, model in ((SOURCE, source), (TUNED, tuned)):
            activations.record(key, model, lambda one, model=model: model(**one), [batch()], points_of(ours))
        streams = [one.stream for one in theirs]
        run = lambda one: target(**one)  # noqa: E731
        activations.record(TARGET, target, run, [batch()], streams)
        depths = depths_of(ours, theirs, activations, (SOURCE, TARGET))
        found = fit_blocks(target, run, batch(), theirs, activations, depths=depths)
        moved = copy.deepcopy(target)
        with torch.no_grad():
            for name, change in found.changes.items():
                moved.get_parameter(name).add_(change)
    assert wanted.norm() > 0.1 * logits(source).norm()
    assert (logits(moved) - logits(target) - wanted).norm() < 1e-3 * wanted.norm()
    if expand is deepened:
        assert list(depths.values())[-1].block == 3.0
        assert next(iter(depths.values())).block == 1.0


def test_blocks_are_paired_in_order_and_the_last_with_the_last() -> None:
    source, target = llama(2), llama(5)
    with Activations(each_token(SAMPLES)) as activations:
        for key, model in ((SOURCE, source), (TARGET, target)):
            activations.record(
                key, model, lambda one, model=model: model(**one), [batch()], points_of(writers(model))
            )
        depths = [
            one.block
            for one in depths_of(writers(source), writers(target), activations, (SOURCE, TARGET)).values()
        ]
    assert depths == sorted(depths)
    assert depths[-1] == 2.0


def test_another_number_of_towers_is_refused() -> None:
    ours, theirs = (
        writers(llama(2)),
        [*writers(llama(2)), Writer("p", "p.weight", None, Point("p", "out"))],
    )
    with (
        Activations(each_token(SAMPLES)) as activations,
        pytest.raises(AlignmentError, match="can't be paired"),
    ):
        depths_of(ours, theirs, activations, (SOURCE, TARGET))


def test_cka_knows_no_rotation_and_no_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 6, generator=generator)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    assert cka(rows, 3 * rows @ rotation + 1) == pytest.approx(1.0, abs=1e-6)
    assert cka(rows, torch.randn(50, 6, generator=generator)) < 0.3
    assert cka(rows, torch.ones(50, 2)) == 0.0


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        # the same tokens
        (["", "ab", "c", ""], ["", "ab", "c", ""], [{0: 1.0}, {1: 1.0}, {2: 1.0}, {3: 1.0}]),
        # one token of the target over two of the source, by characters
        (["", "ab", "c", ""], ["", "abc", ""], [{0: 1.0}, {1: 2 / 3, 2: 1 / 3}, {3: 1.0}]),
        # two over one; the target has no token before the text, and two after it
        (["", "abc", ""], ["a", "bc", "", ""], [{1: 1.0}, {1: 1.0}, {2: 1.0}, {2: 1.0}]),
        # a separator for a separator; an unknown token for its neighbour
        (["", "ab", "", "cd", ""], ["", "ab", "", "c", "x", "d", ""], [
            {0: 1.0}, {1: 1.0}, {2: 1.0}, {3: 1.0}, {3: 1.0}, {3: 1.0}, {4: 1.0}]),
    ],
)  # fmt: skip
def test_tokens_are_covered_by_those_of_the_same_characters(
    source: list[str], target: list[str], expected: list[dict[int, float]]
) -> None:
    found, _ = spans_between(source, target)
    assert [dict(one) for one in found] == [pytest.approx(one) for one in expected]


def test_texts_that_differ_are_counted() -> None:
    assert spans_between(["abc"], ["xyz"])[1] == 0.0
    assert spans_between(["abcdef"], ["abc", "xyz"])[1] == 0.5


def test_tokens_are_told_as_their_characters() -> None:
    words = tiny.tokenizer(template="<s> $A </s>")
    ids = words("the Cat . dog")["input_ids"]
    assert token_texts(words, ids) == ["", "the", "", ".", "dog", ""]  # Cat is no word of this vocabulary


def test_places_of_an_image_do_not_depend_on_the_number_of_patches() -> None:
    def values(side: int) -> Tensor:
        """A class token, then patches whose value is their place."""
        at = (torch.arange(side) + 0.5) / side
        grid = torch.stack(torch.meshgrid(at, at, indexing="ij"), dim=-1).reshape(1, -1, 2)
        return torch.cat([torch.full((1, 1, 2), -1.0), grid], dim=1)

    coarse = OverGrid((4, 4), (4, 4))(values(4), None, "block", 0)
    fine = OverGrid((8, 8), (4, 4))(values(8), None, "block", 0)
    assert coarse.shape == (17, 2)
    assert torch.allclose(coarse, fine, atol=0.03)
    with pytest.raises(AlignmentError, match="patches"):
        OverGrid((8, 8), (4, 4))(values(4), None, "block", 0)


def test_rows_of_two_tokenizers_are_of_the_same_words(tmp_path: Path) -> None:
    tasks = []
    for name, template in (("ours", "<s> $A </s>"), ("theirs", "<s> <s> $A </s> </s>")):
        directory = tiny.save_tiny_bert_classifier(tmp_path / name)
        tiny.tokenizer(template=template).save_pretrained(directory)
        task = get_task("text-classification")
        task.bind(directory)
        tasks.append(task)
    model = tasks[0].load_model(tmp_path / "ours")
    texts = tiny.texts(7)
    batches = tuple([task.encode(texts[:4]), task.encode(texts[4:])] for task in tasks)
    choose = rows_for(tasks[0], tasks[1], batches)
    point = Point("bert.embeddings.word_embeddings", "out")
    with Activations(choose) as activations:
        for key, task, side in (("ours", tasks[0], choose.source), ("theirs", tasks[1], choose.target)):
            encoded = batches[tasks.index(task)]
            activations.record(
                key, model, lambda one, task=task: task.logits(model, one), encoded, [point], side
            )
        ours, theirs = activations.read("ours", point).clone(), activations.read("theirs", point).clone()
    # Special tokens are two where the source has one, and its own of the same kind stand for them.
    assert len(ours) == len(theirs) == sum(int(one["attention_mask"].sum()) for one in batches[1])
    assert torch.equal(ours, theirs)


def test_tokenizers_that_read_other_texts_are_refused(tmp_path: Path) -> None:
    task = get_task("text-classification")
    task.bind(tiny.save_tiny_bert_classifier(tmp_path / "model"))
    batch = task.encode(tiny.texts(3))
    ids = batch["input_ids"]
    other = {**batch, "input_ids": torch.where(ids > 4, (ids + 29) % len(tiny.WORDS) + 5, ids)}
    with pytest.raises(AlignmentError, match="the two tokenizers read other texts"):
        rows_for(task, task, ([batch], [other]))


def test_an_alignment_that_changes_nothing_is_refused_with_its_table() -> None:
    facts = {"layer.weight": {"residual": 1.0, "unexplained": 1.0}}
    nothing = TaskVector(Given({}))
    with pytest.raises(AlignmentError, match=r"in no block \(share that is left: layer.weight 1.00\)"):
        require_something(Aligned(nothing, None, "regression", facts, 9))
    require_something(
        Aligned(TaskVector(Given({"layer.weight": torch.ones(2, 2)})), None, "regression", facts, 9)
    )
