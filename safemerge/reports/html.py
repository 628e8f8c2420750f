"""The report as one self-contained HTML page: text, tables and charts, no network."""

from __future__ import annotations

import re
from importlib import resources

from safemerge.reports.markup import escape
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

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def render_html(run: Run) -> str:
    """Render a run's report.

    Args:
        run: The run; it may be unfinished or without a feasible point, and the page then
            says so.

    Returns:
        A whole HTML document that loads nothing from anywhere. Names and reasons are
        escaped; no text that a model generated is in it.
    """
    parts = {
        "title": escape(f"{run.spec.name}: safemerge report"),
        "css": _asset("report.css"),
        "js": _asset("report.js"),
        "payload": payload_json(run),
        "study": escape(run.spec.name),
        "status": status_banner(run),
        "headline": headline_section(run),
        "plot": plot_section(run),
        "front": front_section(run),
        "pairs": pairs_section(run),
        "trials": rung_section(run) + interpolated_section(run) + trials_section(run),
        "hypervolume": hypervolume_section(run),
        "parameters": parameters_section(run),
        "timings": timing_section(run),
        "limits": limits_section(run),
        "provenance": provenance_section(run),
    }
    # NOTE: one pass, so that a "{{slot}}" inside a name is not filled in again.
    return _SLOT.sub(lambda match: parts[match.group(1)], _asset("report_template.html"))


def _asset(name: str) -> str:
    return resources.files("safemerge.reports").joinpath(name).read_text(encoding="utf-8")
