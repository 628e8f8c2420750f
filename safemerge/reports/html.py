"""The report as one self-contained HTML page: text, tables and charts, no network."""

from __future__ import annotations

from safemerge.reports.markup import Section, asset, joined_markup, page
from safemerge.reports.payload import payload_json
from safemerge.reports.run import Run
from safemerge.reports.section_front import front_section, pairs_section
from safemerge.reports.section_headline import headline_section, status_banner
from safemerge.reports.section_interpolated import interpolated_section
from safemerge.reports.section_notes import limits_section, provenance_section, timing_section
from safemerge.reports.section_rung import rung_section
from safemerge.reports.section_trials import (
    hypervolume_section,
    parameters_section,
    plot_section,
    trials_section,
)


def render_html(run: Run) -> str:
    """Render a run's report.

    Args:
        run: The run; it may be unfinished or without a feasible point, and the page then
            says so.

    Returns:
        A whole HTML document that loads nothing from anywhere. Names and reasons are
        escaped; no text that a model generated is in it.
    """
    trials = joined_markup([rung_section(run), interpolated_section(run), trials_section(run)])
    sections = [
        Section("found", "Found", "What was found", headline_section(run)),
        Section("plot", "Skill and harm", "Skill against harm", plot_section(run)),
        Section("front", "Front", "The front", front_section(run)),
        Section(
            "pairs",
            "Not significant",
            "Points that do not differ significantly",
            pairs_section(run),
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
        Section("limits", "Limits", "Limits", limits_section(run)),
        Section("provenance", "Provenance", "Provenance", provenance_section(run)),
    ]
    return page(
        run.spec.name,
        "report",
        status_banner(run),
        sections,
        payload=payload_json(run),
        script=asset("report.js"),
    )
