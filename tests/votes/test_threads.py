"""Votes counted by threads are those counted without, and nothing is left of the threads."""

import threading

import pytest
import torch

from gradfix import arithmetic
from gradfix.votes import count_votes
from gradfix.votes.fast import accumulate as blocks
from gradfix.votes.fast import threads as crew
from gradfix.votes.fast.contributions import Product
from tests.models import tiny_bert


@pytest.fixture(params=[2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("gradfix-votes")]


def loss(model, batch):
    return model(**batch).logits.square().sum(1)


def test_threads_change_no_vote(threads, monkeypatch):
    model = tiny_bert().double()
    batches = [{"input_ids": torch.randint(0, 96, (4, 7))} for _ in range(2)]
    torch.set_num_threads(1)
    alone = count_votes(model, batches, loss)
    torch.set_num_threads(threads)
    # blocks of a few rows, and a queue that overflows now and then
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4096)
    for waiting in (0, 30_000, 2**30):
        monkeypatch.setattr(crew, "WAITING_BYTES", waiting)
        together = count_votes(model, batches, loss)
        assert not together.plain
        for name, counts in alone.items():
            # the keys' bias has no gradient but rounding
            assert torch.equal(together[name], counts) or name.endswith("key.bias"), name
    assert torch.get_num_threads() == threads
    assert not workers()


@pytest.mark.parametrize("waiting", [0, 2**30])
def test_an_error_in_a_worker_surfaces_and_leaves_nothing_behind(threads, waiting, monkeypatch):
    model = tiny_bert()
    batch = {"input_ids": torch.randint(0, 96, (4, 7))}
    expected = count_votes(model, [batch], loss)
    seen = []

    def fail(counts, summed):
        seen.append(threading.current_thread().name)
        raise MemoryError("no room")

    monkeypatch.setattr(crew, "WAITING_BYTES", waiting)
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "_add_summed", fail)
        with pytest.raises(MemoryError, match="no room"):
            count_votes(model, [batch], loss)
    assert seen
    assert all(name.startswith("gradfix-votes") for name in seen)
    assert torch.get_num_threads() == threads
    assert not workers()
    again = count_votes(model, [batch], loss)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_workers_compute_by_themselves_and_without_graphs(threads):
    found = []

    def job():
        found.append((torch.get_num_threads(), torch.is_grad_enabled()))

    with crew.Crew(torch.device("cpu")) as team:
        assert torch.get_num_threads() == threads // 2
        team.add([job] * 20, 0)
        team.finish()
    assert found == [(1, False)] * 20
    assert torch.get_num_threads() == threads


def test_jobs_are_added_as_soon_as_there_is_room_for_what_they_hold(threads, monkeypatch):
    monkeypatch.setattr(crew, "WAITING_BYTES", 100)
    others_were_added, done = threading.Event(), []

    def patient():
        assert others_were_added.wait(20)

    with crew.Crew(torch.device("cpu")) as team:
        team.add([lambda: None], 60)
        team.add([patient], 60)
        team.add([lambda: done.append(1)], 60)  # waits for the first, not for the second
        others_were_added.set()
        team.finish()
    assert done


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("large", [1, 1 << 60])
@pytest.mark.parametrize("shape", [(5, 9, 33, 12), (3, 70, 12, 33), (2, 2, 1, 40)])
def test_products_of_one_sample_or_of_several_give_the_same_votes(shape, large, dtype, monkeypatch):
    N, T, R, C = shape
    for module in (blocks, arithmetic):  # one sample after the other by compiled loops, or several by torch
        monkeypatch.setattr(module, "COMPILED_FROM", large)
    for name, few in {"SAMPLE_BYTES": 256, "TALL": 8, "TILE": 80, "FEW": N * T * 8}.items():
        monkeypatch.setattr(blocks, name, few)  # several blocks, the last one smaller
    generator = torch.Generator().manual_seed(0)
    # whole numbers: their sums are exact, and some are 0; so is what is made of 0 and negative numbers
    left, right = (torch.randint(-2, 3, (N, T, side), generator=generator).to(dtype) for side in (R, C))
    left[:, :, 0], right[:, :, 0] = 0.0, -1.0
    counts = torch.zeros(R, C, dtype=torch.int8)
    for job in blocks.Blocks().jobs(counts, [Product(left, right)], N):
        job()
    gradients = left.double().transpose(1, 2) @ right.double()
    assert torch.equal(counts, -gradients.sign().sum(0).to(torch.int8))


def test_a_gradient_that_float16_rounds_to_nothing_has_no_vote(monkeypatch):
    left, right = torch.full((2, 3, 4), -1e-4).half(), torch.full((2, 3, 5), 1e-5).half()
    counts = torch.zeros(4, 5, dtype=torch.int8)
    for job in blocks.Blocks().jobs(counts, [Product(left, right)], 2):
        job()
    assert not counts.any()
