import pytest

from safemerge.config.method import METHOD_SPECS
from safemerge.errors import MergeError
from safemerge.merge import table
from safemerge.testing.merge_cases import build_method

RANGES = [(row, item) for row in table.METHODS.values() for item in row.parameters]


@pytest.mark.parametrize(("row", "item"), RANGES, ids=lambda value: value.name)
def test_a_range_is_of_a_parameter_that_the_method_has(row, item):
    fields = METHOD_SPECS[row.name].model_fields
    assert item.name in {field.alias or name for name, field in fields.items()}
    assert item.low < item.high


@pytest.mark.parametrize(("row", "item"), RANGES, ids=lambda value: value.name)
def test_the_ends_of_a_range_are_legal(row, item):
    if item.name == "weights":
        for end in (item.low, item.high):
            build_method(row.name, {"a": end, "b": 1.0})
        return
    inside = item.high - 1e-6 if item.name == "epsilon" else item.high
    lowest = item.low if item.low_included else item.low + 1e-6
    for end in (lowest, inside):
        # NOTE: epsilon's end is legal at the density in the middle, and density's with no span.
        others = {"density": 0.5} if item.name == "epsilon" else {"epsilon": 0.0}
        build_method(row.name, {"a": 1.0, "b": 1.0}, **{**others, item.name: end})


def test_methods_that_use_the_base_have_a_lambda():
    for row in table.METHODS.values():
        assert row.uses_base is ("lambda" in {item.name for item in row.parameters})
        assert row.uses_base is not METHOD_SPECS[row.name].takes_base


def test_there_is_no_method_of_another_name():
    with pytest.raises(MergeError, match="Known: linear, slerp"):
        table.method_row("ensemble")
