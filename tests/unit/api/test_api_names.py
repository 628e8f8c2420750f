"""What `import safemerge` offers: every name is there, documented, typed and quick to have."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import safemerge

FUNCTIONS = [
    name
    for name in safemerge.__all__
    if name != "errors" and name not in ("Recipe", "Run", "Study")
]
MOST_SECONDS = 0.3


def type_checked():
    """Names that the package imports for type checkers, by module."""
    tree = ast.parse(Path(safemerge.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        item.name: node.module.removeprefix("safemerge.")
        for node in block.body
        for item in node.names
    }


def test_type_checkers_see_the_names_that_are_offered():
    assert type_checked() == safemerge._MODULES
    assert sorted(safemerge.__all__) == safemerge.__all__
    assert {*safemerge._MODULES, "errors"} == set(safemerge.__all__)
    assert set(safemerge.__all__) <= set(dir(safemerge))


@pytest.mark.parametrize("name", safemerge.__all__)
def test_every_name_is_there_and_documented(name):
    assert inspect.getdoc(getattr(safemerge, name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_types_and_says_what_it_raises(name):
    function = getattr(safemerge, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert name == "methods" or parameter.name in function.__doc__
    assert name == "methods" or "Raises:" in function.__doc__


@pytest.mark.parametrize("name", ["Run", "Study", "Recipe"])
def test_every_public_attribute_of_a_class_is_documented(name):
    kind = getattr(safemerge, name)
    for attribute in vars(kind):
        if not attribute.startswith("_") and callable(getattr(kind, attribute)):
            assert inspect.getdoc(getattr(kind, attribute)), attribute


@pytest.mark.parametrize("name", [n for n, m in safemerge._MODULES.items()])
def test_a_function_keeps_its_name_though_a_room_has_the_same(name):
    try:
        room = import_module(f"safemerge.{name}")
    except ModuleNotFoundError:
        return
    assert getattr(safemerge, name) is not room
    assert callable(getattr(safemerge, name))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'safemerge' has no attribute 'serach'"):
        safemerge.serach  # noqa: B018


def test_the_import_is_quick():
    code = "from time import perf_counter as now; t = now(); import safemerge; print(now() - t)"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < MOST_SECONDS
