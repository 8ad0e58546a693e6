"""A small part of each campaign, drawn anew by a seed that is printed: `make campaign-sample`."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import PEFT_ON_TRANSFORMERS
from tests.campaigns.canaries import canaries
from tests.campaigns.ends import faults, kills, races
from tests.campaigns.handmade import handmade
from tests.campaigns.mutations import mutations
from tests.campaigns.numbers import numbers
from tests.campaigns.results import Result
from tests.campaigns.world import build

SEED = int(os.environ["CAMPAIGN_SEED"])


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("world"))


@pytest.mark.slow
@pytest.mark.campaign
@PEFT_ON_TRANSFORMERS
@pytest.mark.parametrize(
    ("run", "count", "seed"),
    [
        (mutations, 150, SEED),
        (mutations, 150, SEED + 1),
        (kills, 12, SEED),
        (canaries, 25, SEED),
        (handmade, 80, SEED),
        (faults, 5, SEED),
        (numbers, 5, SEED),
        (races, 2, SEED),
    ],
    ids=["mutations", "more mutations", "kills", "canaries", "handmade", "faults", "numbers", "races"],
)
def test_a_campaign_finds_nothing(
    run: Callable[[Path, int, int], Result], count: int, seed: int, pristine: Path, tmp_path: Path
) -> None:
    result = run(Path(shutil.copytree(pristine, tmp_path / "world")), seed, count)
    assert result.tried
    listed = "\n".join(f"{case}: {fault}" for case, fault in result.faults[:5])
    assert not result.faults, (
        f"CAMPAIGN_SEED={SEED} repeats it: {len(result.faults)} of {result.tried}\n{listed}"
    )
