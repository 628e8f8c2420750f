"""The fixture that starts search studies and closes them."""

import pytest

from safemerge.search import SearchStudy
from safemerge.store import RunStore
from safemerge.testing.landscapes import (
    landscape_study,
)

# The journal is the same code without SQLite's slow syncs.


@pytest.fixture
def begin(tmp_path):
    """Start a study in a new folder, or go on in the one that an earlier call made."""
    opened = []

    def start(**changes):
        spec = landscape_study(**changes)
        store = RunStore(tmp_path / "run")
        store = RunStore.open(store.folder) if store.exists else store.create(spec)
        opened.append(SearchStudy(spec, store))
        return opened[-1]

    yield start
    for study in opened:
        study.close()
