"""The report as one self-contained HTML page: text, tables and charts, no network."""

from __future__ import annotations

from collections.abc import Sequence

from safemerge.config.metric import Metric
from safemerge.reports.family import family_metrics
from safemerge.reports.markup import Section, asset, joined_markup, page
from safemerge.reports.payload import payload_json
from safemerge.reports.run import Run
from safemerge.reports.section_attribution import attribution_section
from safemerge.reports.section_front import front_section, pairs_section, safety_lost_section
from safemerge.reports.section_headline import (
    headline_section,
    status_banner,
    versus_section,
)
from safemerge.reports.section_interpolated import interpolated_section
from safemerge.reports.section_notes import limits_section, provenance_section, timing_section
from safemerge.reports.section_rung import rung_section
from safemerge.reports.section_trials import (
    hypervolume_section,
    parameters_section,
    trials_section,
)

SCRIPTS = ("page.js", "scatter.js", "pin.js", "charts.js", "tables.js")
"""What the page runs, in order: one scope, no globals."""


def script(names: Sequence[str] = SCRIPTS) -> str:
    """Return a page's script, of the files that it is made of."""
    parts = "\n".join(asset(f"script/{name}") for name in names)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


def render_html(run: Run, *, refresh_s: float | None = None) -> str:
    """Render a run's report.

    Args:
        run: The run; it may be unfinished or without a feasible point, and the page then
            says so.
        refresh_s: Seconds after which the page loads itself again, for a run that is being
            searched; None for one that is not.

    Returns:
        A whole HTML document that loads nothing from anywhere. Names and reasons are
        escaped; no text that a model generated is in it.
    """
    groups: dict[str, list[Metric]] = {"harm": [], "skill": [], "cost": []}
    for metric in family_metrics(run):
        groups[metric.role if metric.role in groups else "cost"].append(metric)
    trials = joined_markup([trials_section(run), rung_section(run), interpolated_section(run)])
    sections = [
        Section("found", "Verdict", "What was found", headline_section(run)),
        Section(
            "safe",
            "Safe?",
            "Is it safe?",
            versus_section(run, groups["harm"]) + safety_lost_section(run),
        ),
        Section("skilled", "Skilled?", "Is it skilled?", versus_section(run, groups["skill"])),
        Section(
            "cost",
            "Cost",
            "What does it cost: over-refusal and other limits",
            versus_section(run, groups["cost"]),
        ),
        Section("pairs", "How sure?", "How sure is it: points that are tied", pairs_section(run)),
        Section("limits", "Limits", "Limits", limits_section(run)),
        Section("front", "Front", "What else: the front", front_section(run)),
        Section(
            "why", "Why?", "Why is it so: what each part contributes", attribution_section(run)
        ),
        Section("trials", "Trials", "All trials", trials),
        Section("progress", "Hypervolume", "Hypervolume over trials", hypervolume_section(run)),
        Section(
            "parameters-section",
            "Parameters",
            "Parameters against objectives",
            parameters_section(run),
        ),
        Section("time", "Time", "Where the time went", timing_section(run)),
        Section("provenance", "Provenance", "Provenance", provenance_section(run)),
    ]
    return page(
        run.spec.name,
        "report",
        status_banner(run, is_live=refresh_s is not None),
        sections,
        payload=payload_json(run, refresh_s=refresh_s),
        script=script(),
    )
