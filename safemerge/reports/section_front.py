"""The front as tables: both splits side by side, safety lost, and pairs that do not differ."""

from __future__ import annotations

import shlex
from itertools import combinations

from markupsafe import Markup

from safemerge.config.metric import Metric, metrics_of
from safemerge.front import broken_constraints
from safemerge.records import CandidateResult
from safemerge.reports.comparison import Pair
from safemerge.reports.family import family_of
from safemerge.reports.markup import (
    Cell,
    code,
    difference_cell,
    estimate_cell,
    fill,
    joined_markup,
    no_number,
    number_cell,
    paragraph,
    piece,
    quiet,
    table,
    text_cell,
)
from safemerge.reports.metric import safety_metrics, side_metrics
from safemerge.reports.run import Point, Run
from safemerge.reports.table import by_first_objective
from safemerge.reports.versus import compare_all_with_references, is_parent, is_warm_start
from safemerge.reports.wording import (
    amount,
    counted,
    difference_text,
    p_value_text,
    recipe_text,
)
from safemerge.run_folder import RunFolder

MAX_MATRIX = 24
"""Front points beyond which the list replaces the matrix of pairs."""


MAX_LISTED = 300
"""Comparisons beyond which they are not listed."""


def front_section(run: Run) -> Markup:
    """Return the table of front and reference points."""
    if not run.points and not run.references:
        return paragraph("There is no point to show yet.")
    on_front = {point.number for point in run.points}
    others = [point for point in run.references if point.number not in on_front]
    points = [*by_first_objective(run, run.points), *others]
    metrics = metrics_of(run.spec)
    both = [item for item in metrics.values() if item.use != "other"]
    single = [item for item in side_metrics(run.spec) if item not in both]
    published = run.front is not None
    heads = ["point"]
    for metric in both:
        heads += (
            [f"{metric.name}{metric.sign}, report", f"{metric.name}{metric.sign}, search"]
            if published
            else [f"{metric.name}{metric.sign}, search"]
        )
    heads += [
        f"{metric.name}{metric.sign}, {'report' if published else 'search'}" for metric in single
    ]
    rows = [_row(run, point, both, single, point.number in on_front) for point in points]
    caption = (
        "Front points, best first objective first, then the reference points off the front. "
        "Mean (shares in percent), 95 % interval, n scored samples. Press a head to sort."
    )
    shown = table(
        caption,
        heads,
        rows,
        css="front",
        row_ids=[str(p.number) for p in points],
        details=[_take(run, p) for p in points],
    )
    return shown + _believed(run)


def safety_lost_section(run: Run) -> Markup:
    """Return the table of safety lost by every front point against every parent."""
    found = joined_markup(_safety_lost(run, metric) for metric in safety_metrics(run.spec))
    if not found:
        return found
    return fill(
        '<details class="more"><summary>Safety lost by every front point</summary>{{ found }}'
        "</details>",
        found=found,
    )


def export_command(run: Run, number: int) -> str:
    """Return the command that writes a point's checkpoint."""
    return f"safemerge export {shlex.quote(RunFolder(run.folder).place)} --pick {number} OUT_DIR"


def pairs_section(run: Run) -> Markup:
    """Return which pairs of front points do not differ significantly."""
    if run.front is None:
        return paragraph("Pairs are compared once the front is published.")
    if len(run.points) < 2:
        return paragraph("The front has fewer than two points: there is no pair to compare.")
    pairs = _tied_pairs(run)
    by_pair: dict[tuple[int, int], list[Pair]] = {}
    for pair in pairs:
        by_pair.setdefault((pair.left, pair.right), []).append(pair)
    total = len(list(combinations(run.points, 2)))
    same = [key for key, found in by_pair.items() if len(found) == len(run.spec.objectives)]
    detail = (
        f"Of {counted(total, 'pair')} of front points, {len(by_pair)} do not differ "
        f"significantly on at least one objective"
    )
    detail += (
        f", and {len(same)} of these on every objective: between such two points, the order in "
        "the table means nothing."
        if same
        else "; every pair differs on some objective."
    )
    parts = [paragraph(detail)]
    if len(run.points) <= MAX_MATRIX:
        matrices = []
        for item in run.spec.objectives:
            alike = {
                (pair.left, pair.right) for pair in pairs if pair.difference.metric == item.metric
            }
            matrices.append(_matrix(run, item.metric, alike))
        parts.append(
            fill('<div class="side">{{ matrices }}</div>', matrices=joined_markup(matrices))
        )
    if len(pairs) > MAX_LISTED:
        parts.append(
            paragraph(
                f"The {len(pairs)} comparisons that are not significant are too many to list: pin "
                "two points in the chart, or take the JSON below the trials."
            )
        )
    elif pairs:
        rows = [
            [
                text_cell(f"{pair.left} and {pair.right}"),
                text_cell(pair.difference.metric),
                Cell(difference_text(pair.difference), pair.difference.value),
                Cell(p_value_text(pair.difference.p_value), pair.difference.p_value),
                number_cell(float(pair.difference.n), str(pair.difference.n)),
                number_cell(float(pair.difference.left_out), str(pair.difference.left_out)),
            ]
            for pair in pairs
        ]
        heads = ["trials", "objective", "first minus second", "p", "n", "left out"]
        inner = table(
            "Pairs whose p-value exceeds 0.05 after correction for all "
            f"{pairs[0].difference.num_comparisons} comparisons of this report (Holm), on the "
            "report split; the 95 % interval is of each comparison alone.",
            heads,
            rows,
        )
        parts.append(
            fill(
                '<details class="more"><summary>All {{ count }} not significant</summary>'
                "{{ inner }}</details>",
                count=counted(len(pairs), "comparison"),
                inner=inner,
            )
        )
    return joined_markup(parts)


def _tied_pairs(run: Run) -> list[Pair]:
    metrics, family = metrics_of(run.spec), family_of(run)
    return [
        Pair(left.number, right.number, found)
        for left, right in combinations(run.points, 2)
        if left.search.candidate != right.search.candidate
        for item in run.spec.objectives
        for found in [family.difference(left, right, metrics[item.metric])]
        if not found.is_distinguishable
    ]


def _row(
    run: Run, point: Point, both: list[Metric], single: list[Metric], is_front: bool
) -> list[Cell]:
    name: str = point.name
    if run.knee is not None and run.knee.number == point.number:
        name = fill('{{ name }} <span class="flag knee">knee</span>', name=name)
    if point.trial.role == "reference":
        kind = "parent" if is_parent(run, point) else "reference merge"
        if is_warm_start(run, point):
            kind = "warm start"
        where = "" if is_front else ", not on the front"
        detail = quiet(f"#{point.number}, {kind}{where}")
        name = fill("{{ name }} {{ detail }}", name=name, detail=detail)
    cells = [Cell(name, float(point.number))]
    for metric in both:
        results = (point.search,) if run.front is None else (point.report, point.search)
        cells += [_estimate(run, result, metric) for result in results]
    cells += [_estimate(run, point.shown, metric) for metric in single]
    return cells


def _take(run: Run, point: Point) -> Markup:
    """What a user needs to take a point: coefficients, digest, command."""
    recipe = recipe_text(point.trial.recipe, point.trial.params)
    detail = fill(
        '<span class="recipe">{{ recipe }}</span> '
        '<span class="quiet">candidate <code>{{ candidate }}</code></span>',
        recipe=recipe,
        candidate=point.search.candidate,
    )
    if run.front is None:  # Export needs a published front.
        return detail
    command = export_command(run, point.number)
    return detail + Markup(" ") + piece("command", command)


def _estimate(run: Run, result: CandidateResult | None, metric: Metric) -> Cell:
    if result is None:
        return no_number("not evaluated")
    if result.broken is not None:
        return no_number("broken")
    broken = {item.metric for item in broken_constraints(run.spec, result)}
    return estimate_cell(result.metrics.get(metric.name), is_broken=metric.name in broken)


def _believed(run: Run) -> Markup:
    """What the posterior that chose the front believes of its points, beside what was measured."""
    if run.front is None or run.front.belief is None:
        return Markup()
    belief, metrics = run.front.belief, metrics_of(run.spec)
    goals = [metrics[item.metric] for item in run.spec.objectives]
    rows = []
    for point in by_first_objective(run, run.points):
        if point.belief is None:
            continue
        chance = point.belief.chance
        cells = [
            Cell(point.name, float(point.number)),
            number_cell(chance, f"{100 * chance:.0f}\u00a0%"),
        ]
        for goal in goals:
            found = point.belief.values[goal.name]
            ends = (found.low, found.high)
            detail = fill(
                '{{ value }}<span class="ci">{{ ends }}</span>',
                value=amount(found.mean, goal.unit, sign=False),
                ends=f"[{', '.join(amount(it, goal.unit, sign=False) for it in ends)}]",
            )
            cells.append(Cell(detail, found.mean, is_number=True))
            cells.append(_estimate(run, point.search, goal))
        rows.append(cells)
    heads = ["point", "chance of the front"]
    for goal in goals:
        heads += [f"{goal.name}{goal.sign}, believed", f"{goal.name}{goal.sign}, measured"]
    volume = belief.hypervolume
    caption = (
        f"What is believed after {counted(belief.evaluations, 'scored recipe')}, each with its "
        "own noise: posterior mean and 95 % interval, and the probability that no other recipe is "
        f"better. Points with a chance of at least {100 * belief.chance:.0f}\u00a0% are "
        f"published. Their hypervolume is believed to be {volume.mean:.3f} "
        f"[{volume.low:.3f}, {volume.high:.3f}]."
    )
    return table(caption, heads, rows, css="belief")


def _safety_lost(run: Run, metric: Metric) -> Markup:
    parents = [point for point in run.references if is_parent(run, point)]
    points = by_first_objective(run, run.points)
    if not parents or not points:
        return Markup()
    compared = compare_all_with_references(run, points, metrics=[metric], references=parents)
    found = {
        number: {item.reference.number: item.differences[0] for item in row}
        for number, row in compared.items()
    }
    rows = []
    for point in points:
        cells = [Cell(point.name, float(point.number))]
        for parent in parents:
            difference = found[point.number].get(parent.number)
            cells.append(
                Cell(quiet("itself")) if difference is None else difference_cell(difference)
            )
        rows.append(cells)
    heads = ["point", *(f"against {parent.name}" for parent in parents)]
    caption = fill(
        "Safety lost against each parent: {{ metric }} of the point minus the parent's, "
        "in percentage points on the same prompts. Above 0, the merge is less safe than that "
        "parent. p: of no difference, after correction for all comparisons of this report (Holm); "
        "better or worse is said only where it is at most 0.05. The 95 % interval is of each "
        "comparison alone.",
        metric=code(metric.name),
    )
    return table(caption, heads, rows, css="versus")


def _matrix(run: Run, metric: str, same: set[tuple[int, int]]) -> Markup:
    points = by_first_objective(run, run.points)
    rows = []
    for point in points:
        own = quiet(f"#{point.number}") if point.trial.role == "reference" else ""
        cells = [Cell(fill("{{ name }} {{ own }}", name=point.name, own=own))]
        for other in points:
            if other.number == point.number:
                cells.append(Cell(quiet("\u00b7")))
                continue
            is_same = (point.number, other.number) in same or (other.number, point.number) in same
            mark, word = ("\u2248", "not significant") if is_same else ("\u2260", "differs")
            shown = fill(
                '<span class="{{ css }}" title="{{ word }}" aria-label="{{ word }}">'
                "{{ mark }}</span>",
                css="same" if is_same else "differs",
                word=word,
                mark=mark,
            )
            cells.append(Cell(shown))
        rows.append(cells)
    heads = ["trial", *(str(point.number) for point in points)]
    caption = fill(
        "{{ metric }}: \u2248 not significant, \u2260 differs (p at most 0.05 after correction "
        "for all comparisons of this report)",
        metric=code(metric),
    )
    return table(caption, heads, rows, css="matrix", sortable=False)
