"""A judge's deployment on a cluster of its own: shared, overlapping, killed, talking garbage."""

import asyncio
import os
import signal
import sys
import time

import pytest
from ray import cloudpickle, serve

from safemerge.api.prepare import resolve_study
from safemerge.commands.console import Console
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.data.suite import load_suites
from safemerge.distributed import judge as judge_module
from safemerge.distributed.cluster import ray_cluster
from safemerge.distributed.evaluator import Evaluator
from safemerge.distributed.judge import JudgeReplica, RemoteJudge, bound_judges
from safemerge.distributed.serving import run_application
from safemerge.errors import ScoringError
from safemerge.scoring.judge import Exchange
from safemerge.scoring.local_judge import local_judge
from tests.integration.driving import PATIENCE
from tests.integration.judge_driving import classifier_folder

pytestmark = [pytest.mark.ray, pytest.mark.slow]

APP = "safemerge-judged"
NUM_PROMPTS = 4

# Ray's processes can't import a test file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class DeadJudge:
    """What is left of a judge whose engine's process died."""

    name, threshold = "pico", 0.5

    def judge(self, exchanges):
        raise RuntimeError("the engine is dead")


class ModalJudge(JudgeReplica):
    """A judge that can be told to wait for others, to hang once, to talk garbage, or to die."""

    def __init__(self, spec, service):
        super().__init__(spec, service)
        self.mode, self.calls, self.exchanges, self.together = "plain", 0, 0, 0

    async def set_mode(self, mode, together=0):
        self.mode, self.calls, self.exchanges, self.together = mode, 0, 0, together

    async def lose_engine(self):
        self._judge = DeadJudge()

    async def counts(self):
        return self.calls, self.exchanges, os.getpid()

    async def judge(self, batch):
        self.calls += 1
        self.exchanges += len(batch)
        if self.mode == "garbage":
            return "perfectly safe"
        if self.mode == "hang":
            await asyncio.sleep(3600)
        while self.calls < self.together:
            await asyncio.sleep(0.05)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._judgements, list(batch))


@pytest.fixture(scope="module")
def spec(study_document, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    judge = {
        "kind": "classifier", "name": "pico", "unsafe": ["bad"], "batch_size": 64,
        "path": str(classifier_folder(folder / "classifier")),
    }  # fmt: skip

    def questions(split):
        path = folder / f"{split}.jsonl"
        path.write_text(
            "".join(f'{{"prompt": "{split} question {n}"}}\n' for n in range(NUM_PROMPTS))
        )
        return {"source": {"kind": "file", "path": str(path)}}

    harm = {
        "name": "harm",
        "task": {"kind": "harm", "judge": judge, "same_judge": True, "max_tokens": 4},
        "search": questions("search"),
        "report": questions("report"),
    }
    document = study_document | {
        "suites": [study_document["suites"][1], harm],
        "objectives": [{"metric": "harm.harmful_score", "direction": "minimize", "reference": 1}],
        "evaluator": study_document["evaluator"]
        | {"cpus_per_replica": 0.5, "min_replicas": 2, "max_replicas": 2},
        "judge_service": {"cpus_per_replica": 0.5, "timeout_s": 60 * PATIENCE, "num_retries": 1},
    }
    spec = StudySpec.model_validate(document)
    return resolve_study(spec, load_suites(spec), Console())


@pytest.fixture(scope="module")
def evaluator(spec):
    with pytest.MonkeyPatch.context() as patch, ray_cluster(num_cpus=2):
        patch.setattr(judge_module, "JudgeReplica", ModalJudge)
        with Evaluator(spec, app=APP) as evaluator:
            yield evaluator


@pytest.fixture
def judge(evaluator, spec):
    """Handle of the judge's deployment, in its plain mode."""
    (name,) = [
        name for name in serve.status().applications[APP].deployments if name.startswith("Judge-")
    ]
    handle = serve.get_deployment_handle(name, app_name=APP)
    ask(handle.set_mode, "plain")
    return handle


def ask(method, *arguments, **named):
    return method.remote(*arguments, **named).result(timeout_s=120 * PATIENCE)


def recipes(spec, count):
    template = spec.template(spec.spaces[0])
    made = []
    for number in range(count):
        method = template["method"] | {"weights": {"math": 0.1 * number, "safety": 0.5}}
        made.append(MergeRecipe.model_validate(template | {"method": method}))
    return made


def test_two_evaluator_replicas_share_one_judge(evaluator, judge, spec):
    results = list(evaluator.score_all(recipes(spec, 4), "search"))
    assert len({result.replica for result in results}) == 2
    calls, exchanges, _ = ask(judge.counts)
    assert (calls, exchanges) == (4, 4 * NUM_PROMPTS)
    assert all(result.metrics["harm.harmful_score"].n == NUM_PROMPTS for result in results)
    assert all(result.metrics["harm.harmful_score"].unscored == 0 for result in results)


def test_a_replica_answers_the_next_candidate_while_one_is_judged(evaluator, judge, spec):
    # Three candidates on two replicas: unless one replica has two under way, the third never
    # comes to the judge, and the first two wait for it until they are given up.
    ask(judge.set_mode, "plain", together=3)
    results = list(evaluator.score_all(recipes(spec, 3), "search"))
    assert all(result.metrics["harm.harmful_score"].unscored == 0 for result in results)


def test_answers_of_a_killed_judge_are_judged_by_the_next(evaluator, judge, spec):
    (recipe,) = recipes(spec, 1)
    whole = evaluator.score(recipe, "search")
    ask(judge.set_mode, "hang")
    _, _, pid = ask(judge.counts)
    response = evaluator._handle.score.remote(recipe.model_dump_json(by_alias=True), "search")
    while ask(judge.counts)[0] == 0:
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)

    again = response.result(timeout_s=240 * PATIENCE)

    assert again.metrics == whole.metrics
    assert ask(judge.counts)[2] != pid


def test_a_judge_whose_engine_died_is_replaced_and_its_answers_are_judged(evaluator, judge, spec):
    (recipe,) = recipes(spec, 1)
    whole = evaluator.score(recipe, "search")
    _, _, pid = ask(judge.counts)
    ask(judge.lose_engine)

    again = evaluator.score(recipe, "search")

    assert again.metrics == whole.metrics
    assert ask(judge.counts)[2] != pid


def test_garbage_is_unscored_and_too_much_of_it_fails_the_candidate(evaluator, judge, spec):
    ask(judge.set_mode, "garbage")
    with pytest.raises(
        ScoringError,
        match=r"suite 'harm': unscored 4 of 4 responses \(1\.000\), limit 0\.02; first reason: "
        r"judge 'pico': its answer is no judgement of each exchange\. Given up after 2 attempts",
    ):
        evaluator.score(recipes(spec, 1)[0], "search")
    assert ask(judge.counts)[0] == 2


def test_a_judge_behind_its_deployment_says_what_it_says_here(evaluator, spec):
    (declared,) = spec.served_judges
    (bound,) = bound_judges([declared], spec.judge_service).values()
    exchanges = [Exchange(f"question {n}", f"answer {'and more ' * n}") for n in range(7)]
    handle = run_application(bound, app="judge-alone", what="judge")
    try:
        small = declared.model_copy(update={"batch_size": 2})
        found = RemoteJudge(small, handle, spec.judge_service).judge(exchanges)
    finally:
        serve.delete("judge-alone")
    expected = local_judge(declared).judge(exchanges)
    assert [item.harm for item in found] == pytest.approx(
        [item.harm for item in expected], abs=1e-5
    )
