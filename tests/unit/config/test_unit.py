import pytest

from safemerge.config.suite import Classification, Harm, LmEval
from safemerge.config.unit import harness_unit, joint_unit, task_units


def test_metrics_of_our_own_tasks_are_shares():
    tasks = [Classification(kind="classification", labels=["a", "b"]), Harm(kind="harm")]
    units = [unit for task in tasks for unit in task_units(task).values()]
    assert set(units) == {"share"}


def test_metrics_of_the_harness_are_shares_by_name():
    metrics = {"acc": "maximize", "word_perplexity": "minimize", "of_my_own": "maximize"}
    task = LmEval(kind="lm_eval", task="any", metrics=metrics)
    expected = {"acc": "share", "word_perplexity": "number", "of_my_own": "number"}
    assert task_units(task) == expected == {name: harness_unit(name) for name in metrics}


@pytest.mark.parametrize(
    ("units", "joint"),
    [(["share", "share"], "share"), (["share", "number"], "number"), (["number"], "number")],
)
def test_a_mean_is_a_share_if_all_of_its_parts_are(units, joint):
    assert joint_unit(units) == joint
