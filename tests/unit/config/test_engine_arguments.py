import pytest

from safemerge.config import engine_arguments
from safemerge.config.engine_arguments import argument_problems, vllm_arguments
from safemerge.config.identity import first_difference, study_identity
from safemerge.errors import ConfigError
from safemerge.testing.landscapes import landscape_study


@pytest.fixture
def known(monkeypatch):
    names = frozenset({"max_num_batched_tokens", "enforce_eager"})
    monkeypatch.setattr(engine_arguments, "vllm_arguments", lambda: names)


def study(**arguments):
    return landscape_study(evaluator={"engine_arguments": arguments})


def test_what_safemerge_sets_is_refused_with_its_own_key(known):
    with pytest.raises(
        ConfigError,
        match=r"evaluator: engine_arguments.dtype: is set by safemerge; got \"half\"\. Use eval",
    ):
        study(dtype="half")


def test_a_name_that_vllm_lacks_is_answered_with_the_nearest(known):
    with pytest.raises(ConfigError, match=r"no such argument; got 9.*'max_num_batched_tokens'"):
        study(max_num_batched_token=9)
    with pytest.raises(ConfigError, match=r"no such argument; got 9\. See EngineArgs"):
        study(zzz=9)


def test_without_vllm_every_name_is_taken(monkeypatch):
    monkeypatch.setattr(engine_arguments.importlib.util, "find_spec", lambda _: None)
    vllm_arguments.cache_clear()
    assert vllm_arguments() == frozenset()
    assert list(argument_problems("vllm", {"anything": 1})) == []
    vllm_arguments.cache_clear()


def test_names_are_those_of_the_installed_vllm():
    pytest.importorskip("vllm.version")
    vllm_arguments.cache_clear()
    assert {"max_num_batched_tokens", "enforce_eager", *engine_arguments.SET_BY_SAFEMERGE} <= (
        vllm_arguments()
    )


def test_another_engine_takes_none():
    with pytest.raises(ConfigError, match="are vLLM's; got engine: transformers"):
        landscape_study(evaluator={"engine": "transformers", "engine_arguments": {"a": 1}})


def test_they_are_part_of_the_study_and_no_old_study_has_any(known):
    plain, eager = landscape_study(), study(enforce_eager=True)
    assert "engine_arguments" not in plain.resolved()["evaluator"]
    found = first_difference(study_identity(plain), study_identity(eager))
    assert found.path == "evaluator.engine_arguments"
