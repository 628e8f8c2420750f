"""The fixture that starts search studies of a landscape."""

import pytest

from safemerge.testing.landscapes import landscape_study


@pytest.fixture
def begin(open_study):
    """Start a landscape's study, or go on with the one that an earlier call started."""
    return lambda **changes: open_study(landscape_study(**changes))
