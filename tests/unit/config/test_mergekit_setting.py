import pytest

from safemerge.config.mergekit_file import Entry, Level, Malformed, in_slice, read_setting


def read(*levels, default=None):
    named = [Level(f"p{at}", level) for at, level in enumerate(levels)]
    return read_setting("weight", named, default=default)


def test_what_no_filter_takes_falls_through_to_the_next_level_and_the_default():
    own = {"weight": [{"filter": "mlp", "value": 1}]}
    assert read(own, {"weight": [0.1, "2e-1"]}) == (Entry("mlp", 1.0), Entry(None, [0.1, 0.2]))
    assert read(own, {}, default=0.5) == (Entry("mlp", 1.0), Entry(None, 0.5))
    assert read(own) == Malformed("p0.weight", "must end with a value for the rest", None)
    assert read({}, {}) == Malformed("p1.weight", "is needed", None)


@pytest.mark.parametrize("given", ["x", [], [1, "y"], True, [{"value": 1}, 2], {"filter": 3}])
def test_what_is_no_setting_is_malformed(given):
    assert isinstance(read({"weight": given}), Malformed)


def test_a_slices_gradient_is_a_value_for_each_layer():
    assert in_slice([0.0, 1.0], first=1, last=3, num_layers=5) == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert in_slice([0.0, 1.0], first=1, last=1, num_layers=3) == [1.0, 1.0, 1.0]
    assert in_slice(0.3, first=0, last=1, num_layers=2) == 0.3
