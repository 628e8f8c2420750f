"""What the low rung did: how many it pruned, how far its losses can be believed, what it cost."""

from __future__ import annotations

from statistics import median

from markupsafe import Markup

from safemerge.config.metric import metrics_of
from safemerge.config.rung import RungSpec
from safemerge.inference.rank import spearman
from safemerge.records import TrialRecord
from safemerge.reports.markup import (
    Cell,
    fill,
    no_number,
    number_cell,
    paragraph,
    table,
)
from safemerge.reports.run import Run, is_measured
from safemerge.reports.wording import DIRECTION_WORDS, counted, joined, seconds


def rung_section(run: Run) -> Markup:
    """Return what the rung did, in words and a table; empty if the study has none."""
    rung = run.spec.rung
    screened = [trial for trial in run.trials if trial.rung is not None]
    if rung is None or not screened:
        return Markup()
    pruned = [trial for trial in screened if trial.state == "PRUNED"]
    audited = [trial for trial in screened if trial.rival is not None and trial.result is not None]
    front = {point.number for point in run.points}
    wrong = [trial for trial in audited if trial.number in front]
    pairs = sum(len(rows) for sources in _losses(screened[0]).values() for rows in sources)
    sentences = [
        f"{counted(len(screened), 'candidate')} took losses on {pairs} pairs "
        f"first ({joined(list(rung.sets))}). Pruned there, for a scored candidate had "
        f"lower losses on every set: {len(pruned)}.",
        _audit(len(pruned), len(audited), len(wrong)),
        _cost(screened),
    ]
    text = " ".join(part for part in sentences if part)
    lead = paragraph(fill("<b>Low rung.</b> {{ text }}", text=text))
    return lead + _correlations(run, rung, screened)


def _audit(pruned: int, audited: int, wrong: int) -> str:
    if not pruned and not audited:
        return "No candidate was beaten there."
    if not audited:
        return "None that was beaten there was scored, so what pruning missed is not known."
    return f"Beaten there and scored all the same: {audited}, of these on the front: {wrong}."


def _cost(screened: list[TrialRecord]) -> str:
    rung_s = [trial.rung.timings.total_s for trial in screened if trial.rung is not None]
    scored_s = [
        trial.result.timings.total_s
        for trial in screened
        if trial.result is not None and is_measured(trial)
    ]
    if not scored_s:
        return ""
    return (
        f"A candidate took {seconds(median(rung_s))} on the rung and {seconds(median(scored_s))} "
        "to be scored (medians)."
    )


def _correlations(run: Run, rung: RungSpec, screened: list[TrialRecord]) -> Markup:
    scored: dict[str, TrialRecord] = {}
    for trial in screened:
        if is_measured(trial):
            scored.setdefault(trial.candidate, trial)
    found = list(scored.values())
    means = [rung.means(_losses(trial)) for trial in found]
    known = metrics_of(run.spec)
    metrics = [known[item.metric] for item in run.spec.objectives]
    rows = []
    for name in rung.sets:
        cells = [Cell(name)]
        for metric in metrics:
            value = spearman(
                [mean[name] for mean in means], [trial.objectives[metric.name] for trial in found]
            )
            cells.append(
                no_number("none") if value is None else number_cell(value, f"{value:+.2f}")
            )
        rows.append(cells)
    caption = (
        f"Rank correlation (Spearman) of the rung\u2019s losses with the objectives over the "
        f"{counted(len(found), 'scored candidate')}; pruned ones are not in it. Where no set goes "
        "with an objective, the rung is blind for it: add a set, or do without the rung."
    )
    heads = ["loss on", *(f"{item.name} ({DIRECTION_WORDS[item.direction]})" for item in metrics)]
    return table(caption, heads, rows, sortable=False)


def _losses(trial: TrialRecord) -> dict[str, list[list[float]]]:
    return {} if trial.rung is None else trial.rung.losses
