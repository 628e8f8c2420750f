"""Why a point is as it is: what its parents, operators and layers contribute."""

from __future__ import annotations

from markupsafe import Markup

from safemerge.reports.attribution import Attribution, Effect
from safemerge.reports.markup import (
    Cell,
    fill,
    items,
    joined_markup,
    no_number,
    number_cell,
    paragraph,
    table,
)
from safemerge.reports.run import Run
from safemerge.reports.wording import DIRECTION_WORDS, change, counted
from safemerge.run_folder import RunFolder

_KINDS = {
    "parent": "parent left out",
    "shapley": "parent, Shapley value",
    "operator": "operator left out",
    "layers": "base in these layers",
}
_MARKS = {"better": "\u25b2", "worse": "\u25bc", "not significant": "\u2248"}


def attribution_section(run: Run) -> Markup:
    """Return what was found of each point that was looked at; how to ask if none was."""
    if not run.attributions:
        return paragraph(
            fill(
                "Not asked yet. <code>safemerge attribute {{ run }}</code> evaluates the knee "
                "without each of its parents, operators and groups of layers.",
                run=RunFolder(run.folder).place,
            )
        )
    return joined_markup(_point(found) for found in run.attributions)


def _point(found: Attribution) -> Markup:
    lead = fill(
        "<b>{{ label }}</b>, {{ merges }} on {{ prompts }} of the search split.",
        label=found.label,
        merges=counted(found.num_merges, "further merge"),
        prompts=counted(found.num_prompts, "prompt"),
    )
    metrics = list(dict.fromkeys(item.metric for item in found.effects))
    direction = {item.metric: item.direction for item in found.effects}
    by_part: dict[tuple[str, str], dict[str, Effect]] = {}
    for item in found.effects:
        by_part.setdefault((item.kind, item.name), {})[item.metric] = item
    rows = []
    for part in found.parts:
        own = by_part.get((part.kind, part.name), {})
        shown = f"{part.name} ({part.problem})" if part.problem else part.name
        cells = [_cell(own.get(metric)) for metric in metrics]
        rows.append([Cell(f"{_KINDS[part.kind]}: {shown}"), *cells])
    count = max((item.num_comparisons for item in found.effects), default=0)
    caption = (
        "What a part contributes: the point minus the same recipe without the part, prompt by "
        "prompt, with the 95 % interval of each alone and p after Holm\u2019s correction for "
        f"{counted(count, 'comparison')}. A parent left out is one whose task vector is zero. "
        "Shapley values are a parent\u2019s mean effect over all orders of the parents; they add "
        "up to the point minus the recipe without parents. The point was chosen for its scores "
        "on these prompts, so that what it has looks somewhat better than it is."
    )
    heads = ["part", *(f"{name} ({DIRECTION_WORDS[direction[name]]})" for name in metrics)]
    return (
        paragraph(lead)
        + items(found.sentences)
        + (table(caption, heads, rows, sortable=False) if metrics else Markup())
    )


def _cell(effect: Effect | None) -> Cell:
    if effect is None or effect.value is None:
        return no_number("no value")
    value, low, high = (
        change(end, effect.unit) for end in (effect.value, effect.low, effect.high)
    )
    significance = "" if effect.p_value is None else f", p = {effect.p_value:.2g}"
    mark = _MARKS[effect.verdict]
    return number_cell(
        effect.value, f"{mark} {value} [{low}, {high}]{significance}, n = {effect.n}"
    )
