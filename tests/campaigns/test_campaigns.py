"""A small part of each campaign, drawn anew by a seed that is printed: within a minute, on every change."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import PEFT_ON_TRANSFORMERS
from tests.campaigns.canaries import canaries
from tests.campaigns.ends import faults, kills, races
from tests.campaigns.handmade import handmade
from tests.campaigns.mutations import campaign
from tests.campaigns.numbers import numbers
from tests.campaigns.results import Result
from tests.campaigns.world import build

SEED = int(os.environ.get("CAMPAIGN_SEED", random.SystemRandom().randrange(10**6)))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("world"))


@pytest.mark.campaign
@PEFT_ON_TRANSFORMERS
@pytest.mark.parametrize(
    ("run", "count"),
    [(campaign, 300), (kills, 12), (races, 4), (faults, 20), (canaries, 25), (handmade, 80), (numbers, 20)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_campaign_finds_nothing(
    run: Callable[[Path, int, int], Result], count: int, pristine: Path, tmp_path: Path
) -> None:
    result = run(Path(shutil.copytree(pristine, tmp_path / "world")), SEED, count)
    assert result.tried
    listed = "\n".join(f"{case}: {fault}" for case, fault in result.faults[:5])
    assert not result.faults, (
        f"CAMPAIGN_SEED={SEED} repeats it: {len(result.faults)} of {result.tried}\n{listed}"
    )
