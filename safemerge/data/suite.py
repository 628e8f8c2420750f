"""A study's suites as samples, with the guarantee that no split has seen another."""

from __future__ import annotations

from dataclasses import dataclass

from safemerge.config.study import StudySpec
from safemerge.config.suite import SuiteSpec, Task
from safemerge.data.rows import load_samples
from safemerge.data.sample import Sample, normalized_text
from safemerge.errors import DataError
from safemerge.records import Split


@dataclass(frozen=True)
class LoadedSuite:
    """A suite's prompts on one split."""

    name: str
    task: Task
    split: Split
    samples: tuple[Sample, ...]


def load_suite(suite: SuiteSpec, split: Split) -> LoadedSuite:
    """Load one split of a suite.

    Raises:
        DataError: If the source is unreadable or empty, or a gold label is not declared.
    """
    where = f"suite '{suite.name}', {split}"
    samples = load_samples(suite.search if split == "search" else suite.report, where=where)
    labels = getattr(suite.task, "labels", None)
    if labels is not None:
        known = {label.casefold() for label in labels}
        for sample in samples:
            if (sample.label or "").casefold() not in known:
                raise DataError(
                    f"{where}: gold labels must be among {', '.join(labels)}; "
                    f"got {sample.label!r} for {sample.sample_id}."
                )
    return LoadedSuite(suite.name, suite.task, split, tuple(samples))


def load_suites(spec: StudySpec) -> dict[Split, list[LoadedSuite]]:
    """Load both splits of every suite and refuse any overlap between them.

    Raises:
        DataError: If a prompt of the search split is in the report split, by id or by
            normalised text; names up to three offenders.
    """
    splits: tuple[Split, ...] = ("search", "report")
    loaded = {split: [load_suite(suite, split) for suite in spec.suites] for split in splits}
    check_disjoint(loaded["search"], loaded["report"])
    return loaded


def check_disjoint(search: list[LoadedSuite], report: list[LoadedSuite]) -> None:
    """Refuse prompts that both splits hold, by sample id or by normalised text."""
    seen = {
        key: sample.sample_id
        for suite in search
        for sample in suite.samples
        for key in (sample.sample_id, normalized_text(sample.prompt))
    }
    clashes = [
        f"{sample.sample_id} ({suite.name})"
        for suite in report
        for sample in suite.samples
        if sample.sample_id in seen or normalized_text(sample.prompt) in seen
    ]
    if clashes:
        raise DataError(
            f"suites: search and report split must not share prompts; got {len(clashes)} shared, "
            f"e.g. {', '.join(clashes[:3])}. Use disjoint start/stop ranges or other sources."
        )
