"""A study's suites as samples, with the guarantee that no split has seen another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from safemerge.config.added_metric import AddedMetric
from safemerge.config.chat import Scalar
from safemerge.config.metric import Metric
from safemerge.config.source import PromptData, SeenData
from safemerge.config.statistics import StatisticsSpec
from safemerge.config.study import StudySpec
from safemerge.config.suite import (
    Choice,
    Classification,
    LmEval,
    SuiteSpec,
    Task,
    task_metrics,
)
from safemerge.config.training import TrainingSpec
from safemerge.data.asked import check_asked
from safemerge.data.lm_eval_task import LmEvalTask
from safemerge.data.overlap import near_duplicates
from safemerge.data.rows import load_samples, repeated_rows
from safemerge.data.sample import Sample, normalized_text
from safemerge.data.seen import check_unchanged, seen_texts
from safemerge.errors import DataError
from safemerge.records import Split


@dataclass(frozen=True)
class LoadedSuite:
    """A suite's prompts on one split."""

    name: str
    task: Task
    split: Split
    samples: tuple[Sample, ...]
    max_similarity: float | None = None
    """See `SuiteSpec.max_similarity`."""
    harness: LmEvalTask | None = field(default=None, compare=False)
    """The loaded task of an lm_eval suite; None for others."""
    chat: Mapping[str, Scalar] = field(default_factory=dict)
    """See `SuiteSpec.chat`."""
    strip_thinking: bool = False
    """See `SuiteSpec.strip_thinking`."""
    metrics: tuple[AddedMetric, ...] = ()
    """Metrics of other packages that are computed beside the task's own."""
    num_near: int = field(default=0, compare=False)
    """Prompts dropped as near-duplicates of the other split's."""

    @property
    def measures(self) -> tuple[Metric, ...]:
        """What is measured, named within the suite."""
        return (*task_metrics(self.task), *(item.row for item in self.metrics))

    @property
    def groups(self) -> dict[str, str]:
        """Group by sample id, of samples that share one; a group is named by its first sample.

        A name is an id, never a text: it is stored with the scores.
        """
        members: dict[str, list[str]] = {}
        for sample in self.samples:
            if sample.group:
                members.setdefault(sample.group, []).append(sample.sample_id)
        return {one: ids[0] for ids in members.values() if len(ids) > 1 for one in ids}


def load_suite(
    suite: SuiteSpec, split: Split, *, harness: LmEvalTask | None = None
) -> LoadedSuite:
    """Load one split of a suite.

    Args:
        suite: The declared suite.
        split: Which of its two splits.
        harness: An lm_eval suite's task, if it is loaded already.

    Raises:
        DataError: If the source is unreadable or empty, or a gold label is not declared.
    """
    where = f"suite '{suite.name}', {split}"
    asked: dict[str, Any] = {
        "chat": suite.chat,
        "strip_thinking": suite.strip_thinking,
        "metrics": tuple(item.loaded() for item in suite.metrics),
    }
    if isinstance(suite.task, LmEval):
        task = harness or LmEvalTask(suite.task, where=f"suite '{suite.name}'")
        source = (suite.search if split == "search" else suite.report).source
        documents = task.samples(source, where=where)
        return LoadedSuite(
            suite.name, suite.task, split, documents, suite.max_similarity, harness=task, **asked
        )
    samples = load_samples(
        suite.search if split == "search" else suite.report,
        where=where,
        group=suite.group,
        few_shot=suite.few_shot,
        endings=suite.task.endings if isinstance(suite.task, Choice) else (),
    )
    if isinstance(suite.task, Classification):
        samples = [_coded(suite.task, sample, where) for sample in samples]
    if isinstance(suite.task, Choice):
        samples = [_positioned(suite.task, sample, where) for sample in samples]
    return LoadedSuite(
        suite.name, suite.task, split, tuple(samples), suite.max_similarity, **asked
    )


def _coded(task: Classification, sample: Sample, where: str) -> Sample:
    label = task.codes.get(sample.label or "", sample.label)
    if (label or "").casefold() not in {known.casefold() for known in task.labels}:
        raise DataError(
            f"{where}: gold labels must be among {', '.join(task.labels)}; "
            f"got {label!r} for {sample.sample_id}."
        )
    return replace(sample, label=label)


def _positioned(task: Choice, sample: Sample, where: str) -> Sample:
    """Return a sample whose label is the right ending's position."""
    gold = sample.label or ""
    if task.gold is not None:
        position = task.gold.get(gold, -1)
    else:
        position = int(gold) if gold.isdecimal() else -1
    if not 0 <= position < len(sample.endings):
        raise DataError(
            f"{where}: the gold column must tell one of {len(sample.endings)} endings; got "
            f"{gold!r} for {sample.sample_id}. Fix task.gold or drop such rows."
        )
    return replace(sample, label=str(position))


Suites = dict[Split, list[LoadedSuite]]
"""A study's suites by split."""


def load_suites(spec: StudySpec) -> Suites:
    """Load both splits of a study's suites; see `load_splits`.

    Raises:
        DataError: Also if a resolved study asks other rows by now than when its run began.
    """
    loaded = load_splits(spec.suites)
    if spec.inputs is not None:
        check_asked(spec.inputs.rows, loaded)
    return loaded


def load_splits(suites: Sequence[SuiteSpec]) -> Suites:
    """Load both splits of every suite and refuse any overlap between them.

    Raises:
        DataError: See `check_disjoint`.
    """
    splits: tuple[Split, ...] = ("search", "report")
    tasks = {
        suite.name: LmEvalTask(suite.task, where=f"suite '{suite.name}'")
        for suite in suites
        if isinstance(suite.task, LmEval)
    }
    loaded = {
        split: [load_suite(suite, split, harness=tasks.get(suite.name)) for suite in suites]
        for split in splits
    }
    for index, suite in enumerate(suites):
        if suite.near_duplicates == "drop":
            pair = (loaded["search"][index], loaded["report"][index])
            loaded["search"][index] = _without_near(*pair)
    check_disjoint(loaded["search"], loaded["report"])
    return loaded


def _without_near(search: LoadedSuite, report: LoadedSuite) -> LoadedSuite:
    """Drop search samples that are near-duplicates of a report sample, equal ones excepted."""
    if search.max_similarity is None:
        return search
    fresh = {normalized_text(sample.own_text) for sample in report.samples}
    found = near_duplicates(
        [sample.own_text for sample in report.samples],
        [sample.own_text for sample in search.samples],
        threshold=search.max_similarity,
    )
    near = {item.right for item in found}
    kept = tuple(
        sample
        for index, sample in enumerate(search.samples)
        if index not in near or normalized_text(sample.own_text) in fresh
    )
    if not kept:
        raise DataError(
            f"suite '{search.name}', search: must keep a prompt; got {len(near)} of "
            f"{len(search.samples)} near a report prompt. Use other rows for one of the splits."
        )
    return replace(search, samples=kept, num_near=len(search.samples) - len(kept))


def dropped_lines(
    suites: Sequence[SuiteSpec], loaded: Mapping[Split, Sequence[LoadedSuite]]
) -> list[str]:
    """Return one line for each suite that rows were left out of, with the counts.

    Args:
        suites: As declared.
        loaded: The same suites, see `load_splits`.

    Raises:
        DataError: If a source cannot be read.
    """
    lines = []
    for index, suite in enumerate(suites):
        text = []
        for split, prompts in (("search", suite.search), ("report", suite.report)):
            where = f"suite '{suite.name}', {split}"
            if repeated := repeated_rows(prompts.source, where=where):
                text.append(f"rows that repeat in the {split} source: {repeated}")
        if near := loaded["search"][index].num_near:
            text.append(f"search prompts near report prompts: {near}")
        if text:
            lines.append(f"suite '{suite.name}', left out: {', '.join(text)}")
    return lines


def check_disjoint(search: Sequence[LoadedSuite], report: Sequence[LoadedSuite]) -> None:
    """Refuse prompts that two splits share: by id, by normalised text, or nearly.

    What is near is said by the second split's suites, each for its own prompts.

    Args:
        search: Suites of the search split, or of a rung.
        report: Suites of the split that must be fresh.

    Raises:
        DataError: If a prompt of `report` has the id or the normalised text of one of
            `search`, or is a near-duplicate of it; names up to three offenders.
    """
    seen = {
        key: sample.sample_id
        for suite in search
        for sample in suite.samples
        for key in (sample.sample_id, normalized_text(sample.prompt))
    }
    _refuse_shared(
        report,
        lambda sample: sample.sample_id in seen or normalized_text(sample.prompt) in seen,
        rule="suites: search and report split must not share prompts",
    )
    asked = [
        (f"{sample.sample_id} ({suite.name})", sample)
        for suite in search
        for sample in suite.samples
    ]
    _refuse_near(
        [(name, sample.own_text) for name, sample in asked],
        report,
        rule="suites: prompts of search and report split must not be near-duplicates",
    )


def check_training(
    stages: Sequence[TrainingSpec | StatisticsSpec],
    report: Sequence[LoadedSuite],
    *,
    seen: Sequence[SeenData] = (),
) -> None:
    """Refuse report prompts that a declared training stage has seen, or a model was measured on.

    Args:
        stages: Training and statistics files of the study's checkpoints, with paths resolved.
        report: The report split.
        seen: Data recorded in recipes, e.g. those that `safemerge optimize` found numbers on.

    Raises:
        DataError: If a report prompt has the id or the normalised text of a training prompt (or
            of its row's column ``question``), or is a near-duplicate of one; names up to three
            offenders. Also if a stage's data cannot be read, or recorded data have changed.
    """
    check_unchanged(seen)
    refuse_seen(
        sets_by_owner(stages, seen),
        report,
        same="suites: the report split must not hold prompts that a stage of the study is "
        "trained on or a recipe was optimised on",
        near="suites: report prompts must not be near-duplicates of training prompts",
    )


def sets_by_owner(
    stages: Sequence[TrainingSpec | StatisticsSpec], seen: Sequence[SeenData]
) -> list[tuple[str, Mapping[str, PromptData]]]:
    """Return data sets by place, with who has seen them: a stage, or a recipe."""
    trained: list[tuple[str, Mapping[str, PromptData]]] = [
        (
            stage.name,
            {f"{stage.name}.{place}": data for place, data in stage.training_sets.items()},
        )
        for stage in stages
    ]
    return trained + [(item.name, {item.name: item.data}) for item in seen]


def refuse_seen(
    sets: Sequence[tuple[str, Mapping[str, PromptData]]],
    suites: Sequence[LoadedSuite],
    *,
    same: str,
    near: str,
) -> None:
    """Refuse suites that share a prompt with declared data, or nearly.

    Args:
        sets: See `sets_by_owner`.
        suites: Suites that must be fresh.
        same: Rule that a shared prompt breaks.
        near: Rule that a near-duplicate breaks, at the suite's own similarity.

    Raises:
        DataError: If so, with up to three offenders; or if data cannot be read.
    """
    found: dict[str, tuple[str, str]] = {}
    for owner, declared in sets:
        for identity, text in seen_texts(declared):
            name = f"{identity.removesuffix('/question')} ({owner})"
            found.setdefault(identity, (name, text))
    texts = {normalized_text(text) for _, text in found.values()}
    _refuse_shared(
        suites,
        lambda sample: sample.sample_id in found or normalized_text(sample.own_text) in texts,
        rule=same,
    )
    _refuse_near(list(found.values()), suites, rule=near)


def _refuse_shared(
    report: Sequence[LoadedSuite], is_seen: Callable[[Sample], bool], *, rule: str
) -> None:
    clashes = [
        f"{sample.sample_id} ({suite.name})"
        for suite in report
        for sample in suite.samples
        if is_seen(sample)
    ]
    if clashes:
        raise DataError(
            f"{rule}; got {len(clashes)} shared, e.g. {', '.join(clashes[:3])}. "
            "Use disjoint start/stop ranges or other sources."
        )


def _refuse_near(
    seen: Sequence[tuple[str, str]], report: Sequence[LoadedSuite], *, rule: str
) -> None:
    """Compare each report suite with (name, text) pairs, at the suite's own similarity."""
    texts = [text for _, text in seen]
    clashes = []
    for suite in report:
        if suite.max_similarity is None:
            continue
        fresh = [sample.own_text for sample in suite.samples]
        clashes += [
            f"{suite.samples[found.right].sample_id} ({suite.name}) and {seen[found.left][0]}, "
            f"{found.similarity:.2f}"
            for found in near_duplicates(texts, fresh, threshold=suite.max_similarity)
        ]
    if clashes:
        raise DataError(
            f"{rule}; got {len(clashes)}, e.g. {'; '.join(clashes[:3])}. Use other rows, or raise "
            "the suite's max_similarity (null: equal prompts only)."
        )
