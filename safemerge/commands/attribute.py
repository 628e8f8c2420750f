"""``safemerge attribute``: which parts of a merge bring its harm and carry its skill."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.api.attribute import LOOKS, attribute, plan_attribution
from safemerge.commands.console import Console
from safemerge.reports import write_report
from safemerge.reports.wording import change, counted

if TYPE_CHECKING:
    import argparse

    from safemerge.reports.attribution import Attribution


def run(options: argparse.Namespace) -> None:
    """Evaluate the point's recipe without each part, print what was found, redraw the report."""
    console = Console()
    looks = options.only or LOOKS
    if options.dry_run:
        _plan(console, options.run, options.pick, looks)
        return
    say = None if options.json else console.say
    found = attribute(options.run, pick=options.pick, looks=looks, progress=say)
    page = write_report(options.run)
    if options.json:
        console.plain(found.model_dump_json(indent=2))
        return
    for line in attribution_lines(found):
        console.plain(line)
    console.say(f"report: {page}")


def _plan(console: Console, run: str, pick: str, looks: object) -> None:
    plan = plan_attribution(run, pick=pick, looks=looks)  # type: ignore[arg-type]
    text = ", ".join(plan.parents) or "none"
    console.plain(f"{plan.trial.label}: parents {text}")
    for part in plan.parts:
        without = f"merge {part.candidate[:8]}" if part.candidate else f"none: {part.problem}"
        console.plain(f"  without {part.kind} {part.name}: {without}")
    if plan.sets:
        console.plain(f"  every set of parents, for Shapley values: {len(plan.sets)} merges")
    for note in plan.notes:
        console.plain(f"  note: {note}")
    scored = len(plan.recipes) - len(plan.missing)
    console.plain(
        f"would evaluate {counted(len(plan.missing), 'merge')} on the search split; "
        f"{scored} of {len(plan.recipes)} are scored already"
    )


def attribution_lines(found: Attribution) -> list[str]:
    """Return an attribution as lines: what is significant, then every effect."""
    lines = [f"{found.label}, candidate {found.candidate}: why it is as it is", ""]
    lines += found.sentences
    lines += ["", "effect of a part: the point minus the same recipe without it"]
    for item in found.effects:
        kind = "Shapley value" if item.kind == "shapley" else f"without {item.kind}"
        value, low, high = (change(end, item.unit) for end in (item.value, item.low, item.high))
        tested = "" if item.p_value is None else f", p = {item.p_value:.3g}"
        lines.append(
            f"  {kind} {item.name}: {item.metric} {value} [{low}, {high}]{tested}, "
            f"n = {item.n}: {item.verdict}"
        )
    lines += [f"  {part.kind} {part.name}: {part.problem}" for part in found.parts if part.problem]
    return lines
