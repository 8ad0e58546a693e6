"""A model fetched block by block gives what the same model gives in memory: to the bit, for the same number format."""

import json
import os
import shutil
import subprocess
import sys
from bisect import bisect_left
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from gradfix.checkpoints import BLOCK, Checkpoint
from gradfix.checkpoints.expressions import Given
from gradfix.checkpoints.writing.background import QUEUE_BYTES
from gradfix.errors import GradfixError
from gradfix.evaluation.certificate import certify
from gradfix.evaluation.streaming import store
from gradfix.evaluation.streaming.plan import plan_memory
from gradfix.evaluation.streaming.store import CountStore
from gradfix.evaluation.streaming.streamed_model import StreamedModel
from gradfix.evaluation.target_model import TargetModel
from gradfix.tasks import get_task
from gradfix.transport.memory import longest
from gradfix.vectors.apply import BLOCKS
from gradfix.vectors.masks import mask
from gradfix.votes import Votes
from tests.builders import Job, gradfix, job, tuned_from
from tests.evaluation.families import DECODER, FAMILIES, both, chats, many_experts, opened

PLAIN = {"mixtral", "qwen3-moe"}
"""Experts are counted one sample at a time: alone in memory, as a row of the batch's inputs block by block. The two
differ by rounding, which may turn the sign of a gradient that is within rounding of zero."""
COUNT, BATCH = 7, 4  # the last batch is smaller
MOST_TURNED = 1e-3


def turned(one: object, other: object) -> float:
    """The share of coordinates with other votes."""
    differing = sum(int((one[name] != other[name]).sum()) for name in one)  # type: ignore[index,attr-defined]
    return differing / sum(one[name].numel() for name in one)  # type: ignore[index,attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_equals_resident(family: str, tmp_path: Path) -> None:
    settings = {"batch_size": BATCH}
    resident, streamed, rows = both(family, tmp_path, COUNT, **settings)
    expected, found = resident.votes(rows), streamed.votes(rows)
    assert found.record == expected.record
    assert turned(found, expected) <= (MOST_TURNED if family in PLAIN else 0)
    assert torch.equal(streamed.features(rows[:3]), resident.features(rows[:3]))

    ours, theirs = streamed.evaluate(rows, logits=True), resident.evaluate(rows, logits=True)
    assert (ours.losses, ours.scores, ours.predictions) == (
        theirs.losses,
        theirs.scores,
        theirs.predictions,
    )
    alphas, encoded = (0.0, 0.5, 1.0), streamed.encode(rows)
    curve = list(streamed.evaluate_each([(streamed.vector, alpha, encoded) for alpha in alphas]))
    expected_curve = list(resident.evaluate_each([(resident.vector, alpha, encoded) for alpha in alphas]))
    assert [found.losses for found in curve] == [found.losses for found in expected_curve]
    resident.restore()
    mean, theirs_mean = streamed.votes(rows, vote="mean"), resident.votes(rows, vote="mean")
    assert mean.record == theirs_mean.record
    assert turned(mean, theirs_mean) <= MOST_TURNED
    slope = resident.slope(resident.vector, rows)
    assert streamed.slope(streamed.vector, rows) == pytest.approx(slope, rel=1e-5)

    for model in (resident, streamed):
        model.move(model.vector, 0.25)
    expected, found = resident.votes(rows), streamed.votes(rows)
    assert found.record == expected.record
    assert turned(found, expected) <= (MOST_TURNED if family in PLAIN else 0)
    streamed.restore()
    assert streamed.votes(rows[:4]).fingerprints != found.fingerprints


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_votes_alike_and_is_recorded(dtype: torch.dtype, tmp_path: Path) -> None:
    rows, directory = chats(COUNT), FAMILIES["llama"][0](tmp_path / "llama")
    resident, streamed = (
        opened(kind, directory, "causal-lm", rows, batch_size=BATCH, compute_dtype=dtype).votes(rows)
        for kind in (TargetModel, StreamedModel)
    )
    assert streamed.record == resident.record
    assert f"torch.{streamed.record.dtype}" == str(dtype)
    assert turned(streamed, resident) == 0


@pytest.mark.parametrize("batch", [BATCH, 1])
def test_blocks_that_do_not_vote_hand_the_same_gradients_on(batch: int, tmp_path: Path) -> None:
    rows, directory = chats(COUNT), FAMILIES["llama"][0](tmp_path / "llama")
    counts = []
    for kind in (TargetModel, StreamedModel):
        model = opened(kind, directory, "causal-lm", rows, batch_size=batch, compute_dtype=torch.bfloat16)
        model._voting = [name for name in model._voting if "layers.0." in name]
        counts.append(model.votes(rows))
    assert list(counts[0])
    assert all("layers.0." in name for name in counts[0])
    assert turned(counts[1], counts[0]) == 0


def test_a_sample_alone_in_its_batch_votes_as_in_memory(tmp_path: Path) -> None:
    resident, streamed, rows = both("llama-tied", tmp_path, 3, batch_size=1)
    assert turned(streamed.votes(rows), resident.votes(rows)) == 0


def test_the_model_holds_no_weights_between_passes(tmp_path: Path) -> None:
    _, streamed, rows = both("llama", tmp_path, 3)
    streamed.votes(rows)
    held = sum(
        parameter.untyped_storage().nbytes() if type(parameter.data) is torch.Tensor else 0
        for parameter in streamed.model.parameters()
    )
    assert held == 0


def test_weights_used_outside_of_their_module_are_refused_by_name(tmp_path: Path) -> None:
    _, streamed, _ = both("llama", tmp_path, 3)
    with pytest.raises(
        GradfixError, match=r"lm_head\.weight: is used outside of the module that owns it.*--memory"
    ):
        streamed.model.get_parameter("lm_head.weight") + 1


def test_training_is_refused(tmp_path: Path) -> None:
    _, streamed, _ = both("bert", tmp_path, 3)
    with pytest.raises(GradfixError, match=r"training needs all weights at once.*--memory"):
        streamed.trainable()


def test_generating_is_refused(tmp_path: Path) -> None:
    _, streamed, rows = both("t5", tmp_path, 3)
    streamed.task.candidates = None  # type: ignore[attr-defined]
    with pytest.raises(GradfixError, match=r"token by token.*--candidate"):
        streamed.evaluate(rows)


def test_an_error_in_a_block_ends_every_lane(tmp_path: Path) -> None:
    import threading

    _, streamed, rows = both("llama", tmp_path, 6, batch_size=2)
    with torch.no_grad():
        fetch = streamed._execution.fetch

    def broken(name: str, point: object) -> torch.Tensor:
        value = fetch(name, point)
        return value * float("nan") if "layers.1.mlp.up_proj" in name else value

    streamed._execution.fetch = broken
    with pytest.raises(GradfixError, match=r"sample 0: the loss is not finite"):
        streamed.votes(rows)
    assert not [thread for thread in threading.enumerate() if thread.name == "gradfix-lane"]


def test_a_block_that_mixes_samples_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: forward(self, x) + x.mean(0, keepdim=True))
    _, streamed, rows = both("llama", tmp_path, 4)
    with pytest.raises(GradfixError, match=r"model\.layers\.2: gives another output for a sample alone"):
        streamed.votes(rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("causal-lm", {"alpha": "0,0.5,1"}),
        ("causal-lm", {"alpha": 0.5, "mask": "none"}),
        ("preference-pairs", {"alpha": "0,0.5,1"}),
    ],
)
def test_a_streamed_transport_writes_the_same_bytes(
    task: str, options: dict[str, object], tmp_path: Path
) -> None:
    work = job(task, tmp_path)
    small = small_memory(work)
    made = [
        work.run(tmp_path / str(memory), memory=memory, batch_size=4, test=work.held_out, **options)
        for memory in ("auto", small)
    ]
    resident, streamed = ((Path(one.output) / "model.safetensors").read_bytes() for one in made)
    assert streamed == resident
    assert made[0].alpha == made[1].alpha


def test_as_many_samples_pass_together_as_have_room_at_their_own_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job("causal-lm", tmp_path)
    target = Checkpoint.open(work.models["target_base"])
    task = get_task("causal-lm")
    task.bind(target.location)
    planned = partial(plan_memory, target, voting=target.specs.keys(), batch_size=4)
    own = longest(task, work.rows)
    room = bisect_left(range(2**24), 4, key=lambda memory: planned(memory=memory, length=own).batch)
    assert planned(memory=room, length=own).streams
    assert planned(memory=room).batch < 4
    passed: list[int] = []
    load = StreamedModel.load

    def loading(*args: Any, batch_size: int, **options: Any) -> Any:
        passed.append(batch_size)
        return load(*args, batch_size=batch_size, **options)

    monkeypatch.setattr(StreamedModel, "load", loading)
    work.run(tmp_path / "out", memory=room, batch_size=4, alpha="0.5,1")
    assert passed == [4]


def test_a_loss_takes_float32_beside_scores_in_half_precision(tmp_path: Path) -> None:
    target = Checkpoint.open(job("causal-lm", tmp_path).models["target_base"])
    single, half = (
        plan_memory(target, voting=(), memory=1, batch_size=4, length=16, compute_dtype=dtype).resident[
            "activations"
        ]
        for dtype in (torch.float32, torch.bfloat16)
    )
    scores = 4 * 16 * json.loads((target.directory / "config.json").read_text())["vocab_size"]
    assert 2 * half - single == scores * (2 * (3 * 4 + 2) - 3 * 4)


def test_a_model_of_which_no_block_fits_is_refused_with_the_figures(tmp_path: Path) -> None:
    work = job("causal-lm", tmp_path)
    with pytest.raises(
        GradfixError, match=r"block by block it needs 0\.00 GB for one sample at a time.*--memory"
    ):
        work.run(tmp_path / "out", memory="10KB", batch_size=4)
    assert not (tmp_path / "out").exists()


def small_memory(work: Job) -> int:
    """Less than the model needs in memory, and more than a block does."""
    target = Checkpoint.open(work.models["target_base"])
    plan = plan_memory(target, voting=target.specs.keys(), batch_size=4, memory=1)
    return (sum(plan.streamed.values()) + sum(plan.resident.values())) // 2


def count_command(work: Job, folder: Path, output: str) -> Result:
    support = folder / "support.jsonl"
    support.write_text("".join(f"{json.dumps(row)}\n" for row in work.rows))
    return gradfix(
        "votes", "--target-base", work.models["target_base"], "--task", work.task, "--support", support, "--batch-size",
        4, "--memory", small_memory(work), "--output", folder / output,
    )  # fmt: skip


def test_a_count_that_was_complete_goes_back_through_no_block(tmp_path: Path) -> None:
    _, streamed, rows = both("llama", tmp_path, 3)
    streamed.kept_counts = tmp_path / "kept"
    execution, passed = streamed._execution, []
    go_back = execution._go_back

    def watched(item: Any, visitor: Any) -> None:
        passed.append(item.calls[-1].unit.block)
        go_back(item, visitor)

    execution._go_back = watched  # type: ignore[method-assign]
    first, before = streamed.votes(rows), sum(passed)
    again = streamed.votes(rows)
    assert before > 0
    assert sum(passed) == before
    assert again.record == first.record
    assert turned(again, first) == 0


def test_a_killed_count_goes_on_with_the_next_block_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job("causal-lm", tmp_path)
    assert count_command(work, tmp_path, "whole.votes").exit_code == 0
    put, kept = CountStore.put, []

    def killed(store: CountStore, *what: Any) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(set(what[0]))
        put(store, *what)

    monkeypatch.setattr(CountStore, "put", killed)
    assert count_command(work, tmp_path, "killed.votes").exit_code != 0
    assert not (tmp_path / "killed.votes").exists()
    assert len(list((tmp_path / ".killed.votes.counting").rglob("*.safetensors"))) == 2

    again: list[set[str]] = []
    monkeypatch.setattr(
        CountStore, "put", lambda store, *what: (again.append(set(what[0])), put(store, *what))
    )
    assert count_command(work, tmp_path, "killed.votes").exit_code == 0
    assert not set().union(*again) & set().union(*kept)
    assert (tmp_path / "killed.votes").read_bytes() == (tmp_path / "whole.votes").read_bytes()
    assert not (tmp_path / ".killed.votes.counting").exists()


def test_counts_of_other_samples_are_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = job("causal-lm", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Votes, "save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert count_command(work, tmp_path, "one.votes").exit_code != 0
    work.rows = [*work.rows[1:], work.held_out[0]]
    assert count_command(work, tmp_path, "one.votes").exit_code == 0
    assert count_command(work, tmp_path, "fresh.votes").exit_code == 0
    assert (tmp_path / "one.votes").read_bytes() == (tmp_path / "fresh.votes").read_bytes()


def test_a_full_disk_keeps_what_was_counted_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job("causal-lm", tmp_path)
    write, written = store.write_safetensors, []

    def full(*arguments: Any, **options: Any) -> None:
        written.append(arguments)
        if len(written) == 3:
            raise GradfixError("no space is left")
        write(*arguments, **options)

    monkeypatch.setattr(store, "write_safetensors", full)
    result = count_command(work, tmp_path, "some.votes")
    assert result.exit_code == 1
    assert "make room and run the same command again" in result.output
    assert len(list((tmp_path / ".some.votes.counting").rglob("*.safetensors"))) == 2


def test_a_checkpoint_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    _, streamed, rows = both("llama", tmp_path, 4)
    file = tmp_path / "llama" / "model.safetensors"
    fetch = streamed._execution.fetch

    def changing(name: str, point: object) -> torch.Tensor:
        if "layers.1" in name:
            os.utime(file, ns=(1, 1))
        return fetch(name, point)

    streamed._execution.fetch = changing
    with pytest.raises(GradfixError, match=r"llama/model\.safetensors: was changed while it was read"):
        streamed.votes(rows)


def test_several_candidates_pass_a_block_while_it_is_there(tmp_path: Path) -> None:
    _, streamed, rows = both("llama", tmp_path, 5, batch_size=2)
    encoded, loaded = streamed.encode(rows), []
    load = streamed._execution._load

    def watched(unit: Any, *where: Any, **options: Any) -> None:
        loaded.append(unit.name)
        load(unit, *where, **options)

    streamed._execution._load = watched  # type: ignore[method-assign]
    alphas = (0.0, 0.5, 1.0)
    together = list(streamed.evaluate_each([(streamed.vector, alpha, encoded) for alpha in alphas]))
    blocks = [name for name in loaded if "layers" in name]
    assert blocks == sorted(blocks)  # no block is left before all candidates have passed it
    for alpha, found in zip(alphas, together, strict=True):
        streamed.move(streamed.vector, alpha)
        assert streamed.evaluate(encoded).losses == found.losses


def test_what_no_candidate_changes_is_fetched_once(tmp_path: Path) -> None:
    _, streamed, rows = both("llama", tmp_path, 2)
    [moving, *_] = (name for name in streamed.vector.specs if "layers.0" in name and "q_proj" in name)
    values = {name: streamed.vector.read(name) * (name == moving) for name in streamed.vector.specs}
    tau = streamed.vector.derive(Given(values), operation="test")
    streamed.vote_where(tau)  # looks where τ is 0
    few = mask(tau, strategy="none")
    fetched: Counter[str] = Counter()
    fetch = streamed._execution.fetch

    def counted(name: str, point: Any) -> Any:
        fetched[name] += 1
        return fetch(name, point)

    ahead: list[tuple[str, ...]] = []
    supply = streamed._execution._supply
    expect = supply.expect

    def noted(names: Any, point: Any) -> None:
        ahead.append(tuple(names))
        expect(names, point)

    streamed._execution.fetch = counted
    supply.expect = noted  # type: ignore[method-assign]
    alphas = (0.5, 1.0)
    together = list(streamed.evaluate_each([(few, alpha, streamed.encode(rows)) for alpha in alphas]))
    assert {"lm_head.weight", "model.norm.weight"} < fetched.keys()  # outside of blocks, a point at a time
    assert fetched == {name: 2 if name == moving else 1 for name in fetched}
    assert not streamed._execution._made  # what a candidate was made of goes with its weights
    assert len(ahead) == len({*ahead})
    for alpha, found in zip(alphas, together, strict=True):
        streamed.move(few, alpha)
        assert streamed.evaluate(rows).losses == found.losses


def test_the_certificate_reads_weights_once_a_pass_and_asks_for_gradients_only_where_the_vector_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident, streamed, rows = both("llama", tmp_path, 2)
    [moving, *_] = (name for name in streamed.vector.specs if "layers.0" in name and "q_proj" in name)
    wanted, fetched = [], Counter[str]()
    fetch, go = streamed._execution.fetch, StreamedModel._go

    def counted(name: str, point: Any) -> Any:
        fetched[name] += 1
        return fetch(name, point)

    def going(self: StreamedModel, batches: Any, names: Any, *rest: Any, **options: Any) -> Any:
        wanted.append(set(names))
        return go(self, batches, names, *rest, **options)

    streamed._execution.fetch = counted
    monkeypatch.setattr(StreamedModel, "_go", going)
    found = []
    for model in (resident, streamed):
        values = {name: model.vector.read(name) * (name == moving) for name in model.vector.specs}
        tau = model.vector.derive(Given(values), operation="test")
        model.vote_where(tau)  # looks where τ is 0
        found.append(certify(model, mask(tau, strategy="none"), rows, 1.0))
    assert found[0].steps[-1].measured != 0
    assert found[1].slope == pytest.approx(found[0].slope, rel=1e-5)
    assert [step.measured for step in found[1].steps] == [step.measured for step in found[0].steps]
    assert wanted == [{moving}]
    # There and back for the slope, once for the losses at all points, of which what moves has five.
    assert fetched[moving] <= 7
    assert max(count for name, count in fetched.items() if name != moving) <= 3


def test_tied_weights_are_each_candidates_own(tmp_path: Path) -> None:
    _, streamed, rows = both("gpt2", tmp_path, 3, batch_size=2)
    [table] = [name for name in streamed.vector.specs if name.endswith("wte.weight")]
    assert float(streamed.vector.read(table).abs().max()) > 0
    encoded, alphas = streamed.encode(rows), (0.5, 1.0, 0.5)
    together = list(streamed.evaluate_each([(streamed.vector, alpha, encoded) for alpha in alphas]))
    assert together[0].losses == together[2].losses != together[1].losses
    for alpha, found in zip(alphas, together, strict=True):
        streamed.move(streamed.vector, alpha)
        assert streamed.evaluate(encoded).losses == found.losses


def test_an_expert_that_no_sample_reached_is_listed_without_votes(tmp_path: Path) -> None:
    rows = chats(1)
    directory = many_experts(tmp_path / "experts")
    found = {
        kind: opened(kind, directory, "causal-lm", rows).votes(rows) for kind in (TargetModel, StreamedModel)
    }
    for votes in found.values():
        silent = [name for name in votes.uncovered if ".experts." in name]
        assert silent
        assert not set(silent) & set(votes)
        assert all(bool(votes[name].any()) for name in votes if ".experts." in name)
    assert found[TargetModel].record == found[StreamedModel].record


def test_check_tells_how_a_model_is_held_and_what_that_needs(tmp_path: Path) -> None:
    work = job("causal-lm", tmp_path)
    support = tmp_path / "support.jsonl"
    support.write_text("".join(f"{json.dumps(row)}\n" for row in work.rows))
    options = [part for name, path in work.models.items() for part in (f"--{name.replace('_', '-')}", path)]
    options += ["--task", work.task, "--support", support, "--batch-size", 4, "--output", tmp_path / "out"]
    whole, small = (gradfix("check", *options, "--memory", memory) for memory in ("auto", small_memory(work)))
    assert "is held in memory, in float32: about" in " ".join(whole.output.split())
    said = " ".join(small.output.split())
    assert "is fetched block by block (2 blocks), in float32: about" in said
    assert "one block's weights" in said
    assert "each gradient reads" in said
    assert "of what their products gave for a while" in said
    refused = gradfix("check", *options, "--memory", "1KB")
    assert refused.exit_code == 1
    assert "block by block it needs" in " ".join(refused.output.split())


WIDE = {"num_hidden_layers": 8, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")
def test_a_whole_transport_needs_no_more_anonymous_memory_than_a_few_blocks(tmp_path: Path) -> None:
    """8 blocks of 12.6 MB: in memory the model takes 101 MB, and its votes and gradients come on top."""
    work = job("causal-lm", tmp_path)
    for seed, kind in enumerate(("source_base", "target_base")):
        save_wide(work.models[kind], seed)
    shutil.rmtree(work.models["source_tuned"])
    tuned_from(work.models["source_tuned"], work.models["source_base"], work.auto_class)
    script = tmp_path / "measured.py"
    script.write_text(MEASURED)
    told = json.dumps(
        {**{kind: str(path) for kind, path in work.models.items()}, "support": list(work.rows)[:4]}
    )
    done = subprocess.run(
        [sys.executable, script, told, tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1])
    block = 4 * (4 * 512 * 512 + 3 * 512 * 2048)
    rows = 4 * BLOCKS * BLOCK
    # weights, votes and activations of a block, what τ and the mask read; rows in two threads, and for a third to write
    assert peak < 6 * block + 16 * rows + QUEUE_BYTES


MEASURED = """
import json, sys, threading, time
from collections import Counter
from pathlib import Path
import gradfix as gf, torch
from transformers import LlamaForCausalLM
import gradfix.transport.pipeline, gradfix.evaluation.streaming.choice, gradfix.tasks, sklearn, scipy.stats
from gradfix import arithmetic

large = torch.ones(arithmetic.COMPILED_FROM)
votes = large.to(torch.int8)
for load in (  # the compiled loops
    lambda: arithmetic.subtract(large, large),
    lambda: arithmetic.keep_agreeing(large, votes),
    lambda: arithmetic.keep_unopposed(large, votes, 1),
    lambda: arithmetic.nonzero_and_square(large),
    lambda: arithmetic.decided_and_net(votes),
    lambda: arithmetic.add_rounded(large, large, 1.0, torch.float32),
    lambda: arithmetic.sign_adder(votes, large)(True),
):
    load()
del large, votes, load

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

peak = before = anonymous()
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
told = json.loads(sys.argv[1])
gf.transport(task="causal-lm", alpha="0.5,1", memory="75MB", batch_size=2, output=sys.argv[2], **told)
print(peak - before)
"""


def save_wide(directory: Path, seed: int) -> None:
    """Replace a model by one of which a block is much larger than what Python holds on to."""
    from transformers import LlamaConfig, LlamaForCausalLM

    (directory / "model.safetensors").unlink()
    torch.manual_seed(seed)
    config = LlamaConfig(**{**DECODER, **WIDE, "num_key_value_heads": 8, "initializer_range": 0.02})
    LlamaForCausalLM(config).save_pretrained(directory)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("room", [None, 0])
def test_votes_on_a_gpu_are_those_of_the_processor(room: int | None, tmp_path: Path) -> None:
    """Never run so far: no machine of the project has had a GPU. Without room on the device inputs go to the host."""
    _, streamed, rows = both("llama", tmp_path, COUNT, batch_size=BATCH)
    expected = streamed.votes(rows)
    resident, there = (
        opened(kind, tmp_path / "llama", "causal-lm", rows, batch_size=BATCH, device="cuda")
        for kind in (TargetModel, StreamedModel)
    )
    assert isinstance(there, StreamedModel)
    there.keep_inputs(room)
    found = there.votes(rows)
    assert turned(found, expected) < 0.01
    assert turned(found, resident.votes(rows)) == 0
    assert there.evaluate(rows).losses == resident.evaluate(rows).losses
