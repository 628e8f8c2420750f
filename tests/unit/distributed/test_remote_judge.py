"""The client of a judge's deployment, over handles that answer by script."""

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from safemerge.config.judge import ClassifierJudge, JudgeServiceSpec, RefusalProxy
from safemerge.distributed.judge import RemoteJudge, judge_maker
from safemerge.errors import ScoringError
from safemerge.scoring.judge import Exchange, Judgement

SPEC = ClassifierJudge(kind="classifier", name="dam", path="judge", threshold=0.4, batch_size=2)
EXCHANGES = [Exchange("question", f"answer {number}") for number in range(5)]


class Response:
    def __init__(self, found):
        self.found = found
        self.cancelled = False

    def result(self, timeout_s):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def cancel(self):
        self.cancelled = True


class Handle:
    """Gives scripted answers; after them, harm 0.25 for every exchange."""

    def __init__(self, *script):
        self.script = list(script)
        self.sent = []
        self.responses = []
        self.judge = self

    def remote(self, batch):
        self.sent.append(batch)
        found = self.script.pop(0) if self.script else [Judgement(0.25) for _ in batch]
        self.responses.append(Response(found))
        return self.responses[-1]


def judged(*script, num_retries=2):
    handle = Handle(*script)
    service = JudgeServiceSpec(timeout_s=3, num_retries=num_retries)
    return RemoteJudge(SPEC, handle, service).judge(EXCHANGES), handle


def test_batches_are_sent_at_once_and_gathered_in_order():
    first, second, third = (
        [Judgement(value)] * size for value, size in ((0.1, 2), (0.2, 2), (0.3, 1))
    )
    found, handle = judged(first, second, third)
    assert [item.harm for item in found] == [0.1, 0.1, 0.2, 0.2, 0.3]
    assert [len(batch) for batch in handle.sent] == [2, 2, 1]


@pytest.mark.parametrize(
    "failure",
    [
        TimeoutError(),
        ActorDiedError(),
        RayTaskError("judge", "trace", ScoringError("judge 'dam': out of memory.")),
        [Judgement(0.0)],
        ["safe", "safe"],
        None,
    ],
    ids=["late", "lost", "failed", "too few", "garbage", "nothing"],
)
def test_a_batch_without_an_answer_is_sent_again(failure):
    found, handle = judged(failure)
    assert [item.harm for item in found] == [0.25] * 5
    assert handle.sent[3] == handle.sent[0]


def test_after_the_retries_a_batch_is_unscored_and_the_others_stay():
    found, handle = judged(TimeoutError(), num_retries=0)
    assert [item.harm for item in found] == [None, None, 0.25, 0.25, 0.25]
    assert found[0].unscored == ("judge 'dam': no answer within 3 s. Given up after 1 attempts.")
    assert handle.responses[0].cancelled


def test_garbage_is_unscored_with_its_reason_and_never_safe():
    found, _ = judged(["safe", "safe"], num_retries=0)
    assert found[0].harm is None
    assert "is no judgement of each exchange. Given up after 1" in found[0].unscored


def test_name_and_threshold_are_the_declared_ones():
    judge = RemoteJudge(SPEC, Handle(), JudgeServiceSpec())
    assert (judge.name, judge.threshold) == ("dam", 0.4)
    assert judge.judge([]) == []


def test_the_refusal_proxy_stays_in_the_process():
    made = judge_maker({}, JudgeServiceSpec())(RefusalProxy())
    assert made.name == "refusal_proxy"
    assert not isinstance(made, RemoteJudge)
