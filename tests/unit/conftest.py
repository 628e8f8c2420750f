"""The fixture that opens search studies and closes them."""

import pytest

from safemerge.search import SearchStudy
from safemerge.store import RunStore


@pytest.fixture
def open_study(tmp_path):
    """Start a search study in a new folder, or go on in the one that an earlier call made."""
    opened = []

    def start(spec, place=None):
        store = RunStore(tmp_path / "run")
        store = RunStore.open(store.folder) if store.exists else store.create(spec)
        opened.append(SearchStudy(spec, store, place=place))
        return opened[-1]

    yield start
    for study in opened:
        study.close()
