"""One table says what a metric means; names mean nothing."""

import re
import subprocess
from pathlib import Path

import pytest

from safemerge.config.metric import (
    TASK_METRICS,
    harness_metric,
    joint_unit,
    measured_metrics,
    metrics_of,
)
from safemerge.config.study import Aggregate
from safemerge.config.suite import Harm, LmEval, task_metrics
from safemerge.testing.landscapes import landscape_study

ROOT = Path(__file__).resolve().parents[3]
OPEN = {"harm", "over_refusal"}


def test_metrics_of_our_own_tasks_are_shares_with_a_worst_value():
    for rows in TASK_METRICS.values():
        for row in rows:
            assert row.unit == "share"
            assert row.range == (0.0, 1.0)
            assert row.worst == (0.0 if row.direction == "maximize" else 1.0)
            assert row.summary.endswith(".")
    assert harness_metric("perplexity", "minimize").worst is None


def test_every_task_has_main_metrics_and_tasks_with_open_answers_the_gate():
    for kind, rows in TASK_METRICS.items():
        assert [row.name for row in rows if row.is_main] == [rows[0].name]
        assert [row.broken_above for row in rows if row.broken_above] == [0.5] * (kind in OPEN)


def test_metrics_of_the_harness_are_shares_by_name():
    metrics = {"acc": "maximize", "word_perplexity": "minimize", "of_my_own": "maximize"}
    rows = task_metrics(LmEval(kind="lm_eval", task="any", metrics=metrics))
    assert {row.name: row.direction for row in rows} == metrics
    assert {row.role for row in rows} == {"skill"}
    assert [row.unit for row in rows] == ["share", "number", "number"]
    assert [row.scale for row in rows] == [100.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("units", "joint"),
    [(["share", "share"], "share"), (["share", "number"], "number"), (["number"], "number")],
)
def test_a_mean_is_a_share_if_all_of_its_parts_are(units, joint):
    assert joint_unit(units) == joint


@pytest.mark.parametrize(
    ("parts", "own", "role"),
    [
        (["harm.harmful_score", "harm.complied_rate"], None, "harm"),
        (["harm.harmful_score", "harm.other_rate"], None, None),
        (["harm.harmful_score", "harm.other_rate"], "harm", "harm"),
        (["task.accuracy"], None, "skill"),
    ],
)
def test_an_aggregate_is_about_what_all_of_its_parts_are_or_what_it_says(parts, own, role):
    spec = landscape_study(
        aggregates={"mean": {"mean_of": parts} | ({} if own is None else {"role": own})}
    )
    row = metrics_of(spec)["mean"]
    assert row.role == role
    assert row.parts == row.mean_of == tuple(parts)
    assert row.direction == metrics_of(spec)[parts[0]].direction
    assert not row.is_side


def test_an_aggregate_without_a_role_is_written_as_before_there_were_any():
    assert Aggregate(mean_of=["task.accuracy"]).resolved() == {"mean_of": ["task.accuracy"]}


def test_the_study_says_what_each_metric_is_used_for_and_goals_come_first():
    spec = landscape_study(
        constraints=[{"metric": "harm.incoherent_rate", "budget": 0.2}],
    )
    rows = list(metrics_of(spec).values())
    assert [row.use for row in rows[:4]] == ["objective", "objective", "constraint", "other"]
    assert {row.name for row in rows} == set(measured_metrics(spec.suites, spec.aggregates))
    assert len(rows) == 1 + len(task_metrics(Harm(kind="harm")))


def test_no_module_reads_a_meaning_from_a_metrics_name():
    """The names of metrics stand in the table, where scores are made, and in no test of a name."""
    names = {row.name for rows in TASK_METRICS.values() for row in rows}
    ending = re.compile(
        r"(endswith|startswith|removesuffix|removeprefix)\([^)]*(" + "|".join(names) + r")"
    )
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "safemerge/*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    existing = [ROOT / path for path in listed if (ROOT / path).exists()]
    assert len(existing) > 300
    found = [path for path in existing if ending.search(path.read_text(encoding="utf-8"))]
    assert found == []
