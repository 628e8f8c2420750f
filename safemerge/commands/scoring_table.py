"""The metrics and judges that ``safemerge methods`` lists, with those of packages."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from safemerge import plugins
from safemerge.config.added_metric import load_metric
from safemerge.config.judge import ClassifierJudge, GuardJudge, RefusalProxy
from safemerge.config.metric import TASK_METRICS, Metric
from safemerge.errors import ConfigError


def scoring_lines() -> Iterator[str]:
    """Yield the two tables, line by line; a package that cannot be loaded says why in its row."""
    yield "Metrics, by the kind of task that gives them ('metrics: [NAME]' in a suite adds others)"
    yield ""
    for kind, rows in TASK_METRICS.items():
        for row in rows:
            yield _line(f"{kind}.{row.name}", _meaning(row))
    for name, plugin in plugins.installed(plugins.METRICS).items():
        try:
            text = _meaning(load_metric(name).row)
        except ConfigError as error:
            text = str(error)
        yield _line(name, f"{text} ({plugin.stamp})")
    yield ""
    yield "Judges ('kind: NAME' in a harm task; 'kind: added, use: NAME' for those of packages)"
    yield ""
    for kind, spec in (
        ("refusal_proxy", RefusalProxy),
        ("classifier", ClassifierJudge),
        ("guard", GuardJudge),
    ):
        yield _line(kind, _first_line(spec))
    for name, plugin in plugins.installed(plugins.JUDGES).items():
        try:
            text = _first_line(plugins.load(plugins.JUDGES, name))
        except ConfigError as error:
            text = str(error)
        yield _line(name, f"{text} ({plugin.stamp})")
    yield ""


def _meaning(row: Metric) -> str:
    return f"{row.summary} {row.role}, {row.unit}, {row.direction}"


def _first_line(described: object) -> str:
    return next(iter((described.__doc__ or "").strip().splitlines()), "")


def _line(name: str, text: str) -> str:
    indent = " " * 33
    return textwrap.fill(
        text, 98, initial_indent=f"  {name:<31}", subsequent_indent=indent, break_on_hyphens=False
    )
