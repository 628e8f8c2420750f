from safemerge.config.method import METHODS
from safemerge.config.method_spec import BY_EXPERT


def test_numbers_by_expert_are_coefficients_by_expert():
    document = {
        "name": "della",
        "weights": {"x": 1.0, "y": 0.5},
        "epsilon_by_expert": {"x": 0.1, "y": [0.1, 0.2]},
    }
    method = METHODS["della"].spec.model_validate(document)
    found = dict(method.coefficients())
    assert found["epsilon_by_expert.y"] == [0.1, 0.2]
    assert {"epsilon_by_expert", "gamma_by_expert"} == BY_EXPERT
