import pytest
from pydantic import ValidationError

from safemerge.config.task_vector_method import DellaLinear, Ties


def test_defaults_that_came_later_are_not_written():
    written = Ties(name="ties", weights={"a": 1.0}).resolved()
    assert not {"divisor", "rescale", "epsilon_by_expert"} & set(written)


def test_a_signed_divisor_is_for_means_that_divide_by_weights():
    for other in ({"variant": "peft"}, {"normalize": False}):
        with pytest.raises(ValidationError, match="divisor: signed is for means"):
            Ties(name="ties", weights={"a": 1.0}, divisor="signed", **other)


def test_an_experts_own_epsilon_is_checked_with_its_own_density():
    given = {"name": "della_linear", "weights": {"a": 1.0, "b": 1.0}}
    density = {"a": 0.5, "b": 0.9}
    DellaLinear(**given, density=density, epsilon_by_expert={"a": 0.3, "b": 0.05})
    with pytest.raises(ValidationError, match=r"got density 0.9 to 0.9, epsilon 0.3"):
        DellaLinear(**given, density=density, epsilon_by_expert={"a": 0.3, "b": 0.3})
