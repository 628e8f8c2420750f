import logging
import sys

import pytest

from safemerge.config.judge import GuardJudge, JudgeServiceSpec
from safemerge.engines.vllm_reply import VllmReplies
from safemerge.errors import EngineError, PreflightError
from safemerge.scoring import served_judge as module
from safemerge.scoring.judge import Exchange
from safemerge.scoring.served_judge import served_judge


def guard(folder, **changes):
    return GuardJudge(kind="guard", name="g", path=str(folder), family="llama_guard", **changes)


@pytest.fixture
def vllm_breaks(monkeypatch):
    class Broken:
        def __init__(self, *_):
            raise EngineError("judge.engine: vllm must start; got: no such architecture.")

    fake = type(sys)("safemerge.scoring.guard_vllm")
    fake.VllmGuardModel = Broken
    monkeypatch.setitem(sys.modules, "safemerge.scoring.guard_vllm", fake)
    monkeypatch.setattr(module, "find_spec", lambda _: object())


def test_where_vllm_does_not_start_transformers_judges_and_says_so(vllm_breaks, tiny_base, caplog):
    with caplog.at_level(logging.WARNING):
        judge = served_judge(guard(tiny_base), JudgeServiceSpec())
    assert "no such architecture. So transformers runs the judge." in caplog.text
    (found,) = judge.judge([Exchange("a", "b")])
    assert found.unscored  # a random pico says neither safe nor unsafe


def test_a_guard_that_asks_for_vllm_gets_it_or_an_error(vllm_breaks, tiny_base):
    with pytest.raises(EngineError, match="vllm must start"):
        served_judge(guard(tiny_base, engine="vllm"), JudgeServiceSpec())


def test_without_vllm_transformers_judges(monkeypatch, tiny_base, caplog):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    judge = served_judge(guard(tiny_base), JudgeServiceSpec())
    assert judge.name == "g"
    assert caplog.text == ""


def test_vllm_that_is_asked_for_and_not_installed_is_said(monkeypatch, tiny_base):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(PreflightError, match=r"judge\.engine: vllm must be installed; got"):
        served_judge(guard(tiny_base, engine="vllm"), JudgeServiceSpec())


def test_an_engine_for_replies_that_cannot_start_says_what_to_do(monkeypatch, tmp_path):
    vllm = type(sys)("vllm")
    vllm.LLM = vllm.SamplingParams = object
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    with pytest.raises(
        EngineError, match=r"judge\.engine: vllm must start on .*; got: .*"
    ) as told:
        VllmReplies(
            str(tmp_path), max_model_len=64, kv_cache_gib=0.1, gpu_memory_utilization=0.5,
            cpu_ids=None,
        )  # fmt: skip
    assert "Set VLLM_LOGGING_LEVEL=INFO" in str(told.value)
