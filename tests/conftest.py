"""Settings that every test shares."""

import os
import random

import pytest
from hypothesis import settings

from gradfix import plugins

# A slow machine must not fail a property: deadlines measure the machine, not the code.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

# Before workers start, so that they draw the same.
os.environ.setdefault("CAMPAIGN_SEED", str(random.SystemRandom().randrange(10**6)))


@pytest.fixture(autouse=True)
def own_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone with it: lists of names are in messages of the tests that come after."""
    monkeypatch.setattr(plugins, "_registered", dict(plugins._registered))


def pytest_report_header() -> str:
    return f"campaigns: CAMPAIGN_SEED={os.environ['CAMPAIGN_SEED']} repeats what they draw"
