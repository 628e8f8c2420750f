"""Session fixtures: pico models, and a cache that is not the user's."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

import safemerge.programs  # noqa: F401 - kinds of files and rows of methods are registered
from safemerge import plugins
from safemerge.testing import pico

_KEEP_CACHE = "SAFEMERGE_TEST_CACHE"
"""Set it to a folder to keep one cache over test runs (integration tests, a cluster)."""

# No deadline: shared cores stall. Derandomised: a failure comes again.
settings.register_profile("safemerge", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("safemerge")


@pytest.fixture(autouse=True)
def _isolated_cache(tmp_path_factory, monkeypatch):
    kept = os.environ.get(_KEEP_CACHE)
    folder = kept or tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SAFEMERGE_CACHE", str(folder))


@pytest.fixture(scope="session")
def install_examples(tmp_path_factory):
    """Install example packages by name, as pip does; returns the folder that holds them."""

    def install(*names):
        place = tmp_path_factory.mktemp("site")
        for name in names:
            source = tmp_path_factory.mktemp("source") / name
            shutil.copytree(Path(__file__).parents[1] / "examples" / name, source)
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index"]
            command += ["--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
            command += ["--target", str(place), str(source)]
            subprocess.run(command, check=True, timeout=600)
        return place

    return install


@pytest.fixture
def examples(site, monkeypatch):
    """See the packages of the test file's `site`, of `install_examples`, as installed."""
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(plugins, "_registered", {})
    importlib.invalidate_caches()
    plugins._entry_points.cache_clear()
    yield
    plugins._entry_points.cache_clear()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Folder of a float32 pico Llama with tied embeddings; read only."""
    return pico.pico_base(tmp_path_factory.mktemp("pico") / "base", seed=0)


@pytest.fixture(scope="session")
def tiny_experts(tiny_base):
    """Folders of two experts of `tiny_base` by name; read only."""
    return {
        name: pico.pico_expert(tiny_base, tiny_base.parent / name, seed=seed)
        for seed, name in enumerate(("math", "safety"), start=1)
    }


@pytest.fixture(scope="session")
def tiny_expert(tiny_experts):
    """Folder of one expert of `tiny_base`; read only."""
    return tiny_experts["math"]


@pytest.fixture(scope="session")
def tiny_aligned(tiny_base):
    """Folder of an aligned `tiny_base`, as far as weights go; read only."""
    return pico.pico_expert(tiny_base, tiny_base.parent / "aligned", seed=7)


@pytest.fixture(scope="session")
def tiny_adapter(tiny_base):
    """Folder of a LoRA adapter on `tiny_base`; read only."""
    return pico.pico_adapter(tiny_base, tiny_base.parent / "adapter", seed=3)
