"""Total effects of parameters, against functions whose effects are known; float64 throughout."""

from types import SimpleNamespace

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from safemerge.search.encoding import Encoding
from safemerge.search.importance import importances

UNIT = FloatDistribution(0.0, 1.0)


class Known:
    """A model that believes in some functions of the columns."""

    def __init__(self, *functions):
        self._functions = functions

    def believe(self, points):
        columns = [points[:, index] for index in range(points.shape[1])]
        return SimpleNamespace(
            mean=np.stack([function(*columns) for function in self._functions], axis=1)
        )


def test_effects_of_a_sum_are_the_shares_of_its_variance():
    found = importances(
        Known(lambda a, b, c: a + 2 * b + 0 * c, lambda a, b, c: a * 0 + 1),
        Encoding({"only": dict.fromkeys("abc", UNIT)}),
        ["sum", "flat"],
        seed=0,
    )
    assert found["sum"]["only"] == pytest.approx({"a": 0.2, "b": 0.8, "c": 0.0}, abs=0.1)
    assert found["sum"]["only"]["c"] == 0
    assert found["flat"]["only"] == {"a": 0, "b": 0, "c": 0}


def test_what_works_only_together_counts_for_each():
    model = Known(lambda a, b: (a - 0.5) * (b - 0.5))
    found = importances(model, Encoding({"only": {"a": UNIT, "b": UNIT}}), ["x"], seed=0)
    assert found["x"]["only"] == pytest.approx({"a": 1.0, "b": 1.0}, abs=0.15)


def test_each_space_has_its_own_and_a_choice_is_one_parameter():
    encoding = Encoding(
        {
            "narrow": {"narrow/w": FloatDistribution(0.0, 0.5), "narrow/c": UNIT},
            "chosen": {"chosen/w": CategoricalDistribution(["low", "high"]), "chosen/c": UNIT},
        },
        chooser="space",
        paths={"narrow/w": "w", "chosen/w": "method", "narrow/c": "c", "chosen/c": "c"},
    )
    high = encoding._columns["method", "high"]
    of_space = encoding._columns["", "chosen"]
    model = Known(lambda *columns: columns[high] + columns[of_space])
    found = importances(model, encoding, ["x"], seed=0)
    assert found["x"]["narrow"] == {"w": 0, "c": 0}
    assert found["x"]["chosen"] == pytest.approx({"method": 1.0, "c": 0.0}, abs=0.1)
