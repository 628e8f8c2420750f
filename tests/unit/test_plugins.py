"""Plugins are found without being imported, and what is wrong with one is said by name."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safemerge import plugins
from safemerge.errors import ConfigError
from safemerge.testing.plugin import write_package

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_registered", {})
    before = set(sys.modules)

    def write_one(name: str, source: str, point: str, group: str = plugins.METRICS) -> None:
        write_package(tmp_path, name, source, {f"{group} {point}": f"{name}:it"})
        plugins._entry_points.cache_clear()

    plugins._entry_points.cache_clear()
    yield write_one
    plugins._entry_points.cache_clear()
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_plugin_is_found_without_being_imported_and_loaded_with_its_version(
    write: Write,
) -> None:
    write("some_metric", "it = 3", "mine")
    found = plugins.installed(plugins.METRICS)["mine"]
    assert (found.value, found.stamp, found.kind) == (
        "some_metric:it",
        "some_metric 1.0",
        "metric",
    )
    assert "some_metric" not in sys.modules
    assert plugins.load(plugins.METRICS, "mine") == 3
    assert plugins.path_stamp("some_metric:it") == "some_metric 1.0"


def test_two_packages_of_one_name_are_refused_with_both(write: Write) -> None:
    write("one_metric", "it = 1", "mine")
    write("other_metric", "it = 2", "mine")
    with pytest.raises(ConfigError, match=r"metric 'mine': .*one_metric 1\.0.*"):
        plugins.load(plugins.METRICS, "mine")


def test_a_package_may_not_take_a_name_of_safemerges_own(write: Write) -> None:
    write("some_method", "it = 1", "ties", plugins.MERGE_METHODS)
    with pytest.raises(ConfigError, match=r"merge method 'ties': .*safemerge.*some_method 1\.0"):
        plugins.installed(plugins.MERGE_METHODS, builtin=("ties",))


def test_a_plugin_that_cannot_be_imported_says_why(write: Write) -> None:
    write("broken_metric", "import no_such_module_at_all", "mine")
    with pytest.raises(ConfigError, match=r"of broken_metric 1\.0: .*no_such_module_at"):
        plugins.load(plugins.METRICS, "mine")


def test_a_plugin_that_a_node_lacks_is_named_beside_those_it_has(write: Write) -> None:
    write("some_metric", "it = 3", "mine")
    with pytest.raises(ConfigError, match=r"metric 'yours': .*packages add mine\. Install"):
        plugins.load(plugins.METRICS, "yours")


def test_what_a_process_registers_is_loaded_there(write: Write) -> None:
    def mine() -> int:
        return 4

    assert plugins.register(plugins.JUDGES, "mine", mine) is mine
    assert plugins.load(plugins.JUDGES, "mine") is mine
    assert "this process" in plugins.find(plugins.JUDGES, "mine").stamp


@pytest.mark.parametrize("path", ["nothing", "os.path:", ":join", "os.path:no_such_name"])
def test_an_import_path_that_leads_nowhere_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="sampler: must be"):
        plugins.load_path(path, where="sampler")


def test_another_version_than_the_recorded_one_is_refused() -> None:
    assert plugins.checked_stamp("a 1.0", None, where="method") == "a 1.0"
    assert plugins.checked_stamp("a 1.0", "a 1.0", where="method") == "a 1.0"
    with pytest.raises(ConfigError, match=r"method: .*a 1\.0; got a 1\.1\. Install"):
        plugins.checked_stamp("a 1.1", "a 1.0", where="method")
