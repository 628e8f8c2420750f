import pytest

from safemerge.config.method import METHODS, method_row
from safemerge.config.method_row import Usual
from safemerge.config.step import STEPS
from safemerge.errors import ConfigError
from safemerge.merge import step, table
from safemerge.testing.conformance import build_method

RANGES = [(name, *item) for name, row in METHODS.items() for item in row.usual.items()]


def test_every_declaration_has_its_maths_and_the_other_way_round():
    assert list(table.FUNCTIONS) == list(METHODS)
    assert list(step.FUNCTIONS) == list(STEPS)
    for row in (*METHODS.values(), *STEPS.values()):
        assert all((row.source.title, row.source.citation, row.source.variant, row.summary))
        assert row.source.url.startswith("https://")


def test_methods_say_what_is_worth_searching():
    assert {name for name, *_ in RANGES} == set(METHODS)
    assert all(item.low < item.high for *_, item in RANGES)
    assert str(METHODS["ties"].usual["density"]) == "(0, 1]"
    assert METHODS["sce"].usual["lambda"] == Usual(0.0, 2.0)


@pytest.mark.parametrize(("method", "name", "item"), RANGES)
def test_the_ends_of_a_range_are_legal(method, name, item):
    if name == "weights":
        for end in (item.low, item.high):
            build_method(method, {"a": end, "b": 1.0})
        return
    inside = item.high - 1e-6 if name == "epsilon" else item.high
    lowest = item.low if item.low_included else item.low + 1e-6
    for end in (lowest, inside):
        # NOTE: epsilon's end is legal at the density in the middle, and density's with no span.
        others = {"density": 0.5} if name == "epsilon" else {"epsilon": 0.0}
        build_method(method, {"a": 1.0, "b": 1.0}, **{**others, name: end})


def test_methods_that_use_the_base_have_a_lambda():
    for row in METHODS.values():
        assert row.uses_base is ("lambda" in row.usual)
        assert row.uses_base is not row.spec.takes_base


def test_there_is_no_method_of_another_name():
    with pytest.raises(ConfigError, match="merge method 'ensemble': must be safemerge's own or"):
        method_row("ensemble")
