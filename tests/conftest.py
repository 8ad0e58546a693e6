"""Settings that every test shares."""

from hypothesis import settings

# A slow machine must not fail a property: deadlines measure the machine, not the code.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")
