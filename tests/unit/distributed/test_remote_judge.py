"""The client of a judge's deployment, over handles that answer by script, and its health."""

import asyncio
import threading
import time

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from safemerge.config.judge import ClassifierJudge, JudgeServiceSpec, RefusalProxy
from safemerge.distributed.judge import (
    LAST_LOOK_S,
    REPLACED_WITHIN_S,
    JudgeReplica,
    RemoteJudge,
    judge_maker,
    judges_until,
)
from safemerge.errors import EngineError, ScoringError
from safemerge.scoring.judge import Exchange, Judgement, RefusalProxyJudge

SPEC = ClassifierJudge(kind="classifier", name="dam", path="judge", threshold=0.4, batch_size=2)
EXCHANGES = [Exchange("question", f"answer {number}") for number in range(5)]


class Clock:
    """Seconds that pass only where somebody waits."""

    def __init__(self):
        self.now = 100.0
        self.pauses = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


class Response:
    def __init__(self, found, clock=None):
        self.found = found
        self.clock = clock
        self.waited = None
        self.cancelled = False

    def result(self, timeout_s):
        self.waited = timeout_s
        if self.clock is not None and isinstance(self.found, TimeoutError):
            self.clock.now += timeout_s
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def cancel(self):
        self.cancelled = True


class Handle:
    """Gives scripted answers; after them, harm 0.25 for every exchange."""

    def __init__(self, *script, clock=None):
        self.clock = clock
        self.script = list(script)
        self.sent = []
        self.responses = []
        self.judge = self

    def remote(self, batch):
        self.sent.append(batch)
        found = self.script.pop(0) if self.script else [Judgement(0.25) for _ in batch]
        self.responses.append(Response(found, self.clock))
        return self.responses[-1]


def judged(*script, num_retries=2):
    handle = Handle(*script)
    service = JudgeServiceSpec(timeout_s=3, num_retries=num_retries)
    made = RemoteJudge(SPEC, handle, service, sleep=lambda _: None)
    return made.judge(EXCHANGES), handle


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


# --- one deadline, and the time to be replaced ------------------------------------------


def timed(*script, deadline, timeout_s=300.0, num_retries=2):
    clock = Clock()
    handle = Handle(*script, clock=clock)
    service = JudgeServiceSpec(timeout_s=timeout_s, num_retries=num_retries)
    judge = RemoteJudge(SPEC, handle, service, clock=clock, sleep=clock.sleep)
    return judge.until(clock.now + deadline), handle, clock


def test_hung_batches_share_one_deadline_and_end_unscored_with_the_reason():
    judge, handle, clock = timed(*[TimeoutError()] * 50, deadline=1440)
    found = judge.judge(EXCHANGES)
    assert [item.harm for item in found] == [None] * 5
    # 900 s for the first batch, 540 for the second, a last look at the third.
    assert clock.now == pytest.approx(100 + 1440 + LAST_LOOK_S)
    assert found[0].unscored.endswith("Given up after 3 attempts.")
    assert found[2].unscored == (
        "judge 'dam': no answer within 240 s. The candidate's time is over."
    )
    assert found[4].unscored.endswith("The candidate's time is over.")
    assert len(handle.sent) == 3 + 2 + 1


def test_verdicts_that_are_there_when_the_time_is_over_are_kept():
    judge, handle, _ = timed(TimeoutError(), deadline=200)
    found = judge.judge(EXCHANGES)
    assert [item.harm for item in found] == [None, None, 0.25, 0.25, 0.25]
    assert [response.waited for response in handle.responses] == [200, LAST_LOOK_S, LAST_LOOK_S]


def test_a_deadline_is_shared_by_all_judges_of_a_candidate():
    first, handle, clock = timed(*[TimeoutError()] * 50, deadline=900)
    second = RemoteJudge(SPEC, handle, JudgeServiceSpec(), clock=clock, sleep=clock.sleep)
    local = RefusalProxyJudge()
    rows = judges_until([[first, local], [second]], clock.now + 900)
    assert rows[0][1] is local
    for judge in (rows[0][0], rows[1][0]):
        judge.judge(EXCHANGES)
    assert clock.now < 100 + 900 + 6 * LAST_LOOK_S


def test_a_failing_judge_is_given_the_time_to_be_replaced_once_a_call():
    failure = RayTaskError("judge", "trace", ScoringError("judge 'dam': failed."))
    judge, _, clock = timed(*[failure] * 3, deadline=1440)
    found = judge.judge(EXCHANGES)
    assert [item.harm for item in found] == [0.25] * 5
    assert clock.pauses == [REPLACED_WITHIN_S]
    for other in (TimeoutError(), ActorDiedError(), None):
        judge, _, clock = timed(other, deadline=1440)
        judge.judge(EXCHANGES)
        assert clock.pauses == []


# --- the replica's health ---------------------------------------------------------------


class Script:
    """A judge that answers, fails with an exception, or waits for an event."""

    name, threshold = "dam", 0.4

    def __init__(self, *script):
        self.script = list(script)
        self.judged = []

    def judge(self, exchanges):
        self.judged.append(list(exchanges))
        step = self.script.pop(0) if self.script else None
        if isinstance(step, Exception):
            raise step
        if step is not None:
            step.wait(timeout=30)
        return [Judgement(0.25) for _ in exchanges]


def replica(judge, timeout_s=300.0):
    class Scripted(JudgeReplica):
        def _start(self, spec, service):
            return judge

    return Scripted(
        SPEC.model_dump_json(), JudgeServiceSpec(timeout_s=timeout_s).model_dump_json()
    )


def check(made):
    asyncio.run(made.check_health())


def test_a_replica_that_judges_is_healthy_and_not_asked_for_it():
    judge = Script()
    made = replica(judge)
    check(made)
    made._judgements(EXCHANGES)
    check(made)
    assert judge.judged == [EXCHANGES]


def test_a_replica_whose_engine_died_is_unhealthy_until_it_judges_again():
    made = replica(Script(RuntimeError("core died"), RuntimeError("core died")))
    with pytest.raises(ScoringError, match="judge 'dam': failed; got RuntimeError"):
        made._judgements(EXCHANGES)
    with pytest.raises(ScoringError, match="judge 'dam': failed; got RuntimeError"):
        check(made)
    check(made)


def test_a_batch_that_breaks_a_judge_that_works_costs_no_replica():
    judge = Script(ScoringError("judge 'dam': an exchange of its own kind."))
    made = replica(judge)
    with pytest.raises(ScoringError):
        made._judgements(EXCHANGES)
    check(made)
    check(made)
    assert len(judge.judged) == 2


def test_a_replica_with_a_batch_that_nobody_waits_for_any_more_is_unhealthy():
    free = threading.Event()
    made = replica(Script(free), timeout_s=0.05)
    thread = threading.Thread(target=made._judgements, args=(EXCHANGES,))
    thread.start()
    try:
        time.sleep(0.2)
        with pytest.raises(EngineError, match=r"judge 'dam': a batch took longer than 0\.05 s"):
            check(made)
    finally:
        free.set()
        thread.join()
    check(made)


def test_a_replica_that_is_busy_in_time_is_healthy_and_not_disturbed():
    free = threading.Event()
    judge = Script(free)
    made = replica(judge)
    thread = threading.Thread(target=made._judgements, args=(EXCHANGES,))
    thread.start()
    try:
        while not judge.judged:
            time.sleep(0.01)
        check(made)
    finally:
        free.set()
        thread.join()
    assert judge.judged == [EXCHANGES]
