"""What a model fetched block by block keeps, where, and what it brings ahead: the numbers stay the same."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.layouts import InMemory
from gradfix.errors import GradfixError
from gradfix.evaluation.streaming import execution as executions
from gradfix.evaluation.streaming import kept, streamed_model
from gradfix.evaluation.streaming.device import Copier, Supply, room_for_products
from gradfix.evaluation.streaming.kept import KeptInputs, Room
from gradfix.evaluation.streaming.plan import KEPT, plan_memory
from gradfix.votes.fast.rules import linear
from tests.evaluation.families import both

BATCH, COUNT = 2, 5


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "SMALLEST", 1)


@pytest.mark.parametrize("family", ["llama-tied", "t5"])  # the decoder's blocks share the encoder's states
def test_inputs_kept_in_a_file_give_the_same_votes(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, streamed, rows = both(family, tmp_path, COUNT, batch_size=BATCH)
    written: list[int] = []
    write = kept.Scratch.write
    monkeypatch.setattr(
        kept.Scratch, "write", lambda self, tensor: written.append(tensor.nbytes) or write(self, tensor)
    )
    expected, slope = streamed.votes(rows), streamed.slope(streamed.vector, rows)
    assert not written
    streamed.keep_inputs(0, tmp_path / "scratch")
    found = streamed.votes(rows)
    assert found.record == expected.record
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(written) > 2 * len(streamed.encode(rows).batches)
    assert not list((tmp_path / "scratch").iterdir())
    assert streamed.slope(streamed.vector, rows) == slope


def computed(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """List the products that are computed from now on."""
    found: list[torch.Size] = []
    product = linear._product

    def watched(x: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
        found.append(weight.shape)
        return product(x, weight, *others)

    monkeypatch.setattr(linear, "_product", watched)
    return found


@pytest.mark.parametrize("family", ["llama-tied", "t5", "gpt2", "bert", "gemma3", "vit"])
def test_products_kept_in_a_file_are_not_computed_again(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, streamed, rows = both(family, tmp_path, COUNT, batch_size=BATCH)
    expected = streamed.votes(rows)  # verifies the rules, with products of its own
    products = computed(monkeypatch)
    again = streamed.votes(rows)
    without = len(products)
    streamed.keep_inputs(folder=tmp_path / "scratch")
    products.clear()
    found = streamed.votes(rows)
    assert len(products) < 0.7 * without
    for votes in (again, found):
        assert votes.record == expected.record
        assert all(torch.equal(votes[name], expected[name]) for name in expected)
    assert not list((tmp_path / "scratch").iterdir())


def test_products_are_kept_as_far_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, streamed, rows = both("llama-tied", tmp_path, COUNT, batch_size=BATCH)
    expected = streamed.votes(rows)
    products, counts = computed(monkeypatch), {}
    for room in (0, 5000, 1 << 30):
        monkeypatch.setattr(streamed_model, "room_for_products", lambda *_, room=room: room)
        streamed.keep_inputs(folder=tmp_path / "scratch")
        products.clear()
        found = streamed.votes(rows)
        counts[room] = len(products)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert counts[0] > counts[5000] > counts[1 << 30]


def test_a_disk_that_fills_up_while_products_are_kept_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, streamed, rows = both("llama-tied", tmp_path, COUNT, batch_size=BATCH)
    expected = streamed.votes(rows)
    streamed.keep_inputs(folder=tmp_path / "scratch")
    write, written = kept.Scratch.write, []

    def filling(self: kept.Scratch, tensor: torch.Tensor) -> int:
        written.append(tensor)
        if len(written) > 3:
            raise GradfixError("No space left on device")
        return write(self, tensor)

    monkeypatch.setattr(kept.Scratch, "write", filling)
    found = streamed.votes(rows)
    assert len(written) == 4
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_device_than_the_processor_computes_products_again(tmp_path: Path) -> None:
    assert room_for_products(torch.device("cpu"), tmp_path / "not" / "made") > 0
    assert room_for_products(torch.device("cuda"), tmp_path) == 0


def test_a_part_is_kept_in_memory_as_far_as_there_is_room(tmp_path: Path) -> None:
    kept_inputs = KeptInputs(Room(100, 0, tmp_path))
    tensors = [torch.full((2, 5), float(n), requires_grad=True) * 1 for n in range(4)]  # 40 bytes each
    held = [kept_inputs.keep(tensor) for tensor in tensors]
    assert kept_inputs.keep(tensors[3]) is held[3]
    assert kept_inputs.scratch is not None
    assert kept_inputs.scratch.size == 80
    assert [float(each.value("a block")[0, 0].detach()) for each in held] == [0, 1, 2, 3]
    del held[0], tensors[0]
    again = kept_inputs.keep(torch.full((2, 5), 4.0, requires_grad=True) * 1)
    assert kept_inputs.scratch.size == 80
    assert float(again.value("a block")[0, 0].detach()) == 4
    kept_inputs.close()


def test_a_full_scratch_disk_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, streamed, rows = both("llama", tmp_path, COUNT, batch_size=BATCH)
    streamed.keep_inputs(0, tmp_path / "scratch")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(GradfixError, match=r"scratch: the inputs of blocks.*No space left.*TMPDIR.*--memory"):
        streamed.votes(rows)


def test_samples_pass_in_turns_where_there_is_no_room_for_all(tmp_path: Path) -> None:
    _, streamed, rows = both("llama", tmp_path, COUNT, batch_size=BATCH)
    loaded: list[str] = []
    load = streamed._execution._load

    def watched(unit: Any, *arguments: Any, **options: Any) -> None:
        loaded.append(unit.name)
        load(unit, *arguments, **options)

    streamed._execution._load = watched  # type: ignore[method-assign]
    expected = streamed.evaluate(rows).losses
    together = loaded.count("model.layers.2")
    loaded.clear()
    streamed.keep_inputs(1)
    assert streamed.evaluate(rows).losses == expected
    first = [name for name in loaded if "layers" in name]
    assert together == loaded.count("model.layers.2") == len(streamed.encode(rows).batches)
    assert first != sorted(first)  # the second batch begins anew


class Host(Copier):
    """Copies as the one for CUDA does, but nowhere."""

    def __init__(self) -> None:
        self.received: list[torch.Tensor] = []

    def send(self, value: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return value, None

    def receive(self, sent: tuple[torch.Tensor, Any]) -> torch.Tensor:
        self.received.append(sent[0])
        return sent[0]


@pytest.mark.parametrize("family", ["llama-tied", "t5"])
def test_weights_brought_ahead_give_the_same_votes_and_losses(family: str, tmp_path: Path) -> None:
    _, streamed, rows = both(family, tmp_path, COUNT, batch_size=BATCH)
    encoded = streamed.encode(rows)
    places = [(streamed.vector, alpha, encoded) for alpha in (0.0, 0.5)]

    def measured() -> tuple[Any, Any]:
        return streamed.votes(rows), [found.losses for found in streamed.evaluate_each(places)]

    (votes, losses), host = measured(), Host()
    execution = streamed._execution
    execution._supply = Supply(
        execution.device, lambda name, point: execution.fetch(name, point), execution.touch, lambda: host
    )
    again, again_losses = measured()
    assert again.record == votes.record
    assert all(torch.equal(again[name], votes[name]) for name in votes)
    assert again_losses == losses
    blocks = sum(len(unit.names) for unit in execution.division.units if unit.block)
    assert len(host.received) >= 1.5 * blocks  # nearly all of those of two passes


def test_what_fails_ahead_is_raised_where_it_is_needed(tmp_path: Path) -> None:
    def failing(name: str, point: object) -> torch.Tensor:
        raise GradfixError(f"{name}: is damaged")

    supply = Supply(torch.device("cpu"), failing, lambda name: None, Host)
    supply.expect(["one", "two"], None)
    with pytest.raises(GradfixError, match="one: is damaged"):
        supply.take("one", None)
    supply.close()


def test_stored_weights_of_the_next_block_are_read_ahead(tmp_path: Path) -> None:
    _, streamed, rows = both("llama", tmp_path, COUNT, batch_size=BATCH)
    touched: list[str] = []
    streamed._execution._supply.touch = touched.append
    streamed.votes(rows)
    assert {name.split(".")[2] for name in touched if "layers" in name} == {"0", "1", "2"}


def test_weights_that_nothing_is_added_to_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, streamed, rows = both("llama", tmp_path, COUNT, batch_size=BATCH)
    read, parts = InMemory.read, set()

    def noted(self: InMemory, name: str, rows: slice | None = None) -> torch.Tensor:
        if self is streamed._base and rows is not None:
            parts.add(name)
        return read(self, name, rows)

    monkeypatch.setattr(InMemory, "read", noted)
    monkeypatch.setattr(streamed._execution._supply, "touch", lambda name: None)
    encoded = streamed.encode(rows)
    list(streamed.evaluate_each([(streamed.vector, 0.0, encoded)]))
    assert not parts
    list(streamed.evaluate_each([(streamed.vector, 0.5, encoded)]))
    assert parts == {*streamed._moved(streamed._in_memory(streamed.vector)).values()}


def test_what_a_block_leaves_free_is_kept_for_the_next_block_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, streamed, rows = both("llama", tmp_path, COUNT, batch_size=BATCH)
    execution, events = streamed._execution, [""]
    load = execution._load

    def noted(unit: Any, *arguments: Any, **options: Any) -> None:
        if unit not in execution._present:
            events.append("block " if unit.block else "other ")
        load(unit, *arguments, **options)

    monkeypatch.setattr(execution, "_load", noted)
    monkeypatch.setattr(executions, "give_back_what_is_free", lambda: events.append("free "))
    streamed.votes(rows)
    assert re.fullmatch("((other free )+block free block block )+(other free )+(free )+", "".join(events))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")
def test_what_lies_free_between_used_blocks_goes_back_to_the_system() -> None:
    program = """
from pathlib import Path
from gradfix.evaluation.streaming.allocator import give_back_what_is_free, give_memory_back

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024

assert give_memory_back()
blocks = [bytearray(b"x" * 500_000) for _ in range(200)]
del blocks[:-1]  # the last one keeps the heap from shrinking
before = anonymous()
give_back_what_is_free()
print(before - anonymous())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 80e6


def test_a_plan_puts_into_a_file_what_memory_does_not_hold(tmp_path: Path) -> None:
    both("llama", tmp_path, COUNT, batch_size=BATCH)
    target = Checkpoint.open(tmp_path / "llama")
    options: dict[str, Any] = {"voting": target.specs.keys(), "batch_size": 1, "length": 64, "samples": 100}
    roomy = plan_memory(target, memory=10**9, **options)
    assert roomy.scratch == 0
    least = (
        sum(roomy.streamed.values()) - roomy.streamed[KEPT] // 4 * 3
    )  # 3 blocks: inputs of one of four places
    tight = plan_memory(target, memory=least, **options)
    assert tight.streamed[KEPT] + tight.scratch == roomy.streamed[KEPT]
    assert sum(tight.streamed.values()) <= least
    without = plan_memory(target, memory=10**9, **{**options, "voting": ()})
    assert sum(without.streamed.values()) < sum(roomy.streamed.values())
