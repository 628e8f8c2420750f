"""Runs side by side: what was measured alike, how fronts differ, and what was set otherwise.

Values of two runs are compared only where the same prompts were asked and judged alike. The first
run is the baseline; differences are the other run's minus its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from safemerge.config.base import StrictModel
from safemerge.config.inputs import StudyInputs, input_changes
from safemerge.config.metric import Direction, Metric, Unit, metrics_of
from safemerge.config.study import Objective, StudySpec
from safemerge.config.suite import SuiteSpec
from safemerge.errors import UserError
from safemerge.front import sound_row
from safemerge.records import CandidateResult, Split
from safemerge.reports.comparison import PairedDifference, holm_corrected, known_difference
from safemerge.reports.family import family_metrics
from safemerge.reports.run import Point, Run
from safemerge.reports.settings import Setting, differing_settings
from safemerge.reports.volume import Volume, volumes
from safemerge.reports.wording import change, change_word, recipe_text
from safemerge.run_folder import RunFolder
from safemerge.store import RunStore

MOST_RUNS = 8
"""Runs that one chart can distinguish."""


class DifferingSuite(StrictModel):
    """A suite whose numbers are not compared."""

    suite: str
    reason: str


class ComparedPoint(StrictModel):
    """A front or reference point."""

    trial: int
    label: str
    candidate: str
    """Digest of its recipe: equal in two runs where they made the same candidate."""
    recipe: str
    """In words."""
    front: bool
    knee: bool
    estimates: dict[str, list[float | int | None]]
    """[value, low, high, n] by metric, of the metrics that every run measured alike."""


class ComparedRun(StrictModel):
    """One run, as it is compared."""

    name: str
    """Its folder's name, or its whole path where two runs have the same."""
    folder: str
    """Or the URL that it is stored at."""
    sampled: int
    """Sampled trials that finished."""
    budget: int
    complete: bool
    published: bool
    points: list[ComparedPoint]
    hypervolume: Volume | None
    """Against `RunsCompared.reference`; None where the objectives are not comparable."""
    gain: Volume | None
    """Hypervolume minus the baseline's, on the same prompts; None for the baseline itself."""

    def knee(self) -> ComparedPoint | None:
        """Return its knee."""
        return next((point for point in self.points if point.knee), None)


class ComparedPair(StrictModel):
    """A candidate of a run minus one of the baseline, on the prompts that both answered."""

    kind: Literal["knee", "common"]
    """The two knees, or one candidate that both runs evaluated."""
    run: str
    trial: int
    """Of `run`."""
    baseline_trial: int
    label: str
    metric: str
    direction: Direction
    unit: Unit
    value: float | None
    """In the metric's unit, a fraction for shares; None without a sample scored on both sides."""
    low: float | None
    """Lower end of the 95 % interval, of this comparison alone."""
    high: float | None
    n: int
    left_out: int
    p_adjusted: float | None
    """Two-sided, corrected for `num_comparisons` by Holm."""
    num_comparisons: int
    verdict: str
    """``better``, ``worse`` or ``not significant``, of the run against the baseline."""


class RunsCompared(StrictModel):
    """Runs side by side; the first is the baseline."""

    split: Split
    """``report`` if every run has published its front, else ``search``."""
    metrics: dict[str, Direction]
    """What every run measured alike: objectives, limits and safety metrics of the baseline."""
    units: dict[str, Unit]
    """By metric."""
    axes: list[str]
    """Metrics of the chart, across and up; empty where fewer than two are comparable."""
    reference: dict[str, float]
    """Of the hypervolume, by objective: the worst of the runs' references; empty without one."""
    no_hypervolume: str | None
    """Why hypervolumes are not compared; None if they are."""
    suites: list[DifferingSuite]
    runs: list[ComparedRun]
    pairs: list[ComparedPair] = Field(default_factory=list)
    settings: list[Setting]


def compare_runs(runs: Sequence[Run]) -> RunsCompared:
    """Lay runs side by side.

    Args:
        runs: Two to eight, the baseline first; finished or not.

    Returns:
        What can be compared of them; numbers of suites that differ are left out.

    Raises:
        UserError: If there are too few or too many, or one is given twice.
    """
    names = _names(runs)
    base, *others = runs
    differing = _differing_suites(runs, names)
    apart = {item.suite for item in differing}
    metrics = {
        metric.name: metric
        for metric in family_metrics(base)
        if not apart & _suites(metric) and all(_has(other.spec, metric) for other in others)
    }
    split: Split = "report" if all(run.front is not None for run in runs) else "search"
    objectives, why_not = _common_objectives(runs, metrics)
    found, gains = (
        volumes(
            [_sound_results(run, split) for run in runs],
            [metrics[item.metric] for item in objectives],
            [item.reference for item in objectives],
        )
        if objectives
        else ([None] * len(runs), [None] * len(runs))
    )
    return RunsCompared(
        split=split,
        metrics={name: metric.direction for name, metric in metrics.items()},
        units={name: metric.unit for name, metric in metrics.items()},
        axes=_axes(metrics),
        reference={item.metric: item.reference for item in objectives},
        no_hypervolume=why_not,
        suites=differing,
        runs=[
            ComparedRun(
                name=name,
                folder=RunFolder(run.folder).place,
                sampled=run.num_sampled,
                budget=run.spec.num_trials,
                complete=run.is_complete,
                published=run.front is not None,
                points=_points(run, split, list(metrics)),
                hypervolume=volume,
                gain=gain,
            )
            for run, name, volume, gain in zip(runs, names, found, gains, strict=True)
        ],
        pairs=_pairs(runs, names, split, list(metrics.values())),
        settings=differing_settings([run.spec for run in runs]),
    )


def verdicts(compared: RunsCompared) -> list[str]:
    """Say in a sentence a run how it differs from the baseline, as far as the numbers carry."""
    base = compared.runs[0]
    lines = []
    for run in compared.runs[1:]:
        parts = []
        if run.gain is not None and run.gain.low is not None and run.gain.high is not None:
            if run.gain.low > 0:
                parts.append("dominates more (hypervolume)")
            elif run.gain.high < 0:
                parts.append("dominates less (hypervolume)")
            else:
                parts.append("the hypervolumes do not differ significantly")
        knees = [item for item in compared.pairs if item.kind == "knee" and item.run == run.name]
        clear = [
            f"{item.verdict} in {item.metric} ({change(item.value, item.unit)}"
            f"{change_word(item.unit)})"
            for item in knees
            if item.verdict != "not significant"
        ]
        if clear:
            parts.append(f"its knee is {', '.join(clear)}")
        elif knees:
            parts.append("the knees do not differ significantly")
        if parts:
            lines.append(f"{run.name} against {base.name}: {'; '.join(parts)}.")
        else:
            lines.append(f"{run.name} against {base.name}: nothing to compare.")
    return lines


def _names(runs: Sequence[Run]) -> list[str]:
    if not 2 <= len(runs) <= MOST_RUNS:
        raise UserError(
            f"compare: needs 2 to {MOST_RUNS} runs; got {len(runs)}. Name their folders."
        )
    folders = [run.folder.resolve() for run in runs]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            given = RunFolder(runs[place].folder).place
            raise UserError(f"compare: each run once; got {given} twice. Drop one.")
    places = [RunFolder(folder).place.rstrip("/") for folder in folders]
    short = [place.rpartition("/")[2] for place in places]
    return [
        name if short.count(name) == 1 else RunFolder(run.folder).place
        for run, name in zip(runs, short, strict=True)
    ]


def _suites(metric: Metric) -> set[str]:
    return {name.partition(".")[0] for name in metric.mean_of or (metric.name,)}


def _has(spec: StudySpec, metric: Metric) -> bool:
    other = metrics_of(spec).get(metric.name)
    return (
        other is not None
        and other.direction == metric.direction
        and other.mean_of == metric.mean_of
        and other.unit == metric.unit
    )


def _differing_suites(runs: Sequence[Run], names: Sequence[str]) -> list[DifferingSuite]:
    """Name every suite that is not asked and judged alike in all runs, and why."""
    base = runs[0]
    inputs = [RunStore(run.folder).study().inputs for run in runs]
    by_run = [{suite.name: suite for suite in run.spec.suites} for run in runs]
    found = []
    for name in dict.fromkeys(name for suites in by_run for name in suites):
        lacking = [
            label for label, suites in zip(names, by_run, strict=True) if name not in suites
        ]
        if lacking:
            found.append(DifferingSuite(suite=name, reason=f"not in {', '.join(lacking)}"))
            continue
        for k in range(1, len(runs)):
            reason = _difference(by_run[0][name], by_run[k][name], inputs[0], inputs[k])
            reason = reason or _other_samples(base, runs[k], name)
            if reason is not None:
                detail = f"{names[k]} against {names[0]}: {reason}"
                found.append(DifferingSuite(suite=name, reason=detail))
                break
    return found


def _difference(
    before: SuiteSpec, now: SuiteSpec, was: StudyInputs | None, given: StudyInputs | None
) -> str | None:
    settings = differing_settings([before, now])
    counted = [before.counted(), now.counted()]
    if counted[0] != counted[1]:
        # NOTE: of paths alone the settings differ, but not what counts.
        return f"declared otherwise ({', '.join(item.setting for item in settings[:3])})"
    if was is None or given is None:
        return None
    judges = {judge.name for judge in before.judges}
    for found in input_changes(was, given):
        is_own = found.place == f"suites.{before.name}" or found.place.startswith(
            f"suites.{before.name}."
        )
        is_judge = found.place.removeprefix("judges.") in judges and (
            found.kind == "judges" or found.place.startswith("judges.")
        )
        if is_own or is_judge or found.kind == "scoring":
            return str(found)
    return None


def _other_samples(base: Run, other: Run, suite: str) -> str | None:
    """Compare the samples that were asked, which holds where no digest of the rows is known."""
    for split in ("search", "report"):
        asked = [_asked(run, suite, split) for run in (base, other)]
        if asked[0] and asked[1] and asked[0] != asked[1]:
            shared = len(asked[0] & asked[1])
            return f"other prompts on the {split} split, {shared} of {len(asked[0])} the same"
    return None


def _asked(run: Run, suite: str, split: str) -> set[str]:
    for point in (*run.references, *run.points):
        result = point.search if split == "search" else point.report
        if result is not None and result.scores.get(suite):
            return {score.sample_id for score in result.scores[suite]}
    return set()


def _common_objectives(
    runs: Sequence[Run], metrics: dict[str, Metric]
) -> tuple[list[Objective], str | None]:
    """Objectives with the worst reference of the runs, or why there are none."""
    wanted = [item.metric for item in runs[0].spec.objectives]
    for run in runs[1:]:
        if {item.metric for item in run.spec.objectives} != set(wanted):
            return [], "the objectives differ"
    lacking = [name for name in wanted if name not in metrics]
    if lacking:
        return [], f"{', '.join(lacking)}: not measured alike in every run"
    found = []
    for objective in runs[0].spec.objectives:
        references = [
            item.reference
            for run in runs
            for item in run.spec.objectives
            if item.metric == objective.metric
        ]
        worst = min(references) if objective.direction == "maximize" else max(references)
        found.append(objective.model_copy(update={"reference": worst}))
    return found, None


def _axes(metrics: dict[str, Metric]) -> list[str]:
    """Skill across and harm up, where both are there; else the first two metrics."""
    named = list(metrics.values())
    skill = next((item for item in named if item.role == "skill"), None)
    harm = next((item for item in named if item.role == "harm"), None)
    first = [item for item in (skill, harm) if item is not None]
    rest = [item for item in named if item not in first]
    chosen = [*first, *rest][:2] if skill is not None else [*rest[:1], *first, *rest[1:]][:2]
    return [item.name for item in chosen] if len(chosen) == 2 else []


def _result(point: Point, split: Split) -> CandidateResult | None:
    """Return a point's result; None if it is broken: degenerate text can look safe."""
    result = point.report if split == "report" else point.search
    return None if result is None or result.broken is not None else result


def _sound_results(run: Run, split: Split) -> list[CandidateResult]:
    """Front points that keep the limits of their own study on the split."""
    results = [_result(point, split) for point in run.points]
    return [item for item in results if item is not None and sound_row(run.spec, item) is not None]


def _points(run: Run, split: Split, metrics: list[str]) -> list[ComparedPoint]:
    front = {point.number for point in run.points}
    shown = {point.number: point for point in (*run.points, *run.references)}
    knee = None if run.knee is None else run.knee.number
    found = []
    for number, point in sorted(shown.items()):
        result = _result(point, split)
        if result is None:
            continue
        estimates: dict[str, list[float | int | None]] = {
            name: [item.value, item.low, item.high, item.n]
            for name in metrics
            if (item := result.metrics.get(name)) is not None
        }
        found.append(
            ComparedPoint(
                trial=number,
                label=point.name,
                candidate=point.search.candidate,
                recipe=recipe_text(point.trial.recipe, point.trial.params),
                front=number in front,
                knee=number == knee,
                estimates=estimates,
            )
        )
    return found


def _pairs(
    runs: Sequence[Run], names: Sequence[str], split: Split, metrics: list[Metric]
) -> list[ComparedPair]:
    """Knees, and candidates that both runs have, against the baseline: one family."""
    base, made = runs[0], []
    known: dict[Any, Any] = {}
    for run, name in zip(runs[1:], names[1:], strict=True):
        couples: list[tuple[Literal["knee", "common"], Point, Point]] = []
        if run.knee is not None and base.knee is not None:
            couples.append(("knee", run.knee, base.knee))
        couples += [("common", *pair) for pair in _common(run, base)]
        for kind, own, other in couples:
            results = (_result(own, split), _result(other, split))
            if results[0] is None or results[1] is None:
                continue
            for metric in metrics:
                difference = known_difference(
                    results[0],
                    results[1],
                    metric.name,
                    metric.mean_of,
                    metric.direction,
                    known=known,
                )
                made.append((kind, name, own, other, difference))
    corrected = holm_corrected([row[-1] for row in made])
    return [
        _pair(kind, name, own, other, difference)
        for (kind, name, own, other, _), difference in zip(made, corrected, strict=True)
    ]


def _common(run: Run, base: Run) -> list[tuple[Point, Point]]:
    """Front and reference points of either run that the other has too, by candidate."""
    shown: list[dict[str, Point]] = [
        {point.search.candidate: point for point in (*one.references, *one.points)}
        for one in (run, base)
    ]
    return [(shown[0][key], shown[1][key]) for key in shown[0] if key in shown[1]]


def _pair(
    kind: Literal["knee", "common"],
    name: str,
    own: Point,
    other: Point,
    difference: PairedDifference,
) -> ComparedPair:
    values: dict[str, Any] = {
        key: getattr(difference, key)
        for key in ("metric", "direction", "unit", "value", "low", "high", "n", "left_out")
    }
    return ComparedPair(
        kind=kind,
        run=name,
        trial=own.number,
        baseline_trial=other.number,
        label=own.name,
        p_adjusted=difference.p_value,
        num_comparisons=difference.num_comparisons,
        verdict=difference.verdict,
        **values,
    )
