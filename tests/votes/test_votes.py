"""The counts themselves: widths, arithmetic, files, and what is estimated from them."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from gradfix.errors import GradfixError
from gradfix.votes import Votes, count_votes
from gradfix.votes.metadata import VoteRecord, counts_dtype
from gradfix.votes.stability import agreement_of_draws, stability_from_histogram
from tests.models import tiny_bert
from tests.votes.exact import assert_exact


def record(samples, **more):
    ids = tuple(f"{more.pop('prefix', 's')}{n}" for n in range(samples))
    return VoteRecord(vote=more.pop("vote", "majority"), samples=samples, sample_ids=ids, **more)


def slope(model, batch):
    """Sample n's loss is x_n w, its gradient x_n."""
    return batch * model.weight.squeeze()


def one_parameter():
    return nn.Linear(1, 1, bias=False)


@pytest.mark.parametrize("method", ["fast", "plain"])
def test_one_parameter_by_hand(method):
    votes = count_votes(one_parameter(), [torch.tensor([3.0, -0.1, 2.0, 0.0, 5.0])], slope, method=method)
    assert votes["weight"].tolist() == [[-2]]  # three go down, one up, one has no opinion
    assert votes.samples == 5
    assert votes.margin().read("weight").item() == pytest.approx(0.4)
    assert votes.sign().read("weight").item() == -1


def test_an_outlier_flips_the_mean_but_no_majority():
    batch = torch.tensor([1.0, 1.0, 1.0, -100.0])
    assert count_votes(one_parameter(), [batch], slope).sign().read("weight").item() == -1
    assert count_votes(one_parameter(), [batch], slope, vote="mean")["weight"].item() == 1


@pytest.mark.parametrize(("samples", "dtype"), [(127, torch.int8), (128, torch.int16), (40000, torch.int32)])
def test_counts_are_as_wide_as_needed(samples, dtype):
    assert counts_dtype(samples) is dtype
    assert torch.iinfo(dtype).max >= samples


@pytest.mark.parametrize("method", ["fast", "plain"])
def test_unanimous_samples_do_not_overflow(method):
    batches = [torch.ones(60), torch.ones(90)]
    votes = count_votes(one_parameter(), batches, slope, method=method, samples=map(str, range(150)))
    assert votes["weight"].item() == -150
    assert votes["weight"].dtype is torch.int16


def test_ties_are_zero_and_agree_with_nothing():
    votes = Votes({"w": torch.tensor([0, 2, -2, 0], dtype=torch.int8)}, record(2))
    assert votes.sign().read("w").tolist() == [0, 1, -1, 0]
    assert votes.tie_rate() == votes.tie_rate("w") == 0.5


def test_saved_votes_are_read_back_by_rows(tmp_path):
    counts = {"a": torch.arange(-6, 6, dtype=torch.int8).view(4, 3), "b": torch.tensor(2, dtype=torch.int8)}
    details = record(6, seed=7, fingerprints={"a": "x"}, uncovered=("c",), plain={"a": "no rule"})
    path = Votes(counts, details).save(tmp_path / "votes.safetensors")
    loaded = Votes.load(path)
    assert loaded.record == details
    assert torch.equal(loaded.read("a", slice(1, 3)), counts["a"][1:3])
    assert all(torch.equal(loaded[name], counts[name]) for name in counts)
    with pytest.raises(GradfixError, match="exists"):
        loaded.save(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    from gradfix.checkpoints import write_safetensors

    path = tmp_path / "other.safetensors"
    votes = Votes({"a": torch.zeros(2, dtype=torch.int8)}, record(1))
    write_safetensors(path, votes.specs, lambda name: [votes[name]], {"format": "pt"})
    with pytest.raises(GradfixError, match="holds no votes"):
        Votes.load(path)
    metadata = {**votes.record.to_metadata(), "format_version": "1"}
    write_safetensors(path, votes.specs, lambda name: [votes[name]], metadata, overwrite=True)
    with pytest.raises(GradfixError, match="format 1, this gradfix reads 2"):
        Votes.load(path)
    metadata = {**votes.record.to_metadata(), "samples": "many"}
    write_safetensors(path, votes.specs, lambda name: [votes[name]], metadata, overwrite=True)
    with pytest.raises(GradfixError, match="'samples': is not valid JSON"):
        Votes.load(path)
    metadata = votes.record.to_metadata()
    for wrong, message in (
        ({"sample_ids": '["a", "b"]'}, "1 samples, but 2 ids: count the votes again"),
        ({"samples": "-1"}, "samples: input should be greater than or equal to 0"),
        ({"seed": "[]"}, "seed: input should be a valid integer"),
        ({"fingerprints": "null"}, "fingerprints: input should be a valid dictionary"),
        ({"vote": "all"}, "vote: input should be 'majority' or 'mean'"),
        ({}, "not those that it was written with"),
    ):
        entries = {**metadata, **wrong}
        write_safetensors(path, votes.specs, lambda name: [votes[name]], entries, overwrite=True)
        with pytest.raises(GradfixError, match=message):
            Votes.load(path)


def test_votes_beyond_their_samples_are_refused_where_they_are_read(tmp_path):
    counts = {"a": torch.tensor([1, -3], dtype=torch.int8)}
    Votes(counts, record(2)).save(tmp_path / "votes.safetensors")
    loaded = Votes.load(tmp_path / "votes.safetensors")
    with pytest.raises(GradfixError, match="more votes than the 2 that were cast"):
        loaded.read("a")


def test_votes_whose_metadata_were_edited_are_refused(tmp_path):
    path = tmp_path / "votes.safetensors"
    Votes({"a": torch.zeros(2, dtype=torch.int8)}, record(2)).save(path)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"majority"', b'"mean"    '))
    with pytest.raises(GradfixError, match="not those that it was written with"):
        Votes.load(path)


def test_sums_are_those_of_all_samples_together():
    model, x = nn.Linear(3, 2), torch.randn(150, 3)

    def loss(model, batch):
        return model(batch).square().sum(1)

    together = count_votes(model, [x], loss)
    parts = count_votes(model, [x[:70]], loss) + count_votes(model, [x[70:]], loss)
    assert parts.samples == 150
    assert parts.sample_ids == together.sample_ids
    assert parts["weight"].dtype is torch.int16
    assert_exact(parts, model, [x], loss)
    with pytest.raises(GradfixError, match="samples are in both"):
        parts + count_votes(model, [x[60:80]], loss)
    with pytest.raises(GradfixError, match="different targets"):
        parts + count_votes(nn.Linear(3, 2), [torch.randn(2, 3)], loss)
    with pytest.raises(GradfixError, match="vote 'majority' and 'mean'"):
        parts + count_votes(model, [torch.randn(2, 3)], loss, vote="mean")
    means = [count_votes(model, [part], loss, vote="mean") for part in (x[:70], x[70:])]
    with pytest.raises(GradfixError, match="keep no sums and can't be added"):
        means[0] + means[1]


def test_counts_that_are_no_whole_numbers_are_refused_when_a_file_is_opened(tmp_path):
    path = tmp_path / "votes.safetensors"
    Votes({"a": torch.zeros(2)}, record(2)).save(path)
    with pytest.raises(
        GradfixError, match=r"a: expected whole numbers, found torch.float32; count the votes again"
    ):
        Votes.load(path)


def test_another_target_is_refused():
    model, other = tiny_bert(0), tiny_bert(1)
    batch = {"input_ids": torch.randint(0, 96, (2, 5))}
    votes = count_votes(model, [batch], lambda m, b: m(**b).logits.square().sum(1))
    votes.check_target(model)
    votes.check_target(model.bfloat16())
    with pytest.raises(GradfixError, match="not those the votes were counted at"):
        votes.check_target(other)
    with pytest.raises(GradfixError, match="lacks"):
        votes.check_target(other.bert)
    names = {name: name.removeprefix("bert.") for name in votes if name.startswith("bert.")}
    inner = Votes({name: votes[name] for name in names}, votes.record)
    inner.check_target(model.bert, names)


@pytest.mark.parametrize(("plus", "minus", "silent"), [(3, 2, 0), (4, 0, 0), (5, 1, 0), (3, 1, 1), (4, 3, 0)])
def test_split_half_agreement_is_the_average_over_all_splits(plus, minus, silent):
    votes_without = [1] * plus + [-1] * minus + [0] * silent
    N = len(votes_without)
    agree = splits = 0
    for half in itertools.combinations(range(N), N // 2):
        first = sum(votes_without[n] for n in half)
        agree += first * (sum(votes_without) - first) > 0
        splits += 1
    votes = Votes({"w": torch.full((3,), plus - minus, dtype=torch.int8)}, record(N))
    stability = votes.stability()
    assert stability.split_half == pytest.approx(agree / splits)
    assert stability.coordinates == 3
    assert 0 <= stability.mask_change[0] <= stability.mask_change[1] <= 1


@pytest.mark.parametrize(
    ("plus", "minus", "silent", "size"), [(5, 2, 0, 2), (4, 4, 0, 3), (5, 1, 1, 3), (7, 0, 0, 3)]
)
def test_agreement_of_draws_is_the_average_over_all_pairs_of_separate_draws(plus, minus, silent, size):
    votes_without = [1] * plus + [-1] * minus + [0] * silent
    N = len(votes_without)
    agree = pairs = 0
    for first in itertools.combinations(range(N), size):
        for second in itertools.combinations(sorted(set(range(N)) - set(first)), size):
            agree += sum(votes_without[n] for n in first) * sum(votes_without[n] for n in second) > 0
            pairs += 1
    assert agreement_of_draws(plus - minus, N, size) == pytest.approx(agree / pairs)


def test_settling_rises_to_the_split_halves():
    torch.manual_seed(1)
    counts = (torch.randn(40, 3000) + 0.4).sign().sum(0).to(torch.int8)
    stability = Votes({"w": counts}, record(40)).stability()
    sizes, shares = zip(*stability.settling, strict=True)
    assert sizes == (1, 3, 5, 9, 13, 19)
    assert list(shares) == sorted(shares)
    noise = Votes({"w": torch.randn(24, 20_000).sign().sum(0).to(torch.int8)}, record(24)).stability()
    assert [share for _, share in noise.settling] == pytest.approx([0.5] * len(noise.settling), abs=0.02)


def test_settling_of_many_samples_is_that_of_few_of_the_same_share():
    shares = []
    for samples in (400, 4000):
        plus = samples * 6 // 10
        histogram = np.zeros(samples + 1, dtype=np.int64)
        histogram[2 * plus - samples] = 10
        shares.append(dict(stability_from_histogram(histogram, samples).settling)[13])
    assert shares[0] == pytest.approx(shares[1], abs=0.02)


def test_stability_tells_signal_from_noise():
    torch.manual_seed(0)
    noise = Votes({"w": torch.randn(24, 5000).sign().sum(0).to(torch.int8)}, record(24)).stability()
    united = Votes({"w": torch.full((50,), 24, dtype=torch.int8)}, record(24)).stability()
    assert united.split_half == united.redraw == 1.0
    # a random walk's halves agree half of the time, less the ties, more because tied totals are left out
    assert 0.3 < noise.split_half < 0.6
    with pytest.raises(GradfixError, match="can't be split"):
        Votes({"w": torch.ones(1, dtype=torch.int8)}, record(24, vote="mean")).stability()
