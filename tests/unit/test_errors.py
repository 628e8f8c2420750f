import inspect
import pickle

import pytest

from safemerge import errors

FAMILY = [
    member
    for _, member in inspect.getmembers(errors, inspect.isclass)
    if issubclass(member, errors.SafemergeError)
]


@pytest.mark.parametrize("kind", FAMILY)
def test_every_error_survives_a_process_border(kind):
    error = pickle.loads(pickle.dumps(kind("f.yaml: seed: must be at least 0; got -1.")))
    assert type(error) is kind
    assert str(error) == error.message == "f.yaml: seed: must be at least 0; got -1."


@pytest.mark.parametrize("kind", FAMILY)
def test_every_error_can_be_made_without_arguments(kind):
    assert str(kind()) == ""


@pytest.mark.parametrize("kind", FAMILY)
def test_every_error_says_when_it_is_raised(kind):
    assert inspect.getdoc(kind)


def test_wrong_input_is_a_value_error_and_failed_work_is_not():
    for kind in FAMILY:
        if issubclass(kind, errors.UserError):
            assert issubclass(kind, ValueError)
    for kind in (errors.EngineError, errors.ScoringError, errors.StudyError):
        assert issubclass(kind, RuntimeError)
        assert not issubclass(kind, errors.UserError)
